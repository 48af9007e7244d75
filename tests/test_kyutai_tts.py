"""`/api/tts_streaming`, message by message, as the clients of the Rust server rely on it (docs/spec/protocol.md)."""

from __future__ import annotations

import asyncio
import io
import itertools
import json

import aiohttp
import mlx.core as mx
import msgpack
import numpy as np
import pytest
import soundfile
import speech_toys
from speech_server import FRAME, RATE, SpeechServer, handshake, noise, quickest, speaking, wire
from speech_toys import _tidy  # noqa: F401
from web_server import PATIENCE

pytest.importorskip("sphn")
from moshi_mlx.server.kyutai import line
from moshi_mlx.server.services import Services

PCM = "?format=PcmMessagePack&seed=3"
MESSAGES = {"Ready", "Error", "Audio", "OggOpus", "Text"}
TEXT = "hello there my friend"


@pytest.fixture(scope="module")
def server():
    with SpeechServer(Services(tts=speaking(2))) as s:
        yield s


def run(server, act, query=PCM, **options):
    async def go():
        async with wire(server.tts + query, **options) as client:
            await act(client)
            return client

    client = asyncio.run(asyncio.wait_for(go(), PATIENCE))
    server.wait_free()
    assert {m["type"] for m in client.messages} <= MESSAGES
    return client


def spoken(server, text=TEXT, query=PCM):
    """A text said in one message."""

    async def act(client):
        await client.send("Text", text=text)
        await client.send("Eos")
        assert await client.rest() == 1000

    return run(server, act, query)


async def raw(url: str, *sent: str | bytes) -> tuple[list[bytes], int | None]:
    """What comes back without MessagePack, and how it is closed."""
    got = []
    async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
        for each in sent:
            await (socket.send_str(each) if isinstance(each, str) else socket.send_bytes(each))
        async for message in socket:
            got.append(message.data)
        return got, socket.close_code


@pytest.fixture(scope="module")
def usual(server):
    return spoken(server)


# Opening --------------------------------------------------------------------------------------------------------------


def test_ready_comes_at_once_and_first(server):
    async def act(client):
        pass

    def ready() -> None:
        assert run(server, act).messages == [{"type": "Ready"}]

    # Unmute gives up after half a second.
    assert quickest(ready) < 0.5


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("", {}, 101),
        ("?format=Mp3", {}, 400),
        ("?seed=many", {}, 400),
        # What Unmute sends, and what the older module takes.
        ("?format=PcmMessagePack&cfg_alpha=1.5&voice=no%2Fsuch.wav&temperature=hot&top_k=9&max_seq_len=x", {}, 101),
        ("?voice=..%2F..%2Fetc%2Fpasswd", {}, 101),
        ("?auth_id=public_token", {}, 101),
        ("?auth_id=mine", {}, 401),
        ("?format=Mp3", {"kyutai-api-key": "mine"}, 401),
        ("", {"Origin": "http://localhost:1"}, 403),
        ("", {"Host": "evil.example"}, 403),
    ],
)
def test_who_may_open_it_and_how(server, query, headers, status):
    assert asyncio.run(handshake(server.tts + query, headers)) == status
    server.wait_free()


def test_a_full_server_says_so_where_a_client_understands_it(server):
    async def go():
        async with wire(server.tts + PCM), wire(server.tts + PCM):
            async with wire(server.tts + PCM, ready=False) as third:
                assert await third.rest() == 1013
            assert third.messages == [{"type": "Error", "message": "no free channels"}]
            assert await raw(server.tts) == ([], 1013)

    asyncio.run(go())
    server.wait_free()


# Text in, sound and words out -----------------------------------------------------------------------------------------


def test_a_text_is_said_in_messages_of_exactly_one_frame(usual):
    assert usual.messages[0] == {"type": "Ready"} and len(usual.of("Audio")) > 10
    assert {len(m["pcm"]) for m in usual.of("Audio")} == {FRAME}
    first = usual.raw[usual.messages.index(usual.of("Audio")[0])]
    # Single precision.
    assert len(first) < 5 * FRAME + 40
    assert np.abs(usual.pcm).max() <= 1 and usual.pcm.any()


def test_words_come_with_times_when_the_next_one_begins(usual):
    words = usual.of("Text")
    assert [w["text"] for w in words] == TEXT.split()
    assert all(set(w) == {"type", "text", "start_s", "stop_s"} for w in words)
    assert all(a["stop_s"] == b["start_s"] for a, b in itertools.pairwise(words))
    assert all(w["start_s"] < w["stop_s"] for w in words)
    # A word is told before its sound comes, and only the last one has to wait for the end.
    at = [usual.messages.index(w) for w in words]
    heard = [sum(m["type"] == "Audio" for m in usual.messages[:i]) * 0.08 for i in at]
    assert all(h <= w["stop_s"] + 0.081 for h, w in zip(heard[:-1], words[:-1], strict=True))


def test_it_speaks_while_the_text_is_being_written(server):
    """Word by word: the same sound as of the text at once, and some of it before the end of the text is known."""
    words = (TEXT.split() * 3)[:10]

    async def act(client):
        for word in words:
            await client.send("Text", text=word)
        await client.until("Audio")
        await client.until("Text", 2)
        await client.send("Eos")
        assert await client.rest() == 1000

    client, whole = run(server, act), spoken(server, " ".join(words))
    assert client.of("Text") == whole.of("Text")
    np.testing.assert_array_equal(client.pcm, whole.pcm)


def test_text_frames_and_a_zero_byte_mean_the_same(server, usual):
    async def act(client):
        await client.socket.send_str(TEXT)
        await client.socket.send_bytes(b"\0")
        assert await client.rest() == 1000

    np.testing.assert_array_equal(run(server, act).pcm, usual.pcm)


@pytest.mark.parametrize("eos", [b"\0", msgpack.packb({"type": "Eos"})])
def test_eos_before_any_word_ends_without_sound(server, eos):
    async def act(client):
        await client.send("Text", text="  ")
        await client.socket.send_bytes(eos)
        assert await client.rest() == 1000

    assert run(server, act).messages == [{"type": "Ready"}]


def test_a_break_is_a_pause_and_a_text_of_its_own(server):
    pause = '<break time="0.8s"/>'
    client = spoken(server, f"hello {pause} there")
    assert [w["text"] for w in client.of("Text")] == ["hello", pause, "there"]
    [told] = [w for w in client.of("Text") if w["text"] == pause]
    assert told["stop_s"] - told["start_s"] >= 0.79


def test_a_voice_is_another_by_its_name_and_unknown_ones_are_the_usual(server, usual):
    other = spoken(server, query=f"{PCM}&voice=b.wav")
    assert not np.array_equal(other.pcm, usual.pcm)
    for name in ("no/such.wav", "../voices/b.wav", "/etc/passwd"):
        np.testing.assert_array_equal(spoken(server, query=f"{PCM}&voice={name}").pcm, usual.pcm)


def embedding(name: str) -> np.ndarray:
    [path] = (speech_toys.checkpoint("tiny-tts") / "voices").glob(f"{name}.wav*")
    return np.array(mx.load(str(path), format="safetensors")["speaker_wavs"])


def test_a_voice_of_numbers_is_that_of_its_file(server):
    """Sent before `Ready` is waited for, as Unmute does."""
    values = embedding("b")

    async def go():
        async with wire(server.tts + PCM, ready=False) as client:
            await client.send("Voice", embeddings=values.ravel().tolist(), shape=list(values.shape))
            await client.until("Ready")
            await client.send("Text", text=TEXT)
            await client.send("Eos")
            assert await client.rest() == 1000
            return client

    client = asyncio.run(go())
    server.wait_free()
    np.testing.assert_array_equal(client.pcm, spoken(server, query=f"{PCM}&voice=b.wav").pcm)


@pytest.mark.parametrize("case", ["late", "shape", "dimension", "nan", "long"])
def test_a_voice_that_cannot_be_had_is_told(server, case):
    values = embedding("b")

    async def act(client):
        if case == "late":
            await client.send("Text", text=" ".join([TEXT] * 3))
            await client.until("Audio")
        sent, shape = values.ravel(), list(values.shape)
        if case == "shape":
            shape = [1, 2, 3]
        elif case == "dimension":
            sent, shape = np.zeros(20), [1, 2, 10]
        elif case == "long":
            sent, shape = np.tile(values, 2).ravel(), [*values.shape[:2], 2 * values.shape[2]]
        elif case == "nan":
            sent = sent * np.nan
        await client.send("Voice", embeddings=sent.tolist(), shape=shape)
        assert await client.rest() in (1003, 1011)

    assert run(server, act).messages[-1]["type"] == "Error"


# Formats --------------------------------------------------------------------------------------------------------------


def test_bare_samples(server, usual):
    got, code = asyncio.run(raw(f"{server.tts}?format=Pcm&seed=3", TEXT, b"\0"))
    assert code == 1000 and {len(g) for g in got} == {4 * FRAME}
    np.testing.assert_array_equal(np.frombuffer(b"".join(got), "<f4"), usual.pcm)


def test_opus_with_and_without_messages(server, usual):
    got, code = asyncio.run(raw(f"{server.tts}?seed=3", TEXT, b"\0"))
    assert code == 1000 and got[0].startswith(b"OggS") and got[0][28:36] == b"OpusHead"
    sound, rate = soundfile.read(io.BytesIO(b"".join(got)))
    assert abs(len(sound) / rate - len(usual.pcm) / RATE) < 0.2
    client = spoken(server, query="?format=OggOpusMessagePack&seed=3")
    assert all(isinstance(m["data"], list) for m in client.of("OggOpus"))
    assert b"".join(bytes(m["data"]) for m in client.of("OggOpus")) == b"".join(got)
    assert [w["text"] for w in client.of("Text")] == TEXT.split()


# What is wrong, and who is slow ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"\xc1",
        b"\x01",
        msgpack.packb({"type": "Text"}),
        msgpack.packb({"type": "Text", "text": 5}),
        msgpack.packb({"type": "Sing"}),
        msgpack.packb({"type": "Voice", "embeddings": [0.0], "shape": []}),
        msgpack.packb({"type": "Text", "text": "x" * 5000 + " "}),
        # Four bytes each: the close has room for a part of the sentence only.
        msgpack.packb({"type": "Text", "text": "\U00010400" * 5000 + " "}),
        msgpack.packb({"type": "Text", "text": "word " * 400_000}),
    ],
)
def test_what_is_no_message_ends_that_client_with_a_sentence(server, sent):
    async def act(client):
        await client.socket.send_bytes(sent)
        assert await client.rest() in (1003, 1008, 1011)

    client = run(server, act)
    assert client.messages[-1]["type"] == "Error" and client.messages[-1]["message"].endswith(".")


def test_a_client_that_does_not_read_stands_still_and_loses_nothing():
    """While another one is read to; what it missed is all there when it reads again."""
    text = " ".join([TEXT] * 4)

    async def go(s):
        async with wire(s.tts + PCM) as slow:
            await slow.send("Text", text=text)
            await slow.send("Eos")
            [stream] = [each for each in s.schedulers[0]._rows if each is not None]
            while not stream.stalled:
                await asyncio.sleep(0.02)
            async with wire(s.tts + PCM) as quick:
                await quick.send("Text", text="hello")
                await quick.send("Eos")
                assert await quick.rest() == 1000
            assert stream.stalled and stream.waiting_items == stream.bounds.items
            assert await slow.rest() == 1000
            return slow

    with SpeechServer(Services(tts=speaking(2, items=8))) as s:
        slow = asyncio.run(asyncio.wait_for(go(s), PATIENCE))
        s.wait_free()
        np.testing.assert_array_equal(slow.pcm, spoken(s, text).pcm)
    assert [w["text"] for w in slow.of("Text")] == text.split()


def test_a_client_that_answers_no_ping_is_gone(server, monkeypatch):
    monkeypatch.setattr(line, "PING_SECONDS", 0.2)
    monkeypatch.setattr("moshi_mlx.server.kyutai.speak.SpeakLine.silent", 0.6)

    async def act(client):
        assert await client.rest() == 1006

    run(server, act, autoping=False)


# Once -----------------------------------------------------------------------------------------------------------------


def post(server, path: str, **request):
    async def go():
        url = f"http://127.0.0.1:{server.port}{path}"
        async with aiohttp.ClientSession() as session, session.post(url, **request) as answer:
            return answer.status, await answer.read()

    status, body = asyncio.run(go())
    server.wait_free()
    return status, body


def test_a_text_posted_is_answered_with_a_wav_of_no_known_length(server):
    status, body = post(server, "/api/tts_streaming", json={"text": TEXT, "voice": "b.wav"})
    assert status == 200 and body[:4] == b"RIFF"
    assert body[4:8] == body[40:44] == b"\xff\xff\xff\xff"
    assert body[22:28] == b"\1\0" + (24000).to_bytes(4, "little") and body[34:36] == b"\x10\0"
    assert (len(body) - 44) % (2 * FRAME) == 0 and len(body) > 44 + 20 * FRAME


@pytest.mark.parametrize("body", [{}, [], {"text": ""}, {"text": 3}, {"text": "hello", "voice": 3}])
def test_what_cannot_be_posted(server, body):
    assert post(server, "/api/tts_streaming", json=body)[0] == 400


@pytest.mark.parametrize(
    ("data", "kind"),
    [(b"{", "application/json"), (b"[" * 200_000, "application/json"), (b"{}", "text/plain; charset=no")],
)
def test_what_is_no_json(server, data, kind):
    assert post(server, "/api/tts_streaming", data=data, headers={"Content-Type": kind})[0] == 400


def test_a_text_that_cannot_be_said_is_told_to_who_posts_it(server):
    status, body = post(server, "/api/tts_streaming", json={"text": "x" * 5000})
    assert status == 400 and b"cannot be spoken" in body
    status, body = post(server, "/api/tts_streaming", json={"text": '<break time="1s"/>'})
    assert status == 200 and len(body) == 44


def test_keys_and_sites_of_who_posts(server):
    said = {"json": {"text": "hello"}}
    assert post(server, "/api/tts_streaming", headers={"kyutai-api-key": "mine"}, **said)[0] == 401
    assert post(server, "/api/tts_streaming", headers={"Origin": "http://evil.example"}, **said)[0] == 403


def test_what_is_served_is_told(server):
    async def go(path):
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{server.port}{path}") as answer:
            return answer.status, await answer.text()

    status, text = asyncio.run(go("/api/modules_info"))
    [module] = json.loads(text)
    assert status == 200 and module == {
        "type": "Py", "path": "/api/tts_streaming", "model": "tiny-tts", "used_slots": "0", "total_slots": "2",
    }  # fmt: skip
    assert asyncio.run(go("/api/build_info"))[0] == 200
    health = json.loads(asyncio.run(go("/health"))[1])
    assert health["kinds"]["tts"] == {"model": "tiny-tts", "rows": 2, "rows_in_use": 0, "waiting": 0}
    assert 'moshi_rows{kind="tts"} 2\n' in asyncio.run(go("/metrics"))[1]


# Voices of clips ------------------------------------------------------------------------------------------------------


def clip() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, noise(20, 5), RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def test_a_voice_is_cloned_where_the_model_goes_on_from_a_clip():
    """The answer is a message that is passed on as it is, and the row speaks on from the clip."""
    with SpeechServer(Services(tts=speaking(1, "tiny-tts-prefix"))) as s:
        status, voice = post(s, "/api/voice", data=clip())
        assert status == 200 and msgpack.unpackb(voice)["type"] == "Voice"

        async def go(voice):
            async with wire(s.tts + PCM) as client:
                if voice:
                    await client.socket.send_bytes(voice)
                await client.send("Text", text=TEXT)
                await client.send("Eos")
                assert await client.rest() == 1000
                return client.pcm

        cloned, plain = asyncio.run(go(voice)), asyncio.run(go(None))
        assert len(cloned) and not np.array_equal(cloned, plain[: len(cloned)])
        for data, expected in ((b"none", 400), (b"", 400), (bytes((16 << 20) + 1), 413)):
            status, told = post(s, "/api/voice", data=data)
            assert status == expected and b"--raw" not in told


def test_other_models_say_that_they_cannot(server):
    status, body = post(server, "/api/voice", data=clip())
    assert status == 501 and b"goes on from a clip" in body
