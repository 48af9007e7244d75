"""Checks of converted checkpoints: goldens of every source format, and those of the family that are files in another layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import golden_lm
import mlx.core as mx
import numpy as np
from golden_lm import DEPTH_TOL, TEXT_TOL, close, equal, read
from golden_lora import AUDIO_TOL
from mlx.utils import tree_flatten
from moshi_mlx.convert.__main__ import main
from moshi_mlx.convert.formats import open_weights
from moshi_mlx.convert.place import CheckedFolder
from moshi_mlx.quantize.__main__ import main as quantize

from moshi_mlx.checkpoint import Loader
from moshi_mlx.checkpoint.files import locate
from moshi_mlx.engine.forward import forward
from moshi_mlx.models.lm import Lm

# Formats that hold fewer bits than they were made from cannot be written back.
LOSSY = ("int8", "int8_packed", "gguf", "finetune")


def convert(source: Path, destination: Path, *flags: str) -> Path:
    assert main([str(source), str(destination), *flags]) == 0
    return destination


def load(folder: Path, **options) -> Lm:
    """The model of a converted folder, as every command loads it."""
    return Loader(locate(folder), dtype=mx.float32, with_codec=False, **options).load().lm


def stored(folder: Path) -> dict[str, mx.array]:
    """All tensors of a source, whatever its format."""
    folder = folder / "consolidated" if (folder / "consolidated").is_dir() else folder
    tensors = open_weights(CheckedFolder(folder).weights()[0])
    return {name: tensors.array(name) for name in tensors}


def check_format(case: Path, tmp: Path) -> None:
    """One golden of `convert/`: the original's logits and tokens, and the way back bit for bit."""
    made = convert(case / "source", tmp / "mlx", "--dtype", "f32", "--verify")
    lm, data = load(made), read(case / "expect.safetensors")
    if "inputs" in data:
        check_greedy(lm, data)
        check_as_it_is(case / "source", made, data)
        check_way_back(case, made, tmp, "transformers")
    else:
        check_teacher_forced(lm, data)
        if case.name not in LOSSY:
            check_way_back(case, made, tmp, "pytorch")


def check_as_it_is(source: Path, made: Path, data: dict[str, np.ndarray]) -> None:
    """A folder of transformers loads without being converted: the original's run, and the codec of the converted folder."""
    direct, converted = (Loader(locate(folder), dtype=mx.float32).load() for folder in (source, made))
    check_greedy(direct.lm, data)
    assert_same(*(dict(tree_flatten(loaded.mimi.parameters())) for loaded in (direct, converted)))


def check_teacher_forced(lm: Lm, data: dict[str, np.ndarray]) -> None:
    """Logits of given codes, and what greedy sampling would choose at every step."""
    out = forward(lm, mx.array(data["codes"].astype(np.int32)))
    close("text logits", out.text_logits, data["text_logits"], TEXT_TOL)
    close("audio logits", out.audio_logits, data["audio_logits"], DEPTH_TOL)
    equal("text tokens", _argmax(out.text_logits), _argmax(data["text_logits"]))
    equal("audio tokens", _argmax(out.audio_logits), _argmax(data["audio_logits"]))


def _argmax(logits) -> np.ndarray:
    return np.nan_to_num(np.asarray(logits, np.float32), nan=-np.inf).argmax(-1)


def check_greedy(lm: Lm, data: dict[str, np.ndarray]) -> None:
    """The original's own run, longer than its window: hidden states, logits, and every token it chose."""
    inputs = mx.array(data["inputs"].astype(np.int32))[None]
    hidden = lm.out_norm(lm.transformer.forward(lm.embed(inputs)))
    close("hidden", hidden, data["hidden"], TEXT_TOL)
    text = lm.text_linear(hidden)
    close("text logits", text, data["text_logits"], TEXT_TOL)
    equal("text tokens", _argmax(text)[0], data["text"])
    if not lm.dep_q:
        return
    chosen: list[mx.array] = []

    def choose(k: int, logits: mx.array) -> mx.array:
        chosen.append(logits)
        return mx.argmax(logits, axis=-1)

    lm.depformer(hidden[0][:, None], mx.array(data["text"].astype(np.int32)), choose)
    depth = mx.stack(chosen, axis=1)
    close("depth logits", depth, data["depth_logits"], DEPTH_TOL)
    equal("audio tokens", _argmax(depth), data["audio"])


def check_way_back(case: Path, made: Path, tmp: Path, layout: str) -> None:
    """The numbers of the source come back bit for bit under the names of the original program."""
    half = convert(case / "source", tmp / "half")
    back = convert(half, tmp / layout, "--to", layout)
    assert_same(stored(back), published(case, tmp, layout))


def published(case: Path, tmp: Path, layout: str) -> dict[str, mx.array]:
    """The source's tensors under the published names of its layout."""
    if layout == "transformers":
        return stored(case / "source")
    return stored(convert(case / "source", tmp / "published", "--to", "pytorch"))


def assert_same(a: dict[str, mx.array], b: dict[str, mx.array]) -> None:
    assert sorted(a) == sorted(b), sorted(set(a) ^ set(b))[:6]
    for name, x in a.items():
        assert x.dtype == b[name].dtype and x.shape == b[name].shape, f"{name}: {x.dtype} {x.shape}"
        assert mx.array_equal(x, b[name]).item(), f"{name} differs"


# Family -----------------------------------------------------------------------------------------------------------


def check_text_model(case: Path, tmp: Path) -> None:
    """Helium in the layouts of transformers: logits, a greedy continuation, and the way back."""
    run = json.loads((case / "run.json").read_text())
    source = only(case, tmp, "config.json", "model.safetensors")
    lm = load(convert(source, tmp / "mlx", "--verify"))
    prompt = mx.array([run["prompt"]])
    close("logits", lm(prompt)[0], read(case / "logits.safetensors")["logits"], TEXT_TOL)
    tokens = list(run["prompt"])
    for _ in run["greedy_continuation"]:
        tokens.append(int(mx.argmax(lm(mx.array([tokens]))[0, -1]).item()))
    equal("continuation", tokens[len(run["prompt"]) :], run["greedy_continuation"])
    ours = case / "kyutai_mlx_layout.safetensors"
    if ours.exists():
        assert_same(stored(tmp / "mlx"), dict(mx.load(str(ours))))
    assert_same(stored(convert(tmp / "mlx", tmp / "back", "--to", "transformers")), stored(source))


def only(case: Path, tmp: Path, *names: str) -> Path:
    folder = tmp / "source"
    folder.mkdir()
    for name in names:
        shutil.copy(case / name, folder / name)
    return folder


def check_adapter(case: Path, tmp: Path) -> None:
    """An adapter merged into its base gives the numbers and the logits of the original's merge."""
    source = only(case, tmp, "config.json")
    shutil.copy(case / "base.safetensors", source / "model.safetensors")
    made = convert(source, tmp / "mlx", "--lora", str(case / "lora.safetensors"))
    back = stored(convert(made, tmp / "pytorch", "--to", "pytorch"))
    fused = dict(mx.load(str(case / "fused.safetensors")))
    assert sorted(back) == sorted(fused)
    for name, x in back.items():
        close(name, x, fused[name], 5e-6)
    check_io(load(made), read(case / "io.safetensors"), "adapted")
    check_io(load(convert(source, tmp / "base")), read(case / "io.safetensors"), "base")


def check_io(lm: Lm, data: dict[str, np.ndarray], which: str) -> None:
    out = forward(lm, mx.array(data["codes"].astype(np.int32))[None])
    close(f"{which} text", out.text_logits[0, 0], data[f"{which}.text_logits"], TEXT_TOL)
    ours, expected = mx.where(mx.isnan(out.audio_logits), 0, out.audio_logits)[0], data[f"{which}.audio_logits"]
    close(f"{which} audio", ours, expected, AUDIO_TOL * np.abs(expected).max())


def check_personaplex(case: Path, tmp: Path) -> None:
    """Depth steps nobody hears are left out by default, and what is left is what the whole file says."""
    source = only(case, tmp, "config.json", "model.safetensors", "tiny_voice.pt")
    whole = stored(source)
    short = convert(source, tmp / "short")
    lm, config = load(short), json.loads((short / "config.json").read_text())
    assert (lm.dep_q, lm.n_q, config["dep_q"], config["model_type"]) == (8, 16, 8, "personaplex")
    back = stored(convert(short, tmp / "pytorch", "--to", "pytorch"))
    for name, x in back.items():
        assert mx.array_equal(x, whole[name][: x.shape[0]]).item(), name
    kept = convert(source, tmp / "kept", "--keep-user-codebooks")
    assert json.loads((kept / "config.json").read_text())["dep_q"] == 16
    assert_same(stored(convert(kept, tmp / "whole", "--to", "pytorch", "--keep-user-codebooks")), whole)
    a, b = load(short), load(kept)
    codes = mx.array(np.random.default_rng(0).integers(0, 400, (1, 17, 12)).astype(np.int32))
    x, y = forward(a, codes), forward(b, codes)
    assert mx.array_equal(x.text_logits_delayed, y.text_logits_delayed)
    assert mx.array_equal(x.audio_logits_delayed, y.audio_logits_delayed[:, :8])
    voice = convert(source / "tiny_voice.pt", tmp / "voice")
    expected = mx.load(str(case / "tiny_voice.safetensors"))
    for name, value in mx.load(str(voice / "tiny_voice.safetensors")).items():
        assert mx.array_equal(value, expected[name].astype(value.dtype)), name


def check_codec(case: Path, tmp: Path) -> None:
    """The codec in the layout of transformers gives Kyutai's file bit for bit, and back."""
    made = convert(case / "hf", tmp / "kyutai")
    name = next(p.name for p in made.glob("*.safetensors"))
    assert_same(dict(mx.load(str(made / name))), dict(mx.load(str(case / "model.safetensors"))))
    back = convert(made, tmp / "hf", "--to", "transformers")
    assert_same(dict(mx.load(str(back / "model.safetensors"))), dict(mx.load(str(case / "hf" / "model.safetensors"))))


# Language models of Kyutai -----------------------------------------------------------------------------------------


def check_lm_run(run: Path, tmp: Path) -> None:
    """A model converted to the MLX layout and back to PyTorch's: the golden's run, and every number as it was."""
    case = run.parent.parent
    source = only(case, tmp, "config.json", "model.safetensors")
    made = convert(source, tmp / "mlx")
    golden_lm.check_run(load(made), run)
    assert_same(stored(convert(made, tmp / "pytorch", "--to", "pytorch")), stored(source))


def check_precisions(case: Path, tmp: Path) -> None:
    """The published MLX files, bf16, q8 and q4, come out of the PyTorch file bit for bit."""
    source = only(case, tmp, "config.json")
    shutil.copy(case / "pytorch.model.safetensors", source / "model.safetensors")
    made = convert(source, tmp / "mlx")
    assert_same(stored(made), dict(mx.load(str(case / "model.safetensors"))))
    for bits in (4, 8):
        packed = tmp / f"q{bits}"
        assert quantize([str(source), str(packed), "-q", str(bits)]) == 0
        name = f"model.q{bits}.safetensors"
        assert_same(dict(mx.load(str(packed / name))), dict(mx.load(str(case / name))))
        assert json.loads((packed / "config.json").read_text())["moshi_name"] == name
