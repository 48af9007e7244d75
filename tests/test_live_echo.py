"""Echo: the canceller in simulated rooms, the alignment of what was played with what was heard, the half-duplex gate."""

from __future__ import annotations

import numpy as np
import pytest
import soxr

pytest.importorskip("livekit", reason="the echo canceller is an extra")

from echo_return_loss import (
    FRAME,
    LIBRARY_DELAY,
    RATE,
    ROOMS,
    clean,
    double_talk,
    heard,
    noise,
    ratio,
    single_talk,
    talk,
)

from moshi_mlx.audio import echo
from moshi_mlx.audio.capture import Capture
from moshi_mlx.audio.echo import FarEnd, HalfDuplexGate
from moshi_mlx.audio.playback import Playback
from moshi_mlx.errors import InputError


@pytest.mark.parametrize("room", ROOMS, ids=lambda r: r.name)
def test_echo_return_loss(room):
    assert single_talk(room, 12.0)["converged"] >= 20


@pytest.mark.parametrize("room", ROOMS, ids=lambda r: r.name)
def test_double_talk_keeps_the_near_speech(room):
    gains = double_talk(room, 16.0)
    assert gains["near"] > -6
    assert gains["echo"] < -15


def test_near_speech_alone_comes_through():
    voice = 0.3 * talk(6.0)
    out = clean(voice, np.zeros_like(voice))[LIBRARY_DELAY:]
    assert abs(ratio(out, voice[: len(out)])) < 1


def through_devices(output_rate: int, jump: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """20 s of the loop's own path: blocks of both devices, a model that is always 10 ms late, and a room in between.

    Returns what the microphone heard and what the model was given.
    """
    room = ROOMS[0]
    far = 0.5 * talk(20.0)
    playback, capture = Playback(output_rate, output_rate // 100), Capture(RATE)
    far_end, canceller = FarEnd(playback), echo.make("aec")
    played_now = np.zeros(output_rate // 100, np.float32)
    resampled = soxr.ResampleStream(RATE, output_rate, 1, dtype="float32")
    # First what will be played, whatever the canceller does: the room needs the whole of it.
    dry = Playback(output_rate, output_rate // 100)
    played, pushed = [], 0
    for tick in range(2000):
        if tick % 8 == 1:
            dry.push(resampled.resample_chunk(far[pushed : pushed + FRAME]))
            pushed += FRAME
        dry.pull(played_now)
        played.append(played_now.copy())
    whole = soxr.resample(np.concatenate(played), output_rate, RATE).astype(np.float32)
    microphone = heard(room, whole) + noise(len(whole))
    got, before, at = [], [], 0
    resampled = soxr.ResampleStream(RATE, output_rate, 1, dtype="float32")
    for tick in range(1999):
        if tick % 8 == 1:
            playback.push(resampled.resample_chunk(far[at : at + FRAME]))
            at += FRAME
        playback.pull(played_now)
        block = microphone[tick * 240 : tick * 240 + 240]
        if jump and tick == 900:
            # The microphone's device loses 100 ms: the two sides no longer lie as they did.
            continue
        capture.feed(block)
        frame = capture.read(timeout=0)
        if frame is not None:
            before.append(frame)
            got.append(canceller.process(frame, far_end.take(FRAME, capture.waiting)))
    return np.concatenate(before), np.concatenate(got)


@pytest.mark.parametrize("output_rate", [24000, 44100, 48000])
def test_the_loops_own_path(output_rate):
    before, after = through_devices(output_rate)
    part = slice(8 * RATE, None)
    assert ratio(before[part], after[part]) >= 20


def test_a_slip_between_the_devices_is_followed():
    before, after = through_devices(24000, jump=True)
    part = slice(13 * RATE, None)
    assert ratio(before[part], after[part]) >= 20


def played(playback: Playback, start: int, n: int) -> None:
    """`n` samples whose values tell their places."""
    playback.reference.write((start + np.arange(n, dtype=np.float32)) / 1e6)


def test_the_far_end_lies_beside_the_newest_sound():
    playback = Playback(RATE, 240)
    far_end = FarEnd(playback)
    played(playback, 0, 24000)
    out = far_end.take(FRAME, backlog=0.0)
    # The newest sample played goes with the newest captured, less the margin.
    assert out[-1] * 1e6 == pytest.approx(24000 - 240 - 1)
    played(playback, 24000, FRAME)
    np.testing.assert_allclose(far_end.take(FRAME, 0.0) * 1e6, 24000 - 240 + np.arange(FRAME), atol=0.5)
    assert far_end.realigned == 0


def test_the_far_end_skips_what_the_microphone_lost():
    playback = Playback(RATE, 240)
    far_end = FarEnd(playback)
    played(playback, 0, 24000)
    far_end.take(FRAME, 0.08)
    out = far_end.take(FRAME // 2, 0.0, skipped=FRAME // 2)
    assert out[-1] * 1e6 == pytest.approx(24000 - 240 - 1)
    assert far_end.realigned == 0


def test_the_far_end_is_laid_anew_only_when_it_stays_astray():
    playback = Playback(RATE, 240)
    far_end = FarEnd(playback)
    played(playback, 0, 24000)
    far_end.take(FRAME, 0.0)
    at = 24000
    for i in range(12):
        # From the fourth frame on the loudspeaker is 0.2 s ahead of where it was.
        n = FRAME + (4800 if i == 3 else 0)
        played(playback, at, n)
        at += n
        out = far_end.take(FRAME, 0.0)
        assert far_end.realigned == (i >= 3 + FarEnd.PATIENCE - 1)
    assert out[-1] * 1e6 == pytest.approx(at - 240 - 1)


def test_the_far_end_survives_a_loudspeaker_that_stands_still():
    playback = Playback(RATE, 240)
    far_end = FarEnd(playback)
    assert [len(far_end.take(FRAME, 0.0)) for _ in range(30)] == [FRAME] * 30
    assert np.abs(far_end.take(FRAME, 0.0)).max() == 0


def test_the_gate_is_deaf_while_the_loudspeaker_plays():
    gate = HalfDuplexGate(RATE)
    near, far = np.full(FRAME, 0.5, np.float32), np.full(FRAME, 0.1, np.float32)
    quiet = np.zeros(FRAME, np.float32)
    assert (gate.process(near, quiet) == near).all()
    closed = [gate.process(near, far) for _ in range(3)]
    assert closed[0][-1] == 0
    assert np.abs(np.diff(closed[0])).max() < 0.01, "no click"
    assert not closed[1].any()
    after = [gate.process(near, quiet) for _ in range(8)]
    open_at = next(i for i, frame in enumerate(after) if frame[-1] == 0.5)
    assert 4 <= open_at <= 6, "echoes last 0.4 s"
    assert np.abs(np.diff(np.concatenate(after))).max() < 0.01


def test_modes():
    assert echo.make("off") is None
    assert isinstance(echo.make("mute"), HalfDuplexGate)
    assert echo.make(None) is not None, "on by default where the library is"
    with pytest.raises(InputError, match="expected off, aec, mute"):
        echo.make("loud")


def test_noise_suppression_and_gain():
    """Steady noise is pressed down; a faint voice is brought up."""
    hiss = noise(10 * RATE, -35.0)
    quieter = echo.make("off", noise_suppression=True)
    out = np.concatenate([quieter.process(f, np.zeros(FRAME, np.float32)) for f in hiss.reshape(-1, FRAME)])
    assert ratio(hiss[5 * RATE :], out[5 * RATE :]) > 6
    faint = 0.02 * talk(10.0)[: 10 * RATE]
    louder = echo.make("off", auto_gain=True)
    out = np.concatenate([louder.process(f, np.zeros(FRAME, np.float32)) for f in faint.reshape(-1, FRAME)])
    assert ratio(out[5 * RATE :], faint[5 * RATE :]) > 6


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(echo, "available", lambda: False)
    assert echo.make(None) is None
    for options in ({"mode": "aec"}, {"mode": "off", "noise_suppression": True}):
        with pytest.raises(InputError, match=r"pip install '\.\[echo\]'"):
            echo.make(**options)
