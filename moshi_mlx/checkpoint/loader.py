"""The files of a checkpoint made into models: checking them, loading them.

Precision is read from the files, never from a flag. Loading is lazy: nothing of a file is read before its header, the
configuration and the memory have been checked.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..config.description import CheckpointConfig, as_personaplex
from ..config.json_text import read_json
from ..config.parts import MimiConfig
from ..config.presets import MIMI_V0_1, PERSONAPLEX_7B
from ..config.transformers_config import CODEC_PREFIXES
from ..errors import CheckpointError, ConfigError, InputError
from ..machine import device, memory
from ..models.lm_model import LmModel
from ..models.mimi_model import MimiModel
from . import fill, tokenizer_json, transformers_files
from .files import Files, Overrides, locate, require_tokenizer
from .fill import Progress, Quantization
from .layouts import lm as lm_layouts
from .layouts import mimi as mimi_layouts
from .layouts import transformers_lm
from .lora import Adapter
from .weights_file import WeightsFile

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor


DTYPES = {"bf16": mx.bfloat16, "f16": mx.float16, "f32": mx.float32}
# Slack for activations, kernels and Python itself.
OVERHEAD_BYTES = 250_000_000


def default_dtype() -> mx.Dtype:
    """bfloat16 on a GPU. The CPU backend multiplies quantised weights by bfloat16 slowly and inexactly: float32 there."""
    return mx.bfloat16 if device.on_gpu() else mx.float32


# ----------------------------------------------------------------------------------------------------------------
# Single files into single modules
# ----------------------------------------------------------------------------------------------------------------


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
) -> None:
    """Fill `lm` from a file in the MLX, PyTorch or Candle layout, packed or not, or in that of an `architecture` of transformers.

    `dtype` is the type of activations and of dense weights; None leaves weights as stored. With `strict` false,
    parameters the file lacks keep their values and unknown tensors are ignored. `adapter` is applied on the way.
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
        if name.startswith("condition_provider."):
            return mx.float32
        return stored if dtype is None or name.endswith((".scales", ".biases")) else dtype

    fill.fill(lm, plan, file, dtype_of, progress, strict=strict)
    _share_depth_sets(lm)
    if adapter is not None:
        adapter.attach(lm, dtype or lm.dtype)
    lm.set_compute_dtype(dtype)


def _opened(file: str | Path | WeightsFile) -> WeightsFile:
    return file if isinstance(file, WeightsFile) else WeightsFile(file)


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


# ----------------------------------------------------------------------------------------------------------------
# Whole checkpoints
# ----------------------------------------------------------------------------------------------------------------


@dataclass
class Checkpoint:
    """Loaded parts of a checkpoint, evaluated and ready to step on the thread that loaded them."""

    files: Files
    lm: LmModel
    mimi: MimiModel | None = None
    tokenizer: SentencePieceProcessor | None = None
    quantizations: dict[str, Quantization] = field(default_factory=dict)

    @property
    def config(self) -> CheckpointConfig:
        return self.files.config

    @property
    def precision(self) -> str:
        return fill.describe(self.quantizations.values(), self.lm.dtype)


@dataclass(frozen=True)
class Estimate:
    """What loading will take, known before anything is read. Bytes."""

    weights: int
    rings: int
    codec: int

    @property
    def total(self) -> int:
        return self.weights + self.rings + self.codec + OVERHEAD_BYTES


class Loader:
    """Loads a located checkpoint. `plan` checks everything that can be checked without reading weights."""

    def __init__(
        self,
        files: Files,
        *,
        quantized: int | None = None,
        dtype: mx.Dtype | None = None,
        batch: int = 1,
        with_codec: bool = True,
        context: int | None = None,
    ):
        weights = WeightsFile(files.moshi)
        transformers_files.check_description(weights, files.config.architecture)
        self.weights, inner = transformers_files.codec_inside(weights, files.config.architecture)
        self.files = files = replace(files, config=_run_as(files.config, self.weights))
        # Its own file, or its part of the model's.
        self.codec = inner if files.mimi is None else files.mimi
        self.dtype, self.batch, self.with_codec = dtype or default_dtype(), batch, with_codec
        config = files.config
        if context is not None:
            limit = config.lm.transformer.context
            config.lm.transformer.context = context if limit is None else min(context, limit)
        self.adapter = None if files.lora is None else Adapter(files.lora, config.lm, files.lora_scaling)
        try:
            self.lm = LmModel(config.lm)
        except OverflowError:
            raise ConfigError(
                "config: its sizes make matrices larger than can be; check 'dim' and 'hidden_scale'."
            ) from None
        self.quantizations = fill.quantize_like(self.lm, self.weights)
        self._check_quantization(quantized)
        self.mimi_cfg = self._mimi_config() if with_codec else None

    def _check_quantization(self, quantized: int | None) -> None:
        """The file decides; a flag or a config that says otherwise is refused."""
        bits = sorted({q.bits for q in self.quantizations.values()})
        if quantized is not None and quantized not in bits:
            stored = f"{' and '.join(map(str, bits))} bit" if bits else "not quantised"
            other = "name the other file" if bits else f"pack it: python -m moshi_mlx.quantize SRC DST -q {quantized}"
            raise InputError(f"-q {quantized} was given, but {self.files.moshi} is {stored}. Leave out -q, or {other}.")
        said = self.files.config.quantization
        if said is None:
            return
        for path, q in self.quantizations.items():
            own = said.get(path)
            expected = own if isinstance(own, dict) else said
            if own is False or (expected.get("bits"), expected.get("group_size")) != (q.bits, q.group_size):
                raise ConfigError(
                    f"config: 'quantization' says {expected if own is not False else 'dense'} for {path}, but the weights are {q}."
                )
        if not self.quantizations:
            raise ConfigError(
                f"config: 'quantization' says {said.get('bits')} bits, but {self.files.moshi} is not quantised."
            )

    def _mimi_config(self) -> MimiConfig:
        files, lm = self.files, self.files.config.lm
        if self.codec is None:
            architecture = files.config.architecture
            name = f"{CODEC_PREFIXES[architecture]}*" if architecture else files.config.mimi_name
            raise CheckpointError(f"{files.source} lacks the codec {name!r}; name it with --mimi-weights.")
        described = read_json(files.mimi_config) if files.mimi_config else MIMI_V0_1
        cfg = files.config.codec or MimiConfig.from_dict(described)
        levels = max(lm.dep_q, lm.n_q - lm.dep_q)
        if levels > cfg.num_codebooks:
            raise ConfigError(f"config: the model uses {levels} codebooks each way, the codec has {cfg.num_codebooks}.")
        if cfg.bins != lm.card:
            raise ConfigError(f"config: the model's 'card' is {lm.card}, the codec's 'bins' are {cfg.bins}.")
        return replace(cfg, num_codebooks=max(levels, cfg.n_semantic))

    def estimate(self) -> Estimate:
        def stored(name: str, nbytes: int, count: int) -> int:
            dense = self.weights[name].dtype in ("F32", "F16", "BF16") and not name.endswith((".scales", ".biases"))
            return count * self.dtype.size if dense else nbytes

        total = 0
        for name, info in self.weights.items():
            count = math.prod(info.shape)
            total += 0 if lm_layouts.left_out(name, self.lm.cfg) else stored(name, info.nbytes, count)
        if self.adapter is not None:
            total += self.adapter.nbytes
        codec = 0
        if self.mimi_cfg is not None and self.codec is not None:
            if isinstance(self.codec, Path):
                codec = self.codec.stat().st_size
            else:
                # It runs in float32, whatever the model around it is stored in.
                codec = 4 * sum(math.prod(t.shape) for t in self.codec.values())
        return Estimate(total, memory.ring_bytes(self.lm.cfg.transformer, self.batch, self.dtype), codec)

    def load(self, progress: Progress | None = None) -> Checkpoint:
        """Read everything. Raises before reading if the memory cannot be had."""
        memory.refuse_if_too_large(self.estimate().total, str(self.files.moshi))
        tokenizer = load_tokenizer(self.files) if self.files.tokenizer else None
        mimi = None
        if self.mimi_cfg is not None and self.codec is not None:
            mimi = MimiModel(self.mimi_cfg)
            load_mimi_file(mimi, self.codec)
        load_lm_file(
            self.lm, self.weights, dtype=self.dtype, progress=progress, adapter=self.adapter,
            architecture=self.files.config.architecture,
        )  # fmt: skip
        if self.files.config.model_type == "hibiki":
            read_eos_as_pad(self.lm)
        return Checkpoint(self.files, self.lm, mimi, tokenizer, self.quantizations)


def _run_as(config: CheckpointConfig, weights: WeightsFile) -> CheckpointConfig:
    """The configuration as the model is run. What no `config.json` describes is Moshi 7B, or PersonaPlex by its depth steps."""
    config = replace(config, lm=replace(config.lm, transformer=replace(config.lm.transformer)))
    if config.architecture == "kyutai_speech_to_text":
        config.lm.text_card_out = transformers_files.text_rows(weights, config.lm.text_card)
    if config.legacy and lm_layouts.depth_slices(weights) == PERSONAPLEX_7B["dep_q"]:
        config = replace(config, lm=CheckpointConfig.from_dict(PERSONAPLEX_7B).lm)
    if not config.is_personaplex:
        return config
    return replace(config, lm=as_personaplex(config.lm), model_type="personaplex")


def load_tokenizer(files: Files) -> SentencePieceProcessor:
    """The sentencepiece model of a checkpoint, checked against its configuration."""
    from sentencepiece import SentencePieceProcessor

    path = require_tokenizer(files)
    processor = SentencePieceProcessor()
    try:
        if path.suffix == ".json":
            processor.LoadFromSerializedProto(tokenizer_json.from_json(path))
        else:
            processor.Load(str(path))
    except (OSError, RuntimeError):
        raise CheckpointError(f"{path} is not a sentencepiece model.") from None
    size, expected = processor.vocab_size(), files.config.lm.text_card
    if size != expected:
        raise CheckpointError(
            f"the tokenizer {path} has {size} pieces, the model's 'text_card' is {expected}: they do not belong together."
        )
    return processor


def load(
    model: str | Path | None = None,
    hf_repo: str | None = None,
    *,
    quantized: int | None = None,
    dtype: mx.Dtype | None = None,
    overrides: Overrides | None = None,
    batch: int = 1,
    with_codec: bool = True,
    context: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Checkpoint:
    """Locate, check and load a checkpoint in one call."""
    files = locate(model, hf_repo, quantized, overrides)
    loader = Loader(files, quantized=quantized, dtype=dtype, batch=batch, with_codec=with_codec, context=context)
    return loader.load(progress)
