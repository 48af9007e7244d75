"""The work of `python -m moshi_mlx.run_tts`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..audio.files import AudioWriter
from ..defaults import TTS_MODEL
from ..errors import InputError
from ..output import check_writable, is_standard_output, make_folder, write_text
from ..speech_to_text.transcribe import Transcript
from ..speech_to_text.writers import FORMATS, format_of, json_object
from ..text_to_speech import archive, outlets, setup
from ..text_to_speech.checks import Speakable, tags_report
from ..text_to_speech.outlets import Outlet
from ..text_to_speech.requests import Request, read_requests
from ..text_to_speech.speech import Speech
from ..text_to_speech.text_sources import TextFeed, pieces_of, read_text, stdin_pieces
from ..text_to_speech.tts_model import TTSModel
from .flags import refuse_overwriting
from .loading import check_checkpoint, load, share
from .telling import console, say

# A word that ends so is the name of a file that is not there.
# fmt: off
TEXT_ENDINGS = (".txt", ".md", ".text", ".jsonl", ".json", ".srt", ".vtt", ".html", ".xml", ".ssml", ".rtf", ".docx", ".pdf")
SOUND_ENDINGS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aif", ".aiff")
# fmt: on
# Steps: a minute, as for pauses in the text.
LONGEST_PADDING = 750
ONE_TURN = "the whole text was one turn, spoken by the first voice; with --dialogue every line is a turn, and the voices alternate"


def run(args: argparse.Namespace) -> int:
    """The command."""
    if args.list_devices:
        from ..audio import devices

        print(devices.table(devices.devices(devices.portaudio())))
        return 0
    text_file, out = names(args)
    check_outputs(args, out)
    check_arguments(args)
    check_checkpoint(args, ("tts",), TTS_MODEL)
    if text_file is not None and text_file.endswith(".jsonl"):
        return answer_requests(args, Path(text_file))
    return say_text(args, text_file, out)


def is_text(name: str) -> bool:
    """Whether a name that is no file is what should be said: it holds spaces, or nothing that a path would."""
    if name == "-" or os.path.exists(name):
        return False
    ending = Path(name).suffix.lower()
    return len(name.split()) > 1 or not (ending in TEXT_ENDINGS + SOUND_ENDINGS or "/" in name or "\\" in name)


def names(args: argparse.Namespace) -> tuple[str | None, str | None]:
    """The text file (None: --text) and the output (None: loudspeaker)."""
    most = 1 if args.text is not None else 2
    if len(args.files) > most or (args.text is None and not args.files):
        expected = "[OUT] beside --text" if args.text is not None else "TEXT [OUT]"
        raise InputError(f"expected {expected}, found {len(args.files)} names.")
    rest = list(args.files)
    if args.text is None and is_text(rest[0]):
        args.text = rest.pop(0)
    text_file = None if args.text is not None else rest.pop(0)
    if text_file not in (None, "-") and not os.path.exists(text_file):
        raise InputError(f"{text_file} does not exist. If that is what should be spoken, give it with --text.")
    if text_file is not None and text_file.endswith(".jsonl") and rest:
        raise InputError("requests are written to --out-folder DIR; leave out the name of a sound file.")
    if rest and args.output:
        raise InputError(f"two outputs were named, {rest[0]} and {args.output}.")
    out = rest[0] if rest else args.output or None
    # Sound on a screen helps nobody: there, `-` is what it used to be.
    shown = out == "-" and sys.stdout is not None and sys.stdout.isatty()
    return text_file, None if shown else out


def check_outputs(args: argparse.Namespace, out: str | None) -> None:
    """What is written, and what must not be written over."""
    if args.subtitles:
        format_of(args.subtitles)
        check_writable(args.subtitles)
    refuse_overwriting(args, [out, args.subtitles])
    goes_out = out is not None and is_standard_output(out)
    if goes_out and args.json:
        raise InputError("--json and the sound cannot both go to standard output; name a file for the sound.")
    if args.json:
        check_writable("-")
    if args.raw and not goes_out:
        raise InputError("--raw is for sound on standard output; name - as OUT.")


def check_arguments(args: argparse.Namespace) -> None:
    for name in ("nq", "batch", "max_seconds"):
        if getattr(args, name) is not None and not 0 < getattr(args, name) < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} should be above 0, found {getattr(args, name)}.")
    for name in ("padding_between", "max_padding", "initial_padding", "final_padding"):
        if not 0 <= getattr(args, name) <= LONGEST_PADDING:
            raise InputError(
                f"--{name.replace('_', '-')} should be 0 to {LONGEST_PADDING} steps, found {getattr(args, name)}."
            )
    if not -20 <= args.padding_bonus <= 20:
        raise InputError(f"--padding-bonus should lie between -20 and 20, found {args.padding_bonus}.")


# One text -------------------------------------------------------------------------------------------------------------


def _model(args: argparse.Namespace, voices: Sequence[list[str]], batch: int = 1) -> TTSModel:
    """The model for utterances with these `voices` (of an empty list the default one), `batch` of them at once."""
    loaded = load(
        args,
        kinds=("tts",),
        default=TTS_MODEL,
        batch=min(batch, len(voices)),
        check=lambda files: setup.check(args, files, voices, say),
    )
    return setup.configure(args, loaded)


def say_text(args: argparse.Namespace, text_file: str | None, out: str | None) -> int:
    text = None
    if text_file != "-":
        text = args.text if text_file is None else read_text(Path(text_file))
        if not text.strip():
            raise InputError(f"{'--text' if text_file is None else text_file} is empty; there is nothing to say.")
    voices = [*(args.voice or [])]
    with ExitStack() as stack:
        # Opened before anything is loaded, so that nothing is loaded in vain.
        sink = stack.enter_context(open_sink(args, out))
        tts = _model(args, [voices])
        begin = time.perf_counter()
        speech = setup.start(args, tts, [voices])
        feed = TextFeed(speech, Speakable(tts.tokenizer), dialogue=args.dialogue)
        outlet = Outlet(sink.write)
        with progress(speech) as step:
            pieces = stdin_pieces() if text is None else pieces_of(text)
            whole = outlets.run(speech, [outlet], feed_all(feed, pieces), limit_samples(args, tts), step)
        sink.finish()
    seconds = outlet.samples / tts.mimi.sample_rate
    words = speech.words(until=seconds)
    said = Transcript(text_file or "--text", " ".join(w.text for w in words), words, seconds)
    for line in (
        feed.speakable.report(),
        tags_report(speech.tags_left_out),
        None if whole else "the text was not finished within --max-seconds",
        ONE_TURN if len(voices) > 1 and not args.dialogue else None,
    ):
        if line:
            say(line)
    if args.subtitles:
        write_text(args.subtitles, FORMATS[format_of(args.subtitles)](said))
        say(f"wrote {args.subtitles}")
    report(args, said, outlet, speech, begin)
    say(f"{'played on' if out is None else 'wrote'} {sink.name}")
    return 0


def feed_all(feed: TextFeed, pieces: Iterable[str]) -> Iterator[None]:
    for piece in pieces:
        feed.add(piece)
        yield
    feed.finish()


class FileSink:
    """A sound file, which gets its name when it is finished."""

    def __init__(self, path: str, raw: str | None = None):
        self.name = "to standard output" if is_standard_output(path) else path
        self._writer = AudioWriter(path, raw=raw)
        self.write = self._writer.write

    def finish(self) -> None:
        self._writer.commit()

    def __enter__(self) -> FileSink:
        return self

    def __exit__(self, *_) -> None:
        self._writer.discard()


def open_sink(args: argparse.Namespace, out: str | None):
    if out is not None:
        return FileSink(out, args.raw_format if args.raw else None)
    from ..text_to_speech.loudspeaker import Loudspeaker

    return Loudspeaker(args.output_device)


def limit_samples(args: argparse.Namespace, tts: TTSModel) -> int | None:
    return None if args.max_seconds is None else round(args.max_seconds * tts.mimi.sample_rate)


@contextmanager
def progress(speech: Speech):
    """A bar over the words that are known, and what moves it."""
    columns = (TextColumn("{task.completed} of {task.total} words"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("speak", total=0)

        def step() -> None:
            bar.update(task, total=speech.entries_said, completed=speech.entries_said - speech.entries_left)

        yield step


def report(args: argparse.Namespace, said: Transcript, outlet: Outlet, speech: Speech, begin: float) -> None:
    """Figures of one speech. The first sound includes the wait for its text."""
    taken = time.perf_counter() - begin
    figures = {
        "steps": speech.generator.offset,
        "first_sound_seconds": None if outlet.first_sound is None else round(outlet.first_sound - begin, 3),
        "real_time_factor": round(taken / max(said.duration, 1e-9), 3),
        "peak_memory_gb": round(mx.get_peak_memory() / 1e9, 3),
    }
    if args.json:
        print(json.dumps({**json_object(said), **figures}, ensure_ascii=False, indent=1))
    say(
        f"{said.duration:.1f} s of speech in {taken:.1f} s (real-time factor {figures['real_time_factor']}), "
        f"first sound after {figures['first_sound_seconds']} s, peak memory {figures['peak_memory_gb']} GB"
    )


# Requests -------------------------------------------------------------------------------------------------------------


def answer_requests(args: argparse.Namespace, path: Path) -> int:
    requests = read_requests(path)
    refuse_overwriting(
        args,
        made=[Path(args.out_folder) / f"{r.id}.{kind}" for r in requests for kind in ("wav", "json", "safetensors")],
    )
    folder = make_folder(args.out_folder)
    with share([r.id for r in requests]) as ranks:
        mine = dict(ranks.part(requests))
        answered = Answered()
        begin = time.perf_counter()
        if mine:
            tts = _model(args, [r.voices for r in requests], min(args.batch, len(mine)))
            begin = time.perf_counter()
            answer(args, tts, mine, folder, answered, ranks.done)
        told = [Answered(**found) for found in ranks.gather(asdict(answered))]
        if ranks.leads:
            taken, spoken = time.perf_counter() - begin, sum(a.seconds for a in told)
            say(
                f"{sum(a.spoken for a in told)} requests, {args.batch} at once: {spoken:.1f} s of speech in {taken:.1f} s "
                f"(real-time factor {taken / max(spoken, 1e-9):.3f})"
            )
        return int(ranks.failed or any(a.failed for a in told))


@dataclass
class Answered:
    """What a rank has to tell of its requests: how many were `spoken`, the `seconds` of their sound, and how many `failed`."""

    spoken: int = 0
    seconds: float = 0.0
    failed: int = 0


def answer(
    args: argparse.Namespace,
    tts: TTSModel,
    requests: dict[int, Request],
    folder: Path,
    answered: Answered,
    done: Callable[[int], None],
) -> None:
    """Speak numbered requests, as many side by side as `--batch` says. One that cannot be spoken is told, and does not stop the others."""
    voices = [r.voices for r in requests.values()][: args.batch]
    speech = setup.start(args, tts, voices, keep_log=not args.only_wav, own_clocks=True)
    speakable = Speakable(tts.tokenizer)
    sinks: dict[int, FileSink] = {}
    with ExitStack() as stack:

        def begin(row: int, number: int) -> Outlet | None:
            request = requests[number]
            try:
                setup.join(args, tts, speech, row, request.voices)
                feed = TextFeed(speech, speakable, row)
                for turn in request.turns:
                    feed.add(turn)
                    feed.end_turn()
                feed.finish()
            except InputError as e:
                print(f"error: {request.id}: {e}", file=sys.stderr)
                answered.failed += 1
                done(number)
                return None
            speech.finish(row)
            sinks[number] = stack.enter_context(FileSink(str(folder / f"{request.id}.wav")))
            return Outlet(sinks[number].write, keep_codes=not args.only_wav)

        with progress(speech) as step:
            for told in outlets.run_many(speech, requests, begin, limit_samples(args, tts), step):
                request = requests[told.number]
                sinks.pop(told.number).finish()
                answered.spoken += 1
                answered.seconds += told.outlet.samples / tts.mimi.sample_rate
                if not told.whole:
                    say(f"{request.id}: the text was not finished within --max-seconds")
                if not args.only_wav:
                    archive.write(folder, request, speech, told.row, told.outlet.codes, archive.settings(args, tts))
                say(f"wrote {folder / request.id}.wav")
                done(told.number)
    for line in (speakable.report(), tags_report(speech.tags_left_out)):
        if line:
            say(line)
