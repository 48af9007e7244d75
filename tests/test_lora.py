"""Adapters: merged into dense weights, beside packed ones, and every file that does not fit refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import golden_lora
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from golden_lm import close, read
from mlx.utils import tree_flatten
from toy import make_lm

from moshi_mlx import checkpoint, run_inference
from moshi_mlx.checkpoint import files as checkpoint_files
from moshi_mlx.checkpoint import load_lm_file
from moshi_mlx.checkpoint.files import Overrides
from moshi_mlx.checkpoint.lora import AdaptedLinear, Adapter
from moshi_mlx.config.description import CheckpointConfig, as_personaplex
from moshi_mlx.engine.step import Step
from moshi_mlx.errors import CheckpointError, InputError
from moshi_mlx.models.lm import Lm
from moshi_mlx.modules.embedding import TokenEmbedding
from moshi_mlx.modules.matrix import Matrix
from moshi_mlx.modules.sampling import Sampler
from moshi_mlx.session import Session

CASES = Path(__file__).parent / "goldens" / "family"
GREEDY = Sampler(temp=0)


def make_adapter(path: Path, lm: Lm, seed: int = 0, rank: int = 3, names: str = "split") -> dict[str, mx.array]:
    """An adapter of every linear layer of `lm`, as moshi-finetune names them; `names` stacked: the older spelling."""
    rng = np.random.default_rng(seed)
    dep = lm.cfg.depformer
    tensors: dict[str, mx.array] = {}

    def add(name: str, weight: mx.array) -> None:
        rows, columns = weight.shape
        a, b = rng.standard_normal((rank, columns)), rng.standard_normal((rows, rank))
        tensors[f"{name}.lora_A.weight"] = mx.array((0.5 * a / columns**0.5).astype(np.float32))
        tensors[f"{name}.lora_B.weight"] = mx.array((0.7 * b / rank**0.5).astype(np.float32))

    for i, layer in enumerate(lm.transformer.layers):
        add(f"transformer.layers.{i}.self_attn.in_projs.0", layer.self_attn.in_proj.weight)
        add(f"transformer.layers.{i}.self_attn.out_projs.0", layer.self_attn.out_proj.weight)
        add(f"transformer.layers.{i}.gating.linear_in", layer.gating.linear_in.weight)
        add(f"transformer.layers.{i}.gating.linear_out", layer.gating.linear_out.weight)
    add("text_linear", lm.text_linear.weight)
    for k, part in enumerate(lm.depformer.slices):
        add(f"linears.{k}", part.linear_out.weight)
        w = dep.weight_sets[k]
        if dep.weight_sets.index(w) != k:
            continue
        add(f"depformer_in.{w}", part.linear_in.weight)
        for i, layer in enumerate(part.transformer.layers):
            add(f"depformer.layers.{i}.self_attn.in_projs.{w}", layer.self_attn.in_proj.weight)
            add(f"depformer.layers.{i}.self_attn.out_projs.{w}", layer.self_attn.out_proj.weight)
            add(f"depformer.layers.{i}.gating.{w}.linear_in", layer.gating.linear_in.weight)
            add(f"depformer.layers.{i}.gating.{w}.linear_out", layer.gating.linear_out.weight)
    if names == "stacked":
        sets = range(max(dep.weight_sets) + 1)
        for prefix, count in (("transformer", [0]), ("depformer", sets)):
            for i in range(len(lm.transformer.layers if prefix == "transformer" else part.transformer.layers)):
                for side in ("in", "out"):
                    for end in ("lora_A", "lora_B"):
                        base = f"{prefix}.layers.{i}.self_attn.{side}_proj"
                        parts = [tensors.pop(f"{base}s.{w}.{end}.weight") for w in count]
                        tensors[f"{base}.{end}.weight"] = mx.concatenate(parts)
    mx.save_safetensors(str(path), tensors)
    return tensors


def greedy_tokens(lm: Lm, compile: bool = False, steps: int = 8, generated: int | None = None) -> np.ndarray:
    """Text and audio tokens of a few steps with imposed user codes."""
    step = Step(lm, GREEDY, GREEDY, generated=generated, compile=compile)
    state = step.init_state([0], 16)
    rng = np.random.default_rng(3)
    out = []
    for _ in range(steps):
        given = mx.array(rng.integers(0, lm.cfg.card, (1, step.clock.given)).astype(np.int32))
        state, o = step.run(state, given)
        out.append(np.concatenate([np.array(o.text), np.array(o.audio)[0]]))
    return np.array(out)


def packed_copy(case: Path, folder: Path, bits: int, group: int) -> Path:
    """The base of a golden in the MLX layout, packed where it can be."""
    lm = golden_lora.load(case, "base")
    nn.quantize(
        lm, group, bits, class_predicate=lambda p, m: hasattr(m, "to_quantized") and m.weight.shape[-1] % group == 0
    )
    path = folder / "packed.safetensors"
    mx.save_safetensors(str(path), dict(tree_flatten(lm.parameters())))
    return path


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("case", ["lora", "lora_ft_embed"])
def test_packed_weights_are_adapted_exactly(tmp_path, case, bits):
    """Against dense float32 weights made by hand: what is packed, unpacked, plus scaling * B A."""
    folder = CASES / case
    data = read(folder / "io.safetensors")
    config = CheckpointConfig.from_dict(json.loads((folder / "config.json").read_text()))
    packed = packed_copy(folder, tmp_path, bits, 32)
    lm, plain = Lm(config.lm), Lm(config.lm)
    adapter = Adapter(folder / "lora.safetensors", config.lm, config.lora_scaling)
    load_lm_file(lm, packed, dtype=mx.float32, adapter=adapter)
    load_lm_file(plain, packed, dtype=mx.float32)

    expected = golden_lora.load(folder, "base")
    tensors = {k: np.array(v) for k, v in mx.load(str(folder / "lora.safetensors")).items()}
    modules = dict(plain.named_modules())
    found = 0
    for path, module in dict(expected.named_modules()).items():
        if "weight" not in module or "norm" in path:
            continue
        weight = np.array(Matrix.of(modules[path]).rows(mx.arange(module.weight.shape[0]), mx.float32))
        name = published_name(path, config)
        if f"{name}.lora_A.weight" in tensors:
            weight = weight + config.lora_scaling * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
            found += 1
        if f"{name}.weight" in tensors:
            weight = tensors[f"{name}.weight"]
        module.weight = mx.array(weight)
    assert found == len(adapter.pairs)
    for name, a, b in zip(
        ("text", "audio"),
        golden_lora.logits(lm, data["codes"]),
        golden_lora.logits(expected, data["codes"]),
        strict=True,
    ):
        close(f"{case} {bits} {name}", a, b, golden_lora.AUDIO_TOL * np.abs(b).max())
    before, _ = golden_lora.logits(plain, data["codes"])
    assert np.abs(before - golden_lora.logits(lm, data["codes"])[0]).max() > 0.1
    np.testing.assert_array_equal(greedy_tokens(lm), greedy_tokens(expected))
    np.testing.assert_array_equal(greedy_tokens(lm, compile=True), greedy_tokens(expected))


def published_name(path: str, config: CheckpointConfig) -> str:
    """The name moshi-finetune gives a module of ours, written down independently of the loader."""
    parts = path.split(".")
    if parts[:2] == ["depformer", "slices"]:
        k, rest = int(parts[2]), parts[3:]
        w = config.lm.depformer.weight_sets[k]
        if rest == ["linear_in"]:
            return f"depformer_in.{w}"
        if rest == ["linear_out"]:
            return f"linears.{k}"
        if rest == ["emb"]:
            return "depformer_text_emb" if k == 0 else f"depformer_emb.{k - 1}"
        layer, block, *leaf = rest[2:]
        if block == "gating":
            return f"depformer.layers.{layer}.gating.{w}.{leaf[0]}"
        return f"depformer.layers.{layer}.self_attn.{leaf[0]}s.{w}"
    if parts[0] == "audio_embs":
        return f"emb.{parts[1]}"
    if parts[-1] in ("in_proj", "out_proj"):
        return f"{path}s.0"
    return path


def test_what_becomes_of_packed_modules(tmp_path):
    config = CheckpointConfig.from_dict(json.loads((CASES / "lora_ft_embed" / "config.json").read_text()))
    lm = Lm(config.lm)
    adapter = Adapter(CASES / "lora_ft_embed" / "lora.safetensors", config.lm, 1.0)
    load_lm_file(lm, packed_copy(CASES / "lora_ft_embed", tmp_path, 8, 32), dtype=mx.bfloat16, adapter=adapter)
    assert isinstance(lm.transformer.layers[0].self_attn.in_proj, AdaptedLinear)
    assert lm.transformer.layers[0].self_attn.in_proj.lora_a.dtype == mx.bfloat16
    assert type(lm.text_emb) is TokenEmbedding
    assert type(lm.depformer.slices[0].linear_in) is nn.Linear
    assert adapter.rank == 2


def test_schedule_shares_and_old_spelling(tmp_path):
    """Slices of one depth set get one adapter and keep one array; the stacked spelling says the same as the split one."""
    lm = make_lm(dep_q=4, n_q=8, delays=[0] + [0, 1, 1, 1] * 2, depformer_weights_per_step_schedule=[0, 1, 1, 1])
    for part in lm.depformer.slices[2:]:
        part.update(lm.depformer.slices[1].parameters())
    mx.save_safetensors(str(tmp_path / "base.safetensors"), dict(tree_flatten(lm.parameters())))
    tokens = []
    for names in ("split", "stacked"):
        make_adapter(tmp_path / "lora.safetensors", lm, names=names)
        adapted = Lm(lm.cfg)
        adapter = Adapter(tmp_path / "lora.safetensors", lm.cfg, 0.5)
        load_lm_file(adapted, tmp_path / "base.safetensors", dtype=mx.float32, adapter=adapter)
        first, second = (adapted.depformer.slices[k].transformer.layers[0].self_attn.in_proj for k in (1, 2))
        assert first.weight is second.weight
        tokens.append(greedy_tokens(adapted))
    np.testing.assert_array_equal(*tokens)
    assert (tokens[0] != greedy_tokens(lm)).any()


def test_untrained_adapter_changes_nothing(tmp_path):
    lm = make_lm()
    tensors = make_adapter(tmp_path / "lora.safetensors", lm)
    zeroed = {k: mx.zeros_like(v) if "lora_B" in k else v for k, v in tensors.items()}
    mx.save_safetensors(str(tmp_path / "lora.safetensors"), zeroed)
    mx.save_safetensors(str(tmp_path / "base.safetensors"), dict(tree_flatten(lm.parameters())))
    adapted = Lm(lm.cfg)
    load_lm_file(
        adapted,
        tmp_path / "base.safetensors",
        dtype=mx.float32,
        adapter=Adapter(tmp_path / "lora.safetensors", lm.cfg, 2.0),
    )
    for (name, a), (_, b) in zip(tree_flatten(adapted.parameters()), tree_flatten(lm.parameters()), strict=True):
        assert mx.array_equal(a, b), name


def test_with_depth_steps_left_out(tmp_path):
    """An adapter of all depth steps of a model of which half are run (PersonaPlex): its other half is passed over."""
    full = make_lm(dep_q=6, delays=[0] + [0, 1, 1] * 2)
    make_adapter(tmp_path / "lora.safetensors", full)
    mx.save_safetensors(str(tmp_path / "base.safetensors"), dict(tree_flatten(full.parameters())))
    tokens = []
    for cfg in (as_personaplex(full.cfg), replace(as_personaplex(full.cfg), depformer=full.cfg.depformer)):
        lm = Lm(cfg)
        adapter = Adapter(tmp_path / "lora.safetensors", cfg, 0.5)
        load_lm_file(lm, tmp_path / "base.safetensors", dtype=mx.float32, adapter=adapter)
        tokens.append(greedy_tokens(lm, generated=3))
    np.testing.assert_array_equal(*tokens)


def refuse(tmp_path, change, message):
    lm = make_lm()
    tensors = make_adapter(tmp_path / "lora.safetensors", lm)
    change(tensors)
    mx.save_safetensors(str(tmp_path / "lora.safetensors"), tensors)
    with pytest.raises(CheckpointError, match=message):
        Adapter(tmp_path / "lora.safetensors", lm.cfg, 2.0)


def test_refusals(tmp_path):
    refuse(
        tmp_path,
        lambda t: t.update({"other.lora_A.weight": mx.zeros((3, 4)), "other.lora_B.weight": mx.zeros((4, 3))}),
        "no place for, other",
    )
    refuse(
        tmp_path,
        lambda t: t.pop("text_linear.lora_B.weight"),
        r"text_linear\.lora_A\.weight without text_linear\.lora_B",
    )
    refuse(
        tmp_path, lambda t: t.update({"text_linear.lora_A.weight": mx.zeros((3, 9))}), r"factors of text_linear\.weight"
    )
    refuse(
        tmp_path,
        lambda t: t.update({"text_linear.lora_A.weight": mx.zeros((2, 32))}),
        r"factors of text_linear\.weight",
    )
    refuse(
        tmp_path, lambda t: t.update({"emb.0.weight": mx.zeros((3, 3))}), r"audio_embs\.0\.weight should have the shape"
    )
    refuse(tmp_path, lambda t: t.update({"text_linear.lora_A.weight": mx.zeros((3, 32), mx.int32)}), "floating-point")
    lm = make_lm()
    make_adapter(tmp_path / "lora.safetensors", lm)
    with pytest.raises(InputError, match="finite number"):
        Adapter(tmp_path / "lora.safetensors", lm.cfg, float("nan"))


def test_damaged_values_are_told(tmp_path):
    lm = make_lm()
    tensors = make_adapter(tmp_path / "lora.safetensors", lm)
    tensors["text_linear.lora_A.weight"] = mx.full((3, 32), mx.nan)
    mx.save_safetensors(str(tmp_path / "lora.safetensors"), tensors)
    mx.save_safetensors(str(tmp_path / "base.safetensors"), dict(tree_flatten(lm.parameters())))
    with pytest.raises(CheckpointError, match="NaN or infinite values in text_linear"):
        load_lm_file(
            Lm(lm.cfg),
            tmp_path / "base.safetensors",
            dtype=mx.float32,
            adapter=Adapter(tmp_path / "lora.safetensors", lm.cfg, 2.0),
        )


@pytest.fixture
def adapter_folder(tiny_checkpoint, tmp_path) -> Path:
    """As moshi-finetune leaves it: lora.safetensors and config.json."""
    folder = tmp_path / "consolidated"
    folder.mkdir()
    loaded = checkpoint.load(tiny_checkpoint)
    make_adapter(folder / "lora.safetensors", loaded.lm)
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "lora": True, "lora_rank": 3, "lora_scaling": 0.25}))
    return folder


def test_found_and_scaled(tiny_checkpoint, adapter_folder, tmp_path):
    def scale_of(model=tiny_checkpoint, **overrides) -> float | None:
        files = checkpoint_files.locate(model, overrides=Overrides(**overrides))
        return None if files.lora is None else files.lora_scaling

    assert scale_of() is None
    assert scale_of(lora=str(adapter_folder)) == 0.25
    assert scale_of(lora=str(adapter_folder / "lora.safetensors")) == 0.25
    assert scale_of(lora=str(adapter_folder), lora_scale=1.5) == 1.5
    shutil.copy(adapter_folder / "lora.safetensors", tmp_path / "alone.safetensors")
    assert scale_of(lora=str(tmp_path / "alone.safetensors")) == 2.0
    # A whole checkpoint whose configuration speaks of its adapter.
    whole = shutil.copytree(tiny_checkpoint, tmp_path / "whole")
    shutil.copytree(adapter_folder, whole, dirs_exist_ok=True)
    assert scale_of(whole) == 0.25
    with pytest.raises(CheckpointError, match=r"the adapter .*nothing does not exist"):
        scale_of(lora=str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="name one with --lora"):
        scale_of(lora_scale=1.0)


def test_the_command_uses_it(tiny_checkpoint, adapter_folder, question, tmp_path, capsys):
    """Another reply with the adapter, the same without and at scale 0."""

    def reply(name: str, *more) -> bytes:
        run_inference.main(
            [
                str(question),
                str(tmp_path / name),
                "--model",
                str(tiny_checkpoint),
                "--greedy",
                "--no-compile",
                *map(str, more),
            ]
        )
        return (tmp_path / name).read_bytes()

    plain = reply("plain.wav")
    assert reply("zero.wav", "--lora", adapter_folder, "--lora-scale", 0) == plain
    assert reply("adapted.wav", "--lora", adapter_folder) != plain
    assert "adapter: " in capsys.readouterr().err


def test_a_session_uses_it(tiny_checkpoint, adapter_folder):
    plain, adapted = (
        Session.load(tiny_checkpoint, compile=False, **options)
        for options in ({}, {"lora": adapter_folder, "lora_scale": 1.0})
    )
    assert not mx.array_equal(plain.lm.text_linear.weight, adapted.lm.text_linear.weight)
