"""Sessions of `/v1/realtime` event by event, without a socket: what is answered, what is refused, what goes to the model."""

from __future__ import annotations

import base64
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_mlx.engine.token_clock import UNGENERATED
from moshi_mlx.server.openai.errors import ApiError
from moshi_mlx.server.openai.realtime import beta, events
from moshi_mlx.server.openai.realtime.talking import Talk
from moshi_mlx.server.openai.realtime.transcribing import Transcription
from moshi_mlx.server.openai.realtime.translating import Translation
from moshi_mlx.server.openai.realtime.turns import STARTED, STOPPED, Turns, detector
from moshi_mlx.session.reply import Frame
from moshi_mlx.speech_to_text.live import LiveWord, LiveWordEnd
from moshi_mlx.speech_to_text.rows import HeardFrame, Marker

APPEND = "input_audio_buffer.append"


def sound(samples: int, value: float = 0.25) -> str:
    return base64.b64encode(np.full(samples, 32768 * value, "<i2").tobytes()).decode()


def kinds(told: list[dict]) -> list[str]:
    return [e["type"] for e in told]


def refused(session, event: dict) -> ApiError:
    with pytest.raises(ApiError) as e:
        session.receive(event)
    assert e.value.status == 400
    return e.value


class Row:
    """What a session asks of its stream."""

    def __init__(self):
        self.asked: list = []

    def flush(self):
        self.asked.append("flush")

    def mark(self, id: int):
        self.asked.append(id)

    def finish(self):
        self.asked.append("finish")


# Events ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"type": 3}', "[" * 100_000, '{"type": null}'])
def test_what_is_no_event(text):
    with pytest.raises(ApiError) as e:
        events.parse(text)
    assert e.value.status == 400


def test_errors_name_the_event_that_caused_them():
    told = events.error(events.unsupported("tools", "session.tools"), {"type": "x", "event_id": "mine"})
    assert told["error"] == {
        "message": "tools cannot be had of this model; the session goes on.",
        "type": "invalid_request_error", "param": "session.tools", "code": "unsupported", "event_id": "mine",
    }  # fmt: skip
    assert events.error(events.unsupported("tools"), {"event_id": 3})["error"]["event_id"] is None


def test_a_sample_may_lie_over_two_events():
    session = Talk("moshi")
    data = np.arange(-50, 50, dtype="<i2").tobytes()
    parts = [base64.b64encode(p).decode() for p in (data[:33], data[33:34], b"", data[34:])]
    pcm = np.concatenate([session.receive({"type": APPEND, "audio": p}).pcm for p in parts])
    np.testing.assert_array_equal(np.rint(pcm * 32768), np.arange(-50, 50))


@pytest.mark.parametrize("audio", [None, 3, "***", "abc", ["AAAA"]])
def test_bad_sound(audio):
    assert refused(Talk("moshi"), {"type": APPEND, "audio": audio}).param == "audio"


WORDS = st.sampled_from(
    [
        "type", "session", "audio", "input", "output", "format", "rate", "voice", "id", "instructions", "tools", "output_modalities",
        "transcription", "turn_detection", "model", "language", "prompt", "eagerness", "silence_duration_ms", "realtime", "server_vad",
        "semantic_vad", "audio/pcm", "text", "modalities", "input_audio_format", "pcm16", "input_audio_transcription", "\ud800",
    ]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=6),
    max_leaves=20,
)
KINDS = st.sampled_from(
    [
        "session.update", "transcription_session.update", "input_audio_buffer.append", "input_audio_buffer.commit",
        "input_audio_buffer.clear", "response.create", "response.cancel", "conversation.item.create", "conversation.item.truncate",
        "session.input_audio_buffer.append", "session.close", "nothing",
    ]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    kind=KINDS,
    event=st.dictionaries(WORDS, VALUES, max_size=4),
    session=VALUES | st.dictionaries(WORDS, VALUES, max_size=5),
)
def test_whatever_a_client_sends(kind, event, session):
    """It is refused or answered, in the names of today and in those of the beta, and can be sent."""
    event = {**event, "type": kind, "session": session}
    sessions = [Talk("moshi"), Talk("p", True, lambda *how: None), Heard().session, Translation("hibiki", Row())]
    statuses = {400}
    for asked, old in itertools.product(sessions, (False, True)):
        old = old and asked.had_beta
        try:
            answers = asked.receive(beta.to_current(event) if old else event).answers
        except ApiError as e:
            statuses.add(e.status)
            answers = [events.error(e, event)]
        for answer in answers:
            json.dumps(beta.from_current(answer) if old else answer).encode()
    assert statuses == {400}


# Talks ----------------------------------------------------------------------------------------------------------------


def frame(index: int, text: str = "", loud: float = 0.25, generated: bool = True) -> Frame:
    token = 5 if generated else UNGENERATED
    return Frame(np.full(1920, loud, np.float32), text, token, np.zeros(8, np.int32), index, 0.08 * index)


def heard(told: list[dict]) -> float:
    (delta,) = (e["delta"] for e in told if e["type"] == "response.output_audio.delta")
    pcm = np.frombuffer(base64.b64decode(delta), "<i2")
    assert len(pcm) == 1920
    return float(np.abs(pcm).max() / 32768)


def test_one_response_that_never_ends():
    session = Talk("moshi")
    (created,) = session.begin()
    assert created["type"] == "session.created"
    assert created["session"]["type"] == "realtime"
    assert created["session"]["audio"]["output"]["format"] == {"type": "audio/pcm", "rate": 24000}
    told = [session.put(frame(i, text)) for i, text in enumerate([" Hello", "", " there"])]
    assert kinds(told[0]) == [
        "response.created", "response.output_item.added", "conversation.item.added", "response.content_part.added",
        "response.output_audio.delta", "response.output_audio_transcript.delta",
    ]  # fmt: skip
    assert kinds(told[1]) == ["response.output_audio.delta"]
    deltas = [e for each in told for e in each if e["type"].endswith("delta")]
    assert len({(e["response_id"], e["item_id"], e["output_index"], e["content_index"]) for e in deltas}) == 1
    assert deltas[0]["response_id"] == told[0][0]["response"]["id"]
    assert "".join(e["delta"] for e in deltas if "transcript" in e["type"]) == "Hello there"
    assert heard(told[0]) == 0.25


def test_silence_while_the_delays_fill():
    session = Talk("moshi")
    assert heard(session.put(frame(0, generated=False))) == 0
    assert heard(session.put(frame(1))) == 0.25


def test_turns_change_nothing():
    session = Talk("moshi")
    committed = session.receive({"type": "input_audio_buffer.commit"})
    assert kinds(committed.answers) == ["input_audio_buffer.committed"]
    assert kinds(session.receive({"type": "input_audio_buffer.clear"}).answers) == ["input_audio_buffer.cleared"]
    cleared = session.receive({"type": "output_audio_buffer.clear"})
    assert kinds(cleared.answers) == ["output_audio_buffer.cleared"]
    assert kinds(session.put(frame(0)))[-1] == "response.output_audio.delta"


def test_a_response_that_is_asked_for():
    """Before the one there is: it begins. Then: the error for which clients wait, and all goes on."""
    session = Talk("moshi")
    asked = {"type": "response.create", "event_id": "mine", "response": {"metadata": {"client_event_id": "mine"}}}
    begun = session.receive(asked).answers
    assert kinds(begun) == [
        "response.created", "response.output_item.added", "conversation.item.added", "response.content_part.added",
    ]  # fmt: skip
    assert begun[0]["response"]["metadata"] == {"client_event_id": "mine"}
    told = session.put(frame(0, " Hello"))
    assert kinds(told) == ["response.output_audio.delta", "response.output_audio_transcript.delta"]
    assert told[0]["response_id"] == begun[0]["response"]["id"]
    e = refused(session, asked)
    assert e.code == "conversation_already_has_active_response"
    assert "speaks by itself" in e.message
    assert kinds(session.put(frame(1))) == ["response.output_audio.delta"]
    assert session.end(None)[-1]["response"]["metadata"] == {"client_event_id": "mine"}


@pytest.mark.parametrize(
    ("response", "param"),
    [(3, "response"), ({"metadata": 3}, "response.metadata"), ({"metadata": {"a": 1}}, "response.metadata")],
)
def test_a_response_that_is_asked_for_badly(response, param):
    session = Talk("moshi")
    assert refused(session, {"type": "response.create", "response": response}).param == param
    assert kinds(session.put(frame(0)))[0] == "response.created"


@pytest.mark.parametrize("kind", ["response.cancel", "conversation.item.truncate"])
def test_a_reply_that_is_broken_off_is_heard_again_after_a_pause(kind):
    session = Talk("moshi")
    session.put(frame(0, " one"))
    answers = session.receive({"type": kind, "audio_end_ms": 40, "item_id": "x"}).answers
    if kind == "response.cancel":
        assert answers == []
    else:
        assert (answers[0]["type"], answers[0]["audio_end_ms"]) == ("conversation.item.truncated", 40)
    said = [session.put(frame(i, " two")) for i in range(1, 4)]
    assert [heard(t) for t in said] == [0, 0, 0]
    assert all(len(t) == 1 for t in said)
    for i in range(4, 8):
        assert heard(session.put(frame(i, loud=0.001))) == 0
    again = session.put(frame(8, " three"))
    assert heard(again) == 0.25
    assert again[-1]["delta"] == " three"


def test_text_alone():
    session = Talk("moshi")
    answers = session.receive(
        {"type": "session.update", "session": {"type": "realtime", "output_modalities": ["text"]}}
    )
    assert answers.answers[0]["session"]["output_modalities"] == ["text"]
    told = session.put(frame(0, " Hello"))
    assert kinds(told)[-1] == "response.output_text.delta"
    assert not any("audio" in e["type"] for e in told)
    assert session.end(None)[0] == {
        "type": "response.output_text.done", **{k: told[-1][k] for k in ("response_id", "item_id", "output_index", "content_index")},
        "text": "Hello",
    }  # fmt: skip


def test_what_cannot_be_had_is_told_and_the_rest_done():
    session = Talk("moshi")
    update = {"type": "realtime", "instructions": "Be kind.", "tools": [{"type": "function", "name": "x"}]}
    told = session.receive({"type": "session.update", "event_id": "mine", "session": update}).answers
    assert kinds(told) == ["session.updated", "error"]
    assert told[0]["session"]["instructions"] == ""
    assert (told[1]["error"]["code"], told[1]["error"]["event_id"]) == ("unsupported", "mine")
    for kind in ("conversation.item.create", "conversation.item.delete"):
        assert refused(session, {"type": kind}).code == "unsupported"
    assert refused(session, {"type": "session.make_tea"}).code == "invalid_value"


BAD_UPDATES = {
    "none": (None, "session"),
    "list": ([], "session"),
    "kind": ({"type": "transcription"}, "session.type"),
    "audio": ({"audio": 3}, "session.audio"),
    "input": ({"audio": {"input": []}}, "session.audio.input"),
    "format": ({"audio": {"input": {"format": {"type": "audio/pcmu"}}}}, "session.audio.input.format"),
    "rate": ({"audio": {"output": {"format": {"type": "audio/pcm", "rate": 16000}}}}, "session.audio.output.format"),
    "modality": ({"output_modalities": ["smell"]}, "session.output_modalities"),
    "modalities": ({"output_modalities": "text"}, "session.output_modalities"),
    "instructions": ({"instructions": 3}, "session.instructions"),
    "voice": ({"audio": {"output": {"voice": 3}}}, "session.audio.output.voice"),
}


@pytest.mark.parametrize("case", BAD_UPDATES)
def test_bad_updates(case):
    session, param = BAD_UPDATES[case]
    talk = Talk("moshi")
    assert refused(talk, {"type": "session.update", "session": session}).param == param
    assert talk.begin()[0]["session"]["output_modalities"] == ["audio"]


def test_a_role_and_a_voice_before_the_talk_begins():
    asked = []
    session = Talk("personaplex", True, lambda *how: asked.append(how))
    update = {"instructions": "You are a sailor.", "audio": {"output": {"voice": "NATF2"}}}
    told = session.receive({"type": "session.update", "session": update}).answers[0]["session"]
    assert (told["instructions"], told["audio"]["output"]["voice"]) == ("You are a sailor.", "NATF2")
    session.receive({"type": "session.update", "session": {"audio": {"output": {"voice": "alloy"}}}})
    session.receive({"type": "session.update", "session": {"output_modalities": ["audio"]}})
    assert asked == [("NATF2", "You are a sailor."), (None, "You are a sailor.")]
    session.receive({"type": APPEND, "audio": sound(1920)})
    late = {"type": "session.update", "session": {"instructions": "You are a pirate."}}
    assert refused(session, late).code == "cannot_update_voice"
    assert len(asked) == 2


def test_a_model_that_stops():
    session = Talk("moshi")
    session.put(frame(0, " Hello"))
    told = session.end(ApiError(503, "it stopped.", code="model_stopped"))
    assert kinds(told) == [
        "response.output_audio.done", "response.output_audio_transcript.done", "response.content_part.done",
        "response.output_item.done", "response.done", "error",
    ]  # fmt: skip
    assert told[4]["response"]["status"] == "failed"
    assert told[4]["response"]["status_details"]["error"]["code"] == "model_stopped"
    assert told[4]["response"]["output"][0]["content"] == [{"type": "output_audio", "transcript": "Hello"}]
    assert told[5]["error"]["type"] == "server_error"
    assert kinds(Talk("moshi").end(ApiError(503, "it stopped."))) == ["error"]
    assert Talk("moshi").end(None) == []


# Transcription --------------------------------------------------------------------------------------------------------


class Figures:
    """Says what a test wants to be true of every frame."""

    def __init__(self):
        self.sure = 1.0
        self.samples = 0

    def hear(self, pcm):
        self.samples += len(pcm)

    def of(self, frame):
        return [self.sure] * 4


class Heard:
    """A transcription session, and a model for it."""

    def __init__(self, **session):
        self.row, self.figures, self.index = Row(), Figures(), 0
        self.session = Transcription("stt", self.row, self.figures, **session)

    def frames(self, n: int = 1, *words: str, late: int = 0, paused: float | None = None) -> list[dict]:
        """`n` frames, the last with `words` that were said `late` frames ago."""
        self.append(n)
        return self.hears(n, *words, late=late, paused=paused)

    def append(self, n: int):
        """`n` frames that wait to be heard."""
        self.session.receive({"type": APPEND, "audio": sound(n * 1920)})

    def hears(self, n: int, *words: str, late: int = 0, paused: float | None = None) -> list[dict]:
        """`frames` of what was appended before."""
        told = []
        self.figures.sure = self.figures.sure if paused is None else paused
        for i in range(n):
            start = 0.08 * (self.index - late)
            found = [e for w in words for e in (LiveWord(w, start), LiveWordEnd(start + 0.2))]
            told += self.session.put(HeardFrame(self.index, np.zeros(0, np.float32), found if i == n - 1 else []))
            self.index += 1
        return told

    def client(self, kind: str) -> list[dict]:
        """What `commit` or `clear` is answered."""
        return self.session.receive({"type": f"input_audio_buffer.{kind}"}).answers

    def until_the_client_commits(self) -> Heard:
        """Without pauses."""
        self.session.receive({"type": "session.update", "session": {"audio": {"input": {"turn_detection": None}}}})
        return self

    def fetched(self, *words: str) -> list[dict]:
        """Words of silence that was put in."""
        return self.session.put(HeardFrame(None, np.zeros(0, np.float32), [LiveWord(w, 0.0) for w in words]))


def test_items_end_with_pauses():
    s = Heard()
    assert s.session.begin()[0]["session"]["type"] == "transcription"
    assert s.frames(20) == []
    told = s.frames(1, "Hello") + s.frames(5, "my", paused=0.1)
    assert kinds(told) == [
        "input_audio_buffer.speech_started",
        *["conversation.item.input_audio_transcription.delta"] * 2,
    ]
    assert told[0]["audio_start_ms"] == 1600
    assert [e.get("delta") for e in told] == [None, "Hello", " my"]
    assert s.row.asked == []
    told += s.frames(4, paused=0.9)
    assert kinds(told[3:]) == [
        "input_audio_buffer.speech_stopped", "input_audio_buffer.committed", "conversation.item.added",
    ]  # fmt: skip
    assert told[3]["audio_end_ms"] == 80 * 28
    assert s.row.asked == ["flush", 1]
    told += s.fetched("friend") + s.session.put(Marker(1))
    assert told[-2]["delta"] == " friend"
    assert kinds(told)[-1] == "conversation.item.input_audio_transcription.completed"
    assert told[-1]["transcript"] == "Hello my friend"
    assert told[-1]["usage"] == {"type": "duration", "seconds": 0.64}
    assert len({e.get("item_id") or e["item"]["id"] for e in told}) == 1
    again = s.frames(1, "Yes", paused=0.1) + s.frames(2, paused=0.9) + s.session.put(Marker(2))
    assert again[-1]["transcript"] == "Yes"
    assert again[3]["previous_item_id"] == told[0]["item_id"]
    assert again[0]["item_id"] != told[0]["item_id"]


def test_speech_begins_before_its_first_word():
    s = Heard()
    s.frames(20)
    assert kinds(s.frames(3, paused=0.2)) == ["input_audio_buffer.speech_started"]
    # Nothing was said after all.
    assert kinds(s.frames(2, paused=0.9))[0] == "input_audio_buffer.speech_stopped"
    assert s.session.put(Marker(1))[0]["transcript"] == ""


def test_a_client_that_says_itself_when_a_turn_ends():
    s = Heard()
    update = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}
    told = s.session.receive({"type": "session.update", "session": update}).answers
    assert told[0]["session"]["audio"]["input"]["turn_detection"] is None
    assert refused(s.session, {"type": "input_audio_buffer.commit"}).code == "input_audio_buffer_commit_empty"
    assert kinds(s.frames(30, "Hello", paused=0.1)) == ["conversation.item.input_audio_transcription.delta"]
    assert s.frames(10, paused=1.0) == []
    told = s.session.receive({"type": "input_audio_buffer.commit"}).answers
    assert kinds(told) == ["input_audio_buffer.committed", "conversation.item.added"]
    assert s.row.asked == ["flush", 1]
    # What comes before the mark belongs to it, what comes after does not.
    assert s.fetched("there")[0]["item_id"] == told[0]["item_id"]
    assert s.session.put(Marker(1))[0]["transcript"] == "Hello there"
    assert s.frames(1, "Yes")[0]["item_id"] != told[0]["item_id"]
    assert s.session.receive({"type": "input_audio_buffer.clear"}).answers[0]["type"] == "input_audio_buffer.cleared"
    assert s.session.put(Marker(2)) == []
    s.frames(1, "No")
    s.session.receive({"type": "input_audio_buffer.commit"})
    assert s.session.put(Marker(3))[0]["transcript"] == "No"


def test_words_of_sound_that_was_cleared_before_it_was_heard():
    s = Heard().until_the_client_commits()
    s.append(20)
    first = s.client("commit")[0]["item_id"]
    s.append(20)
    assert s.client("clear") == [{"type": "input_audio_buffer.cleared"}]
    s.append(20)
    second = s.client("commit")[0]
    assert second["previous_item_id"] == first
    assert s.row.asked == ["flush", 1, "flush", 2, "flush", 3]
    told = s.hears(20, "one", late=6) + s.fetched("two") + s.session.put(Marker(1))
    told += s.hears(20, "gone", late=6) + s.fetched("too") + s.session.put(Marker(2))
    told += s.hears(20, "three", late=6) + s.fetched("four") + s.session.put(Marker(3))
    assert [e["item_id"] for e in told] == [first] * 3 + [second["item_id"]] * 3
    assert [e["transcript"] for e in told if "transcript" in e] == ["one two", "three four"]
    assert [e["usage"]["seconds"] for e in told if "usage" in e] == [1.6, 1.6]


def test_words_of_sound_that_was_cleared_while_they_were_understood():
    s = Heard().until_the_client_commits()
    begun = s.frames(10, "what")
    assert begun[0]["delta"] == "what"
    s.client("clear")
    # By when they were said, where the mark is not back yet, and for as long as a word may be late.
    assert s.fetched("is") + s.frames(1, "your", late=4) == []
    later = s.frames(12, "Yes")
    assert later[0]["delta"] == "Yes"
    assert s.session.put(Marker(1)) == []
    assert s.client("commit")[0]["item_id"] == later[0]["item_id"] != begun[0]["item_id"]
    done = s.session.put(Marker(2))
    assert [(e["transcript"], e["usage"]["seconds"]) for e in done] == [("Yes", 1.04)]


def test_clearing_nothing_asks_nothing_of_the_model():
    s = Heard()
    assert kinds(s.client("clear")) == ["input_audio_buffer.cleared"]
    s.frames(20, paused=1.0)
    for _ in range(3):
        assert kinds(s.client("clear")) == ["input_audio_buffer.cleared"]
    assert s.row.asked == ["flush", 1]
    assert refused(s.session, {"type": "input_audio_buffer.commit"}).code == "input_audio_buffer_commit_empty"


@pytest.mark.parametrize("backlog", [0, 5, 20])
def test_speech_that_was_cleared_is_no_turn(backlog):
    """Of the 20 frames that are cleared so many have not been heard yet."""
    s = Heard()
    s.frames(20, paused=1.0)
    begun = s.frames(20 - backlog, paused=0.1)
    assert kinds(begun) == ["input_audio_buffer.speech_started"] * (backlog < 20)
    s.append(backlog)
    s.client("clear")
    # The figures say some time longer that somebody speaks.
    assert s.hears(backlog, paused=0.1) + s.fetched("gone") + s.session.put(Marker(1)) == []
    assert s.frames(3, paused=0.1) + s.frames(1, paused=0.5) + s.frames(20, paused=1.0) == []
    told = s.frames(3, paused=0.1) + s.frames(1, "Yes") + s.frames(2, paused=1.0) + s.session.put(Marker(2))
    assert [e.get("audio_start_ms") or e.get("audio_end_ms") for e in told if "speech" in e["type"]] == [5200, 5600]
    assert len({e.get("item_id") or e["item"]["id"] for e in told}) == 1
    assert told[0]["item_id"] not in [e["item_id"] for e in begun]
    assert told[-1]["transcript"] == "Yes"
    assert [e["previous_item_id"] for e in told if e["type"].endswith("committed")] == [None]


def test_speech_that_was_committed_before_it_was_heard_is_no_other_turn():
    s = Heard()
    s.frames(20, paused=1.0)
    s.append(20)
    told = s.client("commit")
    told += s.hears(19, "what", late=6, paused=0.1) + s.hears(1) + s.fetched("is") + s.session.put(Marker(1))
    # Its end is told by frames after it.
    told += s.frames(3, paused=0.1) + s.frames(40, paused=1.0)
    assert kinds(told) == [
        "input_audio_buffer.committed", "conversation.item.added",
        *["conversation.item.input_audio_transcription.delta"] * 2, "conversation.item.input_audio_transcription.completed",
    ]  # fmt: skip
    assert told[-1]["transcript"] == "what is"
    assert len({e.get("item_id") or e["item"]["id"] for e in told}) == 1
    assert kinds(s.frames(2, paused=0.1)) == ["input_audio_buffer.speech_started"]


def test_a_commit_ends_the_speech_under_way_and_more_words_are_another_turn():
    s = Heard()
    s.frames(20, paused=1.0)
    first = s.frames(10, "what", paused=0.1) + s.client("commit")
    assert [k.split(".")[-1] for k in kinds(first)] == [
        "speech_started", "delta", "speech_stopped", "committed", "added",
    ]  # fmt: skip
    assert first[2]["audio_end_ms"] == 80 * 30
    assert s.session.put(Marker(1))[0]["transcript"] == "what"
    second = s.frames(10, "is", late=6, paused=0.1)
    assert [(e.get("audio_start_ms"), e.get("delta")) for e in second] == [(80 * 33, None), (None, "is")]
    second += s.frames(2, paused=1.0) + s.session.put(Marker(2))
    assert second[-1]["usage"]["seconds"] == pytest.approx(0.08 * (42 - 33))
    assert [len({e.get("item_id") or e["item"]["id"] for e in told}) for told in (first, second)] == [1, 1]


def test_what_was_appended_after_a_pause_can_be_committed():
    s = Heard()
    s.frames(20, "Yes", paused=1.0)
    s.append(30)
    assert kinds(s.hears(2, paused=1.0))[1] == "input_audio_buffer.committed"
    assert kinds(s.client("commit")) == ["input_audio_buffer.committed", "conversation.item.added"]
    assert refused(s.session, {"type": "input_audio_buffer.commit"}).code == "input_audio_buffer_commit_empty"


def test_two_commits_before_the_first_is_answered():
    s = Heard()
    s.session.receive({"type": "session.update", "session": {"audio": {"input": {"turn_detection": None}}}})
    s.frames(1, "one")
    first = s.session.receive({"type": "input_audio_buffer.commit"}).answers[0]["item_id"]
    s.session.receive({"type": APPEND, "audio": sound(1920)})
    second = s.session.receive({"type": "input_audio_buffer.commit"}).answers[0]["item_id"]
    done = s.session.put(Marker(1)) + s.fetched("two") + s.session.put(Marker(2))
    assert [(e["item_id"], e.get("transcript") or e["delta"]) for e in done] == [
        (first, "one"),
        (second, "two"),
        (second, "two"),
    ]


def test_updates_of_a_transcription():
    def check_model(name):
        if name != "whisper-1":
            raise ApiError(400, "there is no such model.", param="model", code="model_not_found")

    s = Heard(check_model=check_model)
    heard = {
        "transcription": {"model": "whisper-1", "language": "fr", "prompt": "names"},
        "format": {"type": "audio/pcm", "rate": 24000},
    }
    told = s.session.receive(
        {"type": "session.update", "session": {"type": "transcription", "audio": {"input": heard}}}
    )
    found = told.answers[0]["session"]["audio"]["input"]
    assert (found["transcription"]["language"], found["transcription"]["prompt"]) == ("fr", "names")
    for session, param in (
        ({"type": "realtime"}, "session.type"),
        ({"audio": {"input": {"transcription": {"model": "gpt-5"}}}}, "model"),
        ({"audio": {"input": {"transcription": {"model": 3}}}}, "session.audio.input.transcription.model"),
        ({"audio": {"input": {"turn_detection": {"type": "telepathy"}}}}, "session.audio.input.turn_detection"),
        ({"audio": {"input": {"format": {"type": "audio/pcma"}}}}, "session.audio.input.format"),
    ):
        assert refused(s.session, {"type": "session.update", "session": session}).param == param
    assert refused(s.session, {"type": "response.create"}).code == "invalid_value"


def test_turns():
    turns = Turns()
    # The first second says nothing, and one frame is a slip.
    assert [turns.feed([0.0] * 4, False) for _ in range(12)] == [None] * 12
    assert turns.feed([0.0] * 4, False) is None
    assert turns.feed([0.5] * 4, False) is None
    assert [turns.feed([0.0] * 4, False) for _ in range(2)] == [None, STARTED]
    assert [turns.feed([p] * 4, False) for p in (0.9, 0.5, 0.9)] == [None] * 3
    assert turns.feed([0.9] * 4, True) is None
    assert [turns.feed([0.9] * 4, False) for _ in range(2)] == [None, STOPPED]
    assert turns.feed([0.9] * 4, True) == STARTED


def test_turns_that_the_client_ends():
    turns = Turns()
    turns.feed([0.0] * 4, True)
    turns.cut()
    assert not turns.speaking
    assert [turns.feed([p] * 4, False) for p in (0.0, 0.0, 0.0, 0.5, 0.9, 0.9)] == [None] * 6
    assert [turns.feed([0.0] * 4, False) for _ in range(12)].count(STARTED) == 1
    turns.cut()
    assert turns.feed([0.0] * 4, True) == STARTED
    assert [turns.feed([0.9] * 4, False) for _ in range(2)] == [None, STOPPED]


def test_which_figure_ends_a_turn():
    def of(**wanted):
        found = detector({"type": "server_vad", **wanted})
        assert found is not None
        return found.head

    assert detector(None) is None
    assert [of(), of(silence_duration_ms=200), of(silence_duration_ms=800), of(silence_duration_ms=5000)] == [
        2,
        0,
        1,
        3,
    ]
    assert [of(type="semantic_vad", eagerness=e) for e in ("low", "auto", "high")] == [3, 2, 1]
    # Models with fewer figures give what they have.
    assert Turns(3).feed([1.0, 1.0, 1.0], True) == STARTED


# Translation ----------------------------------------------------------------------------------------------------------


def test_translation():
    row = Row()
    session = Translation("hibiki", row)
    (created,) = session.begin()
    assert created["session"]["type"] == "translation"
    assert created["session"]["audio"]["output"]["language"] == "en"
    pcm = session.receive({"type": "session.input_audio_buffer.append", "audio": sound(4800)}).pcm
    assert len(pcm) == 4800
    assert session.put(frame(0, generated=False)) == []
    told = session.put(frame(1, " Good")) + session.put(frame(2, " day"))
    assert kinds(told) == ["session.output_audio.delta", "session.output_transcript.delta"] * 2
    assert (told[0]["sample_rate"], told[0]["channels"], told[0]["format"], told[0]["elapsed_ms"]) == (
        24000,
        1,
        "pcm16",
        80,
    )
    assert told[1]["delta"] + told[3]["delta"] == "Good day"
    assert session.receive({"type": "session.close"}).answers == []
    assert row.asked == ["finish"]
    assert refused(session, {"type": "session.input_audio_buffer.append", "audio": sound(1)}).code == "session_closing"
    assert session.end(None) == [{"type": "session.closed"}]
    assert kinds(session.end(ApiError(503, "stopped"))) == ["error"]


def test_updates_of_a_translation():
    session = Translation("hibiki", Row())

    def update(audio: dict) -> list[dict]:
        return session.receive({"type": "session.update", "session": {"audio": audio}}).answers

    assert kinds(update({"output": {"language": "en-US"}})) == ["session.updated"]
    told = update({"input": {"transcription": {"model": "whisper-1"}}})
    assert kinds(told) == ["session.updated", "error"]
    assert told[1]["error"]["code"] == "unsupported"
    for language in ("fr", 3):
        wanted = {"type": "session.update", "session": {"audio": {"output": {"language": language}}}}
        assert refused(session, wanted).param == "session.audio.output.language"
    assert refused(session, {"type": "response.create"}).code == "invalid_value"


# Names from before ----------------------------------------------------------------------------------------------------


def test_who_wants_the_names_from_before():
    assert beta.is_wanted("realtime=v1", "")
    assert beta.is_wanted("assistants=v2, realtime=v1", "")
    assert beta.is_wanted("", "realtime, openai-insecure-api-key.x, openai-beta.realtime-v1")
    assert not beta.is_wanted("realtime=v2", "realtime")


def test_a_talk_with_the_names_from_before():
    session = Talk("personaplex", True)
    created = beta.from_current(session.begin()[0])["session"]
    assert (created["modalities"], created["voice"]) == (["audio", "text"], "default")
    assert (created["input_audio_format"], created["output_audio_format"]) == ("pcm16", "pcm16")
    assert "audio" not in created
    update = {
        "type": "session.update",
        "session": {
            "modalities": ["text"], "instructions": "You are a sailor.", "voice": "NATF2", "input_audio_format": "pcm16",
            "turn_detection": {"type": "server_vad"}, "input_audio_transcription": None, "temperature": 0.8,
        },
    }  # fmt: skip
    told = beta.from_current(session.receive(beta.to_current(update)).answers[0])
    assert told["type"] == "session.updated"
    assert (told["session"]["modalities"], told["session"]["voice"]) == (["text"], "NATF2")
    assert told["session"]["instructions"] == "You are a sailor."
    update["session"] = {"input_audio_format": "g711_ulaw"}
    assert refused(session, beta.to_current(update)).param == "session.audio.input.format"
    session = Talk("moshi")
    told = [beta.from_current(e) for e in session.put(frame(0, " Hello")) + session.end(None)]
    assert kinds(told) == [
        "response.created", "response.output_item.added", "conversation.item.created", "response.content_part.added",
        "response.audio.delta", "response.audio_transcript.delta",
        "response.audio.done", "response.audio_transcript.done", "response.content_part.done", "response.output_item.done", "response.done",
    ]  # fmt: skip
    assert told[0]["response"]["modalities"] == ["audio", "text"]
    assert told[-1]["response"]["output"][0]["content"] == [{"type": "audio", "transcript": "Hello"}]
    assert json.loads(json.dumps(told)) == told


def test_a_transcription_with_the_names_from_before():
    s = Heard()
    assert beta.from_current(s.session.begin()[0])["type"] == "transcription_session.created"
    update = {
        "type": "transcription_session.update",
        "session": {"turn_detection": None, "input_audio_format": "pcm16"},
    }
    told = beta.from_current(s.session.receive(beta.to_current(update)).answers[0])
    assert told["type"] == "transcription_session.updated"
    assert told["session"]["turn_detection"] is None
    current = {"type": "session.update", "session": {"type": "transcription", "audio": {"input": {}}}}
    assert beta.to_current(current) == current
    assert beta.to_current({"type": "session.update", "session": 3})["session"] == 3
