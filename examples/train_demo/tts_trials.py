"""What text-to-speech is tested on: sentences that training never heard, and the same ones by the synthesiser it learnt from."""

import itertools
from pathlib import Path

import numpy as np

from moshi_mlx import checkpoint
from moshi_mlx.models.tts import TTSModel

from .metrics import word_accuracy
from .rates import SAMPLE_RATE
from .recogniser import Dictation, speech_spans
from .sentences import Chains
from .speakers import TTS_VOICES, Speaker, Synthesisers

BATCH = 20
GUIDANCE = 2.0


def tts_report(model: str | Path, voices: Path, count: int, seed: int) -> dict:
    """A recogniser's word error rates, the first sound's step, and whether text that comes word by word sounds the same."""
    loaded = checkpoint.load(model, batch=BATCH)
    tts = TTSModel.from_checkpoint(loaded, n_q=loaded.lm.dep_q, voice_repo=str(voices))
    recogniser, synthesisers = Dictation(), Synthesisers()
    texts = list(itertools.islice(Chains().stream(seed, held_out=True), count))
    report: dict = dict(sentences=count, voices={})
    for name, voice in TTS_VOICES.items():
        spoken = [sound for i in range(0, count, BATCH) for sound in speak(tts, name, texts[i : i + BATCH])]
        original = [synthesisers.say(text, Speaker("espeak", voice)).wav for text in texts]
        errors, reference = (
            1 - word_accuracy([(t, recogniser.transcribe(w, SAMPLE_RATE)) for t, w in zip(texts, wavs, strict=True)])
            for wavs in (spoken, original)
        )
        seconds = [sum(b - a for a, b in speech_spans(w, SAMPLE_RATE)) for w in spoken]
        report["voices"][name] = dict(
            word_error_rate=errors, of_the_synthesiser=reference, seconds=float(np.mean(seconds))
        )
    at_once, by_word = (speak(tts, "ada", [texts[0]], pieces)[0] for pieces in (False, True))
    report["word_by_word_is_the_same"] = bool(len(at_once) == len(by_word) and np.allclose(at_once, by_word, atol=1e-4))
    report["first_sound_step"] = first_sound_step(tts, texts[0])
    report["expected_step"] = tts.delay_steps + 2
    return report


def _speech(tts: TTSModel, voice: str, count: int):
    path = tts.get_voice_path(voice)
    return tts.speech([tts.make_condition_attributes([path], GUIDANCE) for _ in range(count)], seed=[1] * count)


def speak(tts: TTSModel, voice: str, texts: list[str], pieces: bool = False) -> list[np.ndarray]:
    """The sound [T] of each text; with `pieces` its words are given one at a time, as soon as they are needed."""
    speech = _speech(tts, voice, len(texts))
    parts: list[list[np.ndarray]] = [[] for _ in texts]

    def step() -> None:
        for row, pcm in zip(parts, speech.step().pcm, strict=True):
            row.append(pcm)

    for row, text in enumerate(texts):
        for word in text.split(" ") if pieces else [text]:
            speech.say(word + " ", row)
            while pieces and speech.ready:
                step()
    speech.finish()
    while not speech.done:
        step()
    return [np.concatenate(row) for row in parts]


def first_sound_step(tts: TTSModel, text: str) -> int:
    """Steps made before the first one that gives sound."""
    speech = _speech(tts, next(iter(TTS_VOICES)), 1)
    speech.say(text)
    speech.finish()
    steps = 0
    while not len(speech.step().pcm[0]):
        steps += 1
    return steps
