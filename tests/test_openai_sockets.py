"""`/v1/realtime` through OpenAI's own client and small models: talks, transcription, translation, and what goes wrong."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import time
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import soundfile

openai = pytest.importorskip("openai")
websockets = pytest.importorskip("websockets")
import speech_toys  # noqa: E402
from openai_server import OpenAI, talking  # noqa: E402
from speech_server import hearing  # noqa: E402
from test_hibiki import make as make_hibiki  # noqa: E402
from web_server import PATIENCE, Echo  # noqa: E402

from moshi_mlx import checkpoint as checkpoints  # noqa: E402
from moshi_mlx.audio.files import read_audio  # noqa: E402
from moshi_mlx.audio.wav import to_int16  # noqa: E402
from moshi_mlx.engine.kind import Outcome  # noqa: E402
from moshi_mlx.engine.scheduler import Scheduler  # noqa: E402
from moshi_mlx.engine.streams import Bounds, Mark, WhenFull  # noqa: E402
from moshi_mlx.engine.token_clock import UNGENERATED  # noqa: E402
from moshi_mlx.server.openai.realtime import socket as sockets  # noqa: E402
from moshi_mlx.server.query import BadQuery, Wishes  # noqa: E402
from moshi_mlx.server.services import Hearing, Services, Talking  # noqa: E402
from moshi_mlx.session.conversations import Conversations, Talk  # noqa: E402
from moshi_mlx.speech_to_text.live import LiveWord  # noqa: E402
from moshi_mlx.speech_to_text.rows import HeardFrame, Marker  # noqa: E402

FRAME = 1920
SILENT = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}
WORDS = "conversation.item.input_audio_transcription"


@pytest.fixture(scope="module")
def server():
    with OpenAI(Services(talk=talking(), stt=hearing())) as s:
        yield s


@pytest.fixture(scope="module")
def question() -> np.ndarray:
    """Samples int16, of which there are enough."""
    return to_int16(read_audio(Path(__file__).parent.parent / "examples" / "question.wav"))


def base64_of(pcm: np.ndarray) -> str:
    return base64.b64encode(pcm.astype("<i2").tobytes()).decode()


def pcm_of(told: list, kind: str = "response.output_audio.delta") -> np.ndarray:
    return np.frombuffer(b"".join(base64.b64decode(e.delta) for e in told if e.type == kind), "<i2")


async def until(connection, kind: str, count: int = 1) -> list:
    """Events up to the `count`-th of a kind."""
    told: list = []
    while sum(e.type == kind for e in told) < count:
        told.append(await asyncio.wait_for(connection.recv(), PATIENCE))
        assert told[-1].event_id
        assert told[-1].type != "error" or kind == "error", told[-1]
    return told


def with_client(server, act, model: str = "gpt-realtime", **options):
    """`act(connection)` in a session of OpenAI's client; the rows are free again afterwards."""

    async def run():
        async with server.awaited as client, client.realtime.connect(model=model, **options) as connection:
            return await act(connection)

    result = asyncio.run(run())
    server.wait_free()
    return result


# Talks ----------------------------------------------------------------------------------------------------------------


def alone(server, pcm: np.ndarray) -> tuple[np.ndarray, str]:
    """What the model says to it without OpenAI's interface: sound and text."""
    stream = server.services.talk.scheduler.open(server.services.talk.make(None))
    frames = []
    for at in range(0, len(pcm), FRAME):
        stream.feed(pcm[at : at + FRAME].astype(np.float32) / 32768)
        frames.append(stream.read(PATIENCE))
    stream.close()
    server.wait_free()
    silence = np.zeros(FRAME, np.float32)
    sound = [to_int16(f.pcm if f.text_token != UNGENERATED else silence) for f in frames]
    return np.concatenate(sound), "".join(f.text for f in frames if f.text_token != UNGENERATED).lstrip()


def test_a_talk(server, question):
    pcm = question[: 12 * FRAME]

    async def talk(connection):
        await connection.session.update(session={"type": "realtime", "instructions": "Be kind."})
        told = await until(connection, "session.updated")
        # Pieces of any length.
        for at in range(0, len(pcm), 1000):
            await connection.input_audio_buffer.append(audio=base64_of(pcm[at : at + 1000]))
        return (
            told
            + await until(connection, "response.output_audio.delta", 12)
            + await until(connection, "response.output_audio_transcript.delta")
        )

    told = with_client(server, talk)
    assert [e.type for e in told[:3]] == ["session.created", "session.updated", "response.created"]
    assert told[0].session.model == "tiny"
    assert len({e.event_id for e in told}) == len(told)
    expected, text = alone(server, pcm)
    np.testing.assert_array_equal(pcm_of(told), expected)
    said = "".join(e.delta for e in told if e.type == "response.output_audio_transcript.delta")
    assert said
    assert text.startswith(said) or said == text


def test_a_talk_of_the_client_that_blocks(server, question):
    with server.client.realtime.connect(model="moshi") as connection:
        assert connection.recv().type == "session.created"
        connection.input_audio_buffer.append(audio=base64_of(question[: 3 * FRAME]))
        told = [connection.recv() for _ in range(5)]
        assert told[-1].type == "response.output_audio.delta"
        connection.input_audio_buffer.commit()
        connection.response.create()
        while connection.recv().type != "input_audio_buffer.committed":
            pass
    server.wait_free()


def test_one_message_loses_nothing_of_itself(server, question):
    """Longer than what may wait for a model that is late."""
    pcm = question[: 40 * FRAME]

    async def talk(connection):
        await connection.input_audio_buffer.append(audio=base64_of(pcm))
        return await until(connection, "response.output_audio.delta", 40)

    np.testing.assert_array_equal(pcm_of(with_client(server, talk)), alone(server, pcm)[0])


def test_names_from_before(server, question):
    async def talk(connection):
        await connection.send(
            {
                "type": "session.update",
                "session": {"modalities": ["audio", "text"], "voice": "alloy", "input_audio_format": "pcm16"},
            }
        )
        await connection.input_audio_buffer.append(audio=base64_of(question[: 2 * FRAME]))
        told = []
        while not told or told[-1]["type"] != "response.audio.delta":
            told.append(json.loads(await connection.recv_bytes()))
        return told

    told = with_client(server, talk, extra_headers={"OpenAI-Beta": "realtime=v1"})
    assert [e["type"] for e in told] == [
        "session.created", "session.updated", "response.created", "response.output_item.added", "conversation.item.created",
        "response.content_part.added", "response.audio.delta",
    ]  # fmt: skip
    assert told[0]["session"]["modalities"] == ["audio", "text"]


def test_a_role_and_a_voice(question):
    """Another talk takes the place of the one that nothing was said to."""
    kind = Echo()

    def make(wishes: Wishes) -> Wishes:
        if wishes.voice == "nobody":
            raise BadQuery("there is no voice 'nobody'.")
        return wishes

    async def talk(connection):
        persona = {"instructions": "You are a sailor.", "audio": {"output": {"voice": "NATF2"}}}
        await connection.session.update(session={"type": "realtime", **persona})
        told = await until(connection, "session.updated")
        await connection.session.update(session={"type": "realtime", "audio": {"output": {"voice": "nobody"}}})
        refused = (await until(connection, "error"))[-1]
        await connection.input_audio_buffer.append(audio=base64_of(question[: 2 * FRAME]))
        return told[-1].session, refused.error, await until(connection, "response.output_audio.delta", 2)

    with OpenAI(Services(talk=Talking("persona", Scheduler(lambda: kind), make, persona=True))) as server:
        session, refused, _ = with_client(server, talk)
        server.wait_free()
    assert (session.instructions, session.audio.output.voice) == ("You are a sailor.", "NATF2")
    assert "nobody" in refused.message
    assert [(w.voice, w.role) for w in kind.options[-1:]] == [("NATF2", "You are a sailor.")]


# Transcription --------------------------------------------------------------------------------------------------------


def test_a_transcription_is_that_of_the_upload(server, question, tmp_path):
    pcm = question[: 25 * FRAME]
    soundfile.write(tmp_path / "x.wav", pcm, 24000)
    expected = server.client.audio.transcriptions.create(model="whisper-1", file=tmp_path / "x.wav").text

    async def transcribe(connection):
        await connection.session.update(session=SILENT)
        told = []
        for _ in range(2):
            for at in range(0, len(pcm), 4000):
                await connection.input_audio_buffer.append(audio=base64_of(pcm[at : at + 4000]))
            await connection.input_audio_buffer.commit()
            told.append(await until(connection, f"{WORDS}.completed"))
        return told

    first, second = with_client(server, transcribe, "gpt-4o-transcribe")
    assert [e.type for e in first[:2]] == ["session.created", "session.updated"]
    assert first[0].session.type == "transcription"
    said = first[-1].transcript
    assert "".join(e.delta for e in first if e.type == f"{WORDS}.delta") == said
    # A word that has not ended is the end of a recording, but not of a session. This model never stops to speak.
    assert said.split() in (expected.split(), expected.split()[:-1])
    assert first[-1].usage.seconds == 2.0
    kinds = [e.type for e in first]
    assert kinds.index("input_audio_buffer.committed") < kinds.index("conversation.item.added") < len(kinds) - 1
    # The second goes on in the same stream.
    committed = next(e for e in second if e.type == "input_audio_buffer.committed")
    assert committed.previous_item_id == first[-1].item_id
    assert second[-1].item_id == committed.item_id


def test_a_mark_behind_a_flush_comes_after_all_of_its_words(server):
    """The silence that is put in outlasts the model's delay by a frame, with which the last word ends."""
    scheduler = server.services.stt.scheduler
    stream = scheduler.open(server.services.stt.make())
    for _ in range(20):
        stream.feed(np.zeros(FRAME, np.float32))
        assert stream.read(PATIENCE) is not None
    begun = scheduler.figures().steps
    stream.flush()
    stream.mark(1)
    while stream.read(PATIENCE) != Marker(1):
        pass
    # 0.5 s, and the frame after it; the message itself takes no step of the model.
    assert 8 <= scheduler.figures().steps - begun <= 9
    assert stream.read(0.2) is None
    stream.close()
    server.wait_free()


class Speaker(Echo):
    """Rows that hear a word in every loud frame."""

    heads = 4

    def __init__(self, rows: int = 2):
        super().__init__(rows)
        self.bounds = Bounds(120.0, 1024, WhenFull.END)

    def ready(self, row, inbox):
        return inbox.has_frame or inbox.has_message

    def collect(self, row, inbox):
        messages = []
        while inbox.has_message:
            messages.append(inbox.message())
        return messages, inbox.frame() if inbox.has_frame else None

    def step(self, given):
        outcomes = {}
        for row, (messages, pcm) in given.items():
            items: list = [Marker(m.id) for m in messages if isinstance(m, Mark)]
            if pcm is not None:
                loud, index = bool(np.abs(pcm).max() > 0.1), self._frames[row]
                self._frames[row] += 1
                words = [LiveWord(f"w{index}", 0.08 * index)] if loud else []
                items.append(HeardFrame(index, np.full(4, 0.05 if loud else 0.95, np.float32), words))
            outcomes[row] = Outcome(items)
        return outcomes


def test_pauses_end_items(server):
    loud, quiet = np.full(FRAME, 9000, np.int16), np.zeros(FRAME, np.int16)

    async def transcribe(connection):
        for frame in [*[quiet] * 14, *[loud] * 3, *[quiet] * 4, loud, *[quiet] * 3]:
            await connection.input_audio_buffer.append(audio=base64_of(frame))
        return await until(connection, f"{WORDS}.completed", 2)

    with OpenAI(Services(stt=Hearing("ears", Scheduler(Speaker), heads=4))) as ears:
        told = with_client(ears, transcribe, "whisper-1")
        # Without a name, and with what a program for transcription says.
        assert [e.type for e in with_client(ears, lambda c: until(c, "session.created"), openai.omit)] == [
            "session.created"
        ]
        intends = {"extra_query": {"intent": "transcription"}}
        assert (
            with_client(ears, lambda c: until(c, "session.created"), openai.omit, **intends)[0].session.type
            == "transcription"
        )
    one = [
        "input_audio_buffer.speech_started", f"{WORDS}.delta", "input_audio_buffer.speech_stopped", "input_audio_buffer.committed",
        "conversation.item.added", f"{WORDS}.completed",
    ]  # fmt: skip
    kinds = [e.type for e in told[1:]]
    assert kinds == [one[0], *[one[1]] * 3, *one[2:], *one]
    assert [e.transcript for e in told if e.type == f"{WORDS}.completed"] == ["w14 w15 w16", "w21"]
    assert (told[1].audio_start_ms, told[5].audio_end_ms) == (14 * 80, 19 * 80)


def test_what_a_client_clears_is_not_heard(server):
    """All is sent before any of it is heard."""
    loud, quiet = np.full(FRAME, 9000, np.int16), np.zeros(FRAME, np.int16)

    async def transcribe(connection):
        buffer = connection.input_audio_buffer
        for frames, end in ([quiet] * 14 + [loud] * 3, buffer.commit), ([loud] * 4, buffer.clear), ([quiet] * 20, None):
            await buffer.append(audio=base64_of(np.concatenate(frames)))
            if end is not None:
                await end()
        for frame in [loud, quiet, quiet, quiet]:
            await buffer.append(audio=base64_of(frame))
        return await until(connection, f"{WORDS}.completed", 2)

    with OpenAI(Services(stt=Hearing("ears", Scheduler(Speaker), heads=4))) as ears:
        told = with_client(ears, transcribe, "whisper-1")
    assert [e.transcript for e in told if e.type == f"{WORDS}.completed"] == ["w14 w15 w16", "w41"]
    committed = [e for e in told if e.type == "input_audio_buffer.committed"]
    assert [e.previous_item_id for e in committed] == [None, committed[0].item_id]
    speech = [e for e in told if e.type.startswith("input_audio_buffer.speech")]
    assert [e.item_id for e in speech[-2:]] == [committed[1].item_id] * 2
    assert {e.item_id for e in speech} <= {e.item_id for e in committed}


# Translation ----------------------------------------------------------------------------------------------------------


def test_a_translation(server, question, tmp_path):
    folder = make_hibiki(tmp_path / "hibiki", "tiny-hibiki", eos=1.5, pad=1.5)
    scheduler = Scheduler(lambda: Conversations(checkpoints.load(folder), 1))
    service = Talking("hibiki", scheduler, lambda wishes: Talk(seed=0, tail=8), translation=True)

    async def translate(hibiki):
        async with (
            hibiki.awaited as client,
            client.realtime.translations.connect(
                model="gpt-realtime-translate", extra_headers={"OpenAI-Beta": "realtime=v1"}
            ) as connection,
        ):
            await connection.session.update(session={"audio": {"output": {"language": "en"}}})
            # Faster than real time, and more than may wait in a talk.
            for at in range(0, 40 * FRAME, 4800):
                await connection.send(
                    {"type": "session.input_audio_buffer.append", "audio": base64_of(question[at : at + 4800])}
                )
            await connection.send({"type": "session.close"})
            told = await until(connection, "session.closed")
            with pytest.raises(Exception, match=r"1000"):
                await connection.recv()
            return told

    with OpenAI(Services(talk=service)) as hibiki:
        told = asyncio.run(translate(hibiki))
        hibiki.wait_free()
        # The same model in the other form.
        assert with_client(hibiki, lambda c: until(c, "session.created"))[0].session.model == "hibiki"
    assert [e.type for e in told[:2]] == ["session.created", "session.updated"]
    assert told[0].session.type == "translation"
    sound = [e for e in told if e.type == "session.output_audio.delta"]
    assert 30 < len(sound) <= 60
    assert sound[0].elapsed_ms < sound[-1].elapsed_ms
    assert all(len(base64.b64decode(e.delta)) == 2 * FRAME for e in sound)


def test_a_model_that_does_not_translate(server):
    assert handshake(server, "/v1/realtime/translations?model=moshi") == (404, "model_not_found")


# What goes wrong ------------------------------------------------------------------------------------------------------


def handshake(server, path: str, upgrade: bool = True, **headers: str) -> tuple[int, str | None]:
    """Status and code of a refused connection."""
    if upgrade:
        key = base64.b64encode(bytes(16)).decode()
        headers |= {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": key,
            "Sec-WebSocket-Version": "13",
        }

    async def ask():
        async with aiohttp.ClientSession() as session, session.get(server.origin + path, headers=headers) as answer:
            return answer.status, (await answer.json())["error"]["code"]

    return asyncio.run(ask())


def test_refused_before_there_is_a_socket(server):
    assert handshake(server, "/v1/realtime?model=gpt-5") == (404, "model_not_found")
    assert handshake(server, "/v1/realtime?model=tts-1") == (404, "model_not_found")
    assert handshake(server, "/v1/realtime?model=gpt-realtime&intent=transcription") == (404, "model_not_found")
    assert handshake(server, "/v1/realtime?call_id=x") == (400, "unsupported")
    assert handshake(server, "/v1/realtime", upgrade=False) == (426, None)
    assert handshake(server, "/v1/realtime", Origin="https://example.org")[0] == 403
    with pytest.raises(Exception, match="404"):
        with_client(server, lambda c: until(c, "session.created"), "gpt-5")
    server.wait_free()


def counted(server, figure: str, kind: str) -> float:
    async def ask():
        async with aiohttp.ClientSession() as session, session.get(server.origin + "/metrics") as answer:
            return await answer.text()

    return float(re.search(rf'^moshi_{figure}{{kind="{kind}"}} (.*)$', asyncio.run(ask()), re.M)[1])


def test_sessions_are_counted(server, question):
    async def talk(connection):
        await connection.input_audio_buffer.append(audio=base64_of(question[: 3 * FRAME]))
        return await until(connection, "response.output_audio.delta", 3)

    before = [counted(server, figure, "talk") for figure in ("streams_total", "frames_total")]
    with_client(server, talk)
    after = [counted(server, figure, "talk") for figure in ("streams_total", "frames_total")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 3]


def test_a_full_server_says_so_at_once(server):
    refused = counted(server, "refused_total", "talk")
    stream = server.services.talk.scheduler.open(server.services.talk.make(None))
    assert stream.wait_open(PATIENCE)
    begun = time.monotonic()
    assert handshake(server, "/v1/realtime") == (503, "server_full")
    assert time.monotonic() - begun < 5
    assert counted(server, "refused_total", "talk") == refused + 1
    stream.close()
    # A row that was left is there for who comes at once.
    assert with_client(server, lambda c: until(c, "session.created"))


def test_a_page_gives_its_token_as_a_protocol():
    """Pages can give sockets no headers."""
    offered = ["realtime", "openai-insecure-api-key.secret", "openai-beta.realtime-v1"]

    async def ask(protocols):
        url = f"{guarded.origin}/v1/realtime"
        async with aiohttp.ClientSession() as session, session.ws_connect(url, protocols=protocols) as page:
            return page.protocol, (await page.receive_json())["session"]

    with OpenAI(Services(talk=Talking("echo", Scheduler(Echo), lambda wishes: wishes)), token="secret") as guarded:
        protocol, session = asyncio.run(ask(offered))
        assert protocol == "realtime"
        assert session["modalities"] == ["audio", "text"]
        guarded.wait_free()
        for wrong in (["realtime"], ["realtime", "openai-insecure-api-key.secre"]):
            with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                asyncio.run(ask(wrong))


def test_rubbish_is_answered_and_the_session_goes_on(server, question):
    rubbish = [
        "{",
        "[]",
        '{"type": 3}',
        '{"type": "session.make_tea"}',
        '{"type": "input_audio_buffer.append"}',
        b"\x00\x01",
    ]

    async def talk(connection):
        for message in rubbish:
            await connection._connection.send(message)
        told = await until(connection, "error", len(rubbish))
        await connection.input_audio_buffer.append(audio=base64_of(question[:FRAME]))
        return told, await until(connection, "response.output_audio.delta")

    told, _ = with_client(server, talk)
    assert {e.error.type for e in told[1:]} == {"invalid_request_error"}
    assert [e.error.code for e in told[1:]] == [
        "invalid_json", "missing_required_parameter", "missing_required_parameter", "invalid_value", "invalid_value", "invalid_json",
    ]  # fmt: skip


def test_a_message_that_is_too_large_ends_the_session(server, monkeypatch):
    monkeypatch.setattr(sockets, "LARGEST_MESSAGE", 10_000)

    async def talk(connection):
        await connection.input_audio_buffer.append(audio="A" * 20_000)
        with pytest.raises(Exception, match="1009"):
            await until(connection, "error")

    with_client(server, talk)


def test_a_client_that_vanishes(server):
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        key = base64.b64encode(bytes(16)).decode()
        raw.sendall(
            f"GET /v1/realtime HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: realtime\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        answer = raw.recv(4096)
        assert b"101 Switching" in answer
        assert b"Sec-WebSocket-Protocol: realtime" in answer
        assert server.services.talk.scheduler.live == 1
    assert server.wait_free() < 5


def test_nobody_speaks(server, monkeypatch):
    monkeypatch.setattr(sockets, "SILENT_SECONDS", 0.4)

    async def talk(connection):
        return await until(connection, "error")

    assert with_client(server, talk)[-1].error.code == "session_expired"


class Dies(Echo):
    """A model that goes on for a while."""

    def step(self, given):
        if any(n >= 3 for n in self._frames.values()):
            raise RuntimeError("the graphics card fell out")
        return super().step(given)


def test_a_model_that_dies(question):
    async def talk(connection):
        await connection.input_audio_buffer.append(audio=base64_of(question[: 8 * FRAME]))
        told = await until(connection, "error")
        with pytest.raises(Exception, match="1011"):
            await connection.recv()
        return told

    with OpenAI(Services(talk=Talking("dies", Scheduler(Dies), lambda wishes: wishes))) as server:
        told = with_client(server, talk)
        assert told[-1].error.code == "model_stopped"
        assert told[-2].type == "response.done"
        assert told[-2].response.status == "failed"
        assert handshake(server, "/v1/realtime") == (503, "model_stopped")


def test_a_server_that_stops():
    server = OpenAI(Services(talk=Talking("echo", Scheduler(Echo), lambda wishes: wishes)))

    async def talk():
        async with server.awaited as client, client.realtime.connect(model="moshi") as connection:
            await until(connection, "session.created")
            stopping = asyncio.get_running_loop().run_in_executor(None, server.stop)
            told = await until(connection, "error")
            with pytest.raises(Exception, match="1001"):
                await connection.recv()
            await stopping
            return told

    with server:
        assert asyncio.run(talk())[-1].error.code == "server_stops"


@pytest.fixture(scope="module", autouse=True)
def _toys():
    """What is loaded stays for this file."""
    yield
    speech_toys.loaded.cache_clear()
