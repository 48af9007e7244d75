"""Talks over real sockets with real models: each is, to the token, what its model says alone."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import random
import resource

import aiohttp
import numpy as np
import pytest
import soundfile
from random_checkpoint import WORD_TOKENIZER, write
from sentencepiece import SentencePieceProcessor
from web_server import Client, Server

pytest.importorskip("sphn")
from moshi_mlx import checkpoint
from moshi_mlx.checkpoint.registry import DEMO_FOLDER
from moshi_mlx.engine.token_clock import UNGENERATED
from moshi_mlx.modules.repetition import RepetitionPenalty
from moshi_mlx.modules.sampling import Sampler
from moshi_mlx.server import recorded
from moshi_mlx.server.talks import Defaults, Talks
from moshi_mlx.session import Session
from moshi_mlx.session.conversations import Conversations
from moshi_mlx.session.voices import Voice, find_voice


def serve(folder, rows: int = 1, record=None, **defaults) -> Server:
    """A server of the checkpoint in `folder`, as the command makes it."""
    made: list[Talks] = []

    def make():
        loaded = checkpoint.load(folder)
        g = loaded.config.generation
        samplers = [Sampler(t, top_p=0, top_k=k) for t, k in ((g.temp_text, g.top_k_text), (g.temp, g.top_k))]
        made.append(Talks(loaded, Defaults(*samplers, **defaults)))
        kind = Conversations(loaded, rows, text_sampler=samplers[0], audio_sampler=samplers[1])
        return kind if record is None else recorded.Recorded(kind, record)

    server = Server(make=make, options=lambda wishes: made[0].make(wishes))
    server.talks = made[0]
    return server


def alone(
    folder, pcm: np.ndarray, seed: int, text=(None, None), audio=(None, None), pad: float = 0.0, **options
) -> tuple[np.ndarray, str]:
    """The same talk by a session of its own; `pad`: what the padding token's probability is multiplied by, as a power of e."""
    loaded = checkpoint.load(folder)
    g = loaded.config.generation
    temps = (text[0] if text[0] is not None else g.temp_text, audio[0] if audio[0] is not None else g.temp)
    counts = (text[1] if text[1] is not None else g.top_k_text, audio[1] if audio[1] is not None else g.top_k)
    samplers = [Sampler(t, top_p=0, top_k=k) for t, k in zip(temps, counts, strict=True)]
    samplers[0].logit_bias = {loaded.lm.cfg.padding_token: pad * temps[0]}
    session = Session(loaded, seed=seed, text_sampler=samplers[0], audio_sampler=samplers[1], **options)
    frames = [session.step(f) for f in pcm.reshape(-1, 1920)]
    said = [f.pcm for f in frames if f.text_token != UNGENERATED]
    return np.concatenate(said), "".join(f.text for f in frames)


def prompt(name: str, frames: int = 20) -> np.ndarray:
    pcm, _ = soundfile.read(DEMO_FOLDER / "prompts" / f"{name}.flac", dtype="float32")
    return np.resize(pcm, frames * 1920).astype(np.float32)


async def hold(session: aiohttp.ClientSession, server: Server, pcm: np.ndarray, url: str, unsteady: int | None = None):
    """A whole talk, each frame when the last was answered; now and then late where `unsteady` is a seed."""
    chance = random.Random(unsteady)
    async with session.ws_connect(f"{server.chat}?audio=pcm_f32le&{url}") as connection:
        client = Client(connection, "<f4")
        await client.opened()
        for i, frame in enumerate(pcm.reshape(-1, 1920)):
            if unsteady is not None and chance.random() < 0.2:
                await asyncio.sleep(chance.random() * 0.1)
            await client.send(frame)
            await client.until(lambda c, n=i: len(c.audio) > n)
        return await finished(client, len(client.audio))


def test_four_talkers_at_once_one_vanishing_one_never_reading():
    """The two that remain, and the two that follow in their rows, say what each of them alone would."""
    talks = [
        ("sum", 11, {"text": (0.0, None), "audio": (0.9, 100)}, "text_temperature=0&audio_temperature=0.9&audio_topk=100&seed=11"),
        ("greeting", 12, {}, "seed=12"),
        ("name", 13, {"text": (0.7, 25), "audio": (0.2, 5)}, "text_temperature=0.7&text_topk=25&audio_temperature=0.2&audio_topk=5&seed=13"),
        ("repeat", 14, {"audio": (0.0, None), "text": (1.5, None), "pad": -3.0}, "text_temperature=1.5&pad_mult=-3&audio_temperature=0&seed=14"),
    ]  # fmt: skip

    async def vanish(session: aiohttp.ClientSession, server: Server) -> None:
        connection = await session.ws_connect(f"{server.chat}?audio=pcm_f32le&seed=1&audio_temperature=3")
        client = Client(connection, "<f4")
        await client.opened()
        await client.talk(prompt("about", 8), first=0)
        connection._response.connection.transport.abort()

    async def never_read(session: aiohttp.ClientSession, server: Server) -> None:
        async with session.ws_connect(f"{server.chat}?seed=2&text_temperature=2&audio=pcm_f32le") as connection:
            for frame in prompt("about", 12).reshape(-1, 1920):
                await connection.send_bytes(b"\x01" + frame.tobytes())
                await asyncio.sleep(0.08)

    async def act(server: Server):
        async with aiohttp.ClientSession() as session:
            others = [asyncio.create_task(vanish(session, server)), asyncio.create_task(never_read(session, server))]
            await asyncio.sleep(0.2)
            heard = [
                asyncio.create_task(hold(session, server, prompt(n, 12), url, i))
                for i, (n, _, _, url) in enumerate(talks)
            ]
            await asyncio.gather(*others)
            return await asyncio.gather(*heard)

    with serve(DEMO_FOLDER, rows=4) as server:
        heard = asyncio.run(act(server))
        server.wait_free()
    for (name, seed, manner, _), (pcm, text) in zip(talks, heard, strict=True):
        expected, words = alone(DEMO_FOLDER, prompt(name, 12), seed, **manner)
        assert text.startswith(words)
        np.testing.assert_allclose(pcm, expected, atol=1e-5)


@pytest.fixture(scope="module")
def persona(tmp_path_factory):
    """A PersonaPlex of the smallest size, with two voices."""
    folder = tmp_path_factory.mktemp("persona")
    write(folder, "tiny-personaplex", None, seed=2)
    (folder / "voices").mkdir()
    for i, name in enumerate(("NATF0", "NATM1")):
        codes = np.random.default_rng(i).integers(0, 2048, (8, 10)).astype(np.int32)
        Voice(name, codes=codes).save(folder / "voices" / f"{name}.safetensors")
    return folder


def test_a_row_taken_over_has_nothing_of_the_last_voice(persona):
    """Voice, role and seed of one talk after another in the same row."""
    pcm = prompt("sum", 12)
    talks = [
        ({"voice": "NATF0", "text_prompt": "You sell fish."}, 3, "voice_prompt=NATF0.pt&text_prompt=You+sell+fish.&seed=3"),
        ({"voice": "NATM1", "text_prompt": ""}, 4, "voice_prompt=NATM1&text_prompt=&seed=4"),
        ({}, 5, "seed=5"),
        ({"voice": "NATF0", "text_prompt": "You sell fish."}, 3, "voice_prompt=NATF0&text_prompt=You+sell+fish.&seed=3"),
    ]  # fmt: skip

    async def act(server: Server):
        async with aiohttp.ClientSession() as session:
            return [await hold(session, server, pcm, url) for _, _, url in talks]

    with serve(persona) as server:
        heard = asyncio.run(act(server))
        place = server.talks.loaded.files.place
    for (options, seed, _), (said, text) in zip(talks, heard, strict=True):
        if "voice" in options:
            options = {**options, "voice": find_voice(options["voice"], place)}
        expected, words = alone(persona, pcm, seed, **options)
        assert text.startswith(words)
        np.testing.assert_allclose(said, expected, atol=1e-5)
    assert not np.allclose(heard[0][0], heard[1][0], atol=1e-3)
    np.testing.assert_array_equal(heard[0][0], heard[3][0])


async def finished(client: Client, frames: int) -> tuple[np.ndarray, str]:
    """The sound so far, and its words, which are all there once a further frame is answered (and may have one more)."""
    await client.send(np.zeros(1920, np.float32))
    await client.until(lambda c: len(c.audio) > frames)
    return client.pcm[: frames * 1920], client.text


def test_voices_that_nobody_has_are_refused_where_they_are_known(persona, monkeypatch):
    async def ask(server: Server, url: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(f"{server.chat}?{url}") as answer:
            return answer.status, await answer.text()

    async def act(server: Server):
        url = f"{server.chat}?voice_prompt=NATX9"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as connection:
            client = Client(connection)
            while await client.receive() is not None:
                pass
            return client.errors, client.close_code

    with serve(persona) as server:
        status, text = asyncio.run(ask(server, "voice_prompt=NATX9"))
        assert status == 400
        assert "known voices: NATF0, NATM1" in text
        # Where nobody knows which there are, it is told when the talk would begin.
        monkeypatch.setattr(server.talks, "voices", [])
        errors, code = asyncio.run(act(server))
        assert code == 1011
        assert "NATX9" in errors[0] and "/" not in errors[0]


@pytest.mark.parametrize("preset", ["tiny-hibiki", "tiny-hibiki-zero"])
def test_a_translation(tmp_path, preset):
    """Two frames of delay are not answered; what follows is what the model says alone."""
    from moshi_mlx.live.translation import LiveTranslation

    write(tmp_path, preset, None, seed=3)
    pcm = prompt("sum", 12)

    async def act(server: Server):
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{server.chat}?audio=pcm_f32le&seed=3") as connection,
        ):
            client = Client(connection, "<f4")
            await client.opened()
            for frame in pcm.reshape(-1, 1920):
                await client.send(frame)
            await client.until(lambda c: any("first" in m for m in c.metadata))
            first = next(m["first"] for m in client.metadata if "first" in m)
            await client.until(lambda c: len(c.audio) == 12 - first)
            return client.pcm

    with serve(tmp_path) as server:
        said = asyncio.run(act(server))
    session = LiveTranslation(checkpoint.load(tmp_path), seed=3)
    frames = [session.step(f) for f in pcm.reshape(-1, 1920)]
    np.testing.assert_allclose(said, np.concatenate([f.pcm for f in frames if f.text_token != UNGENERATED]), atol=1e-5)


def test_padding_and_repetition(tiny_checkpoint):
    """What the query makes of them holds for its talk alone, and is what a session makes of them."""
    pcm, greedy = prompt("sum", 8), {"text": (0.0, None)}
    talks = {
        "pad_mult=20": {"pad": 20.0},
        "pad_mult=0": {},
        "text_temperature=0&repetition_penalty=5&repetition_penalty_context=6": {**greedy, "repetition_penalty": RepetitionPenalty(5.0, 6)},
        "text_temperature=0&repetition_penalty=1.0&repetition_penalty_context=64": greedy,
    }  # fmt: skip

    async def act(server: Server):
        async with aiohttp.ClientSession() as session:
            return [(await hold(session, server, pcm, f"seed=1&{url}"))[0] for url in talks]

    with serve(tiny_checkpoint) as server:
        heard = asyncio.run(act(server))
    for said, options in zip(heard, talks.values(), strict=True):
        np.testing.assert_allclose(said, alone(tiny_checkpoint, pcm, 1, **options)[0], atol=1e-5)
    assert len({said.tobytes() for said in heard}) == len(talks)


def test_voice_and_role_mean_nothing_to_other_models(tiny_checkpoint):
    async def act(server: Server):
        async with aiohttp.ClientSession() as session:
            return await hold(session, server, prompt("sum", 5), "voice_prompt=NATF2&text_prompt=a+pirate&seed=1")

    with serve(tiny_checkpoint) as server:
        said, _ = asyncio.run(act(server))
    expected, _ = alone(tiny_checkpoint, prompt("sum", 5), 1)
    np.testing.assert_allclose(said, expected, atol=1e-5)


def test_characters_come_whole(tiny_checkpoint):
    """A model that spells in bytes: no message has half a character, and one that is never completed costs no other."""
    tokenizer = SentencePieceProcessor(str(WORD_TOKENIZER))
    spelt = [
        "\u2581",
        *(f"<0x{b:02X}>" for b in "n\u00e9\U0001f642".encode()),
        "<0xE2>",
        "\u2581the",
        "<0xC3>",
        "<0xA9>",
    ]
    tokens = [tokenizer.piece_to_id(piece) for piece in spelt]

    async def act(server: Server) -> list[str]:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{server.chat}?audio=pcm_s16le") as connection,
        ):
            client = Client(connection)
            await client.opened()
            await client.talk(prompt("sum", len(spelt) + 1), first=0)
            return client.texts

    with serve(tiny_checkpoint) as server:
        kind = server.scheduler.call(lambda kind: kind).result()
        kind.checkpoint = dataclasses.replace(kind.checkpoint, tokenizer=tokenizer)
        answer = kind._outcome

        def spelling(row, reply):
            token = tokens.pop(0) if tokens else 3
            return answer(row, reply._replace(tokens=np.array([token, *reply.tokens[1:]])))

        kind._outcome = spelling
        texts = asyncio.run(act(server))
    assert texts == [" ", "n", "\u00e9", "\U0001f642", "\ufffd the", "\u00e9"]


def test_seeds(tiny_checkpoint):
    """The same ones say the same, others do not, and none are others every time."""

    async def act(server: Server):
        async with aiohttp.ClientSession() as session:
            urls = [
                "text_seed=1&audio_seed=2", "text_seed=1&audio_seed=2", "text_seed=2&audio_seed=1", "text_seed=1&audio_seed=3", "", "", "seed=-1",
            ]  # fmt: skip
            return [(await hold(session, server, prompt("sum", 8), url))[0].tobytes() for url in urls]

    with serve(tiny_checkpoint) as server:
        said = asyncio.run(act(server))
    assert said[0] == said[1]
    assert len(set(said)) == 6


def test_a_recording_holds_what_was_heard_and_said(tiny_checkpoint, tmp_path):
    pcm = prompt("sum", 20)

    async def act(server: Server):
        async with aiohttp.ClientSession() as session:
            return [await hold(session, server, pcm, "seed=1") for _ in range(2)]

    with serve(tiny_checkpoint, record=tmp_path) as server:
        heard = asyncio.run(act(server))
        server.wait_free()
    folders = sorted(tmp_path.iterdir())
    assert len(folders) == 2
    for folder, (said, text) in zip(folders, heard, strict=True):
        for _ in range(100):
            if (folder / "stereo.wav").exists() and soundfile.info(folder / "stereo.wav").frames > len(pcm):
                break
            asyncio.run(asyncio.sleep(0.1))
        both, rate = soundfile.read(folder / "stereo.wav", dtype="float32")
        assert rate == 24000
        np.testing.assert_allclose(both[: len(pcm), 0], pcm, atol=1e-4)
        np.testing.assert_allclose(both[: len(pcm), 1], np.clip(said, -1, 1), atol=1e-4)
        lines = [json.loads(line) for line in (folder / "transcript.jsonl").read_text().splitlines()]
        assert "".join(line.get("text", "") for line in lines).startswith(text.replace(" ", ""))
        assert lines[-1]["event"] == "end"


def test_a_recording_that_cannot_be_kept_does_not_cost_the_talk(tiny_checkpoint, tmp_path):
    folder = tmp_path / "recordings"
    folder.write_text("a file")

    async def act(server: Server):
        async with aiohttp.ClientSession() as session:
            return await hold(session, server, prompt("sum", 5), "seed=1")

    with serve(tiny_checkpoint, record=folder) as server:
        assert len(asyncio.run(act(server))[0]) == 5 * 1920


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_memory_is_flat_over_many_talks(tiny_checkpoint, count):
    import mlx.core as mx

    async def act(server: Server, talks: int):
        async with aiohttp.ClientSession() as session:
            for i in range(talks):
                await hold_quickly(session, server, f"seed={i}&audio_topk={1 + i % 50}", abandon=i % 4 == 3)

    with serve(tiny_checkpoint, rows=2) as server:
        asyncio.run(act(server, 6))
        server.wait_free()
        gc.collect()
        held, before = mx.get_active_memory(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        asyncio.run(act(server, count))
        server.wait_free()
        gc.collect()
        assert mx.get_active_memory() <= held + (1 << 20)
        # In kB: less than a tenth of one talk's second of sound for each.
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000 + 10 * count


async def hold_quickly(session, server, url, abandon):
    async with session.ws_connect(f"{server.chat}?{url}&audio=pcm_s16le") as connection:
        client = Client(connection)
        await client.opened()
        await client.talk(prompt("sum", 3), first=0)
        if abandon:
            connection._response.connection.transport.abort()
