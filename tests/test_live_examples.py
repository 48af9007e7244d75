"""The examples of embedding, run as they stand."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
FRAME = 1920


@pytest.fixture(autouse=True)
def paths(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.syspath_prepend(str(EXAMPLES / "macos_app"))


@pytest.fixture
def speech(tmp_path, question) -> Path:
    pcm, rate = soundfile.read(question, dtype="float32")
    soundfile.write(tmp_path / "speech.wav", pcm[rate : 3 * rate], rate)
    return tmp_path / "speech.wav"


def test_minimal_loop(tiny_checkpoint, speech, tmp_path, capsys):
    import minimal_loop

    assert minimal_loop.main([str(speech), str(tmp_path / "o.wav"), "--model", str(tiny_checkpoint)]) == 0
    assert soundfile.info(tmp_path / "o.wav").frames == 25 * FRAME
    assert capsys.readouterr().out.strip()


def test_asyncio(tiny_checkpoint, speech, capsys):
    import asyncio_talk

    assert asyncio_talk.main([str(speech), "--model", str(tiny_checkpoint)]) == 0
    assert len(capsys.readouterr().out.split()) > 3


def test_asyncio_when_the_model_fails(tiny_checkpoint, speech, monkeypatch):
    import asyncio_talk

    def broken(self, pcm, ended=False):
        raise ZeroDivisionError("of the model's thread")

    monkeypatch.setattr(asyncio_talk.Session, "step", broken)
    with pytest.raises(ZeroDivisionError, match="of the model's thread"):
        asyncio_talk.main([str(speech), "--model", str(tiny_checkpoint)])


def test_fork(tiny_checkpoint, speech, tmp_path, capsys):
    import fork

    args = [str(speech), str(tmp_path / "replies"), "--model", str(tiny_checkpoint), "--seconds", "1", "--forks", "3"]
    assert fork.main(args) == 0
    answers = [soundfile.read(tmp_path / "replies" / f"answer-{i}.wav")[0] for i in range(3)]
    assert all(len(a) == 12 * FRAME for a in answers)
    assert not np.array_equal(answers[0], answers[1])
    assert "told again is the same" in capsys.readouterr().out


def dialogue(tiny_checkpoint, tmp_path, name: str, *args: str) -> np.ndarray:
    import moshi_talks_to_moshi

    output = tmp_path / f"{name}.wav"
    code = moshi_talks_to_moshi.main([str(output), "--model", str(tiny_checkpoint), "--seconds", "2", *args])
    assert code == 0
    both, rate = soundfile.read(output, dtype="float32")
    assert rate == 24000
    return both


@pytest.mark.parametrize("exchange", ["sound", "tokens"])
def test_two_models_in_conversation(tiny_checkpoint, tmp_path, speech, exchange):
    """Deterministic when greedy; both speak; what one hears changes what it says."""
    options = ("--greedy", "--exchange", exchange)
    both = dialogue(tiny_checkpoint, tmp_path, "a", *options)
    assert both.shape == (25 * FRAME, 2)
    assert np.abs(both).max(axis=0).min() > 0.01
    np.testing.assert_array_equal(both, dialogue(tiny_checkpoint, tmp_path, "b", *options))
    greeted = dialogue(tiny_checkpoint, tmp_path, "c", *options, "--line", str(speech))
    assert not np.array_equal(both, greeted)


def test_each_hears_the_other_and_not_itself(tiny_checkpoint):
    """A frame later, sound for sound."""
    from moshi_talks_to_moshi import by_sound

    class Side:
        def __init__(self, name):
            self.name, self.frames, self.heard = name, 0, []

        def step(self, pcm):
            self.heard.append(pcm.copy())
            self.frames += 1
            return type("F", (), {"pcm": np.full(FRAME, self.frames * self.name, np.float32), "text": ""})

    a, b = Side(1), Side(100)
    exchange = by_sound(a, b, np.full((2, FRAME), 0.5, np.float32))
    for _ in range(5):
        next(exchange)
    assert [h[0] for h in a.heard] == [0.5, 0.5, 200, 300, 400]
    assert [h[0] for h in b.heard] == [0, 1, 2, 3, 4]


def test_silence_of_both_ends_the_dialogue(tmp_path):
    from moshi_talks_to_moshi import write

    def silence():
        for i in range(100):
            pcm = np.full(FRAME, 0.1 if i < 5 else 0.0, np.float32)
            yield pcm, "", pcm, ""

    assert write(silence(), str(tmp_path / "o.wav"), seconds=60, give_up=1.0) == pytest.approx(18 * 0.08)


def test_prompts_need_sound(tiny_checkpoint, tmp_path):
    import moshi_talks_to_moshi

    from moshi_mlx.errors import InputError

    args = [str(tmp_path / "o.wav"), "--model", str(tiny_checkpoint), "--exchange", "tokens", "--voice", "a", "b"]
    with pytest.raises(InputError, match="need --exchange sound"):
        moshi_talks_to_moshi.main(args)


# The macOS application -------------------------------------------------------------------------------------------------


class Told:
    def __init__(self):
        self.events: list[tuple[str, dict]] = []

    def __call__(self, kind, **fields):
        self.events.append((kind, fields))

    def states(self) -> list[str]:
        return [f["state"] for k, f in self.events if k == "state"]


def test_the_applications_talk(tiny_checkpoint, speech, tmp_path):
    """Everything but the window: loaded, talked and ended on its own thread."""
    from talk import Talk

    told = Told()
    sides = {"input_file": str(speech), "output_file": str(tmp_path / "o.wav"), "max_lag": 4.0}
    talk = Talk(told, sides=sides, model=tiny_checkpoint)
    talk.start()
    talk.start()
    talk.wait(300)
    assert not talk.running
    assert told.states() == ["loading", "talking", "ended"]
    assert any("ms per frame" in f["text"] for k, f in told.events if k == "notice")
    assert any(k == "text" for k, _ in told.events)
    assert soundfile.info(tmp_path / "o.wav").frames == 25 * FRAME


def test_the_application_ends_a_talk_and_tells_what_is_wrong(tiny_checkpoint, speech, tmp_path):
    from talk import Talk

    told = Told()
    talk = Talk(told, sides={"input_file": str(tmp_path / "no.wav"), "fast": True}, model=tiny_checkpoint)
    talk.start()
    talk.wait(300)
    assert told.states() == ["loading", "ended"]
    assert "does not exist" in next(f["text"] for k, f in told.events if k == "notice")
    told = Told()
    talk = Talk(told, sides={"input_file": str(speech), "output_file": str(tmp_path / "o.wav")}, model=tiny_checkpoint)
    talk.start()
    talk.stop()
    talk.wait(300)
    assert told.states()[-1] == "ended"


def test_the_bundle_asks_for_the_microphone():
    sys.modules.pop("setup", None)
    import setup

    assert setup.PLIST["NSMicrophoneUsageDescription"]
    assert "moshi_mlx" in setup.PACKAGES
    tree = ast.parse((EXAMPLES / "macos_app" / "app.py").read_text())
    actions = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and str(n.value).endswith(":")}
    methods = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    # Every button's action is a method, as Objective-C spells it.
    assert {"talk:", "mute:", "begin:", "end:"} <= actions
    assert all(a.replace(":", "_") in methods for a in actions if a.isidentifier() or a[:-1].isidentifier())
