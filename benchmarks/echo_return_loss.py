"""How much of the loudspeaker's sound the echo canceller takes out of the microphone's, in simulated rooms.

    python benchmarks/echo_return_loss.py            # the table of docs/live.md

Rooms are shoe boxes, their impulse responses made by mirroring the source at the walls (Allen and Berkley's image method);
the loudspeaker saturates softly, the microphone adds noise, and devices delay and drift. Echo return loss enhancement (ERLE)
is the echo's power at the microphone over its power behind the canceller. In double talk someone speaks in the room at the
same time, as loud as the echo: of the short-time spectrum's cells, those the near speech rules by 6 dB should come through,
those the echo rules should not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from moshi_mlx.audio import echo
from moshi_mlx.audio.files import read_audio

RATE, FRAME = 24000, 1920
SPEED_OF_SOUND = 343.0
QUESTION = Path(__file__).resolve().parent.parent / "examples" / "question.wav"
CONVERGED = 5.0  # seconds
LIBRARY_DELAY = 222  # samples


@dataclass(frozen=True)
class Room:
    """Metres; `reflection` is the walls' coefficient; `delay` (s) is that of both devices, `drift` how much faster one runs."""

    name: str
    size: tuple[float, float, float]
    reflection: float
    speaker: tuple[float, float, float]
    microphone: tuple[float, float, float]
    delay: float = 0.08
    drift: float = 0.0


ROOMS = (
    Room("small office, laptop", (3.0, 4.0, 2.5), 0.75, (1.4, 1.0, 0.8), (1.6, 1.2, 0.9), 0.06),
    Room("living room, shelf loudspeaker", (5.0, 6.5, 2.7), 0.85, (0.6, 1.0, 1.1), (2.4, 3.0, 0.9), 0.12),
    Room("bare kitchen, drifting clocks", (3.0, 3.5, 2.6), 0.86, (1.0, 0.5, 1.0), (1.6, 1.1, 1.1), 0.2, 5e-5),
)
# More than a canceller of this kind can do: told in the table, not promised.
HALL = Room("hall with hard walls", (7.0, 9.0, 3.0), 0.9, (3.4, 4.0, 0.8), (3.8, 4.6, 0.8), 0.2, 5e-5)


def impulse_response(room: Room, seconds: float = 0.6) -> np.ndarray:
    """From loudspeaker to microphone, direct sound scaled to 1 at a metre, float64 `[n]`."""
    size, source, ear = (np.array(x) for x in (room.size, room.speaker, room.microphone))
    order = np.ceil(seconds * SPEED_OF_SOUND / (2 * size)).astype(int)
    axes = []
    for axis in range(3):
        n = np.arange(-order[axis], order[axis] + 1)
        # Mirror images of either parity, and how many walls each has met.
        position = np.concatenate([2 * n * size[axis] + source[axis], 2 * n * size[axis] - source[axis]])
        axes.append((position - ear[axis], np.concatenate([2 * np.abs(n), np.abs(2 * n - 1)])))
    (x, a), (y, b), (z, c) = axes
    out = np.zeros(int(seconds * RATE))
    for dx, bounces in zip(x, a, strict=True):
        distance = np.sqrt(dx**2 + y[:, None] ** 2 + z[None] ** 2)
        at = np.rint(distance / SPEED_OF_SOUND * RATE).astype(int)
        inside = at < len(out)
        gain = room.reflection ** (bounces + b[:, None] + c[None]) / np.maximum(distance, 0.1)
        np.add.at(out, at[inside], gain[inside])
    # Mirrors are alike in every direction; real walls are not.
    out[1:] *= np.where(np.random.default_rng(0).random(len(out) - 1) < 0.5, -1, 1)
    return out


def reverberation_time(response: np.ndarray) -> float:
    """Seconds for the energy to fall by 60 dB, from its fall between 5 and 25 dB."""
    energy = np.cumsum(response[::-1] ** 2)[::-1]
    level = 10 * np.log10(energy / energy[0] + 1e-12)
    return 3.0 * (np.argmax(level < -25) - np.argmax(level < -5)) / RATE


def convolve(x: np.ndarray, response: np.ndarray) -> np.ndarray:
    n = len(x) + len(response)
    return np.fft.irfft(np.fft.rfft(x, n) * np.fft.rfft(response, n), n)[: len(x)]


def talk(seconds: float, speed: float = 1.0, start: float = 0.0) -> np.ndarray:
    """Speech with pauses, float32; another `speed` is another voice."""
    speech = soxr.resample(read_audio(QUESTION), RATE * speed, RATE).astype(np.float32)
    line = np.concatenate([speech, np.zeros(RATE // 2, np.float32)])
    whole = np.tile(line, int(np.ceil((seconds + start) * RATE / len(line))) + 1)
    return whole[int(start * RATE) :][: int(seconds * RATE)]


def heard(room: Room, far: np.ndarray, level: float = 0.1) -> np.ndarray:
    """The echo at the microphone, root mean square `level` while there is speech."""
    played = np.tanh(1.5 * far) / 1.5
    out = convolve(played, impulse_response(room))
    shift = int(room.delay * RATE)
    out = np.concatenate([np.zeros(shift), out])[: len(far)]
    if room.drift:
        t = np.arange(len(out)) * (1 + room.drift)
        out = np.interp(t, np.arange(len(out)), out)
    active = np.abs(out) > 0.1 * np.abs(out).max()
    return (out * level / np.sqrt(np.mean(out[active] ** 2))).astype(np.float32)


def noise(n: int, decibels: float = -70.0) -> np.ndarray:
    return (10 ** (decibels / 20) * np.random.default_rng(1).standard_normal(n)).astype(np.float32)


def clean(near: np.ndarray, far: np.ndarray, mode: str = "aec") -> np.ndarray:
    """Through the canceller, frame by frame as the live loop does it."""
    canceller = echo.make(mode, RATE)
    assert canceller is not None
    n = len(near) // FRAME * FRAME
    return np.concatenate([canceller.process(near[i : i + FRAME], far[i : i + FRAME]) for i in range(0, n, FRAME)])


def ratio(a: np.ndarray, b: np.ndarray) -> float:
    """Power of `a` over power of `b`, in dB."""
    return 10 * float(np.log10(np.sum(a.astype(np.float64) ** 2) / (np.sum(b.astype(np.float64) ** 2) + 1e-12)))


def single_talk(room: Room, seconds: float = 20.0) -> dict[str, float]:
    """ERLE in dB during the first seconds and after convergence."""
    far = 0.5 * talk(seconds)
    near = heard(room, far) + noise(len(far))
    out = clean(near, far)
    begin, end = slice(RATE, int(CONVERGED * RATE)), slice(int(CONVERGED * RATE), len(out))
    return {"first": ratio(near[begin], out[begin]), "converged": ratio(near[end], out[end])}


def power(x: np.ndarray, size: int = 512) -> np.ndarray:
    """Short-time power spectrum `[frames, bins]`."""
    frames = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), size)[:: size // 4] * np.hanning(size)
    return np.abs(np.fft.rfft(frames, axis=1)) ** 2


def double_talk(room: Room, seconds: float = 20.0) -> dict[str, float]:
    """Gain in dB of the cells that near speech rules, and of those that the echo rules, after convergence."""
    far = 0.5 * talk(seconds)
    returned = heard(room, far)
    voice = talk(seconds, speed=0.85, start=2.0)
    voice *= 0.1 / np.sqrt(np.mean(voice[np.abs(voice) > 0.1 * np.abs(voice).max()] ** 2))
    voice[: int(CONVERGED * RATE)] = 0
    out = clean(returned + voice + noise(len(far)), far)
    # The canceller's own delay.
    out = out[LIBRARY_DELAY:]
    part = slice(int(CONVERGED * RATE) + RATE, len(out))
    near, echoed, left = power(voice[part]), power(returned[part]), power(out[part])
    loud = near + echoed > 1e-4 * np.max(near)
    by_near, by_echo = loud & (near > 4 * echoed), loud & (echoed > 4 * near)
    return {
        "near": 10 * float(np.log10(left[by_near].sum() / near[by_near].sum())),
        "echo": 10 * float(np.log10(left[by_echo].sum() / echoed[by_echo].sum())),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args(argv)
    print("| room | reverberation | delay | ERLE, first 5 s | ERLE, then | double talk: near speech | echo |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for room in (*ROOMS, HALL):
        single, double = single_talk(room, args.seconds), double_talk(room, args.seconds)
        print(
            f"| {room.name} | {reverberation_time(impulse_response(room)):.2f} s | {1000 * room.delay:.0f} ms "
            f"| {single['first']:.1f} dB | {single['converged']:.1f} dB | {double['near']:+.1f} dB | {double['echo']:+.1f} dB |"
        )


if __name__ == "__main__":
    main()
