"""Which model something belongs to: a short text made of its configuration and its published weights.

The same for every copy of a checkpoint, whatever its files are called and however the weights are cut into shards; another as soon as
a number in the configuration, a tensor's name, type or shape, or a kilobyte in the middle of any tensor differs. It tells models apart
and proves nothing: 15 GB of weights are looked at in about a thousand places, in some milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import CheckpointError
from .weights_file import TensorInfo

# Bytes looked at of each tensor, from its middle.
SAMPLE = 1024


def fingerprint(described: Any, parts: Sequence[Mapping[str, TensorInfo]]) -> str:
    """`sha256:` and 64 hexadecimal digits.

    `described` is JSON; `parts` are weights as they are on disk (see `WeightsFile`), in an order that has a meaning: the language
    model's, the codec's, ... Raises `CheckpointError` for a file that can no longer be read.
    """
    digest = hashlib.sha256()

    def add(*fields: Any) -> None:
        # As JSON on a line: where one field ends and the next begins is part of what is hashed.
        digest.update(json.dumps(fields, sort_keys=True).encode() + b"\n")

    add(described)
    for i, part in enumerate(parts):
        add(i, len(part))
        files: dict[str, int] = {}
        try:
            for name in sorted(part):
                tensor = part[name]
                handle = files.setdefault(str(tensor.file), -1)
                if handle < 0:
                    handle = files[str(tensor.file)] = os.open(tensor.file, os.O_RDONLY)
                add(name, tensor.dtype, list(tensor.shape))
                digest.update(
                    os.pread(handle, min(SAMPLE, tensor.nbytes), tensor.start + max(0, tensor.nbytes - SAMPLE) // 2)
                )
        except OSError as e:
            raise CheckpointError(f"{tensor.file} cannot be read any more: {e.strerror or e}.") from None
        finally:
            for handle in files.values():
                if handle >= 0:
                    os.close(handle)
    return f"sha256:{digest.hexdigest()}"


def without_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` without the names of files, which say nothing about the model."""
    return {key: value for key, value in config.items() if not key.endswith("_name")}
