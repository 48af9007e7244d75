"""Words as people meet them: what is spoken, when words end, what a terminal cannot show, help, interrupts, voices."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from random_checkpoint import write
from rich.cells import cell_len
from rich.console import Console
from speech_toys import checkpoint, loaded
from test_helium import character_tokenizer

from moshi_mlx import local, local_web, run_helium, run_inference, run_tts, serve, stt, voices
from moshi_mlx.checkpoint import Loader, hub, registry
from moshi_mlx.checkpoint.files import locate
from moshi_mlx.config import presets
from moshi_mlx.errors import CheckpointError, InputError, MoshiError
from moshi_mlx.live.figures import Status
from moshi_mlx.live.reporter import Event
from moshi_mlx.live.terminal import TerminalView, joined
from moshi_mlx.session import voices as session_voices
from moshi_mlx.text_to_speech import setup
from moshi_mlx.text_to_speech.voices import find_voice, known_voices

ROOT = Path(__file__).resolve().parent.parent
QUESTION = ROOT / "examples" / "question.wav"


# What is spoken -------------------------------------------------------------------------------------------------------


def tts(*args) -> list[str]:
    folder = checkpoint("tiny-tts")
    return [*map(str, args), "--model", str(folder), "--voice-repo", str(folder / "voices"), "--voice", "a.wav"]


def test_a_positional_that_is_no_file_is_spoken(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_tts.main(tts("Hello there.", "hello.wav", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "Hello there."
    assert soundfile.info("hello.wav").duration > 0.3
    # A word is one too; the name of a file that is not there is not.
    assert run_tts.main(tts("Hello", "hello.wav", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "Hello"
    for name in ("speech.txt", "texts/speech", "REQUESTS.JSONL", "speech.wav", "and/or", "C:\\x", "https://x.org"):
        with pytest.raises(InputError, match=f"{re.escape(name)} does not exist. .* give it with --text"):
            run_tts.main(tts(name, "hello.wav"))
    # The advice works.
    assert run_tts.main(tts("--text", "and/or", "hello.wav", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "and/or"
    for text in ("e.g.", "3.14", "Hello: we have read notes.txt and talk.wav", "one more " * 40):
        assert run_tts.main(tts(text, "hello.wav", "--json", "--max-seconds", "1")) == 0
        assert json.loads(capsys.readouterr().out)["duration"] > 0
    Path("Hello").write_text("from a file")
    assert run_tts.main(tts("Hello", "hello.wav", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "from a file"


@pytest.mark.parametrize(
    "line",
    [c for c in (ROOT / "README.md").read_text().splitlines() if c.startswith("    python -m moshi_mlx.run_tts")],
)
def test_the_readme_speaks(line, tmp_path, monkeypatch):
    """As it is written, with a model that is here."""
    monkeypatch.chdir(tmp_path)
    words = [word for word in shlex.split(line, comments=True)[3:] if word != "--demo"]
    if "-" in words:
        pytest.skip("reads a pipe")
    for word in words:
        if word.endswith(".txt"):
            Path(word).write_text("Hello there.")
    voices = [] if "--voice" in words else ["--voice", "a.wav"]
    folder = checkpoint("tiny-tts")
    assert run_tts.main([*words, *voices, "--model", str(folder), "--voice-repo", str(folder / "voices")]) == 0
    assert any(p.suffix == ".wav" for p in tmp_path.iterdir())


def test_markup_that_is_left_out_is_told(tmp_path, capsys):
    text = '<speak>one <break time="500ms"/> <prosody rate="slow">two</prosody></speak>'
    assert run_tts.main(tts("--text", text, tmp_path / "o.wav", "--json")) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["text"] == "one two"
    assert 'left out markup that says nothing to this voice: <prosody rate="slow"> </prosody>' in out.err


# Terminals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_json_whatever_the_terminal(tmp_path, encoding):
    text = "Été 日本 “bien”."
    run = subprocess.run(
        [sys.executable, "-m", "moshi_mlx.run_tts", *tts("--text", text, tmp_path / "o.wav", "--json")],
        capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}, cwd=ROOT,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr.decode()
    said = json.loads(run.stdout.decode(encoding))["text"]
    assert said.startswith("Été")


def test_text_on_a_terminal_that_lacks_letters(tmp_path):
    (tmp_path / "écrit.wav").symlink_to(QUESTION)
    run = subprocess.run(
        [sys.executable, "-m", "moshi_mlx.stt", str(tmp_path / "écrit.wav"), "--model", str(checkpoint("tiny-stt"))],
        capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, cwd=ROOT,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr.decode()
    run.stdout.decode("ascii")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("models", 0), ("models --json", 0), ("models Été", 1), ("stt Été日本.wav --model demo-stt", 1), ("stt --Été日本", 2),
        ("bench --model Été日本", 1), ("voices --list --model ./Été日本", 1), ("convert ./Été日本 out", 1),
    ],
)  # fmt: skip
def test_what_is_said_on_a_terminal_that_lacks_letters(tmp_path, command, code, encoding):
    run = subprocess.run(
        [sys.executable, "-m", *f"moshi_mlx.{command}".split()], capture_output=True, cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    out, err = run.stdout.decode(encoding), run.stderr.decode(encoding)
    assert run.returncode == code, err
    assert "Traceback" not in err
    assert out if code == 0 else "日" not in command or "\\u65e5\\u672c" in err
    if "--json" in command:
        json.loads(out)


@pytest.mark.parametrize("width", [16, 20, 27, 34, 60, 100])
def test_words_are_whole_on_a_narrow_terminal(width):
    import io

    console = Console(width=width, height=40, file=io.StringIO())
    view, status = TerminalView(console), Status()
    text = "Hello wonderful inter-national people of this world"
    view.show(Event("text", {"text": text}))
    console.print(view._picture(status))
    shown = console.file.getvalue()
    found = shown.split()
    for word in [w for w in text.split() if len(w) < width]:
        assert word in found, shown
    for part in ("lag 0 ms", "dropped 0", "underruns 0", "m mute", "Moshi"):
        assert part in shown, shown


@pytest.mark.parametrize("width", [16, 27, 40])
@pytest.mark.parametrize(
    "text", ["今日はとても良い天気です そして 話しましょう ", "he\u0301llo wo\u0308rld cafe\u0301 ", "한국어 문장 입니다 ", "x" * 100, "\U0001f600 a "]
)  # fmt: skip
def test_the_figures_stay_on_the_screen_whatever_is_said(width, text):
    """Letters that take two columns or none; what is higher than the screen would lose its foot."""
    import io

    console = Console(width=width, height=24, file=io.StringIO())
    view = TerminalView(console)
    view.show(Event("text", {"text": text * 12}))
    view.show(Event("notice", {"text": "the microphone delivers nothing but zeros"}))
    console.print(view._picture(Status()))
    lines = console.file.getvalue().rstrip("\n").split("\n")
    assert len(lines) <= 24
    assert max(map(cell_len, lines)) <= width
    assert "underruns 0" in console.file.getvalue()
    whole = text.split() if all(cell_len(word) < width for word in text.split()) else []
    assert set(whole) <= set(console.file.getvalue().split())


def test_parts_are_packed_into_lines():
    assert joined(["aa", "bb", "cc"], " | ", 7) == "aa | bb\ncc"
    assert joined(["aaaaaaaaaa", "b"], " ", 5) == "aaaaaaaaaa\nb"
    assert joined([], " ", 5) == ""


# Flags ----------------------------------------------------------------------------------------------------------------


def test_help_names_its_own_default(capsys):
    for module, name in ((stt, "stt-1b"), (run_tts, "tts-1.6b")):
        said = " ".join(module.parser().format_help().split())
        assert f"(default: that of --model {name})" in said
        assert "moshiko" not in said


def test_a_voice_speaks_at_the_temperature_that_help_says():
    """Not at the checkpoint's: of these models the authors' own programs take another one."""
    said = " ".join(run_tts.parser().format_help().split())
    [told] = re.findall(r"--temp X temperature of audio, .*?[(]default: ([0-9.]+)[)]", said)
    assert float(told) == setup.configure(run_tts.parser().parse_args(["Hello"]), loaded("tiny-tts")).temp
    assert "default: the checkpoint's" in " ".join(run_inference.parser().format_help().split())


def test_names_stand_where_they_like():
    """Before, between and after flags; what follows `--` is no flag."""
    for argv, files in (
        ("a.wav --batch 2 b.wav -f txt c.wav", ["a.wav", "b.wav", "c.wav"]), ("--batch 2 -- -a.wav", ["-a.wav"]), ("- --vad", ["-"]),
    ):  # fmt: skip
        assert stt.parser().parse_args(argv.split()).files == files
    assert run_inference.parse(shlex.split("in.wav --temp 0 out.wav")).files == ["in.wav", "out.wav"]
    assert run_inference.parse(shlex.split("--raw 16000 - -")).files == ["-", "-"]
    args = voices.parser().parse_args(shlex.split("me.wav --model m me.safetensors"))
    assert (args.source, args.out, args.model) == ("me.wav", "me.safetensors", "m")


def test_the_published_way_of_transcribing(capsys):
    model = ["--model", str(checkpoint("tiny-stt"))]
    assert stt.main([str(QUESTION), "--temp", "0", *model]) == 0
    greedy = capsys.readouterr().out
    assert stt.main([str(QUESTION), *model]) == 0
    assert capsys.readouterr().out == greedy
    with pytest.raises(SystemExit):
        stt.main([str(QUESTION), "--temp", "-1", *model])


def test_the_published_command_transcribes(tmp_path, capsys, monkeypatch):
    """`run_inference --hf-repo kyutai/stt-2.6b-en-mlx FILE --temp 0` is what its authors' pages say; a folder is known by its configuration."""
    folder = checkpoint("tiny-stt")
    assert stt.main([str(QUESTION), "--model", str(folder)]) == 0
    expected = capsys.readouterr().out
    single = ["--lm-config", "config.json", "--moshi-weights", "model.safetensors", "--mimi-weights", presets.MIMI_NAME]
    single = [
        str(folder / a) if (folder / a).is_file() else a for a in [*single, "--tokenizer", presets.TOKENIZER_NAME]
    ]
    for model in (["--model", str(folder)], single):
        assert run_inference.main([str(QUESTION), "--temp", "0", "--verbose", *model]) == 0
        assert capsys.readouterr().out == expected
    monkeypatch.setattr(hub, "download", lambda repo, *_, **__: pytest.fail(f"{repo} was asked"))
    monkeypatch.setattr(stt, "main", lambda argv: print(argv) or 0)
    asked = [str(QUESTION), "--hf-repo", "kyutai/stt-2.6b-en-mlx", "--temp", "0"]
    assert run_inference.main(asked) == 0
    assert capsys.readouterr().out == f"{asked}\n"
    # It has no voice to answer with.
    for more in (["reply.wav"], ["--text", "reply.txt"], ["--batch", "replies"]):
        with pytest.raises(InputError, match="is a speech-to-text model; use python -m moshi_mlx.stt"):
            run_inference.main([*asked, *more])


def test_advice_that_works(tiny_checkpoint, tmp_path, monkeypatch):
    """What the sentence about memory says helps: -q 4 where the weights can be packed further, else a shorter window."""
    from moshi_mlx.machine import memory

    write(tmp_path / "q8", "tiny", 8, seed=1)
    cases: list[tuple[Path, dict, str, dict]] = [
        (tiny_checkpoint, {}, "Pack the weights [(]-q 4[)]", {"quantized": 4}),
        (tiny_checkpoint, {"quantized": 8}, "Take fewer bits [(]-q 4[)]", {"quantized": 4}),
        (
            tiny_checkpoint,
            {"quantized": 4},
            "available. Shorten the window [(]--context 60[)]",
            {"quantized": 4, "context": 1},
        ),
        (tmp_path / "q8", {}, "available. Shorten the window", {"context": 1}),
    ]
    for folder, options, advice, followed in cases:
        before, after = (Loader(locate(folder), **o).estimate().total for o in (options, followed))
        assert after < before
        monkeypatch.setattr(memory, "available_bytes", lambda room=(before + after) // 2: room)
        with pytest.raises(CheckpointError, match=advice) as told:
            Loader(locate(folder), **options).load()
        assert ("-q 4" in str(told.value)) == ("-q 4" in advice)
        assert Loader(locate(folder), **followed).load().lm.dep_q == 8


def test_a_file_that_is_missing_can_be_put_where_it_belongs(tiny_copy):
    """`serve` has no flags for single files: the sentence names both ways."""
    (tiny_copy / presets.MIMI_NAME).unlink()
    with pytest.raises(
        CheckpointError, match=f"lacks the codec '{presets.MIMI_NAME}'; put it there or name it with --"
    ):
        serve.main(["--talk", str(tiny_copy), "--port", "0", "--rows", "1"])


# Voices ---------------------------------------------------------------------------------------------------------------


def test_a_voice_that_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "is_reachable", lambda: False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(
        InputError,
        match="no voice 'nope.wav' on this machine, and the Hub cannot be reached .* A voice is a local file",
    ):
        find_voice("nope.wav", "kyutai/tts-voices", ".0badcafe@1.safetensors")
    with pytest.raises(
        InputError, match="voice file nope.wav does not exist. A voice is a .safetensors or .pt file, a recording"
    ):
        session_voices.find_voice("nope.wav", None)


@pytest.mark.parametrize(
    ("name", "repo", "said"),
    [
        ("a", "FOLDER", "there is no voice 'a' for this model in the folder .*; known voices: a.wav, b.wav"),
        ("", "FOLDER", "there is no voice '' for this model"),
        ("x\x1b[31m.wav", "FOLDER", r"there is no voice 'x\\x1b\[31m.wav'"),
        (
            "a.wav",
            "FOLDER/nothere",
            "looked for in '.*nothere', which is neither a folder nor the name of a repository",
        ),
        ("a.wav", "kyutai/tts voices", "which is neither a folder nor the name of a repository [(]owner/name[)]"),
        ("hf://a b/c/d.wav", "kyutai/tts-voices", "looked for in 'a b/c', which is neither a folder"),
        ("./a.wav", "kyutai/tts-voices", "the voice file ./a.wav does not exist"),
    ],
)
def test_where_voices_are_looked_for(name, repo, said):
    folder = checkpoint("tiny-tts") / "voices"
    with pytest.raises(InputError, match=said):
        find_voice(name, repo.replace("FOLDER", str(folder)), ".0badcafe@1.safetensors", print)


def test_what_is_no_repository_is_not_in_the_cache():
    """Asked before a download, when nobody has looked at the name yet."""
    for repo in ("a b/c", "/nothere", "a/b/c", ""):
        assert not registry.is_cached(repo, "config.json")
        with pytest.raises(CheckpointError):
            locate(hf_repo=repo or " ")


def test_voices_in_a_folder_of_the_home(monkeypatch):
    """A shell leaves `--voice-repo=~/voices` as it is."""
    voices = checkpoint("tiny-tts") / "voices"
    monkeypatch.setenv("HOME", str(voices.parent))
    suffix = ".0badcafe@1.safetensors"
    assert find_voice("a.wav", "~/voices", suffix) == voices / f"a.wav{suffix}"
    assert list(known_voices("~/voices", suffix)) == ["a.wav", "b.wav"]


@pytest.mark.parametrize("command", [run_inference, local, local_web])
def test_a_voice_is_told_before_weights_are_read(tiny_checkpoint, tmp_path, monkeypatch, command):
    def load(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(Loader, "load", load)
    sides = ["--input", str(QUESTION), "--output", str(tmp_path / "o.wav")]
    sides = {run_inference: [str(QUESTION)], local: sides, local_web: ["--no-browser", "--port", "0"]}[command]
    with pytest.raises(InputError, match="takes no voice and no text prompt; PersonaPlex does"):
        command.main([*sides, "--model", str(tiny_checkpoint), "--voice", "NATF2"])


# Helium ---------------------------------------------------------------------------------------------------------------

DAMAGES = {
    "config": ("config.json", lambda b: b.replace(b'"hidden_size": ', b'"hidden_size": 7')),
    "sizes": ("config.json", lambda b: json.dumps({**json.loads(b), "num_attention_heads": 0}).encode()),
    "kinds": (
        "config.json",
        lambda b: json.dumps({**json.loads(b), "intermediate_size": "many", "max_position_embeddings": "far"}).encode(),
    ),
    "list": ("config.json", lambda b: json.dumps({**json.loads(b), "model_type": ["helium"]}).encode()),
    "window": ("config.json", lambda b: json.dumps({**json.loads(b), "max_position_embeddings": -4}).encode()),
    "cut tokenizer": ("tokenizer.json", lambda b: b[: len(b) // 2]),
    "no tokenizer": ("tokenizer.json", lambda b: b"{}"),
    "tokenizer of numbers": ("tokenizer.json", lambda b: b'{"model": 5, "added_tokens": [[]]}'),
    "tokenizer of another type": ("tokenizer.json", lambda b: b.replace(b'"type":', b'"typ":')),
    "tokenizer settings": ("tokenizer_config.json", lambda b: b'{"tokenizer_class": 7}'),
    "cut weights": ("model.safetensors", lambda b: b[: len(b) // 2]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_helium_on_damaged_files_is_one_sentence(tmp_path, damage):
    import shutil

    folder = ROOT / "tests/goldens/family/helium_hf"
    for path in folder.iterdir():
        shutil.copy(path, tmp_path / path.name)
    name, change = DAMAGES[damage]
    path = tmp_path / name
    character_tokenizer(tmp_path, 60)
    path.write_bytes(change(path.read_bytes() if path.exists() else b"{}"))
    with pytest.raises(MoshiError) as e:
        run_helium.main(["The river", "--model", str(tmp_path), "--max-tokens", "2"])
    assert len(str(e.value)) < 1700
    assert "\n" not in str(e.value)
