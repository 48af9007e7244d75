"""Audio files: every format and rate, constant memory, nothing half-written."""

from __future__ import annotations

import errno
import io
import os
import struct

import numpy as np
import pytest
import soundfile

from moshi_mlx.audio.files import AudioReader, AudioWriter, Raw, read_audio
from moshi_mlx.errors import AudioError, OutputError
from moshi_mlx.output import write_text


def tone(rate: int, seconds: float = 1.0, channels: int = 1) -> np.ndarray:
    t = np.arange(int(rate * seconds)) / rate
    x = 0.5 * np.sin(2 * np.pi * 440 * t).astype(np.float32)
    return np.stack([x] * channels, axis=1) if channels > 1 else x


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_formats(tmp_path, name):
    soundfile.write(tmp_path / name, tone(24000), 24000)
    pcm = read_audio(tmp_path / name)
    assert abs(len(pcm) - 24000) < 3000
    assert 0.3 < np.abs(pcm).max() < 0.6


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000, 192000])
def test_rates_become_24_khz(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(rate, 2.0), rate)
    pcm = read_audio(tmp_path / "a.wav")
    assert abs(len(pcm) - 48000) <= 2
    spectrum = np.abs(np.fft.rfft(pcm[2400:-2400]))
    assert abs(spectrum.argmax() * 24000 / len(pcm[2400:-2400]) - 440) < 1


def test_channels_are_averaged(tmp_path):
    left = tone(24000)
    soundfile.write(tmp_path / "a.wav", np.stack([left, np.zeros_like(left)], axis=1), 24000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), left / 2, atol=1e-6)


def test_flac_without_a_length(tmp_path):
    """As programs write it that cannot go back to the header: the last samples are there, and it is not called cut short."""
    path = tmp_path / "stream.flac"
    soundfile.write(path, tone(24000, 2.0), 24000)
    data = bytearray(path.read_bytes())
    # The count of samples: 36 bits after rate, channels and bits of the first block.
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path.write_bytes(data)
    with AudioReader(path) as reader:
        assert reader.duration is None
        assert sum(map(len, reader.blocks())) == 48000
        assert reader.shortened is None


def test_a_reader_is_read_once(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(24000, 1.0), 24000)
    with AudioReader(tmp_path / "a.wav") as reader:
        assert len(list(reader.frames(1920))) == 13
        for again in (reader.frames(1920), reader.blocks()):
            with pytest.raises(AudioError, match="a.wav has been read already; open it again"):
                next(again)


def test_24_khz_is_not_touched(tmp_path):
    pcm = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", pcm, 24000, subtype="FLOAT")
    assert (read_audio(tmp_path / "a.wav") == pcm).all()


def test_frames_are_whole(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(1920 * 30 + 100, 0.5, np.float32), 24000)
    with AudioReader(tmp_path / "a.wav") as reader:
        frames = list(reader.frames(1920))
        assert reader.duration == pytest.approx(2.4042, abs=1e-3)
    assert len(frames) == 31
    assert all(f.shape == (1920,) for f in frames)
    assert (frames[-1][100:] == 0).all()
    assert (frames[-1][:100] != 0).all()


def test_standard_input(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(16000), 16000, format="FLAC")
    monkeypatch.setattr("sys.stdin", type("S", (), {"buffer": io.BytesIO(buffer.getvalue())}))
    assert abs(len(read_audio("-")) - 24000) <= 2


def bad_file(path, kind: str) -> None:
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not sound")
    elif kind == "header only":
        soundfile.write(path, np.zeros(0, np.float32), 24000)
    elif kind == "huge rate":
        soundfile.write(path, tone(24000), 24000)
        data = bytearray(path.read_bytes())
        data[24:28] = struct.pack("<I", 2_000_000_000)
        path.write_bytes(bytes(data))
    elif kind == "nan":
        soundfile.write(path, np.full(5000, np.nan, np.float32), 24000, subtype="FLOAT")
    elif kind == "whole numbers":
        soundfile.write(path, (32768 * tone(24000)).astype(np.float32), 24000, subtype="FLOAT")
    elif kind == "cut":
        soundfile.write(path, tone(24000), 24000, format="FLAC")
        path.write_bytes(path.read_bytes()[:30])
    elif kind == "damaged":
        soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 48000), 24000, format="FLAC")
        data = bytearray(path.read_bytes())
        data[30000:40000] = bytes(10000)
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "is empty"),
        ("text", "not an audio file that can be read"),
        ("header only", "holds no audio"),
        ("huge rate", "2000000000 samples a second"),
        ("nan", "not numbers"),
        ("whole numbers", r"a\.wav holds samples up to \d+.* divide them by their full scale"),
        ("cut", "cannot be|not an audio"),
        ("damaged", r"a\.wav is damaged and cannot be decoded \(.+\)\.$"),
    ],
)
def test_unusable_inputs(tmp_path, kind, message):
    path = tmp_path / "a.wav"
    bad_file(path, kind)
    with pytest.raises(AudioError, match=message):
        read_audio(path)


def test_standard_input_that_is_no_sound(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"not sound")))
    with pytest.raises(
        AudioError,
        match=r"^standard input is not sound that can be read\. Expected wav, .*; sound without a header needs --raw RATE\.$",
    ):
        AudioReader("-")


def test_a_file_this_user_may_not_read(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", tone(24000), 24000)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(AudioError, match=r"a\.wav may not be read by this user"):
        AudioReader(tmp_path / "a.wav")


def test_standard_input_that_is_closed(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(AudioError, match="standard input is closed"):
        AudioReader("-")


class Failing(io.RawIOBase):
    """Bytes of `content`, then what a disk says that is gone."""

    def __init__(self, content: bytes):
        self._rest = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self._rest.readinto(buffer)
        if not count:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return count


@pytest.mark.parametrize("seconds", [0, 3])
def test_a_system_that_fails_while_it_is_read(monkeypatch, seconds):
    content = tone(24000, seconds).tobytes()
    monkeypatch.setattr("sys.stdin", type("S", (), {"buffer": io.BufferedReader(Failing(content))}))
    with pytest.raises(AudioError, match=f"^standard input cannot be read: {os.strerror(errno.EIO)}.$"):
        read_audio("-", raw=Raw(24000, "f32le") if seconds else None)


def test_missing_inputs(tmp_path):
    with pytest.raises(AudioError, match="does not exist"):
        AudioReader(tmp_path / "nothing.wav")
    with pytest.raises(AudioError, match="is a folder"):
        AudioReader(tmp_path)


def test_output_appears_only_when_it_is_whole(tmp_path):
    out = tmp_path / "reply.wav"
    with AudioWriter(out) as writer:
        writer.write(tone(24000))
        assert not out.exists()
        writer.commit()
    assert soundfile.info(out).frames == 24000
    with AudioWriter(tmp_path / "other.flac", channels=2) as writer:
        writer.write(np.zeros((100, 2)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["reply.wav"]


def test_samples_are_clipped(tmp_path):
    with AudioWriter(tmp_path / "a.wav") as writer:
        writer.write(np.array([3.0, -3.0, 0.25]))
        writer.commit()
    assert np.abs(read_audio(tmp_path / "a.wav")).max() <= 1


def test_unwritable_outputs(tmp_path):
    with pytest.raises(OutputError, match="does not exist; make it first"):
        AudioWriter(tmp_path / "missing" / "a.wav")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file is a file; expected the folder of a.wav"):
        AudioWriter(tmp_path / "file" / "a.wav")
    with pytest.raises(AudioError, match="should end in"):
        AudioWriter(tmp_path / "a.txt")
    with pytest.raises(OutputError, match="is a folder"):
        AudioWriter(tmp_path)


def test_text_is_written_whole(tmp_path):
    write_text(tmp_path / "a.txt", "é\n")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "é\n"
    with pytest.raises(OutputError, match="does not exist; make it first"):
        write_text(tmp_path / "missing" / "a.txt", "x")
