"""Names that programs stumble over: none at all, a folder's, links to nowhere, bytes that are no UTF-8, escapes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from pages import parser_of
from speech_toys import _tidy, checkpoint  # noqa: F401

from moshi_mlx import run_inference, run_tts, stt
from moshi_mlx.__main__ import COMMANDS
from moshi_mlx.config.input_files import name_for_mlx
from moshi_mlx.errors import MoshiError
from moshi_mlx.output import OutputFile, check_writable, write_text

ROOT = Path(__file__).resolve().parent.parent
# As a shell hands it over.
NOT_UTF8 = os.fsdecode(b"caf\xe9")
linux = pytest.mark.skipif(sys.platform != "linux", reason="names are UTF-8 there")


@pytest.fixture
def sound(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    soundfile.write("q.wav", 0.3 * np.sin(np.arange(9600) / 9), 24000)
    return "q.wav"


EMPTY = {
    "model": (run_inference, ["q.wav", "r.wav", "--model", ""], "the model's name is empty"),
    "repository": (run_inference, ["q.wav", "r.wav", "--hf-repo", ""], "the model's name is empty"),
    "reply": (run_inference, ["q.wav", "", "--demo"], "'' is not the name of a file"),
    "words": (run_inference, ["q.wav", "r.wav", "--demo", "--text", ""], "'' is not the name of a file"),
    "transcript": (stt, ["q.wav", "-o", "", "--model", "stt"], "'' is not the name of a file"),
    "speech": (run_tts, ["--text", "a b", "", "--model", "tts"], "'' is not the name of a file"),
}


@pytest.mark.parametrize("case", EMPTY)
def test_no_name_at_all(sound, case, monkeypatch):
    """A variable of a shell that was never set is no default: neither a download nor a reply that nobody keeps."""
    module, args, words = EMPTY[case]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    args = [str(checkpoint(f"tiny-{a}")) if a in ("stt", "tts") else a for a in args]
    with pytest.raises(MoshiError, match=words):
        module.main(args)
    assert not Path("r.wav").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_no_argument_moves_the_cursor(command, capsys):
    """A wrong argument is quoted where it may be the name of somebody's file: `command *` in a folder of a stranger."""
    with pytest.raises(SystemExit) as end:
        parser_of(command).parse_args(["a", "b", "--\x1b[31m\x9b2J\x07no\nsuch\u202e"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "such" in said
    assert not any(c in said for c in "\x1b\x9b\x07\u202e")


def test_no_source_to_convert(tmp_path):
    from moshi_mlx.convert.__main__ import main

    with pytest.raises(MoshiError, match="the source's name is empty"):
        main(["", str(tmp_path / "made")])


def test_transcripts_to_standard_output_by_name(sound, capsys):
    args = ["q.wav", "--model", str(checkpoint("tiny-stt")), "--no-compile", "-f", "json"]
    said = []
    for more in ([], ["-o", "-"], ["-o", "/dev/stdout"]):
        if not more or more[1] == "-" or os.path.exists(more[1]):
            assert stt.main([*args, *more]) == 0
            said.append(json.loads(capsys.readouterr().out))
    assert all(s == said[0] for s in said)


def test_a_link_into_a_folder_that_is_not_there_names_it(tmp_path):
    (tmp_path / "link.txt").symlink_to(tmp_path / "gone" / "file.txt")
    with pytest.raises(MoshiError, match=f"^the folder {tmp_path}/gone does not exist; make it first"):
        check_writable(tmp_path / "link.txt")


@linux
def test_texts_that_hold_such_names(tmp_path):
    write_text(tmp_path / "a.json", json.dumps({"source": NOT_UTF8, "word": "é"}, ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"source": NOT_UTF8, "word": "é"}
    with OutputFile(tmp_path / NOT_UTF8) as output:
        output.write(b"x")
        output.commit()
    assert os.listdir(os.fsencode(tmp_path)) != []


@linux
def test_weights_that_mlx_cannot_open(tiny_checkpoint, sound):
    assert name_for_mlx("é") == "é"
    shutil.copytree(tiny_checkpoint, NOT_UTF8)
    with pytest.raises(MoshiError, match="is not UTF-8, which MLX cannot open; rename it or its folder"):
        run_inference.main(["q.wav", "r.wav", "--model", NOT_UTF8])
    assert not Path("r.wav").exists()


@linux
@pytest.mark.parametrize(
    "command",
    [
        ["stt", f"{NOT_UTF8}.wav", "--model", "STT", "--no-compile", "-f", "json"],
        ["run_inference", f"{NOT_UTF8}.wav", f"{NOT_UTF8} reply.wav", "--tail", "0", "--model", "TINY", "--no-compile", "--json"],
        ["quantize", "TINY", "made", "-q", "8", "--frames", "4", "--no-picture", "--report", f"{NOT_UTF8}.json"],
        ["export", "TINY", NOT_UTF8],
    ],
    ids=lambda c: c[0],
)  # fmt: skip
def test_commands_on_such_names(tiny_checkpoint, sound, command):
    """Done, or refused in one sentence; never an error of Python's."""
    os.rename("q.wav", f"{NOT_UTF8}.wav")
    places = {"STT": str(checkpoint("tiny-stt")), "TINY": str(tiny_checkpoint)}
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-m", f"moshi_mlx.{command[0]}", *(places.get(a, a) for a in command[1:])],
        capture_output=True, text=True, env=env, timeout=120, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    if command[0] == "export":
        assert done.returncode == 1
        assert "is not UTF-8" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
    if "json" in command or "--json" in command:
        told = json.loads(done.stdout)
        assert NOT_UTF8 in json.dumps(told, ensure_ascii=False)
    assert not [name for name in os.listdir() if name.endswith(".part")]
