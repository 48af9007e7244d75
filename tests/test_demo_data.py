"""What the demo models are tested with is not in the data they were trained on: prompts, pairs, sentences, voices."""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from examples.train_demo import domain, flite, takes  # noqa: E402
from examples.train_demo.same_words import LONGEST_WORD, same_words  # noqa: E402
from examples.train_demo.sentences import Chains, heard_words, words  # noqa: E402
from examples.train_demo.speakers import (  # noqa: E402
    HELD_OUT,
    HELD_OUT_ACCENT,
    HELD_OUT_FLITE_VOICES,
    HELD_OUT_VARIANTS,
    LEFT_OUT,
    Speaker,
    sample_speaker,
)

# Seed, users, users of the synthesiser added last and sentences of the last data; earlier ones were drawn by earlier versions of this code.
DATA = ((4, 640, 96, 10_000), (8, 240, 0, 0))


@pytest.fixture(scope="module")
def lines() -> dict[str, list[takes.Line]]:
    """Everything that the recipe says with the seeds and amounts of the last data, by set."""
    said: dict[str, list[takes.Line]] = {}
    for seed, *amounts in DATA:
        for s in takes.all_sets(*amounts):
            said.setdefault(s.name, []).extend(line for i in range(s.shards) for line in s.lines(seed, i))
    return said


def said(lines: dict[str, list[takes.Line]]) -> set[str]:
    """Texts without hesitations and commas."""
    plain = (line.text.replace(",", "").split() for line in itertools.chain(*lines.values()))
    return {" ".join(w for w in text if w not in domain.HESITATIONS) for text in plain}


def test_no_prompt_that_is_kept_for_the_tests_is_said(lines):
    spoken = said(lines)
    for kind in ("sum", "repeat"):
        kept = {e.prompt for e in domain.exchanges(kind, held_out=True)}
        assert kept
        assert not kept & spoken


def test_no_sum_of_a_pair_that_is_kept_is_said_by_anyone(lines):
    """Nor is one part of a sum of three, or an answer."""
    assert domain.names_held_out_sum(
        "please tell me the sum of " + " and ".join(domain.NUMBERS[n] for n in min(domain.HELD_OUT_SUMS))
    )
    assert not [text for text in said(lines) if domain.names_held_out_sum(text)]


def test_digits_that_are_no_choice_are_those_of_kept_sums():
    """In the loss, where the digits of what is said would be learnt."""
    exchanges = random.Random(1).sample([e for kind in ("sum", "sum3") for e in domain.exchanges(kind)], 300)
    for text in itertools.chain(*((e.prompt, e.answer) for e in exchanges)):
        words = text.split()
        for i, apart in enumerate(domain.kept_apart(words)):
            for d in domain.DIGITS:
                other = " ".join([*words[:i], domain.NUMBERS[d], *words[i + 1 :]])
                said_anyway = words[i] in domain.NUMBERS[:10]
                assert (d in apart) == (said_anyway and domain.names_held_out_sum(other)), (text, i, d)
    assert any(any(domain.kept_apart(e.answer.split())) for e in exchanges)
    a, b = max(domain.HELD_OUT_SUMS)
    broken_off = [domain.NUMBERS[a], "plus", domain.NUMBERS[b], "plus", "zero", "is", domain.NUMBERS[b]]
    assert b not in domain.kept_apart(broken_off)[2]
    assert a not in domain.kept_apart(broken_off)[0]


def test_pauses_change_no_word():
    """They come behind numbers that more follows, where there are such, and never at the end."""
    rng = random.Random(3)
    for kind in domain.KINDS:
        for exchange in rng.sample(domain.exchanges(kind), min(40, len(domain.exchanges(kind)))):
            halting = domain.haltingly(exchange.prompt, rng)
            assert halting.replace(",", "") == exchange.prompt
            paused = [word[:-1] for word in halting.split()[:-1] if word.endswith(",")]
            assert len(paused) in ((1, 2) if " " in exchange.prompt else (0,))
            assert not halting.endswith(",")
            if {*exchange.prompt.split()[:-1]} & {*domain.NUMBERS}:
                assert {*paused} <= {*domain.NUMBERS}


def test_no_recited_sum_holds_a_kept_pair():
    every = [*itertools.chain(*domain.recited_operands())]
    assert {len(operands) for operands in every} == {2, 3, 4}
    assert not [operands for operands in every if domain.names_held_out_sum(domain.sum_answer(operands))]


def test_words_that_are_exchanged_are_the_same_and_as_long():
    """Moshi hears other recordings of its own words: never of another word, nor of one that the next word follows sooner or later."""
    frames, pad = 60, 3
    rng = np.random.default_rng(1)
    text = np.where(rng.random((40, frames)) < 0.25, rng.integers(pad + 1, pad + 5, (40, frames)), pad).astype(np.int16)
    found = same_words(text, pad)

    def length(session: int, frame: int) -> int:
        """Frames to the next word of the session, 0 without one."""
        later = np.flatnonzero(text[session, frame + 1 :] > pad)
        return int(later[0]) + 1 if len(later) else 0

    exchanged = 0
    for session, frame in zip(*np.nonzero(text > pad), strict=True):
        group, own = found.group[session, frame], length(session, frame)
        if not 0 < own <= LONGEST_WORD:
            assert group == -1
            continue
        exchanged += 1
        others = [divmod(p, frames) for p in found.places[found.first[group] :][: found.count[group]]]
        assert (session, frame) in others
        assert {(text[s, f], length(s, f)) for s, f in others} == {(text[session, frame], own)}
        assert [*found.since[session, frame : frame + own]] == [*range(own)]
        assert {*found.group[session, frame : frame + own]} == {group}
    assert exchanged == len(found.places) == found.count.sum() > 300
    assert (found.group >= 0).sum() == sum(length(*divmod(p, frames)) for p in found.places)


def test_no_sentence_that_is_kept_is_said(lines):
    others = [line.text for name in lines for line in lines[name] if line.role == takes.OTHER and name != takes.OWN_SET]
    assert len(others) > 10_000
    assert not [t for t in others if domain.is_held_out(t)]
    kept = itertools.islice(Chains(heard_words()).stream(5, held_out=True), 200)
    assert not {*kept} & {*others}


def voice_of(speaker: Speaker) -> tuple[str, str, str]:
    """Synthesiser, accent and variant; of others than espeak-ng, the voice."""
    if speaker.synthesiser != "espeak":
        return speaker.synthesiser, "", str(speaker.voice)
    accent, _, variant = speaker.voice.name.partition("+")
    return "espeak", accent, variant


def test_no_voice_that_is_kept_speaks(lines):
    heard = {voice_of(line.speaker) for line in lines[takes.HEARD_SET]}
    assert {name for name, _, _ in heard} == {"espeak", "flite"}
    assert not {variant for _, _, variant in heard} & {*HELD_OUT_VARIANTS, *HELD_OUT_FLITE_VOICES}
    assert HELD_OUT_ACCENT not in {accent for _, accent, _ in heard}
    assert {variant for name, _, variant in heard if name == "flite"} == {*flite.VOICES} - {*HELD_OUT_FLITE_VOICES}
    rng = random.Random(0)
    tested = [sample_speaker(rng, HELD_OUT) for _ in range(300)]
    assert not {voice_of(s)[2] for s in tested} & {v for _, _, v in heard}
    assert {sample_speaker(rng, LEFT_OUT).synthesiser for _ in range(50)} == {"festival"}


def test_every_word_is_read_aloud_by_both_voices(lines):
    """2,000 common words, each often enough to be learnt."""
    for number in (0, 1):
        counts = dict.fromkeys(words(), 0)
        for line in lines[takes.READERS_SET]:
            if line.number == number:
                for word in line.text.split():
                    counts[word] += 1
        assert min(counts.values()) >= 3
