"""The codec with its transformers packed. Convolutions, codebooks and norms stay as they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np
from moshi_mlx.convert.codec import Codec
from moshi_mlx.convert.jobs import dense_jobs, packed_jobs
from moshi_mlx.convert.stream import Job
from moshi_mlx.convert.verify import load_codec

from moshi_mlx.checkpoint import load_mimi_file
from moshi_mlx.checkpoint.fill import parameter_shapes
from moshi_mlx.checkpoint.layouts import mimi as layouts
from moshi_mlx.checkpoint.layouts.expr import Expr, substitute
from moshi_mlx.checkpoint.packing import Quantization
from moshi_mlx.models.mimi_model import MimiModel

_LINEAR = re.compile(r"(encoder|decoder)_transformer\.transformer\.layers\.\d+\..*(_proj|linear[12])\.weight$")


def packed_codec(codec: Codec, q: Quantization) -> list[Job]:
    """Jobs of a codec file: published names, and the packed layers under the names of our modules."""
    mimi = MimiModel(codec.cfg)
    ours = layouts.sources(parameter_shapes(mimi), codec.cfg, (), "kyutai", mimi.transposed_parameters())
    layers: dict[str, Expr] = {}
    published: set[str] = set()
    for name, shape in parameter_shapes(mimi).items():
        if _LINEAR.match(name) and shape[1] % q.group_size == 0:
            layers[name] = substitute(ours[name], codec.plan)
            published.update(ours[name].sources())
    rest: Mapping[str, Expr] = {n: e for n, e in codec.plan.items() if n not in published}
    packing = {name.removesuffix(".weight"): q for name in layers}
    return dense_jobs(rest, codec.tensors, None) + packed_jobs(layers, codec.tensors, None, packing)


def file_name(name: str, q: Quantization) -> str:
    stem = name.removesuffix(".safetensors")
    return f"{stem}.q{q.bits}.safetensors"


def quality(codec: Codec, path: Path, pcm: np.ndarray, levels: int) -> dict[str, float]:
    """A packed codec against its source on mono audio: equal codes per level, and the error of what is decoded in dB."""
    source, packed = load_codec(codec, levels), MimiModel(load_codec(codec, levels).cfg)
    load_mimi_file(packed, path)
    sound = mx.array(pcm.astype(np.float32))[None, None]
    codes, other = source.encode(sound, levels), packed.encode(sound, levels)
    same = np.array(codes == other)[0].mean(axis=-1)
    wanted, found = np.array(source.decode(codes)), np.array(packed.decode(codes))
    noise = float(np.mean((wanted - found) ** 2)) or 1e-20
    return {
        "codes_equal_first": float(same[0]),
        "codes_equal_all": float(same.mean()),
        "decoded_snr_db": round(10 * float(np.log10(np.mean(wanted**2) / noise)), 1),
    }
