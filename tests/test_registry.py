"""Short names, what is said before a download, and the list of published checkpoints."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from moshi_mlx import local, run_helium, run_inference, run_tts, stt, voices
from moshi_mlx.checkpoint import Loader, hub, registry
from moshi_mlx.checkpoint.files import locate
from moshi_mlx.checkpoint.places import Folder, Repo, open_place
from moshi_mlx.errors import CheckpointError, InputError
from moshi_mlx.machine import memory
from moshi_mlx.machine.capacity import Capacity
from moshi_mlx.models import __main__ as models_command

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "models"
PARSERS = {
    f"moshi_mlx.{module.__name__.removeprefix('moshi_mlx.').removesuffix('.__main__')}": module.parser
    for module in (local, models_command, run_helium, run_inference, run_tts, stt, voices)
}
OURS = ("moshi", "hibiki", "helium", "personaplex", "lora")


def test_names_are_unique_and_complete():
    names = [p.name for p in registry.ALL]
    assert len({(p.name, p.bits) for p in registry.ALL}) == len(names)
    assert len({p.repo for p in registry.ALL}) == len(names)
    for name in ("moshika", "moshiko", "stt-1b", "stt-2.6b", "tts-1.6b", "tts-0.75b", "hibiki-1b", "hibiki-2b", "hibiki-zero", "personaplex", "personaplex-rl", "moshika-rl", "helium-1-2b", "helium-1-preview"):  # fmt: skip
        p = registry.by_name(name)
        assert re.fullmatch(r"[\w-]+/[\w.-]+", p.repo)
        assert p.weight_bytes > 1e9
        assert p.licence
        assert p.page
    assert registry.by_name("helium") == registry.by_name("helium-1-2b")


def test_precision_chooses_the_repository():
    assert registry.by_name("moshika").repo == "kyutai/moshika-mlx-bf16"
    assert registry.by_name("moshika", 4).repo == "kyutai/moshika-mlx-q4"
    # What is published in one precision only is packed while it loads.
    assert registry.by_name("stt-1b", 4) == registry.by_name("stt-1b")


def test_places(tmp_path, monkeypatch):
    assert isinstance(open_place(tmp_path), Folder)
    assert str(open_place()) == "kyutai/moshiko-mlx-bf16"
    assert str(open_place(quantized=8)) == "kyutai/moshiko-mlx-q8"
    assert str(open_place("personaplex")) == "nvidia/personaplex-7b-v1"
    assert str(open_place(hf_repo="someone/thing")) == "someone/thing"
    assert open_place("personaplex").licence() == "NVIDIA Open Model License"
    with pytest.raises(CheckpointError, match=r"moshka is neither a folder nor .* Did you mean moshika\?"):
        open_place("moshka")
    for name, meant in (("Demo-TTS", "demo-tts"), ("STT-1B", "stt-1b"), ("demo_stt", "demo-stt")):
        with pytest.raises(CheckpointError, match=f"Did you mean {meant}"):
            open_place(name)
    with pytest.raises(CheckpointError, match="`python -m moshi_mlx.models` lists them"):
        open_place("xyzzy")
    with pytest.raises(CheckpointError, match="does not exist"):
        open_place(tmp_path / "nothing")
    with pytest.raises(InputError, match="not both"):
        open_place("moshika", "kyutai/moshika-mlx-q4")
    # A folder wins over a name.
    (tmp_path / "moshika").mkdir()
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_place("moshika"), Folder)
    assert not registry.before_download("moshika", None, None)


def test_said_before_a_download(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: None)
    assert registry.before_download("moshika", None, 4) == [
        "kyutai/moshika-mlx-q4: 5.2 GB to download, licence: CC-BY 4.0"
    ]
    size, gate = registry.before_download(None, "nvidia/personaplex-7b-v1", None)
    assert "17.1 GB to download, licence: NVIDIA Open Model License" in size
    assert "accept its licence at https://huggingface.co/nvidia/personaplex-7b-v1, then run `hf auth login`" in gate
    assert "about 4.0 GB" in registry.before_download("hibiki-1b", None, None)[0]
    assert "kyutai/moshiko-mlx-q8" in registry.before_download(None, None, 8)[0]
    assert registry.before_download(None, "someone/thing", None) == []
    # The same weights in another layout: the same licence, about the same size.
    assert registry.before_download(None, "kyutai/stt-1b-en_fr-mlx", None) == [
        "kyutai/stt-1b-en_fr-mlx: about 2.4 GB to download, licence: CC-BY 4.0"
    ]
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: "/cache/file")
    assert registry.before_download("moshika", None, 4) == []
    assert registry.before_download(None, "kyutai/hibiki-1b-pytorch-bf16", None) == []


def test_commands_say_it(monkeypatch, question, capsys):
    """And gated access that was not granted is one sentence."""
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: None)

    def refused(repo, filename, **_):
        raise huggingface_hub.errors.GatedRepoError("gated", response=_Response())

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refused)
    with pytest.raises(CheckpointError, match=r"nvidia/personaplex-7b-v1 asks you to accept its licence: open https"):
        run_inference.main([str(question), "--model", "personaplex"])
    said = capsys.readouterr().err
    assert "17.1 GB to download, licence: NVIDIA Open Model License" in said
    assert "it is gated" in said
    with pytest.raises(CheckpointError, match="asks you to accept its licence"):
        voices.main(["--list", "--model", "personaplex"])
    said = capsys.readouterr().err
    assert "licence: NVIDIA Open Model License" in said
    assert "it is gated" in said


class _Response:
    """As much of an answer of the Hub as its errors ask for."""

    headers: dict = {}
    status_code = 403
    request = None
    text = ""
    url = ""


def test_weights_of_a_short_name_are_fetched(monkeypatch, tiny_checkpoint):
    """From the repository of the registry, by the names its configuration says."""
    asked = []

    def download(repo, name, *, optional=False):
        asked.append((repo, name))
        path = tiny_checkpoint / name
        return path if path.exists() else None

    monkeypatch.setattr(hub, "download", download)
    files = locate("moshika", quantized=4)
    assert files.source == "kyutai/moshika-mlx-q4"
    assert {repo for repo, _ in asked} == {"kyutai/moshika-mlx-q4"}
    assert files.licence == "CC-BY 4.0"
    assert isinstance(files.place, Repo)
    assert Loader(files).load().lm.n_q == 16


# The command ----------------------------------------------------------------------------------------------------


def test_list(capsys):
    assert models_command.main([]) == 0
    out = capsys.readouterr()
    for p in registry.ALL:
        row = next(r for r in out.out.splitlines() if r.startswith(f"{p.name} ") and p.precision in r)
        assert p.licence in row
        assert ("(gated)" in row) == p.gated
        assert memory.gigabytes(p.download_bytes) in row
    assert "fills the window, in " in out.err


def test_what_fits(monkeypatch, capsys):
    monkeypatch.setattr("moshi_mlx.commands.models.capacity", lambda: Capacity(9_000_000_000, 100, False))
    models_command.main(["--json"])
    listed = json.loads(capsys.readouterr().out)
    fitting = {(m["name"], m["bits"]) for m in listed if m["fits"]}
    assert {(m["name"], m["bits"]) for m in listed if m["suits"]} == fitting - {("hibiki-zero", None)}
    assert ("moshika", 4) in fitting
    assert ("moshika", 8) not in fitting
    assert ("personaplex", None) not in fitting
    assert ("stt-1b", None) in fitting


def test_one(capsys):
    models_command.main(["personaplex"])
    said = capsys.readouterr().out
    for line in (
        "repository: nvidia/personaplex-7b-v1",
        "licence: NVIDIA Open Model License; gated",
        "temp 0.8, temp_text 0.7, top_k 250, top_k_text 25",
        "use: python -m moshi_mlx.local --voice NATF2 --model personaplex",
        "docs/models/personaplex.md",
    ):
        assert line in said


def test_memory_of_the_device():
    """A CPU computes in float32: dense weights and rings take twice the room, packed weights do not."""
    dense, packed = registry.by_name("moshika"), registry.by_name("moshika", 4)
    assert dense.memory_bytes(wide=True) - dense.memory_bytes() == dense.loaded_bytes + dense.ring_bytes
    assert packed.memory_bytes(wide=True) - packed.memory_bytes() == packed.ring_bytes


@pytest.mark.parametrize("model", registry.ALL, ids=lambda m: f"{m.name}-{m.precision}")
def test_the_command_of_each_exists(model):
    _, _, module, *words = shlex.split(model.command)
    assert PARSERS[module]().parse_args(words).model == model.name


def test_unknown_name_exits_with_one_sentence():
    result = subprocess.run(
        [sys.executable, "-m", "moshi_mlx.models", "hibiki"], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: hibiki is neither")
    assert result.stderr.count("\n") == 1


# The pages ------------------------------------------------------------------------------------------------------


def test_every_page_of_ours_is_written():
    for p in registry.ALL:
        if p.page in OURS:
            text = (PAGES / f"{p.page}.md").read_text()
            assert p.repo in text or p.repo.removesuffix("-bf16").removesuffix("-q8").removesuffix("-q4") in text, (
                p.repo
            )
