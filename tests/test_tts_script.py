"""Text to entries: however the text is cut, and what cannot be spoken."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from speech_toys import TOKENIZER

from moshi_mlx.errors import InputError
from moshi_mlx.text_to_speech.checks import Speakable, check_entry, check_unfinished
from moshi_mlx.text_to_speech.script import ScriptReader
from moshi_mlx.text_to_speech.tts_model import Entry, StateMachine, TokenIds, script_to_entries

IDS = TokenIds(TOKENIZER.vocab_size() + 1)
TEXT = st.lists(
    st.sampled_from(
        ["hello", " ", "\n", "<break/>", "<speak>", "</", "time='3", "500ms'", "<b c", "=", '<break time="1s"/>', '<break time="0.5s">', "<break", ' time="', "2.s", '"', "/>", ">", "<",
         "wor", "ld!", ":", "<!-", "- x -->", "<?xml ", "?>", "&am", "p;", "=1s", "“1s”", "<x:y", "(", "\u2019", "\u00a0", "é", "<b", "r"]
    ),
    max_size=12,
).map("".join)  # fmt: skip


def reader(**options) -> ScriptReader:
    return ScriptReader(TOKENIZER, IDS, 12.5, **options)


def plain(entries: list[Entry]) -> list[tuple]:
    return [(e.tokens, e.text, e.padding) for e in entries]


@settings(max_examples=300, deadline=None)
@given(turns=st.lists(TEXT, max_size=3), cuts=st.lists(st.integers(0, 60)), between=st.integers(0, 3))
@example(turns=['hello<break  time="1s"  />world'], cuts=list(range(40)), between=1)
def test_entries_do_not_depend_on_how_text_is_cut(turns, cuts, between):
    at_once, whole = reader(padding_between=between), []
    for turn in turns:
        whole += [*at_once.feed(turn), *at_once.end_turn()]
    r, pieces = reader(padding_between=between), []
    for turn in turns:
        at = sorted({0, len(turn), *(c for c in cuts if c < len(turn))})
        for start, end in itertools.pairwise(at):
            pieces += r.feed(turn[start:end])
        pieces += r.end_turn()
    assert plain(pieces) == plain(whole)


def test_a_word_is_given_as_soon_as_it_is_complete():
    r = reader(multi_speaker=False)
    assert [e.text for e in r.feed("hello wor")] == ["hello"]
    assert [e.text for e in r.feed("ld")] == []
    assert [e.text for e in r.feed(" ")] == ["world"]
    assert [e.padding for e in r.feed('now<break time="1s"/>')] == [0, 12]


@pytest.mark.parametrize(
    "held",
    [
        "<",
        "</",
        "<bre",
        "<break",
        "<break ",
        "<break time='5",
        "<emphasis level",
        "<break time=",
        "<break time=5",
        "<break time=“1",
        "<x:",
        "<!",
        "<!-",
        "<!-- a: b",
        "<?xml version='1.0'",
        '<break time="1',
        '<break time="1s"',
        '<break time="1s" ',
    ],
)
def test_a_pause_is_waited_for(held):
    r = reader()
    assert r.feed("one " + held)[0].text == "one"
    assert r.pending == held


@pytest.mark.parametrize("text", ["< ", "a<5 ", "<break tim x", "<3 you ", "x < y > z ", "<-", '<b c="<"'])
def test_what_is_no_tag_is_text(text):
    r = reader()
    assert "".join(e.text for e in [*r.feed(text), *r.end_turn()]) == "".join(text.split())
    assert not r.left_out


@pytest.mark.parametrize(
    ("tag", "steps"),
    [
        ('<break time="1.5s"/>', 19), ('<break time="500ms"/>', 6), ("<break time='1s'>", 12), ("<break/>", 6), ("<break>", 6), ("<BREAK />", 6),
        ('<break strength="strong"/>', 12), ('<break strength="none"/>', 0), ('<break time=".2s" strength="weak"/>', 2),
        ('<break time = "2 s" />', 25), ("<break time=500ms/>", 6), ("<break time=“1s”/>", 12), ("<break time=”1s” >", 12),
        ("<Break Strength='X-Weak'/>", 1), ('<break\n time="0s"/>', 0), ('<break strength="weak" x:y="z"/>', 3),
    ],
)  # fmt: skip
def test_pauses(tag, steps):
    r = reader(multi_speaker=False)
    entries = [*r.feed(f"one {tag} two"), *r.end_turn()]
    assert [(e.text, e.padding) for e in entries] == [("one", 0), (tag, steps), ("two", 0)]
    assert not r.left_out


def test_other_markup_is_left_out_and_told():
    r = reader(multi_speaker=False)
    text = '<speak version="1.0"><p>one <emphasis level="strong">two</emphasis> <break time="soon"/><voice name="x"/>three</p></speak>'
    assert [e.text for e in [*r.feed(text), *r.end_turn()]] == ["one", "two", "three"]
    assert r.left_out == ['<emphasis level="strong">', "</emphasis>", '<break time="soon"/>', '<voice name="x"/>']


@pytest.mark.parametrize(
    ("text", "words", "left_out"),
    [
        # What stands around a text in a file of speech markup.
        (
            '<?xml version="1.0"?>\n<!-- a (short): text --><speak version="1.1" xmlns="http://www.w3.org/2001/10/synthesis" xml:lang="en">hi</speak>',
            ["hi"], [],
        ),
        ('<!DOCTYPE speak PUBLIC "x" "y">hi', ["hi"], []),
        ("<break></break>hi", ["<break>", "hi"], []),
        ("</break>hi", ["hi"], []),
        ('<lang xml:lang="fr">oui</lang>', ["oui"], ['<lang xml:lang="fr">', "</lang>"]),
        ('<x:y z="(a: b)">oui</X:Y>', ["oui"], ['<x:y z="(a: b)">', "</X:Y>"]),
        ("<b><i>one</i></b>", ["one"], ["<b>", "<i>", "</i>", "</b>"]),
        *((f'<break time="{t}"/>', [], [f'<break time="{t}"/>']) for t in ("1,5s", "-1s", "1e3ms", "1m", "", "\u0661s")),
        ("AT&amp;T &lt;break/&gt; &apos;n&apos; &quot;", ["AT&T", "<break/>", "'n'", '"'], []),
        # No entities, or not those of markup.
        ("R&D AT&T &ampx; &copy; &#27; &Amp;", ["R&D", "AT&T", "&ampx;", "&copy;", "&#27;", "&Amp;"], []),
        ("at 10:30 (or later): : ()", ["at", "10", "30", "or", "later"], []),
        ("<!-- no end", ["<!--", "no", "end"], []),
        ("<!> <?> <!-->", ["<!>", "<?>"], []),
    ],
)  # fmt: skip
def test_text_as_it_is_written(text, words, left_out):
    r = reader(multi_speaker=False)
    assert [e.text for e in [*r.feed(text), *r.end_turn()]] == words
    assert r.left_out == left_out


def test_scripts_of_the_published_package_stay_theirs():
    """There a break has one form, and everything else is words."""
    text = "<break time=1s/> <?xml?> &amp; <x:y> a</break>"
    texts = [e.text for e in script_to_entries(TOKENIZER, IDS, 12.5, [text])]
    assert texts == ["<break", "time=1s/>", "<?xml?>", "&amp;", "<x", "y>", "a</break>"]


def test_a_pause_of_any_number_of_digits():
    [entry] = script_to_entries(TOKENIZER, IDS, 12.5, [f'<break time="{"9" * 400}s"/>'])
    with pytest.raises(InputError, match="a pause may last up to 60 s"):
        check_entry(entry, 500)


def test_speakers_are_announced_once():
    entries = script_to_entries(TOKENIZER, IDS, 12.5, ["yes", "", "no", "maybe"])
    assert [e.tokens[0] for e in entries] == [IDS.main, TOKENIZER.encode("no")[0], IDS.other]


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_a_step_that_is_ready_does_what_it_would_do_with_all_the_text(ahead):
    """Words come one by one, as late as `may_consume` and `knows_enough` allow."""
    machine = StateMachine(IDS, ahead, 3, 2)
    entries = script_to_entries(
        TOKENIZER, IDS, 12.5, ['one two <break time="0.4s"/> three four five six'], padding_between=1
    )
    whole, late = machine.new_state(entries), machine.new_state([])
    waiting = list(entries)
    for step in range(80):
        while waiting and late.may_consume() and not late.knows_enough(ahead):
            late.entries.append(waiting.pop(0))
        sampled = (step * 7 % 5) and 3
        assert machine.process(step, late, sampled) == machine.process(step, whole, sampled), step
    assert late.end_step == whole.end_step is not None
    assert not waiting


def test_200_000_characters_are_read_at_once():
    text = "All work and no play makes a long text. " * 5000
    assert len(reader(multi_speaker=False).feed(text)) == 45000


def test_a_word_nobody_can_say():
    [entry] = script_to_entries(TOKENIZER, IDS, 12.5, ["a" * 5000])
    with pytest.raises(InputError, match="a word of 5000 characters or more .* separate words by spaces"):
        check_entry(entry, 500)
    with pytest.raises(InputError, match="separate words"):
        check_unfinished("a" * 5000, 500)
    check_entry(script_to_entries(TOKENIZER, IDS, 12.5, ["antidisestablishmentarianism"])[0], 500)


def test_a_pause_nobody_waits_for():
    [entry] = script_to_entries(TOKENIZER, IDS, 12.5, ['<break time="1000s"/>'])
    with pytest.raises(InputError, match="a pause of 1000 s; a pause may last up to 60 s"):
        check_entry(entry, 500)
    # Not "60 s; up to 60 s".
    [entry] = script_to_entries(TOKENIZER, IDS, 12.5, ['<break time="60.1s"/>'])
    with pytest.raises(InputError, match="a pause of 60.08 s; a pause may last up to 60 s"):
        check_entry(entry, 500)


def test_what_cannot_be_spoken_is_left_out_and_told():
    speakable = Speakable(TOKENIZER)
    assert speakable("Hi\x1b[31m \U0001f389\ufe0fthere\x00\n\tyou é 你") == "Hi[31m there\n\tyou é 你"
    assert speakable.report() == (
        "left out 4 characters that cannot be spoken: U+001B \U0001f389 \ufe0f U+0000; "
        "2 letters unknown to the model may sound wrong: é 你"
    )
    assert Speakable(TOKENIZER).report() is None
