"""The finished folder, in the layout of Kyutai's published PyTorch checkpoints, and back."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .codec import Codec, CodecConfig
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
    save_file({k: v.half().cpu().contiguous() for k, v in tensors.items()}, folder / MIMI)
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
    tensors = {k: v.to(torch.bfloat16).cpu().contiguous() for k, v in lm.state_dict().items()}
    save_file(tensors, folder / MOSHI)
    names = dict(moshi_name=MOSHI, mimi_name=MIMI, mimi_config_name=MIMI_CONFIG,
                 tokenizer_name=TOKENIZER)  # fmt: skip
    write_json(folder / CONFIG, {**lm.cfg.lm_json(), "model_type": model_type, **names, **extra})


def export_voices(vectors: Tensor, names: list[str], model_id: dict, folder: Path) -> None:
    """One file for each voice of text-to-speech, vectors [V, dim], named and made as the published ones are."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {key: str(value) for key, value in model_id.items()}
    for name, vector in zip(names, vectors.detach().float().cpu(), strict=True):
        path = folder / f"{name}.{model_id['sig']}@{model_id['epoch']}.safetensors"
        save_file({"speaker_wavs": vector[None, :, None].contiguous()}, path, metadata)


def folder_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
