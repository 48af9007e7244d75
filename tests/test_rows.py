"""Rows of a batch that join late, pause, are reset and taken over: every stream is what it is alone."""

from __future__ import annotations

import functools
import gc

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from random_checkpoint import write
from row_drivers import Client, drive, in_pieces, noise, same_sound
from speech_toys import _tidy, attributes, loaded, make_tts  # noqa: F401
from toy import make_lm

from moshi_mlx.engine.generate import LmGen
from moshi_mlx.engine.row_state import Manner
from moshi_mlx.engine.step import Conditions
from moshi_mlx.engine.streams import Mark, Say
from moshi_mlx.errors import InputError
from moshi_mlx.machine.footprint import measure
from moshi_mlx.models.mimi_model import MimiModel
from moshi_mlx.modules.conditioner import ConditionAttributes
from moshi_mlx.modules.repetition import RepetitionPenalty
from moshi_mlx.modules.sampling import MOST_KEPT, Sampler, choose_by_row, gumbel, row_values
from moshi_mlx.session import Session
from moshi_mlx.session.conversations import Conversations, Talk
from moshi_mlx.speech_to_text.listener import Listener
from moshi_mlx.speech_to_text.live import LiveTranscriber
from moshi_mlx.speech_to_text.pauses import TurnDetector
from moshi_mlx.speech_to_text.rows import Hear, HeardFrame, Marker, Transcriptions
from moshi_mlx.text_to_speech.rows import Speak, Utterances

schedules = settings(
    max_examples=2, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
seeds = st.integers(0, 2**32 - 1)
GREEDY, WARM, NARROW = Sampler(temp=0, top_p=0), Sampler(temp=1.2, top_p=0), Sampler(temp=0.6, top_p=0, top_k=7)


# Dialogue -------------------------------------------------------------------------------------------------------------


def quality(*values: str) -> list[ConditionAttributes]:
    return [ConditionAttributes(text={"description": v}) for v in values]


# Preset, options of the batch, talks: (options of both, of the talk alone, of the session alone).
BOTH = "very_good", "very_bad"
DIALOGUES = {
    "plain": ("tiny", {"compile": False}, [({"seed": 3}, {}, {}), ({"seed": 4, "text_sampler": GREEDY, "audio_sampler": NARROW}, {}, {})]),
    "compiled": (
        "tiny",
        {},
        [
            ({"seed": 3}, {}, {}),
            ({"seed": 2**40, "text_sampler": GREEDY, "audio_sampler": GREEDY}, {}, {}),
            ({"seed": 5, "text_sampler": WARM, "audio_sampler": NARROW, "repetition_penalty": RepetitionPenalty(5.0, 6)}, {}, {}),
            ({"seed": 3, "text_sampler": NARROW}, {}, {}),
        ],
    ),
    "packed-keys": ("tiny", {"kv_bits": 8}, [({"seed": 1}, {}, {}), ({"seed": 2}, {}, {}), ({"seed": 3, "audio_sampler": WARM}, {}, {})]),
    "guided": (
        "tiny-hibiki",
        {"cfg_coef": 3.0},
        [
            ({"seed": 1}, {}, {"cfg_coef": 3.0}),
            ({"seed": 2}, {"cfg_coef": 1.5}, {"cfg_coef": 1.5}),
            ({"seed": 3}, {"cfg_coef": 1.0}, {"cfg_coef": 1.0}),
            ({"seed": 3}, {"attributes": quality("bad", "very_bad")}, {"cfg_coef": 3.0, "attributes": quality("bad", "very_bad")}),
        ],
    ),
    "prompted": (
        "tiny-personaplex",
        {},
        [({"seed": 1, "text_prompt": "You are brief.", "repetition_penalty": RepetitionPenalty(5.0, 6)}, {}, {}), ({"seed": 2, "text_prompt": ""}, {}, {}), ({"seed": 1}, {}, {})],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory):
    """Per case: the checkpoint, a batch of rows, and for every talk its sound and what a session alone replies."""
    from moshi_mlx import checkpoint

    folders: dict = {}

    @functools.cache
    def make(case: str):
        preset, options, talks = DIALOGUES[case]
        if preset not in folders:
            folders[preset] = tmp_path_factory.mktemp(preset)
            write(folders[preset], preset, None, seed=3)
        model = checkpoint.load(folders[preset])
        rows = Conversations(model, rows=2, **options)
        alone, clients = [], []
        of_session = {k: v for k, v in options.items() if k != "cfg_coef"}
        for number, (shared, of_talk, of_alone) in enumerate(talks):
            pcm = noise(9 + 3 * number, number)
            session = Session(model, **shared, **of_session, **of_alone)
            alone.append([session.step(frame) for frame in pcm.reshape(-1, 1920)])
            clients.append(Client(Talk(**shared, **of_talk, tail=0), in_pieces(pcm, number)))
        return rows, clients, alone

    return make


@pytest.mark.parametrize("case", DIALOGUES)
@schedules
@given(seed=seeds)
def test_a_conversation_in_a_row_is_what_it_is_alone(dialogues, case, seed):
    rows, clients, alone = dialogues(case)
    drive(rows, clients, seed)
    for client, expected in zip(clients, alone, strict=True):
        # A translation goes on with the mark of its end.
        assert len(client.items) - len(expected) == (1 if case == "guided" else 0)
        loudest = max(float(np.abs(f.pcm).max()) for f in expected)
        for found, wanted in zip(client.items, expected, strict=False):
            assert (found.index, found.time, found.text_token, found.text) == (
                wanted.index,
                wanted.time,
                wanted.text_token,
                wanted.text,
            )
            np.testing.assert_array_equal(found.codes, wanted.codes)
            same_sound(found.pcm, wanted.pcm, loudest)


def test_joining_traces_and_allocates_nothing(dialogues, monkeypatch):
    """Python of the model runs while it is traced, and at no other time; arrays in use are as many as before."""
    model, traced = dialogues("compiled")[0].checkpoint, []
    for part in ("encode_chunk", "decode_chunk"):
        whole = getattr(MimiModel, part)
        monkeypatch.setattr(MimiModel, part, lambda *a, whole=whole, part=part: traced.append(part) or whole(*a))
    rows = Conversations(model, rows=3)
    # Once for each size of the rings, and none was made for a frame.
    assert len(traced) == 2 * len(rows.batch.frame_step.step.capacities(3))
    traced.clear()
    used = []
    for number in range(50):
        join(rows, number % 3, Talk(seed=number, text_sampler=(None, GREEDY, WARM)[number % 3]))
        rows.step({number % 3: (noise(1, number), False)})
        gc.collect()
        used.append(mx.get_active_memory())
    assert traced == []
    # Give or take a number that waits to be let go of.
    assert max(used[25:]) - max(used[3:25]) < 256, used


def join(rows, row: int, options) -> None:
    for _ in rows.join(row, options):
        pass


@pytest.mark.slow
def test_memory_is_flat_over_two_thousand_streams(dialogues):
    rows = Conversations(dialogues("compiled")[0].checkpoint, rows=2)
    used, resident = [], []
    for number in range(2000):
        join(rows, number % 2, Talk(seed=number))
        rows.step({number % 2: (noise(1, number), False)})
        if number % 100 == 99:
            gc.collect()
            used.append(mx.get_active_memory())
            resident.append(measure().physical)
    assert max(used) - min(used) < 1024, used
    # The last thousand has added less than one row's state.
    assert resident[-1] - resident[9] < 4 << 20, resident


@pytest.mark.slow
@pytest.mark.parametrize("case", DIALOGUES)
def test_many_schedules_of_conversations(dialogues, case):
    for seed in range(20):
        test_a_conversation_in_a_row_is_what_it_is_alone.hypothesis.inner_test(dialogues, case, seed)


def test_a_row_outgrows_its_rings_beside_a_young_one(dialogues, monkeypatch):
    """Rings grow with the oldest row, and one that joins then is none the worse for it."""
    from moshi_mlx.engine import step

    rows, clients, alone = dialogues("compiled")
    monkeypatch.setattr(step, "FIRST_CAPACITY", 4)
    small = Conversations(rows.checkpoint, rows=2)
    assert small.batch.capacity == 4
    drive(small, clients, seed=1)
    assert small.batch.capacity == 32
    for client, expected in zip(clients, alone, strict=True):
        assert [f.codes.tolist() for f in client.items] == [f.codes.tolist() for f in expected]


def test_nothing_of_a_stream_is_left_in_its_row(dialogues):
    """After a row was taken over, state, seed, sampling and pending text are those of a batch that never saw the first stream."""
    model = dialogues("compiled")[0].checkpoint
    used, unused = Conversations(model, rows=2), Conversations(model, rows=2)
    join(used, 1, Talk(seed=77, text_sampler=WARM))
    for frame in noise(6, 5).reshape(-1, 1920):
        used.step({1: (frame, False)})
    used._talks[1].text.pending = b"\xe2\x82"
    used.leave(1)
    for batch in (used, unused):
        join(batch, 1, Talk(seed=3))
    mine, clean = (tree_flatten(b.batch.state) for b in (used, unused))
    for (name, a), (other, b) in zip(mine, clean, strict=True):
        assert name == other
        a, b = (np.array(x.astype(mx.float32)) for x in (a, b))
        axis = 1 if a.ndim == 5 else 0
        np.testing.assert_array_equal(np.take(a, 1, axis), np.take(b, 1, axis), err_msg=name)
    assert used._talks[1].text.pending == b""


def test_a_row_of_a_generator_starts_over():
    """`LmGen`: new seed, own clock, its own first frame, while the other row goes on; and what a row alone cannot have."""
    lm = make_lm()
    users = np.random.default_rng(0).integers(0, 24, (12, 2, 3))

    def alone(row: int, seed: int, first: int, last: int) -> list:
        gen = LmGen(lm, batch_size=1, seed=seed)
        found = []
        for t in range(first, last):
            gen.step(users[t, row : row + 1])
            found.append(np.array(gen.frame)[0].tolist())
        return found

    gen = LmGen(lm, batch_size=2, seed=[5, 6], support_out_of_sync=True)
    frames: list[list] = [[], []]
    for t in range(12):
        if t == 7:
            gen.reset([False, True], seed=[9])
            assert (gen.steps, gen.steps_of(0), gen.steps_of(1)) == (7, 7, 0)
            assert gen.seeds == [5, 9]
        gen.step(users[t])
        valid = np.array(gen.output.valid)
        assert valid.tolist() == [t >= 1, t >= 1 and t != 7]
        for b in range(2):
            frames[b].append(np.array(gen.frame)[b].tolist())
    assert frames[0] == alone(0, 5, 0, 12)
    assert frames[1] == alone(1, 6, 0, 7) + alone(1, 9, 7, 12)
    with pytest.raises(InputError, match="made with conditions"):
        gen.join(0, conditions=Conditions())
    with pytest.raises(InputError, match="made with manners"):
        gen.join(0, manner=Manner())
    with pytest.raises(InputError, match="2 conversations need as many seeds, found 1"):
        gen.reset([True, True], seed=[1])
    with pytest.raises(InputError, match="support_out_of_sync"):
        LmGen(lm, batch_size=2).join(0)
    with pytest.raises(InputError, match="each of 2 rows"):
        LmGen(lm, batch_size=2, support_out_of_sync=True, manners=[Manner()])
    gen = LmGen(lm, batch_size=2, support_out_of_sync=True, manners=[Manner()] * 2, seed=[5, 6])
    with pytest.raises(InputError, match="guidance of a row needs a batch"):
        gen.join(0, seed=7, manner=Manner(coef=2.0))
    # Nothing has changed, and the row can be joined again as it was.
    assert (gen.seeds, gen.manners) == ([5, 6], [Manner()] * 2)
    gen.join(0)
    # A state with rows' own sampling is taken by a generator of that kind alone.
    own = LmGen(lm, batch_size=1, support_out_of_sync=True, manners=[Manner()], seed=0)
    other = LmGen(lm, batch_size=1, support_out_of_sync=True, seed=0)
    own.state = own.state
    with pytest.raises(InputError, match="unknown part 'own'"):
        other.state = own.state


def test_refusals_of_rows(dialogues):
    rows, _, _ = dialogues("compiled")
    with pytest.raises(InputError, match="no conversation in row 1"):
        Conversations(rows.checkpoint, rows=2).step({1: (noise(1, 0), False)})
    with pytest.raises(InputError, match="guidance of a row needs a batch"):
        list(rows.join(0, Talk(cfg_coef=2.0)))
    with pytest.raises(InputError, match="temperature and top-k alone"):
        list(rows.join(0, Talk(text_sampler=Sampler(temp=0.8, top_p=0.9))))
    with pytest.raises(InputError, match=f"0 .everything. to {MOST_KEPT}, found 600"):
        list(rows.join(0, Talk(audio_sampler=Sampler(temp=0.8, top_k=600))))
    with pytest.raises(InputError, match="takes no voice"):
        list(rows.join(0, Talk(voice="NATF2")))


@settings(max_examples=40, deadline=None)
@given(
    vocabulary=st.sampled_from([24, 600, 2048, 32000]),
    seed=seeds,
    dtype=st.sampled_from([mx.float32, mx.bfloat16]),
    ways=st.lists(st.tuples(st.sampled_from([0.0, 0.3, 0.8, 1.5]), st.integers(0, MOST_KEPT)), min_size=1, max_size=4),
)
def test_rows_are_sampled_each_in_its_own_way(vocabulary, seed, dtype, ways):
    rng = np.random.default_rng(seed)
    logits = mx.array(3 * rng.standard_normal((len(ways), vocabulary)).astype(np.float32)).astype(dtype)
    samplers = [Sampler(temp=t, top_p=0, top_k=min(k, vocabulary)) for t, k in ways]
    numbers, steps = (
        mx.array(rng.integers(0, 2**32, len(ways)), mx.uint32),
        mx.array(rng.integers(0, 9, len(ways)), mx.int32),
    )
    found = choose_by_row(logits, row_values(samplers), gumbel(numbers, steps, vocabulary))
    for b, sampler in enumerate(samplers):
        noise_alone = gumbel(numbers[b : b + 1], steps[b], vocabulary)
        assert int(found[b]) == int(sampler.choose(logits[b : b + 1], noise_alone)[0])


def test_a_row_that_keeps_all_entries_is_not_looked_up_beyond_them(monkeypatch):
    looked_up, real = [], mx.take_along_axis

    def take(a, indices, axis):
        looked_up.append((np.array(indices), a.shape[axis]))
        return real(a, indices, axis)

    monkeypatch.setattr(mx, "take_along_axis", take)
    samplers = [Sampler(temp=1.0, top_p=0, top_k=k) for k in (0, 1, 24, 25, MOST_KEPT)]
    logits = mx.zeros((len(samplers), 24))
    mx.eval(choose_by_row(logits, row_values(samplers), logits))
    assert looked_up
    assert all(((indices >= 0) & (indices < size)).all() for indices, size in looked_up)


# Speech to text -------------------------------------------------------------------------------------------------------


def transcribed_alone(model, pcm: np.ndarray, hear: Hear, compile: bool):
    """Events of the whole recording, silence to its end as a client sends it included."""
    listener = Listener(model.lm, model.mimi, compile=compile)
    turns = TurnDetector(listener.heads, hear.pause_head, hear.pause_threshold) if hear.turns else None
    stt = model.config.stt
    live = LiveTranscriber(
        listener, model.tokenizer, stt.audio_delay_seconds, stt.audio_silence_prefix_seconds, turns, hear.flush
    )
    live.start()
    events = []
    for frame in np.pad(pcm, (0, -len(pcm) % 1920)).reshape(-1, 1920):
        events += live.feed(frame)
    return events + live.finish()


@pytest.fixture(scope="module", params=[True, False], ids=["compiled", "plain"])
def transcriptions(request):
    model = loaded("tiny-stt")
    hears = [Hear(), Hear(turns=True, pause_threshold=0.2), Hear(turns=True, pause_threshold=0.2, flush=False), Hear()]
    sounds = [noise(20 + 5 * i, 10 + i)[: -300 * i or None] for i in range(len(hears))]
    alone = [transcribed_alone(model, pcm, h, request.param) for pcm, h in zip(sounds, hears, strict=True)]
    clients = [Client(h, [*in_pieces(pcm, i), Mark(i)]) for i, (pcm, h) in enumerate(zip(sounds, hears, strict=True))]
    return Transcriptions(model, rows=3, compile=request.param), clients, sounds, alone


@schedules
@given(seed=seeds)
def test_a_stream_is_heard_as_alone(transcriptions, seed):
    rows, clients, sounds, alone = transcriptions
    drive(rows, clients, seed)
    for number, (client, pcm, expected) in enumerate(zip(clients, sounds, alone, strict=True)):
        frames = [i for i in client.items if isinstance(i, HeardFrame)]
        assert [e for f in frames for e in f.events] == expected
        # Exactly one for every 80 ms that the client sent, with all its pauses.
        assert [f.index for f in frames if f.index is not None] == list(range(-(-len(pcm) // 1920)))
        assert all(f.pauses.shape == (4,) for f in frames if f.index is not None)
        assert [i.id for i in client.items if isinstance(i, Marker)] == [number]
    assert any(alone)


def test_pause_probabilities_of_a_row(transcriptions):
    rows, clients, sounds, _ = transcriptions
    drive(rows, clients[:1], seed=5)
    listener = Listener(rows.checkpoint.lm, rows.checkpoint.mimi)
    listener.read([listener.start()])
    prefix = np.zeros(round(rows.checkpoint.config.stt.audio_silence_prefix_seconds * 12.5 + 0.49) * 1920, np.float32)
    heard = listener.listen(np.concatenate([prefix, np.pad(sounds[0], (0, -len(sounds[0]) % 1920))])[None])
    found = [i.pauses for i in clients[0].items if isinstance(i, HeardFrame) and i.index is not None]
    np.testing.assert_allclose(np.stack(found), heard.pauses[-len(found) :, 0], atol=1e-5)


# Text to speech -------------------------------------------------------------------------------------------------------

TEXTS = ["Hello.", 'Good morning, how are you? <break time="0.4s"/> I am fine.', "One two three four.", "You, there!"]
VOICES = [["a.wav"], ["b.wav"], ["a.wav", "b.wav"], ["b.wav"]]


def cut(text: str) -> list[Say]:
    return [Say(text[i : i + 5]) for i in range(0, len(text), 5)]


def spoken_alone(tts, text, attributes, prefix, seed, **options):
    speech = tts.speech([attributes], None if prefix is None else [prefix], seed=[seed], **options)
    speech.say(text)
    speech.finish()
    pcm, codes = [], []
    while not speech.done:
        frame = speech.step()
        if frame.codes[0] is not None:
            pcm.append(frame.pcm[0])
            codes.append(frame.codes[0])
    return np.stack(pcm), np.stack(codes), speech.words()


def check_spoken(clients, alone):
    for client, (pcm, codes, words) in zip(clients, alone, strict=True):
        sounding = [i for i in client.items if i.codes is not None]
        np.testing.assert_array_equal(np.stack([i.codes for i in sounding]), codes)
        same_sound(np.stack([i.pcm for i in sounding]), pcm, float(np.abs(pcm).max()))
        assert [w for i in client.items for w in i.words] == words


@pytest.fixture(scope="module", params=["compiled", "plain", "packed-keys"])
def spoken(request):
    """Voices of different length, built-in guidance of different strength, different sampling."""
    options = {"compiled": {}, "plain": {"compile": False}, "packed-keys": {"kv_bits": 8}}[request.param]
    tts = make_tts(temp=0.7)
    longer = tts.make_condition_attributes([tts.get_voice_path("b.wav")], 3.0)
    longer.tensor = {
        n: type(c)(mx.concatenate([c.tensor, c.tensor], 1), mx.concatenate([c.mask, c.mask], 1))
        for n, c in longer.tensor.items()
    }
    asked = [*(attributes(tts, *v) for v in VOICES[:3]), longer]
    samplers = [{}, {"text_sampler": GREEDY, "audio_sampler": GREEDY}, {"audio_sampler": NARROW}, {}]
    alone, clients = [], []
    for i, (text, who, how) in enumerate(zip(TEXTS, asked, samplers, strict=True)):
        other = make_tts(temp=0.0) if i == 1 else make_tts(temp=0.7)
        if i == 2:
            other.temp, other.text_temp, other.audio_top_k = 0.6, 0.7, 7
        alone.append(spoken_alone(other, text, who, None, i, **options))
        clients.append(Client(Speak(seed=i, attributes=who, **how), cut(text)))
    # The slower ways with two of them: one voice, and two that are longer.
    few = slice(None) if request.param == "compiled" else slice(0, None, 3)
    return Utterances(tts, rows=2, usual=Speak(voices=["a.wav"]), **options), clients[few], alone[few]


@schedules
@given(seed=seeds)
def test_an_utterance_in_a_row_is_what_it_is_alone(spoken, seed):
    rows, clients, alone = spoken
    drive(rows, clients, seed)
    check_spoken(clients, alone)


@pytest.fixture(scope="module")
def continued(tmp_path_factory, request):
    """A model that continues clips, with real guidance of different strength."""
    import soundfile

    folder = tmp_path_factory.mktemp("clips")
    clips = [folder / f"{n}.wav" for n in (6, 14)]
    for path, n in zip(clips, (6, 14), strict=True):
        soundfile.write(path, noise(n, n), 24000)
    tts = make_tts("tiny-tts-prefix", voice_repo=str(folder), cfg_coef=2.0, padding_bonus=0.5)
    alone, clients = [], []
    for i, (text, clip, coef) in enumerate(
        zip(TEXTS, [clips[0], clips[1], None, clips[0]], [2.0, 2.0, 2.0, 3.0], strict=True)
    ):
        other = make_tts("tiny-tts-prefix", voice_repo=str(folder), cfg_coef=coef, padding_bonus=0.5)
        prefix = None if clip is None else other.get_prefix(clip)
        alone.append(spoken_alone(other, text, other.make_condition_attributes(), prefix, i))
        clients.append(Client(Speak(voices=[] if clip is None else [clip.name], seed=i, cfg_coef=coef), cut(text)))
    return Utterances(tts, rows=2), clients, alone


@schedules
@given(seed=seeds)
def test_a_clip_is_continued_in_a_row(continued, seed):
    rows, clients, alone = continued
    drive(rows, clients, seed)
    check_spoken(clients, alone)


def test_nothing_to_say_ends_without_sound(spoken):
    rows, clients, _ = spoken
    silent = [
        Client(Speak(attributes=clients[0].options.attributes), sends)
        for sends in ([], [Say(" \n")], [Say('<break time="1s"/>')])
    ]
    drive(rows, silent, seed=1)
    assert [c.items for c in silent] == [[], [], []]
