"""`/v1/models`, `/v1/audio/...` through OpenAI's own client: formats, streams, bad requests, full and dead servers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import io
import json
import socket
import time
import typing
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import soundfile
from aiohttp import http_parser

openai = pytest.importorskip("openai")
from openai.types import AudioModel  # noqa: E402
from openai.types.audio import SpeechModel  # noqa: E402
from openai.types.realtime import RealtimeSessionCreateRequest  # noqa: E402
from openai_server import OpenAI  # noqa: E402
from speech_server import hearing, speaking  # noqa: E402
from web_server import PATIENCE, Echo  # noqa: E402

from moshi_mlx.audio.files import read_audio  # noqa: E402
from moshi_mlx.engine.kind import Outcome  # noqa: E402
from moshi_mlx.engine.scheduler import Scheduler  # noqa: E402
from moshi_mlx.engine.streams import Bounds, WhenFull  # noqa: E402
from moshi_mlx.server import delivery, reading, recordings  # noqa: E402
from moshi_mlx.server.openai import models, speech  # noqa: E402
from moshi_mlx.server.services import STT, TALK, TTS, Hearing, Services, Speaking  # noqa: E402
from moshi_mlx.speech_to_text.rows import HeardFrame  # noqa: E402
from moshi_mlx.text_to_speech.rows import Spoken  # noqa: E402

TEXT = "hi"
SEEDED = {"seed": 1}


@pytest.fixture(scope="module")
def server():
    with OpenAI(Services(stt=hearing(), tts=speaking())) as s:
        yield s


@pytest.fixture(scope="module")
def spoken(server) -> np.ndarray:
    """What `TEXT` sounds like, int16."""
    return pcm(server)


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    """Two seconds of the question."""
    path = tmp_path_factory.mktemp("sound") / "question.wav"
    soundfile.write(path, read_audio(Path(__file__).parent.parent / "examples" / "question.wav")[:48000], 24000)
    return path


def say(server, text: str = TEXT, form: str = "pcm", voice="alloy", **fields) -> bytes:
    answer = server.client.audio.speech.create(
        model="tts-1", voice=voice, input=text, response_format=form, extra_body={**SEEDED, **fields}
    )
    server.wait_free()
    return answer.content


def pcm(server, **fields) -> np.ndarray:
    return np.frombuffer(say(server, **fields), "<i2")


# Models ---------------------------------------------------------------------------------------------------------------


def test_models(server):
    listed = server.client.models.list().data
    assert [m.id for m in listed] == ["tiny-stt", "tiny-tts"]
    assert {(m.object, m.owned_by) for m in listed} == {("model", "moshi_mlx")}
    assert abs(listed[0].created - time.time()) < 3600
    # Every name that they go by, though none of a kind that is not loaded.
    for name in ("tiny-tts", "tiny-stt", "whisper-1", "gpt-4o-mini-transcribe", "tts-1", "gpt-4o-mini-tts", "moshi"):
        assert server.client.models.retrieve(name).id == name
    for name in ("gpt-4o", "gpt-realtime", "tiny"):
        with pytest.raises(openai.NotFoundError) as e:
            server.client.models.retrieve(name)
        assert (e.value.code, e.value.param) == ("model_not_found", "model")

    async def same():
        return [m.id async for m in server.awaited.models.list()]

    assert asyncio.run(same()) == ["tiny-stt", "tiny-tts"]


def test_names_of_openai_mean_the_model_of_their_kind():
    """Every name that this version of the client knows."""
    talk = literals(RealtimeSessionCreateRequest.model_fields["model"].annotation)
    assert len(talk) > 10
    for kind, names in ((STT, literals(AudioModel)), (TTS, literals(SpeechModel)), (TALK, talk)):
        for name in [*names, *{STT: ["gpt-realtime-whisper", "gpt-live-transcribe"]}.get(kind, [])]:
            assert models.kind_of(Services(), name) == kind, name
    for name in ("gpt-4o", "gpt-5", "whisper-large-v3", "tts", "text-embedding-3-small", ""):
        assert models.kind_of(Services(), name) is None, name


def literals(kind) -> list[str]:
    """The values of a literal type, or of those in a union."""
    return [v for a in typing.get_args(kind) for v in ([a] if isinstance(a, str) else literals(a))]


# Speech ---------------------------------------------------------------------------------------------------------------


def test_pcm_is_whole_frames(server, spoken):
    assert len(spoken) % 1920 == 0
    assert len(spoken) > 1920
    np.testing.assert_array_equal(pcm(server), spoken)


@pytest.mark.parametrize(
    ("form", "kind", "lossless"),
    [
        ("wav", "audio/wav", True),
        ("flac", "audio/flac", True),
        ("opus", "audio/ogg", False),
        ("mp3", "audio/mpeg", False),
    ],
)
def test_formats(server, spoken, tmp_path, form, kind, lossless):
    answer = server.client.audio.speech.with_raw_response.create(
        model="tiny-tts", voice="a.wav", input=TEXT, response_format=form, extra_body=SEEDED
    )
    assert answer.headers["content-type"] == kind
    path = tmp_path / f"speech.{form}"
    path.write_bytes(answer.content)
    # Our own reader tells of a file whose end is missing.
    found = read_audio(path, tell=pytest.fail)
    if lossless:
        np.testing.assert_array_equal(np.rint(found * 32768), spoken)
    elif form == "opus":
        # The delay of the codec and the end are what the header says they are.
        assert len(found) == len(spoken)
    else:
        assert 0 <= len(found) - len(spoken) < 4 * 576


def test_mp3_is_the_default(server):
    assert server.client.audio.speech.create(model="moshi", voice="nova", input="yes").content[0] == 0xFF


def test_speech_comes_while_it_is_spoken(server):
    """The first bytes are there before most of it has been made."""
    text = " ".join([TEXT] * 12)
    with server.client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input=text, response_format="pcm", extra_body=SEEDED
    ) as answer:
        pieces = answer.iter_bytes(3840)
        first, begun = next(pieces), server.services.tts.scheduler.figures().steps
        rest = b"".join(pieces)
    assert len(first + rest) % 3840 == 0
    assert server.services.tts.scheduler.figures().steps - begun > 20


@pytest.mark.parametrize("form", ["pcm", "opus", "mp3"])
def test_speed(server, spoken, tmp_path, form):
    data = say(server, form=form, speed=1.6)
    if form == "pcm":
        found = len(data) / 2
    else:
        path = tmp_path / f"fast.{form}"
        path.write_bytes(data)
        found = len(read_audio(path, tell=pytest.fail))
    assert abs(found - len(spoken) / 1.6) < (4 * 576 if form == "mp3" else 360)


def test_speech_as_events(server, spoken):
    with server.client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts",
        voice="alloy",
        input=TEXT,
        response_format="pcm",
        stream_format="sse",
        extra_body=SEEDED,
    ) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        events = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]
    assert {e["type"] for e in events[:-1]} == {"speech.audio.delta"}
    assert events[-1]["type"] == "speech.audio.done"
    assert events[-1]["usage"]["output_tokens"] == len(events) - 1
    sound = b"".join(base64.b64decode(e["audio"]) for e in events[:-1])
    np.testing.assert_array_equal(np.frombuffer(sound, "<i2"), spoken)


def test_voices(server, spoken):
    np.testing.assert_array_equal(pcm(server, voice="a.wav"), spoken)
    other = pcm(server, voice="b.wav")
    assert len(other) != len(spoken) or (other != spoken).any()
    np.testing.assert_array_equal(pcm(server, voice={"id": "b.wav"}), other)
    with aiohttp_get(server, "/v1/audio/voices") as body:
        assert body == {"voices": [{"id": "a.wav", "name": "a.wav"}, {"id": "b.wav", "name": "b.wav"}]}


def test_speech_of_the_client_that_waits_for_it(server, spoken):
    async def speak():
        answer = await server.awaited.audio.speech.create(
            model="tts-1", voice="alloy", input=TEXT, response_format="pcm", extra_body=SEEDED
        )
        return await answer.aread()

    async def several():
        return await asyncio.gather(*(speak() for _ in range(4)))

    # Two rows, four clients: two of them wait for a row.
    for sound in asyncio.run(several()):
        np.testing.assert_array_equal(np.frombuffer(sound, "<i2"), spoken)


BAD_SPEECH = {
    "model": ({"model": "gpt-4o"}, 404, "model", "tiny-tts is loaded"),
    "kind": ({"model": "whisper-1"}, 404, "model", "no text-to-speech model 'whisper-1'"),
    "no model": ({"model": None}, 400, "model", "should be a name"),
    "no input": ({"input": None}, 400, "input", "should be the text to speak"),
    "number": ({"input": 5}, 400, "input", "should be the text to speak, found 5"),
    "empty": ({"input": " \n"}, 400, "input", "input is empty"),
    "unspeakable": ({"input": "\U0001f600"}, 400, "input", "nothing that can be spoken"),
    "long": ({"input": "a " * 60_000}, 400, "input", "may have 100000 characters"),
    "one word": ({"input": "a" * 50_000}, 400, None, "cannot be spoken"),
    "format": ({"response_format": "aac"}, 400, "response_format", "'mp3', 'opus', 'flac', 'wav' or 'pcm'"),
    "format type": ({"response_format": ["mp3"]}, 400, "response_format", "should be"),
    "voice": ({"voice": "../../etc/passwd"}, 400, "voice", "there is no voice"),
    "voice type": ({"voice": 7}, 400, "voice", "name of a voice"),
    "fast": ({"speed": 5}, 400, "speed", "0.25 to 4.0"),
    "slow": ({"speed": "slow"}, 400, "speed", "should be a number"),
    "stream": ({"stream_format": "ws"}, 400, "stream_format", "'audio' or 'sse'"),
    "seed": ({"seed": -1}, 400, "seed", "whole number"),
}


@pytest.mark.parametrize("case", BAD_SPEECH)
def test_bad_speech(server, case):
    fields, status, param, message = BAD_SPEECH[case]
    with pytest.raises(openai.APIStatusError) as e:
        server.client.audio.speech.create(
            model="tts-1", voice="alloy", input=TEXT, extra_body={"response_format": "pcm", **fields}
        )
    assert e.value.status_code == status
    assert e.value.type == "invalid_request_error"
    assert e.value.param == param
    assert message in e.value.message
    server.wait_free()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_object(server, body):
    for kind in ("application/json", "application/json; charset=no"):
        status, found = post(server, "/v1/audio/speech", data=body, headers={"Content-Type": kind})
        assert status == 400
        assert "JSON object" in found["error"]["message"]


# Transcriptions -------------------------------------------------------------------------------------------------------


def write_down(server, file, **fields):
    fields.setdefault("model", "whisper-1")
    found = server.client.audio.transcriptions.create(file=file, **fields)
    server.wait_free()
    return found


def test_transcripts(server, recording):
    text = write_down(server, recording).text
    assert len(text.split()) > 2
    assert write_down(server, recording, model="tiny-stt", response_format="text") == text + "\n"
    found = write_down(server, recording, response_format="verbose_json", language="fr")
    assert (found.text, found.language, found.duration) == (text, "fr", 2.0)
    assert " ".join(w.word for w in found.words) == text
    assert all(0 <= w.start < w.end <= 2.0 for w in found.words)
    assert all(a.end <= b.start for a, b in zip(found.words, found.words[1:], strict=False))
    assert " ".join(s.text for s in found.segments) == text
    assert found.segments[-1].end <= 2.0
    for form, first in (("srt", "1\n00:00:0"), ("vtt", "WEBVTT\n\n00:00:0")):
        subtitles = write_down(server, recording, response_format=form)
        assert subtitles.startswith(first)
        assert "-->" in subtitles


def test_what_is_timed(server, recording):
    words = write_down(server, recording, response_format="verbose_json", timestamp_granularities=["word"])
    assert words.words
    assert words.segments is None
    segments = write_down(server, recording, response_format="verbose_json", timestamp_granularities=["segment"])
    assert segments.segments
    assert segments.words is None
    both = write_down(server, recording, response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert both.words == words.words
    assert both.segments == segments.segments


@pytest.mark.parametrize("form", ["json", "text", "srt", "vtt"])
def test_what_is_timed_is_a_matter_of_one_format(server, recording, form):
    plain = write_down(server, recording, response_format=form)
    assert write_down(server, recording, response_format=form, timestamp_granularities=["segment"]) == plain


def test_a_transcript_as_it_is_heard(server, recording):
    text = write_down(server, recording).text
    events = list(server.client.audio.transcriptions.create(model="gpt-4o-transcribe", file=recording, stream=True))
    assert "".join(e.delta for e in events[:-1]) == text
    assert {e.type for e in events[:-1]} == {"transcript.text.delta"}
    assert (events[-1].type, events[-1].text) == ("transcript.text.done", text)

    async def awaited():
        stream = await server.awaited.audio.transcriptions.create(model="moshi", file=recording, stream=True)
        return [e async for e in stream]

    assert asyncio.run(awaited())[-1].text == text


def test_recordings_of_other_kinds(server, recording, tmp_path):
    """By what is in them, whatever they are called; an upload may be larger than other bodies."""
    text = write_down(server, recording).text
    flac = io.BytesIO()
    soundfile.write(flac, read_audio(recording), 24000, format="FLAC")
    assert write_down(server, ("../../x y.mp3", flac.getvalue())).text == text
    wide = tmp_path / "wide.wav"
    soundfile.write(wide, np.zeros((120_000, 48), np.float32), 48000, subtype="FLOAT")
    assert wide.stat().st_size > 20 << 20
    assert write_down(server, wide, response_format="verbose_json").duration == 2.5


def test_a_recording_whose_end_is_missing(server, recording):
    found = write_down(server, ("cut.wav", recording.read_bytes()[:50_000]))
    assert found.warning == "cut.wav is cut short: 1.0 of 2.0 s are there."


BAD_FILES = {
    "garbage": (b"\x00\x01garbage" * 500, "x.wav is not an audio file"),
    "empty": (b"", "x.wav is empty"),
    "text": (b"hello there", "x.wav is not an audio file"),
    "no samples": (
        b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\xc0\x5d\0\0\x80\xbb\0\0\2\0\x10\0data\0\0\0\0",
        "holds no audio",
    ),
    "header only": (b"RIFF\x24\0\0\0WAVE", "x.wav"),
    "m4a": (b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(200), "x.wav"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(server, case):
    content, message = BAD_FILES[case]
    with pytest.raises(openai.BadRequestError) as e:
        server.client.audio.transcriptions.create(model="whisper-1", file=("x.wav", content))
    assert message in e.value.message
    assert "/" not in e.value.message
    assert "--" not in e.value.message
    assert e.value.type == "invalid_request_error"


BAD_FORMS = {
    "model": ({"model": "tts-1"}, 404, "model", "no speech-to-text model 'tts-1'"),
    "format": ({"response_format": "xml"}, 400, "response_format", "'json', 'text', 'srt', 'verbose_json' or 'vtt'"),
    "times": (
        {"response_format": "verbose_json", "timestamp_granularities": ["phone"]},
        400, "timestamp_granularities", "'word' or 'segment'",
    ),
    "hot": ({"temperature": 3}, 400, "temperature", "from 0 to 1"),
    "warm": ({"extra_body": {"temperature": "warm"}}, 400, "temperature", "should be a number"),
    "stream": ({"extra_body": {"stream": "perhaps"}}, 400, "stream", "should be"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FORMS)
def test_bad_forms(server, recording, case):
    fields, status, param, message = BAD_FORMS[case]
    with pytest.raises(openai.APIStatusError) as e:
        server.client.audio.transcriptions.create(**{"model": "whisper-1", "file": recording, **fields})
    assert (e.value.status_code, e.value.param) == (status, param)
    assert message in e.value.message


def form(**fields) -> aiohttp.FormData:
    data = aiohttp.FormData(default_to_multipart=True)
    for name, value in fields.items():
        data.add_field(name, value, **({"filename": "x.wav"} if name == "file" else {}))
    return data


def test_what_is_no_form(server, monkeypatch):
    for body, kind, message in (
        (b"{}", "application/json", "found the type application/json"),
        (b"", "", "multipart/form-data"),
        (b"--x\r\ngarbage", "multipart/form-data; boundary=x", "no whole form"),
        (b"garbage", "multipart/form-data; boundary=x", "no whole form"),
        (b"garbage", "multipart/form-data", "no whole form"),
        (
            b"--x\r\nContent-Disposition: form-data; name=model\r\n\r\n\xff\r\n--x--\r\n",
            "multipart/form-data; boundary=x",
            "no whole",
        ),
    ):
        headers = {"Content-Type": kind} if kind else {}
        status, found = post(server, "/v1/audio/transcriptions", data=body, headers=headers)
        assert status == 400, body
        assert message in found["error"]["message"], found
    for fields, status, param in (
        ({"model": "whisper-1"}, 400, "file"),
        ({"file": b"x"}, 400, "model"),
        ({"model": "whisper-1", "prompt": "x" * 70_000}, 400, "prompt"),
    ):
        found = post(server, "/v1/audio/transcriptions", data=form(**fields))
        assert (found[0], found[1]["error"]["param"]) == (status, param)
    twice = form(model="whisper-1", file=b"one")
    twice.add_field("file", b"two", filename="y.wav")
    status, found = post(server, "/v1/audio/transcriptions", data=twice)
    assert (status, found["error"]["param"]) == (400, "file")
    assert "more than one `file`" in found["error"]["message"]
    monkeypatch.setattr(recordings, "LARGEST", 100_000)
    status, found = post(server, "/v1/audio/transcriptions", data=form(model="whisper-1", file=bytes(200_000)))
    assert (status, found["error"]["code"]) == (413, "file_too_large")


# Others are here, and clients that go ---------------------------------------------------------------------------------


@contextlib.contextmanager
def taken(scheduler, rows: int, live: bool = True):
    """So many rows belong to others."""
    held = [scheduler.open(None, live=live) for _ in range(rows)]
    assert all(s.wait_open(PATIENCE) for s in held)
    try:
        yield
    finally:
        for stream in held:
            stream.close()


def test_a_full_server(server, recording, monkeypatch):
    monkeypatch.setattr(reading, "ROW_SECONDS", 0.2)
    with taken(server.services.tts.scheduler, 2), pytest.raises(openai.InternalServerError) as e:
        server.client.audio.speech.create(model="tts-1", voice="alloy", input=TEXT)
    assert (e.value.status_code, e.value.code) == (503, "server_full")
    assert int(e.value.response.headers["retry-after"]) > 0
    # An upload leaves the last row to those who speak.
    with taken(server.services.stt.scheduler, 1), pytest.raises(openai.InternalServerError) as e:
        server.client.audio.transcriptions.create(model="whisper-1", file=recording)
    assert e.value.status_code == 503
    server.wait_free()
    assert write_down(server, recording).text


def test_who_waits_for_a_row_gets_it(server, recording):
    async def run():
        with taken(server.services.stt.scheduler, 2):
            found = asyncio.ensure_future(server.awaited.audio.transcriptions.create(model="moshi", file=recording))
            while not server.services.stt.scheduler.waiting:
                await asyncio.sleep(0.02)
            assert not (await asyncio.wait({found}, timeout=0.3))[0]
        return (await found).text

    assert asyncio.run(run()) == write_down(server, recording).text


def test_too_many_wait(server, monkeypatch):
    monkeypatch.setattr(reading, "LONGEST_QUEUE", 0)
    with pytest.raises(openai.InternalServerError, match="every row"):
        server.client.audio.speech.create(model="tts-1", voice="alloy", input=TEXT)


def test_a_client_that_goes_frees_its_row(server):
    """In the middle of speech, and while it waits for a row."""
    body = json.dumps(
        {"model": "tts-1", "voice": "alloy", "input": "hello there my friend " * 400, "response_format": "pcm"}
    )
    request = f"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(request)
        assert b"200 OK" in client.recv(4096)
        assert server.services.tts.scheduler.live == 1
    assert server.wait_free() < 5
    with taken(server.services.tts.scheduler, 2):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(request)
            while not server.services.tts.scheduler.waiting:
                time.sleep(0.01)
        begun = time.monotonic()
        while server.services.tts.scheduler.waiting:
            assert time.monotonic() - begun < 5
            time.sleep(0.01)


class Fails(Echo):
    """A model that dies at its first frame."""

    def ready(self, row, inbox):
        return inbox.has_message or inbox.has_frame

    def collect(self, row, inbox):
        return None

    def step(self, given):
        raise RuntimeError("the graphics card fell out")


def test_a_dead_model(recording, caplog):
    make = lambda: Scheduler(lambda: Fails(2))  # noqa: E731
    with OpenAI(Services(stt=Hearing("stt", make()), tts=Speaking("tts", make()))) as server:
        for _ in range(2):
            with pytest.raises(openai.InternalServerError) as e:
                server.client.audio.speech.create(model="tts-1", voice="alloy", input=TEXT)
            assert (e.value.status_code, e.value.code, e.value.type) == (503, "model_stopped", "server_error")
            with pytest.raises(openai.InternalServerError) as e:
                server.client.audio.transcriptions.create(model="whisper-1", file=recording)
            assert e.value.code == "model_stopped"
        assert len(server.client.models.list().data) == 2


class Hums(Echo):
    """A model that hums for so many frames, or for ever, and may die of it."""

    def __init__(self, frames: int = 10**9, dies: int = 10**9, seconds: float = 0.0):
        super().__init__(seconds=seconds)
        self.bounds, self._last, self._dies = Bounds(0, 256, WhenFull.PAUSE), frames, dies

    def ready(self, row, inbox):
        return True

    def collect(self, row, inbox):
        return None

    def step(self, given):
        time.sleep(self.seconds)
        for row in given:
            self._frames[row] += 1
            if self._frames[row] > self._dies:
                raise RuntimeError("the graphics card fell out")
        sound = Spoken(np.full(1920, 0.1, np.float32), np.zeros(8, np.int32), [])
        return {row: Outcome([sound], self._frames[row] >= self._last) for row in given}


def humming(**how) -> OpenAI:
    return OpenAI(Services(tts=Speaking("hum", Scheduler(lambda: Hums(**how)))))


def ask_for_speech(server, path: str = "/v1/audio/speech", **fields) -> socket.socket:
    """A connection on which speech has begun."""
    body = json.dumps({"model": "tts-1", "voice": "alloy", "input": TEXT, "response_format": "pcm", **fields})
    client = socket.create_connection(("127.0.0.1", server.port))
    client.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    assert b"200 OK" in client.recv(4096)
    return client


@pytest.mark.parametrize("path", ["/v1/audio/speech", "/api/tts_streaming"])
def test_a_client_that_does_not_read(monkeypatch, path):
    """Its row stands still, nothing piles up, and in the end it is for others."""
    monkeypatch.setattr(delivery, "UNREAD_SECONDS", 1.0)
    with humming() as server, ask_for_speech(server, path, text=TEXT):
        scheduler = server.services.tts.scheduler
        assert server.wait_free() > 0.5
        assert scheduler.figures().dropped_out == 0
        steps = scheduler.figures().steps
        time.sleep(0.2)
        assert scheduler.figures().steps == steps


def test_a_model_that_dies_while_it_speaks():
    """What was sent is sent: the connection breaks off, so that nobody takes it for the whole; events tell why."""
    with humming(dies=5, seconds=0.05) as server, ask_for_speech(server) as client:
        client.settimeout(PATIENCE)
        with contextlib.suppress(ConnectionError):
            received = b""
            while piece := client.recv(65536):
                received += piece
        assert not received.endswith(b"0\r\n\r\n")
    with humming(dies=5, seconds=0.05) as server, ask_for_speech(server, stream_format="sse") as client:
        client.settimeout(PATIENCE)
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += client.recv(65536)
    last = json.loads(received.rpartition(b"data: ")[2].partition(b"\n")[0])
    assert last["error"]["code"] == "model_stopped"


class Slow(Echo):
    """Hears nothing, slowly, and says so."""

    def __init__(self):
        super().__init__(seconds=0.05)
        self.bounds = Bounds(120.0, 1024, WhenFull.END)

    def step(self, given):
        super().step(given)
        frame = HeardFrame(0, np.zeros(0, np.float32), [])
        return {row: Outcome([frame], each is None) for row, each in given.items()}


def test_a_client_that_goes_before_its_transcript(recording):
    with OpenAI(Services(stt=Hearing("slow", Scheduler(Slow)))) as server:

        async def go():
            sent = form(model="whisper-1", file=soundfile_bytes(20.0))
            async with aiohttp.ClientSession() as session:
                post = asyncio.ensure_future(session.post(server.origin + "/v1/audio/transcriptions", data=sent))
                while not server.services.stt.scheduler.live:
                    await asyncio.sleep(0.01)
                post.cancel()

        asyncio.run(go())
        # 20 s would take it 12 s.
        assert server.wait_free() < 5


def soundfile_bytes(seconds: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(int(24000 * seconds), np.float32), 24000, format="WAV")
    return file.getvalue()


# What is nobody's -----------------------------------------------------------------------------------------------------


def test_everything_below_v1_fails_in_openais_form(server):
    for path, method, status in (
        ("/v1/chat/completions", "POST", 404),
        ("/v1/nothing", "GET", 404),
        ("/v1/audio/speech", "GET", 405),
    ):
        found = asked(server, method, path)
        assert found[0] == status
        assert found[1]["error"]["type"] == "invalid_request_error"
        assert path in found[1]["error"]["message"]
    status, found = asked(server, "GET", "/v1/models", headers={"Origin": "https://example.org"})
    assert (status, found["error"]["type"]) == (403, "invalid_request_error")
    status, found = post(server, "/v1/audio/speech", json={"input": "x" * (17 << 20)})
    assert (status, found["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    "path", ["/v1/audio/speech", "/v1/audio/transcriptions", "/api/tts_streaming", "/api/asr-streaming"]
)
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_body_that_is_not_what_it_says(server, caplog, path, coding):
    kind = "multipart/form-data; boundary=x" if "transcriptions" in path else "application/json"

    async def ask():
        async with (
            aiohttp.ClientSession(headers={"Content-Type": kind}) as session,
            session.post(server.origin + path, data=b"plain", headers={"Content-Encoding": coding}) as answer,
        ):
            return answer.status, await answer.text()

    status, told = asyncio.run(ask())
    sentence = json.loads(told)["error"]["message"] if path.startswith("/v1/") else told.removesuffix("\n")
    assert status == 400
    assert sentence.startswith("the body cannot be read: it is not what its Content-Encoding")
    assert server.client.models.list().data
    assert not [r for r in caplog.records if r.exc_info]


@pytest.mark.parametrize("coding", ["br", "zstd"])
def test_a_body_of_a_coding_that_is_not_understood(server, monkeypatch, coding):
    """As without the packages for them, which other programs may have installed."""
    monkeypatch.setattr(http_parser, "HAS_BROTLI", False)
    monkeypatch.setattr(http_parser, "HAS_ZSTD", False)
    status, found = post(server, "/v1/audio/speech", data=b"packed", headers={"Content-Encoding": coding})
    assert (status, found["error"]["type"]) == (400, "invalid_request_error")
    assert "Content-Encoding is not understood" in found["error"]["message"]


def test_a_body_that_is_what_it_says(server, spoken):
    fields = {"model": "tts-1", "voice": "alloy", "input": TEXT, "response_format": "pcm", **SEEDED}

    async def ask():
        packed, kind = gzip.compress(json.dumps(fields).encode()), {"Content-Type": "application/json"}
        async with (
            aiohttp.ClientSession(headers={**kind, "Content-Encoding": "gzip"}) as session,
            session.post(server.origin + "/v1/audio/speech", data=packed) as answer,
        ):
            return await answer.read()

    np.testing.assert_array_equal(np.frombuffer(asyncio.run(ask()), "<i2"), spoken)


def test_a_server_without_the_kind(recording):
    missing = "no speech-to-text model is loaded; loaded: tts"
    with (
        OpenAI(Services(tts=Speaking("tts", Scheduler(Echo)))) as server,
        pytest.raises(openai.NotFoundError, match=missing),
    ):
        server.client.audio.transcriptions.create(model="whisper-1", file=recording)


def test_the_token(server):
    """Any bearer on this machine; the right one where there is a token."""
    assert server.client.with_options(api_key="anything").models.list().data
    with OpenAI(Services(tts=Speaking("tts", Scheduler(Echo))), token="secret") as guarded:
        with pytest.raises(openai.AuthenticationError) as e:
            guarded.client.models.list()
        assert e.value.code == "invalid_api_key"
        assert guarded.client.with_options(api_key="secret").models.list().data[0].id == "tts"


def asked(server, method: str, path: str, **options) -> tuple[int, dict]:
    async def ask():
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, server.origin + path, **options) as answer,
        ):
            return answer.status, await answer.json()

    return asyncio.run(ask())


def post(server, path: str, **options) -> tuple[int, dict]:
    return asked(server, "POST", path, **options)


@contextlib.contextmanager
def aiohttp_get(server, path: str):
    yield asked(server, "GET", path)[1]


def test_names_of_voices_of_openai():
    known = literals(typing.get_type_hints(openai.types.audio.SpeechCreateParams)["voice"])
    assert set(known) <= speech.USUAL_VOICES
