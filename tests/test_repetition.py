"""The repetition penalty of the text stream, against its rule written out over lists."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import make_lm

from moshi_mlx.engine.generate import LmGen
from moshi_mlx.engine.row_state import Manner
from moshi_mlx.errors import InputError
from moshi_mlx.modules import repetition
from moshi_mlx.modules.repetition import RepetitionPenalty
from moshi_mlx.modules.sampling import Sampler

PAD, END_OF_PAD = 3, 0
GREEDY = Sampler(temp=0, top_p=0)


def expected(logits: np.ndarray, tokens: list[int], penalty: float, context: int) -> np.ndarray:
    """The rule: of the last `context` tokens that are no padding, each once, whatever its number."""
    pieces = [t for t in tokens if t not in (PAD, END_OF_PAD)]
    out = logits.copy()
    for token in set(pieces[len(pieces) - min(context, len(pieces)) :]):
        out[token] = out[token] / penalty if out[token] >= 0 else out[token] * penalty
    return out


penalties = st.builds(
    RepetitionPenalty, st.sampled_from([1.0, 0.5, 1.2, 2.0, 7.0]), st.sampled_from([0, 1, 2, 5, 64, 2**31 - 1])
)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), ways=st.lists(penalties, min_size=1, max_size=3))
def test_rows_with_penalties_of_their_own(seed, ways):
    rng = np.random.default_rng(seed)
    said, values = repetition.init(len(ways), 12), repetition.row_values(ways)
    told: list[list[int]] = [[] for _ in ways]
    for _ in range(30):
        logits = rng.standard_normal((len(ways), 12)).astype(np.float32)
        found = np.array(repetition.apply(mx.array(logits), said, values))
        for b, way in enumerate(ways):
            np.testing.assert_allclose(found[b], expected(logits[b], told[b], way.penalty, way.context), rtol=1e-6)
        tokens, steps = rng.integers(0, 12, len(ways)), rng.random(len(ways)) < 0.8
        piece = steps & (tokens != PAD) & (tokens != END_OF_PAD)
        said = repetition.after(said, mx.array(tokens, mx.int32), mx.array(piece))
        for b in np.flatnonzero(steps):
            told[b].append(int(tokens[b]))


@pytest.mark.parametrize("way", [RepetitionPenalty(3.0, 4), RepetitionPenalty(3.0, 64)])
def test_a_generator_says_other_words_than_it_said_lately(way):
    """The first step's token included; hooks see what the model itself computes."""
    lm, raw = make_lm(), []
    users = np.random.default_rng(0).integers(0, 24, (24, 1, 3))
    with_penalty = LmGen(lm, text_sampler=GREEDY, seed=1, repetition_penalty=way)
    watched = LmGen(
        lm,
        text_sampler=GREEDY,
        seed=1,
        repetition_penalty=way,
        on_text_logits_hook=lambda x: raw.append(np.array(x)[0]),
    )
    usual = LmGen(lm, text_sampler=GREEDY, seed=1)
    found, watching, without = ([int(gen.step(u)) for u in users] for gen in (with_penalty, watched, usual))
    assert found == watching
    for t, logits in enumerate(raw):
        assert found[t] == int(np.argmax(expected(logits, found[:t], way.penalty, way.context))), t
    assert found != without


def test_rows_are_what_they_are_alone():
    """One graph for rows that take turns, one of which nobody penalises; what is joined anew has said nothing."""
    lm, users = make_lm(), np.random.default_rng(1).integers(0, 24, (20, 1, 3))
    ways = [RepetitionPenalty(4.0, 3), None, RepetitionPenalty(1.3, 100)]

    def alone(way: RepetitionPenalty | None, seed: int, which: np.ndarray) -> list[int]:
        gen = LmGen(lm, seed=seed, repetition_penalty=way)
        return [int(gen.step(u)) for u in users[which]]

    gen = LmGen(
        lm, batch_size=3, seed=[5, 6, 7], support_out_of_sync=True, repetition_penalty=RepetitionPenalty(),
        manners=[Manner(repetition_penalty=w) for w in ways],
    )  # fmt: skip
    turns = np.random.default_rng(2).random((20, 3)) < 0.7
    said: list[list[int]] = [[], [], []]
    for t in range(20):
        if t == 12:
            gen.join(0, seed=9, manner=Manner(repetition_penalty=RepetitionPenalty(2.0, 5)))
            said[0] = []
        tokens = np.array(gen.step(np.repeat(users[t], 3, axis=0), execute=turns[t]))[:, 0]
        for b in np.flatnonzero(turns[t]):
            said[b].append(int(tokens[b]))
    after = np.arange(20) >= 12
    assert said[0] == alone(RepetitionPenalty(2.0, 5), 9, np.flatnonzero(turns[:, 0] & after))
    assert said[1] == alone(None, 6, np.flatnonzero(turns[:, 1]))
    assert said[2] == alone(ways[2], 7, np.flatnonzero(turns[:, 2]))


def test_what_cannot_be():
    for penalty, context in ((0.0, 64), (-1.0, 64), (float("nan"), 64), (1.2, -1), (1.2, 1.5), ("x", 64)):
        with pytest.raises(InputError, match="repetition penalty should be"):
            RepetitionPenalty(penalty, context)
    with pytest.raises(InputError, match="needs a batch that was made with one"):
        LmGen(
            make_lm(),
            batch_size=1,
            support_out_of_sync=True,
            manners=[Manner(repetition_penalty=RepetitionPenalty(1.2))],
        )
    # The state of a conversation with one says what was said, and another cannot go on with it.
    gen = LmGen(make_lm(), seed=0, repetition_penalty=RepetitionPenalty(1.2))
    gen.state = gen.state
    with pytest.raises(InputError, match="unknown part 'said'"):
        LmGen(make_lm(), seed=0).state = gen.state
