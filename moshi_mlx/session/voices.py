"""Voices of PersonaPlex (family.md 5.3): published ones, one's own from a recording, and their files."""

from __future__ import annotations

import io
import tarfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..audio.files import read_audio
from ..audio.loudness import with_loudness
from ..checkpoint import model_files
from ..checkpoint.places import Folder, Place
from ..checkpoint.torch_reader import read_tensors, read_tensors_from
from ..checkpoint.weights_file import WeightsFile
from ..checkpoint.weights_writer import save_weights
from ..config.description import CheckpointConfig
from ..config.input_files import file_size
from ..config.json_text import read_json
from ..config.parts import MimiConfig
from ..config.presets import MIMI_V0_1
from ..defaults import CODEBOOKS
from ..errors import CheckpointError, InputError
from ..models.mimi_model import MimiModel

ARCHIVE = "voices.tgz"
# Loudness the model was trained with.
TARGET_LUFS = -24.0
STORED = (".safetensors", ".pt")
_MAX_MEMBER_BYTES = 256 << 20
# What reading a damaged archive raises.
_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error)


@dataclass(frozen=True)
class Voice:
    """A voice prompt: either `codes [8, n]` of a recording, or what the published files hold: `embeddings [m, d]`, the inputs
    of the transformer over the clip, and `cache [K, 4]`, the token ring at its end.
    """

    name: str
    codes: np.ndarray | None = None
    embeddings: mx.array | None = None
    cache: np.ndarray | None = None

    @property
    def frames(self) -> int:
        """Length of the clip."""
        if self.codes is not None:
            return self.codes.shape[1]
        # The clip's first frame has no input of its own.
        return 0 if self.embeddings is None else self.embeddings.shape[0] + 1

    @staticmethod
    def from_tensors(tensors: dict[str, mx.array], name: str) -> Voice:
        """A voice from the tensors of its file, shapes and ranges checked."""
        if set(tensors) == {"codes"}:
            codes = np.array(tensors["codes"])
            whole = np.issubdtype(codes.dtype, np.integer)
            if (
                codes.ndim != 2
                or codes.shape[0] != CODEBOOKS
                or not codes.size
                or not whole
                or codes.min() < 0
                or codes.max() > 2047
            ):
                raise CheckpointError(
                    f"{name}: 'codes' should be codes 0 .. 2047 of shape [8, frames], found {list(codes.shape)}."
                )
            return Voice(name, codes=codes.astype(np.int32))
        if set(tensors) != {"embeddings", "cache"}:
            raise CheckpointError(
                f"{name} is not a voice of PersonaPlex: it holds {', '.join(sorted(tensors)) or 'nothing'}; expected embeddings and "
                "cache, or codes."
            )
        embeddings, cache = tensors["embeddings"], np.array(tensors["cache"])
        single = embeddings.ndim == 4 and embeddings.shape[1:3] == (1, 1) and cache.ndim == 3 and cache.shape[0] == 1
        if not single or not embeddings.size:
            raise CheckpointError(
                f"{name}: expected embeddings of shape [frames, 1, 1, width] and a cache of shape [1, channels, 4], found "
                f"{list(embeddings.shape)} and {list(cache.shape)}."
            )
        if not bool(mx.all(mx.isfinite(embeddings.astype(mx.float32))).item()):
            raise CheckpointError(f"{name} holds NaN or infinite embeddings. The file is damaged; download it again.")
        return Voice(name, embeddings=embeddings[:, 0, 0], cache=cache[0].astype(np.int32))

    def tensors(self) -> dict[str, mx.array]:
        """What its file holds, with the shapes of the published ones."""
        if self.codes is not None:
            return {"codes": mx.array(self.codes.astype(np.int32))}
        assert self.embeddings is not None and self.cache is not None
        return {"embeddings": self.embeddings[:, None, None], "cache": mx.array(self.cache.astype(np.int64))[None]}

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        save_weights(path, self.tensors())


def load_voice(path: str | Path) -> Voice:
    """A voice from a safetensors file of ours or a `.pt` file as published."""
    path = Path(path)
    if path.suffix == ".pt":
        return Voice.from_tensors(read_tensors(path), str(path))
    file = WeightsFile(path)
    tensors = {name: file.array(name) for name in file}
    mx.eval(tensors)
    return Voice.from_tensors(tensors, str(path))


def voice_from_audio(path: str | Path, mimi: MimiModel) -> Voice:
    """One's own voice from a recording: mono, 24 kHz, -24 LUFS, encoded by the codec."""
    pcm = with_loudness(read_audio(path, mimi.sample_rate), mimi.sample_rate, TARGET_LUFS)
    codes = mimi.encode(mx.array(pcm)[None, None], CODEBOOKS)
    return Voice(str(path), codes=np.array(codes[0]))


def locate_voice(name: str, place: Place | None) -> Path:
    """The file that holds a voice: by its own name, or for the name of one that comes with the checkpoint at `place` (`NATF2`) its file or
    the archive. Raises `InputError` for a name that nothing has, listing those there are.
    """
    path = Path(name)
    if path.suffix or path.parent != Path():
        if not path.exists():
            raise InputError(
                f"the voice file {path} does not exist. A voice is a .safetensors or .pt file, a recording, or the name of a "
                "published one, such as NATF2."
            )
        file_size(path)
        return path
    if place is None:
        raise InputError(f"there is no voice {name!r} without a checkpoint folder or repository; name a file.")
    for ending in STORED:
        found = place.find(f"voices/{name}{ending}", optional=True)
        if found is not None:
            return found
    archive = place.find(ARCHIVE, optional=True)
    if archive is None:
        raise InputError(f"{place} has no voice {name!r} (no voices folder or {ARCHIVE}); name a file instead.")
    with _open_archive(archive) as tar:
        known = sorted(_members(tar))
    if name not in known:
        raise InputError(f"there is no voice {name!r}; known voices: {', '.join(known) or 'none'}.")
    return archive


def find_voice(name: str, place: Place | None, mimi: MimiModel | None = None) -> Voice:
    """The voice that `locate_voice` finds. A recording is encoded by `mimi`."""
    path = locate_voice(name, place)
    if path == Path(name):
        if path.suffix in STORED:
            return load_voice(path)
        if mimi is None:
            raise InputError(f"making a voice of {path} needs the codec.")
        return voice_from_audio(path, mimi)
    return _from_archive(path, name) if path.name == ARCHIVE else replace(load_voice(path), name=name)


def voice_names(place: Place) -> list[str]:
    """Names of the voices that come with a checkpoint: in its folder `voices`, as `convert` writes them, and in its archive."""
    names: set[str] = set()
    if isinstance(place, Folder):
        names |= {path.stem for path in (place.path / "voices").glob("*") if path.suffix in STORED}
    archive = place.find(ARCHIVE, optional=True)
    if archive is not None:
        with _open_archive(archive) as tar:
            names |= set(_members(tar))
    if not names:
        raise InputError(f"{place} comes without voices: it has neither a folder voices nor {ARCHIVE}.")
    return sorted(names)


def _open_archive(path: Path) -> tarfile.TarFile:
    file_size(path)
    try:
        return tarfile.open(path, "r:gz")
    except _DAMAGE:
        raise CheckpointError(f"{path} is not a tar.gz archive, or is cut short. Download it again.") from None


def _members(tar: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """Voice files by name. Nothing is ever extracted: members are read in memory."""
    try:
        infos = tar.getmembers()
    except _DAMAGE:
        raise CheckpointError(f"{tar.name!r} is cut short. Download it again.") from None
    files = [m for m in infos if m.isfile() and m.size <= _MAX_MEMBER_BYTES]
    return {
        Path(m.name).stem: m for m in files if Path(m.name).suffix == ".pt" and not Path(m.name).name.startswith(".")
    }


def _from_archive(path: Path, name: str) -> Voice:
    with _open_archive(path) as tar:
        members = _members(tar)
        data = tar.extractfile(members[name])
        assert data is not None
        try:
            raw = data.read()
        except _DAMAGE:
            raise CheckpointError(f"{path} is cut short. Download it again.") from None
    return Voice.from_tensors(read_tensors_from(io.BytesIO(raw), f"{path}: {members[name].name}"), name)


def load_codec(place: Place, codebooks: int = CODEBOOKS) -> MimiModel:
    """The codec of a checkpoint alone, its first `codebooks` levels: by default as many as voices have."""
    config = place.find("config.json", optional=True)
    described = CheckpointConfig.from_dict({} if config is None else read_json(config))
    named = described.mimi_config_name and place.named(described.mimi_config_name)
    cfg = MimiConfig.from_dict(read_json(named) if named else MIMI_V0_1)
    weights = place.named(described.mimi_name)
    assert weights is not None
    if not cfg.n_semantic <= codebooks <= cfg.num_codebooks:
        raise InputError(f"{place} has a codec of {cfg.num_codebooks} codebooks, {codebooks} were asked for.")
    mimi = MimiModel(replace(cfg, num_codebooks=codebooks))
    model_files.load_mimi_file(mimi, weights)
    return mimi
