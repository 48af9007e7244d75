"""What a set of tensors is, told by their names alone; and a prefix that training code put before all of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from . import lm, transformers_lm

_TABLE = "text_emb.weight"
_CODEC = re.compile(r"quantizer\.(rvq_first|rvq_rest|semantic_|acoustic_)")


def kind_of(names: Collection[str]) -> str | None:
    """`mlx`, `pytorch` or `candle` for language models in those layouts, an architecture of transformers, `codec`, `adapter`,
    `voice`; None for what is none of these.
    """
    if any(".lora_A." in n for n in names):
        return "adapter"
    if set(names) in ({"embeddings", "cache"}, {"codes"}):
        return "voice"
    if (architecture := transformers_lm.detect(names)) is not None:
        return architecture
    if _TABLE in names:
        return lm.detect(names)
    return "codec" if is_codec(names) else None


def is_codec(names: Collection[str]) -> bool:
    return any(map(_CODEC.match, names))


def wrapper(names: Collection[str]) -> str:
    """The prefix without which `names` are of a known kind, as wrappers of torch leave one (`module.`, `_orig_mod.model.`).

    Empty where they are of a known kind as they are, or of none.
    """
    if kind_of(names) is not None:
        return ""
    for prefix in _common_prefixes(names):
        if kind_of([name.removeprefix(prefix) for name in names]) not in (None, "voice"):
            return prefix
    return ""


def _common_prefixes(names: Collection[str]) -> Iterator[str]:
    """Whole dotted parts that all names begin with, the shortest first."""
    # What the first and the last in order share, all share.
    first, last = min(names, default=""), max(names, default="")
    for match in re.finditer(r"\.", first):
        if not last.startswith(prefix := first[: match.end()]):
            return
        yield prefix


def buried(names: Collection[str]) -> str | None:
    """A prefix below which a language model lies beside other tensors, None where there is none."""
    found = (name.removesuffix(_TABLE) for name in names if name.endswith(f".{_TABLE}"))
    return next(found, None)
