"""PersonaPlex: Moshi with a voice and a role, both given as a prompt before the conversation (family.md section 5).

The prompt is a stretch of imposed frames: the voice, half a second of silence, the role text under silence, and silence
again, while the user's side carries a tone. Nothing of it is heard.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..config.parts import LmConfig
from ..engine import prefill
from ..engine.prefill import Forced
from ..engine.token_clock import UNGENERATED
from ..errors import ConfigError, InputError
from .voices import Voice, find_voice, locate_voice

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

    from ..checkpoint.files import Files
    from ..checkpoint.loader import Checkpoint

# One frame of silence, and one of a 440 Hz tone at half amplitude, as the model saw them in training.
SILENCE = (948, 243, 1178, 546, 1736, 1030, 1978, 2008)
SINE = (430, 1268, 381, 1611, 1095, 1495, 56, 472)
SILENCE_FRAMES = 6
TAG = "<system>"

# The role of NVIDIA's examples, for who gives none; an empty text leaves the phase out.
DEFAULT_ROLE = "You are a wise and friendly teacher. Answer questions or provide advice in a clear and engaging way."


def with_tags(text: str) -> str:
    """The role text between two system tags, unless it has them."""
    text = text.strip()
    return text if text.startswith(TAG) and text.endswith(TAG) else f"{TAG} {text} {TAG}"


def text_tokens(tokenizer: SentencePieceProcessor | None, text: str) -> list[int]:
    """Tokens of the role phase; none for an empty text."""
    if not text.strip():
        return []
    if tokenizer is None:
        raise InputError("a text prompt needs the checkpoint's tokenizer; name it with --tokenizer.")
    return [int(t) for t in tokenizer.encode(with_tags(text))]


def check_prompt(files: Files, voice: str | Path | Voice | None = None, text: str | None = None) -> None:
    """Refuse voice and role where the model takes none, and the name of a voice that nothing has, before weights are read."""
    if not files.config.is_personaplex:
        if voice is not None or text is not None:
            raise InputError(
                f"{files.source} takes no voice and no text prompt; PersonaPlex does (--model personaplex)."
            )
    elif isinstance(voice, (str, Path)):
        locate_voice(str(voice), files.place)


def prompt_of(loaded: Checkpoint, voice: str | Path | Voice | None = None, text: str | None = None) -> Forced | None:
    """The prompt a conversation with `loaded` begins with; None for models that take none.

    `voice` is a `Voice` or the name of one (see `voices.find_voice`); `text` is the role, by default a friendly teacher, empty for
    none. Raises `InputError` for what the model cannot use.
    """
    check_prompt(loaded.files, voice, text)
    if not loaded.config.is_personaplex:
        return None
    if isinstance(voice, (str, Path)):
        voice = find_voice(str(voice), loaded.files.place, loaded.mimi)
    prompt = make_prompt(loaded.lm.cfg, voice, text_tokens(loaded.tokenizer, DEFAULT_ROLE if text is None else text))
    window = loaded.lm.cfg.transformer.context
    if window is not None and prompt.length >= window:
        raise InputError(
            f"the prompt takes {prompt.length} frames, {prompt.length / 12.5:.0f} s, and the model's window has {window}; shorten the "
            "voice or the text."
        )
    return prompt


def make_prompt(cfg: LmConfig, voice: Voice | None, text: Sequence[int]) -> Forced:
    """The prompt of `voice` and of the role tokens `text`, at model positions."""
    own = cfg.n_q // 2
    if own != len(SILENCE) or cfg.card <= max(SILENCE + SINE):
        raise ConfigError(
            f"config: prompts are made of {len(SILENCE)} codebooks each way with 2048 codes, found {own} with {cfg.card}."
        )
    if text and max(text) >= cfg.text_card:
        raise InputError(f"the text prompt has the token {max(text)}, the model knows {cfg.text_card}.")

    def frames(codes: Sequence[Sequence[int]], tokens: Sequence[int]) -> list[list[int]]:
        return [[t, *c, *SINE] for c, t in zip(codes, tokens, strict=True)]

    def silent(tokens: Sequence[int]) -> list[list[int]]:
        return frames([SILENCE] * len(tokens), tokens)

    pause = [cfg.padding_token] * SILENCE_FRAMES
    rest = silent(pause) + silent(text) + silent(pause)
    if voice is not None and voice.embeddings is not None:
        return _after_embeddings(cfg, voice, np.array(rest))
    spoken = [] if voice is None or voice.codes is None else voice.codes.T.tolist()
    clip = frames(spoken, [cfg.padding_token] * len(spoken))
    return Forced(prefill.delayed(cfg, np.array(clip + rest)))


def _after_embeddings(cfg: LmConfig, voice: Voice, rest: np.ndarray) -> Forced:
    """A voice stored as inputs of the transformer, and its last tokens, which overlap the frames that follow."""
    assert voice.embeddings is not None and voice.cache is not None
    count, columns = voice.embeddings.shape[0], cfg.max_delay + 3
    if voice.embeddings.shape[1] != cfg.transformer.d_model or voice.cache.shape != (cfg.num_channels, columns):
        raise InputError(
            f"the voice {voice.name} belongs to another model: it has embeddings of width {voice.embeddings.shape[1]} and "
            f"tokens of shape {list(voice.cache.shape)}, expected {cfg.transformer.d_model} and {[cfg.num_channels, columns]}."
        )
    last = np.array(cfg.initial_tokens)[:, None]
    if ((voice.cache < UNGENERATED) | (voice.cache > last)).any():
        raise InputError(
            f"the voice {voice.name} holds tokens that the model does not have: -2 .. {cfg.text_card} for text, -2 .. {cfg.card} for codes."
        )
    first = count + 1
    tokens = np.full((cfg.num_channels, first + len(rest) + cfg.max_delay), UNGENERATED, np.int32)
    # The ring of recent tokens: column p mod 4 holds position p, up to the delayed tokens of the clip's last frame.
    for position in range(max(0, count - 2), first + 1):
        tokens[:, position] = voice.cache[:, position % columns]
    for c, delay in enumerate(cfg.delays):
        tokens[c, first + delay : first + delay + len(rest)] = rest[:, c]
    return Forced(tokens, voice.embeddings)
