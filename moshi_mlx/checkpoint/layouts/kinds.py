"""What a set of tensors is, told by their names alone; and a prefix that training code put before all of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from . import lm, transformers_lm

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
    if "text_emb.weight" in names:
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


def hidden_below(names: Collection[str], wanted: Collection[str]) -> str | None:
    """A prefix under which all of `wanted` are among `names`, where not all names have it."""
    if not wanted:
        return None
    first = min(wanted)
    for name in names:
        prefix = name.removesuffix(first)
        if prefix != name and prefix and all(prefix + w in names for w in wanted):
            return prefix
    return None
