"""Write a checkpoint with random weights in the published MLX format, of any size, tensor by tensor.

    python benchmarks/random_checkpoint.py DIR --preset moshi-7b -q 4      # 4.8 GB language model + 385 MB codec
    python benchmarks/random_checkpoint.py DIR --preset tiny               # a few MB, runs anywhere in real time

Weights are drawn so that activations keep their size; packed weights are drawn packed, so nothing larger is ever held.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from moshi_mlx.checkpoint.layouts.inverse import pytorch_file
from moshi_mlx.checkpoint.weights_writer import TYPE_NAMES, WeightsWriter
from moshi_mlx.config import presets
from moshi_mlx.config.description import CheckpointConfig
from moshi_mlx.models.lm import Lm

TINY_LM = {
    **presets.MOSHI_7B,
    "dim": 128, "num_heads": 4, "num_layers": 2, "context": 250, "card": 256, "text_card": 200,
    "depformer_dim": 64, "depformer_num_heads": 2, "depformer_num_layers": 1, "depformer_dim_feedforward": 288,
    "hidden_scale": 4.5,
}  # fmt: skip
TINY_MIMI = {
    **presets.MIMI_V0_1,
    "seanet": {**presets.MIMI_V0_1["seanet"], "dimension": 64, "n_filters": 8},
    "transformer": {
        **presets.MIMI_V0_1["transformer"],
        "d_model": 64,
        "num_heads": 2,
        "num_layers": 2,
        "dim_feedforward": 128,
    },
    "quantizer": {"dimension": 32, "n_q": 8, "bins": 256},
}
_TINY_TEXT = {"text_card": 400}
TINY_STT = {
    **TINY_LM, **_TINY_TEXT, "model_type": "stt", "n_q": 32, "dep_q": 0, "delays": [0] * 33, "context": 375,
    "extra_heads_num_heads": 4, "extra_heads_dim": 6,
    "stt_config": {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 1.0},
    "lm_gen_config": {"temp": 0.0, "temp_text": 0.0, "top_k": 250, "top_k_text": 50},
}  # fmt: skip
TINY_TTS = {
    **TINY_LM, **_TINY_TEXT, "model_type": "tts", "n_q": 16, "dep_q": 16, "delays": [0, 0] + [2] * 15,
    "depformer_weights_per_step_schedule": [*range(8), *[8] * 8], "depformer_low_rank_embeddings": 64,
    "demux_second_stream": True, "cross_attention": True,
    "conditioners": {
        "speaker_wavs": {"type": "tensor", "tensor": {"dim": 32}},
        "cfg": {"type": "lut", "lut": {"n_bins": 7, "dim": 8, "tokenizer": "noop", "possible_values": ["1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0"]}},
        "control": {"type": "lut", "lut": {"n_bins": 1, "dim": 128, "tokenizer": "noop", "possible_values": ["ok"]}},
    },
    "fuser": {"cross_attention_pos_emb": True, "cross_attention_pos_emb_scale": 1, "sum": ["control", "cfg"], "prepend": [], "cross": ["speaker_wavs"]},
    "tts_config": {"audio_delay": 1.28, "second_stream_ahead": 2},
    "model_id": {"sig": "0badcafe", "epoch": 1},
    "lm_gen_config": {"temp": 0.6, "text_temp": 0.6, "top_k": 250, "top_k_text": 25},
}  # fmt: skip
# The other kind of text-to-speech model: no voice embeddings, a clip is continued instead.
TINY_TTS_PREFIX = {
    **TINY_TTS, "cross_attention": False, "conditioners": {}, "text_card_out": 5, "model_id": {"sig": "0badcafe", "epoch": 2},
    "fuser": {"cross_attention_pos_emb": False, "cross_attention_pos_emb_scale": 1, "sum": [], "prepend": [], "cross": []},
}  # fmt: skip
TINY_HIBIKI = {
    **TINY_LM, **_TINY_TEXT, "model_type": "hibiki", "delays": [0] + ([0] + [2] * 7) * 2,
    "conditioners": {
        "description": {"type": "lut", "lut": {"n_bins": 31, "dim": 16, "tokenizer": "noop", "possible_values": ["very_bad", "bad", "neutral", "good", "very_good"]}},
    },
    "fuser": {"cross_attention_pos_emb": False, "cross_attention_pos_emb_scale": 1, "sum": ["description"], "prepend": [], "cross": []},
    "lm_gen_config": {"temp": 0.8, "temp_text": 0.4, "top_k": 250, "top_k_text": 25},
}  # fmt: skip
TINY_HIBIKI_ZERO = {
    **{k: v for k, v in TINY_HIBIKI.items() if k not in ("conditioners", "fuser")},
    "hidden_scale": 6, "positional_embedding": "rope_concat", "max_period": 20000, "kv_repeat": 2, "depformer_kv_repeat": 1,
    "depformer_norm": "layer_norm", "depformer_dim_feedforward": None, "depformer_weights_per_step_schedule": [*range(4), *[4] * 4],
}  # fmt: skip
TINY_PERSONAPLEX = {**TINY_LM, **_TINY_TEXT, "dep_q": 16, "card": 2048}


def _codebooks(config: dict, count: int) -> dict:
    return {**config, "quantizer": {**config["quantizer"], "n_q": count}}


# Speech models are published in the PyTorch layout, with a tokenizer that knows words.
SPEECH_PRESETS = {
    "tiny-stt": (TINY_STT, _codebooks(TINY_MIMI, 32)),
    "tiny-tts": (TINY_TTS, _codebooks(TINY_MIMI, 16)),
    "tiny-tts-prefix": (TINY_TTS_PREFIX, _codebooks(TINY_MIMI, 16)),
    "tiny-hibiki": (TINY_HIBIKI, TINY_MIMI),
    "tiny-hibiki-zero": (TINY_HIBIKI_ZERO, TINY_MIMI),
    "tiny-personaplex": (TINY_PERSONAPLEX, {**TINY_MIMI, "quantizer": {**TINY_MIMI["quantizer"], "bins": 2048}}),
}
WORD_TOKENIZER = Path(__file__).resolve().parent.parent / "tests/goldens/family/tokenizer/tiny_bpe_400.model"
PRESETS = {
    "tiny": (TINY_LM, TINY_MIMI),
    "tiny-published-codec": ({**TINY_LM, "card": 2048}, None),
    **SPEECH_PRESETS,
    "moshi-7b": (presets.MOSHI_7B, None),
    "personaplex-7b": (presets.PERSONAPLEX_7B, None),
    "hibiki-1b": (presets.HIBIKI_1B, None),
}
GROUP_SIZES = {4: 32, 8: 64}


def generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def draw(seed: int, name: str, array: mx.array, bits: int | None) -> mx.array:
    """Random values for one parameter; `array` gives shape and type and is never evaluated."""
    rng, shape = generator(seed, name), tuple(array.shape)
    if array.dtype == mx.uint32:
        return mx.array(rng.integers(0, 2**32, shape, dtype=np.uint32))
    if name.endswith((".scales", ".biases")) and bits is not None:
        # Uniform integers of `bits` bits have this deviation; one standard normal per row needs the inverse root of its length.
        inputs = shape[-1] * GROUP_SIZES[bits]
        scale = 1 / (np.sqrt((4**bits - 1) / 12) * np.sqrt(inputs))
        value = scale if name.endswith(".scales") else -scale * (2**bits - 1) / 2
        return (mx.array(rng.uniform(0.9, 1.1, shape).astype(np.float32)) * value).astype(mx.bfloat16)
    if "norm" in name:
        return mx.ones(shape, mx.bfloat16)
    deviation = 0.5 if "emb" in name else 1 / np.sqrt(shape[-1])
    return mx.array(rng.standard_normal(shape, dtype=np.float32) * np.float32(deviation)).astype(mx.bfloat16)


def write_lm(path: Path, config: dict, bits: int | None, seed: int) -> None:
    lm = Lm(CheckpointConfig.from_dict(config).lm)
    lm.set_dtype(mx.bfloat16)
    if bits is not None:
        nn.quantize(lm, group_size=GROUP_SIZES[bits], bits=bits)
    parameters = tree_flatten(lm.parameters())
    specs = [(name, TYPE_NAMES[p.dtype], tuple(p.shape)) for name, p in parameters]
    with WeightsWriter(path, specs) as writer:
        for name, p in parameters:
            writer.write(name, draw(seed, name, p, bits))
        writer.commit()


def write_lm_pytorch(path: Path, config: dict, seed: int) -> None:
    """The published PyTorch layout, in which text-to-speech and speech-to-text models come."""
    cfg = CheckpointConfig.from_dict(config).lm
    shapes = {name: tuple(p.shape) for name, p in tree_flatten(Lm(cfg).parameters())}
    stored = {name: e.shape(shapes.__getitem__) for name, e in pytorch_file(shapes, cfg).items()}
    types = {n: mx.float32 if n.startswith("condition_provider.") else mx.bfloat16 for n in stored}
    with WeightsWriter(path, [(n, TYPE_NAMES[types[n]], shape) for n, shape in stored.items()]) as writer:
        for name, shape in stored.items():
            value = draw(seed, name, mx.zeros(shape), None).astype(types[name])
            if name == "text_linear.weight" and cfg.dep_q == 0:
                # A transcript needs boundaries and pads more often than chance has them, and bytes (4 to 259) hardly ever.
                scales = [{0: 2.0, 3: 2.5}.get(i, 0.1 if 4 <= i < 260 else 1.0) for i in range(shape[0])]
                value = value * mx.array(scales)[:, None]
            writer.write(name, value.astype(types[name]))
        writer.commit()


def write_voice(path: Path, config: dict, seed: int, frames: int = 10) -> None:
    """A voice embedding for a text-to-speech model."""
    dim = config["conditioners"]["speaker_wavs"]["tensor"]["dim"]
    path.parent.mkdir(parents=True, exist_ok=True)
    value = mx.array(generator(seed, "voice").standard_normal((1, dim, frames), dtype=np.float32))
    mx.save_safetensors(str(path), {"speaker_wavs": value}, {k: str(v) for k, v in config["model_id"].items()})


def mimi_tensors(config: dict) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the published codec file (spec: mimi.md 8.1)."""
    s, t, q = config["seanet"], config["transformer"], config["quantizer"]
    out: list[tuple[str, tuple[int, ...]]] = []

    def conv(name: str, cout: int, cin: int, k: int, kind: str = "conv") -> None:
        shape = (cout, cin, k) if kind == "conv" else (cin, cout, k)
        out.extend([(f"{name}.{kind}.{kind}.weight", shape), (f"{name}.{kind}.{kind}.bias", (cout,))])

    def block(name: str, channels: int) -> None:
        conv(f"{name}.block.1", channels // s["compress"], channels, s["residual_kernel_size"])
        conv(f"{name}.block.3", channels, channels // s["compress"], 1)

    channels, i = s["n_filters"], 1
    conv("encoder.model.0", channels, 1, s["kernel_size"])
    for ratio in reversed(s["ratios"]):
        block(f"encoder.model.{i}", channels)
        conv(f"encoder.model.{i + 2}", 2 * channels, channels, 2 * ratio)
        channels, i = 2 * channels, i + 3
    conv(f"encoder.model.{i + 1}", s["dimension"], channels, s["last_kernel_size"])
    conv("decoder.model.0", channels, s["dimension"], s["kernel_size"])
    i = 1
    for ratio in s["ratios"]:
        conv(f"decoder.model.{i + 1}", channels // 2, channels, 2 * ratio, "convtr")
        channels //= 2
        block(f"decoder.model.{i + 2}", channels)
        i += 3
    conv(f"decoder.model.{i + 1}", 1, channels, s["last_kernel_size"])
    d, ff = t["d_model"], t["dim_feedforward"]
    for side in ("encoder", "decoder"):
        for layer in range(t["num_layers"]):
            p = f"{side}_transformer.transformer.layers.{layer}"
            out.extend([(f"{p}.self_attn.in_proj_weight", (3 * d, d)), (f"{p}.self_attn.out_proj.weight", (d, d))])
            out.extend([(f"{p}.linear1.weight", (ff, d)), (f"{p}.linear2.weight", (d, ff))])
            for n in (1, 2):
                out.extend(
                    [(f"{p}.norm{n}.weight", (d,)), (f"{p}.norm{n}.bias", (d,)), (f"{p}.layer_scale_{n}.scale", (d,))]
                )
    out.extend([("downsample.conv.conv.conv.weight", (d, d, 4)), ("upsample.convtr.convtr.convtr.weight", (d, 1, 4))])
    for name, levels in (("first", 1), ("rest", q["n_q"] - 1)):
        p = f"quantizer.rvq_{name}"
        out.extend(
            [(f"{p}.input_proj.weight", (q["dimension"], d, 1)), (f"{p}.output_proj.weight", (d, q["dimension"], 1))]
        )
        for level in range(levels):
            c = f"{p}.vq.layers.{level}._codebook"
            out.extend([(f"{c}._initialized", (1,)), (f"{c}.cluster_usage", (q["bins"],))])
            out.append((f"{c}.embedding_sum", (q["bins"], q["dimension"])))
    return out


def write_mimi(path: Path, config: dict, seed: int) -> None:
    tensors = mimi_tensors(config)
    with WeightsWriter(path, [(name, "F32", shape) for name, shape in tensors]) as writer:
        for name, shape in tensors:
            rng = generator(seed, name)
            fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
            if (
                name.endswith("_initialized")
                or name.endswith("cluster_usage")
                or name.endswith(("norm1.weight", "norm2.weight"))
            ):
                value = np.ones(shape, np.float32)
            elif name.endswith("bias"):
                value = np.zeros(shape, np.float32)
            elif name.endswith(".scale"):
                value = np.full(shape, 0.1, np.float32)
            elif "_codebook" in name:
                value = rng.standard_normal(shape, dtype=np.float32)
            else:
                value = rng.standard_normal(shape, dtype=np.float32) * np.float32(1.2 / np.sqrt(fan_in))
            writer.write(name, mx.array(value))
        writer.commit()


def write_tokenizer(path: Path, size: int) -> None:
    """A sentencepiece model of exactly `size` pieces: letters, then numbered words."""
    from sentencepiece import sentencepiece_model_pb2 as pb  # type: ignore[attr-defined]

    model = pb.ModelProto()
    model.trainer_spec.model_type = pb.TrainerSpec.BPE
    model.trainer_spec.vocab_size = size
    kinds = pb.ModelProto.SentencePiece
    for i, (piece, kind) in enumerate(
        [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL), ("<pad>", kinds.CONTROL)]
    ):
        model.pieces.add(piece=piece, score=-float(i), type=kind)
    words = ["\u2581"] + [f"\u2581{w}" for w in _syllables()] if size > 5 else []
    for i, piece in enumerate(words[: size - 4]):
        model.pieces.add(piece=piece, score=-float(i), type=kinds.NORMAL)
    path.write_bytes(model.SerializeToString())


def _syllables() -> list[str]:
    pairs = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    return pairs + [a + b for a in pairs for b in pairs] + [a + b + c for a in pairs for b in pairs for c in pairs[:10]]


def _voice_suffix(config: dict) -> str:
    return f"{config['model_id']['sig']}@{config['model_id']['epoch']}.safetensors"


def write(folder: Path, preset: str, bits: int | None, seed: int) -> None:
    """A complete checkpoint folder."""
    lm, mimi = PRESETS[preset]
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "moshi",
        **lm,
        "moshi_name": "model.safetensors" if bits is None else f"model.q{bits}.safetensors",
    }
    config["mimi_name"], config["tokenizer_name"] = presets.MIMI_NAME, presets.TOKENIZER_NAME
    if mimi is not None:
        config["mimi_config_name"] = "mimi.json"
        (folder / "mimi.json").write_text(json.dumps(mimi, indent=1) + "\n")
    if preset in SPEECH_PRESETS:
        if bits is not None:
            raise SystemExit(f"{preset} is written in the PyTorch layout, which is not quantised.")
        write_lm_pytorch(folder / config["moshi_name"], lm, seed)
        (folder / config["tokenizer_name"]).write_bytes(WORD_TOKENIZER.read_bytes())
        if "speaker_wavs" in lm.get("conditioners", {}):
            for i, name in enumerate("ab"):
                write_voice(folder / f"voices/{name}.wav.{_voice_suffix(lm)}", lm, seed + i)
    else:
        write_lm(folder / config["moshi_name"], lm, bits, seed)
        write_tokenizer(folder / config["tokenizer_name"], lm["text_card"])
    write_mimi(folder / config["mimi_name"], mimi or presets.MIMI_V0_1, seed)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tiny")
    parser.add_argument("-q", "--bits", type=int, choices=sorted(GROUP_SIZES))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    write(args.folder, args.preset, args.bits, args.seed)
    print(f"wrote {args.folder}")


if __name__ == "__main__":
    main()
