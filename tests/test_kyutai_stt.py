"""`/api/asr-streaming`, message by message, as the clients of the Rust server rely on it (docs/spec/protocol.md)."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time

import aiohttp
import msgpack
import numpy as np
import pytest
import soundfile
from echo_listener import WORDS, said, transcriptions
from speech_server import FRAME, RATE, SpeechServer, handshake, hearing, noise, quickest, wire
from speech_toys import _tidy  # noqa: F401
from web_server import PATIENCE

pytest.importorskip("sphn")
from moshi_mlx.server import pauses
from moshi_mlx.server.kyutai import hear, line
from moshi_mlx.server.opus import OpusWriter
from moshi_mlx.server.services import Services

MESSAGES = {"Ready", "Error", "Step", "Word", "EndWord", "Marker"}


def start_of(frame: int) -> float:
    """When a word of a frame is told to begin: its first piece comes a step after the boundary, which the first step precedes."""
    return (frame + 2) * 0.08


@pytest.fixture(scope="module")
def server():
    """Text half a second behind, no pause heads, two rows."""
    with SpeechServer(Services(stt=hearing(transcriptions, delay=0.48))) as s:
        yield s


@pytest.fixture(scope="module")
def late():
    """Text two and a half seconds behind."""
    with SpeechServer(Services(stt=hearing(lambda: transcriptions(2, 2.48), delay=2.48))) as s:
        yield s


def run(server, act, **options):
    """`act(client)` with a connection that is ready, and free rows afterwards."""

    async def go():
        async with wire(server.asr, **options) as client:
            await act(client)
            return client

    client = asyncio.run(asyncio.wait_for(go(), PATIENCE))
    server.wait_free()
    assert {m["type"] for m in client.messages} <= MESSAGES
    return client


async def frames(client, pcm):
    for frame in pcm.reshape(-1, FRAME):
        await client.audio(frame)


# Opening --------------------------------------------------------------------------------------------------------------


def test_ready_comes_at_once_and_first(server):
    async def act(client):
        pass

    def ready() -> None:
        assert run(server, act).messages == [{"type": "Ready"}]

    # Unmute gives up after half a second.
    assert quickest(ready) < 0.5


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({}, "", 101),
        ({"kyutai-api-key": "public_token"}, "", 101),
        ({}, "?auth_id=public_token", 101),
        ({"kyutai-api-key": "mine"}, "", 401),
        ({}, "?auth_id=mine", 401),
        ({"kyutai-api-key": "mine"}, "?auth_id=public_token", 401),
        ({"Origin": "http://evil.example"}, "", 403),
        ({"Host": "evil.example"}, "", 403),
        ({"Authorization": "Bearer sk-anything"}, "", 101),
    ],
)
def test_who_may_open_it(server, headers, query, status):
    assert asyncio.run(handshake(server.asr + query, headers)) == status
    server.wait_free()


def test_with_a_token_it_is_the_key():
    with SpeechServer(Services(stt=hearing(transcriptions)), token="s3cret") as s:

        async def go(**options):
            async with wire(s.asr, **options) as client:
                return client.messages

        assert asyncio.run(go(headers={"kyutai-api-key": "s3cret"}))
        for key in ("public_token", "other"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                asyncio.run(go(headers={"kyutai-api-key": key}))
            assert refused.value.status == 401


def test_a_full_server_says_so_and_a_row_that_was_left_is_free_at_once(server):
    async def go():
        async with wire(server.asr) as first, wire(server.asr):
            begun = time.monotonic()
            async with wire(server.asr, ready=False) as third:
                assert await third.rest() == 1013
            assert third.messages == [{"type": "Error", "message": "no free channels"}]
            assert time.monotonic() - begun < 2 * line.ROW_SECONDS + 0.5
            await first.socket.close()
            async with wire(server.asr):
                pass

    asyncio.run(go())
    server.wait_free()


# Sound in, steps and words out ----------------------------------------------------------------------------------------


def test_one_step_for_every_frame_at_once_however_it_is_cut(server):
    async def act(client):
        for n in range(3):
            await client.audio(noise(1))
            await client.until("Step", n + 1)
        pcm, at = noise(17, 1), 0
        for length in (1, 960, 1919, 1920, 1921, 5000, len(pcm)):
            await client.audio(pcm[at : at + length])
            at += length
        await client.until("Step", 20)
        await client.audio(np.zeros(FRAME - 1))
        with pytest.raises(asyncio.TimeoutError):
            await client.receive(0.3)
        await client.audio(np.zeros(1))
        await client.until("Step", 21)

    steps = run(server, act).of("Step")
    assert [s["step_idx"] for s in steps] == list(range(21))
    assert all(set(s) == {"type", "step_idx", "prs", "buffered_pcm"} and len(s["prs"]) >= 3 for s in steps)
    assert all(isinstance(s["buffered_pcm"], int) for s in steps)


@pytest.mark.parametrize("form", ["single", "double", "whole", "opus", "opus array"])
def test_every_way_to_send_sound(server, form):
    pcm, count = said(2, "the", 14), 20

    async def act(client):
        if form in ("single", "double"):
            message = {"type": "Audio", "pcm": pcm.tolist()}
            await client.socket.send_bytes(msgpack.packb(message, use_single_float=form == "single"))
        elif form == "whole":
            await client.send("Audio", pcm=[0] * len(pcm))
        else:
            writer = OpusWriter()
            for frame in pcm.reshape(-1, FRAME):
                data = writer.encode(frame)
                await client.send("OggOpus", data=list(data) if form == "opus array" else data)
        # Our encoder's Opus begins a little late.
        await client.until("Step", count - form.startswith("opus"))

    client = run(server, act)
    if form in ("single", "double"):
        assert [w["text"] for w in client.of("Word")] == ["the"]


def test_words_and_their_ends_on_the_clients_own_clock(server):
    """Whoever came before, and whatever another row does meanwhile."""
    pcm = said(3, "the", 2, "you", 1, "is", 20)

    async def go():
        async with wire(server.asr) as other:
            await other.audio(noise(30))
            async with wire(server.asr) as client:
                await frames(client, pcm)
                await client.until("Step", len(pcm) // FRAME)
                return client

    client = asyncio.run(go())
    server.wait_free()
    assert [(w["text"], w["start_time"]) for w in client.of("Word")] == [
        ("the", pytest.approx(start_of(3))),
        ("you", pytest.approx(start_of(9))),
        ("is", pytest.approx(start_of(14))),
    ]
    ends = [e["stop_time"] for e in client.of("EndWord")]
    assert ends[:2] == pytest.approx([start_of(9), start_of(14)])
    kinds = [m["type"] for m in client.messages if m["type"] in ("Word", "EndWord")]
    assert kinds[:5] == ["Word", "EndWord", "Word", "EndWord", "Word"]
    assert client.of("Step")[-1]["step_idx"] == len(pcm) // FRAME - 1


def test_texts_and_init_mean_nothing(server):
    async def act(client):
        await client.socket.send_str("hello")
        await client.send("Init")
        await client.audio(noise(1))
        await client.until("Step")

    run(server, act)


# Markers --------------------------------------------------------------------------------------------------------------


def test_a_marker_comes_when_all_before_it_is_written(server):
    """On this client's clock, while another one makes the server's run on."""

    async def go():
        async with wire(server.asr) as other, wire(server.asr) as client:
            await other.audio(noise(200))
            await frames(client, said("the", 1, "you"))
            await client.send("Marker", id=-5)
            await client.send("Marker", id=2**40)
            await client.audio(np.zeros(RATE, np.float32))
            await client.until("Marker", 2)
            return client

    client = asyncio.run(go())
    server.wait_free()
    assert [m["id"] for m in client.of("Marker")] == [-5, 2**40]
    before = client.messages[: client.messages.index({"type": "Marker", "id": -5})]
    assert [m["text"] for m in before if m["type"] == "Word"] == ["the", "you"]
    # Not before its time either: the text lags six frames behind the nine that were sent.
    assert sum(m["type"] == "Step" for m in before) >= 14


@pytest.mark.parametrize("silence", [0, RATE])
def test_a_client_that_waits_for_its_marker_gets_it_with_the_last_words(late, silence):
    """A second of silence, which is customary, or none: the text is further behind than that."""

    async def act(client):
        await frames(client, said("the", 1, "you"))
        await client.send("Marker", id=1)
        if silence:
            await client.audio(np.zeros(silence, np.float32))
        await client.until("Marker")

    begun = time.monotonic()
    client = run(late, act)
    assert [w["text"] for w in client.of("Word")] == ["the", "you"]
    assert len(client.of("Step")) == 9 + silence // FRAME
    assert time.monotonic() - begun < 3


def test_a_recording_as_kyutais_script_sends_it(server):
    """All at once with a minute of backlog, and nothing is read after the marker."""
    words = WORDS[:5]
    pcm = said(*[part for word in words for part in (word, 3)])

    async def go():
        async with wire(server.asr) as client:
            # Two seconds are whole frames.
            await client.audio(np.zeros(2 * RATE))
            await client.audio(np.concatenate([pcm, np.zeros(15 * RATE)]))
            for _ in range(5):
                await client.audio(np.zeros(RATE))
            await client.send("Marker", id=0)
            for _ in range(35):
                await client.audio(np.zeros(RATE))
            await client.until("Marker")
            return client

    client = asyncio.run(go())
    server.wait_free()
    assert [w["text"] for w in client.of("Word")] == words
    assert [s["step_idx"] for s in client.of("Step")] == list(range(len(client.of("Step"))))


# Pauses and flushes ---------------------------------------------------------------------------------------------------


def test_pauses_of_a_model_without_pause_heads(server):
    """Sure of a pause soon after a voice stops and not while it speaks, nor at a short noise."""
    voice = said("the", "you", "is")
    faint = said(14)
    click = np.concatenate([said("it")[:FRAME], said(4)])

    async def act(client):
        await client.audio(np.concatenate([said(12), voice, faint, click]))
        await client.until("Step", 12 + 12 + 14 + 5)

    third = [s["prs"][2] for s in run(server, act).of("Step")]
    assert all(0 <= p <= 1 for p in third)
    assert max(third[14:24]) < 0.4
    assert third[24 + 12] > 0.6
    assert min(third[38:]) > 0.6


def test_pauses_in_a_loud_room():
    room = pauses.Pauses(0)
    rng = np.random.default_rng(0)
    told = []
    for _ in range(250):
        room.hear(rng.uniform(-0.1, 0.1, FRAME).astype(np.float32))
        told.append(room.of(hear_frame(len(told))))
    # A steady noise is a room after a while.
    assert told[-1][2] > 0.6
    for _ in range(5):
        room.hear(rng.uniform(-0.9, 0.9, FRAME).astype(np.float32))
        told.append(room.of(hear_frame(len(told))))
    assert told[-1][2] < 0.4


def hear_frame(index):
    from moshi_mlx.speech_to_text.rows import HeardFrame

    return HeardFrame(index, np.zeros(0, np.float32), [])


def test_a_models_own_pause_heads_are_told():
    with SpeechServer(Services(stt=hearing())) as s:
        assert s.services.stt.heads == 4

        async def act(client):
            await client.audio(noise(4))
            await client.until("Step", 4)

        client = run(s, act)
    assert all(len(step["prs"]) == 4 and min(step["prs"]) > 0 for step in client.of("Step"))


@pytest.mark.parametrize("which", ["server", "late"])
def test_a_flush_brings_the_last_words_before_its_steps_are_counted(request, which):
    """Unmute's: eight frames of zeros at once, and the transcript is taken for complete after half a second of steps."""
    server = request.getfixturevalue(which)
    pcm = said(20, "the", 2, "you")
    taken = []

    async def act(client):
        await frames(client, pcm)
        await client.until("Step", 30)
        begun = time.monotonic()
        for _ in range(8):
            await client.audio(np.zeros(FRAME, np.float32))
        await client.until("Step", 38)
        taken.append(time.monotonic() - begun)
        # Live speech goes on.
        await frames(client, said(2, "is", 40))
        await client.until("Step", 84)

    for _ in range(3):
        client = run(server, act)
        steps = [i for i, m in enumerate(client.messages) if m["type"] == "Step"]
        before = client.messages[: steps[30 + 6]]
        assert [m["text"] for m in before if m["type"] == "Word"] == ["the", "you"]
        assert [s["step_idx"] for s in client.of("Step")] == list(range(84))
        # What was put in has no time.
        assert client.of("Word")[-1]["start_time"] == pytest.approx(start_of(40))
    # Faster than real time, unless the machine was busy with another test each time.
    assert min(taken) < 0.5


def test_zeros_of_a_muted_microphone_are_no_flush():
    """They last as long as they are; and one flush is one."""
    flushes, zeros = hear.Flushes(), np.zeros(FRAME, np.float32)
    assert not any(flushes.hear(zeros, 0.01 * n) for n in range(50))
    flushes.hear(said("the"), 1.0)
    assert not any(flushes.hear(zeros, 1.0 + 0.08 * n) for n in range(50))
    assert [flushes.hear(zeros, 9.0) for _ in range(8)] == [n == hear.FLUSH_FRAMES - 1 for n in range(8)]


# What is wrong --------------------------------------------------------------------------------------------------------

BAD = {
    "no map": msgpack.packb([1, 2]),
    "no MessagePack": b"\xc1garbage",
    "empty": b"",
    "no type": msgpack.packb({"pcm": [0.0]}),
    "another type": msgpack.packb({"type": "Dance"}),
    "no sound": msgpack.packb({"type": "Audio"}),
    "texts": msgpack.packb({"type": "Audio", "pcm": ["a"]}),
    "nested": msgpack.packb({"type": "Audio", "pcm": [[0.0]]}),
    "mixed": msgpack.packb({"type": "Audio", "pcm": [0.0, None]}),
    "bytes too large": msgpack.packb({"type": "OggOpus", "data": [256]}),
    "marker": msgpack.packb({"type": "Marker", "id": 1.5}),
    "bomb": b"\xdd\xff\xff\xff\xff" + b"\xc0" * 64,
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_message_ends_that_client_with_a_sentence(server, case):
    async def act(client):
        await client.socket.send_bytes(BAD[case])
        assert await client.rest() in (1003, 1008)

    client = run(server, act)
    assert client.messages[-1]["type"] == "Error" and client.messages[-1]["message"].endswith(".")


def test_sound_that_is_none_is_survived(server):
    """Not a number, far too loud, no Ogg."""

    async def act(client):
        await client.audio(np.array([np.nan, np.inf, -np.inf, 1e30] * 480))
        await client.send("OggOpus", data=b"no page at all" * 20)
        await client.send("Audio", pcm=[])
        await client.audio(noise(1))
        await client.until("Step", 2)

    assert all(np.isfinite(s["prs"]).all() for s in run(server, act).of("Step"))


def test_a_message_beyond_the_bound_is_refused(server):
    async def act(client):
        # It may be cut off while it still sends.
        with contextlib.suppress(ConnectionError):
            await client.socket.send_bytes(bytes((16 << 20) + 1))
        assert await client.rest() in (1009, 1006)

    run(server, act)


def test_silent_and_idle_clients_are_sent_away(server, monkeypatch):
    monkeypatch.setattr(line, "PING_SECONDS", 0.2)
    monkeypatch.setattr(line.Line, "idle", 1.0)

    async def idle(client):
        # Its pongs are answered by the library, and do not count as data.
        assert await client.rest() == 1000

    assert "nothing was sent" in run(server, idle).messages[-1]["message"]

    async def silent(client):
        monkeypatch.setattr(line.Line, "silent", 0.6)
        message = await client.socket.receive()
        assert message.type is aiohttp.WSMsgType.PING
        assert await client.rest() == 1006

    run(server, silent, autoping=False)


# Once -----------------------------------------------------------------------------------------------------------------


def post(server, body: bytes, **headers):
    async def go():
        async with (
            aiohttp.ClientSession() as session,
            session.post(server.asr.replace("ws", "http", 1), data=body, headers=headers) as answer,
        ):
            return answer.status, await answer.read()

    status, answer = asyncio.run(go())
    server.wait_free()
    return status, answer


def recording(pcm: np.ndarray, **form) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, pcm, RATE, **{"format": "WAV", "subtype": "FLOAT", **form})
    return file.getvalue()


def test_a_recording_posted_is_answered_with_its_words(late):
    import json

    status, body = post(late, recording(said(2, "the", 1, "you")))
    assert status == 200
    events = json.loads(body)
    assert [e["text"] for e in events if e["type"] == "Word"] == ["the", "you"]
    assert events[0]["start_time"] == pytest.approx(start_of(2))
    assert {e["type"] for e in events} == {"Word", "EndWord"}
    status, body = post(late, recording(said(2, "the", 1), format="FLAC", subtype="PCM_16"))
    assert status == 200 and json.loads(body)[0]["text"] == "the"


def test_uploads_leave_a_row_to_live_clients(late):
    """Two at once have one of two rows; somebody who speaks gets the other at once, and both are answered in the end."""
    body = recording(said(*[part for word in WORDS * 8 for part in (word, 4)]))

    async def go():
        url = late.asr.replace("ws", "http", 1)
        async with aiohttp.ClientSession() as session:
            uploads = [asyncio.create_task(session.post(url, data=body)) for _ in range(2)]
            while not late.schedulers[0].waiting:
                await asyncio.sleep(0.002)
            async with wire(late.asr) as live:
                await live.audio(noise(1))
                await live.until("Step")
                waited = late.schedulers[0].waiting
            answers = [await (await upload).json() for upload in uploads]
            return waited, [sum(e["type"] == "Word" for e in events) for events in answers]

    scheduler = late.schedulers[0]
    step = scheduler.call(lambda kind: kind.step).result()

    def slow(given):
        time.sleep(0.001)
        return step(given)

    scheduler.call(lambda kind: setattr(kind, "step", slow)).result()
    assert asyncio.run(asyncio.wait_for(go(), PATIENCE)) == (1, [8 * len(WORDS)] * 2)
    scheduler.call(lambda kind: setattr(kind, "step", step)).result()
    late.wait_free()


def test_a_client_that_goes_away_leaves_its_upload_behind(late):
    """Its row is free long before its hour of sound would have been heard."""

    async def go():
        body = recording(np.zeros(3600 * 4000, np.int16), subtype="PCM_16")
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(1.0)) as session:
            with pytest.raises(asyncio.TimeoutError):
                await session.post(late.asr.replace("ws", "http", 1), data=body)

    scheduler = late.schedulers[0]
    step = scheduler.call(lambda kind: kind.step).result()

    def slow(given):
        time.sleep(0.01)
        return step(given)

    scheduler.call(lambda kind: setattr(kind, "step", slow)).result()
    asyncio.run(go())
    late.wait_free(10.0)
    scheduler.call(lambda kind: setattr(kind, "step", step)).result()


def test_what_cannot_be_posted(server):
    assert post(server, b"no recording at all" * 100)[0] == 400
    assert post(server, b"")[0] == 400
    assert post(server, recording(said(2)), **{"kyutai-api-key": "mine"})[0] == 401
    assert post(server, recording(said(2)), Origin="http://evil.example")[0] == 403
    told = post(server, b"no recording at all" * 100)[1]
    assert b"is not an audio file" in told and b"/tmp" not in told and b"--raw" not in told


# Kyutai's library ------------------------------------------------------------------------------------------------------


def test_the_flow_of_kyutais_scripts_with_their_library(server):
    """`websockets`, which all published clients use: its own pings, queues and closing, in the order of stt_from_file_rust_server.py."""
    websockets = pytest.importorskip("websockets", minversion="14")
    pcm = said("the", 2, "you", 3)

    async def send(socket):
        async def audio(samples):
            message = {"type": "Audio", "pcm": [float(x) for x in samples]}
            await socket.send(msgpack.packb(message, use_single_float=True))

        await audio(np.zeros(2 * RATE))
        for at in range(0, len(pcm), FRAME):
            await audio(pcm[at : at + FRAME])
            await asyncio.sleep(0.001)
        for _ in range(5):
            await audio(np.zeros(RATE))
        await socket.send(msgpack.packb({"type": "Marker", "id": 0}))
        for _ in range(35):
            await audio(np.zeros(RATE))

    async def receive(socket):
        words = []
        async for message in socket:
            data = msgpack.unpackb(message, raw=False)
            if data["type"] == "Word":
                words.append(data["text"])
            if data["type"] == "Marker":
                break
        return words

    async def go():
        headers = {"kyutai-api-key": "public_token"}
        # A client of theirs that has stopped reading waits for the close behind what it has not read.
        async with websockets.connect(server.asr, additional_headers=headers, close_timeout=0.5) as socket:
            return (await asyncio.gather(send(socket), receive(socket)))[1]

    assert asyncio.run(asyncio.wait_for(go(), PATIENCE)) == ["the", "you"]
    server.wait_free()
