"""One room opens every output: whole or not at all, under the name that was given, whatever ends the program."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from written import writers

import moshi_mlx
from moshi_mlx.audio.files import AudioWriter, read_audio
from moshi_mlx.bench import measure as bench
from moshi_mlx.checkpoint.weights_writer import save_weights
from moshi_mlx.errors import OutputError
from moshi_mlx.output import (
    OutputFile,
    check_new_folder,
    check_writable,
    is_standard_output,
    make_folder,
    refuse_inputs,
    unfinished,
    write_bytes,
    write_text,
)

ROOT = Path(moshi_mlx.__file__).resolve().parents[1]
SOUND = np.sin(np.arange(24000) / 10).astype(np.float32) / 2


def in_folder(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


# Nothing else writes ---------------------------------------------------------------------------------------------------


def test_nothing_else_opens_a_file_for_writing():
    files = [f for room in ("moshi_mlx", "convert", "quantize") for f in (ROOT / room).rglob("*.py")]
    assert len(files) > 150
    room = ROOT / "moshi_mlx" / "output"
    found = {str(f.relative_to(ROOT)): writers(f.read_text()) for f in files if room not in f.parents}
    assert {name: calls for name, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "code",
    [
        "open(p, 'w')", "open(p, mode='ab')", "p.open('wb')", "os.open(p, os.O_WRONLY | os.O_CREAT)", "os.fdopen(h, 'r+b')",
        "p.write_text(t)", "p.write_bytes(b)", "os.replace(a, b)", "p.replace(q)", "p.rename(q)", "shutil.copyfile(a, b)",
        "tempfile.mkstemp()", "mkstemp()", "mx.save_safetensors(p, a)", "np.savez(p, a)", "np.save(p, a)",
        "soundfile.write(p, x, 24000)", "soundfile.SoundFile(p, 'w', 24000, 1)", "figure.savefig(p)", "tarfile.open(p, 'w:gz')",
        "zipfile.ZipFile(p, 'w')", "p.touch()", "x.tofile(p)",
    ],
)  # fmt: skip
def test_what_counts_as_writing(code):
    assert len(writers(code)) == 1


@pytest.mark.parametrize(
    "code",
    [
        "open(p)", "open(p, 'rb')", "p.open()", "os.open(p, os.O_RDONLY)", "text.replace('a', 'b')", "replace(cfg, a=1)",
        "write_text(p, t)", "rename(a, b)", "soundfile.SoundFile(p)", "voice.save(p)", "soundfile.SoundFile(self.output.fd, 'w')",
        "b = io.BytesIO()\nfigure.savefig(b)",
    ],
)  # fmt: skip
def test_what_does_not(code):
    assert writers(code) == []


# Regular files, links, pipes, devices ----------------------------------------------------------------------------------


def test_a_file_is_replaced_in_one_moment(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o640)
    with OutputFile(path) as output:
        output.write(b"new")
        assert path.read_text() == "old"
        output.commit()
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with OutputFile(path) as output:
        output.write(b"never")
    assert path.read_text() == "new"
    assert in_folder(tmp_path) == ["a.txt"]


def test_a_new_file_has_the_usual_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


@pytest.mark.parametrize("target", ["there.txt", "not yet.txt", "folder/there.txt"])
def test_links_are_followed(tmp_path, target):
    (tmp_path / "folder").mkdir()
    (tmp_path / target).write_text("old") if target != "not yet.txt" else None
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "link to link").symlink_to(tmp_path / "link")
    write_text(tmp_path / "link to link", "new")
    assert (tmp_path / target).read_text() == "new"
    assert (tmp_path / "link").is_symlink() and (tmp_path / "link to link").is_symlink()
    assert not list(tmp_path.rglob("*.part"))


def reader_of(fifo: Path) -> tuple[threading.Thread, list[bytes]]:
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(fifo.read_bytes()), daemon=True)
    thread.start()
    return thread, got


def test_a_named_pipe_is_written_into(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    thread, got = reader_of(tmp_path / "pipe")
    write_text(tmp_path / "pipe", "for the reader")
    thread.join(10)
    assert got == [b"for the reader"]
    assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)
    assert in_folder(tmp_path) == ["pipe"]


@pytest.mark.parametrize(("name", "readable"), [("a.wav", "WAV"), ("a.flac", "FLAC"), ("a.ogg", "OGG"), ("a", "WAV")])
def test_sound_into_a_named_pipe(tmp_path, name, readable):
    os.mkfifo(tmp_path / name)
    thread, got = reader_of(tmp_path / name)
    with AudioWriter(tmp_path / name) as writer:
        writer.write(SOUND)
        writer.commit()
    thread.join(10)
    (tmp_path / "copy").write_bytes(got[0])
    assert soundfile.info(tmp_path / "copy").format == readable
    assert len(read_audio(tmp_path / "copy")) == pytest.approx(24000, abs=100)
    assert in_folder(tmp_path) == sorted([name, "copy"])


def test_a_pipe_whose_reader_went_away(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    threading.Thread(target=lambda: open(tmp_path / "pipe", "rb").close(), daemon=True).start()
    with OutputFile(tmp_path / "pipe") as output, pytest.raises(OutputError, match="pipe: its reader has gone away"):
        # More than a pipe holds.
        output.write(bytes(1 << 22))


def test_a_device_is_written_into(tmp_path):
    """A node of our own, like /dev/null."""
    node = tmp_path / "null"
    try:
        os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        open(node, "wb").close()
    except OSError:
        pytest.skip("devices cannot be made here")
    (tmp_path / "link").symlink_to(node)
    for path in (node, tmp_path / "link"):
        write_bytes(path, b"gone")
        save_weights(path, {"a": mx.ones(4)})
    assert stat.S_ISCHR(node.lstat().st_mode)
    assert in_folder(tmp_path) == ["link", "null"]


def test_the_longest_name(tmp_path):
    name = "é" * 125 + ".txt"
    write_text(tmp_path / name, "x")
    assert in_folder(tmp_path) == [name]


def refusals(d: Path) -> dict[str, tuple[Path | str, str]]:
    (d / "folder").mkdir()
    (d / "file").touch()
    (d / "loop").symlink_to("loop")
    (d / "to folder").symlink_to("folder")
    (d / "to nowhere").symlink_to("no/where")
    (d / "no/where").parent.mkdir()
    (d / "no").rmdir()
    return {
        "folder": (d / "folder", r"/folder is a folder; expected the name of a file"),
        "link to a folder": (d / "to folder", r"/to folder is a folder"),
        "file as a folder": (d / "file" / "x", r"/file is a file; expected the folder of x"),
        "no folder": (d / "no" / "x", r"the folder .*/no does not exist; make it first"),
        "link into no folder": (d / "to nowhere", r"the folder .* does not exist"),
        "loop": (d / "loop", r"/loop is a symbolic link that leads nowhere"),
        "no name": ("", r"is not the name"),
        "proc": ("/proc/x.wav", r"^/proc/x\.wav cannot be written: no file can be made there\.$"),
        "too long": (d / ("x" * 300), r"x cannot be written: file name too long"),
    }


@pytest.mark.parametrize("case", ["folder", "link to a folder", "file as a folder", "no folder", "link into no folder", "loop", "no name", "proc", "too long"])  # fmt: skip
def test_refused_under_the_name_that_was_given(tmp_path, case):
    path, message = refusals(tmp_path)[case]
    with pytest.raises(OutputError, match=message) as e:
        write_text(path, "x")
    assert ".part" not in str(e.value)
    assert "Errno" not in str(e.value)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_what_is_write_protected(tmp_path):
    (tmp_path / "a").touch(0o444)
    with pytest.raises(OutputError, match="write-protected"):
        check_writable(tmp_path / "a")


# Inputs ----------------------------------------------------------------------------------------------------------------


def test_an_output_that_is_an_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.wav").write_bytes(b"sound")
    Path("link.wav").symlink_to("a.wav")
    os.link("a.wav", "hard.wav")
    for name in ("a.wav", "./a.wav", str(tmp_path / "a.wav"), f"../{tmp_path.name}/a.wav", "link.wav", "hard.wav"):
        with pytest.raises(OutputError, match="is an input too"):
            refuse_inputs([name], ["a.wav"])
        with pytest.raises(OutputError, match="is an input too"):
            refuse_inputs(["a.wav"], ["other.wav", name])
    with pytest.raises(OutputError, match="is another output too"):
        refuse_inputs(["new.wav", "./new.wav"], [])
    refuse_inputs(["b.wav", None, "-"], ["a.wav", None, "-"])
    os.mkfifo("pipe")
    refuse_inputs(["pipe"], ["pipe"])


COMMANDS = {
    "reply over recording": ("run_inference", ["q.wav", "q.wav"]),
    "text over recording": ("run_inference", ["q.wav", "o.wav", "--text", "./q.wav"]),
    "text over reply": ("run_inference", ["q.wav", "o.wav", "--text", "o.wav"]),
    "batch beside its recordings": ("run_inference", ["q.wav", "r.wav", "--batch", "."]),
    "transcript over recording": ("stt", ["s.txt", "-o", "s.txt"]),
    "transcripts beside recordings": ("stt", ["s.txt", "q.wav", "--output-dir", "."]),
    "subtitles over text": ("run_tts", ["s.txt", "o.wav", "--subtitles", "s.txt"]),
    "speech over voice": ("run_tts", ["s.txt", "q.wav", "--voice", "link.wav"]),
    "talk over recording": ("local", ["--input", "q.wav", "--output", "link.wav"]),
    "trace over recording": ("local", ["--input", "q.wav", "--trace", "q.wav"]),
    "voice over voice": ("voices", ["v.safetensors", "v.safetensors"]),
    "report over recipe": ("quantize", ["SRC", "made", "-q", "4", "--recipe", "r.json", "--report", "r.json", "--no-picture"]),
    "trace over a checkpoint": ("local", ["--input", "q.wav", "--model", "m", "--trace", "m/config.json"]),
    "weights over weights": ("run_helium", ["--weights", "v.safetensors", "--quantize-bits", "4", "--save-quantized", "v.safetensors"]),
}  # fmt: skip


@pytest.mark.parametrize("case", COMMANDS)
def test_commands_never_write_over_what_they_read(tmp_path, monkeypatch, case):
    import importlib

    monkeypatch.chdir(tmp_path)
    soundfile.write("q.wav", SOUND, 24000)
    soundfile.write("r.wav", SOUND, 24000)
    Path("link.wav").symlink_to("q.wav")
    for name in ("s.txt", "v.safetensors", "r.json"):
        Path(name).write_text("something")
    Path("m").mkdir()
    Path("m/config.json").write_text("{}")
    before = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}
    command, args = COMMANDS[case]
    main = importlib.import_module(f"moshi_mlx.{command}" + (".__main__" if command == "quantize" else "")).main
    with pytest.raises(OutputError, match="too.*; name another file for the output"):
        main(args)
    assert {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()} == before


# Folders ---------------------------------------------------------------------------------------------------------------


def test_a_folder_made_as_a_whole_is_new_or_empty(tmp_path):
    check_new_folder(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    check_new_folder(tmp_path / "empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(OutputError, match="exists and is not empty"):
        check_new_folder(tmp_path / "full")
    with pytest.raises(OutputError, match="is a file"):
        check_new_folder(tmp_path / "full" / "x")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(OutputError, match="leads to no folder"):
        check_new_folder(tmp_path / "link")


@pytest.mark.parametrize("name", ["", ".", "../HERE", "link to here"])
def test_a_folder_made_as_a_whole_is_not_the_one_where_one_stands(tmp_path, monkeypatch, name):
    """Its shell would go on in a folder that is gone."""
    (tmp_path / "HERE").mkdir()
    monkeypatch.chdir(tmp_path / "HERE")
    (tmp_path / "link").symlink_to(tmp_path / "HERE")
    with pytest.raises(OutputError, match="is no name of a folder|needs a name of its own"):
        check_new_folder(tmp_path / "link" if name.startswith("link") else name)


def test_a_folder_that_receives_files(tmp_path):
    assert make_folder(tmp_path / "new" / "folder").is_dir()
    make_folder(tmp_path / "new")
    (tmp_path / "link").symlink_to("new")
    make_folder(tmp_path / "link")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "file").touch()
    for name, words in (("gone", "gone is a symbolic link that leads to no folder"), ("file", "file is a file; expected a folder"), ("file/x", "cannot be made: not a directory")):  # fmt: skip
        with pytest.raises(OutputError, match=words):
            make_folder(tmp_path / name)


FOLDERS = {
    "batch": ("run_inference", ["q.wav", "--demo", "--batch", "FOLDER"]),
    "transcripts": ("stt", ["q.wav", "--output-dir", "FOLDER"]),
    "recording": ("local", ["--input", "q.wav", "--output", "o.wav", "--demo", "--record", "FOLDER"]),
    "conversion": ("convert.__main__", ["q", "FOLDER"]),
    "packing": ("quantize.__main__", ["q", "FOLDER", "-q", "4"]),
    "export": ("export.__main__", ["demo", "FOLDER"]),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_no_name_of_a_folder(tmp_path, monkeypatch, case):
    """A variable of a shell that was never set does not mean here, nor that no recording is wanted."""
    import importlib

    monkeypatch.chdir(tmp_path)
    soundfile.write("q.wav", SOUND, 24000)
    module, args = FOLDERS[case]
    main = importlib.import_module(f"moshi_mlx.{module}").main
    with pytest.raises(OutputError, match="is no name of a folder|needs a name of its own"):
        main(["" if a == "FOLDER" else a for a in args])
    assert in_folder(tmp_path) == ["q.wav"]


def test_an_export_goes_where_a_link_leads(tmp_path, tiny_checkpoint):
    from moshi_mlx.export.__main__ import main

    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    main([str(tiny_checkpoint), str(tmp_path / "link"), "--codec"])
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "manifest.json").is_file()
    assert in_folder(tmp_path) == ["link", "real"]


# Standard output -------------------------------------------------------------------------------------------------------


def run_code(code: str, **options) -> subprocess.CompletedProcess:
    script = "from moshi_mlx.output import *\nfrom moshi_mlx.audio.files import *\nimport numpy as np\n" + code
    return subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=False, **options)


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_names_of_standard_output(name):
    if not os.path.exists(name) and name != "-":
        pytest.skip(f"there is no {name} here")
    assert is_standard_output(name)
    done = run_code(f"write_text({name!r}, 'words')")
    assert done.stdout == b"words", done.stderr


def test_a_file_behind_standard_output(tmp_path):
    """`> reply.wav`: the header tells the length, which it cannot in a pipe, and what stood there before is left."""
    code = "w = AudioWriter('-', raw=None); w.write(np.ones(1200) / 2); w.write(np.ones(1200) / 4); w.commit()"
    script = "import numpy as np\nfrom moshi_mlx.audio.files import AudioWriter\n" + code
    for mode, before in (("wb", b""), ("wb", b"before"), ("ab", b"")):
        with open(tmp_path / "o.wav", mode) as f:
            f.truncate(0)
            f.write(before)
            f.flush()
            subprocess.run([sys.executable, "-c", script], stdout=f, timeout=60, check=True)
        data = (tmp_path / "o.wav").read_bytes()
        assert data.startswith(before)
        (tmp_path / "p.wav").write_bytes(data[len(before) :])
        assert soundfile.info(tmp_path / "p.wav").frames == 2400
        assert (data[len(before) + 4 : len(before) + 8] == b"\xff\xff\xff\xff") == (mode == "ab")


def test_sound_through_a_pipe_is_what_the_file_holds(tmp_path):
    with AudioWriter(tmp_path / "o.wav") as writer:
        writer.write(SOUND)
        writer.commit()
    made = "x = np.sin(np.arange(24000) / 10).astype(np.float32) / 2\n"
    piped = run_code(made + "w = AudioWriter('-'); w.write(x); w.commit()").stdout
    assert piped[44:] == (tmp_path / "o.wav").read_bytes()[44:]
    assert run_code(made + "w = AudioWriter('-', raw='s16le'); w.write(x); w.commit()").stdout == piped[44:]
    floats = run_code(made + "w = AudioWriter('-', raw='f32le'); w.write(x); w.commit()").stdout
    np.testing.assert_array_equal(np.frombuffer(floats, "<f4"), SOUND)
    (tmp_path / "p.wav").write_bytes(piped)
    assert soundfile.info(tmp_path / "p.wav").frames == 24000


def test_standard_output_that_is_closed():
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -c \"from moshi_mlx.output import *; write_text('-', 'x')\" >&-"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "standard output is closed; name a file" in done.stderr


# Full disks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch):
    """Every disk is full from now on."""

    def write(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write)


def draw(path: Path) -> None:
    pytest.importorskip("matplotlib")
    bench.draw([1.0, 2.0], path, {"checkpoint": "x", "precision": "y", "chip": "z"})


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.txt", lambda p: write_text(p, "x")),
        ("a.safetensors", lambda p: save_weights(p, {"a": mx.ones(1000)})),
        ("a.png", draw),
    ],
)
def test_a_full_disk_names_the_file_and_the_reason(tmp_path, full_disk, name, write):
    with pytest.raises(OutputError, match=rf"^{tmp_path}/{name} cannot be written: no space left on device\.$"):
        write(tmp_path / name)
    assert in_folder(tmp_path) == []


def test_a_full_disk_under_libraries_that_do_not_say_why(tmp_path):
    """A limit of file sizes, which libsndfile meets in its own code."""
    code = """
        import resource, signal, sys
        import numpy as np
        from moshi_mlx.audio.files import AudioWriter
        from moshi_mlx.errors import MoshiError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        for name in sys.argv[1:]:
            try:
                with AudioWriter(name) as w:
                    for _ in range(30):
                        w.write(np.random.default_rng(0).uniform(-1, 1, 24000))
                    w.commit()
            except MoshiError as e:
                print(e)
        """
    names = [str(tmp_path / f"a.{kind}") for kind in ("wav", "flac", "ogg", "mp3")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *names], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.splitlines() == [f"{name} cannot be written: file too large." for name in names], done.stderr
    assert in_folder(tmp_path) == []


# Signals ---------------------------------------------------------------------------------------------------------------

BUSY = """
import signal, sys, time
from moshi_mlx.commands import run
from moshi_mlx.output import OutputFile, ScratchFolder

def main(argv):
    print("ready", flush=True)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        scratch = ScratchFolder()
        with OutputFile(sys.argv[1]) as output:
            output.write(b"x")
            if len(sys.argv) > 2:
                time.sleep(0.001)
        scratch.remove()

run(main)
"""


@pytest.mark.parametrize(("sent", "code", "word"), [("SIGHUP", 129, "the terminal was closed"), ("SIGTERM", 143, "terminated"), ("SIGINT", 130, "interrupted")])  # fmt: skip
def test_every_signal_cleans_up(tmp_path, sent, code, word):
    """At whatever moment it comes: outputs are begun and dropped all the time."""
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    # The tests themselves may run under `nohup`.
    script = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n{BUSY}"
    for i in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "o"), *["slowly"] * (i % 2)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.05 + 0.013 * i)
        process.send_signal(getattr(signal, sent))
        _, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert word in err
        assert "Traceback" not in err
        assert in_folder(tmp_path) == []


def test_nohup(tmp_path):
    """Who was told to be deaf for the end of its terminal goes on."""
    script = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{BUSY}"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "o")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_a_forked_child_takes_nothing_away(tmp_path):
    with OutputFile(tmp_path / "a") as output:
        output.write(b"x")
        child = os.fork()
        if not child:
            unfinished.remove_unfinished()
            os._exit(0)
        os.waitpid(child, 0)
        output.commit()
    assert in_folder(tmp_path) == ["a"]
