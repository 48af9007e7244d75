"""A language model in any layout as a plan for our parameters, checked against its header."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from moshi_mlx.checkpoint import fill, hub, lm_plan
from moshi_mlx.checkpoint import lora as adapters
from moshi_mlx.checkpoint.files import override
from moshi_mlx.checkpoint.layouts import kinds, transformers_lm
from moshi_mlx.checkpoint.layouts import lm as kyutai
from moshi_mlx.checkpoint.layouts.expr import Expr, LowRank, Packed, Stored, substitute
from moshi_mlx.checkpoint.packing import Quantization
from moshi_mlx.checkpoint.transformers_files import check_description, text_rows
from moshi_mlx.config import LmConfig, presets, transformers_config
from moshi_mlx.config.description import BOOKKEEPING, CheckpointConfig, as_personaplex
from moshi_mlx.config.reader import NUMBER, Reader
from moshi_mlx.errors import CheckpointError, ConfigError, InputError
from moshi_mlx.models.lm_model import LmModel

from . import formats
from .tensors import StoredTensors

if TYPE_CHECKING:
    from .request import Request

ADAPTER = "adapter:"
# Configurations that a file without one may have, told apart by the shapes of its tensors.
KNOWN = {
    "Moshi 7B": presets.MOSHI_7B,
    "PersonaPlex 7B": {**presets.PERSONAPLEX_7B, "model_type": "personaplex"},
    "Hibiki 1B": {**presets.HIBIKI_1B, "model_type": "hibiki"},
    "Hibiki 2B": {**presets.HIBIKI_1B_16RVQ, "model_type": "hibiki"},
    "Helium-1 preview 2B": presets.HELIUM_1_PREVIEW_2B,
}
# Keys of a source's configuration that its conversion settles.
_SETTLED = (
    "moshi_name", "mimi_name", "tokenizer_name", "mimi_config_name", "quantize", "quantization",
    "lora", "lora_name", "lora_rank", "lora_scaling", *BOOKKEEPING,
)  # fmt: skip


@dataclass
class LanguageModel:
    """Expressions of our parameters over stored tensors.

    `raw` holds the keys of the new configuration that speak of the model; `quantizations` how packed layers of a source in
    the MLX layout are packed; `reduced` says that the source holds fewer bits than bfloat16.
    """

    tensors: StoredTensors
    config: CheckpointConfig
    raw: dict[str, Any]
    plan: dict[str, Expr]
    quantizations: dict[str, Quantization] = field(default_factory=dict)
    reduced: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def merged(self) -> bool:
        """Whether an adapter is part of it."""
        return any(name.startswith(ADAPTER) for name in self.tensors)

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters without any packing."""
        return fill.parameter_shapes(LmModel(self.config.lm))

    def dense_plan(self) -> dict[str, Expr]:
        """The plan with packed layers taken apart."""
        plan = {}
        for name in self.parameters:
            path, _, leaf = name.rpartition(".")
            q = self.quantizations.get(path) if leaf == "weight" else None
            if q is None:
                plan[name] = self.plan[name]
                continue
            biases = self.plan[f"{path}.biases"] if q.mode == "affine" else None
            plan[name] = Packed(self.plan[name], self.plan[f"{path}.scales"], biases, q.group_size, q.bits, q.mode)
        return plan

    def load(self, dtype: mx.Dtype = mx.float32) -> LmModel:
        """The model itself, unpacked."""
        lm = LmModel(self.config.lm)
        fill.fill(lm, self.dense_plan(), self.tensors, lambda name, stored: dtype)
        lm.set_compute_dtype(dtype)
        return lm


def open_model(tensors: StoredTensors, kind: str, data: dict[str, Any], request: Request) -> LanguageModel:
    """Plan a model of a recognised kind and check it against the header."""
    raw, notes = _raw_config(tensors, kind, data)
    config = CheckpointConfig.from_dict(raw)
    if config.is_personaplex:
        raw, config = _personaplex(raw, config, request.keep_user_codebooks, notes)
    lm = LmModel(config.lm)
    plan = lm_plan(lm, tensors, None if kind in formats.KYUTAI else data["model_type"])
    quantizations = fill.quantize_like(LmModel(lm.cfg), tensors) if kind == "mlx" else {}

    def unused_ok(name: str) -> bool:
        return kyutai.left_out(name, config.lm) or transformers_lm.unused_ok(name)

    fill.check_plan(lm, plan, tensors, unused_ok)
    reduced = formats.is_reduced(tensors)
    if request.lora is not None:
        if quantizations:
            raise InputError("an adapter is merged into the unquantised model: name that, and quantise the result.")
        default_scale = Reader(data, "config").take("lora_scaling", NUMBER, adapters.DEFAULT_SCALING)
        plan, tensors = _merge(plan, tensors, config, request, default_scale)
    raw = _complete(raw, lm.cfg)
    config = CheckpointConfig.from_dict(raw)
    return LanguageModel(tensors, config, raw, plan, quantizations, reduced, notes)


def _raw_config(tensors: StoredTensors, kind: str, data: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Keys of the model in Kyutai's terms, and what to tell the user about them."""
    check_description(tensors, None if "dim" in data else data.get("model_type"))
    if kind not in formats.KYUTAI:
        raw = transformers_config.lm_config(data)
        rows = text_rows(tensors, raw["text_card"]) if kind == "kyutai_speech_to_text" else raw["text_card"]
        return raw if rows == raw["text_card"] else {**raw, "text_card_out": rows}, []
    if "dim" in data:
        return {k: v for k, v in data.items() if k not in _SETTLED}, []
    name, raw = _known_by_shape(tensors)
    return dict(raw), [f"there is no description of the model; its shapes are those of {name}."]


def _known_by_shape(tensors: StoredTensors) -> tuple[str, dict[str, Any]]:
    for name, raw in KNOWN.items():
        lm = LmModel(CheckpointConfig.from_dict(raw).lm)
        try:
            fill.check_plan(lm, lm_plan(lm, tensors), tensors)
        except (CheckpointError, ConfigError):
            continue
        return name, raw
    raise ConfigError(
        f"{tensors.path} comes without a config.json that describes the model, and its shapes are not those of "
        f"{', '.join(KNOWN)}. Name a configuration with --lm-config."
    )


def _personaplex(
    raw: dict[str, Any], config: CheckpointConfig, keep: bool, notes: list[str]
) -> tuple[dict[str, Any], CheckpointConfig]:
    """Without the depth steps whose result nobody hears, unless they are to be kept (family.md 5.1)."""
    raw = {**raw, "model_type": "personaplex"}
    half = config.lm.n_q // 2
    if keep or config.lm.dep_q <= half:
        return raw, CheckpointConfig.from_dict(raw)
    notes.append(
        f"the depth steps of codebooks {half} to {config.lm.dep_q - 1}, which predict the user and are not heard, "
        "are left out (--keep-user-codebooks keeps them)."
    )
    # The window is shortened when the model is run, not in its description.
    heard = replace(as_personaplex(config.lm), transformer=config.lm.transformer)
    return raw, replace(CheckpointConfig.from_dict(raw), lm=heard)


def _merge(
    plan: dict[str, Expr], tensors: StoredTensors, config: CheckpointConfig, request: Request, default_scale: float
) -> tuple[dict[str, Expr], StoredTensors]:
    """The plan with an adapter merged in, and the tensors of both files."""
    assert request.lora is not None
    path = override(request.lora) if hub.is_hub_name(request.lora) else adapters.find_file(request.lora)
    stored = formats.open_weights(path)
    if kinds.kind_of(stored) != "adapter":
        raise CheckpointError(f"{path} is not a LoRA adapter: it has no tensor named *.lora_A.weight.")
    scale = request.lora_scale
    if scale is None:
        scale = adapters.scaling_of(path, default_scale)
    adapter = adapters.Adapter(path, config.lm, scale)

    def inside(expr: Expr) -> Expr:
        return substitute(expr, {n: Stored(ADAPTER + n) for n in expr.sources()})

    merged = dict(plan)
    for name, pair in adapter.pairs.items():
        merged[name] = LowRank(plan[name], inside(pair.a), inside(pair.b), scale)
    for name, expr in adapter.replacements.items():
        merged[name] = inside(expr)
    return merged, tensors.joined(ADAPTER, stored)


def _complete(raw: dict[str, Any], cfg: LmConfig) -> dict[str, Any]:
    """The keys of the result: those of the source, without what its conversion settled and with what it changed."""
    out = {k: v for k, v in raw.items() if k not in _SETTLED}
    out.setdefault("model_type", "moshi")
    if cfg.extra_heads_num_heads:
        out["extra_heads_num_heads"] = cfg.extra_heads_num_heads
    else:
        out.pop("extra_heads_num_heads", None)
    if cfg.depformer.stored_slices is None:
        return out
    out["dep_q"] = cfg.dep_q
    schedule = out.get("depformer_weights_per_step_schedule")
    if schedule is not None:
        out["depformer_weights_per_step_schedule"] = schedule = schedule[: cfg.dep_q]
    feedforward = out.get("depformer_dim_feedforward")
    if isinstance(feedforward, list):
        out["depformer_dim_feedforward"] = feedforward[: max(schedule) + 1 if schedule else cfg.dep_q]
    return out
