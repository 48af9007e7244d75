"""Voices: where they are found, what their files hold, how they reach the model (family.md 2.6 and 2.7).

Models with a `speaker_wavs` conditioner take embeddings made beforehand, `[1, dim, T]` in a safetensors file, one per
speaker. Models without one take a recording, which they continue.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..audio.files import read_audio
from ..checkpoint import hub, registry
from ..checkpoint.files import Files
from ..checkpoint.places import Folder, is_repository
from ..checkpoint.weights_file import MX_DTYPES, read_header
from ..config.description import CheckpointConfig
from ..config.input_files import file_size, name_for_mlx
from ..defaults import VOICE, VOICE_REPO
from ..errors import CheckpointError, InputError, quoted
from ..models.mimi_model import MimiModel
from ..modules.conditioner import TensorCondition

TENSOR = "speaker_wavs"
# Frames of an embedding; published ones have 125 (10 s). The model attends to all of them, of every voice, in each frame.
LONGEST_VOICE = 1500
OWN_VOICES = "voices"
# The end of an encoded clip hears the silence that follows it.
DROPPED_FRAMES = 2
RECORDINGS = (".wav", ".flac", ".mp3", ".ogg", ".opus")


def suffix_of(model_id: dict) -> str:
    """What follows the name of a recording in that of the embedding made of it for one model."""
    return f".{model_id.get('sig')}@{model_id.get('epoch')}.safetensors"


def suffix_for(config: CheckpointConfig) -> str:
    """The suffix of voices for a model, empty for one that continues a recording."""
    return suffix_of(config.model_id) if TENSOR in config.lm.conditioners else ""


def repo_of(files: Files) -> str:
    """Where a model's voices are looked for: in a folder `voices` of its own folder, or beside its weights, that has some, else in the
    published repository.
    """
    folder = files.place.path if isinstance(files.place, Folder) else files.moshi.parent
    for own in (folder / OWN_VOICES, files.moshi.parent / OWN_VOICES):
        if own.is_dir() and known_voices(str(own), suffix_for(files.config)):
            return str(own)
    return VOICE_REPO


def default_voice(repo: str, suffix: str = "") -> str:
    """Who speaks if nobody is named: the published default, or the first of a folder that does not have it."""
    known = known_voices(repo, suffix) if Path(repo).expanduser().is_dir() else {}
    return VOICE if VOICE in known else next(iter(known), VOICE)


def find_voice(name: str, repo: str, suffix: str = "", tell: Callable[[str], None] | None = None) -> Path:
    """File of the voice `name`: a local file, `hf://owner/repo/path`, or one of `repo` (on the Hub, or a local folder).

    `suffix`, which says what model a voice is for, may be left out of the name. `tell` hears of licences before a download.
    """
    folder = Path(repo).expanduser()
    # A recording may lie beside the embedding made of it.
    for path in (Path(name + suffix), Path(name), folder / (name + suffix), folder / name):
        if path.is_file():
            return path
    if folder.is_dir():
        known = [*known_voices(repo, suffix)]
        raise InputError(
            f"there is no voice {quoted(name)} for this model in the folder {repo} (looked for {quoted(name + suffix)}); "
            f"known voices: {', '.join(known[:8]) or 'none'}{', ...' if len(known) > 8 else ''}."
        )
    if re.match(r"([./~]|[A-Za-z]:\\)", name):
        raise InputError(f"the voice file {name} does not exist.")
    full = name if not suffix or name.endswith(".safetensors") else name + suffix
    if hub.is_hub_name(name):
        repo, full = hub.split_hub_name(full)
    if not is_repository(repo):
        raise InputError(
            f"voices are looked for in {quoted(repo)}, which is neither a folder nor the name of a repository (owner/name)."
        )
    if tell is not None and not registry.is_cached(repo, full):
        which = f"a voice has the licence of its folder, {Path(full).parent}:" if "/" in full else "for licences"
        tell(f"{repo}: {which} see https://huggingface.co/{repo}")
    kinds = (
        f"A voice is a local file, hf://owner/repository/file, or a name of https://huggingface.co/{repo}/tree/main."
    )
    try:
        found = hub.download(repo, full, optional=True)
    except CheckpointError:
        if hub.is_reachable():
            raise
        raise InputError(
            f"there is no voice {quoted(name)} on this machine, and the Hub cannot be reached to look for it in {repo}. {kinds}"
        ) from None
    if found is None:
        raise InputError(f"there is no voice {quoted(name)} for this model: {repo} has no file {quoted(full)}. {kinds}")
    return found


def known_voices(repo: str, suffix: str = "") -> dict[str, Path]:
    """Files of the voices of `repo` that are on this machine, by the names under which `find_voice` finds them, in order.

    With a `suffix` those are embeddings made for one model, and embeddings that do not say for which; without, recordings.
    """
    local = Path(repo).expanduser()
    folder = local if local.is_dir() else hub.cached_folder(repo)
    if folder is None:
        return {}
    found, kinds = {}, (".safetensors",) if suffix else RECORDINGS
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in name.split("/")):
            continue
        if suffix and name.endswith(suffix):
            found[name.removesuffix(suffix)] = path
        elif path.suffix.lower() in kinds and "@" not in path.name:
            found[name] = path
    return found


def _is_voice(value: mx.array, dim: int) -> bool:
    return value.ndim == 3 and value.shape[:2] == (1, dim) and 1 <= value.shape[2] <= LONGEST_VOICE


def _expected(dim: int) -> str:
    return f"[1, {dim}, T] with T of 1 to {LONGEST_VOICE}"


def _no_voice(path: str | Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a voice embedding; expected a safetensors file with the tensor {TENSOR!r}; if it is one, it is cut "
        "short or damaged, and to be downloaded again. This model speaks with published voices only and cannot take on the voice of a recording."
    )


def load_speaker(path: str | Path, dim: int, model_id: dict | None = None) -> mx.array:
    """Embedding `[1, dim, T]` float32 of a voice file, checked. `model_id` (sig, epoch) is that of the model."""
    file_size(path)
    name = name_for_mlx(path)
    try:
        header, metadata = read_header(Path(path))
    except CheckpointError:
        raise _no_voice(path) from None
    if TENSOR not in header:
        raise CheckpointError(f"{path} holds no voice: the tensor {TENSOR!r} is missing.")
    if header[TENSOR].dtype not in MX_DTYPES:
        raise CheckpointError(
            f"{path}: the voice has the type {header[TENSOR].dtype}, expected {', '.join(MX_DTYPES)}; save it in float32."
        )
    try:
        tensors: Any = mx.load(name, format="safetensors")
    except (RuntimeError, ValueError, OSError):
        raise _no_voice(path) from None
    value = tensors[TENSOR].astype(mx.float32)
    if not _is_voice(value, dim):
        raise CheckpointError(
            f"{path}: a voice of this model should have shape {_expected(dim)}, found {list(value.shape)}. It is no voice of this model."
        )
    for key in ("sig", "epoch"):
        stored, expected = metadata.get(key), (model_id or {}).get(key)
        if stored is not None and expected is not None and str(stored) != str(expected):
            raise CheckpointError(
                f"{path} is a voice of another model ({key} {stored}, this model has {expected}); voices are not interchangeable."
            )
    if not mx.isfinite(value).all().item():
        raise CheckpointError(f"{path} holds NaN or infinite values; download the voice again.")
    if not mx.any(value).item():
        raise CheckpointError(f"{path} holds nothing but zeros; it was not downloaded whole, download the voice again.")
    return value


def speaker_condition(voices: Sequence[mx.array], slots: int) -> TensorCondition:
    """`slots` speakers, the main one first, the other second: tensor `[1, slots * T, dim]`, mask 0 for empty slots."""
    if len(voices) > slots:
        raise InputError(f"this model takes up to {slots} voices, {len(voices)} were given.")
    lengths = sorted({v.shape[2] for v in voices})
    if len(lengths) > 1:
        raise InputError(f"voices of one conversation should have the same length, found {lengths} frames.")
    _, dim, length = voices[0].shape
    tensor = mx.zeros((slots - len(voices), length, dim))
    tensor = mx.concatenate([*(v.swapaxes(1, 2) for v in voices), tensor])
    mask = np.repeat(np.arange(slots) < len(voices), length)
    return TensorCondition(tensor.reshape(1, -1, dim), mx.array(mask[None].astype(np.uint8)))


def speaker_of(values: np.ndarray, dim: int) -> mx.array:
    """An embedding `[dim, T]` or `[1, dim, T]` that a program made, as `[1, dim, T]` float32, checked."""
    value = mx.array(np.asarray(values, np.float32))
    value = value[None] if value.ndim == 2 else value
    if not _is_voice(value, dim):
        raise InputError(f"a voice of this model should have shape {_expected(dim)}, found {list(np.shape(values))}.")
    if not mx.isfinite(value).all().item():
        raise InputError("the voice holds NaN or infinite values.")
    return value


def audio_prefix(mimi: MimiModel, path: str | Path, codebooks: int, window: int | None) -> mx.array:
    """A recording as the beginning to be continued: `[1 + codebooks, T]`, text row -1.

    `window` is the model's, in frames: a longer clip would have slid out of it before the first word.
    """
    if Path(path).suffix == ".safetensors":
        raise InputError(f"this model continues a recording: its voice should be an audio file, found {path}.")
    return with_text_row(clip_codes(mimi, read_audio(path, mimi.sample_rate), codebooks, window, str(path)))


def clip_codes(mimi: MimiModel, pcm: np.ndarray, codebooks: int, window: int | None, what: str) -> mx.array:
    """The codes `[codebooks, T]` int32 of a clip `[n]` to be continued. `what` names it where it is refused."""
    frames = -(-len(pcm) // mimi.frame_size) - DROPPED_FRAMES
    if frames < 1:
        raise InputError(
            f"the voice clip {what} is too short ({len(pcm) / mimi.sample_rate:.2f} s); about 10 s are best."
        )
    if window is not None and frames > window:
        raise InputError(
            f"the voice clip {what} lasts {len(pcm) / mimi.sample_rate:.0f} s, longer than the model's window of "
            f"{window / mimi.frame_rate:.0f} s; cut it to about 10 s."
        )
    return mimi.encode(mx.array(pcm)[None, None], codebooks)[0, :, :frames].astype(mx.int32)


def with_text_row(codes: mx.array) -> mx.array:
    """Codes `[codebooks, T]` under a row of -1: nothing is said of their text."""
    return mx.concatenate([mx.full((1, codes.shape[1]), -1, mx.int32), codes])


def prefix_of(values: np.ndarray, codebooks: int, cardinality: int, window: int | None) -> mx.array:
    """Codes `[codebooks, T]` of a clip that came from elsewhere, as `audio_prefix` gives them, checked."""
    codes = np.asarray(values)
    codes = codes[0] if codes.ndim == 3 and len(codes) == 1 else codes
    longest = window or codes.shape[-1]
    if codes.ndim != 2 or len(codes) != codebooks or not 0 < codes.shape[1] <= longest:
        raise InputError(
            f"a voice of this model should be the codes [{codebooks}, T] of a clip that its window holds, found {list(np.shape(values))}."
        )
    if not (
        np.isfinite(codes).all() and (codes == np.rint(codes)).all() and 0 <= codes.min() <= codes.max() < cardinality
    ):
        raise InputError(f"the codes of a voice should be whole numbers from 0 to {cardinality - 1}.")
    return with_text_row(mx.array(codes.astype(np.int32)))
