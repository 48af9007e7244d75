"""Rings, the microphone's backlog and the loudspeaker's buffer: bounded, counted, without clicks."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moshi_mlx.audio.capture import Capture
from moshi_mlx.audio.playback import MAX_HOLD, MAX_SECONDS, Playback
from moshi_mlx.audio.resample import Resampler
from moshi_mlx.audio.ring import Ring

RATE, FRAME, BLOCK = 24000, 1920, 240


def ramp(start: int, n: int) -> np.ndarray:
    return np.arange(start, start + n, dtype=np.float32)


# The ring --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 150), st.integers(0, 150)), max_size=60))
def test_ring_gives_what_was_written(moves):
    """In order, nothing twice, and what was overwritten is counted."""
    ring, written, expected = Ring(100), 0, 0
    for n, wanted in moves:
        ring.write(ramp(written, n))
        written += n
        n = min(wanted, ring.level, 100)
        out = np.empty(n, np.float32)
        lost = ring.take(out)
        expected += lost
        np.testing.assert_array_equal(out, ramp(expected, n))
        expected += n
        assert ring.level == written - expected


def test_ring_wakes_a_waiting_reader_when_enough_is_there():
    ring = Ring(100)

    def write():
        for _ in range(3):
            time.sleep(0.02)
            ring.write(ramp(0, 10))

    threading.Thread(target=write).start()
    assert ring.wait(30, timeout=300)
    assert ring.level == 30


def test_ring_wait_ends_in_time_and_when_woken():
    ring = Ring(100)
    assert not ring.wait(1, timeout=0.01)
    # Nothing else ends these waits.
    threading.Timer(0.05, ring.wake).start()
    assert not ring.wait(1, timeout=threading.TIMEOUT_MAX)
    ring.wake()
    assert not ring.wait(1, timeout=threading.TIMEOUT_MAX), "a wake before the wait counts"


def test_ring_between_two_threads_without_loss():
    ring, total, block = Ring(4000), 200_000, 137

    def write():
        at = 0
        while at < total:
            if ring.level < 3000:
                n = min(block, total - at)
                ring.write(ramp(at, n))
                at += n

    thread = threading.Thread(target=write)
    thread.start()
    at, out = 0, np.empty(500, np.float32)
    while at < total:
        assert ring.wait(500, timeout=300)
        assert ring.take(out) == 0
        np.testing.assert_array_equal(out, ramp(at, 500))
        at += 500
    thread.join()


# The microphone's side -------------------------------------------------------------------------------------------


def test_frames_are_complete_with_their_last_sample():
    capture = Capture(RATE)
    for i in range(7):
        capture.feed(ramp(i * BLOCK, BLOCK) / 1e5, end=float(i))
    assert capture.read(timeout=0) is None
    capture.feed(ramp(7 * BLOCK, BLOCK) / 1e5, end=7.0)
    np.testing.assert_allclose(capture.read(timeout=0), ramp(0, FRAME) / 1e5)
    assert capture.completed == pytest.approx(7.0)
    assert capture.waiting == 0


def test_backlog_stays_within_its_bound_and_every_drop_is_counted():
    """Ten frames come at once: the due one and three more may wait, the oldest go."""
    capture = Capture(RATE, max_lag=0.24)
    capture.feed(np.repeat(ramp(0, 10) / 10, FRAME))
    got = []
    while (frame := capture.read(timeout=0)) is not None:
        got.append(round(float(frame[-1]) * 10))
        assert capture.waiting <= 0.24 + 1e-6
    assert got == [6, 7, 8, 9]
    assert capture.dropped == 6


def test_a_reader_far_behind_loses_what_the_ring_cannot_hold():
    capture = Capture(RATE, max_lag=4.0)
    for i in range(1000):
        capture.feed(np.full(BLOCK, i / 1000, np.float32))
    frame = capture.read(timeout=0)
    assert capture.waiting <= 4.0
    # 10 s came; what is read and what still waits are all that is left.
    left = len(frame) / RATE + capture.waiting
    assert capture.dropped * 0.08 == pytest.approx(10 - left, abs=0.09)


def test_no_click_where_sound_was_dropped():
    capture = Capture(RATE, max_lag=0.08)
    capture.feed(np.full(10 * FRAME, 0.5, np.float32))
    frame = capture.read(timeout=0)
    assert frame[0] == 0
    assert np.abs(np.diff(frame)).max() < 0.01
    assert frame[-1] == 0.5


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_channels_are_averaged(channels):
    capture = Capture(RATE)
    block = np.tile(np.linspace(0, 0.7, channels, dtype=np.float32), (FRAME, 1))
    capture.feed(block)
    np.testing.assert_allclose(capture.read(timeout=0), np.full(FRAME, block[0].mean()), atol=1e-6)


def test_one_channel_can_be_chosen():
    capture = Capture(RATE, channel=5)
    capture.feed(np.tile(np.arange(8, dtype=np.float32) / 10, (FRAME, 1)))
    np.testing.assert_allclose(capture.read(timeout=0), np.full(FRAME, 0.5))


def test_what_is_not_a_number_becomes_silence_and_is_counted():
    capture = Capture(48000)
    x = np.full(9600, 0.25, np.float32)
    x[100], x[101], x[102] = np.nan, np.inf, -np.inf
    capture.feed(x)
    frame = capture.read(timeout=0)
    assert np.isfinite(frame).all()
    assert np.abs(frame).max() <= 1
    assert frame[-1] == pytest.approx(0.25, abs=1e-3)
    assert capture.invalid == 3


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000])
def test_other_rates_are_resampled(rate):
    """A tone keeps its pitch and loudness, in frames that are due when they should be."""
    capture = Capture(rate, max_lag=4.0)
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(3 * rate) / rate).astype(np.float32)
    block, frames = rate // 100, []
    for at in range(0, len(tone), block):
        capture.feed(tone[at : at + block], end=(at + block) / rate)
        frame = capture.read(timeout=0)
        if frame is not None:
            frames.append(frame)
            # When a frame is there, it is not long ago that it could be.
            assert (at + block) / rate - len(frames) * 0.08 < 0.06
    pcm = np.concatenate(frames)[4800:]
    assert len(pcm) > 2.6 * RATE - FRAME
    spectrum = np.abs(np.fft.rfft(pcm[: 2 * RATE] * np.hanning(2 * RATE)))
    assert np.argmax(spectrum) / 2 == pytest.approx(1000, abs=1)
    assert np.sqrt(np.mean(pcm**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.01)


def test_resampling_is_the_same_for_any_chunks():
    x = np.random.default_rng(0).standard_normal(44100).astype(np.float32)
    whole, pieces = Resampler(44100, RATE), Resampler(44100, RATE)
    a = np.concatenate([whole(x[i : i + 441]) for i in range(0, len(x), 441)])
    cuts = np.sort(np.random.default_rng(1).integers(0, len(x), 60))
    b = np.concatenate([pieces(part) for part in np.split(x, cuts)])
    n = min(len(a), len(b))
    assert n > 23000
    np.testing.assert_allclose(a[:n], b[:n], atol=1e-5)


# The loudspeaker's side ------------------------------------------------------------------------------------------


class Device:
    """A loudspeaker that asks for blocks; time is counted in samples, frames are pushed when they are due."""

    def __init__(self, playback: Playback, block: int = BLOCK):
        self.playback, self.block, self.now = playback, block, 0
        self.played: list[np.ndarray] = []

    def until(self, seconds: float) -> None:
        while self.now < seconds * self.playback.rate:
            out = np.full(self.block, np.nan, np.float32)
            self.playback.pull(out, self.now / self.playback.rate)
            assert np.isfinite(out).all()
            self.played.append(out)
            self.now += self.block

    @property
    def pcm(self) -> np.ndarray:
        return np.concatenate(self.played)


def tone(index: int, frame: int = FRAME) -> np.ndarray:
    t = (index * frame + np.arange(frame)) / RATE
    return 0.5 * np.sin(2 * np.pi * 200 * t).astype(np.float32)


# The largest step between samples of the tone, and of the tone under a fade of 5 ms.
SLOPE = 0.5 * 2 * np.pi * 200 / RATE
SMOOTH = SLOPE + 0.5 / (0.005 * RATE) + 1e-3


def play(playback: Playback, late: list[float], block: int = BLOCK) -> Device:
    """Frame i is pushed `late[i]` seconds after it is due."""
    device, clock = Device(playback, block), 0.0
    for i, seconds in enumerate(late):
        clock = max(clock, 0.08 * (i + 1) + seconds)
        device.until(clock)
        playback.push(tone(i), captured=0.08 * (i + 1))
    device.until(clock + 0.08 * len(late) + 1.0)
    return device


@pytest.mark.parametrize("block", [64, 240, 480, 1920])
def test_steady_frames_are_played_whole_and_soon(block):
    playback = Playback(RATE, block)
    device = play(playback, [0.02 + 0.003 * (i % 3) for i in range(40)], block)
    assert playback.underruns == 1, "only the end of the tone"
    pcm = device.pcm
    start = int(np.argmax(np.abs(pcm) > 0))
    n = 40 * FRAME - 400
    # All of it, in order, between a fade at the beginning and one at the end.
    np.testing.assert_allclose(
        pcm[start + 120 : start + n], np.concatenate([tone(i) for i in range(40)])[120 + 1 : n + 1], atol=2e-2
    )
    latencies = np.empty(playback.latencies.level, np.float32)
    playback.latencies.take(latencies)
    assert len(latencies) == 40
    # At most a block and the buffer, after the step.
    assert latencies.max() - 0.02 <= playback.block / RATE + playback.hold + 0.008
    assert np.abs(np.diff(pcm)).max() < SMOOTH


def test_an_underrun_fades_out_and_in_and_is_counted():
    playback = Playback(RATE, BLOCK)
    device = play(playback, [0.01] * 10 + [0.4] + [0.01] * 20)
    assert playback.underruns == 2
    pcm = device.pcm
    assert np.abs(np.diff(pcm)).max() < SMOOTH
    silent = np.convolve(np.abs(pcm) < 1e-6, np.ones(2400), "valid") == 2400
    assert silent.any(), "there was nothing to play for more than 100 ms"


@settings(deadline=None, max_examples=80)
# More than is ever kept, at once, in blocks that are shorter than a fade: while it plays, and while it waits.
@example([0.0, 0.0, 0.125, 0.25, 0.5, *[0.0] * 8], 64, 0)
@example([0.0, 0.5, *[0.0] * 12], 64, 24)
@example([0.9, *[0.0] * 12], 64, 24)
@given(
    st.lists(st.floats(0, 0.5), min_size=1, max_size=25),
    st.sampled_from([64, 100, 240, 441, 960, 1920]),
    st.integers(0, 24),
)
def test_never_a_click(late, block, stop_at):
    """Whatever frames do, and wherever the talk is stopped."""
    playback = Playback(RATE, block)
    device, clock = Device(playback, block), 0.0
    for i, seconds in enumerate(late):
        clock = max(clock, 0.08 * (i + 1) + seconds)
        device.until(clock)
        playback.push(tone(i), captured=0.0)
        if i == stop_at:
            playback.stop()
    device.until(clock + 3.0)
    assert np.abs(np.diff(device.pcm)).max() < 2 * SMOOTH
    assert playback.buffered == 0


def test_the_buffer_is_bounded_and_what_it_gives_up_is_counted():
    playback = Playback(RATE, BLOCK)
    device = Device(playback)
    for i in range(12):
        playback.push(tone(i))
    device.until(0.5)
    assert playback.buffered <= MAX_SECONDS
    assert playback.dropped > 0
    assert np.abs(np.diff(device.pcm)).max() < 2 * SMOOTH


def test_a_burst_is_worn_off_in_quiet_moments():
    """Frames that came together after a stall make the reply late; the next silence takes that back."""
    playback = Playback(RATE, BLOCK)
    device, index = Device(playback), 0
    for _ in range(5):
        playback.push(tone(index))
        index += 1
    for i in range(150):
        device.until(0.08 * (i + 1))
        playback.push(tone(index) if i < 20 or i > 100 else np.zeros(FRAME, np.float32))
        index += 1
    assert playback.underruns == 0
    assert playback.buffered < 0.08 + playback.hold + 0.05
    assert playback.dropped == 0


def test_a_burst_in_endless_sound_is_cut_in_the_end():
    playback = Playback(RATE, BLOCK)
    device = Device(playback)
    for i in range(6):
        playback.push(tone(i))
    for i in range(250):
        device.until(0.08 * (i + 1))
        playback.push(tone(i + 6))
    assert playback.underruns == 0
    assert playback.buffered < 0.08 + playback.hold + 0.1
    assert 0.2 < playback.dropped / RATE < 0.5


@pytest.mark.parametrize("drift", [-5e-4, 5e-4])
def test_clocks_that_disagree(drift):
    """Ten minutes of speech and pauses with devices 0.05 % apart (ten times what is common): the buffer stays put."""
    playback = Playback(RATE, BLOCK)
    device = Device(playback)
    levels = []
    for i in range(7500):
        device.until(0.08 * (i + 1) * (1 + drift))
        speaking = (i // 25) % 2
        playback.push(tone(i) if speaking else np.zeros(FRAME, np.float32))
        levels.append(playback.buffered)
    assert playback.underruns == 0
    assert max(levels[100:]) < 0.25
    assert playback.dropped == 0


def test_the_hold_grows_with_trouble_and_shrinks_with_calm():
    playback = Playback(RATE, BLOCK)
    first = playback.hold
    device = Device(playback)
    clock = 0.0
    for index in range(40):
        clock += 0.13
        device.until(clock)
        playback.push(tone(index))
    grown = playback.hold
    assert first < grown <= MAX_HOLD
    holds = []
    for _ in range(20):
        # A minute.
        for _ in range(750):
            clock += 0.08
            device.until(clock)
            playback.push(np.zeros(FRAME, np.float32))
        holds.append(playback.hold)
    assert holds == sorted(holds, reverse=True)
    assert holds[3] - first < (grown - first) / 2
    assert holds[-1] == pytest.approx(first)


def test_a_hold_that_was_too_small_does_not_come_back():
    """A frame comes 45 ms late once in three minutes: it is missed once, not every time."""
    playback = Playback(RATE, BLOCK)
    device = Device(playback)
    for index in range(750 * 30):
        late = 0.045 if index % 2250 == 2249 else 0.0
        device.until(0.08 * index + late)
        playback.push(tone(index))
    assert playback.underruns == 1


def test_slow_frames_are_gathered_into_longer_runs():
    """A model at 100 ms per frame: gaps are unavoidable, but not after every frame."""
    playback = Playback(RATE, BLOCK)
    device = play_at(playback, 0.1, 100)
    assert 5 < playback.underruns < 40
    assert np.abs(np.diff(device.pcm)).max() < SMOOTH


def play_at(playback: Playback, period: float, frames: int) -> Device:
    device = Device(playback)
    for i in range(frames):
        device.until(period * (i + 1))
        playback.push(tone(i), captured=period * (i + 1))
    return device


def test_stop_forgets_what_is_queued_and_plays_what_comes_after():
    playback = Playback(RATE, BLOCK)
    device = Device(playback)
    playback.push(np.full(FRAME, 0.25, np.float32))
    device.until(0.07)
    playback.stop()
    playback.push(np.full(FRAME, 0.5, np.float32))
    device.until(0.4)
    pcm = device.pcm
    assert pcm.max() == pytest.approx(0.5)
    assert np.sum(np.abs(pcm - 0.25) < 1e-3) < 0.06 * RATE
    assert playback.underruns == 1, "the end of what came after"


def test_the_end_is_no_underrun():
    playback = Playback(RATE, BLOCK)
    device = Device(playback)
    playback.push(tone(0))
    playback.finish()
    device.until(0.5)
    assert playback.underruns == 0
    assert playback.buffered == 0


def test_what_was_played_is_kept_for_the_echo_canceller():
    playback = Playback(RATE, BLOCK)
    device = play(playback, [0.01] * 5)
    heard = np.empty(playback.reference.level, np.float32)
    playback.reference.take(heard)
    np.testing.assert_array_equal(heard, device.pcm)
