"""Single weight files into single models: the language model, the codec."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..errors import CheckpointError
from ..machine import device
from ..models.lm_model import LmModel
from ..models.mimi_model import MimiModel
from . import fill
from .fill import Progress
from .layouts import lm as lm_layouts
from .layouts import mimi as mimi_layouts
from .layouts import transformers_lm
from .layouts.kinds import wrapper
from .lora import Adapter
from .packing import Quantization
from .weights_file import WeightsFile


def lm_plan(lm: LmModel, file: WeightsFile, architecture: str | None = None) -> dict:
    """Expressions of all parameters of `lm` over `file`: in the layout of an architecture of transformers, else in the one
    of Kyutai's that is recognised. Packed layers are made packed.
    """
    if architecture is not None:
        return transformers_lm.sources(fill.parameter_shapes(lm), lm.cfg, file.tensors, architecture)
    layout = lm_layouts.detect(file.tensors)
    _take_extra_heads(lm, file)
    fill.quantize_like(lm, file)
    return lm_layouts.sources(fill.parameter_shapes(lm), lm.cfg, file.tensors, layout)


def _take_extra_heads(lm: LmModel, file: WeightsFile) -> None:
    """Extra heads are those the file has: of the files of one model some carry them and some do not (family.md 1.4)."""
    names = itertools.takewhile(file.__contains__, (f"extra_heads.{h}.weight" for h in itertools.count()))
    rows = [file.shape(name)[0] for name in names]
    if len(rows) != len(lm.extra_heads):
        lm.extra_heads = [nn.Linear(lm.cfg.transformer.d_model, n, bias=False) for n in rows]
        lm.cfg.extra_heads_num_heads = len(rows)


def load_lm_file(
    lm: LmModel,
    path: str | Path | WeightsFile,
    *,
    dtype: mx.Dtype | None = None,
    strict: bool = True,
    progress: Progress | None = None,
    adapter: Adapter | None = None,
    architecture: str | None = None,
    packing: Mapping[str, Quantization] | None = None,
) -> None:
    """Fill `lm` from a file in the MLX, PyTorch or Candle layout, packed or not, or in that of an `architecture` of transformers.

    `dtype` is the type of activations and of dense weights; None leaves weights as stored. With `strict` false,
    parameters the file lacks keep their values and unknown tensors are ignored. `adapter` is applied on the way, and what
    `packing` says of a dense file is packed, after the adapter.
    """
    file = _opened(path)
    plan = lm_plan(lm, file, architecture)
    if not strict:
        plan = {name: e for name, e in plan.items() if all(s in file for s in e.sources())}
    if adapter is not None:
        plan = adapter.plan(plan)

    def unused_ok(name: str) -> bool:
        return not strict or lm_layouts.left_out(name, lm.cfg) or transformers_lm.unused_ok(name)

    fill.check_plan(lm, plan, file, unused_ok)

    def dtype_of(name: str, stored: mx.Dtype) -> mx.Dtype:
        if name.startswith(fill.CONDITIONS):
            return mx.float32
        return stored if dtype is None or name.endswith((".scales", ".biases")) else dtype

    if packing:
        fill.quantize_as(lm, packing)
    fill.fill(lm, plan, file, dtype_of, progress, strict=strict, packing=packing)
    _share_depth_sets(lm)
    if adapter is not None:
        adapter.attach(lm, dtype or lm.dtype)
    lm.set_compute_dtype(dtype)


def _opened(file: str | Path | WeightsFile) -> WeightsFile:
    if isinstance(file, WeightsFile):
        return file
    file = WeightsFile(file)
    prefix = wrapper(file)
    return file.part(prefix) if prefix else file


def load_mimi_file(
    mimi: MimiModel, path: str | Path | WeightsFile, *, strict: bool = True, progress: Progress | None = None
) -> None:
    """Fill `mimi` (float32) from a Kyutai or transformers file. Codebooks beyond those it holds are left unread."""
    file = _opened(path)
    fill.quantize_like(mimi, file)
    parameters = fill.parameter_shapes(mimi)
    layout = mimi_layouts.detect(file.tensors)
    plan = mimi_layouts.sources(parameters, mimi.cfg, file.tensors, layout, mimi.transposed_parameters())
    if not strict:
        plan = {name: e for name, e in plan.items() if all(s in file for s in e.sources())}

    def unused_ok(name: str) -> bool:
        level = re.search(r"quantizer\..*\.layers\.(\d+)\.", name)
        return not strict or mimi_layouts.unused_ok(name) or level is not None

    fill.check_plan(mimi, plan, file, unused_ok)
    fill.fill(mimi, plan, file, lambda name, stored: mx.float32, progress, strict=strict)
    device.lay_out(mimi)
    # What is not computed yet could only be computed on this thread.
    mx.eval(mimi.parameters())


def _share_depth_sets(lm: LmModel) -> None:
    """Files of the MLX layout repeat the weights of a depth set in every slice that uses it: keep them once."""
    dep = lm.cfg.depformer
    for sets, pick in ((dep.weight_sets, lambda s: s.transformer), (dep.input_sets, lambda s: s.linear_in)):
        first: dict[int, nn.Module] = {}
        for k, w in enumerate(sets):
            part = pick(lm.depformer.slices[k])
            if w not in first:
                first[w] = part
                continue
            shared = dict(tree_flatten(first[w].parameters()))
            own = dict(tree_flatten(part.parameters()))
            same = [mx.array_equal(own[n], shared[n]) for n in own if own[n] is not shared[n]]
            if same and not all(x.item() for x in same):
                raise CheckpointError(
                    f"depth slice {k} should repeat the weights of slice {sets.index(w)} by "
                    "'depformer_weights_per_step_schedule', but holds others."
                )
            part.update(first[w].parameters())


def read_eos_as_pad(lm: LmModel) -> None:
    """Hibiki reads an early end of sequence (row 2) as padding (row 3); the depth embedding is left alone (lm.md 1.1)."""
    for name in ("weight", "scales", "biases"):
        table = lm.text_emb.get(name)
        if table is not None:
            lm.text_emb[name] = mx.concatenate([table[:2], table[3:4], table[3:]])
    mx.eval(lm.text_emb.parameters())
