"""Conditions of a model: named values and tensors, projected to its width and fused (lm.md section 7).

Everything here is float32, also when the model is bfloat16; the caller casts the fused result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn

from ..config.parts import FuserConfig, LutConditionerConfig, TensorConditionerConfig
from ..errors import InputError
from .attention import sin_embedding


@dataclass(frozen=True)
class TensorCondition:
    """Input of a tensor conditioner: `tensor [B, T, dim]` and `mask [B, T]`, non-zero where the tensor is meant."""

    tensor: mx.array
    mask: mx.array

    @staticmethod
    def from_tensor(tensor: mx.array) -> TensorCondition:
        return TensorCondition(tensor, mx.ones(tensor.shape[:2], mx.uint8))

    @staticmethod
    def cat(conditions: Sequence[TensorCondition]) -> TensorCondition:
        """Rows of several conditions in one batch, padded on the right with zeros and mask 0."""
        longest = max(c.tensor.shape[1] for c in conditions)
        tensors = [mx.pad(c.tensor, [(0, 0), (0, longest - c.tensor.shape[1]), (0, 0)]) for c in conditions]
        masks = [mx.pad(c.mask, [(0, 0), (0, longest - c.mask.shape[1])]) for c in conditions]
        return TensorCondition(mx.concatenate(tensors), mx.concatenate(masks))


@dataclass
class ConditionAttributes:
    """Conditions of one conversation: `text` values (None: absent) and `tensor` values by conditioner name."""

    text: dict[str, str | None] = field(default_factory=dict)
    tensor: dict[str, TensorCondition] = field(default_factory=dict)

    @property
    def text_attributes(self):
        return self.text.keys()

    @property
    def tensor_attributes(self):
        return self.tensor.keys()

    def copy(self) -> ConditionAttributes:
        return ConditionAttributes(dict(self.text), dict(self.tensor))


def dropout_all_conditions(attributes: Sequence[ConditionAttributes]) -> list[ConditionAttributes]:
    """The null conditions of guidance: every text value absent, every tensor and mask zero."""
    return [
        ConditionAttributes(
            text=dict.fromkeys(a.text),
            tensor={n: TensorCondition(mx.zeros_like(c.tensor), mx.zeros_like(c.mask)) for n, c in a.tensor.items()},
        )
        for a in attributes
    ]


@dataclass
class ConditionTensor:
    """A projected condition, `[B, d]` or `[B, 1, d]`, to be added to every step's input."""

    tensor: mx.array


class _Conditioner(nn.Module):
    """Projection to the model's width and the learnt value that stands for "absent"."""

    def __init__(self, dim: int, output_dim: int, learn_padding: bool, force_linear: bool):
        super().__init__()
        self._output_dim = output_dim
        if force_linear or dim != output_dim:
            self.output_proj = nn.Linear(dim, output_dim, bias=False)
        if learn_padding:
            self.learnt_padding = mx.zeros((1, 1, output_dim))

    def _project(self, x: mx.array, mask: mx.array) -> mx.array:
        """`x [B, T, dim]`, `mask [B, T]` -> `[B, T, d]` float32."""
        if "output_proj" in self:
            x = self.output_proj(x)
        x = x.astype(mx.float32)
        mask = mask.astype(mx.float32)[..., None]
        padding = (
            self.learnt_padding.astype(mx.float32) if "learnt_padding" in self else mx.zeros((1, 1, self._output_dim))
        )
        return x * mask + padding * (1 - mask)


class TensorConditioner(_Conditioner):
    def __init__(self, output_dim: int, cfg: TensorConditionerConfig):
        super().__init__(cfg.dim, output_dim, cfg.learn_padding, cfg.force_linear)
        self.dim = cfg.dim

    def condition(self, value: TensorCondition) -> mx.array:
        """`[B, T, d]` float32. Positions are added by the fuser, not here."""
        if value.tensor.ndim != 3 or value.tensor.shape[-1] != self.dim:
            raise InputError(
                f"a tensor condition should have shape [B, T, {self.dim}], found {list(value.tensor.shape)}."
            )
        return self._project(value.tensor.astype(mx.float32), value.mask)


class LutConditioner(_Conditioner):
    def __init__(self, output_dim: int, cfg: LutConditionerConfig):
        super().__init__(cfg.dim, output_dim, cfg.learn_padding, cfg.force_linear)
        self._n_bins = cfg.n_bins
        self.embed = nn.Embedding(cfg.n_bins + 1, cfg.dim)
        self._possible_values = (
            None if cfg.possible_values is None else {v: i for i, v in enumerate(cfg.possible_values)}
        )

    @property
    def possible_values(self) -> dict[str, int] | None:
        """Value -> row of the table; None when any text is hashed to a row."""
        return self._possible_values

    def index(self, value: str | None) -> int:
        if value is None:
            return self._n_bins
        if self._possible_values is None:
            return int.from_bytes(hashlib.sha256(value.encode("utf-8")).digest(), "big") % self._n_bins
        if value not in self._possible_values:
            raise InputError(f"unknown condition value {value!r}; known values: {', '.join(self._possible_values)}.")
        return self._possible_values[value]

    def condition(self, value: str | None) -> mx.array:
        """`[1, d]` float32; None gives the learnt padding."""
        return self.condition_batch([value])[:, 0]

    def condition_batch(self, values: Sequence[str | None]) -> mx.array:
        """`[B, 1, d]` float32."""
        rows = mx.array([[self.index(v)] for v in values])
        mask = mx.array([[0 if v is None else 1] for v in values])
        return self._project(self.embed(rows).astype(mx.float32), mask)


class ConditionProvider(nn.Module):
    """All conditioners of a model, by name."""

    def __init__(self, output_dim: int, configs: dict[str, LutConditionerConfig | TensorConditionerConfig]):
        super().__init__()
        self.conditioners: dict[str, LutConditioner | TensorConditioner] = {
            name: LutConditioner(output_dim, c)
            if isinstance(c, LutConditionerConfig)
            else TensorConditioner(output_dim, c)
            for name, c in configs.items()
        }

    def condition_tensor(self, name: str, value: str | None) -> ConditionTensor:
        """The condition of one named value, for models that sum it into their input."""
        if name not in self.conditioners:
            raise InputError(f"unknown conditioner {name!r}; this model has: {', '.join(self.conditioners) or 'none'}.")
        conditioner = self.conditioners[name]
        if isinstance(conditioner, TensorConditioner):
            raise InputError(f"the condition {name!r} is a tensor, not a named value.")
        return ConditionTensor(conditioner.condition(value))

    def provide(self, attributes: Sequence[ConditionAttributes]) -> dict[str, mx.array]:
        """One `[B, T, d]` per conditioner, a row per entry of `attributes`."""
        for a in attributes:
            for name in (*a.text, *a.tensor):
                if name not in self.conditioners:
                    raise InputError(
                        f"unknown conditioner {name!r}; this model has: {', '.join(self.conditioners) or 'none'}."
                    )
        out = {}
        for name, conditioner in self.conditioners.items():
            if isinstance(conditioner, LutConditioner):
                out[name] = conditioner.condition_batch([a.text.get(name) for a in attributes])
            elif isinstance(conditioner, TensorConditioner):
                absent = TensorCondition(mx.zeros((1, 1, conditioner.dim)), mx.zeros((1, 1)))
                out[name] = conditioner.condition(TensorCondition.cat([a.tensor.get(name, absent) for a in attributes]))
        return out


def fuse(cfg: FuserConfig | None, provided: dict[str, mx.array]) -> tuple[mx.array | None, mx.array | None]:
    """Sum `[B, 1, d]` added to every step and cross-attention source `[B, S, d]`, either may be None."""
    if cfg is None:
        return None, None
    total = None
    for name in cfg.sum:
        if provided[name].shape[1] != 1:
            raise InputError(f"the summed condition {name!r} should have length 1, found {provided[name].shape[1]}.")
        total = provided[name] if total is None else total + provided[name]
    if not cfg.cross:
        return total, None
    return total, add_cross_positions(cfg, mx.concatenate([provided[name] for name in cfg.cross], axis=1))


def create_sin_embedding(
    positions: mx.array, dim: int, max_period: float = 10000, dtype: mx.Dtype = mx.float32
) -> mx.array:
    """Sinusoidal embedding `[B, T, dim]` of `positions [B, T, 1]`, cosines first: the published package's name and shape for it."""
    if dim % 2:
        raise InputError(f"sinusoidal positions need an even width, found {dim}.")
    return sin_embedding(positions[..., 0], dim, max_period).astype(dtype)


def add_cross_positions(cfg: FuserConfig | None, source: mx.array) -> mx.array:
    """`source [B, S, d]` with its positional embedding, where the model was trained with one."""
    if cfg is None or not cfg.cross_attention_pos_emb:
        return source
    emb = sin_embedding(mx.arange(source.shape[1]), source.shape[2])
    return source + cfg.cross_attention_pos_emb_scale * emb
