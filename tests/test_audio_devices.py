"""Devices: which is meant and how it is opened; and real PortAudio on virtual ones, with everything that can go wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import soundfile
import virtual_audio
from live_talk import LOOP_BACK, PATIENCE, RATE, Talk, add_loop_back, peak, pieces_match, round_trips, tone
from virtual_audio import MICROPHONE, SPEAKER, Jack, VirtualAudio

from moshi_mlx.audio import echo, streams
from moshi_mlx.audio.devices import choose, devices, settle, table
from moshi_mlx.audio.streams import Microphone, Speaker, Wanted, guarded
from moshi_mlx.errors import AudioError

FRAME = 1920

# Which device is meant -----------------------------------------------------------------------------------------------


class PortAudioError(Exception):
    pass


class CallbackAbort(Exception):
    pass


class FakePortAudio:
    """The part of `sounddevice` that lists and checks. `able[index]`: (rates, smallest and largest channel count)."""

    PortAudioError = PortAudioError
    CallbackAbort = CallbackAbort

    def _exit_handler(self):
        pass

    def __init__(self, rows, able=None, default=(0, 1)):
        self._rows, self._able = rows, able or {}
        self.default = type("default", (), {"device": default})
        self.streams: list = []

    def query_devices(self):
        return [
            {"name": n, "hostapi": 0, "max_input_channels": i, "max_output_channels": o, "default_samplerate": r}
            for n, i, o, r in self._rows
        ]

    def query_hostapis(self):
        return [{"name": "Core Audio", "default_input_device": 0, "default_output_device": 1}]

    def check_input_settings(self, device, channels, samplerate, dtype):
        rates, least, most = self._able.get(device, ({24000}, 1, 64))
        if samplerate not in rates:
            raise PortAudioError("Invalid sample rate [PaErrorCode -9997]")
        if not least <= channels <= most:
            raise PortAudioError("Invalid number of channels [PaErrorCode -9998]")

    check_output_settings = check_input_settings


MAC = [
    ("MacBook Pro Microphone", 1, 0, 48000.0),
    ("MacBook Pro Speakers", 0, 2, 48000.0),
    ("AirPods", 1, 0, 24000.0),
    ("AirPods", 0, 2, 48000.0),
    ("Scarlett 18i8", 18, 8, 44100.0),
    ("Scarlett Solo", 2, 2, 96000.0),
]


def test_defaults_numbers_and_parts_of_names():
    found = devices(FakePortAudio(MAC))
    assert choose(found, "input", None).name == "MacBook Pro Microphone"
    assert choose(found, "output", None).name == "MacBook Pro Speakers"
    assert choose(found, "input", "airpods").index == 2
    assert choose(found, "output", "AirPods").index == 3
    assert choose(found, "input", 4).name == choose(found, "input", "4").name == "Scarlett 18i8"
    assert choose(found, "input", "scarlett solo").index == 5
    # A mac's two halves share the beginning of their names: the side tells them apart.
    assert choose(found, "output", "MacBook Pro").index == 1


@pytest.mark.parametrize(
    ("kind", "wanted", "message"),
    [
        ("input", "Yeti", "no microphone has 'Yeti' in its name. There are: 0 MacBook Pro Microphone, 2 AirPods"),
        ("output", "Microphone", "no loudspeaker has 'Microphone' in its name"),
        (
            "input",
            "Scarlett",
            "'Scarlett' fits several devices: 4 Scarlett 18i8, 5 Scarlett Solo. Give more of the name",
        ),
        ("input", "17", "there is no device number 17"),
        ("input", "1", r"device 1 \(MacBook Pro Speakers\) is no microphone"),
    ],
)
def test_devices_that_are_not_there(kind, wanted, message):
    with pytest.raises(AudioError, match=message):
        choose(devices(FakePortAudio(MAC)), kind, wanted)


def test_machines_without_devices():
    with pytest.raises(AudioError, match="no microphone was found"):
        choose([], "input", None)
    only_speaker = devices(FakePortAudio(MAC[1:2], default=(-1, 0)))
    with pytest.raises(AudioError, match="no microphone was found. Connect one, or name a file with --input FILE"):
        choose(only_speaker, "input", None)
    no_default = devices(FakePortAudio(MAC[4:], default=(7, 7)))
    with pytest.raises(AudioError, match="no default microphone. Choose one with --input-device: 0 Scarlett 18i8"):
        choose(no_default, "input", None)


def test_the_list():
    text = table(devices(FakePortAudio(MAC)))
    lines = text.splitlines()
    assert lines[0].startswith(">   0  MacBook Pro Microphone")
    assert lines[1].startswith(" <  1  MacBook Pro Speakers")
    assert "18 in, 8 out, 44100 Hz  (Core Audio)" in text
    assert table([]) == "no sound devices found."


@pytest.mark.parametrize(
    ("kind", "able", "rate", "channels"),
    [
        ("input", ({24000, 48000}, 1, 2), 24000, 1),
        ("input", ({44100}, 1, 2), 44100, 1),
        ("input", ({16000}, 1, 1), 16000, 1),
        ("input", ({48000, 96000}, 8, 18), 48000, 18),
        ("output", ({24000}, 1, 2), 24000, 2),
        ("output", ({44100}, 2, 8), 44100, 2),
        ("output", ({48000}, 1, 1), 48000, 1),
        ("output", ({96000}, 8, 8), 96000, 8),
    ],
)
def test_settings_a_device_agrees_to(kind, able, rate, channels):
    """24 kHz where it can; else its own rate; few channels where it can."""
    sd = FakePortAudio([*MAC[:4], ("Scarlett 18i8", 18, 8, 44100.0)], {4: able})
    settings = settle(sd, devices(sd)[4], kind)
    assert (settings.rate, settings.channels, settings.block) == (rate, channels, rate // 100)
    assert ("resampled" in str(settings)) == (rate != 24000)


def test_a_channel_of_many():
    sd = FakePortAudio(MAC, {4: ({24000}, 1, 18)})
    device = devices(sd)[4]
    assert settle(sd, device, "input", channel=7).channels == 8
    with pytest.raises(AudioError, match="has 18 input channels, channel 19 was asked for"):
        settle(sd, device, "input", channel=18)


def test_a_device_that_refuses_everything():
    sd = FakePortAudio(MAC, {0: (set(), 1, 1)})
    with pytest.raises(AudioError, match=r"refuses every sample rate \(Invalid sample rate.*--list-devices"):
        settle(sd, devices(sd)[0], "input")


# Streams -----------------------------------------------------------------------------------------------------------------


class FakeStream:
    latency = 0.03

    def __init__(self, **options):
        self.options, self.active = options, False

    def start(self):
        self.active = True

    def abort(self, ignore_errors):
        self.active = False
        self.options["finished_callback"]()

    def close(self, ignore_errors):
        self.options = None


@pytest.fixture
def fake(monkeypatch):
    # Nobody runs the callbacks of these streams.
    monkeypatch.setattr(streams, "LEAVE_SECONDS", 0.0)
    sd = FakePortAudio(MAC, {5: ({44100}, 2, 2), 0: ({24000}, 1, 1), 1: ({24000}, 2, 2)})
    sd.InputStream = sd.OutputStream = FakeStream
    return sd


TIMES, FINE = None, 0


def test_a_microphone_of_another_rate_and_two_channels(fake):
    microphone = Microphone(fake, Wanted("solo"))
    microphone.open()
    options = microphone._stream.options
    assert (options["samplerate"], options["channels"], options["blocksize"]) == (44100, 2, 441)
    left = 0.5 * np.sin(2 * np.pi * 500 * np.arange(44100) / 44100).astype(np.float32)
    frames = []
    for i in range(0, 44100, 441):
        options["callback"](np.stack([left[i : i + 441], np.zeros(441, np.float32)], 1), 441, TIMES, FINE)
        frame = microphone.read(0)
        frames += [] if frame is None else [frame]
    assert 10 <= len(frames) <= 12
    assert np.sqrt(np.mean(np.concatenate(frames)[4800:] ** 2)) == pytest.approx(0.25 / np.sqrt(2), rel=0.02)


def test_a_loudspeaker_plays_the_same_on_both_channels(fake):
    speaker = Speaker(fake)
    speaker.open()
    speaker.write(np.full(FRAME, 2.0, np.float32), 0.0)
    callback, got = speaker._stream.options["callback"], []
    for _ in range(12):
        block = np.full((240, 2), np.nan, np.float32)
        callback(block, 240, TIMES, FINE)
        got.append(block)
    pcm = np.concatenate(got)
    np.testing.assert_array_equal(pcm[:, 0], pcm[:, 1])
    assert pcm.max() == 1.0, "what a loudspeaker cannot play is clipped"


def test_many_channels_get_the_first_two(fake):
    fake._able[4] = ({24000}, 8, 8)
    speaker = Speaker(fake, Wanted("18i8"))
    speaker.open()
    speaker.write(np.full(FRAME, 0.5, np.float32))
    for _ in range(6):
        block = np.full((240, 8), np.nan, np.float32)
        speaker._stream.options["callback"](block, 240, TIMES, FINE)
    assert (block[:, :2] == 0.5).all()
    assert (block[:, 2:] == 0).all()


def test_a_stream_that_ended_or_stands_still(fake, monkeypatch):
    microphone, now = Microphone(fake), [100.0]
    monkeypatch.setattr(streams.time, "perf_counter", lambda: now[0])
    assert microphone.problem() is None
    microphone.open()
    now[0] += 5.9
    assert microphone.problem() is None, "some servers take seconds to start"
    now[0] += 0.2
    assert microphone.problem() == "MacBook Pro Microphone delivers no sound"
    microphone._stream.options["callback"](np.zeros((240, 1), np.float32), 240, TIMES, FINE)
    assert microphone.problem() is None
    now[0] += 2.1
    assert "delivers no sound" in microphone.problem()
    microphone._stream.active = False
    assert microphone.problem() == "MacBook Pro Microphone was disconnected"
    microphone.close()
    assert microphone.problem() is None
    speaker = Speaker(fake)
    speaker.open()
    now[0] += 6.1
    assert speaker.problem() == "MacBook Pro Speakers has stopped"


def test_counters_outlive_a_reopening(fake):
    microphone = Microphone(fake, max_lag=0.08)
    microphone.open()
    x = np.zeros((4 * FRAME, 1), np.float32)
    x[-1] = np.nan
    microphone._stream.options["callback"](x, len(x), TIMES, FINE)
    while microphone.read(0) is not None:
        pass
    assert (microphone.dropped, microphone.invalid) == (2, 1)
    microphone.suspend()
    microphone.open()
    assert (microphone.dropped, microphone.invalid) == (2, 1)


def test_a_numbered_device_is_found_again_by_its_name(fake):
    """Numbers move up when a device before it is unplugged."""
    microphone = Microphone(fake, Wanted("5"))
    microphone.open()
    microphone.suspend()
    rows, fake._able = fake._rows, {}
    fake._rows = [r for r in rows if r[0] != "AirPods"]
    microphone.open()
    assert (microphone.settings.device.name, microphone.settings.device.index) == ("Scarlett Solo", 3)
    microphone.suspend()
    fake._rows = rows[:5]
    with pytest.raises(AudioError, match="Scarlett Solo is gone"):
        microphone.open()
    fake._rows = rows
    microphone.open()
    assert microphone.settings.device.index == 5


def test_a_device_that_cannot_be_opened_is_one_sentence(fake):
    class Busy(FakeStream):
        def start(self):
            raise PortAudioError("Device unavailable [PaErrorCode -9985]")

    fake.InputStream = Busy
    with pytest.raises(
        AudioError, match=r"MacBook Pro Microphone cannot be opened \(Device unavailable.*Close programs"
    ):
        Microphone(fake).open()


def test_a_stream_is_left_from_within(fake, monkeypatch):
    """Its callback ends it, before it is aborted."""
    monkeypatch.setattr(streams, "LEAVE_SECONDS", threading.TIMEOUT_MAX)
    speaker, order = Speaker(fake), []
    speaker.open()
    stream, callback = speaker._stream, speaker._stream.options["callback"]
    stream.abort = lambda ignore_errors: order.append("abort")

    def device():
        block = np.ones((240, 2), np.float32)
        while not order:
            try:
                callback(block, 240, TIMES, FINE)
            except fake.CallbackAbort:
                assert not block.any(), "the last block is silent"
                order.append("left")
                stream.options["finished_callback"]()

    thread = threading.Thread(target=device)
    thread.start()
    speaker.close()
    thread.join()
    assert order == ["left", "abort"]


def test_a_stream_that_stands_still_is_aborted(fake, monkeypatch):
    monkeypatch.setattr(streams, "LEAVE_SECONDS", threading.TIMEOUT_MAX)
    speaker, now = Speaker(fake), [100.0]
    monkeypatch.setattr(streams.time, "perf_counter", lambda: now[0])
    speaker.open()
    stream = speaker._stream
    now[0] += 10
    speaker.close()
    assert not stream.active


def test_a_sound_system_that_never_answers(monkeypatch, fake):
    """It ends neither the program in a traceback nor keeps it from ending."""
    monkeypatch.setattr(streams, "CLOSE_SECONDS", 0.05)
    forgotten = []
    monkeypatch.setattr(streams.atexit, "unregister", forgotten.append)
    with pytest.raises(AudioError, match="no longer responds"):
        guarded(lambda: time.sleep(1), fake)
    assert forgotten == [fake._exit_handler]


# Real PortAudio ------------------------------------------------------------------------------------------------------------

needs_pulse = pytest.mark.skipif(
    not virtual_audio.available(), reason="PulseAudio and its ALSA plugin are not installed"
)
needs_jack = pytest.mark.skipif(not virtual_audio.jack_available(), reason="jackd is not installed")


@pytest.mark.skipif(os.environ.get("CI") != "true" or sys.platform != "linux", reason="only where tests have to run")
def test_nothing_is_left_out_on_servers_of_tests():
    """What is skipped for want of a package would never be missed."""
    assert virtual_audio.available()
    assert virtual_audio.jack_available()
    assert echo.available()


@pytest.fixture
def audio(tmp_path):
    server = VirtualAudio(tmp_path / "audio")
    yield server
    server.stop()


def run_listing(env: dict) -> str:
    command = [sys.executable, "-m", "moshi_mlx.local", "--list-devices"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout


@needs_pulse
def test_a_spoken_question_and_its_answer(audio, tiny_checkpoint, question, tmp_path):
    """The real program, microphone to loudspeaker: what the model heard is the question, what was played is its reply."""
    listed = run_listing(audio.env)
    assert MICROPHONE in listed
    assert SPEAKER in listed
    speech, _ = soundfile.read(question, dtype="float32")
    talk = Talk(
        audio.env, "--model", tiny_checkpoint, "--record", tmp_path / "talk", "--echo-cancel", "off", "--context", "5",
        "--max-lag", "4000", talker=None, microphone="desk_micro", speaker="desk_spea",
    )  # fmt: skip
    with audio.recording() as heard:
        talk.running()
        audio.speak(speech).wait(PATIENCE)
        talk.more(24)
        figures = talk.stop()
        played = heard.pcm
    user, _ = soundfile.read(tmp_path / "talk" / "user.wav", dtype="float32")
    moshi, _ = soundfile.read(tmp_path / "talk" / "moshi.wav", dtype="float32")
    assert len(user) == len(moshi) == figures["frames"] * FRAME
    assert pieces_match(user, speech) > 0.99
    assert pieces_match(played, np.clip(moshi[RATE:-RATE], -1, 1)) > 0.99
    assert talk.of("word")
    assert figures["latency_ms"]["p50"] > 0


@needs_pulse
def test_a_click_goes_round(audio):
    """Loudspeaker, its monitor as microphone, the loop with a pass-through model, loudspeaker again, and so on.

    It cannot return before its frame is complete; how soon after that is what `test_latency` looks at.
    """
    add_loop_back(audio)
    talk = Talk(audio.env, "--echo-cancel", "off", "--max-lag", "4000", microphone=LOOP_BACK)
    talk.running()
    rounds = round_trips(audio)
    talk.more(12)
    figures = talk.stop()
    assert rounds.min() > 0
    assert np.median(rounds) >= 80
    assert figures["latency_ms"]["worst"] >= figures["latency_ms"]["p50"] > 0


@needs_pulse
@pytest.mark.slow
def test_latency(audio):
    """On an idle machine: the time between a click's returns is the frame, the devices and what the loop adds.

    The loop adds at most a block and the stated buffer.
    """
    add_loop_back(audio)
    talk = Talk(audio.env, "--echo-cancel", "off", microphone=LOOP_BACK)
    talk.running()
    rounds = round_trips(audio)
    figures = talk.stop()
    # Two devices asked for 40 ms each, which work in blocks of 20.
    devices_ms, block_ms, hold_ms = 40 + 40, 20, figures["hold_ms"]
    added = np.median(rounds) - 80
    print(f"round trips {np.round(rounds, 1)} ms; added to the frame {added:.1f} ms; {figures}")
    assert added <= devices_ms + block_ms + hold_ms
    # What the program shows is no less than what was measured.
    assert figures["latency_ms"]["p50"] >= added - 10
    # Without the devices' own delays: a block and the buffer.
    assert figures["latency_ms"]["p50"] - devices_ms - figures["step_ms"]["p50"] <= block_ms + hold_ms + 1


@needs_pulse
@pytest.mark.slow
def test_a_slow_model_on_devices(audio):
    """On an idle machine, 100 ms per frame: sound is dropped at the stated rate, the backlog keeps its bound, every loss is counted."""
    talk = Talk(audio.env, "--steps", "60", "--echo-cancel", "off", talker="slow")
    audio.speak(tone(300, 12))
    figures = talk.end()
    lags = [e["lag_ms"] for e in talk.of("status")]
    assert len(lags) == 5
    assert max(lags) <= 240
    # 60 steps take 6 s, in which 75 frames were spoken.
    assert 9 <= figures["dropped_frames"] <= 17
    assert figures["underruns"] > 0
    assert "will not keep up" in talk.stderr


@needs_pulse
def test_everything_is_unplugged_and_comes_back(audio, tmp_path):
    """The sound server dies in mid-talk and returns: the program says so, waits, and the conversation continues."""
    talk = Talk(audio.env, "--record", tmp_path / "talk", "--echo-cancel", "off", talker="tone")
    talk.running()
    audio.kill()
    lost = talk.notice("waiting for it")
    assert MICROPHONE in lost["text"] or SPEAKER in lost["text"]
    audio.start()
    talk.notice("the conversation continues")
    with audio.recording() as heard:
        talk.more(24)
        figures = talk.stop(signal.SIGTERM)
        played = heard.pcm
    assert "ended by SIGTERM" in talk.stderr
    assert figures["reconnects"] >= 1
    assert peak(played[np.argmax(np.abs(played) > 0.1) :][:12000], 300) > 0.9
    # One conversation: the frames of both halves follow each other without a gap.
    moshi, _ = soundfile.read(tmp_path / "talk" / "moshi.wav", dtype="float32")
    t = np.arange(len(moshi)) / 24000
    np.testing.assert_allclose(moshi, 0.5 * np.sin(2 * np.pi * 300 * t), atol=1e-3)
    assert lost["text"].split(";")[0] in (tmp_path / "talk" / "transcript.jsonl").read_text()


@needs_pulse
@pytest.mark.parametrize(
    ("kind", "name", "says"), [("sink", "speaker", "has stopped"), ("source", "mic", "delivers no sound")]
)
def test_a_device_stalls_and_recovers(audio, kind, name, says):
    talk = Talk(audio.env, "--echo-cancel", "off", talker="tone")
    talk.running()
    audio.suspend(kind, name)
    if kind == "source":
        audio.suspend("sink", "mic_sink")
    talk.notice(says)
    audio.suspend(kind, name, False)
    if kind == "source":
        audio.suspend("sink", "mic_sink", False)
    talk.notice("the conversation continues")
    talk.more(24)
    assert talk.stop()["reconnects"] >= 1


@needs_pulse
def test_a_microphone_that_delivers_what_is_no_number(audio, tmp_path):
    talk = Talk(audio.env, "--record", tmp_path / "talk", "--echo-cancel", "off")
    talk.running()
    pcm = np.full(24000, 0.2, np.float32)
    pcm[::5], pcm[1::7] = np.nan, np.inf
    audio.speak(pcm)
    talk.notice("samples that are not numbers; they are taken as silence")
    talk.wait_for(lambda e: e["event"] == "status" and e["invalid_samples"] > 5000)
    talk.stop()
    user, _ = soundfile.read(tmp_path / "talk" / "user.wav")
    assert np.isfinite(user).all()
    assert 0.05 < user.max() <= 1.0


@needs_pulse
def test_silence_of_a_denied_microphone(audio):
    """A forbidden microphone delivers zeros, as this one does while nobody speaks."""
    talk = Talk(audio.env, "--echo-cancel", "off")
    talk.notice("the microphone delivers digital silence")
    talk.stop()


@needs_pulse
def test_eight_channels(tmp_path):
    """A microphone with eight channels, of which one carries the voice: that one can be chosen."""
    audio = VirtualAudio(tmp_path / "audio", microphone_channels=8)
    voice = np.zeros((3 * 24000, 8), np.float32)
    voice[:, 4] = tone(440, 3)
    levels = {}
    try:
        for channel in (5, 6):
            talk = Talk(
                audio.env, "--record", tmp_path / str(channel), "--echo-cancel", "off", "--input-channel", channel
            )
            talk.running()
            audio.speak(voice).wait(PATIENCE)
            talk.more(12)
            talk.stop()
            user, _ = soundfile.read(tmp_path / str(channel) / "user.wav", dtype="float32")
            levels[channel] = np.abs(user).max()
            if channel == 5:
                loud = np.argmax(np.abs(user) > 0.1)
                assert peak(user[loud + 2400 : loud + 26400], 440) > 0.9
    finally:
        audio.stop()
    assert levels[5] == pytest.approx(0.4, rel=0.05)
    assert levels[6] == 0


@needs_jack
def test_a_device_that_knows_44100_hertz_only(tmp_path):
    """Both sides resampled: a tone goes out at its pitch and comes back through a cable."""
    jack = Jack(44100)
    try:
        talk = Talk(
            jack.env, "--record", tmp_path / "talk", "--echo-cancel", "off", "--max-lag", "4000", talker="tone",
            microphone="system", speaker="system",
        )  # fmt: skip
        talk.running()
        ports = [p for p in jack.ports() if "ortAudio" in p]
        out, into = next(p for p in ports if "out" in p), next(p for p in ports if "in_" in p)
        jack.connect(out, into)
        talk.more(40)
        talk.stop()
    finally:
        jack.stop()
    assert "44100 Hz, resampled" in talk.stderr
    user, _ = soundfile.read(tmp_path / "talk" / "user.wav", dtype="float32")
    assert pieces_match(user[-2 * RATE :], tone(300, 2, 0.5)) > 0.95
    assert np.abs(user[-RATE:]).max() == pytest.approx(0.5, rel=0.05)


@needs_pulse
@pytest.mark.slow
def test_the_echo_canceller_on_devices(audio, question, tmp_path):
    """On an idle machine: the loudspeaker is heard by the microphone (a wire stands for the room), the model hears little of it."""
    pytest.importorskip("livekit")
    audio.pactl("load-module", "module-loopback", "source=speaker.monitor", "sink=mic_sink", "latency_msec=60")
    speech, rate = soundfile.read(question, dtype="float32")
    soundfile.write(tmp_path / "speech.wav", np.tile(speech, 4), rate)
    levels = {}
    for mode in ("off", "aec", "mute"):
        talk = Talk(
            audio.env,
            "--record",
            tmp_path / mode,
            "--echo-cancel",
            mode,
            "--steps",
            "230",
            talker=f"say:{tmp_path}/speech.wav",
        )
        talk.end()
        user, _ = soundfile.read(tmp_path / mode / "user.wav", dtype="float32")
        levels[mode] = 20 * np.log10(np.sqrt(np.mean(user[10 * 24000 :] ** 2)) + 1e-9)
    print({k: round(float(v), 1) for k, v in levels.items()})
    assert levels["off"] - levels["aec"] >= 20
    assert levels["off"] - levels["mute"] >= 20


@needs_pulse
@pytest.mark.slow
def test_ten_minutes_without_a_loss(audio, tiny_checkpoint, question, tmp_path):
    """On an idle machine: a question every twenty seconds, a model in real time, no frame dropped, no underrun."""
    speech, _ = soundfile.read(question, dtype="float32")
    minutes = float(os.environ.get("MOSHI_MLX_SOAK_MINUTES", "10"))
    talk = Talk(
        audio.env, "--model", tiny_checkpoint, "--steps", int(minutes * 750), "--record", tmp_path / "talk", talker=None
    )  # fmt: skip
    talk.running()
    begun = time.monotonic()
    while talk.process.poll() is None and time.monotonic() - begun < minutes * 60 + 30:
        audio.speak(speech).wait()
        time.sleep(13)
    figures = talk.end()
    print(figures)
    assert figures["frames"] == int(minutes * 750)
    assert (figures["dropped_frames"], figures["underruns"], figures["device_errors"]) == (0, 0, 0)
