"""The files of the folder to be made, in each of the layouts, as jobs and texts: nothing is read or written here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from moshi_mlx.checkpoint.layouts import inverse
from moshi_mlx.checkpoint.layouts.expr import substitute
from moshi_mlx.checkpoint.packing import Quantization
from moshi_mlx.checkpoint.weights_writer import TYPE_NAMES
from moshi_mlx.config import LmConfig
from moshi_mlx.config.transformers_config import CODEC_PREFIXES
from moshi_mlx.errors import ConfigError, InputError
from moshi_mlx.output import make_folder, write_bytes

from . import tokenizers, transformers_export
from .codec import Codec
from .config_file import CODEC_CONFIG, config_file, recorded
from .jobs import dense_jobs, packed_jobs
from .language_model import LanguageModel
from .source import Source
from .stream import Job

MODEL_NAME = "model.safetensors"
_WORDS = {mx.bfloat16: "bfloat16", mx.float16: "float16", mx.float32: "float32"}


@dataclass
class Outputs:
    """Files by name: `weights` are written tensor by tensor, `copies` byte by byte, `texts` whole; `steps` write the rest."""

    weights: dict[str, list[Job]] = field(default_factory=dict)
    copies: dict[str, Path] = field(default_factory=dict)
    texts: dict[str, dict[str, Any]] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    steps: list[Callable[[Path], None]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        written = sum(job.nbytes for jobs in self.weights.values() for job in jobs)
        copied = sum(path.stat().st_size for path in self.copies.values())
        # Headers, configurations and cards.
        return written + copied + sum(map(len, self.contents.values())) + (1 << 20)

    @property
    def cost(self) -> int:
        """Bytes to read."""
        return sum(job.cost for jobs in self.weights.values() for job in jobs)

    @property
    def largest(self) -> int:
        return max((job.nbytes for jobs in self.weights.values() for job in jobs), default=0)


def default_type(model: LanguageModel, dtype: mx.Dtype | None) -> mx.Dtype | None:
    """What is asked for; else bfloat16 for sources that hold less, and the stored types (None) for all others."""
    return mx.bfloat16 if dtype is None and model.reduced else dtype


def plan(source: Source, layout: str, dtype: mx.Dtype | None) -> Outputs:
    """All files of a converted checkpoint but its card."""
    outputs = Outputs()
    add_voices(outputs, source, "voices/" if source.model else "")
    if source.model is None:
        if source.codec is not None:
            _add_codec_alone(outputs, source.codec, layout)
        return outputs
    if layout == "transformers":
        _add_transformers(outputs, source, source.model, dtype)
        return outputs
    model = source.model
    dtype = default_type(model, dtype)
    if layout == "pytorch":
        jobs = _in_layout(model, inverse.pytorch_file(model.parameters, _for_pytorch(model.config.lm)), dtype)
    elif model.quantizations:
        jobs = dense_jobs(model.plan, model.tensors, dtype)
    else:
        jobs = dense_jobs({name: model.plan[name] for name in model.parameters}, model.tensors, dtype)
    kept = model.quantizations if layout == "mlx" else {}
    # Published readers tell how a packed file is packed by its name.
    name = model.tensors.path.name if kept else MODEL_NAME
    outputs.weights[name] = jobs
    add_companions(outputs, source)
    outputs.texts["config.json"] = config_file(source, model, name, recorded(kept) if kept else None, layout)
    return outputs


def _in_layout(model: LanguageModel, file: Mapping, dtype: mx.Dtype | None, prefix: str = "") -> list[Job]:
    dense = model.dense_plan()
    return dense_jobs({name: substitute(expr, dense) for name, expr in file.items()}, model.tensors, dtype, prefix)


def _for_pytorch(cfg: LmConfig) -> LmConfig:
    if cfg.n_q == 0:
        raise ConfigError(
            "the original PyTorch program has no text models; convert with --to mlx or --to transformers."
        )
    if cfg.text_in_vocab_size != cfg.text_card + 1:
        raise ConfigError(
            "the original PyTorch program gives the text table 'text_card' + 1 rows, this model's has others."
        )
    return cfg


# ----------------------------------------------------------------------------------------------------------------
# The folder that this package and the published ones read
# ----------------------------------------------------------------------------------------------------------------


def add_companions(outputs: Outputs, source: Source) -> None:
    """Codec, tokenizer and voices beside the language model."""
    codec = source.codec
    if codec is not None:
        if codec.path is not None:
            outputs.copies[codec.name] = codec.path
        else:
            outputs.weights[codec.name] = dense_jobs(codec.plan, codec.tensors, None)
        if codec.raw is not None:
            outputs.texts[CODEC_CONFIG] = codec.raw
    if source.tokenizer is not None:
        outputs.contents[source.tokenizer.name] = source.tokenizer.content
    outputs.copies |= source.speakers


def add_voices(outputs: Outputs, source: Source, folder: str) -> None:
    for name, read in source.voices:

        def save(path: Path, name=name, read=read) -> None:
            target = path / f"{folder}{name}.safetensors"
            make_folder(target.parent)
            read().save(target)

        outputs.steps.append(save)


def quantized_model(source: Source, packing: Mapping[str, Quantization], dtype: mx.Dtype | None) -> list[Job]:
    """The language model of a source in the MLX layout, packed."""
    model = source.model
    assert model is not None
    plan_ = {name: model.plan[name] for name in model.parameters}
    return packed_jobs(plan_, model.tensors, default_type(model, dtype), packing)


# ----------------------------------------------------------------------------------------------------------------
# transformers
# ----------------------------------------------------------------------------------------------------------------


def _add_transformers(outputs: Outputs, source: Source, model: LanguageModel, dtype: mx.Dtype | None) -> None:
    config, codec = model.config, source.codec
    kind = transformers_export.architecture(config.lm)
    dtype = default_type(model, dtype)
    jobs = _in_layout(model, inverse.transformers_file(model.parameters, config.lm, kind), dtype)
    if kind in CODEC_PREFIXES:
        if codec is None:
            raise InputError(f"a {kind} model of transformers holds its codec too; name one with --mimi-weights.")
        jobs += dense_jobs(codec.transformers_plan(), codec.tensors, None, CODEC_PREFIXES[kind])
    outputs.weights[MODEL_NAME] = jobs
    outputs.texts["config.json"] = transformers_export.lm_config(
        config, codec.cfg if codec else None, _type_in_words(jobs)
    )
    generation = transformers_export.generation_config(config)
    if generation is not None:
        outputs.texts["generation_config.json"] = generation
    features = transformers_export.feature_config(config, codec.cfg) if codec else None
    if features is not None:
        outputs.texts["preprocessor_config.json"] = features
    if source.tokenizer is not None:
        _add_fast_tokenizer(outputs, source.tokenizer)


def _type_in_words(jobs: Sequence[Job]) -> str:
    """The type of the largest tensor, which `from_pretrained` is told to keep."""
    kind = max(jobs, key=lambda job: job.nbytes).specs[0][1]
    return next(_WORDS[d] for d, name in TYPE_NAMES.items() if name == kind)


def _add_fast_tokenizer(outputs: Outputs, tokenizer: tokenizers.Tokenizer) -> None:
    def save(folder: Path) -> None:
        if tokenizers.to_json(tokenizer, folder / "tokenizer.json"):
            return
        # Still there for programs that read sentencepiece models themselves.
        write_bytes(folder / "tokenizer.model", tokenizer.content)

    processor = tokenizer.processor()
    named = {"unk": processor.unk_id(), "bos": processor.bos_id(), "eos": processor.eos_id(), "pad": processor.pad_id()}
    outputs.texts["tokenizer_config.json"] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **{f"{name}_token": processor.id_to_piece(i) for name, i in named.items() if i >= 0},
    }
    outputs.steps.append(save)


def _add_codec_alone(outputs: Outputs, codec: Codec, layout: str) -> None:
    if layout == "transformers":
        outputs.weights[MODEL_NAME] = dense_jobs(codec.transformers_plan(), codec.tensors, None)
        outputs.texts["config.json"] = transformers_export.mimi_config(codec.cfg)
        outputs.texts["preprocessor_config.json"] = transformers_export._encodec_features(codec.cfg)
        return
    if codec.path is not None:
        outputs.copies[codec.name] = codec.path
    else:
        outputs.weights[codec.name] = dense_jobs(codec.plan, codec.tensors, None)
    if codec.raw is not None:
        outputs.texts[CODEC_CONFIG] = codec.raw
