"""What is at a place: a language model, a codec, a tokenizer and voices, recognised and checked without reading a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from moshi_mlx.checkpoint import lora as adapters
from moshi_mlx.checkpoint import transformers_files
from moshi_mlx.checkpoint.files import adapter_beside, override
from moshi_mlx.checkpoint.layouts import kinds
from moshi_mlx.checkpoint.layouts.transformers_lm import FAMILIES
from moshi_mlx.checkpoint.places import Folder, Place, fetch_shards
from moshi_mlx.config.input_files import check_name
from moshi_mlx.config.json_text import read_json
from moshi_mlx.errors import CheckpointError, ConfigError, InputError, quoted
from moshi_mlx.text_to_speech import voices as speakers

from . import formats, language_model, tokenizers, voice_files
from .codec import Codec, find_codec
from .language_model import LanguageModel
from .place import WEIGHT_NAMES, CheckedFolder, find_place, published, refuse_outside, revision_of
from .request import Request
from .tensors import StoredTensors
from .tokenizers import Tokenizer


@dataclass
class Source:
    """A recognised source. `voices` are PersonaPlex's, `speakers` files of the voices beside a text-to-speech model by their names in
    its folder. `notes` are sentences for the user: what is missing, what was left out.
    """

    name: str
    kind: str
    model: LanguageModel | None = None
    codec: Codec | None = None
    tokenizer: Tokenizer | None = None
    voices: list[tuple[str, voice_files.Reader]] = field(default_factory=list)
    speakers: dict[str, Path] = field(default_factory=dict)
    licence: str | None = None
    revision: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def is_repository(self) -> bool:
        """Whether `name` is that of a repository of the Hub."""
        return self.name.count("/") == 1 and self.revision is not None and not Path(self.name).exists()

    @property
    def public_name(self) -> str:
        """The name without the folders of whoever made this."""
        return self.name if self.is_repository else PurePath(self.name).name


def open_source(request: Request) -> Source:
    """Find out what a source holds. Everything that can be wrong with its headers and configuration is told here."""
    place, given = find_place(request.source)
    if given is not None and voice_files.is_archive(given):
        return _voices_alone(request, voice_files.in_archive(given))
    data = _read_config(request, place)
    notes: list[str] = []
    path, tensors, kind = _find_weights(place, given, data, request.source, notes)
    source = Source(
        name=str(place) if given is None or isinstance(place, CheckedFolder) is False else str(given),
        kind=f"{formats.WORDS[kind]}, {formats.precision_words(tensors)}",
        licence=place.licence(),
        revision=revision_of(path),
        notes=notes,
    )
    if kind == "voice":
        alone = given is not None or not isinstance(place, CheckedFolder)
        found = [(path.stem, lambda: voice_files.read(path))] if alone else voice_files.in_folder(path.parent)
        return _voices_alone(request, found)
    if kind == "adapter":
        raise CheckpointError(
            f"{path} is a LoRA adapter, not a model. Merge it into its base: "
            f"python -m moshi_mlx.convert BASE DST --lora {path}"
        )
    inner = None
    if kind != "codec":
        tensors, inner = transformers_files.codec_inside(tensors, kind)
        request = _with_adapter(request, place, data, source.notes)
        data = transformers_files.with_speech_config(data, place)
        source.model = language_model.open_model(tensors, kind, data, request)
        source.notes += source.model.notes
        _check_flags(request, source.model)
        if request.only_model:
            return source
    source.codec = find_codec(place, data, request, tensors if kind == "codec" else inner, source.model)
    if source.model is not None:
        source.tokenizer = tokenizers.find_tokenizer(place, data, request, source.model.config, source.notes)
        source.voices = _voices(place, source.model)
        source.speakers = _speakers(place, source.model)
        source.notes += _missing(source)
    return source


def _check_flags(request: Request, model: LanguageModel) -> None:
    if request.keep_user_codebooks and not model.config.is_personaplex:
        raise InputError("--keep-user-codebooks is for PersonaPlex, whose depth transformer also predicts the user.")
    if request.lora_scale is not None and request.lora is None:
        raise InputError("--lora-scale is the scale of an adapter; name one with --lora.")


def _with_adapter(request: Request, place: Place, data: dict[str, Any], notes: list[str]) -> Request:
    """The request with the adapter that the configuration speaks of, which every program applies to this checkpoint."""
    if request.lora is not None or "dim" not in data:
        return request
    named = data.get("lora_name")
    if (
        not isinstance(named, str)
        and data.get("lora") is True
        and place.find(adapters.FILE_NAME, optional=True) is None
    ):
        # So does a fine-tune whose adapter was merged in when it was saved.
        notes.append("config.json speaks of an adapter ('lora') that is not there: the weights are taken as they are.")
        return request
    path = adapter_beside(place, named if isinstance(named, str) else None, data.get("lora") is True)
    if path is None:
        return request
    notes.append(f"the adapter {path.name}, which the configuration speaks of, is merged in.")
    return replace(request, lora=str(path))


def _voices_alone(request: Request, voices: list[tuple[str, voice_files.Reader]]) -> Source:
    return Source(name=request.source, kind="PersonaPlex voices", voices=voices)


def _read_config(request: Request, place: Place) -> dict[str, Any]:
    """The object of `config.json`, empty where there is none."""
    path = override(request.config) if request.config else place.find("config.json", optional=True)
    return {} if path is None else read_json(path)


def _find_weights(
    place: Place, given: Path | None, data: dict[str, Any], source: str, notes: list[str]
) -> tuple[Path, StoredTensors, str]:
    """The file with the language model, or whatever is there instead, and what it is. `notes` are told what was changed."""
    found: list[tuple[Path, StoredTensors, str]] = []
    unknown: list[tuple[Path, StoredTensors]] = []
    for path in [given] if given is not None else _candidates(place, data):
        said: list[str] = []
        tensors = formats.open_weights(path, said)
        if isinstance(place, CheckedFolder) and given is None:
            place.check(tensors)
        kind = kinds.kind_of(tensors)
        if kind is None:
            unknown.append((path, tensors))
            continue
        if kind not in ("codec", "adapter", "voice"):
            named = data.get("moshi_name")
            if given is None and named is not None and place.named(named, optional=True) is None:
                said.append(
                    f"config.json names the weights {quoted(named)}, which are not there; {path.name} is taken."
                )
            notes += said
            return path, tensors, kind
        found.append((path, tensors, kind))
    # A codec alone is one; beside a description of a language model it is what is left of more.
    described = given is None and ("dim" in data or "moshi_name" in data or data.get("model_type") in FAMILIES)
    if found and not described:
        return found[0]
    _check_named(place, data)
    if unknown:
        path, tensors = unknown[0]
        some = ", ".join(map(quoted, list(tensors)[:3]))
        raise CheckpointError(f"{path} is of no known format: its tensors are called {some}, ...")
    if found:
        raise CheckpointError(
            f"{source}: config.json describes a language model, but the only weights there are {found[0][0].name} "
            f"({formats.WORDS[found[0][2]]}). Put the model's file beside it, or name the file to convert alone."
        )
    raise CheckpointError(
        f"{source} holds no weights of a known format; expected {WEIGHT_NAMES[0]} or a file named by its config.json."
    )


def _candidates(place: Place, data: dict[str, Any]) -> Iterator[Path]:
    """Files to look at, the one that the configuration names first."""
    named = data.get("moshi_name")
    if named is not None:
        check_name(
            named.removeprefix("hf://") if isinstance(named, str) else named, "config: 'moshi_name'", ConfigError
        )
        path = place.named(named, optional=True)
        if path is not None:
            yield path
    if isinstance(place, CheckedFolder):
        yield from place.weights()
        return
    known = published(place)
    for name in dict.fromkeys([*([known.weights] if known else []), *WEIGHT_NAMES]):
        path = place.find(name, optional=True)
        if path is not None:
            if name.endswith(".index.json"):
                fetch_shards(place, name, path)
            yield path


def _check_named(place: Place, data: dict[str, Any]) -> None:
    """Told when no other file was a model either."""
    named = data.get("moshi_name")
    if named is not None and place.named(named, optional=True) is None:
        raise CheckpointError(f"config.json names the weights {quoted(named)}, which {place} does not have.")


def _voices(place: Place, model: LanguageModel) -> list[tuple[str, voice_files.Reader]]:
    """The voices that come with PersonaPlex."""
    if not model.config.is_personaplex:
        return []
    archive = place.find(voice_files.ARCHIVE, optional=True)
    if archive is not None:
        return voice_files.in_archive(archive)
    folder = place.path / "voices" if isinstance(place, CheckedFolder) else None
    return voice_files.in_folder(folder) if folder is not None and folder.is_dir() else []


def _speakers(place: Place, model: LanguageModel) -> dict[str, Path]:
    """The voices made for a text-to-speech model that lie beside it."""
    config = model.config
    if not isinstance(place, Folder) or not (folder := place.path / speakers.OWN_VOICES).is_dir():
        return {}
    if speakers.TENSOR not in config.lm.conditioners:
        return {}
    found = speakers.known_voices(str(folder), speakers.suffix_of(config.model_id))
    return {p.relative_to(place.path).as_posix(): refuse_outside(p, place.path) for p in found.values()}


def _missing(source: Source) -> list[str]:
    """What a complete folder would have and this source lacks."""
    assert source.model is not None
    notes = []
    if source.codec is None and source.model.config.lm.n_q:
        notes.append("there is no codec here: give one with --mimi-weights, or name it when the result is run.")
    if source.tokenizer is None:
        notes.append("there is no tokenizer here: give one with --tokenizer, or name it when the result is run.")
    return notes
