"""Translations to their end: marker, silence, stop rule; for Hibiki and Hibiki-Zero, alone and in batches."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from random_checkpoint import write

from moshi_mlx import checkpoint, local, run_inference
from moshi_mlx.audio.files import AudioReader
from moshi_mlx.engine.step import Step, make_conditions
from moshi_mlx.errors import InputError
from moshi_mlx.live.controls import Controls
from moshi_mlx.live.file_sides import FileSink, FileSource
from moshi_mlx.live.loop import LiveLoop
from moshi_mlx.live.translation import LiveTranslation
from moshi_mlx.modules.sampling import Sampler
from moshi_mlx.session import Session, default_attributes, hibiki
from moshi_mlx.session.hibiki import EOS, PAD, Ending

GREEDY = Sampler(temp=0)
CARD = 256


def make(folder: Path, preset: str, **rows: float) -> Path:
    """A small checkpoint; `eos` and `pad` make the model fonder of those tokens."""
    write(folder, preset, None, seed=3)
    if rows:
        path = folder / "model.safetensors"
        tensors = dict(mx.load(str(path)))
        scale = np.ones((400, 1), np.float32)
        scale[EOS], scale[PAD] = rows.get("eos", 1), rows.get("pad", 1)
        tensors["text_linear.weight"] = (tensors["text_linear.weight"] * mx.array(scale)).astype(mx.bfloat16)
        mx.eval(tensors)
        mx.save_safetensors(str(path), tensors)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hibiki")
    return {
        "one": make(root / "one", "tiny-hibiki", eos=1.5, pad=1.5),
        "zero": make(root / "zero", "tiny-hibiki-zero", eos=1.5, pad=1.5),
        "endless": make(root / "endless", "tiny-hibiki", eos=0, pad=1.5),
    }


@pytest.fixture(scope="module")
def speech(question_path) -> np.ndarray:
    """2 s, and a bit less than a frame."""
    pcm, _ = soundfile.read(question_path, dtype="float32")
    return pcm[: 25 * 1920 + 700]


@pytest.fixture(scope="module")
def question_path() -> Path:
    return Path(__file__).resolve().parent.parent / "examples" / "question.wav"


@pytest.fixture(scope="module")
def recording(speech, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    soundfile.write(path, speech, 24000, subtype="FLOAT")
    return path


def padded(speech: np.ndarray) -> np.ndarray:
    return np.pad(speech, (0, -len(speech) % 1920)).reshape(-1, 1920)


def by_hand(loaded, codes: list, coef: float = 1.0) -> np.ndarray:
    """Greedy frames of a translation from codes alone, as the reference's loops feed them."""
    from moshi_mlx.engine.step import Guidance

    step = Step(loaded.lm, GREEDY, GREEDY, Guidance(coef), compile=False)
    rows = default_attributes(loaded, 1, coef)
    conditions = make_conditions(loaded.lm, rows) if rows else None
    state, frames = step.init_state([0], 250), []
    for given in [[CARD] * 8, *codes]:
        state, out = step.run(state, mx.array([given]), conditions)
        frames.append(np.array(out.frame[0]))
    return np.array(frames)[loaded.lm.cfg.max_delay :]


def encoded(loaded, frames: np.ndarray) -> list:
    return np.array(loaded.mimi.encode(mx.array(frames.reshape(1, 1, -1)), 8))[0].T.tolist()


def translate(loaded, speech: np.ndarray, tail: int, **options) -> np.ndarray:
    """What a session says until the tail is over, whatever the model thinks of it."""
    session = Session(loaded, text_sampler=GREEDY, audio_sampler=GREEDY, compile=False, **options)
    hibiki.lead_in(session)
    frames = [session.step(pcm) for pcm in padded(speech)]
    frames += [session.step(pcm, marked) for pcm, marked in Ending(tail).frames(1920)]
    said = np.array([[f.text_token, *f.codes] for f in frames])
    return said[said[:, 0] != -2]


@pytest.mark.parametrize("coef", [1.0, 3.0])
def test_marker_is_not_heard(folders, speech, coef):
    """Of Hibiki: the encoder pauses while the marker is fed."""
    loaded = checkpoint.load(folders["one"], dtype=mx.float32)
    heard = encoded(loaded, np.concatenate([padded(speech), np.zeros((5, 1920), np.float32)]))
    codes = [*heard[:26], [CARD] * 8, *heard[26:]]
    np.testing.assert_array_equal(translate(loaded, speech, 5, cfg_coef=coef), by_hand(loaded, codes, coef))


def test_zero_hears_silence_under_the_marker(folders, speech):
    """Of Hibiki-Zero: the whole file is encoded with its padding, one code frame replaced; a frame of silence comes first."""
    loaded = checkpoint.load(folders["zero"], dtype=mx.float32)
    heard = encoded(loaded, np.concatenate([padded(speech), np.zeros((6, 1920), np.float32)]))
    first = encoded(loaded, np.zeros((1, 1920), np.float32))
    codes = [*first, *heard[:26], [CARD] * 8, *heard[27:]]
    np.testing.assert_array_equal(translate(loaded, speech, 5), by_hand(loaded, codes))


@pytest.mark.parametrize("kind", ["one", "zero"])
def test_rows_end_when_their_sources_do(folders, speech, kind, tmp_path):
    """A batch of recordings of different length gives what each gives alone."""
    names = []
    for name, length in (("short", 12 * 1920), ("long", len(speech))):
        soundfile.write(tmp_path / f"{name}.wav", speech[:length], 24000, subtype="FLOAT")
        names.append(str(tmp_path / f"{name}.wav"))
    common = ["--model", str(folders[kind]), "--greedy", "--no-compile", "--tail", "2"]
    run_inference.main([*names, "--batch", str(tmp_path / "both"), *common])
    for name in names:
        run_inference.main([name, str(tmp_path / "alone.wav"), *common])
        a, _ = soundfile.read(tmp_path / "both" / Path(name).name)
        b, _ = soundfile.read(tmp_path / "alone.wav")
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=1e-4)


def report(folder: Path, recording: Path, capsys, *more: str) -> tuple[dict, str]:
    out = recording.with_name("out.wav")
    run_inference.main(
        [
            str(recording),
            str(out),
            "--model",
            str(folder),
            "--greedy",
            "--no-compile",
            "--json",
            "--dtype",
            "f32",
            *more,
        ]
    )
    said = capsys.readouterr()
    result = json.loads(said.out)
    info = soundfile.info(out)
    reply = result["replies"][0]
    assert info.frames == round(reply["duration"] * 24000)
    assert info.frames % 1920 == 0
    return {**reply, "steps": result["steps"]}, said.err


def test_ends_when_the_model_says_so(folders, speech, recording, capsys):
    """The end of the text counts from the marker on, whatever came before it."""
    for kind, spare in (("one", 1), ("zero", 0)):
        reply, said = report(folders[kind], recording, capsys)
        loaded = checkpoint.load(folders[kind], dtype=mx.float32)
        # A frame more than the command took shows that it might have gone on.
        tokens = translate(loaded, speech, reply["steps"] - 26)[:, 0].tolist()
        delay = loaded.lm.cfg.max_delay
        # Frame i comes out with input frame i + delay - 1 of the session; Hibiki-Zero's has one more before it.
        fed = [i + delay - 1 - loaded.lm.cfg.is_hibiki_zero for i in range(len(tokens))]
        stop = next(i for i, token in enumerate(tokens) if token == EOS and fed[i] >= 26)
        assert reply["complete"]
        assert reply["steps"] == fed[stop] + 1
        silent = delay - 1 - loaded.lm.cfg.is_hibiki_zero
        assert reply["duration"] == pytest.approx(0.08 * (silent + stop + spare))
        assert "did not end" not in said


def test_the_page_is_right(folders, speech):
    """The loop that docs/models/hibiki.md shows, on a session."""
    page = (Path(__file__).resolve().parent.parent / "docs" / "models" / "hibiki.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict = {}
    exec(compile(code, "hibiki.md", "exec"), names)
    session = Session(
        checkpoint.load(folders["one"], dtype=mx.float32), text_sampler=GREEDY, audio_sampler=GREEDY, compile=False
    )
    frames = list(names["translate"](session, padded(speech)))
    assert frames[-1].text_token == EOS
    assert len(frames) > 26


def test_cap(folders, recording, capsys):
    """A model that never ends: as long as --tail allows, cut after its last word."""
    reply, said = report(folders["endless"], recording, capsys, "--tail", "1")
    assert not reply["complete"]
    assert reply["steps"] == 26 + 1 + 12
    assert "did not end its translation in time; cut after the last word" in said
    assert reply["words"][-1]["end"] <= reply["duration"] + 1e-6 <= 39 * 0.08 + 1e-6
    default, _ = report(folders["endless"], recording, capsys)
    assert default["steps"] == 26 + 1 + 375


def test_held_frames_are_dropped_after_the_last_word():
    ending, held, written = Ending(4), [], []
    frames = ending.frames(2)
    for token in (5, 0, EOS, PAD):
        held.append(token)
        assert ending.wants(token, held), "before the marker everything is kept, an early end too"
        written += held
        held.clear()
    for token in (PAD, 7, PAD, PAD, PAD):
        pcm, marked = next(frames)
        assert (len(pcm), marked) == (2, token == PAD and len(written) == 4)
        held.append(token)
        if ending.wants(token, held):
            written += held
            held.clear()
    assert next(frames, None) is None
    assert written == [5, 0, EOS, PAD, PAD, 7]
    assert ending.done
    assert not ending.complete


def test_guidance_is_heard(folders, speech):
    """The null half is the worst quality, not the padding; without the condition there is nothing to guide."""
    loaded = checkpoint.load(folders["one"], dtype=mx.float32)
    plain, guided = (translate(loaded, speech, 5, cfg_coef=c) for c in (1.0, 3.0))
    assert (plain != guided).any()
    zero = checkpoint.load(folders["zero"], dtype=mx.float32)
    with pytest.raises(InputError, match="needs conditions"):
        translate(zero, speech, 5, cfg_coef=3.0)


def test_early_end_is_read_as_padding(folders):
    """Row 2 of the text table is row 3, dense or packed; the depth transformer's is its own."""
    stored = mx.load(str(folders["one"] / "model.safetensors"))
    lm = checkpoint.load(folders["one"], dtype=mx.float32).lm
    assert mx.array_equal(lm.text_emb.weight[EOS], lm.text_emb.weight[PAD])
    assert not mx.array_equal(stored["text_emb.weight"][EOS], stored["text_emb.weight"][PAD])
    depth = lm.depformer.slices[0].emb.weight
    assert not mx.array_equal(depth[EOS], depth[PAD])


def test_only_translations_end(tiny_checkpoint):
    session = Session(checkpoint.load(tiny_checkpoint), compile=False)
    with pytest.raises(InputError, match="only translation models"):
        session.step(np.zeros(1920, np.float32), ended=True)


def test_stereo_and_text(folders, recording, tmp_path, speech):
    out, text = tmp_path / "o.wav", tmp_path / "o.txt"
    run_inference.main(
        [str(recording), str(out), "--model", str(folders["one"]), "--greedy", "--stereo", "--text", str(text)]
    )
    both, _ = soundfile.read(out, dtype="float32")
    np.testing.assert_allclose(both[: len(speech), 0], speech, atol=1e-4)
    assert text.read_text().strip()


def test_compiled_alike(folders, speech):
    loaded = checkpoint.load(folders["zero"], dtype=mx.float32)
    plain = translate(loaded, speech, 5)
    session = Session(loaded, text_sampler=GREEDY, audio_sampler=GREEDY)
    hibiki.lead_in(session)
    frames = [session.step(pcm) for pcm in padded(speech)]
    frames += [session.step(pcm, marked) for pcm, marked in Ending(5).frames(1920)]
    said = np.array([[f.text_token, *f.codes] for f in frames])
    np.testing.assert_array_equal(said[said[:, 0] != -2], plain)


@pytest.mark.parametrize("kind", ["one", "zero", "endless"])
def test_a_live_translation_is_said_to_its_end(folders, recording, tmp_path, kind, capsys):
    """The live loop over a recording says what the command for recordings says, after the end of the source too."""
    common = ["--model", str(folders[kind]), "--greedy", "--no-compile", "--tail", "2"]
    run_inference.main([str(recording), str(tmp_path / "file.wav"), *common])
    text = capsys.readouterr().out
    assert local.main(["--input", str(recording), "--output", str(tmp_path / "live.wav"), "--fast", *common]) == 0
    file, live = (soundfile.read(tmp_path / f"{n}.wav")[0] for n in ("file", "live"))
    np.testing.assert_array_equal(live[: len(file)], file)
    if kind == "endless":
        # Sound that was heard cannot be taken back after the last word.
        assert len(live) == (26 + 1 + 25) * 1920
    else:
        assert len(live) == len(file) > 26 * 1920
    assert capsys.readouterr().out.split() == text.split()


def test_a_live_translation_can_be_bounded_and_begun_anew(folders, recording, tmp_path, speech):
    """`--steps` counts what follows the source; a new conversation begins as the first did."""
    args = [
        "--input",
        str(recording),
        "--output",
        str(tmp_path / "o.wav"),
        "--fast",
        "--model",
        str(folders["endless"]),
    ]
    assert local.main([*args, "--steps", "30", "--no-compile"]) == 0
    assert soundfile.info(tmp_path / "o.wav").frames == 30 * 1920
    session = LiveTranslation(
        checkpoint.load(folders["zero"], dtype=mx.float32), text_sampler=GREEDY, audio_sampler=GREEDY, compile=False
    )
    first = [session.step(pcm) for pcm in padded(speech)[:8]]
    session.reset()
    again = [session.step(pcm) for pcm in padded(speech)[:8]]
    assert [f.index for f in first] == list(range(8))
    for a, b in zip(first, again, strict=True):
        assert a.text == b.text
        np.testing.assert_array_equal(a.codes, b.codes)


def test_the_rest_keeps_the_pace_of_the_source(folders, recording, tmp_path):
    """A loudspeaker takes no more than it plays: every frame after the source is waited for. A stop ends it."""

    class Paced(FileSource):
        paced = True

    class Waits(Controls):
        waited = 0

        def wait(self, seconds):
            assert seconds <= 0.08 * (self.waited + 1)
            self.waited += 1
            if self.waited == 5:
                self.stop()

    session = LiveTranslation(checkpoint.load(folders["endless"], dtype=mx.float32), compile=False)
    controls, sink = Waits(), FileSink(tmp_path / "o.wav")
    source = Paced(AudioReader(recording))
    loop = LiveLoop(session, source, sink, controls=controls, rest=lambda: session.rest(10.0))
    assert loop.run().frames == 26 + 5
    assert controls.waited == 5
