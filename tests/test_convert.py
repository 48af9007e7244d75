"""The converter as a command: whole folders, interrupted runs, uploads, and what it says of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import golden_convert
import mlx.core as mx
import pytest
from golden_convert import assert_same, convert, load, stored
from moshi_mlx.convert import card, folder, hub_upload, stream, verify
from moshi_mlx.convert.__main__ import main
from moshi_mlx.convert.part_file import PartFile
from moshi_mlx.convert.source import Request, open_source

from moshi_mlx import run_inference
from moshi_mlx.checkpoint import Loader, hub
from moshi_mlx.checkpoint.files import locate
from moshi_mlx.config.presets import TOKENIZER_NAME
from moshi_mlx.errors import CheckpointError, InputError, OutputError

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture
def source(tmp_path) -> Path:
    """A small checkpoint in the published PyTorch layout, in two shards."""
    return Path(shutil.copytree(GOLDENS / "convert" / "pytorch_shards" / "source", tmp_path / "source"))


@pytest.fixture
def complete(tiny_checkpoint, tmp_path) -> Path:
    """A PyTorch checkpoint with codec and tokenizer and a licence."""
    made = convert(tiny_checkpoint, tmp_path / "complete", "--to", "pytorch")
    (made / "README.md").write_text("---\nlicense: cc-by-4.0\n---\nA model.\n")
    return made


# Whole folders ----------------------------------------------------------------------------------------------------


def test_a_converted_folder_runs(complete, tmp_path, question, capfd):
    made = convert(complete, tmp_path / "made")
    config = json.loads((made / "config.json").read_text())
    assert {"moshi_name", "mimi_name", "tokenizer_name", "mimi_config_name", "model_type", "dim", "source"} <= set(
        config
    )
    assert config["source"] == {"name": "complete", "format": "Kyutai PyTorch, BF16", "licence": "cc-by-4.0"}
    told = capfd.readouterr().err
    assert "differ by at most: text logits 0, audio logits 0" in told
    # What was written, not what was kept free for it.
    assert f"({sum(p.stat().st_size for p in made.iterdir()) / 1e6:.1f} MB)\n" in told.split("wrote ")[-1]
    assert run_inference.main([str(question), str(tmp_path / "reply.wav"), "--model", str(made), "--greedy"]) == 0
    assert (tmp_path / "reply.wav").stat().st_size > 10_000
    assert not list(tmp_path.glob(".*part"))


def test_both_ways_the_files_are_the_same(tiny_checkpoint, complete, tmp_path):
    """MLX to PyTorch and back: numbers, codec and tokenizer bit for bit."""
    made = convert(complete, tmp_path / "made")
    for name in ("model.safetensors",):
        assert_same(dict(mx.load(str(made / name))), dict(mx.load(str(tiny_checkpoint / name))))
    for name in ("tokenizer-e351c8d8-checkpoint125.safetensors", "tokenizer_spm_32k_3.model"):
        assert (made / name).read_bytes() == (tiny_checkpoint / name).read_bytes(), name


def test_through_transformers_and_back(tiny_checkpoint, tmp_path):
    hf = convert(tiny_checkpoint, tmp_path / "hf", "--to", "transformers")
    config = json.loads((hf / "config.json").read_text())
    assert (config["architectures"], config["num_codebooks"]) == (["MoshiForConditionalGeneration"], 8)
    assert {p.name for p in hf.iterdir()} == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    back = convert(hf, tmp_path / "back")
    assert_same(
        dict(mx.load(str(back / "model.safetensors"))), dict(mx.load(str(tiny_checkpoint / "model.safetensors")))
    )
    codec = "tokenizer-e351c8d8-checkpoint125.safetensors"
    assert_same(dict(mx.load(str(back / codec))), dict(mx.load(str(tiny_checkpoint / codec))))
    a, b = (Loader(locate(f)).load().tokenizer for f in (tiny_checkpoint, back))
    for text in ("babi bofu", "x 12", ""):
        assert a.encode(text) == b.encode(text)


def test_the_card_says_where_it_comes_from(complete, tmp_path):
    text = (convert(complete, tmp_path / "made") / "README.md").read_text()
    assert text.startswith(
        "---\nlicense: cc-by-4.0\nlibrary_name: mlx\npipeline_tag: audio-to-audio\ntags:\n- mlx\n- moshi\n- speech-to-speech\n"
        "- full-duplex\n---\n# made\n"
    )
    # Nobody's folders.
    assert str(tmp_path) not in text
    for part in (
        "| source | complete |",
        "| licence | cc-by-4.0 |",
        "Kyutai PyTorch, BF16",
        "python -m moshi_mlx.convert ",
    ):
        assert part in text
    assert "    python -m moshi_mlx.convert complete made\n" in text


@pytest.mark.parametrize(
    ("preset", "task", "command"),
    [
        ("tiny-stt", "automatic-speech-recognition", "moshi_mlx.stt talk.wav --model PATH"),
        ("tiny-tts", "text-to-speech", "moshi_mlx.run_tts"),
        ("tiny-hibiki", "audio-to-audio", "moshi_mlx.local --model PATH"),
    ],
)
def test_cards_of_other_kinds(tmp_path, preset, task, command):
    from random_checkpoint import write

    write(tmp_path / "from", preset, None, seed=1)
    made = convert(tmp_path / "from", tmp_path / "made", "--no-verify", f"--tokenizer={tmp_path}/from/{TOKENIZER_NAME}")
    text = (made / "README.md").read_text()
    assert f"pipeline_tag: {task}" in text
    assert command in text
    assert str(tmp_path) not in text + (made / "config.json").read_text()
    assert f"--tokenizer={TOKENIZER_NAME}" in text


def test_the_card_of_a_repository_names_it():
    from moshi_mlx.convert import card
    from moshi_mlx.convert.source import Source

    source = Source("kyutai/moshiko-mlx-bf16", "MLX", licence="NVIDIA Open Model License", revision="0" * 40)
    text = card.write(
        source,
        "mlx",
        ["python", "kyutai/moshiko-mlx-bf16", "/home/me/out", "~/x", "--lora=/a/b.safetensors"],
        {},
        "t",
        quantized=True,
    )
    assert (
        "license: other\nlicense_name: nvidia-open-model-license\nbase_model: kyutai/moshiko-mlx-bf16\nbase_model_relation: quantized\n"
        in text
    )
    assert "python kyutai/moshiko-mlx-bf16 out x --lora=b.safetensors" in text


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("../me/out/", "out"), ("file:///home/me/x.safetensors", "x.safetensors"), ("--lora=~/me/a b.safetensors", "'--lora=a b.safetensors'"),
        ("--tokenizer=./me/t.model", "--tokenizer=t.model"), ("hf://owner/repo/a/b", "hf://owner/repo/a/b"), ("owner/other", "other"), ("-q", "-q"),
    ],
)  # fmt: skip
def test_a_card_shows_nobody_s_folders(typed, shown):
    from moshi_mlx.convert import card
    from moshi_mlx.convert.source import Source

    assert card.public_command([typed], Source("owner/repo", "MLX", revision="0" * 40)) == shown


def test_types(source, tmp_path):
    for flag, dtype in (("f32", mx.float32), ("f16", mx.float16), ("bf16", mx.bfloat16)):
        made = stored(convert(source, tmp_path / flag, "--dtype", flag))
        assert {x.dtype for x in made.values()} == {dtype}
    assert {x.dtype for x in stored(convert(source, tmp_path / "kept")).values()} == {mx.bfloat16}


def test_conditioners_keep_their_type(tmp_path):
    made = stored(convert(_only("lut_cfg", tmp_path), tmp_path / "made", "--dtype", "bf16"))
    kinds = {name.split(".")[0]: x.dtype for name, x in made.items()}
    assert kinds["condition_provider"] == mx.float32
    assert kinds["transformer"] == mx.bfloat16


def _only(case: str, tmp: Path) -> Path:
    return golden_convert.only(GOLDENS / "lm" / case, tmp, "config.json", "model.safetensors")


def test_single_files_and_short_notices(source, tmp_path, capfd):
    """One file with its configuration beside it; what is missing is said."""
    whole = convert(source, tmp_path / "whole")
    made = convert(whole / "model.safetensors", tmp_path / "made")
    assert_same(stored(made), stored(whole))
    said = capfd.readouterr().err
    assert "note: there is no codec here" in said
    assert "note: there is no tokenizer here" in said


def test_files_given_by_hand(source, tiny_checkpoint, tmp_path):
    from random_checkpoint import write_tokenizer

    write_tokenizer(tmp_path / "t.model", 60)
    codec = tiny_checkpoint / "tokenizer-e351c8d8-checkpoint125.safetensors"
    config = {**json.loads((source / "config.json").read_text()), "mimi_config_name": "mimi.json"}
    (source / "config.json").write_text(json.dumps(config))
    shutil.copy(tiny_checkpoint / "mimi.json", source / "mimi.json")
    made = convert(source, tmp_path / "made", "--mimi-weights", str(codec), "--tokenizer", str(tmp_path / "t.model"))
    assert {p.name for p in made.iterdir()} >= {codec.name, "t.model", "mimi.json"}
    assert json.loads((made / "config.json").read_text())["tokenizer_name"] == "t.model"


def test_a_known_model_without_config(tmp_path, monkeypatch):
    """A file without config.json is told by its shapes."""
    from moshi_mlx.convert import language_model

    source = _only("plain", tmp_path)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").unlink()
    with pytest.raises(Exception, match=r"its shapes are not those of Moshi 7B, .*--lm-config"):
        main([str(source), str(tmp_path / "no")])
    monkeypatch.setitem(language_model.KNOWN, "a small Moshi", config)
    made = convert(source, tmp_path / "made")
    assert json.loads((made / "config.json").read_text())["dim"] == config["dim"]
    assert "its shapes are those of a small Moshi" in (made / "README.md").read_text()


def test_an_adapter_that_the_configuration_names_is_merged(tmp_path):
    case = GOLDENS / "family" / "lora"
    source = golden_convert.only(case, tmp_path, "config.json")
    shutil.copy(case / "base.safetensors", source / "model.safetensors")
    shutil.copy(case / "lora.safetensors", source / "lora.safetensors")
    made = convert(source, tmp_path / "made")
    config = json.loads((made / "config.json").read_text())
    assert not {"lora", "lora_rank", "lora_scaling"} & set(config)
    golden_convert.check_io(load(made), golden_convert.read(case / "io.safetensors"), "adapted")


def test_the_scale_of_an_adapter(tmp_path, capsys):
    """Zero leaves the base as it is; a flag goes before what the adapter's folder says."""
    case = GOLDENS / "family" / "lora"
    source = golden_convert.only(case, tmp_path, "config.json")
    shutil.copy(case / "base.safetensors", source / "model.safetensors")
    base = stored(convert(source, tmp_path / "base"))
    assert "speaks of an adapter ('lora') that is not there" in capsys.readouterr().err
    none = stored(convert(source, tmp_path / "none", "--lora", str(case / "lora.safetensors"), "--lora-scale", "0"))
    assert_same(base, none)


def test_voices_come_along(tmp_path):
    """A folder of PersonaPlex with its voices, as files and as an archive."""
    case = GOLDENS / "family" / "personaplex"
    source = golden_convert.only(case, tmp_path, "config.json", "model.safetensors")
    (source / "voices").mkdir()
    shutil.copy(case / "tiny_voice.pt", source / "voices" / "NATF0.pt")
    made = convert(source, tmp_path / "made")
    assert sorted(mx.load(str(made / "voices" / "NATF0.safetensors"))) == ["cache", "embeddings"]
    shutil.make_archive(str(tmp_path / "voices"), "gztar", source, "voices")
    archive = (tmp_path / "voices.tar.gz").rename(tmp_path / "voices.tgz")
    alone = convert(archive, tmp_path / "alone")
    assert (alone / "NATF0.safetensors").read_bytes() == (made / "voices" / "NATF0.safetensors").read_bytes()
    folder_alone = convert(source / "voices", tmp_path / "folder")
    assert (folder_alone / "NATF0.safetensors").exists()


# Interrupted runs -------------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(monkeypatch):
    """Stops writing after some tensors, and counts those written."""

    class Counter:
        def __init__(self):
            self.left, self.written = None, []

    counter, original = Counter(), PartFile.write

    def write(self, name, data):
        if counter.left is not None and not counter.left:
            raise KeyboardInterrupt
        counter.left = None if counter.left is None else counter.left - 1
        counter.written.append(name)
        original(self, name, data)

    monkeypatch.setattr(PartFile, "write", write)
    return counter


def test_an_interrupted_run_goes_on_where_it_stopped(source, tmp_path, interrupted):
    whole = convert(source, tmp_path / "whole")
    total = len(interrupted.written)
    interrupted.left, interrupted.written = 9, []
    with pytest.raises(KeyboardInterrupt):
        main([str(source), str(tmp_path / "made")])
    assert not (tmp_path / "made").exists()
    part = tmp_path / ".made.part"
    assert not (part / "model.safetensors").exists()
    assert not (part / "config.json").exists()
    interrupted.left, interrupted.written = None, []
    made = convert(source, tmp_path / "made")
    assert len(interrupted.written) == total - 9
    assert (made / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert {p.name for p in made.iterdir()} == {p.name for p in whole.iterdir()}
    assert not part.exists()


def test_what_is_finished_is_not_written_again(complete, tmp_path, interrupted, monkeypatch):
    """Stopped after the weights, as in a long comparison: only small files are left to do."""

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(card, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            main([str(complete), str(tmp_path / "made")])
    assert not (tmp_path / "made").exists()
    assert interrupted.written
    interrupted.written = []
    made = convert(complete, tmp_path / "made")
    assert interrupted.written == []
    whole = convert(complete, tmp_path / "whole")
    for path in whole.iterdir():
        if path.suffix != ".md":
            assert (made / path.name).read_bytes() == path.read_bytes(), path.name


def test_another_configuration_starts_anew(source, tmp_path, interrupted):
    """The same tensors mean something else: nothing of the earlier run is kept."""
    interrupted.left = 9
    with pytest.raises(KeyboardInterrupt):
        main([str(source), str(tmp_path / "made")])
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "max_period": 20000}))
    interrupted.left, interrupted.written = None, []
    made = convert(source, tmp_path / "made")
    assert len(interrupted.written) == len(stored(made))
    assert json.loads((made / "config.json").read_text())["max_period"] == 20000


def test_another_job_starts_anew(source, tmp_path, interrupted):
    interrupted.left = 9
    with pytest.raises(KeyboardInterrupt):
        main([str(source), str(tmp_path / "made")])
    interrupted.left, interrupted.written = None, []
    made = convert(source, tmp_path / "made", "--dtype", "f32")
    assert {x.dtype for x in stored(made).values()} == {mx.float32}
    assert len(interrupted.written) == len(stored(made))


def test_a_source_that_changed_is_read_again(source, tmp_path, interrupted):
    interrupted.left = 9
    with pytest.raises(KeyboardInterrupt):
        main([str(source), str(tmp_path / "made")])
    shard = source / "model-00001-of-00002.safetensors"
    os.utime(shard, ns=(1, 1))
    interrupted.left, interrupted.written = None, []
    made = convert(source, tmp_path / "made")
    assert len(interrupted.written) == len(stored(made))


KILLED = {
    # What dies: (object, its method, after so many calls)
    "in the middle of the file": ("part_file.PartFile", "write", 12),
    "before the file gets its name": ("part_file.PartFile", "commit", 0),
    "before the folder gets its name": ("folder", "rename", 0),
}


@pytest.mark.parametrize("case", KILLED)
def test_a_killed_process_leaves_nothing_finished(source, tmp_path, case):
    """SIGKILL; only what was made safe on the disk is trusted."""
    place, method, calls = KILLED[case]
    script = f"""
import os, signal, sys
from moshi_mlx.convert import folder, part_file
from moshi_mlx.convert.__main__ import main
part_file.CHECKPOINT_BYTES = 20_000
original, count = {place}.{method}, [0]
def die(*given):
    count[0] += 1
    if count[0] > {calls}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*given)
{place}.{method} = die
main(sys.argv[1:])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(source), str(tmp_path / "made")], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "made").exists()
    if method == "write":
        record = json.loads((tmp_path / ".made.part" / ".model.safetensors.done").read_text())
        assert 0 < record["tensors"] <= 12
    whole = convert(source, tmp_path / "whole")
    made = convert(source, tmp_path / "made")
    assert (made / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert {p.name for p in made.iterdir()} == {p.name for p in whole.iterdir()}


def test_a_terminated_run_can_be_continued(source, tmp_path, monkeypatch):
    def stop(self, name, data):
        raise SystemExit(143)

    with monkeypatch.context() as patch:
        patch.setattr(PartFile, "write", stop)
        with pytest.raises(SystemExit):
            main([str(source), str(tmp_path / "made")])
    assert not (tmp_path / "made").exists()
    assert convert(source, tmp_path / "made").is_dir()


def test_two_runs_at_once(source, tmp_path):
    with folder.building(tmp_path / "made", {"job": 1}), pytest.raises(InputError, match="another run is making"):
        main([str(source), str(tmp_path / "made")])


def test_what_is_written_over_needs_no_room(tmp_path, monkeypatch):
    """A run killed before its first record left most of its bytes; the next one has little more to spare."""
    (tmp_path / ".x.safetensors.part").write_bytes(bytes(1000))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=200))
    with PartFile(tmp_path / "x.safetensors", [("a", "F32", (256,))], None) as writer:
        assert writer.done == []
        writer.write("a", mx.ones(256))
        writer.commit()
    with pytest.raises(CheckpointError, match="are needed"):
        PartFile(tmp_path / "y.safetensors", [("a", "F32", (256,))], None)


def test_records_of_other_files_are_not_believed(tmp_path):
    specs = [("a", "F32", (4,)), ("b", "F32", (4,))]
    with PartFile(tmp_path / "x.safetensors", specs, None) as writer:
        # Left without a commit, as by an exception.
        writer.write("a", mx.ones(4))
    with PartFile(tmp_path / "x.safetensors", specs, None) as writer:
        assert writer.done == ["a"]
    with PartFile(tmp_path / "x.safetensors", [*specs, ("c", "F32", (1,))], None) as writer:
        assert writer.done == []
    part = tmp_path / ".x.safetensors.part"
    part.unlink()
    part.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="cannot be written"):
        PartFile(tmp_path / "x.safetensors", specs, None)
    assert not (tmp_path / "elsewhere").exists()
    # Neither are finished ones with another header, or cut short.
    for left in (mx.zeros(9), mx.zeros(8)):
        mx.save_safetensors(str(tmp_path / "y.safetensors"), {"a": left})
        with PartFile(tmp_path / "y.safetensors", [("b", "F32", (8,))], None) as writer:
            assert writer.done == []


# The Hub ----------------------------------------------------------------------------------------------------------


def test_a_repository_is_converted_like_a_folder(complete, tmp_path, monkeypatch):
    """Files are fetched one by one; the commit goes into configuration and card."""
    snapshot = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / "abc123"
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(complete, snapshot)
    asked = []

    def download(repo, name, *, optional=False):
        asked.append(name)
        return snapshot / name if (snapshot / name).exists() else None

    monkeypatch.setattr(hub, "download", download)
    made = convert("someone/tiny", tmp_path / "made")
    config = json.loads((made / "config.json").read_text())
    assert (config["source"]["name"], config["source"]["revision"]) == ("someone/tiny", "abc123")
    card = (made / "README.md").read_text()
    assert "base_model: someone/tiny" in card
    assert "| revision | abc123 |" in card
    assert "config.json" in asked


@pytest.mark.parametrize(("cache", "revision"), [("backups", "a local file"), ("models--someone--tiny", "abc123")])
def test_a_folder_called_as_those_of_the_cache_is_no_repository(source, tmp_path, monkeypatch, cache, revision):
    (tmp_path / cache / "snapshots").mkdir(parents=True)
    shutil.copytree(source, tmp_path / cache / "snapshots" / "abc123")
    monkeypatch.chdir(tmp_path / cache)
    card = (convert(Path("snapshots/abc123"), tmp_path / "made") / "README.md").read_text()
    assert "base_model" not in card
    assert f"| revision | {revision} |" in card


def test_a_repository_whose_files_have_names_of_their_own(tmp_path, monkeypatch, capfd):
    """Helium-1 preview in Kyutai's layout: no configuration, one file and a tokenizer that nothing names."""
    from moshi_mlx.convert import language_model

    case, there = GOLDENS / "family" / "helium_hf", tmp_path / "there"
    there.mkdir()
    shutil.copy(case / "kyutai_mlx_layout.safetensors", there / "helium-1-preview-2b-bf16.safetensors")
    described = json.loads((convert(_family("helium_hf", tmp_path), tmp_path / "hf") / "config.json").read_text())
    from random_checkpoint import write_tokenizer

    write_tokenizer(there / "tokenizer_spm_48k_multi6_2.model", described["text_card"])
    monkeypatch.setitem(language_model.KNOWN, "a small Helium", described)

    def download(repo, name, *, optional=False):
        assert repo == "kyutai/helium-1-preview-2b-mlx"
        return there / name if (there / name).exists() else None

    monkeypatch.setattr(hub, "download", download)
    made = convert("kyutai/helium-1-preview-2b-mlx", tmp_path / "made")
    assert_same(stored(made), dict(mx.load(str(case / "kyutai_mlx_layout.safetensors"))))
    config = json.loads((made / "config.json").read_text())
    assert config["tokenizer_name"] == "tokenizer_spm_48k_multi6_2.model"
    assert (config["source"]["licence"], config["n_q"]) == ("CC-BY 4.0", 0)
    assert re.search(
        r"^kyutai/helium-1-preview-2b-mlx: .* to download, licence: CC-BY 4.0$", capfd.readouterr().err, re.M
    )


def _family(case: str, tmp: Path) -> Path:
    return golden_convert.only(GOLDENS / "family" / case, tmp, "config.json", "model.safetensors")


def test_shards_of_a_repository_are_fetched(source, tmp_path, monkeypatch):
    there = set()

    def download(repo, name, *, optional=False):
        there.add(name)
        return source / name if (source / name).exists() else None

    monkeypatch.setattr(hub, "download", download)
    convert("someone/tiny", tmp_path / "made")
    assert {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"} <= there


class FakeApi:
    def __init__(self, error=None):
        self.error, self.calls = error, []

    def create_repo(self, repo, **options):
        self.calls.append(("create", repo, options["exist_ok"]))

    def upload_folder(self, **options):
        if self.error:
            raise self.error
        self.calls.append(("upload", options["repo_id"], options["folder_path"]))


def test_upload(tmp_path, monkeypatch, source, capfd):
    import huggingface_hub

    api = FakeApi()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    made = convert(source, tmp_path / "made", "--upload-repo", "me/tiny")
    assert api.calls == [("create", "me/tiny", True), ("upload", "me/tiny", str(made))]
    assert "uploaded" in capfd.readouterr().err
    with pytest.raises(
        CheckpointError, match=r"is complete, but could not be uploaded to me/tiny: no network .*hf upload"
    ):
        hub_upload.upload(made, "me/tiny", FakeApi(OSError("no network")))


# Memory -----------------------------------------------------------------------------------------------------------


def test_one_tensor_at_a_time(complete, tmp_path, monkeypatch):
    """The most that is alive is a few tensors, not the model."""
    seen, original = [], stream._values

    def values(job, uses):
        out = original(job, uses)
        seen.append(mx.get_active_memory())
        return out

    source = open_source(Request(str(complete)))
    before = mx.get_active_memory()
    monkeypatch.setattr(stream, "_values", values)
    assert main([str(complete), str(tmp_path / "made"), "--no-verify"]) == 0
    largest = max(info.nbytes for info in source.model.tensors.values())
    assert max(seen) - before < 4 * largest
    assert max(seen) - before < source.model.tensors.nbytes / 2


def test_models_too_large_to_be_compared_are_not_loaded(complete, tmp_path, monkeypatch):
    monkeypatch.setattr(verify.memory, "available_bytes", lambda: 1000)
    monkeypatch.setattr(verify.memory, "total_bytes", lambda: 1000)
    with pytest.raises(CheckpointError, match=r"--verify, which runs source and result in float32, needs .* of memory"):
        main([str(complete), str(tmp_path / "made"), "--verify"])
    assert not (tmp_path / "made").exists()


def test_resident_memory_is_bounded(tmp_path):
    """A file of 400 MB in tensors of 8 MB: the process grows by little more than itself."""
    from random_checkpoint import TINY_LM, write_lm

    config = {
        **TINY_LM,
        "dim": 1024,
        "num_heads": 8,
        "num_layers": 14,
        "n_q": 2,
        "dep_q": 1,
        "delays": [0, 0, 0],
        "hidden_scale": 4.125,
    }
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    write_lm(tmp_path / "source" / "model.safetensors", config, None, 1)
    size = (tmp_path / "source" / "model.safetensors").stat().st_size
    script = """
import resource, sys
from moshi_mlx.convert.__main__ import main
from moshi_mlx.quantize.__main__ import main as quantize
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
main([sys.argv[1], sys.argv[2] + "/mlx", "--no-verify"])
quantize([sys.argv[1], sys.argv[2] + "/q4", "-q", "4", "--no-verify"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "source"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    unit = 1 if sys.platform == "darwin" else 1024
    assert size > 300e6
    assert int(done.stdout) * unit < 150e6
