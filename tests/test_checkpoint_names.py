"""What people name as a checkpoint, and what is told before a device or the network is asked."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import pytest
from moshi_mlx.convert.__main__ import main as convert
from random_checkpoint import write

from moshi_mlx import local, run_inference, run_tts, stt
from moshi_mlx.bench import __main__ as bench
from moshi_mlx.checkpoint import hub, load, registry
from moshi_mlx.checkpoint.files import Overrides, locate
from moshi_mlx.checkpoint.layouts.kinds import kind_of, wrapper
from moshi_mlx.checkpoint.places import open_place
from moshi_mlx.config import CheckpointConfig
from moshi_mlx.config.presets import MIMI_NAME, MOSHI_NAME, TOKENIZER_NAME
from moshi_mlx.errors import CheckpointError, ConfigError, InputError, MoshiError
from moshi_mlx.machine.capacity import Capacity

ROOT = Path(__file__).resolve().parent.parent
QUESTION = str(ROOT / "examples" / "question.wav")


def rename(path: Path, change) -> None:
    mx.save_safetensors(str(path), {change(n): x for n, x in dict(mx.load(str(path))).items()})


# Prefixes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model.", "_orig_mod.module.model.", "generator.lm."])
def test_a_prefix_that_all_tensors_have_is_taken_off(tiny_copy, tmp_path, prefix):
    before = load(tiny_copy).lm.text_emb.weight
    rename(tiny_copy / "model.safetensors", lambda n: prefix + n)
    loaded = load(tiny_copy)
    assert mx.array_equal(loaded.lm.text_emb.weight, before).item()
    assert any(f"is called {prefix}*; it is read without the prefix" in note for note in loaded.notes)
    assert convert([str(tiny_copy), str(tmp_path / "made"), "--no-verify"]) == 0
    assert "text_emb.weight" in mx.load(str(tmp_path / "made" / "model.safetensors"))
    assert prefix in (tmp_path / "made" / "README.md").read_text()


def test_a_prefix_of_the_codec(tiny_copy, tmp_path):
    config = json.loads((tiny_copy / "config.json").read_text())
    rename(tiny_copy / config["mimi_name"], lambda n: "compression_model." + n)
    assert load(tiny_copy).mimi is not None
    assert convert([str(tiny_copy), str(tmp_path / "made"), "--no-verify"]) == 0
    assert kind_of(mx.load(str(tmp_path / "made" / config["mimi_name"]))) == "codec"


def test_a_prefix_in_shards_and_in_packed_files(tmp_path):
    write(tmp_path / "q", "tiny", 4, seed=1)
    rename(
        tmp_path / "q/model.safetensors"
        if (tmp_path / "q/model.safetensors").exists()
        else next((tmp_path / "q").glob("model*")),
        lambda n: "module." + n,
    )
    assert load(tmp_path / "q").precision == "affine 4 bit, group 32"


def test_names_that_are_no_prefix():
    assert wrapper(["model.embed_tokens.weight", "model.norm.weight"]) == ""
    assert wrapper(["text_emb.weight", "out_norm.weight"]) == ""
    assert wrapper(["a.b", "a.c"]) == ""
    assert wrapper([]) == ""
    assert wrapper(["x.text_emb.weight", "y.out_norm.weight"]) == ""


def test_tensors_under_a_prefix_beside_others_are_told(tiny_copy):
    tensors = {f"ema.{n}": x for n, x in dict(mx.load(str(tiny_copy / "model.safetensors"))).items()}
    mx.save_safetensors(str(tiny_copy / "model.safetensors"), {**tensors, "step": mx.zeros(1)})
    with pytest.raises(CheckpointError, match=r"A model is there under ema\.\*, which not all of its tensors have"):
        load(tiny_copy)


@pytest.mark.parametrize("how", ["missing", "unknown"])
def test_a_language_model_that_is_described_is_not_left_out(tiny_copy, tmp_path, how):
    """A folder whose codec alone can be found is no codec."""
    if how == "missing":
        (tiny_copy / "model.safetensors").unlink()
    else:
        rename(tiny_copy / "model.safetensors", lambda n: n.replace("text_emb", "words").replace("depformer", "deep"))
    with pytest.raises(MoshiError, match="(names the weights|of no known format)"):
        convert([str(tiny_copy), str(tmp_path / "made")])
    config = json.loads((tiny_copy / "config.json").read_text())
    del config["moshi_name"]
    (tiny_copy / "config.json").write_text(json.dumps(config))
    if how == "missing":
        with pytest.raises(MoshiError, match="describes a language model, but the only weights there are"):
            convert([str(tiny_copy), str(tmp_path / "made")])
    assert not (tmp_path / "made").exists()


def test_a_language_model_under_another_name_is_taken_and_told(tiny_copy, tmp_path, capsys):
    config = json.loads((tiny_copy / "config.json").read_text())
    (tiny_copy / "config.json").write_text(json.dumps({**config, "moshi_name": "weights.safetensors"}))
    assert convert([str(tiny_copy), str(tmp_path / "made")]) == 0
    assert "names the weights 'weights.safetensors', which are not there; model.safetensors" in capsys.readouterr().err
    assert (tmp_path / "made/model.safetensors").exists()


# What is named --------------------------------------------------------------------------------------------------------


def test_an_adapter_is_no_model(tmp_path):
    case = ROOT / "tests/goldens/family/lora"
    for name in ("config.json", "lora.safetensors"):
        shutil.copy(case / name, tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{tmp_path} is an adapter, not a model: give it with --lora"):
        locate(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="is an adapter, not a model"):
        locate(tmp_path)
    (tmp_path / "lora.safetensors").rename(tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="is an adapter, not a model"):
        locate(tmp_path)


def test_an_adapter_that_is_announced_and_not_there(tiny_copy):
    config = json.loads((tiny_copy / "config.json").read_text())
    (tiny_copy / "config.json").write_text(json.dumps({**config, "lora": True}))
    with pytest.raises(CheckpointError, match="an adapter belongs to the model .* Name it with --lora"):
        locate(tiny_copy)


def test_folders_and_repositories_are_told_apart(tmp_path, tiny_copy, monkeypatch):
    with pytest.raises(CheckpointError, match="no folder someone/thing; .* give it with --hf-repo someone/thing"):
        open_place("someone/thing")
    with pytest.raises(InputError, match="give a repository with --hf-repo"):
        open_place("hf://someone/thing")
    with pytest.raises(InputError, match="is a folder; give it with --model"):
        open_place(hf_repo=str(tiny_copy))
    monkeypatch.setenv("HOME", str(tiny_copy.parent))
    assert open_place(f"~/{tiny_copy.name}").find("config.json") == tiny_copy / "config.json"
    files = locate(
        f"~/{tiny_copy.name}",
        overrides=Overrides(tokenizer=f"~/{tiny_copy.name}/{locate(tiny_copy).config.tokenizer_name}"),
    )
    assert files.tokenizer is not None


SUPPOSED = "Without a config.json that describes the model it was taken for {}; name one with --lm-config"


def test_without_a_configuration(tiny_copy):
    (tiny_copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match=f"should have the shape .*{SUPPOSED.format('Moshi 7B')}"):
        load(tiny_copy, with_codec=False)
    # The published codec is looked for in the file of another.
    with pytest.raises(CheckpointError, match=SUPPOSED.format("Moshi 7B")):
        load(tiny_copy)


@pytest.mark.parametrize(
    ("kind", "name", "lacks"),
    [
        ("tokenizer", TOKENIZER_NAME, "lacks the tokenizer 'tokenizer_spm_32k_3.model'"),
        ("codec", MIMI_NAME, "lacks the codec 'tokenizer-e351c8d8-checkpoint125.safetensors'"),
        ("weights", MOSHI_NAME, "has no weights; expected model.safetensors or model.q8.safetensors"),
    ],
)
def test_what_is_looked_for_without_a_configuration(tiny_copy, kind, name, lacks, question):
    """The file that is asked for is another model's: the sentence says whose."""
    whole = (tiny_copy / "config.json").read_text()
    (tiny_copy / name).unlink()

    def run():
        if kind == "codec":
            bench.main(["--model", str(tiny_copy)])
        else:
            run_inference.main([str(question), "--model", str(tiny_copy)])

    for config, model in ((None, "Moshi 7B"), ({}, "Moshi 7B"), ({"model_type": "personaplex"}, "PersonaPlex 7B")):
        (tiny_copy / "config.json").unlink(missing_ok=True)
        if config is not None:
            (tiny_copy / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=f"{lacks}.*{SUPPOSED.format(model)}"):
            run()
    (tiny_copy / "config.json").write_text(whole)
    with pytest.raises(CheckpointError) as told:
        run()
    assert "Without a config.json" not in str(told.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "mimi.json", "README.md", "tokenizer"])
@pytest.mark.parametrize("target", ["gone", "itself"])
def test_a_link_that_leads_nowhere_is_told(tiny_copy, tmp_path, name, target):
    """What a cache that was cleaned up leaves. Without its configuration a folder would be taken for another model."""
    link = tiny_copy / json.loads((tiny_copy / "config.json").read_text()).get(f"{name}_name", name)
    link.unlink(missing_ok=True)
    link.symlink_to("gone" if target == "gone" else link.name)
    for run in (lambda: locate(tiny_copy), lambda: convert([str(tiny_copy), str(tmp_path / "made")])):
        with pytest.raises(MoshiError, match=f"{link.name} is a symbolic link that leads nowhere") as e:
            run()
        assert "\n" not in str(e.value)


def test_the_kind_of_a_folder_without_a_configuration(tiny_copy, question):
    (tiny_copy / "config.json").unlink()
    with pytest.raises(
        ConfigError, match=r"taken for Moshi 7B for want of a config\.json that describes it, is a dialogue model"
    ):
        stt.main([str(question), "--model", str(tiny_copy)])


def test_bookkeeping_is_passed_over(tiny_copy, tmp_path):
    config = json.loads((tiny_copy / "config.json").read_text())
    notes = {
        "torch_dtype": "bfloat16",
        "architectures": ["Moshi"],
        "tie_word_embeddings": False,
        "use_cache": True,
        "auto_map": {"a": "b"},
        "_commit_hash": "0",
        "id2label": {"0": "x"},
    }
    (tiny_copy / "config.json").write_text(json.dumps({**config, **notes}))
    assert load(tiny_copy).lm.dep_q == 8
    assert convert([str(tiny_copy), str(tmp_path / "made"), "--no-verify"]) == 0
    assert not set(notes) & set(json.loads((tmp_path / "made" / "config.json").read_text()))
    with pytest.raises(ConfigError, match="unknown key 'torch_dtypes'"):
        CheckpointConfig.from_dict({**config, "torch_dtypes": 1})


# Kinds ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("the network was asked")

    monkeypatch.setattr(hub, "download", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


WRONG = [
    (stt, [QUESTION, "--model", "moshiko"], "moshiko is a dialogue model; use python -m moshi_mlx.local. stt runs speech-to-text models, such as stt-1b"),
    (stt, [QUESTION, "--hf-repo", "kyutai/tts-1.6b-en_fr"], "is a text-to-speech model; use python -m moshi_mlx.run_tts"),
    (run_tts, ["Hello there.", "o.wav", "--model", "stt-2.6b"], "stt-2.6b is a speech-to-text model; use python -m moshi_mlx.stt"),
    (local, ["--model", "stt-1b"], "use python -m moshi_mlx.stt. local runs dialogue and translation models, such as moshiko"),
    (bench, ["--model", "stt-1b"], "bench runs dialogue"),
    (run_inference, [QUESTION, "o.wav", "--model", "helium"], "helium is a text model; use python -m moshi_mlx.run_helium"),
    (local, ["--hf-repo", "kyutai/stt-1b-en_fr-mlx"], "is a speech-to-text model"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "arguments", "message"), WRONG)
def test_a_model_of_the_wrong_kind_is_refused_before_the_network(no_network, module, arguments, message):
    with pytest.raises(InputError, match=message):
        module.main(arguments)


@pytest.mark.parametrize("module", [stt, run_tts, local, run_inference])
@pytest.mark.parametrize(
    "names",
    [
        ("--demo", "--model", "moshiko"),
        ("--model", "moshiko", "--demo"),
        ("--hf-repo", "a/b", "--demo"),
        ("--model", "demo", "--hf-repo", "a/b"),
    ],
)
def test_one_model_is_named(no_network, capsys, module, names):
    with pytest.raises(SystemExit) as ended:
        module.main([*((QUESTION, "o.wav") if module is not local else ()), *names])
    assert ended.value.code == 2 and f"not allowed with argument {names[0]}" in capsys.readouterr().err


def test_a_folder_of_the_wrong_kind_is_refused_before_its_weights(tmp_path):
    write(tmp_path / "stt", "tiny-stt", None, seed=1)
    for module, arguments in (
        (bench, ["--steps", "2"]),
        (run_inference, [QUESTION, str(tmp_path / "o.wav")]),
        (local, ["--input", QUESTION, "--output", str(tmp_path / "o.wav")]),
    ):
        with pytest.raises(ConfigError, match="is a speech-to-text model; use python -m moshi_mlx.stt"):
            module.main([*arguments, "--model", str(tmp_path / "stt")])
    assert not (tmp_path / "o.wav").exists()


def test_names_come_before_devices(monkeypatch):
    """Without a microphone and with a misspelled model, the model is told: it would be wrong on every machine."""
    monkeypatch.setattr("moshi_mlx.commands.local.make_sides", lambda *a, **k: pytest.fail("a device was asked"))
    with pytest.raises(CheckpointError, match=r"moshka is neither .* Did you mean moshika\?"):
        local.main(["--model", "moshka"])
    with pytest.raises(CheckpointError, match=r"nothing.safetensors does not exist"):
        local.main(["--demo", "--mimi-weights", "nothing.safetensors"])
    with pytest.raises(CheckpointError, match="Did you mean"):
        stt.main(["--model", "stt-1"])


# Precision ------------------------------------------------------------------------------------------------------------

GB = 10**9


@pytest.mark.parametrize(
    ("name", "memory", "bandwidth", "bits"),
    [
        ("moshiko", 48 * GB, 546, None),  # M4 Max
        ("moshiko", 24 * GB, 200, 8),  # M2 Pro
        ("moshiko", 24 * GB, 100, 4),  # M2: enough memory for more, too slow to read it
        ("moshiko", 6 * GB, 68, 4),  # M1 of 8 GB: nothing suits it
        ("personaplex", 48 * GB, 800, None),
        ("personaplex", 16 * GB, 273, 8),
        ("personaplex", 12 * GB, 100, 4),
        ("stt-1b", 6 * GB, 68, None),
        ("tts-1.6b", 12 * GB, 100, None),
        ("tts-1.6b", 12 * GB, None, None),
    ],
)
def test_the_precision_suits_the_machine(name, memory, bandwidth, bits):
    assert registry.suited(name, Capacity(memory, bandwidth, False)).bits == bits


def test_every_choice_fits_where_one_does():
    for memory in (5, 8, 12, 16, 24, 48, 96):
        for known in registry.ALL:
            machine = Capacity(memory * GB, None, False)
            best = registry.suited(known.name, machine)
            if any(p.suits(machine) for p in registry.precisions(known.name)):
                assert best.memory_bytes() <= memory * GB


def test_commands_take_what_suits(monkeypatch, capsys, tiny_checkpoint):
    asked = []

    def download(repo, name, *, optional=False):
        asked.append(repo)
        path = tiny_checkpoint / name
        return path if path.exists() else None

    monkeypatch.setattr(hub, "download", download)
    monkeypatch.setattr("moshi_mlx.commands.loading.capacity", lambda: Capacity(12 * GB, 100, False))
    for flags, repo in (
        ([], "kyutai/moshiko-mlx-q4"),
        (["-q", "8"], "kyutai/moshiko-mlx-q8"),
        (["-q", "16"], "kyutai/moshiko-mlx-bf16"),
        (["--model", "moshika"], "kyutai/moshika-mlx-q4"),
    ):
        asked.clear()
        if flags in ([], ["--model", "moshika"], ["-q", "8"]):
            # The tiny file in its place is dense, so it is packed.
            flags = [*flags, "--steps", "3", "--warmup", "1"]
        assert bench.main([*flags, "--steps", "3", "--warmup", "1", "--json"]) == 0
        assert set(asked) == {repo}
    assert (
        "moshika: 4 bit suits this machine, which has 12.0 GB and 100 GB/s for it (-q chooses)"
        in capsys.readouterr().err
    )


# No network -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    [
        ["run_inference", QUESTION, "/tmp/never.wav"],
        ["stt", QUESTION],
        ["run_tts", "Hello there.", "/tmp/never.wav"],
        ["voices", "--list", "--model", "personaplex"],
        ["run_helium", "The river"],
    ],
)
def test_without_a_network_one_sentence_soon(tmp_path, module):
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path),
        "HF_ENDPOINT": "https://no-such-host.invalid",
        "PYTHONPATH": "",
    }
    environment = {k: v for k, v in environment.items() if not k.lower().endswith("_proxy")}
    start = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-m", f"moshi_mlx.{module[0]}", *module[1:]],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert run.returncode == 1
    # The network may cost three seconds; retries took 27. The rest is for Python's start on a machine that is busy.
    assert time.monotonic() - start < 20
    errors = [line for line in run.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert "the Hub cannot be reached" in errors[0]
    assert "Retry" not in run.stderr


def test_a_host_that_never_answers(monkeypatch):
    """A name whose look-up hangs, and an address that drops what it is sent."""
    monkeypatch.setattr(hub, "SECONDS_TO_WAIT", 0.3)

    def drop(*_, **__):
        time.sleep(5)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", drop)
    hub.is_reachable.cache_clear()
    start = time.monotonic()
    assert not hub.is_reachable()
    assert time.monotonic() - start < 2
    hub.is_reachable.cache_clear()


def test_a_host_that_answers(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr("urllib.request.getproxies", dict)
        hub.is_reachable.cache_clear()
        assert hub.is_reachable()
    hub.is_reachable.cache_clear()
