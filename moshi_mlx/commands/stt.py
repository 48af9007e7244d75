"""The work of `python -m moshi_mlx.stt`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path

import mlx.core as mx
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..audio.files import AudioReader, Raw, read_audio
from ..checkpoint.files import require_tokenizer
from ..checkpoint.loader import Checkpoint
from ..config.description import SttConfig
from ..defaults import STT_MODEL
from ..errors import AudioError, InputError
from ..modules.sampling import Sampler
from ..output import check_folder, check_writable, is_standard_output, make_folder, write_text
from ..speech_to_text.delays import delays_of
from ..speech_to_text.listener import Listener
from ..speech_to_text.live import LiveTranscriber
from ..speech_to_text.pauses import TurnDetector
from ..speech_to_text.printing import TextPrinter, show_events
from ..speech_to_text.prompt import TextPrompt
from ..speech_to_text.recording import AudioPrompt, Surroundings
from ..speech_to_text.sources import FrameSource, open_source
from ..speech_to_text.transcribe import FileTranscriber, Transcript
from ..speech_to_text.writers import FORMATS, format_of, json_object
from ..text import Word
from . import loading
from .flags import first, refuse_overwriting
from .loading import check_checkpoint, share
from .telling import console, say


def run(args: argparse.Namespace) -> int:
    """The command."""
    if args.list_devices:
        from ..audio import devices

        print(devices.table(devices.devices(devices.portaudio())))
        return 0
    if args.output and is_standard_output(args.output):
        # Where transcripts go anyway.
        args.output = None
    if args.json and args.files and args.files != ["-"] and not (args.output or args.output_dir or args.formats):
        # The words of a recording, all at once.
        args.json, args.formats = False, ["json"]
    if args.files == ["-"] and not wants_recordings(args):
        args.files, args.input = [], "-"
    check_arguments(args, listens=not args.files)
    check_checkpoint(args, ("stt",), STT_MODEL)
    if args.files:
        return transcribe(args)
    with open_source(args.input, args.input_device, raw_of(args), say) as source:
        return listen(args, load(args), source)


def load(args: argparse.Namespace, batch: int = 1) -> Checkpoint:
    return loading.load(args, kinds=("stt",), default=STT_MODEL, batch=batch, check=require_tokenizer)


def raw_of(args: argparse.Namespace) -> Raw | None:
    return None if args.raw is None else Raw(args.raw, args.raw_format)


def wants_recordings(args: argparse.Namespace) -> bool:
    """Whether something is asked for that is made of a whole recording, not of words while they come."""
    return args.output is not None or bool(args.output_dir or args.formats or args.prompt_audio)


def check_arguments(args: argparse.Namespace, listens: bool) -> None:
    """Everything that can be wrong before a model is loaded."""
    if args.batch < 1:
        raise InputError(f"--batch should be 1 or more, found {args.batch}.")
    if args.output and args.output_dir:
        raise InputError("give either --output FILE or --output-dir DIR, not both.")
    if args.keep_prompt and not args.prompt_audio:
        raise InputError("--keep-prompt needs --prompt-audio.")
    if args.prompt_text is not None and not args.prompt_text.strip():
        raise InputError("--prompt-text is empty.")
    if args.input and args.files:
        raise InputError(
            "give recordings to transcribe, or --input FILE to be heard as if it were the microphone, not both."
        )
    if args.files.count("-") > 1:
        raise InputError("standard input (-) was named twice, and can be heard once.")
    if not args.output and not args.output_dir:
        check_writable("-")
    if listens:
        if wants_recordings(args):
            raise InputError(
                "live words go to standard output: --output, --output-dir, --format and --prompt-audio are for recordings."
            )
        return
    if args.json or args.times:
        raise InputError(
            f"{'--json' if args.json else '--times'} is for live words; the format of a transcript is that of its file, or --format "
            "(json, srt and vtt have times)."
        )
    if args.output is not None:
        if len(args.files) > 1:
            raise InputError("several recordings need --output-dir DIR instead of --output.")
        check_writable(args.output)
        if format_of(args.output) not in (args.formats or [format_of(args.output)]):
            raise InputError(
                f"{args.output} will be {format_of(args.output)} by its ending, but --format {args.formats[0]} was given; leave out one."
            )
        refuse_overwriting(args, [args.output])
    if len(args.formats or ()) > 1 and not args.output_dir:
        raise InputError("several formats need --output-dir DIR.")
    stems = [Path(f).stem for f in args.files]
    if args.output_dir and len(set(stems)) < len(stems):
        raise InputError("the recordings should have different names, or their transcripts would overwrite each other.")
    if args.output_dir is not None:
        check_folder(args.output_dir)
        outputs = [transcript_path(args, name, kind) for name in args.files for kind in args.formats or ["txt"]]
        refuse_overwriting(args, made=outputs)


def readable(args: argparse.Namespace, files: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
    """Before anything is loaded: one recording that cannot be read is an error, one of several is told and left out."""
    usable = []
    for number, name in files:
        try:
            # What a pipe holds can be read only once.
            if name != "-" and (Path(name).is_file() or not Path(name).exists()):
                AudioReader(name, raw=raw_of(args)).close()
            usable.append((number, name))
        except AudioError as e:
            if len(args.files) == 1:
                raise
            print(f"error: {e}", file=sys.stderr)
    return usable


def make_listener(args: argparse.Namespace, loaded: Checkpoint, batch: int) -> Listener:
    prompt = None
    if args.prompt_text is not None:
        assert loaded.tokenizer is not None
        prompt = TextPrompt(loaded.tokenizer.encode(args.prompt_text), batch)
        window = loaded.lm.cfg.transformer.context
        if window is not None and len(prompt) > window:
            raise InputError(
                f"--prompt-text has {len(prompt)} tokens, more than the model's window of {window} steps; shorten it."
            )
    defaults = loaded.config.generation
    shipped = defaults.temp_text if "lm_gen_config" in loaded.config.raw else 0.0
    sampler = Sampler(temp=first(args.temp, shipped), top_p=0, top_k=defaults.top_k_text)
    return Listener(
        loaded.lm, loaded.mimi, batch, sampler=sampler, prompt=prompt, compile=args.compile, kv_bits=args.kv_bits
    )


def tokenizer_of(loaded: Checkpoint):
    if loaded.tokenizer is None:
        raise InputError(f"{loaded.files.source} lacks its tokenizer; name it with --tokenizer.")
    return loaded.tokenizer


def delays(loaded: Checkpoint) -> tuple[float, float]:
    """Seconds the text lags behind the audio, and of silence that the model expects first."""
    found = delays_of(loaded.config)
    if found is None:
        say(
            "config: 'stt_config' is missing, so the text is assumed to have no delay; times and last words may be wrong"
        )
        found = SttConfig()
    return found.audio_delay_seconds, found.audio_silence_prefix_seconds


# Recordings -----------------------------------------------------------------------------------------------------------


def transcribe(args: argparse.Namespace) -> int:
    """Transcripts of `args.files`, or of this rank's part of them where several share the work."""
    start = time.perf_counter()
    with share(args.files) as ranks:
        mine = ranks.part(args.files)
        files = readable(args, mine)
        heard = Heard(failed=len(mine) - len(files))
        if files:
            loaded = load(args, min(args.batch, len(files)))
            hear(args, loaded, files, heard, ranks.done)
        told = [Heard(**found) for found in ranks.gather(asdict(heard))]
        if not ranks.leads:
            return int(ranks.failed)
    failed = ranks.failed or any(h.failed for h in told)
    numbered = sorted((n, t) for h in told for n, t in h.printed)
    show(args, [Transcript(**{**t, "words": [Word(*w) for w in t["words"]]}) for _, t in numbered])
    if any(h.files for h in told):
        report(sum(h.seconds for h in told), time.perf_counter() - start, sum(h.files for h in told))
    return 1 if failed else 0


@dataclass
class Heard:
    """What a rank has to tell: recordings `heard`, their seconds, those that `failed`, and numbered transcripts to be printed."""

    failed: int = 0
    files: int = 0
    seconds: float = 0.0
    printed: list[tuple[int, dict]] = field(default_factory=list)


def hear(
    args: argparse.Namespace,
    loaded: Checkpoint,
    files: Sequence[tuple[int, str]],
    heard: Heard,
    done: Callable[[int], None],
) -> None:
    """Transcribe numbered files, as many at once as `--batch` says."""
    tokenizer, alone = tokenizer_of(loaded), len(args.files) == 1
    listener = make_listener(args, loaded, min(args.batch, len(files)))
    assert listener.mimi is not None
    delay, silence = delays(loaded)
    prompt = None
    if args.prompt_audio:
        prompt = AudioPrompt(read_audio(args.prompt_audio, listener.mimi.sample_rate, tell=say), args.keep_prompt)
    around = Surroundings(delay, silence, listener.mimi.frame_size, listener.mimi.sample_rate, prompt)
    transcriber = FileTranscriber(listener, tokenizer, around, args.timing)
    printer = TextPrinter(tokenizer, loaded.lm.cfg) if _prints_text(args) and alone else None
    columns = (TextColumn("{task.completed:.0f} s"), BarColumn(), TimeRemainingColumn())
    shown = console.is_terminal and printer is None
    with Progress(*columns, console=console, disable=not shown, transient=True) as bar, ExitStack() as stack:
        task = bar.add_task("hear", total=None)
        readers: list[AudioReader] = []

        def opened() -> Iterator[AudioReader]:
            for _, name in files:
                reader = AudioReader(name, transcriber.sample_rate, raw_of(args), say)
                readers.append(stack.enter_context(reader))
                yield reader

        found = transcriber.each(
            opened(),
            printer.add if printer else None,
            lambda frames: bar.update(task, advance=frames / around.frame_rate),
        )
        for i, transcript in found:
            readers[i].close()
            number, name = files[i]
            heard.files += 1
            heard.seconds += transcript.duration
            if transcript.error is None:
                deliver(args, name, transcript, number, heard)
            elif alone:
                raise transcript.error
            else:
                heard.failed += 1
                print(f"error: {transcript.error}", file=sys.stderr)
            if transcript.prompt_left:
                say(
                    f"{transcript.source}: the prompt text was not found at its beginning, so the transcript is unreliable"
                )
            done(number)
    if printer is not None:
        printer.end()


def _prints_text(args: argparse.Namespace) -> bool:
    return not args.output and not args.output_dir and (args.formats or ["txt"]) == ["txt"]


def deliver(args: argparse.Namespace, name: str, transcript: Transcript, number: int, heard: Heard) -> None:
    """Write a transcript to its files, or keep it for standard output."""
    if args.output:
        write_text(args.output, FORMATS[format_of(args.output)](transcript))
        say(f"wrote {args.output}")
    elif args.output_dir:
        make_folder(args.output_dir)
        for kind in args.formats or ["txt"]:
            path = transcript_path(args, name, kind)
            write_text(path, FORMATS[kind](transcript))
            say(f"wrote {path}")
    else:
        kept = {k: getattr(transcript, k) for k in ("source", "text", "duration")}
        heard.printed.append((number, {**kept, "words": [astuple(w) for w in transcript.words]}))


def transcript_path(args: argparse.Namespace, name: str, kind: str) -> Path:
    stem = "stdin" if name == "-" else Path(name).stem
    return Path(args.output_dir) / f"{stem}.{kind}"


def show(args: argparse.Namespace, printed: list[Transcript]) -> None:
    """Print transcripts that were not printed while they were found."""
    kind, alone = (args.formats or ["txt"])[0], len(args.files) == 1
    if not printed or (kind == "txt" and alone):
        return
    if alone:
        print(FORMATS[kind](printed[0]), end="")
    elif kind == "json":
        print(json.dumps([json_object(t) for t in printed], ensure_ascii=False, indent=1))
    else:
        print("\n".join(f"== {t.source}\n{FORMATS[kind](t)}" for t in printed), end="")


def report(seconds: float, taken: float, files: int) -> None:
    say(
        f"{files} recording{'' if files == 1 else 's'}, {seconds:.1f} s of audio in {taken:.1f} s "
        f"(real-time factor {taken / max(seconds, 1e-9):.3f}), peak memory {mx.get_peak_memory() / 1e9:.3f} GB"
    )


# Live -----------------------------------------------------------------------------------------------------------------


def listen(args: argparse.Namespace, loaded: Checkpoint, source: FrameSource) -> int:
    """Words until the source ends or the user interrupts."""
    tokenizer, listener = tokenizer_of(loaded), make_listener(args, loaded, 1)
    turns = None
    if args.vad or (args.vad is None and listener.heads):
        turns = TurnDetector(listener.heads, args.pause_head, args.pause_threshold)
    delay, silence = delays(loaded)
    transcriber = LiveTranscriber(listener, tokenizer, delay, silence, turns, args.flush)
    transcriber.start()
    source.begin()
    if source.live:
        say("listening; end with Ctrl-C")
    slowest = 0.0
    try:
        for frame in source.frames():
            start = time.perf_counter()
            events = transcriber.feed(frame)
            slowest = max(slowest, time.perf_counter() - start)
            show_events(events, args.times, args.json)
    except KeyboardInterrupt:
        say("")
    show_events(transcriber.finish(), args.times, args.json)
    if not args.json:
        print(flush=True)
    lost = f", {source.dropped} frames lost because the machine was too slow" if source.dropped else ""
    worst = f", slowest step {1000 * slowest:.0f} ms" if slowest else ""
    say(f"heard {transcriber.seconds:.1f} s{worst}{lost}")
    return 0
