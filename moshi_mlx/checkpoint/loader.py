"""The files of a checkpoint made into models: checking them, loading them.

How weights are packed is read from the files, or dense ones are packed while they load. Loading is lazy: nothing of a file is
read before its header, the configuration and the memory have been checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx

from .. import defaults
from ..arguments import kind, one_of, whole
from ..config.description import CheckpointConfig, as_personaplex
from ..config.json_text import read_json
from ..config.parts import MimiConfig
from ..config.presets import MIMI_V0_1, PERSONAPLEX_7B
from ..config.reader import LARGEST, MOST
from ..config.transformers_config import CODEC_PREFIXES
from ..errors import CheckpointError, ConfigError, InputError, quoted
from ..machine import memory, streams
from ..machine.capacity import capacity, default_dtype
from ..models.lm_model import LmModel
from ..models.mimi_model import MimiModel
from . import fill, recipe_table, recipes, registry, tokenizer_json, transformers_files
from .files import Files, Overrides, locate, require_tokenizer, taken_for
from .fill import Progress
from .fingerprint import fingerprint, without_names
from .layouts import lm as lm_layouts
from .layouts.kinds import wrapper
from .lora import Adapter
from .model_files import load_lm_file, load_mimi_file, read_eos_as_pad
from .packing import Quantization, packed_bytes
from .weights_file import WeightsFile

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor


DTYPES: dict[str, mx.Dtype] = {short: getattr(mx, name) for short, name in defaults.DTYPES.items()}


@dataclass
class Checkpoint:
    """Loaded parts of a checkpoint, evaluated and ready to step on the thread that loaded them."""

    files: Files
    lm: LmModel
    mimi: MimiModel | None = None
    tokenizer: SentencePieceProcessor | None = None
    quantizations: dict[str, Quantization] = field(default_factory=dict)
    # What was found and done that the user may want to know.
    notes: list[str] = field(default_factory=list)
    # Those of `quantizations` that no file holds: packed while they were loaded.
    packing: dict[str, Quantization] = field(default_factory=dict)

    @property
    def config(self) -> CheckpointConfig:
        return self.files.config

    @cached_property
    def fingerprint(self) -> str:
        """Which model this is (see `fingerprint`), from its files as they are on disk when this is first asked for, and from how they
        were packed while they were loaded, where they were.
        """
        files = self.files
        paths = [files.moshi, *(path for path in (files.mimi, files.lora) if path is not None)]
        described = {
            "config": without_names(self.config.raw),
            "codec": read_json(files.mimi_config) if files.mimi_config else None,
            "lora_scaling": files.lora_scaling if files.lora else None,
        }
        if self.packing:
            described["packing"] = {path: str(q) for path, q in self.packing.items()}
        return fingerprint(described, [WeightsFile(path) for path in paths])

    @property
    def precision(self) -> str:
        return fill.describe(self.quantizations.values(), self.lm.dtype)


@dataclass(frozen=True)
class Estimate:
    """What loading will take, known before anything is read. Bytes."""

    weights: int
    rings: int
    codec: int
    # The largest tensor, which is there dense while it is packed.
    passing: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.rings + self.codec + self.passing + memory.OVERHEAD_BYTES


class Loader:
    """Loads a located checkpoint; everything that can be checked without reading weights is checked when it is made.

    `quantized` (4 or 8) packs dense weights while they load, by the recipe of their kind. `notes` are sentences for the user.
    """

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
        whole("batch", batch, 1, MOST)
        if context is not None:
            whole("context", context, 1, LARGEST)
        if dtype is not None:
            one_of("dtype", dtype, list(DTYPES.values()))
        streams.use()
        self.notes: list[str] = []
        weights = self._unwrapped(WeightsFile(files.moshi))
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
                "config: its sizes make impossibly large matrices; check 'dim' and 'hidden_scale'."
            ) from None
        self.quantizations = fill.quantize_like(self.lm, self.weights)
        self._check_quantization()
        self.packing = self._packing(quantized)
        self.mimi_cfg = self._mimi_config() if with_codec else None

    def _unwrapped(self, weights: WeightsFile) -> WeightsFile:
        """Without a prefix that all names share, as wrappers of torch leave it."""
        prefix = wrapper(weights)
        if not prefix:
            return weights
        self.notes.append(f"every tensor of {weights.path.name} is called {prefix}*; it is read without the prefix.")
        return weights.part(prefix)

    def _packing(self, quantized: int | None) -> dict[str, Quantization]:
        """How layers are packed while they load: as asked for where the file is dense, else not at all."""
        bits = {q.bits for q in self.quantizations.values()}
        if quantized is None or quantized in bits:
            return {}
        if bits:
            stored = " and ".join(f"{b} bit" for b in sorted(bits))
            raise InputError(
                f"-q {quantized} was given, but {self.files.moshi} is packed already, in {stored}. "
                "Leave out -q, or name the checkpoint it was made from."
            )
        recipe = recipes.default_recipe(self.files.config)
        packing = recipes.by_rules(
            recipes.layers_of(self.lm.cfg), recipe_table.RECIPES[recipe], recipes.base(quantized)
        )
        self.quantizations = packing.layers
        self.notes.append(
            f"packed to {quantized} bits while loading (recipe {recipe}: {recipe_table.WORDS[recipe]}); to keep it: "
            f"python -m moshi_mlx.quantize {self.files.source} FOLDER -q {quantized}"
        )
        return packing.layers

    def _check_quantization(self) -> None:
        """What a config says of the packing has to be what the file holds."""
        said = self.files.config.quantization
        if said is None:
            return
        for path in {**self.quantizations, **said}:
            own, found = said.get(path), self.quantizations.get(path)
            if found is None and not (isinstance(own, dict) and self._is_dense(path)):
                continue
            expected = own if isinstance(own, dict) else said
            # As in mlx-lm, what is no `mode` is affine.
            words = (expected.get("group_size"), expected.get("bits"), expected.get("mode", "affine"))
            if own is False or found is None or words != (found.group_size, found.bits, found.mode):
                raise ConfigError(
                    f"config: 'quantization' says {quoted(expected) if own is not False else 'dense'} for {path}, "
                    f"but the weights are {found or 'dense'}."
                )
        if not self.quantizations:
            raise ConfigError(
                f"config: 'quantization' says {quoted(said.get('bits'))} bits, but {self.files.moshi} is not quantised."
            )

    def _is_dense(self, path: str) -> bool:
        """Whether the file holds `{path}.weight`, and not packed."""
        return f"{path}.weight" in self.weights and f"{path}.scales" not in self.weights

    def _mimi_config(self) -> MimiConfig:
        files, lm = self.files, self.files.config.lm
        if self.codec is None:
            architecture = files.config.architecture
            name = f"{CODEC_PREFIXES[architecture]}*" if architecture else files.config.mimi_name
            where = "" if architecture else "put it there or "
            raise CheckpointError(
                f"{files.source} lacks the codec {name!r}; {where}name it with --mimi-weights.{taken_for(files.config)}"
            )
        described = read_json(files.mimi_config) if files.mimi_config else MIMI_V0_1
        cfg = files.config.codec or MimiConfig.from_dict(described)
        levels = max(lm.dep_q, lm.n_q - lm.dep_q)
        if levels > cfg.num_codebooks:
            raise ConfigError(f"config: the model uses {levels} codebooks each way, the codec has {cfg.num_codebooks}.")
        if cfg.bins != lm.card:
            raise ConfigError(f"config: the model's 'card' is {lm.card}, the codec's 'bins' are {cfg.bins}.")
        return replace(cfg, num_codebooks=max(levels, cfg.n_semantic))

    def estimate(self) -> Estimate:
        total = self._packed_bytes() if self.packing else self._stored_bytes()
        passing = max(info.nbytes for info in self.weights.values()) if self.packing else 0
        if self.adapter is not None:
            total += self.adapter.nbytes
        codec = 0
        if self.mimi_cfg is not None and self.codec is not None:
            if isinstance(self.codec, Path):
                codec = self.codec.stat().st_size
            else:
                # It runs in float32, whatever the model around it is stored in.
                codec = 4 * sum(math.prod(t.shape) for t in self.codec.values())
        return Estimate(total, memory.ring_bytes(self.lm.cfg.transformer, self.batch, self.dtype), codec, passing)

    def _stored_bytes(self) -> int:
        """Of the weights as the file holds them, dense ones in the type they get."""
        total = 0
        for name, info in self.weights.items():
            if lm_layouts.left_out(name, self.lm.cfg):
                continue
            dense = info.dtype in ("F32", "F16", "BF16") and not name.endswith((".scales", ".biases"))
            total += math.prod(info.shape) * self.dtype.size if dense else info.nbytes
        return total

    def _packed_bytes(self) -> int:
        """Of the parameters when they are packed while they load."""
        shapes = fill.parameter_shapes(self.lm)
        packed = {f"{path}.weight": q for path, q in self.packing.items()}
        return sum(
            packed_bytes(shape, packed[name]) if name in packed else packed_bytes(shape, None, self.dtype)
            for name, shape in shapes.items()
        )

    def _smaller(self) -> str:
        """What would take less memory. Weights that are packed in their file stay as they are."""
        least = min((q.bits for q in self.quantizations.values()), default=None)
        fewer = "Pack the weights (-q 4), shorten" if least is None else "Take fewer bits (-q 4), shorten"
        return f"{fewer if least is None or (self.packing and least > 4) else 'Shorten'} the window (--context 60)"

    def load(self, progress: Progress | None = None) -> Checkpoint:
        """Read everything. Raises before reading if the memory cannot be had. On macOS the GPU's memory is wired (see `memory.wire`)."""
        memory.refuse_if_too_large(self.estimate().total, str(self.files.moshi), self._smaller())
        memory.wire()
        mimi = None
        try:
            tokenizer = load_tokenizer(self.files, self.notes) if self.files.tokenizer else None
            if self.mimi_cfg is not None and self.codec is not None:
                mimi = MimiModel(self.mimi_cfg)
                load_mimi_file(mimi, self.codec)
            load_lm_file(
                self.lm, self.weights, dtype=self.dtype, progress=progress, adapter=self.adapter,
                architecture=self.files.config.architecture, packing=self.packing,
            )  # fmt: skip
        except CheckpointError as e:
            if not self.files.config.legacy:
                raise
            raise CheckpointError(f"{e}{taken_for(self.files.config)}") from None
        if self.files.config.model_type == "hibiki":
            read_eos_as_pad(self.lm)
        # Buffers of what was read and cast, which MLX would keep: up to some hundred megabytes.
        mx.clear_cache()
        return Checkpoint(self.files, self.lm, mimi, tokenizer, self.quantizations, self.notes, self.packing)


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


def load_tokenizer(files: Files, notes: list[str] | None = None) -> SentencePieceProcessor:
    """The sentencepiece model of a checkpoint, checked against its configuration. `notes` are told what is odd about it."""
    path = require_tokenizer(files)
    processor = tokenizer_json.processor_of(tokenizer_json.read_tokenizer(path))
    note = tokenizer_json.check_size(processor.vocab_size(), files.config.lm.text_card, path)
    if note and notes is not None:
        notes.append(note)
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
    """Locate, check and load a checkpoint in one call.

    `quantized` (4 or 8) chooses among published precisions, or packs dense weights while they load; without it a short name is taken
    at the precision that suits this machine, and a folder or repository as it is. `dtype` is `mx.bfloat16`, `mx.float16` or
    `mx.float32`; `context` bounds the attention window, in frames.
    """
    for argument, value in (("model", model), ("hf_repo", hf_repo)):
        if value is not None:
            kind(argument, value, (str, Path), "a name or a path")
    one_of("quantized", quantized, (4, 8, None))
    name = registry.short_name(model, hf_repo)
    if quantized is None and name is not None and not (overrides and overrides.moshi):
        quantized = registry.suited(name, capacity()).bits
    files = locate(model, hf_repo, quantized, overrides)
    loader = Loader(files, quantized=quantized, dtype=dtype, batch=batch, with_codec=with_codec, context=context)
    return loader.load(progress)
