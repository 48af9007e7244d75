"""What speech-to-text is tested on: a few sentences that training never heard, by a speaker it never heard, with long pauses.

Words and their times are counted in the transcript of the recording, ends of turns as a live listener reports them.
"""

import difflib
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from moshi_mlx import checkpoint
from moshi_mlx.audio.files import AudioReader
from moshi_mlx.modules.sampling import Sampler
from moshi_mlx.speech_to_text.listener import Listener
from moshi_mlx.speech_to_text.live import LiveTranscriber, TurnEnd
from moshi_mlx.speech_to_text.pauses import TurnDetector
from moshi_mlx.speech_to_text.recording import Surroundings
from moshi_mlx.speech_to_text.transcribe import FileTranscriber

from . import domain
from .augment import channel_of_test, coloured_noise
from .metrics import word_errors
from .rates import FRAME_SIZE, SAMPLE_RATE
from .sentences import Chains, heard_words
from .speakers import HELD_OUT, Synthesisers, sample_speaker

TEXTS = DIALOGUE, GENERAL, CHAINS = "dialogue", "general", "chains"
SENTENCES, PAUSE_S = 3, (3.0, 4.5)
NEAR_S = 0.25
BATCH = 10
GREEDY = Sampler(temp=0, top_p=0, top_k=0)


@dataclass
class Recording:
    """`words`: (word, second of its onset); `spans`: (start, end) of each sentence in seconds."""

    wav: np.ndarray
    words: list[tuple[str, float]]
    spans: list[tuple[float, float]]


def held_out_texts(texts: str, seed: int) -> Iterator[str]:
    """One of `TEXTS`: what the dialogue model can be asked, kept prompts half of the time; or kept sentences, or chains of words."""
    if texts == GENERAL:
        yield from domain.general_sentences(seed, held_out=True)
    if texts == CHAINS:
        yield from Chains(heard_words()).stream(seed, held_out=True)
    rng = random.Random(seed)
    kept = [e.prompt for kind in ("sum", "repeat") for e in domain.exchanges(kind, held_out=True)]
    known = [e.prompt for kind in domain.KINDS if kind not in ("sum", "repeat") for e in domain.exchanges(kind)]
    while True:
        yield rng.choice(rng.choice((kept, known)))


def make_recordings(count: int, seed: int, side: str = HELD_OUT, texts: str = DIALOGUE) -> list[Recording]:
    """`count` recordings by speakers of one side that is not heard in training."""
    rng, np_rng = random.Random(seed), np.random.default_rng(seed)
    synthesisers, lines = Synthesisers(), held_out_texts(texts, seed)
    made = []
    for _ in range(count):
        speaker, parts, words, spans, at = sample_speaker(rng, side), [], [], [], 0
        for _ in range(SENTENCES):
            said = synthesisers.say(next(lines), speaker)
            silence = np.zeros(int(rng.uniform(*PAUSE_S) * SAMPLE_RATE) if parts else SAMPLE_RATE // 2, np.float32)
            at += len(silence)
            words += [(word, (at + onset) / SAMPLE_RATE) for word, onset in said.words]
            spans.append((at / SAMPLE_RATE, (at + len(said.wav)) / SAMPLE_RATE))
            parts += [silence, said.wav]
            at += len(said.wav)
        wav = channel_of_test(np_rng, np.concatenate([*parts, np.zeros(int(PAUSE_S[1] * SAMPLE_RATE), np.float32)]))
        if rng.random() < 0.4:
            wav = wav + coloured_noise(np_rng, len(wav), rng.uniform(-75, -45))
        made.append(Recording(np.pad(wav, (0, -len(wav) % FRAME_SIZE)).clip(-1, 1).astype(np.float32), words, spans))
    return made


def stt_report(model: str | Path, recordings: list[Recording]) -> dict:
    """Word error rate, share of right words whose time is near, ends of turns found, sentences without a false one."""
    errors = total = near = right = found = false = turns = 0
    for recording, words in zip(recordings, _transcribe(model, recordings), strict=True):
        reference, heard = [w for w, _ in recording.words], [w for w, _ in words]
        errors, total = errors + word_errors(" ".join(reference), " ".join(heard)), total + len(reference)
        for block in difflib.SequenceMatcher(a=reference, b=heard, autojunk=False).get_matching_blocks():
            for i in range(block.size):
                right += 1
                near += abs(recording.words[block.a + i][1] - words[block.b + i][1]) <= NEAR_S
    for recording, ends in zip(recordings, _ends(model, recordings), strict=True):
        starts = [*(start for start, _ in recording.spans[1:]), len(recording.wav) / SAMPLE_RATE]
        for (start, end), following in zip(recording.spans, starts, strict=True):
            turns += 1
            found += any(end <= t <= following for t in ends)
            false += any(start < t < end for t in ends)
    return dict(
        recordings=len(recordings), words=total, word_error_rate=errors / total, times_near=near / max(1, right),
        turns=turns, ends_found=found / turns, without_false_end=1 - false / turns,
    )  # fmt: skip


def _transcribe(model: str | Path, recordings: list[Recording]) -> list[list[tuple[str, float]]]:
    """(word, start in seconds) of each recording."""
    loaded = checkpoint.load(model, batch=BATCH)
    out = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.wav" for i in range(len(recordings))]
        for path, recording in zip(paths, recordings, strict=True):
            soundfile.write(path, recording.wav, SAMPLE_RATE)
        for i in range(0, len(paths), BATCH):
            part = paths[i : i + BATCH]
            listener = Listener(loaded.lm, loaded.mimi, len(part), sampler=GREEDY)
            stt = loaded.config.stt
            around = Surroundings(
                stt.audio_delay_seconds, stt.audio_silence_prefix_seconds, FRAME_SIZE, SAMPLE_RATE, None
            )
            readers = [AudioReader(path, SAMPLE_RATE) for path in part]
            for transcript in FileTranscriber(listener, loaded.tokenizer, around)(readers):
                out.append([(word.text.strip(), word.start) for word in transcript.words])
    return out


def _ends(model: str | Path, recordings: list[Recording]) -> list[list[float]]:
    """When a live listener reports ends of turns, in seconds."""
    loaded = checkpoint.load(model)
    out = []
    for recording in recordings:
        listener = Listener(loaded.lm, loaded.mimi, 1, sampler=GREEDY)
        stt = loaded.config.stt
        live = LiveTranscriber(
            listener,
            loaded.tokenizer,
            stt.audio_delay_seconds,
            stt.audio_silence_prefix_seconds,
            TurnDetector(listener.heads),
        )
        live.start()
        events = [e for frame in recording.wav.reshape(-1, FRAME_SIZE) for e in live.feed(frame)]
        out.append([e.time for e in events if isinstance(e, TurnEnd)])
    return out
