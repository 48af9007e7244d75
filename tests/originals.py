"""What the original programs make of a folder: run by a Python that has them, apart from the tests.

    PYTHON originals.py pytorch|mlx|transformers|mimi|mimi-hf FOLDER IN.safetensors OUT.safetensors

`IN` holds `codes` or `inputs` `[1, K, T]`, or `pcm` for the codec, or nothing of these where a model is only to be loaded; `OUT` gets
their logits (or codes and audio). Nothing of ours is imported: `mlx` means the published package, which may have a Python of its own,
without torch.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("NO_TORCH_COMPILE", "1")


def pytorch(folder: Path, config: dict, given: dict) -> dict:
    import torch
    from moshi.models.loaders import CheckpointInfo
    from safetensors.torch import load_file

    # Codec and tokenizer are only named here, not opened.
    others = {"mimi_weights": folder / "none", "tokenizer": folder / "none"}
    weights, description = folder / config["moshi_name"], folder / "config.json"
    info = CheckpointInfo.from_hf_repo("", moshi_weights=weights, config_path=description, **others)
    lm = info.get_moshi(device="cpu", dtype=torch.float32)
    # The original takes what it finds; every key has to be there, and no other.
    lm.load_state_dict(load_file(weights), strict=True)
    if "codes" not in given:
        return {"loaded": torch.ones(1)}
    with torch.no_grad():
        if not lm.dep_q:
            return {"text": lm.forward_text(given["codes"])[1][:, 0].contiguous()}
        out = lm(given["codes"])
    return {"text": out.text_logits.contiguous(), "audio": out.logits.contiguous()}


def mlx(folder: Path, config: dict, given: dict) -> dict:
    """Teacher-forced, position by position, as the published generator runs the model."""
    import mlx.core as mx
    import mlx.nn as nn

    from moshi_mlx.models.lm import Lm, LmConfig

    mx.set_default_device(mx.cpu)
    cfg = LmConfig.from_config_dict(config)
    # The published package takes no notice of these.
    cfg.transformer.dim_feedforward = int(config["hidden_scale"] * config["dim"])
    model, name = Lm(cfg), config["moshi_name"]
    for ending, bits, group in ((".q4.safetensors", 4, 32), (".q8.safetensors", 8, 64)):
        if name.endswith(ending):
            nn.quantize(model, bits=bits, group_size=group)
    model.load_weights(str(folder / name), strict=True)
    # Scales in float32: its products in bfloat16 are inexact on a CPU.
    model.set_dtype(mx.float32)
    tokens = given["inputs"].astype(mx.int32)
    text, audio = [], []
    for c in model.transformer_cache:
        c.reset()
    for t in range(tokens.shape[2]):
        x = model.text_emb(tokens[:, :1, t])
        for q, emb in enumerate(model.audio_embs):
            x = x + emb(tokens[:, 1 + q : 2 + q, t])
        h = model.out_norm(model.transformer(x, cache=model.transformer_cache))
        text.append(model.text_linear(h)[:, 0])
        for c in model.depformer_cache:
            c.reset()
        previous, row = tokens[:, :1, t], []
        for q, s in enumerate(model.depformer.slices):
            y = s.transformer(s.linear_in(h) + s.emb(previous), cache=model.depformer_cache)
            row.append(s.linear_out(y)[:, 0])
            previous = tokens[:, 1 + q : 2 + q, t]
        audio.append(mx.stack(row, axis=1))
    return {"text": mx.stack(text, axis=1), "audio": mx.stack(audio, axis=1)}


def transformers(folder: Path, config: dict, given: dict) -> dict:
    import torch
    from transformers import (
        AutoModelForCausalLM,
        KyutaiSpeechToTextForConditionalGeneration,
        MoshiForConditionalGeneration,
    )

    tokens, kind = given["inputs"], config["model_type"]
    classes = {
        "moshi": MoshiForConditionalGeneration,
        "kyutai_speech_to_text": KyutaiSpeechToTextForConditionalGeneration,
    }
    cls = classes.get(kind, AutoModelForCausalLM)
    model, said = cls.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    wrong = {k: sorted(v)[:5] for k, v in said.items() if v}
    if wrong:
        raise SystemExit(f"from_pretrained: {wrong}")
    mask = torch.ones(1, tokens.shape[2], dtype=torch.long)
    with torch.no_grad():
        if kind == "moshi":
            x = model.decoder.model.embed_tokens(tokens[:, 0])
            for i, emb in enumerate(model.embed_tokens):
                x = x + emb(tokens[:, 1 + i])
            text = model.decoder(inputs_embeds=x, attention_mask=mask, use_cache=False).logits
            half = model.num_codebooks
            unheard = torch.zeros(1, 1, 1920 * 2)
            made = model.generate(
                user_input_values=unheard, moshi_input_values=unheard, input_ids=torch.full((1, 2), 3), max_new_tokens=3
            )
            if made.audio_sequences is None or half < 1:
                raise SystemExit("generate made no sound")
        elif kind == "kyutai_speech_to_text":
            text = model(input_ids=tokens.transpose(1, 2), attention_mask=mask, use_cache=False).logits
            model.generate(input_values=torch.zeros(1, 1, 1920 * 4))
        else:
            text = model(tokens[:, 0]).logits
            model.generate(tokens[:, 0], max_new_tokens=2)
    return {"text": text.contiguous()}


def mimi(folder: Path, config: dict, given: dict) -> dict:
    import torch
    from moshi.models.loaders import get_mimi

    described = json.loads((folder / config["mimi_config_name"]).read_text()) if "mimi_config_name" in config else None
    levels = described["quantizer"]["n_q"] if described else 8
    codec = get_mimi(folder / config["mimi_name"], described, num_codebooks=levels)
    with torch.no_grad():
        codes = codec.encode(given["pcm"])
        return {"codes": codes.contiguous(), "pcm": codec.decode(codes).contiguous()}


def mimi_hf(folder: Path, config: dict, given: dict) -> dict:
    import torch
    from transformers import MimiModel

    codec = MimiModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        codes = codec.encode(given["pcm"]).audio_codes
        return {"codes": codes.contiguous(), "pcm": codec.decode(codes).audio_values.contiguous()}


def main() -> None:
    kind, folder, given, out = sys.argv[1:]
    config = json.loads((Path(folder) / "config.json").read_text())
    if kind == "mlx":
        import mlx.core as mx

        mx.save_safetensors(out, mlx(Path(folder), config, mx.load(given)))
        return
    from safetensors.torch import load_file, save_file

    run = {"pytorch": pytorch, "transformers": transformers, "mimi": mimi, "mimi-hf": mimi_hf}[kind]
    save_file(run(Path(folder), config, load_file(given)), out)


if __name__ == "__main__":
    main()
