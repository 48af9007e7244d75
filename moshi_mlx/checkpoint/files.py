"""Where the files of a checkpoint are: a folder or Hub repository, its configuration, and files given by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config.description import CheckpointConfig, is_foreign
from ..config.input_files import file_size
from ..config.json_text import read_json
from ..config.presets import MOSHI_NAME
from ..errors import CheckpointError, InputError, quoted
from . import hub, transformers_files
from . import lora as adapters
from .places import Folder, Place, fetch_shards, folder_at, open_place

# Names a folder without config.json may use for its weights, by the bits that `-q` asks for.
LEGACY_WEIGHTS = {None: MOSHI_NAME, 8: "model.q8.safetensors", 4: "model.q4.safetensors"}
_INDEX_NAME = f"{MOSHI_NAME}.index.json"


@dataclass
class Files:
    """Where the parts of a checkpoint are on disk. `mimi` and `tokenizer` may be missing until they are asked for; `mimi` is
    None too where the codec is in the file `moshi`.
    """

    source: str
    config: CheckpointConfig
    moshi: Path
    mimi: Path | None
    mimi_config: Path | None
    tokenizer: Path | None
    licence: str | None = None
    # Where further files of the checkpoint, such as voices, are looked up.
    place: Place | None = None
    lora: Path | None = None
    lora_scaling: float = adapters.DEFAULT_SCALING


@dataclass
class Overrides:
    """Single files given by hand in place of the checkpoint's own; each a path or `hf://owner/repo/file`.

    `lora` adds an adapter (its file or folder) at the scale `lora_scale`, by default the one its configuration says.
    """

    moshi: str | None = None
    mimi: str | None = None
    tokenizer: str | None = None
    config: str | None = None
    lora: str | None = None
    lora_scale: float | None = None


def locate(
    model: str | Path | None = None,
    hf_repo: str | None = None,
    quantized: int | None = None,
    overrides: Overrides | None = None,
) -> Files:
    """Find (and on the Hub, fetch) the files of a checkpoint: a folder or short name `model`, or a repository `hf_repo`.

    `quantized` (4 or 8) only chooses the default repository, or among the files of a folder without `config.json`.
    """
    overrides = overrides or Overrides()
    if model is None and hf_repo is None and overrides.moshi is not None and overrides.config is not None:
        place: Place = folder_at(Path(overrides.config).parent)
    else:
        place = open_place(model, hf_repo, quantized)

    config_path: Path | None
    if overrides.config is not None:
        config_path = override(overrides.config)
    else:
        config_path = place.find("config.json", optional=True)
    data = {} if config_path is None else read_json(config_path)
    if is_foreign(data):
        data = transformers_files.with_speech_config(data, place)
    config = CheckpointConfig.from_dict(data)
    moshi = override(overrides.moshi) if overrides.moshi else _find_weights(place, config, quantized)
    mimi_config = place.named(config.mimi_config_name) if config.mimi_config_name else None
    adapter = _find_adapter(place, config, overrides)
    scaling = overrides.lora_scale
    if scaling is None and adapter is not None:
        scaling = adapters.scaling_of(adapter, config.lora_scaling)
    return Files(
        source=str(place),
        config=config,
        moshi=moshi,
        mimi=override(overrides.mimi) if overrides.mimi else _find_codec(place, config),
        mimi_config=mimi_config,
        tokenizer=override(overrides.tokenizer) if overrides.tokenizer else _find_tokenizer(place, config),
        licence=place.licence(),
        place=place,
        lora=adapter,
        lora_scaling=adapters.DEFAULT_SCALING if scaling is None else scaling,
    )


def _find_adapter(place: Place, config: CheckpointConfig, overrides: Overrides) -> Path | None:
    """The adapter given by hand, else the one the configuration speaks of."""
    if overrides.lora is not None:
        return override(overrides.lora) if hub.is_hub_name(overrides.lora) else adapters.find_file(overrides.lora)
    if overrides.lora_scale is not None:
        raise InputError("--lora-scale is the scale of an adapter; name one with --lora.")
    return adapter_beside(place, config.lora_name, config.lora)


def adapter_beside(place: Place, named: str | None, announced: bool) -> Path | None:
    """The adapter that a configuration names, or says is there (`lora`). Raises `CheckpointError` where it is not."""
    if named is not None:
        return place.named(named)
    if not announced:
        return None
    found = place.find(adapters.FILE_NAME, optional=True)
    if found is None:
        raise CheckpointError(
            f"{place}: config.json says that an adapter belongs to the model ('lora'), but there is no {adapters.FILE_NAME}. "
            "Name it with --lora, or set 'lora' to false where it is merged in."
        )
    return found


def override(name: str) -> Path:
    """A single file given by hand: a path or `hf://owner/repo/file`."""
    path = hub.download(*hub.split_hub_name(name)) if hub.is_hub_name(name) else Path(name).expanduser()
    assert path is not None
    file_size(path)
    return path


def _find_codec(place: Place, config: CheckpointConfig) -> Path | None:
    """None also for models of transformers, which hold their codec among their own weights."""
    return None if config.architecture else place.named(config.mimi_name, optional=True)


def _find_tokenizer(place: Place, config: CheckpointConfig) -> Path | None:
    names = transformers_files.TOKENIZER_NAMES if config.architecture else (config.tokenizer_name,)
    return next((path for name in names if (path := place.named(name, optional=True)) is not None), None)


def _find_weights(place: Place, config: CheckpointConfig, quantized: int | None) -> Path:
    if "moshi_name" in config.raw:
        found = place.named(config.moshi_name, optional=_has_adapter(place))
        if found is None:
            raise CheckpointError(_is_adapter(place))
        if found.name.endswith(".index.json") and not hub.is_hub_name(config.moshi_name):
            fetch_shards(place, config.moshi_name, found)
        return found
    if config.architecture:
        names = [MOSHI_NAME, _INDEX_NAME]
    else:
        names = [LEGACY_WEIGHTS[quantized]] if quantized else [*LEGACY_WEIGHTS.values(), _INDEX_NAME]
    for name in names:
        candidate = place.find(name, optional=True)
        if candidate is not None:
            if name == _INDEX_NAME:
                fetch_shards(place, name, candidate)
            return candidate
    if _has_adapter(place):
        raise CheckpointError(_is_adapter(place))
    raise CheckpointError(f"{place} has no weights; expected {' or '.join(names)}.{taken_for(config)}")


def _has_adapter(place: Place) -> bool:
    return isinstance(place, Folder) and any(place.find(name, optional=True) for name in adapters.FILE_NAMES)


def _is_adapter(place: Place) -> str:
    return (
        f"{place} is an adapter, not a model: give it with --lora {place}, beside the model it was made for (--model)."
    )


def require_tokenizer(files: Files) -> Path:
    """Where the tokenizer is. Raises where there is none, for those who cannot do without text."""
    if files.tokenizer is None:
        raise CheckpointError(
            f"{files.source} lacks the tokenizer {quoted(files.config.tokenizer_name)}; put it there or name it with --tokenizer."
            f"{taken_for(files.config)}"
        )
    return files.tokenizer


def taken_for(config: CheckpointConfig) -> str:
    """What an error about a checkpoint ends with whose files are looked for, and read, by what was supposed of it; else nothing."""
    if not config.legacy:
        return ""
    model = "PersonaPlex 7B" if config.model_type == "personaplex" else "Moshi 7B"
    return f" Without a config.json that describes the model it was taken for {model}; name one with --lm-config."
