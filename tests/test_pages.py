"""What the pages say is true: their commands and their Python run, what they name is there, their links lead somewhere.

A command is run as it stands, in a folder that holds the files it names: small models stand for published ones and for
`path/to/...`, files for devices, and long runs are cut short. What cannot be run here is parsed.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pages
import pytest
import soundfile
from pages import PAGES, ROOT, Command, name_of
from random_checkpoint import write
from speech_toys import _tidy, checkpoint  # noqa: F401
from test_helium import write_helium
from test_lora import make_adapter

import moshi_mlx
from moshi_mlx import checkpoint as checkpoints
from moshi_mlx.__main__ import COMMANDS
from moshi_mlx.checkpoint import registry
from moshi_mlx.session.voices import Voice

ALL = {name_of(page): page for page in PAGES}
# Formulas are set like code in these.
TYPED = [name for name in ALL if not name.startswith("docs/spec")]
BLOCKS = {name: list(pages.blocks(ALL[name])) for name in TYPED}
LINES = [(b, line) for name in TYPED for b in BLOCKS[name] for line in pages.lines(b)]

# Commands that are parsed alone, and where they run instead.
PARSED = {
    "local_web": "serves until it is stopped: tests/test_web_command.py",
    "serve": "serves until it is stopped: tests/test_serve.py",
    "export": "traces every size of the rings: tests/test_export.py",
}
PARSED_FLAGS = {
    "--tune": "tries every setting in processes of its own: tests/test_bench.py",
    "--list-devices": "asks the sound system: tests/test_audio_devices.py",
    "--recipe": "measures every group of layers: tests/test_quantize.py",
}
# The model that a command takes where none is named.
USUAL = {"stt": "stt", "run_tts": "tts", "run_helium": "helium"}
# Pages whose Python runs elsewhere, beside a server.
SERVED = {"docs/openai.md": "tests/test_openai_docs.py"}
# What the Python of a page prints, in part.
PRINTED = {
    "README.md": "(1920,)",
    "docs/architecture.md": "",
    "docs/embedding.md": "'frames': 25",
    "docs/many-streams.md": "\n2 ",
    "docs/models/hibiki.md": "",
    "docs/models/personaplex.md": "",
    "docs/stt.md": "Word(",
    "docs/tts.md": "Word(",
}


# What is on the pages ---------------------------------------------------------------------------------------------------


def test_every_block_is_something():
    """Python, a command line, JSON, or a sample that is checked elsewhere."""
    for name in TYPED:
        for block in BLOCKS[name]:
            where = f"{name}:{block.line}"
            assert block.language in ("python", "sh", "indented", "json", "c", "mermaid", "nginx"), where
            if block.language == "json":
                json.loads(block.text)
            if block.language == "c":
                header = (ROOT / "native" / "include" / "moshi.h").read_text()
                assert set(re.findall(r"\bmoshi_\w+\(", block.text)) <= set(re.findall(r"\bmoshi_\w+\(", header)), where
    assert {b.page for blocks in BLOCKS.values() for b in blocks if b.language == "python"} == {*PRINTED, *SERVED}
    assert all((ROOT / test).is_file() for test in SERVED.values())
    for (page, start), test in pages.SAMPLES.items():
        assert any(b.text.startswith(start) for b in BLOCKS[page]), start
        assert (ROOT / test).is_file()


def test_every_command_is_shown():
    """In the README those that have a console script, on some page each of them."""
    shown = {(b.page, c.ours) for b, line in LINES for c in pages.commands(line)}
    scripts = re.findall(r'^moshi-[\w-]+ = "moshi_mlx.__main__:(\w+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert set(scripts) <= {ours for page, ours in shown if page == "README.md"}
    assert set(COMMANDS) <= {ours for _, ours in shown}


@pytest.mark.parametrize(("block", "line"), LINES, ids=[f"{b.page}:{line[:60]}" for b, line in LINES])
def test_commands_are_right(block, line):
    """Ours parse; scripts of the repository are there and know the flags; of other programs only known ones are named."""
    if "[--" in line:
        check_usage(line)
        return
    for command in pages.commands(line):
        words = command.words
        if command.ours:
            pages.parser_of(command.ours).parse_args(command.arguments)
        elif words[0] == "python":
            check_python(words)
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif words[0].endswith("pip"):
            check_pip(words)
        elif words[0] == "cmake":
            assert "-S" not in words or (ROOT / words[words.index("-S") + 1] / "CMakeLists.txt").is_file()
        elif words[0].endswith("moshi-cli"):
            check_usage(line)
        elif words[0] == "pytest":
            check_python(("python", "-m", *words))
        else:
            assert words[0] in pages.FOREIGN, words[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_help_are_right(command):
    parser = pages.parser_of(command)
    for line in re.findall(r"^    (.*python -m moshi_mlx\..*)$", parser.description or "", re.MULTILINE):
        for part in pages.commands(line.partition(" #")[0]):
            if part.ours:
                assert part.ours == command
                parser.parse_args(part.arguments)


def check_usage(line: str) -> None:
    """The flags of a script of ours, in its source."""
    script, *_ = re.findall(r"(benchmarks/\w+\.py|moshi-cli)", line)
    source = (ROOT / (script if script != "moshi-cli" else "native/cli/arguments.cpp")).read_text()
    if script.startswith("benchmarks/"):
        source += (ROOT / "benchmarks" / "machine.py").read_text()  # where those that several have are
    for flag in re.findall(r"(--[a-z][\w-]*)", line):
        assert f'"{flag}"' in source, flag


def check_python(words: tuple[str, ...]) -> None:
    if words[1] != "-m":
        assert any((ROOT / folder / words[1]).is_file() for folder in (".", "examples/macos_app")), words[1]
        if words[1].startswith("benchmarks/"):
            check_usage(" ".join(words))
    elif words[2] == "pip":
        check_pip(words[2:])
    elif words[2] == "pytest":
        assert all((ROOT / w).is_file() for w in words[3:] if w.startswith("tests/"))
    elif words[2] == "examples.train_demo":
        for flag in [w for w in words if w.startswith("--")]:
            assert f'"{flag}"' in (ROOT / "examples" / "train_demo" / "__main__.py").read_text(), flag
    else:
        assert words[2] in ("venv",), words


def check_pip(words: tuple[str, ...]) -> None:
    """Extras exist; the package is installed from its clone, since the index has another one of that name."""
    declared = (ROOT / "pyproject.toml").read_text()
    assert words[1] == "install"
    for word in words[2:]:
        extra = re.fullmatch(r"[./]+\[(\w+)\]", word)
        assert extra is None or re.search(rf"^{extra[1]} = ", declared, re.MULTILINE), word
        assert not word.startswith("moshi_mlx") or word == "moshi_mlx==0.3.0", word


# What is named on the pages ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_links_lead_somewhere(name):
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", ALL[name].read_text()):
        assert (ALL[name].parent / link).exists(), link


@pytest.mark.parametrize("name", ALL)
def test_files_and_modules_named_are_there(name):
    text = ALL[name].read_text()
    for path in re.findall(r"`((?:tests|docs|benchmarks|examples|native|moshi_mlx|convert|quantize)/[\w./]+?)`", text):
        # NAME is the reader's.
        assert "NAME" in path or (ROOT / path).exists(), path
    for dotted in set(re.findall(r"`(moshi_mlx(?:\.\w+)+)", text)):
        assert is_name(dotted), dotted


def is_name(dotted: str) -> bool:
    """Whether a module, or what stands in one, has this name."""
    found, rest = moshi_mlx, dotted.split(".")[1:]
    path = "moshi_mlx"
    for part in rest:
        path = f"{path}.{part}"
        with contextlib.suppress(ModuleNotFoundError):
            found = importlib.import_module(path)
            continue
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


@pytest.mark.parametrize("name", [n for n in TYPED if n.startswith("docs")])
def test_options_named_are_there(name):
    """`--option` in the text is one of a command or of a program in the repository."""
    known = {o for command in COMMANDS for a in pages.parser_of(command)._actions for o in a.option_strings}
    programs = [*ROOT.glob("native/cli/*.cpp"), *ROOT.glob("benchmarks/*.py")]
    known |= {f for path in programs for f in re.findall(r'"(--[\w-]+)"', path.read_text())}
    # Of MLX's launcher, and of Kyutai's scripts.
    known |= {"--hostfile", "--url"}
    for option in re.findall(r"`(--[a-z][\w-]+)", ALL[name].read_text()):
        assert option in known, option


# What is run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """A small model of every kind."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("moshi", "hibiki", "personaplex"):
        write(folder / kind, {"moshi": "tiny"}.get(kind, f"tiny-{kind}"), None, seed=1)
    voices = folder / "personaplex" / "voices"
    voices.mkdir()
    for name in ("NATF2", "VARM1"):
        codes = np.random.default_rng(1).integers(0, 2048, (8, 20)).astype(np.int32)
        Voice(name, codes=codes).save(voices / f"{name}.safetensors")
    (folder / "helium").mkdir()
    write_helium(folder / "helium")
    found = {kind: folder / kind for kind in ("moshi", "hibiki", "personaplex", "helium")}
    return {**found, "stt": checkpoint("tiny-stt"), "tts": checkpoint("tiny-tts")}


@pytest.fixture(scope="module")
def adapter(models, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    make_adapter(folder / "lora.safetensors", checkpoints.load(models["moshi"]).lm)
    config = json.loads((models["moshi"] / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "lora": True, "lora_rank": 3, "lora_scaling": 0.25}))
    return folder


@pytest.fixture
def desk(models, adapter, question, tmp_path, monkeypatch) -> Path:
    """A folder with every file that a page reads."""
    monkeypatch.chdir(tmp_path)
    sound = soundfile.read(question, dtype="float32", frames=24000)[0]
    for name in ("question", "a", "b", "talk", "french", "discours", "me"):
        soundfile.write(f"{name}.wav", sound, 24000)
    soundfile.write("b.flac", sound, 24000)
    soundfile.write("talk.mp3", sound, 24000)
    Path("question.pcm").write_bytes((sound * 32767).astype("<i2").tobytes())
    Path("speech.txt").write_text("the people")
    Path("scene.txt").write_text("the people\nhere today\n")
    request = {"turns": ["the people"], "voices": [voice(models)], "id": "one"}
    Path("requests.jsonl").write_text(json.dumps(request) + "\n")
    for folder in ("checkpoints/checkpoint_000300/consolidated", "checkpoint_000300/consolidated"):
        shutil.copytree(adapter, folder)
    shutil.copy(adapter / "lora.safetensors", "lora.safetensors")
    (tmp_path / "moshi_mlx").symlink_to(ROOT / "moshi_mlx")
    return tmp_path


def voice(models: dict[str, Path]) -> str:
    return str(next((models["tts"] / "voices").glob("a.wav.*")))


def kind_of(name: str, command: str) -> str:
    """The kind of model that stands for a published name, a repository or a path of the reader's."""
    known = registry.by_repo(name) or (registry.by_name(name) if registry.is_name(name) else None)
    return known.kind if known else USUAL.get(command, "moshi")


def in_small(command: Command, models: dict[str, Path]) -> list[str]:
    """The arguments of a command with small models for large ones, files for devices, and few steps."""
    name, given, made = command.ours, command.arguments, []
    at = iter(given)
    for word in at:
        if word in ("--model", "--hf-repo"):
            value = next(at)
            made += ["--model", value if Path(value).is_dir() else str(models[kind_of(value, name)])]
        elif word in ("--input-device", "--output-device"):
            next(at)
        elif word == "--voice" and name == "run_tts" and "--demo" not in given:
            next(at)
            made += ["--voice", voice(models)]
        elif word == "--real-time":
            continue
        elif glob.has_magic(word):
            made += [n for n in sorted(glob.glob(word)) if n in ("a.wav", "b.wav")]
        else:
            made.append(word)
    names_model = any(w in given for w in ("--model", "--hf-repo", "--demo"))
    if not names_model and name in ("local", "run_inference", "stt", "run_tts", "run_helium", "bench"):
        made += ["--model", str(models[USUAL.get(name, "moshi")])]
    if name in ("convert", "quantize"):
        source = next(i for i, w in enumerate(made) if not w.startswith("-"))
        if made[source] != "demo" and not Path(made[source]).exists():
            made[source] = str(models[kind_of(made[source], name)])
        # The lines of a page are alternatives.
        shutil.rmtree(made[source + 1], ignore_errors=True)
    made += {"bench": ["--steps", "2", "--warmup", "1"], "run_helium": ["--max-tokens", "3"]}.get(name, [])
    if name == "run_inference":
        made += ["--tail", "0.2"]
    if name == "local":
        made += [
            *([] if "--input" in made else ["--input", "question.wav", "--output", "out.wav"]),
            "--fast",
            "--tail",
            "0.2",
        ]
    if (
        name == "stt"
        and not any(w in made for w in ("-", "--input"))
        and not any(w.endswith((".wav", ".mp3", ".flac")) for w in made)
    ):
        made += ["--input", "a.wav"]
    if name == "run_tts":
        made += ["--max-seconds", "2"]
        if "--demo" not in given:
            made += ["--voice-repo", str(models["tts"] / "voices")]
            made += [] if "--voice" in made else ["--voice", voice(models)]
        if not any((word == "-" and word != given[0]) or word.endswith((".wav", ".flac", ".jsonl")) for word in given):
            made += ["--output", "out.wav"]
    return made


def runs(command: Command) -> bool:
    return command.ours not in PARSED and not set(command.words) & set(PARSED_FLAGS)


def page_lines(name: str) -> list[Command]:
    return [
        c
        for b, line in LINES
        if b.page == name and "[--" not in line
        for c in pages.commands(line)
        if c.ours and runs(c)
    ]


@pytest.mark.parametrize("name", [n for n in TYPED if page_lines(n)])
def test_commands_run(name, desk, models, monkeypatch):
    for command in page_lines(name):
        arguments = in_small(command, models)
        piped = b"the people are here today" if command.ours in ("run_tts", "run_helium") else None
        data = Path(command.reads or ("question.pcm" if "--raw" in command.words else "a.wav")).read_bytes()
        Path("stdin").write_bytes(piped or data)
        with open("stdin") as given, open("stdout", "w+") as out, monkeypatch.context() as patched:
            patched.setattr("sys.stdin", given)
            patched.setattr("sys.stdout", out)
            code = pages.main_of(command.ours)(arguments)
        assert not code, (command, arguments)
        assert not command.piped_out or os.path.getsize("stdout") > 44, command


@pytest.mark.parametrize("name", PRINTED)
def test_python_runs(name, models, question, tmp_path, monkeypatch, capsys):
    """The blocks of a page, one after another, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(question, "question.wav")
    names: dict = {}
    stands = {"path/to/checkpoint": "moshi", "path/to/stt": "stt", "path/to/tts": "tts"}
    for block in [b for b in BLOCKS[name] if b.language == "python"]:
        code = block.text
        for path, kind in stands.items():
            code = code.replace(path, str(models[kind]))
        exec(compile(code, name, "exec"), names)
    assert PRINTED[name] in capsys.readouterr().out
