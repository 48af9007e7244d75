"""The recipe `mixed`: more bits where the measured loss per byte is largest, up to a size.

Layers are taken in groups (attention and feed-forward of each layer, tables, heads, each depth slice). Every group is rounded
alone, at the lowest precision and at each higher one, and the divergence of the model's predictions on the given codes is
measured. Then, group by group, the step that saves most divergence per byte is taken while it fits the size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from moshi_mlx.checkpoint.packing import Quantization, packed_bytes
from moshi_mlx.checkpoint.recipe_table import BITS, DEFAULT_GROUP_SIZES
from moshi_mlx.checkpoint.recipes import Packing
from moshi_mlx.config import LmConfig
from moshi_mlx.errors import InputError
from moshi_mlx.machine.memory import gigabytes

from .quality import loss
from .trial import Trial

Progress = Callable[[int, int], None]
# Of the size that the lowest precision alone gives, where no other is asked for.
DEFAULT_BUDGET = 1.15
_BLOCK = re.compile(r"transformer\.layers\.\d+\.(self_attn|cross_attention|gating)")
_DEPTH = re.compile(r"depformer\.slices\.(\d+)\.(transformer|linear_in)")
_ALIKE = re.compile(r"audio_embs|extra_heads|condition_provider")


@dataclass
class Group:
    """Layers that get the same precision; `losses[i]` is what rounding them alone to `options[i]` costs."""

    name: str
    layers: dict[str, tuple[int, int]]
    options: list[Quantization]
    losses: list[float]
    chosen: int = 0

    def size(self, option: int) -> int:
        return sum(packed_bytes(shape, self.options[option]) for shape in self.layers.values())


def group_name(path: str, cfg: LmConfig) -> str:
    """The group of a layer. Codebooks that share depth weights are one: a file holds those weights once, or alike."""
    if match := _DEPTH.match(path):
        k, dep = int(match[1]), cfg.depformer
        own_inputs = match[2] == "linear_in" and dep.input_sets != dep.weight_sets
        return f"depth inputs {dep.input_sets[k]}" if own_inputs else f"depth layers {dep.weight_sets[k]}"
    match = _BLOCK.match(path) or _ALIKE.match(path)
    return match[0] if match else path


def options_above(usual: Quantization) -> list[Quantization]:
    """The precision asked for and those above it that a group may be lifted to: the next two even ones."""
    higher = [b for b in BITS if b > usual.bits and b % 2 == 0][-2:]
    return [usual, *(Quantization(DEFAULT_GROUP_SIZES[b], b) for b in higher)]


def measure(
    trial: Trial,
    packed: Packing,
    layers: Mapping[str, tuple[int, int]],
    usual: Quantization,
    cfg: LmConfig,
    progress: Progress,
) -> list[Group]:
    """Round every group alone at each precision."""
    options = options_above(usual)
    groups: dict[str, Group] = {}
    for path in packed.layers:
        name = group_name(path, cfg)
        group = groups.setdefault(name, Group(name, {}, options, []))
        group.layers[path] = layers[path]
    reference = trial.logits()
    total, done = len(groups) * len(options), 0
    for group in groups.values():
        # Wider groups of weights may not fit a narrow layer.
        inputs = [shape[1] for shape in group.layers.values()]
        group.options = [q for q in options if all(n % q.group_size == 0 for n in inputs)]
        for q in group.options:
            group.losses.append(loss(reference, trial.logits(dict.fromkeys(group.layers, q))))
            done += 1
            progress(done, total)
    return list(groups.values())


def allocate(groups: list[Group], budget: int) -> Packing:
    """Spend `budget` bytes of packed layers. Raises `InputError` if the lowest precision takes more."""
    size = sum(g.size(0) for g in groups)
    if size > budget:
        raise InputError(
            f"the packed layers take {gigabytes(size)} at the lowest precision, the budget is {gigabytes(budget)}; "
            "raise --budget or lower -q."
        )
    while True:
        best: tuple[float, Group, int] | None = None
        for group in groups:
            for option in range(group.chosen + 1, len(group.options)):
                more = group.size(option) - group.size(group.chosen)
                saved = group.losses[group.chosen] - group.losses[option]
                if saved > 0 and size + more <= budget and (best is None or saved / more > best[0]):
                    best = (saved / more, group, option)
        if best is None:
            break
        _, group, option = best
        size += group.size(option) - group.size(group.chosen)
        group.chosen = option
    return Packing({path: g.options[g.chosen] for g in groups for path in g.layers})


def parse_budget(text: str, layers: Mapping[str, tuple[int, int]]) -> int:
    """Bytes of the packed layers: `5.2GB`, `900MB`, or `5bpw`, bits per weight."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*(GB|MB|bpw)\s*", text, re.IGNORECASE)
    try:
        value = float(match[1]) if match else 0.0
    except ValueError:
        value = 0.0
    if match is None or value <= 0:
        raise InputError(f"{text!r} is not a size; expected for example 5.2GB, 900MB or 5bpw (bits per weight).")
    unit = match[2].lower()
    if unit == "bpw":
        return int(value * sum(rows * inputs for rows, inputs in layers.values()) / 8)
    return int(value * (1e9 if unit == "gb" else 1e6))
