"""The independent listener: pocketsphinx with a grammar of what may be said."""

import math
import tempfile
from pathlib import Path

import numpy as np
import soxr
from pocketsphinx import Decoder, get_model_path

from . import domain
from .sentences import words

_RATE = 16_000


def grammar(start: str) -> str:
    """A JSGF grammar of the domain from the rule `start`: `answer` for what Moshi may say (in a
    sum every word is free, so a wrong total shows), `speech` for everything."""
    rules = "".join(f"<{name}> = {body};\n" for name, body in domain.speech_rules().items())
    return f"#JSGF V1.0;\ngrammar demo;\n{rules}public <start> = <{start}>;\n"


class _Listener:
    """pocketsphinx with its US English acoustic model."""

    _decoder: Decoder

    def transcribe(self, wav: np.ndarray, sample_rate: int) -> str:
        """wav [T] -> what is heard, "" if nothing fits."""
        wav = soxr.resample(wav, sample_rate, _RATE)
        edge = np.zeros(_RATE // 4)
        peak = max(1e-6, float(np.abs(wav).max(initial=0)))
        clean = np.concatenate([edge, wav / peak * 0.7, edge])
        # Exact zeros upset the recogniser's log spectrum: a third of the words would be lost.
        dither = np.random.default_rng(0).normal(scale=1e-3, size=len(clean))
        pcm = ((clean + dither) * 32767).astype(np.int16)
        self._decoder.start_utt()
        self._decoder.process_raw(pcm.tobytes(), full_utt=True)
        self._decoder.end_utt()
        best = self._decoder.hyp()
        return best.hypstr if best else ""


class Recogniser(_Listener):
    """A listener who expects sentences of a grammar."""

    def __init__(self, start: str):
        self._decoder = _decoder(grammar(start), domain.EXTRA_PRONUNCIATIONS)


class Dictation(_Listener):
    """A listener who expects words of the list, in any order: no grammar helps to guess them."""

    def __init__(self):
        body = " | ".join(w for w in words() if w not in domain.EXTRA_PRONUNCIATIONS)
        self._decoder = _decoder(f"#JSGF V1.0;\ngrammar words;\npublic <s> = ({body})+;\n", {})


def _decoder(rules: str, extra: dict[str, str]) -> Decoder:
    model = Path(get_model_path("en-us"))
    with tempfile.TemporaryDirectory() as folder:
        path, dictionary = Path(folder) / "demo.gram", Path(folder) / "demo.dict"
        path.write_text(rules)
        more = "".join(f"{word} {sounds}\n" for word, sounds in extra.items())
        dictionary.write_text((model / "cmudict-en-us.dict").read_text() + more)
        return Decoder(
            hmm=str(model / "en-us"), dict=str(dictionary), jsgf=str(path), lm=None, samprate=_RATE, loglevel="FATAL"
        )


def speech_spans(
    wav: np.ndarray, sample_rate: int, floor_db: float = -45.0, join_s: float = 0.3
) -> list[tuple[float, float]]:
    """(start, end) in seconds of audible parts of wav [T], with gaps under `join_s` closed.

    A 10 ms block is audible when its RMS exceeds `floor_db` relative to full scale.
    """
    block = sample_rate // 100
    n = len(wav) // block
    rms = np.sqrt(np.square(wav[: n * block].reshape(n, block)).mean(1) + 1e-12)
    spans: list[list[float]] = []
    for i in np.flatnonzero(20 * np.log10(rms) > floor_db):
        start, stop = i / 100, (i + 1) / 100
        if spans and start - spans[-1][1] < join_s:
            spans[-1][1] = stop
        else:
            spans.append([start, stop])
    return [(a, b) for a, b in spans]


def heard_speech(recogniser: Recogniser, wav: np.ndarray, sample_rate: int) -> str:
    """What is said from the first audible moment to the last, "" where nothing is."""
    spans = speech_spans(wav, sample_rate)
    if not spans:
        return ""
    margin = math.ceil(0.1 * sample_rate)
    first, last = (int(t * sample_rate) for t in (spans[0][0], spans[-1][1]))
    return recogniser.transcribe(wav[max(0, first - margin) : last + margin], sample_rate)
