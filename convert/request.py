"""What a conversion is asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """What to convert: a source, and single files given by hand in place of the source's own.

    `only_model` leaves codec, tokenizer and voices alone.
    """

    source: str
    config: str | None = None
    mimi: str | None = None
    tokenizer: str | None = None
    lora: str | None = None
    lora_scale: float | None = None
    keep_user_codebooks: bool = False
    only_model: bool = False
