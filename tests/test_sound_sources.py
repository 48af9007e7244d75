"""Sound from anywhere: formats of phones and browsers, pipes while they come, cut recordings told, headerless sound never guessed at."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from moshi_mlx.audio import kinds, whole
from moshi_mlx.audio.files import AudioReader, Raw, read_audio
from moshi_mlx.audio.kinds import kind_of
from moshi_mlx.errors import AudioError

FFMPEG = shutil.which("ffmpeg")
needs_ffmpeg = pytest.mark.skipif(FFMPEG is None, reason="ffmpeg is not installed")
SECONDS = 4.0
# What each is made with: by libsndfile, or by ffmpeg with these arguments.
MADE = {
    "a.wav": None, "a.flac": None, "a.ogg": None, "a.mp3": None, "a.aiff": None, "a.au": None, "a.caf": None,
    "a.w64": None, "a.voc": None, "a.nist": None,
    "phone.m4a": ["-movflags", "faststart"], "film.mp4": ["-movflags", "frag_keyframe+empty_moov"], "late.mov": [],
    "browser.webm": ["-c:a", "libopus"], "a.aac": [], "a.opus": ["-c:a", "libopus"], "a.wma": [], "a.wv": [], "a.mka": ["-c:a", "flac"],
    "untagged.mp3": ["-write_xing", "0", "-id3v2_version", "0"], "tagged.mp3": ["-metadata", "title=x", "-id3v2_version", "3"],
}  # fmt: skip
NAMES = [pytest.param(n, marks=[] if made is None else needs_ffmpeg) for n, made in MADE.items()]
# Their index stands at the end, so that half of one is nothing.
UNREADABLE = ("late.mov",)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """The same sound in every format that can be made here."""
    folder = tmp_path_factory.mktemp("sounds")
    t = np.arange(int(24000 * SECONDS)) / 24000
    x = 0.3 * np.sin(2 * np.pi * 440 * t) + 0.05 * np.random.default_rng(0).standard_normal(len(t))
    for name, made in MADE.items():
        if made is None:
            soundfile.write(folder / name, x, 24000)
        elif FFMPEG:
            command = [FFMPEG, "-v", "error", "-i", str(folder / "a.wav"), *made, str(folder / name)]
            subprocess.run(command, check=True)
    return folder


def amr(seconds: float) -> bytes:
    """Frames of silence as phones record them; no encoder is needed for that."""
    return b"#!AMR\n" + (bytes([0x3C]) + bytes(31)) * round(50 * seconds)


def hear(path: Path) -> tuple[float, str | None]:
    """Seconds of a recording, and what is told of its end."""
    told: list[str] = []
    with AudioReader(path, tell=told.append) as reader:
        samples = sum(map(len, reader.blocks()))
        assert told == ([] if reader.shortened is None else [reader.shortened])
    return samples / 24000, told[0] if told else None


def hear_through_a_pipe(data: bytes) -> tuple[float, str]:
    code = (
        "from moshi_mlx.audio.files import AudioReader\nr = AudioReader('-')\nprint(sum(map(len, r.blocks())) / 24000)\n"
        "print(r.shortened or '')\nr.close()"
    )
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, timeout=60, check=False)
    assert not done.returncode, done.stderr.decode()[-500:]
    assert b"mpg123" not in done.stderr
    seconds, told = done.stdout.decode().splitlines()
    return float(seconds), told


# Formats ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_format_is_read(sounds, name, capfd):
    seconds, told = hear(sounds / name)
    assert seconds == pytest.approx(SECONDS, abs=0.12)
    assert told is None
    pcm = read_audio(sounds / name)
    assert np.sqrt(np.mean(pcm**2)) == pytest.approx(0.217, abs=0.02)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", [p for p in NAMES if p.values[0] not in ("a.au", "a.aiff", "a.mka", "tagged.mp3")])
def test_every_format_from_a_pipe(sounds, name):
    seconds, told = hear_through_a_pipe((sounds / name).read_bytes())
    assert seconds == pytest.approx(SECONDS, abs=0.12)
    assert told == ""


@needs_ffmpeg
def test_amr(tmp_path):
    (tmp_path / "a.amr").write_bytes(amr(2))
    assert hear(tmp_path / "a.amr") == (pytest.approx(2, abs=0.05), None)
    (tmp_path / "cut.amr").write_bytes(amr(2)[:-7])
    assert "is cut short: it ends after 2.0 s" in hear(tmp_path / "cut.amr")[1]


def only(tmp_path: Path, monkeypatch, **programs: str) -> None:
    """A PATH with nothing but these shell scripts."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@needs_ffmpeg
@pytest.mark.parametrize("name", ["phone.m4a", "a.aac", "late.mov"])
def test_afconvert_where_there_is_no_ffmpeg(sounds, tmp_path, monkeypatch, name):
    """As Apple's is called: afconvert -f WAVE -d LEF32 IN OUT."""
    script = f'[ "$1 $2 $3 $4" = "-f WAVE -d LEF32" ] || exit 9\nexec {FFMPEG} -v error -i "$5" -c:a pcm_f32le "$6"'
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    only(tmp_path, monkeypatch, afconvert=script)
    assert hear(sounds / name) == (pytest.approx(SECONDS, abs=0.12), None)
    assert list((tmp_path / "tmp").iterdir()) == []


@needs_ffmpeg
def test_what_apple_cannot_read(sounds, tmp_path, monkeypatch):
    only(tmp_path, monkeypatch, afconvert="exit 9")
    with pytest.raises(AudioError, match=r"browser\.webm is webm sound, which needs ffmpeg, and none is installed"):
        AudioReader(sounds / "browser.webm")
    with pytest.raises(AudioError, match=r"phone\.m4a is cut short or damaged and cannot be read as mp4 sound\.$"):
        AudioReader(sounds / "phone.m4a")


@needs_ffmpeg
def test_neither_program(sounds, tmp_path, monkeypatch):
    only(tmp_path, monkeypatch)
    with pytest.raises(AudioError, match=r"needs afconvert, which every Mac has, or ffmpeg, and none is installed\. Install ffmpeg\."):  # fmt: skip
        AudioReader(sounds / "phone.m4a")
    assert hear(sounds / "a.mp3")[0] == pytest.approx(SECONDS, abs=0.12)


@needs_ffmpeg
def test_a_film_without_sound(tmp_path):
    command = [FFMPEG, "-v", "error", "-f", "lavfi", "-i", "color=s=16x16:d=1", str(tmp_path / "mute.mp4")]
    subprocess.run(command, check=True)
    with pytest.raises(AudioError, match=r"mute\.mp4 holds no sound\.$"):
        AudioReader(tmp_path / "mute.mp4")


@needs_ffmpeg
def test_a_name_that_looks_like_an_option_or_an_address(sounds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-i.m4a", "http:x.m4a", "a b;c.m4a"):
        shutil.copy(sounds / "phone.m4a", name)
        assert hear(Path(name))[1] is None


# What is cut short -----------------------------------------------------------------------------------------------------

LENGTHS = (
    "a.wav",
    "a.flac",
    "a.mp3",
    "tagged.mp3",
    "a.aiff",
    "a.caf",
    "a.w64",
    "a.voc",
    "a.nist",
    "phone.m4a",
    "browser.webm",
    "a.wma",
    "a.mka",
)


@pytest.mark.parametrize("name", [p for p in NAMES if p.values[0] not in UNREADABLE])
@pytest.mark.parametrize("part", [0.5, 0.95])
def test_cut_recordings_are_told(sounds, tmp_path, name, part, capfd):
    data = (sounds / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * part)])
    seconds, told = hear(tmp_path / name)
    # What is packed in large blocks loses the whole of one.
    assert SECONDS * (part - 0.5) < seconds < SECONDS
    assert told is not None and told.startswith(f"{tmp_path / name} is cut short: ")
    assert (f"{seconds:.1f} of 4." in told) == (name in LENGTHS), told
    assert f"{seconds:.1f}" in told
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", [p for p in NAMES if p.values[0] in ("a.wav", "a.flac", "a.ogg", "a.mp3", "phone.m4a", "browser.webm", "a.aac")])  # fmt: skip
def test_cut_recordings_from_a_pipe_are_told(sounds, name):
    data = (sounds / name).read_bytes()
    seconds, told = hear_through_a_pipe(data[: len(data) // 2])
    assert SECONDS * 0.2 < seconds < SECONDS
    assert told.startswith("standard input is cut short: ")


def test_every_kind_that_is_known_is_followed_to_its_end():
    known = {k for k in kinds._MAGIC.values() if k} | {"mp3", "aac", "mp4"}
    # Nobody can make it here.
    assert known - set(whole._WALKS) == {"ape"}


@needs_ffmpeg
def test_an_index_that_is_missing(sounds, tmp_path):
    (tmp_path / "late.mov").write_bytes((sounds / "late.mov").read_bytes()[:20000])
    with pytest.raises(AudioError, match=r"late\.mov is cut short or damaged and cannot be read as mp4 sound"):
        AudioReader(tmp_path / "late.mov")


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000, 0xFFFFFFFF - 36])
def test_wav_sound_of_unknown_length_is_whole(tmp_path, size):
    """A recorder that crashed before it knew, or a program that wrote to a pipe."""
    soundfile.write(tmp_path / "a.wav", np.ones(24000) / 2, 24000)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[40:44] = size.to_bytes(4, "little")
    data[4:8] = min(size + 36, 0xFFFFFFFF).to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(data)
    assert hear(tmp_path / "a.wav") == (1.0, None)
    assert hear_through_a_pipe(bytes(data)) == (1.0, "")


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM"])
def test_kinds_of_wav_from_a_pipe(tmp_path, subtype):
    x = np.stack([np.sin(np.arange(16000) / 9) / 2, np.zeros(16000)], axis=1)
    soundfile.write(tmp_path / "a.wav", x, 16000, subtype=subtype)
    expected = read_audio(tmp_path / "a.wav")
    os.mkfifo(tmp_path / "pipe")
    threading.Thread(
        target=lambda: (tmp_path / "pipe").write_bytes((tmp_path / "a.wav").read_bytes()), daemon=True
    ).start()
    # Where it takes another program, its arithmetic is another.
    np.testing.assert_allclose(read_audio(tmp_path / "pipe"), expected, atol=1e-3 if subtype == "IMA_ADPCM" else 1e-6)


# Sound without a header ------------------------------------------------------------------------------------------------


def headerless() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    quiet = rng.integers(-1, 2, 40000).astype("<i2")
    return {
        "quiet": quiet.tobytes(),
        "loud": rng.integers(-32768, 32767, 40000).astype("<i2").tobytes(),
        "minus one": np.full(40000, -1, "<i2").tobytes(),
        "silence": bytes(80000),
        "floats": (rng.standard_normal(40000) / 10).astype("<f4").tobytes(),
        "one mpeg header": b"\xff\xfb\x90\x00" + rng.bytes(60000),
        "text": b"Not sound at all. " * 1000,
        "playlist": b"#EXTM3U\n/etc/passwd\n" * 100,
    }


@pytest.mark.parametrize("kind", headerless())
def test_headerless_sound_is_never_guessed_at(tmp_path, kind, capfd):
    data = headerless()[kind]
    for name in ("a.raw", "a.mp3", "a.wav", "a.aac"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(AudioError, match=r"is not an audio file that can be read\. Expected .*needs --raw RATE\.$"):
            AudioReader(tmp_path / name)
    assert capfd.readouterr().err == ""


def test_random_bytes_are_no_sound():
    rng = np.random.default_rng(1)
    assert [k for _ in range(2000) if (k := kind_of(b"\xff" + bytes([rng.integers(224, 256)]) + rng.bytes(4000)))] == []


@pytest.mark.parametrize(("form", "kind"), [("s16le", "<i2"), ("f32le", "<f4")])
def test_raw(tmp_path, form, kind):
    x = np.sin(np.arange(16000) / 9) / 2
    data = (x * (32768 if kind == "<i2" else 1)).astype(kind).tobytes()
    (tmp_path / "a.raw").write_bytes(data)
    with AudioReader(tmp_path / "a.raw", raw=Raw(16000, form)) as reader:
        assert reader.duration == 1.0
        pcm = np.concatenate(list(reader.blocks()))
    soundfile.write(tmp_path / "a.wav", x, 16000, subtype="FLOAT")
    np.testing.assert_allclose(pcm, read_audio(tmp_path / "a.wav"), atol=1e-4)


def test_raw_floats_that_are_no_numbers(tmp_path):
    (tmp_path / "a.raw").write_bytes(np.full(4000, np.nan, "<f4").tobytes())
    with pytest.raises(AudioError, match="not numbers"):
        read_audio(tmp_path / "a.raw", raw=Raw(16000, "f32le"))


# While it comes --------------------------------------------------------------------------------------------------------


def first_and_last(path: Path, data: bytes, pause: int, raw: Raw | None = None) -> tuple[float, float]:
    """Seconds of sound heard before the writer goes on after `pause` bytes, and in all."""
    os.mkfifo(path)
    go = threading.Event()

    def write() -> None:
        with path.open("wb", buffering=0) as f:
            f.write(data[:pause])
            go.wait(20)
            f.write(data[pause:])

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    with AudioReader(path, raw=raw) as reader:
        blocks = reader.blocks()
        before = len(next(blocks)) / 24000
        go.set()
        rest = sum(map(len, blocks)) / 24000
    writer.join(10)
    return before, before + rest


@pytest.mark.parametrize(
    "name", [p for p in NAMES if p.values[0] in ("a.wav", "a.flac", "a.mp3", "a.aac", "browser.webm")]
)
def test_a_pipe_is_heard_while_it_comes(sounds, tmp_path, name):
    if name in ("a.flac", "a.mp3") and not FFMPEG:
        pytest.skip("ffmpeg is not installed")
    data = (sounds / name).read_bytes()
    before, whole = first_and_last(tmp_path / "pipe", data, int(len(data) * 0.75))
    assert 0 < before < 3.1
    assert whole == pytest.approx(SECONDS, abs=0.12)


def test_a_pipe_of_raw_samples_is_heard_while_it_comes(tmp_path):
    data = (np.sin(np.arange(32000) / 9) * 9000).astype("<i2").tobytes()
    before, whole = first_and_last(tmp_path / "pipe", data, 6401, Raw(16000))
    assert 0.05 < before <= 0.2
    assert whole == pytest.approx(2.0, abs=1e-3)


@needs_ffmpeg
def test_a_reader_that_is_closed_early_leaves_no_program_behind(sounds):
    reader = AudioReader(sounds / "browser.webm")
    next(reader.blocks())
    begun = time.monotonic()
    reader.close()
    assert time.monotonic() - begun < 5
    assert reader._sound._decoder._process.returncode is not None
