"""The codec of a source as a published Kyutai file: copied where it is one, rewritten where it is not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moshi_mlx.checkpoint import fill
from moshi_mlx.checkpoint.files import override
from moshi_mlx.checkpoint.layouts import kinds, mimi_files
from moshi_mlx.checkpoint.layouts import mimi as layouts
from moshi_mlx.checkpoint.layouts.expr import Expr, Stored, substitute
from moshi_mlx.checkpoint.places import Place
from moshi_mlx.config import MimiConfig, transformers_config
from moshi_mlx.config.json_text import read_json
from moshi_mlx.config.presets import MIMI_NAME, MIMI_V0_1
from moshi_mlx.errors import CheckpointError
from moshi_mlx.models.mimi_model import MimiModel

from . import formats
from .language_model import LanguageModel
from .place import CheckedFolder, published
from .request import Request
from .tensors import StoredTensors


@dataclass
class Codec:
    """Expressions of a published Kyutai file over stored tensors. `raw` is None for the codec that all models share.

    `path` is the file itself, if it is already what would be written.
    """

    tensors: StoredTensors
    cfg: MimiConfig
    raw: dict[str, Any] | None
    plan: dict[str, Expr]
    name: str
    path: Path | None = None

    def transformers_plan(self) -> dict[str, Expr]:
        """The same over the names of transformers."""
        mimi = MimiModel(self.cfg)
        parameters, transposed = fill.parameter_shapes(mimi), mimi.transposed_parameters()
        file = mimi_files.transformers_from_kyutai(self.cfg, parameters, transposed, self.plan)
        return {name: substitute(expr, self.plan) for name, expr in file.items()}


def find_codec(
    place: Place, data: dict[str, Any], request: Request, inner: StoredTensors | None, model: LanguageModel | None
) -> Codec | None:
    """The codec given by hand, inside the model's file (`inner`), or beside it; None where there is none."""
    raw = _description(place, data, model is None)
    if request.mimi is not None:
        path = override(request.mimi)
        return open_codec(formats.open_weights(path), raw, path.name)
    if inner is not None:
        return open_codec(inner, raw, inner.path.name if model is None else MIMI_NAME)
    if model is None or not model.config.lm.n_q:
        return None
    path = _beside(place, data)
    return None if path is None else open_codec(formats.open_weights(path), raw, path.name)


def _description(place: Place, data: dict[str, Any], alone: bool) -> dict[str, Any] | None:
    """Kyutai's description of the codec, where it is not the one all models share."""
    if (inside := transformers_config.codec_config(data)) is not None:
        return inside
    if data.get("model_type") == "mimi":
        return transformers_config.mimi_config(data)
    named = data.get("mimi_config_name")
    if isinstance(named, str):
        path = place.named(named)
        assert path is not None
        return read_json(path)
    if "seanet" in data:
        return data
    mimi = place.find("mimi.json", optional=True) if alone else None
    return None if mimi is None else read_json(mimi)


def _beside(place: Place, data: dict[str, Any]) -> Path | None:
    """The codec's file by the name in the configuration, by its usual name, or the only codec in a folder."""
    named = data.get("mimi_name")
    if isinstance(named, str) and (path := place.named(named, optional=True)) is not None:
        return path
    if (path := place.find(MIMI_NAME, optional=True)) is not None:
        return path
    known = published(place)
    if known is not None and known.codec is not None and (path := place.find(known.codec, optional=True)) is not None:
        return path
    if not isinstance(place, CheckedFolder):
        return None
    found = [
        p for p in place.weights() if p.suffix == ".safetensors" and kinds.kind_of(formats.open_weights(p)) == "codec"
    ]
    if len(found) > 1:
        names = ", ".join(p.name for p in found)
        raise CheckpointError(f"{place} holds several codecs ({names}); choose one with --mimi-weights.")
    return found[0] if found else None


def open_codec(tensors: StoredTensors, raw: dict[str, Any] | None, name: str) -> Codec:
    """Recognise the layout of a codec and check it against its description."""
    if not kinds.is_codec(tensors):
        raise CheckpointError(f"{tensors.path} is not a codec: it has no quantizer.")
    if any(n.endswith(".scales") for n in tensors):
        raise CheckpointError(f"{tensors.path} is a quantised codec; convert the one it was made from.")
    cfg = MimiConfig.from_dict(MIMI_V0_1 if raw is None else raw)
    mimi = MimiModel(cfg)
    parameters, transposed = fill.parameter_shapes(mimi), mimi.transposed_parameters()
    layout = layouts.detect(tensors)
    plan = layouts.sources(parameters, cfg, tensors, layout, transposed)
    try:
        fill.check_plan(mimi, plan, tensors, layouts.unused_ok)
    except CheckpointError as e:
        if raw is not None:
            raise
        raise CheckpointError(f"{e} (A codec of other sizes needs a 'mimi_config_name' in config.json.)") from None
    if layout == "kyutai":
        file = mimi_files.kyutai_file(tensors)
    else:
        file = mimi_files.kyutai_from_transformers(cfg, parameters, transposed, tensors)
    whole = {i.file for i in tensors.values()}
    unchanged = file == {n: Stored(n) for n in tensors} and tensors.path.suffix == ".safetensors" and not tensors.prefix
    path = tensors.path if unchanged and whole == {tensors.path} else None
    name = name if path is not None and name.endswith(".safetensors") else MIMI_NAME
    return Codec(tensors, cfg, None if cfg == MimiConfig.from_dict(MIMI_V0_1) else raw, file, name, path)
