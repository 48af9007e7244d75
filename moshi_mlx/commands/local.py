"""The work of `python -m moshi_mlx.local`."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial

from ..audio import devices, echo
from ..audio.files import Raw
from ..audio.streams import Speaker
from ..defaults import TRANSLATION_SECONDS
from ..errors import InputError
from ..live.assemble import Sides, make_sides
from ..live.controls import Controls
from ..live.file_sides import FileSource, PacedFileSource
from ..live.keys import KeyReader
from ..live.lines import JsonView, PlainView, summary
from ..live.loop import LiveLoop
from ..live.recording import Recorder
from ..live.reporter import Reporter, View
from ..live.sides import Talker
from ..live.terminal import TerminalView
from ..live.trace import NoTrace, Trace
from ..live.translation import LiveTranslation
from ..live.warmup import warm_up
from ..output import check_new_folder, is_standard_output
from ..session import hibiki
from ..session.answer import FRAME_RATE, Answer, rest_of_answer
from ..session.codec_rust import RustSession
from ..session.personaplex import check_prompt
from ..session.session import Frame, Session
from .flags import TALKERS, first, refuse_overwriting
from .loading import check_checkpoint, load, samplers
from .telling import console, say

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


def run(args: argparse.Namespace, make_talker: Callable[[argparse.Namespace], Talker] | None = None) -> int:
    """The command. `make_talker` puts something else in the model's place, made once the devices have been found."""
    if args.list_devices:
        print(devices.table(devices.devices(devices.portaudio())))
        return 0
    check(args)
    if make_talker is None:
        check_checkpoint(args, TALKERS)
    trace = Trace(args.trace) if args.trace else NoTrace()
    sides = make_sides(
        args.input,
        args.output,
        input_device=args.input_device,
        output_device=args.output_device,
        input_channel=args.input_channel,
        fast=args.fast,
        raw=None if args.raw is None else Raw(args.raw, args.raw_format),
        tell=say,
        tail=args.tail or 0.0,
        max_lag=args.max_lag / 1000,
        device_latency=args.device_latency / 1000,
    )
    try:
        canceller = make_canceller(args, sides)
        talker = (make_talker or load_talker)(args)
        if sides.real_time:
            prepare(talker, sides)
        return talk(args, talker, sides, canceller, trace)
    finally:
        sides.close()


def check(args: argparse.Namespace) -> None:
    """Everything that can be refused before a device is asked or a file is opened."""
    for name, value, most in (("--max-lag", args.max_lag, 4000), ("--device-latency", args.device_latency, 1000)):
        if not 0 < value <= most:
            raise InputError(f"{name} should be above 0 and up to {most} ms, found {value}.")
    if args.tail is not None and not 0 <= args.tail < float("inf"):
        raise InputError(f"--tail should be 0 or more seconds, found {args.tail}.")
    if args.steps is not None and args.steps < 1:
        raise InputError(f"--steps should be 1 or more frames, found {args.steps}.")
    if args.codec == "rust" and (args.voice is not None or args.text_prompt is not None):
        raise InputError("--voice and --text-prompt need --codec mlx.")
    if args.raw is not None and args.input is None:
        raise InputError("--raw describes the sound of --input FILE; name one.")
    if args.output is not None and is_standard_output(args.output):
        raise InputError("the words of the talk go to standard output; give --output a file or a named pipe.")
    refuse_overwriting(args, [args.output, args.trace])
    if args.record is not None:
        check_new_folder(args.record)


def make_canceller(args: argparse.Namespace, sides: Sides) -> echo.Canceller | None:
    """The canceller asked for; by default one only where a loudspeaker can be heard by a microphone."""
    mode = args.echo_cancel
    if mode is None and not sides.loudspeaker_and_microphone:
        mode = "off"
    if mode is None and not echo.available():
        say("echo cancellation is not installed: use headphones, or pip install '.[echo]' in the project's folder")
    return echo.make(mode, noise_suppression=args.noise_suppression, auto_gain=args.auto_gain)


def load_talker(args: argparse.Namespace) -> Session | RustSession:
    """The model the arguments name."""
    loaded = load(
        args, with_codec=args.codec == "mlx", check=lambda files: check_prompt(files, args.voice, args.text_prompt)
    )
    text_sampler, audio_sampler = samplers(args, loaded.config.generation)
    options = {
        "seed": args.seed,
        "text_sampler": text_sampler,
        "audio_sampler": audio_sampler,
        "cfg_coef": args.cfg_coef,
        "compile": args.compile,
        "kv_bits": args.kv_bits,
    }
    if args.codec == "rust":
        return RustSession(loaded, **options)
    kind = LiveTranslation if hibiki.is_translation(loaded) else Session
    return kind(loaded, voice=args.voice, text_prompt=args.text_prompt, **options)


def prepare(talker: Talker, sides: Sides) -> None:
    """Warm up and tell what to expect."""
    with console.status("warming up") if console.is_terminal else contextlib.nullcontext():
        warmed = warm_up(talker)
    for line in warmed.verdict():
        say(line)
    if isinstance(sides.sink, Speaker):
        sides.sink.jitter = max(sides.sink.jitter, warmed.start.jitter)


def talk(
    args: argparse.Namespace,
    talker: Talker,
    sides: Sides,
    canceller: echo.Canceller | None,
    trace: Trace | NoTrace,
) -> int:
    """Run the loop with everything around it; returns the exit code."""
    controls = Controls()
    recorder = Recorder(args.record, patient=sides.lossless) if args.record else None
    answer = Answer(FRAME_RATE)
    loop = LiveLoop(
        talker,
        sides.source,
        sides.sink,
        canceller=canceller,
        recorder=recorder,
        trace=trace,
        controls=controls,
        restart_audio=sides.restart_audio,
        steps=args.steps,
        seed=args.seed,
        rest=what_follows(talker, sides, args.tail, answer),
    )
    reporter = Reporter(make_view(args), loop.status, lambda: controls.stop(1, "a reader that went away"))
    loop.tell = reporter.emit
    say(f"talking: {sides.described[0]} -> {sides.described[1]}")
    try:
        with stopped_by_signals(controls), KeyReader(controls):
            reporter.start()
            if recorder is not None:
                recorder.on_problem = lambda text: reporter.emit("notice", text=text)
            loop.run()
    finally:
        if recorder is not None:
            recorder.close()
        reporter.close()
        trace.write()
    # The terminal may be gone.
    with contextlib.suppress(OSError):
        say(f"ended by {controls.reason}; {summary(loop.status)}" if controls.reason else summary(loop.status))
        if answer.cut:
            say(answer.told(sides.described[0]))
        if recorder is not None:
            say(recorder.outcome())
    if recorder is not None and recorder.broken and not controls.exit_code:
        return 1
    return controls.exit_code or 0


def what_follows(
    talker: Talker, sides: Sides, tail: float | None, answer: Answer
) -> Callable[[], Iterator[Frame]] | None:
    """What is still said when a recording is over: an answer, to its end unless --tail says how long, or the rest of a translation,
    which hears silence of its own meanwhile.
    """
    source = sides.source if isinstance(sides.source, (FileSource, PacedFileSource)) else None
    if not isinstance(talker, LiveTranslation):
        return partial(rest_of_answer, talker, answer) if source is not None and tail is None else None
    if source is not None:
        source.tail = 0.0
    return lambda: talker.rest(first(tail, TRANSLATION_SECONDS))


def make_view(args: argparse.Namespace) -> View:
    if args.json:
        return JsonView()
    return TerminalView() if sys.stdout.isatty() else PlainView()


@contextlib.contextmanager
def stopped_by_signals(controls: Controls) -> Iterator[None]:
    """Ctrl-C, a request to terminate and a closed terminal end the talk in order; a second Ctrl-C ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(signum, frame) -> None:
        if controls.stopping and signum == signal.SIGINT:
            raise KeyboardInterrupt
        name = signal.Signals(signum).name
        controls.stop(EXIT_CODES[name], name)

    before = {n: signal.signal(getattr(signal, n), handle) for n in EXIT_CODES if hasattr(signal, n)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
