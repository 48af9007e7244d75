#!/usr/bin/env python3
"""Tiny models in every source format of the converter, written by the original libraries, with what they compute.

    python make_goldens.py --out DIR

Needs moshi 0.2.13, transformers 4.57, bitsandbytes, gguf and torch (CPU). Everything is float32 with weights that bfloat16 holds
exactly, so that a conversion changes no number unless the format itself does.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("NO_TORCH_COMPILE", "1")

import numpy as np
import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

CFG = dict(
    card=32, n_q=4, dep_q=2, delays=[0, 0, 1, 0, 1], dim=64, text_card=60, existing_text_padding_id=3, num_heads=4, num_layers=1,
    hidden_scale=4.5, causal=True, layer_scale=None, context=12, max_period=10000, gating="silu", norm="rms_norm_f32",
    positional_embedding="rope", depformer_dim=32, depformer_num_heads=2, depformer_num_layers=1, depformer_dim_feedforward=144,
    depformer_multi_linear=True, depformer_pos_emb="none", depformer_weights_per_step=True,
)  # fmt: skip
MIMI = dict(
    hidden_size=16, num_filters=2, num_residual_layers=1, upsampling_ratios=[8, 6, 5, 4], codebook_size=32, codebook_dim=8,
    vector_quantization_hidden_dimension=8, num_quantizers=4, num_hidden_layers=1, intermediate_size=32, num_attention_heads=2,
    num_key_value_heads=2, head_dim=8, sliding_window=10, upsample_groups=16,
)  # fmt: skip
FRAMES = 20


def fill(model, seed):
    """Values at order one, exactly representable in bfloat16."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in list(model.named_parameters()) + [b for b in model.named_buffers() if "embed_sum" in b[0]]:
            x = torch.randn(p.shape, generator=g)
            if "norm" in name or "scale" in name:
                x = 1 + 0.1 * x
            elif p.dim() > 1 and "emb" not in name:
                x = 1.3 * x / np.prod(p.shape[1:] if p.dim() == 3 and "conv" in name else p.shape[-1:]) ** 0.5
            p.copy_(x.to(torch.bfloat16).float())
    return model.eval()


def dump(path, data):
    path.write_text(json.dumps(data, indent=1) + "\n")


# Kyutai's layouts ---------------------------------------------------------------------------------------------------


def build_lm(**changes):
    from moshi.models.lm import LMModel

    return fill(LMModel(device="cpu", dtype=torch.float32, **{**CFG, **changes}), 900)


def packed(state):
    """The published spelling: attention projections of all weight sets in one tensor."""
    out, groups = {}, {}
    for k, v in state.items():
        for tag, name in ((".in_projs.", ".in_proj_weight"), (".out_projs.", ".out_proj.weight")):
            if tag in k:
                prefix, rest = k.split(tag)
                index, leaf = rest.split(".", 1)
                suffix = leaf.removeprefix("weight")
                groups.setdefault(prefix + name + suffix, {})[int(index)] = v
                break
        else:
            out[k] = v
    for k, parts in groups.items():
        out[k] = torch.cat([parts[i] for i in sorted(parts)])
    return {k: v.detach().clone().contiguous() for k, v in sorted(out.items())}


def expectation(lm, path):
    """Teacher-forced logits of random codes, moved back by the delays."""
    g = torch.Generator().manual_seed(901)
    codes = torch.randint(0, CFG["card"], (1, 1 + CFG["n_q"], FRAMES), generator=g)
    codes[:, 0] = torch.randint(0, CFG["text_card"], (1, FRAMES), generator=g)
    with torch.no_grad():
        out = lm(codes)
    save_file(
        {"codes": codes, "text_logits": out.text_logits.contiguous(), "audio_logits": out.logits.contiguous(),
         "text_mask": out.text_mask.contiguous(), "audio_mask": out.mask.contiguous()}, path,
    )  # fmt: skip


def case(root, name, config=None):
    folder = root / name / "source"
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        dump(folder / "config.json", config)
    return folder


def half(state):
    return {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in state.items()}


def candle(state):
    """Kyutai's re-arrangement for its Rust programs: everything of one codebook together."""
    out, sets = {}, CFG["dep_q"]
    for k, v in state.items():
        if not k.startswith(("depformer", "linears")):
            out[k] = v
    for i in range(sets):
        base = f"depformer.{i}."
        out[base + "linear_in.weight"] = state[f"depformer_in.{i}.weight"]
        out[base + "linear_out.weight"] = state[f"linears.{i}.weight"]
        out[base + "emb.weight"] = state["depformer_text_emb.weight" if i == 0 else f"depformer_emb.{i - 1}.weight"]
        for layer in range(CFG["depformer_num_layers"]):
            src, dst = f"depformer.layers.{layer}.", f"{base}transformer.layers.{layer}."
            for part in ("self_attn.in_proj_weight", "self_attn.out_proj.weight"):
                out[dst + part] = state[src + part].chunk(sets)[i].clone()
            for part in ("norm1.alpha", "norm2.alpha"):
                out[dst + part] = state[src + part].clone()
            for part in ("linear_in", "linear_out"):
                out[f"{dst}gating.{part}.weight"] = state[f"{src}gating.{i}.{part}.weight"]
    return out


def make_kyutai(root):
    lm = build_lm()
    state = {k: v.detach().clone() for k, v in lm.state_dict().items()}
    config = {**CFG, "model_type": "moshi"}

    # As published, in two shards.
    folder = case(root, "pytorch_shards", config)
    published = half(packed(state))
    names = sorted(published)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, members in files.items():
        save_file({n: published[n] for n in members}, folder / file)
    dump(folder / "model.safetensors.index.json", {"weight_map": {n: f for f, ns in files.items() for n in ns}})
    expectation(lm, folder.parent / "expect.safetensors")

    # As the code saves it today, in the file of a training run.
    folder = case(root, "pytorch_th", config)
    torch.save({"fsdp_best_state": {"model": half(state)}, "epoch": 3}, folder / "model.th")
    expectation(lm, folder.parent / "expect.safetensors")

    # The form that torch wrote before its zip archives.
    folder = case(root, "pytorch_old_pt", config)
    torch.save(half(packed(state)), folder / "model.pt", _use_new_zipfile_serialization=False)
    expectation(lm, folder.parent / "expect.safetensors")

    folder = case(root, "candle", config)
    save_file(half(candle(packed(state))), folder / "model.safetensors")
    expectation(lm, folder.parent / "expect.safetensors")

    make_int8(root, lm)
    make_gguf(root, lm, candle(packed(state)))
    make_finetune(root)


def make_int8(root, lm):
    from moshi.utils.quantize import replace_linear_with_qlinear

    quantized = build_lm()
    replace_linear_with_qlinear(quantized)
    state = quantized.state_dict()
    for name, form in (("int8", dict), ("int8_packed", packed)):
        folder = case(root, name, {**CFG, "model_type": "moshi", "quantize": True, "moshi_name": "model.q8.safetensors"})
        stored = {k: v if k.endswith("_scb") else half({k: v})[k] for k, v in form(state).items()}
        save_file(stored, folder / "model.q8.safetensors")
        # What the integers stand for, in the dense model.
        dense = {}
        for k, v in state.items():
            if k.endswith("_scb"):
                continue
            dense[k] = v.float() * state[f"{k}_scb"][:, None] / 127 if f"{k}_scb" in state else v
        model = build_lm()
        model.load_state_dict(dense)
        expectation(model, folder.parent / "expect.safetensors")


def make_gguf(root, lm, state):
    import gguf

    folder = case(root, "gguf", {**CFG, "model_type": "moshi"})
    writer = gguf.GGUFWriter(str(folder / "model.q8.gguf"), "moshi")
    q8 = gguf.GGMLQuantizationType.Q8_0
    values = {}
    for name, x in state.items():
        x = x.float().numpy()
        if x.ndim == 2 and "emb" not in name:
            raw = gguf.quants.quantize(x, q8)
            writer.add_tensor(name, raw, raw_dtype=q8)
            values[name] = torch.from_numpy(gguf.quants.dequantize(raw, q8))
        elif "text_emb" in name:
            writer.add_tensor(name, x.astype(np.float16))
            values[name] = torch.from_numpy(x.astype(np.float16).astype(np.float32))
        elif name.startswith("emb."):
            raw = torch.from_numpy(x).to(torch.bfloat16).view(torch.uint8).numpy()
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
            values[name] = torch.from_numpy(x)
        else:
            writer.add_tensor(name, x)
            values[name] = torch.from_numpy(x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expectation(uncandle(values), folder.parent / "expect.safetensors")


def uncandle(values):
    """The original model with the numbers of a Candle file."""
    model = build_lm()
    state = dict(model.state_dict())
    for k, v in values.items():
        parts = k.split(".")
        if parts[0] != "depformer":
            state[k.replace(".in_proj_weight", ".in_projs.0.weight").replace(".out_proj.weight", ".out_projs.0.weight")] = v
            continue
        i, rest = int(parts[1]), ".".join(parts[2:])
        if rest == "linear_in.weight":
            name = f"depformer_in.{i}.weight"
        elif rest == "linear_out.weight":
            name = f"linears.{i}.weight"
        elif rest == "emb.weight":
            name = "depformer_text_emb.weight" if i == 0 else f"depformer_emb.{i - 1}.weight"
        else:
            name = "depformer." + rest.removeprefix("transformer.")
            name = name.replace(".in_proj_weight", f".in_projs.{i}.weight").replace(".out_proj.weight", f".out_projs.{i}.weight")
            name = name.replace(".gating.", f".gating.{i}.")
        state[name] = v
    model.load_state_dict({k: v.reshape(model.state_dict()[k].shape) for k, v in state.items()})
    return model


def make_finetune(root):
    """moshi-finetune: an adapter merged by the original's layers, saved as its `consolidated` folder is."""
    from moshi.models import loaders

    base = root / "base.safetensors"
    save_file(packed(build_lm().state_dict()), base)
    kwargs = dict(CFG, lora=True, lora_rank=4, lora_scaling=2.0)
    model = loaders.get_moshi_lm(base, lm_kwargs=kwargs, device="cpu", dtype=torch.float32, lora_weights=None)
    g = torch.Generator().manual_seed(902)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=g) / p.shape[1] ** 0.5)
    merged = {}
    for name, module in model.named_modules():
        if hasattr(module, "merge_weight"):
            merged[f"{name}.weight"] = module.merge_weight()
    state = {k: v for k, v in model.state_dict().items() if "lora" not in k and "frozen" not in k}
    consolidated = {k: v.to(torch.bfloat16) for k, v in sorted({**state, **merged}.items())}
    folder = case(root, "finetune") / "consolidated"
    folder.mkdir(exist_ok=True)
    dump(folder / "config.json", {**kwargs, "moshi_name": "model.safetensors", "model_type": "moshi"})
    save_file(consolidated, folder / "consolidated.safetensors")
    plain = build_lm()
    plain.load_state_dict({k: v.float() for k, v in consolidated.items()})
    expectation(plain, folder.parent.parent / "expect.safetensors")
    base.unlink()


# transformers --------------------------------------------------------------------------------------------------------


def greedy(forward, first, others, steps):
    """Model inputs [K, steps] and the tokens chosen: the trunk's text, and the depth decoder's codes where there is one."""
    column, columns, texts, audios = first, [], [], []
    for t in range(steps):
        columns.append(column)
        text, audio = forward(torch.stack(columns, dim=-1))
        texts.append(text)
        audios.append(audio)
        column = torch.cat([torch.tensor([text]), torch.tensor(audio, dtype=torch.int64), others[:, t]])
    return torch.stack(columns, dim=-1), torch.tensor(texts), torch.tensor(audios)


def save_transformers(model, folder):
    model.to(torch.float32).save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    lm = {k: v.to(torch.bfloat16) if not k.startswith(("audio_encoder.", "codec_model.")) else v for k, v in state.items()}
    save_file(lm, folder / "model.safetensors", metadata={"format": "pt"})


def make_moshi(root):
    from transformers import MoshiConfig, MoshiForConditionalGeneration

    config = MoshiConfig(
        vocab_size=60, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=256, num_codebooks=2,
        sliding_window=12, max_position_embeddings=64, rope_theta=10000.0, rms_norm_eps=1e-8,
        audio_encoder_config={"model_type": "mimi", **MIMI},
        depth_decoder_config=dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, ffn_dim=128, sliding_window=2),
        attn_implementation="eager",
    )  # fmt: skip
    model = fill(MoshiForConditionalGeneration(config), 910)
    folder = case(root, "transformers_moshi")
    g = torch.Generator().manual_seed(911)
    user = torch.randint(0, 32, (2, FRAMES), generator=g)
    record = {}

    def trunk(inputs):
        x = model.decoder.model.embed_tokens(inputs[:1])
        for i in range(4):
            x = x + model.embed_tokens[i](inputs[1 + i][None])
        mask = torch.ones(1, x.shape[1], dtype=torch.long)
        out = model.decoder(inputs_embeds=x, attention_mask=mask, output_hidden_states=False, use_cache=False)
        return out.last_hidden_state, out.logits

    def depth(hidden, tokens):
        """Logits of the codebooks, the given tokens (text first) imposed; its layers see each other causally."""
        n = tokens.shape[1]
        mask = torch.ones(1, n, dtype=torch.long)
        out = model.depth_decoder(
            input_ids=tokens, last_hidden_state=hidden.expand(-1, n, -1).clone(), attention_mask=mask, use_cache=False
        )
        return out.logits

    def forward(inputs):
        hidden, logits = trunk(inputs)
        text = int(logits[0, -1].argmax())
        tokens = [text]
        for _ in range(2):
            tokens.append(int(depth(hidden[:, -1:], torch.tensor([tokens]))[0, -1].argmax()))
        record["hidden"], record["text_logits"] = hidden, logits
        record.setdefault("depth_logits", []).append(depth(hidden[:, -1:], torch.tensor([tokens[:2]]))[0])
        return text, tokens[1:]

    with torch.no_grad():
        inputs, text, audio = greedy(forward, torch.tensor([60, 32, 32, 32, 32]), user, FRAMES)
    save_transformers(model, folder)
    save_file(
        {"inputs": inputs, "text": text, "audio": audio, "hidden": record["hidden"].contiguous(),
         "text_logits": record["text_logits"].contiguous(), "depth_logits": torch.stack(record["depth_logits"])},
        folder.parent / "expect.safetensors",
    )  # fmt: skip


def make_stt(root):
    from transformers import KyutaiSpeechToTextConfig, KyutaiSpeechToTextForConditionalGeneration

    config = KyutaiSpeechToTextConfig(
        codebook_vocab_size=33, vocab_size=61, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=256,
        num_codebooks=4, sliding_window=12, max_position_embeddings=64, audio_bos_token_id=32, audio_pad_token_id=61 + 4 * 33,
        bos_token_id=60, codec_config={"model_type": "mimi", **MIMI}, attn_implementation="eager",
    )  # fmt: skip
    model = fill(KyutaiSpeechToTextForConditionalGeneration(config), 920)
    with torch.no_grad():
        # As in files made from Kyutai's: rows that the model was not trained with are zero.
        model.lm_head.weight[-1] = 0
        model.model.embed_tokens.embed_tokens.weight[-1] = 0
    folder = case(root, "transformers_stt")
    g = torch.Generator().manual_seed(921)
    heard = torch.randint(0, 32, (4, FRAMES), generator=g)
    record = {}

    def forward(inputs):
        mask = torch.ones(1, inputs.shape[1], dtype=torch.long)
        out = model.model(input_ids=inputs.T[None], attention_mask=mask, use_cache=False)
        record["hidden"], record["text_logits"] = out.last_hidden_state, model.lm_head(out.last_hidden_state)[..., :60]
        return int(record["text_logits"][0, -1].argmax()), []

    with torch.no_grad():
        inputs, text, _ = greedy(forward, torch.tensor([60, 32, 32, 32, 32]), heard, FRAMES)
    save_transformers(model, folder)
    dump(folder / "preprocessor_config.json", {
        "feature_extractor_type": "KyutaiSpeechToTextFeatureExtractor", "audio_delay_seconds": 0.5,
        "audio_silence_prefix_seconds": 0.0, "sampling_rate": 24000,
    })  # fmt: skip
    save_file({"inputs": inputs, "text": text, **{k: v.contiguous() for k, v in record.items()}}, folder.parent / "expect.safetensors")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    make_kyutai(out)
    make_moshi(out)
    make_stt(out)


if __name__ == "__main__":
    main()
