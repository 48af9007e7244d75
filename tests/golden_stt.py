"""Checks of speech-to-text goldens: words with times, and whole runs of a small model with pause heads (see their README)."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from golden_lm import _record_inputs, close, equal, read
from golden_tts import load, tokenizer_of

from moshi_mlx.models.lm import Lm
from moshi_mlx.speech_to_text.listener import Listener
from moshi_mlx.speech_to_text.words import WordEnd, WordStart, WordStream, offline_words, plain_text

LOGITS_TOL = 1e-4
TIME_TOL = 1e-6


def check_words(path: Path) -> None:
    tokenizer = tokenizer_of(path)
    for case in json.loads(path.read_text(encoding="utf-8")):
        check_offline(case, tokenizer)
        check_streaming(case, tokenizer)
        assert plain_text(case["tokens"], tokenizer) == case["plain_text"], case["name"]


def check_offline(case: dict, tokenizer) -> None:
    name = case["name"]
    words = offline_words(case["tokens"], tokenizer, case["frame_rate"], case["offset_seconds"])
    if case["offline_error"] is None:
        assert [w.text for w in words] == [w[0] for w in case["offline_words"]], name
        times = np.array([[w.start, w.end] for w in words]).reshape(-1, 2)
        close(name, times, np.array([w[1:] for w in case["offline_words"]]).reshape(-1, 2), TIME_TOL)
    else:
        # The reference cannot end the last word; ours lasts at most a second.
        assert words and words[-1].end - words[-1].start <= 12 / case["frame_rate"] + TIME_TOL, name


def check_streaming(case: dict, tokenizer) -> None:
    rate = case["frame_rate"]
    stream = WordStream(tokenizer, rate, case["audio_delay_seconds"])
    assert stream.delay_steps == case["streaming_delay_tokens"], case["name"]
    events = []
    for step, token in enumerate(case["tokens"]):
        for event in stream.feed(token):
            if isinstance(event, WordStart):
                word = {"type": "word", "step": step, "text": event.text, "tokens": list(event.tokens)}
                events.append({**word, "start": event.frame / rate})
            elif isinstance(event, WordEnd):
                events.append({"type": "end_word", "step": step, "stop": event.frame / rate})
    assert events == case["streaming_events"], case["name"]


def check_run(path: Path) -> None:
    """Listening to given codes: frame 0 is heard, as in the reference loop that passes it twice."""
    folder = path.parent
    lm, _ = load(folder)
    run, tensors = json.loads(path.read_text()), read(folder / "tensors.safetensors")
    codes = np.array(run["codes"]).T[:, None]
    for compile in (False, True):
        check_listening(lm, codes, "first_frame_twice", run, tensors, compile)
        # The reference loop that passes frame 0 once loses it.
        check_listening(lm, codes[1:], "plain", run, tensors, compile)


def check_listening(lm: Lm, codes: np.ndarray, name: str, run: dict, tensors: dict, compile: bool) -> None:
    inputs = None if compile else _record_inputs(lm)
    listener = Listener(lm, None, compile=compile)
    heard = listener.read([listener.start()] + [listener.hear(mx.array(c)) for c in codes])
    if inputs is not None:
        inputs.restore()
        equal(f"{name} model inputs", np.stack(inputs.seen)[:, 0], run[name]["model_inputs"])
    equal(f"{name} text", heard.tokens[:, 0], run[name]["text_tokens"])
    close(f"{name} pause scores", heard.pauses[:, 0, 2], run[name]["pause_score_head2"], LOGITS_TOL)
    close(f"{name} pause heads", heard.pauses[:, 0], tensors[f"{name}.extra_head_probs"][..., 0], LOGITS_TOL)
