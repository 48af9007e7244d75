"""The C surface of libmoshi: its header, threads, memory, sanitizers, and programs that find the installed library."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import virtual_audio
from native_cases import NATIVE, ROOT, build, configure, export, export_small, require_tools, sound
from speech_toys import checkpoint, loaded

from moshi_mlx import checkpoint as checkpoints

DEMO = ROOT / "moshi_mlx" / "demo"
QUESTION = ROOT / "tests" / "goldens" / "system" / "question_a"
linux = pytest.mark.skipif(sys.platform != "linux", reason="the sanitizers of GCC on Linux")


@pytest.fixture(scope="module")
def question():
    return checkpoints.load(QUESTION)


@pytest.fixture(scope="module")
def folders(question, tmp_path_factory):
    """A small conversation, the same with other rings, its codec, and speech-to-text."""
    place = tmp_path_factory.mktemp("folders")
    return {
        "talk": export_small(question, place / "talk"),
        "other": export(question, place / "other", capacities=[30]),
        "codec": export(question, place / "codec", codec=True),
        "stt": export(loaded("tiny-stt"), place / "stt"),
    }


def run(*command, **options) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_parts(native):
    assert run(native.folder / "tests" / "moshi-units") == "ok\n"


def test_every_function_from_c(native, folders, tmp_path):
    """Compiled as C99, and the header as C++11, with all warnings as errors."""
    surface = native.folder / "tests" / "moshi-surface"
    assert run(surface, folders["talk"], folders["codec"], tmp_path / "talk.safetensors", cwd=tmp_path) == "ok\n"
    run(native.folder / "tests" / "moshi-header")


def test_every_function_by_name(native):
    """Nothing but the header's functions is to be seen in the library, and all of them are."""
    header = (NATIVE / "include" / "moshi.h").read_text()
    declared = {
        line.split("(")[0].split()[-1].lstrip("*") for line in header.splitlines() if line.startswith("MOSHI_API")
    }
    from native_program import FUNCTIONS

    assert declared == set(FUNCTIONS)
    symbols = run("nm", "-D" if sys.platform == "linux" else "-g", "--defined-only", native.library)
    assert {line.split()[-1].lstrip("_") for line in symbols.splitlines() if line} == declared


def test_ten_threads_and_two_models(native, folders):
    assert run(native.folder / "tests" / "moshi-threads", folders["talk"], folders["other"]) == "ok\n"


@pytest.mark.parametrize("frames", [120, pytest.param(20000, marks=pytest.mark.slow)])
def test_rings_are_written_in_place(native, folders, frames):
    """Every ring moves where it grows, twice, and never else; memory is what it was half-way."""
    told = json.loads(run(native.folder / "tests" / "moshi-rings", folders["talk"], frames))
    assert told["sizes"] == 3
    assert told["moved"] == 2 * told["rings"]
    assert told["end"] <= told["settled"] + 100_000


@pytest.mark.slow
def test_compiled_graphs(native, folders):
    """What a GPU runs, on this device."""
    told = json.loads(run(native.folder / "tests" / "moshi-rings", folders["talk"], 120, "compiled"))
    assert told["moved"] == 2 * told["rings"]


def test_a_program_that_uses_mlx_itself(native, folders):
    """MLX belongs to one thread: who has used it before is told so."""
    code = (
        "import sys, mlx.core as mx; mx.eval(mx.zeros(3) + 1); sys.path.insert(0, sys.argv[1]); from native_program import *\n"
        "try: Model(library(sys.argv[2]), sys.argv[3])\nexcept MoshiError as e: print(e)"
    )
    told = run(sys.executable, "-c", code, ROOT / "tests", native.library, folders["talk"])
    assert "this process has used MLX before the first moshi_load" in told


def test_a_forked_child_is_told(native, folders):
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from native_program import *\n"
        "session = Session(Model(library(sys.argv[2]), sys.argv[3]))\n"
        "child = os.fork()\n"
        "if child: os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "try: session.step(np.zeros(1920, np.float32))\n"
        "except MoshiError as e: print(e, flush=True)\n"
        "os._exit(0)"
    )
    assert "before this process was forked" in run(
        sys.executable, "-c", code, ROOT / "tests", native.library, folders["talk"]
    )


def test_installed_and_found(native, folders, tmp_path):
    """`cmake --install`, `find_package(moshi)` from a folder of its own, and what the examples of the documentation do."""
    run("cmake", "--install", native.folder, "--prefix", tmp_path / "prefix")
    assert (tmp_path / "prefix" / "include" / "moshi.h").is_file()
    run(
        "cmake",
        "-S",
        ROOT / "examples" / "native",
        "-B",
        tmp_path / "build",
        f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}",
    )
    build(tmp_path / "build")
    heard = sound(12)
    raw = (np.clip(heard, -1, 1) * 32767).astype("<i2").tobytes()
    done = subprocess.run([tmp_path / "build" / "talk", folders["talk"]], input=raw, capture_output=True, check=True)
    assert len(done.stdout) == len(raw)
    assert np.frombuffer(done.stdout, "<i2").any()
    done = subprocess.run([tmp_path / "build" / "talk", tmp_path], input=raw, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"has no manifest.json" in done.stderr
    done = subprocess.run(
        [tmp_path / "build" / "subtitles", folders["stt"]], input=raw, capture_output=True, check=True
    )
    assert all(float(line.split()[0]) > -2 for line in done.stdout.decode().splitlines())
    # The installed command finds its library and MLX.
    (tmp_path / "in.raw").write_bytes(raw)
    done = subprocess.run(
        [tmp_path / "prefix" / "bin" / "moshi-cli", folders["talk"], "-", "-"],
        input=raw,
        capture_output=True,
        check=True,
    )
    assert len(done.stdout) == len(raw)


def test_speech_to_text_by_the_command(native, folders, tmp_path):
    """The words of the library with the times of the recording, as `stt --timing streaming` tells them."""
    question, _ = soundfile.read(ROOT / "examples" / "question.wav", dtype="int16")
    soundfile.write(tmp_path / "in.wav", question[:48000], 24000, subtype="PCM_16")
    told = json.loads(native.talk(folders["stt"], tmp_path / "in.wav", "--json").stdout)["replies"][0]
    command = [
        sys.executable,
        "-m",
        "moshi_mlx.stt",
        tmp_path / "in.wav",
        "--model",
        checkpoint("tiny-stt"),
        "--timing",
        "streaming",
        "--format",
        "json",
    ]
    expected = json.loads(run(*command))
    words = expected["words"] if isinstance(expected, dict) else expected[0]["words"]
    assert words
    for own, other in zip(told["words"], words, strict=False):
        assert own["word"] == other.get("word", other.get("text")).strip()
        assert own["start"] == pytest.approx(other["start"], abs=0.002)
        assert own["end"] is None or own["end"] == pytest.approx(other["end"], abs=0.002)
    assert len(told["words"]) == len(words)


def test_mistakes_of_the_command(native, folders, tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(4800, np.int16), 24000)
    soundfile.write(tmp_path / "fast.wav", sound(2).reshape(-1), 48000)
    soundfile.write(tmp_path / "packed.wav", sound(2).reshape(-1), 24000, subtype="ULAW")
    (tmp_path / "text.wav").write_text("no sound at all")
    (tmp_path / "short.wav").write_bytes((tmp_path / "fast.wav").read_bytes()[:30])
    soundfile.write(tmp_path / "good.wav", sound(2).reshape(-1), 24000)
    out = tmp_path / "out.wav"
    for arguments, words in (
        (["missing", "in.wav", out], "missing is not a folder"),
        ([folders["talk"], tmp_path / "missing.wav", out], "does not exist"),
        ([folders["talk"], tmp_path, out], "is a folder"),
        ([folders["talk"], tmp_path / "silent.wav", out], "nothing but digital silence"),
        ([folders["talk"], tmp_path / "fast.wav", out], "has 48000 samples a second, the model hears 24000"),
        ([folders["talk"], tmp_path / "packed.wav", out], "of a kind that moshi-cli does not read"),
        ([folders["talk"], tmp_path / "text.wav", out], "is no wav file"),
        ([folders["talk"], tmp_path / "short.wav", out], "is cut short"),
        ([folders["talk"], tmp_path / "good.wav", tmp_path / "no" / "out.wav"], "does not exist; make it first"),
        ([folders["talk"], tmp_path / "good.wav", out, "--top-k", "-1"], "--top-k should be 0 or more"),
        ([folders["talk"], tmp_path / "good.wav", out, "--voice", "anna"], "this folder has no voice 'anna'"),
        ([folders["talk"], tmp_path / "good.wav", out, "--restore", tmp_path / "no.safetensors"], "does not exist"),
        ([folders["talk"], tmp_path / "good.wav", out, "--save", tmp_path / "talk.bin"], "should end in .safetensors"),
        ([folders["talk"], tmp_path / "good.wav", out, "--save", tmp_path / "no" / "a.safetensors"], "make it first"),
        ([folders["talk"], tmp_path / "good.wav", tmp_path / "good.wav"], "is named twice"),
        ([folders["talk"], tmp_path / "good.wav", out, "--tail", "1e300"], "--tail should be 0 to 86400 seconds"),
        ([folders["talk"], "-", out], "standard input holds no sound"),
        ([folders["stt"], tmp_path / "good.wav", out], "leave out OUT"),
        ([folders["talk"], tmp_path / "good.wav", "-", "--json"], "cannot both go to standard output"),
        ([folders["talk"]], "expected FOLDER IN [OUT]"),
        ([folders["talk"], "-", out, "--nothing"], "unknown option --nothing"),
    ):
        done = native.talk(*arguments, stdin=subprocess.DEVNULL)
        assert done.returncode in (1, 2), arguments
        assert words in done.stderr.decode(), (arguments, done.stderr)
        assert not out.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "fast.wav",
        "good.wav",
        "packed.wav",
        "short.wav",
        "silent.wav",
        "text.wav",
    ]


def test_standard_input_that_cannot_be_read(native, folders, tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        done = native.talk(folders["talk"], "-", tmp_path / "out.wav", stdin=folder)
    finally:
        os.close(folder)
    assert done.returncode == 1
    assert b"standard input cannot be read: Is a directory" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_waiting_for_sound(native, folders, tmp_path, number):
    command = [str(native.cli), str(folders["talk"]), "-", str(tmp_path / "out.wav")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stderr is not None
        assert b"loaded in" in program.stderr.readline()
        try:
            deadline = time.monotonic() + 10
            while program.poll() is None and time.monotonic() < deadline:
                # One that comes before the wait has begun is not what is looked at.
                time.sleep(0.5)
                program.send_signal(number)
            assert program.poll() == 130
        finally:
            program.kill()
    assert list(tmp_path.iterdir()) == []


def test_where_the_command_writes(native, folders, tmp_path):
    """Links are followed, what is no regular file is written straight into, a pipe that nobody reads ends the work; nothing is left beside."""
    soundfile.write(tmp_path / "in.wav", sound(20).reshape(-1), 24000)
    talk = [folders["talk"], tmp_path / "in.wav"]
    assert native.talk(*talk, tmp_path / "out.wav").returncode == 0
    expected = (tmp_path / "out.wav").read_bytes()
    (tmp_path / "real.wav").write_bytes(b"old")
    (tmp_path / "real.safetensors").write_bytes(b"old")
    (tmp_path / "link.wav").symlink_to("real.wav")
    (tmp_path / "link.safetensors").symlink_to("real.safetensors")
    done = native.talk(*talk, tmp_path / "link.wav", "--save", tmp_path / "link.safetensors")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "link.wav").is_symlink() and (tmp_path / "link.safetensors").is_symlink()
    assert (tmp_path / "real.wav").read_bytes() == expected
    assert native.talk(*talk, "--restore", tmp_path / "real.safetensors").returncode == 0
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        assert native.talk(*talk, tmp_path / "pipe").returncode == 0
        assert reader.communicate()[0] == expected
    os.mkfifo(tmp_path / "pipe.safetensors")
    done = native.talk(*talk, "--save", tmp_path / "pipe.safetensors")
    assert b"is no regular file" in done.stderr
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as nobody_reads:
        done = native.talk(*talk, "-", stdout=nobody_reads, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert b"standard output cannot be written: Broken pipe" in done.stderr
    names = {"in", "out", "real", "link", "pipe"}
    assert {p.name.split(".")[0] for p in tmp_path.iterdir()} == names
    assert not list(tmp_path.glob("*part*"))


def test_saved_and_restored_by_the_command(native, folders, tmp_path):
    pcm = (np.clip(sound(20).reshape(-1), -1, 1) * 32767).astype(np.int16)
    soundfile.write(tmp_path / "all.wav", pcm, 24000)
    soundfile.write(tmp_path / "a.wav", pcm[: 10 * 1920], 24000)
    soundfile.write(tmp_path / "b.wav", pcm[10 * 1920 :], 24000)
    saved = tmp_path / "talk.safetensors"
    for arguments in (
        ["all.wav", "whole.wav"],
        ["a.wav", "1.wav", "--save", saved],
        ["b.wav", "2.wav", "--restore", saved],
    ):
        done = native.talk(folders["talk"], *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    parts = [(tmp_path / name).read_bytes()[44:] for name in ("1.wav", "2.wav")]
    assert b"".join(parts) == (tmp_path / "whole.wav").read_bytes()[44:]


def test_time_beside_python(native, folders, question):
    """Start and CPU time of a frame next to those of the same folder's model in Python; printed, and bounded loosely: machines are busy."""
    from moshi_mlx.session import Session

    frames = 60
    answer, _ = native.run(folders["talk"], [["step", frames]], sound(frames))
    session = Session(question)
    begin = time.process_time()
    for pcm in sound(frames):
        session.step(pcm)
    python = (time.process_time() - begin) / frames
    print(
        f"library {1000 * answer['cpu'] / frames:.2f} ms of CPU a frame, start {answer['start_seconds']:.2f} s; Python {1000 * python:.2f} ms"
    )
    assert answer["cpu"] / frames < 3 * python + 0.005


@linux
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["address,undefined", "thread"])
def test_sanitizers(folders, tmp_path, kind):
    """Parts, every function, and ten threads under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""
    require_tools()
    configure(NATIVE, tmp_path / "build", f"-DMOSHI_SANITIZE={kind}")
    build(tmp_path / "build")
    suppressed = NATIVE / "tests" / "suppressions"
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "detect_stack_use_after_return=1",
        "LSAN_OPTIONS": f"suppressions={suppressed}/leak.txt",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": f"suppressions={suppressed}/thread.txt",
    }
    tests = tmp_path / "build" / "tests"
    for command in (
        [tests / "moshi-units"],
        [tests / "moshi-surface", folders["talk"], folders["codec"], tmp_path / "talk.safetensors"],
        [tests / "moshi-threads", folders["talk"], folders["other"]],
        [tests / "moshi-rings", folders["talk"], "60"],
    ):
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-6000:]
        assert "Sanitizer" not in done.stderr, done.stderr[-6000:]


@linux
@pytest.mark.skipif(not virtual_audio.available(), reason="PulseAudio and its ALSA plugin are not installed")
def test_a_talk_through_sound_devices(native, tmp_path):
    """A question is played into the microphone; moshi-cli answers it, and ends in order when it is interrupted."""
    if (
        "--live" not in native.talk("--help").stdout.decode()
        or b"without PortAudio" in native.talk(tmp_path, "--live").stderr
    ):
        assert os.environ.get("CI") != "true", "where tests have to run, PortAudio's header is there"
        pytest.skip("moshi-cli was built without PortAudio")
    folder = export(checkpoints.load(DEMO), tmp_path / "demo")
    server = virtual_audio.VirtualAudio(tmp_path / "audio")
    try:
        devices = f'playback.pcm "{virtual_audio.SPEAKER}"\ncapture.pcm "{virtual_audio.MICROPHONE}"'
        with (tmp_path / "audio" / "alsa.conf").open("a") as alsa:
            alsa.write(f"pcm.!default {{ type asym\n{devices}\n}}\n")
        with subprocess.Popen(
            [native.cli, folder, "--live"], env=server.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as program:
            assert program.stderr is not None
            assert program.stdout is not None
            assert any(line.startswith("talk;") for line in program.stderr)
            question, _ = soundfile.read(DEMO / "prompts" / "sum.flac", dtype="float32")
            server.speak(np.pad(question, (24000, 24000)))
            said = ""
            while not said.endswith("seven"):
                letter = program.stdout.read(1)
                assert letter, said
                said += letter
            program.send_signal(signal.SIGINT)
            assert program.wait(20) == 0
    finally:
        server.stop()
    assert said.strip() == "three plus four is seven"
