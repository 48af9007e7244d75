"""The finished folder, in the layout of Kyutai's published PyTorch checkpoints, and back."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .codec import Codec, CodecConfig
from .generate import Sampling
from .lm import Lm

CONFIG, MOSHI, MIMI, MIMI_CONFIG, TOKENIZER = (
    "config.json", "model.safetensors", "mimi.safetensors", "mimi.json", "tokenizer.model",
)  # fmt: skip


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def export_codec(codec: Codec, folder: Path) -> None:
    """Weights in float16: half the size, and unlike bfloat16 accurate enough for the codes."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = codec.state_dict()
    for name in list(tensors):
        if name.endswith("cluster_usage"):
            # Store the centroids themselves: sums of moving averages would round badly.
            total = name.replace("cluster_usage", "embedding_sum")
            tensors[total] = tensors[total] / tensors[name].clamp(min=1e-5)[:, None]
            tensors[name] = torch.ones_like(tensors[name])
    save_file({k: v.half().contiguous() for k, v in tensors.items()}, folder / MIMI)
    write_json(folder / MIMI_CONFIG, codec.cfg.mimi_json())


def load_codec(folder: Path) -> Codec:
    """The exported codec in float32, ready to encode and decode."""
    config = json.loads((folder / MIMI_CONFIG).read_text())
    seanet, transformer, quantizer = (config[part] for part in ("seanet", "transformer", "quantizer"))
    cfg = CodecConfig(
        n_filters=seanet["n_filters"], dimension=seanet["dimension"],
        ratios=tuple(seanet["ratios"]), num_layers=transformer["num_layers"],
        num_heads=transformer["num_heads"], feedforward=transformer["dim_feedforward"],
        context=transformer["context"], layer_scale=transformer["layer_scale"],
        n_q=quantizer["n_q"], bins=quantizer["bins"], codebook_dim=quantizer["dimension"],
    )  # fmt: skip
    codec = Codec(cfg)
    codec.load_state_dict(load_file(folder / MIMI))
    return codec.float().eval()


def export_lm(lm: Lm, folder: Path, model_type: str, **extra) -> None:
    """Weights in bfloat16 with their `config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.to(torch.bfloat16).contiguous() for k, v in lm.state_dict().items()}
    save_file(tensors, folder / MOSHI)
    names = dict(moshi_name=MOSHI, mimi_name=MIMI, mimi_config_name=MIMI_CONFIG,
                 tokenizer_name=TOKENIZER)  # fmt: skip
    write_json(folder / CONFIG, {**lm.cfg.lm_json(), "model_type": model_type, **names, **extra})


def sampling_json(sampling: Sampling) -> dict:
    return asdict(sampling)


def folder_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
