"""The work of `python -m moshi_mlx.run_inference`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import mlx.core as mx
import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..audio.files import AudioReader, AudioWriter, Raw
from ..checkpoint import files as checkpoint_files
from ..checkpoint.files import Files
from ..errors import AudioError, InputError, MoshiError
from ..output import check_folder, check_writable, is_standard_output, make_folder, refuse_terminal, write_text
from ..session.answer import FRAME_RATE
from ..session.conversations import Conversations, Talk
from ..session.personaplex import check_prompt
from ..session.recordings import Job, OneTalk, Recordings
from ..session.session import Session
from .flags import TALKERS, refuse_overwriting
from .loading import check_checkpoint, kind_of, load, samplers, share
from .telling import console, say

# Seconds.
LONGEST_TAIL = 3600


def run(args: argparse.Namespace) -> int:
    """The command."""
    check_checkpoint(args, TALKERS)
    check_outputs(args)
    if args.batch is None:
        answered = answer(args, [(0, args.files[0])], lambda number: None)
        report(args, [answered])
        return answered.failed
    with share(args.files) as ranks:
        answered = answer(args, ranks.part(args.files), ranks.done)
        everyone = [Answered(**found) for found in ranks.gather(asdict(answered))]
        if not ranks.leads:
            return int(ranks.failed)
    report(args, everyone)
    return 1 if ranks.failed or any(a.failed for a in everyone) else 0


def only_hears(args: argparse.Namespace) -> bool:
    """Whether one recording was given to a speech-to-text model, and nothing asked for that it could not give."""
    return len(args.files) == 1 and args.batch is None and args.text is None and kind_of(args) == "stt"


@dataclass
class Answered:
    """What a rank has to tell of its conversations: numbered `replies`, whether some `failed`, what was `wrote`, and figures."""

    replies: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    failed: int = 0
    wrote: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    peak: int = 0


def answer(args: argparse.Namespace, files: list[tuple[int, str]], done: Callable[[int], None]) -> Answered:
    """Answer numbered files, `--rows` of them at once."""
    new_folder = args.batch is not None and not Path(args.batch).exists()
    answered = Answered()
    jobs = open_jobs(args, files, answered)
    if not jobs:
        return answered
    try:
        talks = open_talks(args, len(jobs))
        live = None if args.json or args.batch is not None else sys.stderr if sound_goes_out(args) else sys.stdout
        for job in _conversing(talks, jobs, args, live, answered.times):
            finish(job, live)
            tell(args, job, answered)
            done(job.number)
    finally:
        for job in jobs:
            job.close()
        if new_folder:
            # Goes only if nothing was written into it.
            with contextlib.suppress(OSError):
                Path(args.batch).rmdir()
    answered.peak = mx.get_peak_memory()
    return answered


def _conversing(
    talks, jobs: list[Job], args: argparse.Namespace, live: TextIO | None, times: list[float]
) -> Iterator[Job]:
    """As `converse`; what goes wrong begins a line of its own after words of a reply."""
    try:
        yield from converse(talks, jobs, args, live, times)
    except MoshiError:
        if live is not None and jobs[0].text:
            print(file=live, flush=True)
        raise


def open_talks(args: argparse.Namespace, count: int) -> Conversations | OneTalk:
    """Rows for `count` conversations; a single one is a session's."""
    rows = 1 if args.batch is None else min(args.rows, count)
    loaded = load(args, batch=rows, check=lambda files: check(args, files))
    text_sampler, audio_sampler = samplers(args, loaded.config.generation)
    options = {
        "text_sampler": text_sampler,
        "audio_sampler": audio_sampler,
        "cfg_coef": args.cfg_coef,
        "compile": args.compile,
        "kv_bits": args.kv_bits,
    }
    if args.batch is not None:
        return Conversations(loaded, rows, alike=True, **options)
    return OneTalk(Session(loaded, seed=args.seed, voice=args.voice, text_prompt=args.text_prompt, **options))


def check(args: argparse.Namespace, files: Files) -> None:
    """What the checkpoint lacks, before its weights are read."""
    checkpoint_files.require_tokenizer(files)
    check_prompt(files, args.voice, args.text_prompt)


def sound_goes_out(args: argparse.Namespace) -> bool:
    """Whether standard output is taken by the reply's sound."""
    return args.batch is None and len(args.files) > 1 and is_standard_output(args.files[1])


def check_outputs(args: argparse.Namespace) -> None:
    """What can be refused before anything is opened."""
    if args.batch is None and len(args.files) > 2:
        raise InputError(f"expected IN [OUT], found {len(args.files)} names. Use --batch DIR for several inputs.")
    if args.tail is not None and not 0 <= args.tail <= LONGEST_TAIL:
        raise InputError(f"--tail should be 0 to {LONGEST_TAIL} seconds, found {args.tail}.")
    if args.rows < 1:
        raise InputError(f"--rows should be 1 or more, found {args.rows}.")
    if args.batch is not None:
        stems = [Path(f).stem for f in args.files]
        if len(set(stems)) != len(stems):
            raise InputError(
                "the inputs of --batch should have different names, or their replies would overwrite each other."
            )
        check_folder(args.batch)
        folder = Path(args.batch)
        refuse_overwriting(args, made=[folder / f"{stem}.{kind}" for stem in stems for kind in ("wav", "txt")])
        return
    out = args.files[1] if len(args.files) > 1 else None
    refuse_overwriting(args, [out, args.text])
    if args.json or (out is None and args.text is None):
        check_writable("-")
    if args.text is not None:
        check_writable(args.text)
    if sound_goes_out(args):
        if args.json:
            raise InputError("--json and the sound cannot both go to standard output; name a file for the sound.")
        refuse_terminal(args.files[1])
    elif args.raw == 0:
        raise InputError(
            "--raw alone is for sound on standard output: name - as OUT. For an input give its rate: --raw RATE."
        )


def open_jobs(args: argparse.Namespace, files: list[tuple[int, str]], answered: Answered) -> list[Job]:
    """Open every input and output before anything is loaded. Of several inputs, those that cannot be read are told and left out."""
    channels = 2 if args.stereo else 1
    raw = Raw(args.raw, args.raw_format) if args.raw else None
    jobs: list[Job] = []
    try:
        if args.batch is None:
            infile, *rest = args.files
            text_file = None if args.text is None else Path(args.text)
            jobs.append(Job(0, infile, open_input(infile, raw), None, text_file))
            if rest:
                form = args.raw_format if args.raw is not None and sound_goes_out(args) else None
                jobs[0].writer = AudioWriter(rest[0], channels, raw=form)
            return jobs
        folder = Path(args.batch)
        for number, name in files:
            try:
                jobs.append(Job(number, name, open_input(name, raw), None, folder / f"{Path(name).stem}.txt"))
            except AudioError as e:
                if len(args.files) == 1:
                    raise
                answered.failed = 1
                # After those that have an answer.
                answered.replies.append((number + len(args.files), {"input": name, "error": str(e)}))
                print(f"error: {e}", file=sys.stderr)
        if jobs:
            make_folder(folder)
        for job in jobs:
            job.writer = AudioWriter(folder / f"{Path(job.source).stem}.wav", channels)
    except BaseException:
        for job in jobs:
            job.close()
        raise
    return jobs


def open_input(name: str, raw: Raw | None = None) -> AudioReader:
    """A recording long enough to be heard. Whether it is silent is known only once it has been read."""
    reader = AudioReader(name, raw=raw, tell=say)
    if reader.duration is not None and reader.duration < 0.08:
        duration = 1000 * reader.duration
        reader.close()
        raise AudioError(f"{reader.name} lasts {duration:.0f} ms, less than one frame of 80 ms.")
    return reader


def converse(
    talks: Conversations | OneTalk, jobs: list[Job], args: argparse.Namespace, live: TextIO | None, times: list[float]
) -> Iterator[Job]:
    """Hold all conversations; each is yielded when it is over. `times` gets the seconds of every step."""
    durations = [j.reader.duration for j in jobs]
    total = None if None in durations else sum(d for d in durations if d is not None) + len(jobs) * (args.tail or 0.0)
    columns = (TextColumn("{task.completed:.0f} s"), BarColumn(), TimeRemainingColumn())
    shown = console.is_terminal and live is None
    recordings = Recordings(
        talks,
        lambda job: Talk(seed=args.seed + job.number, voice=args.voice, text_prompt=args.text_prompt),
        args.tail,
        args.stereo,
        None if live is None else lambda text: print(text, end="", flush=True, file=live),
    )
    with Progress(*columns, console=console, disable=not shown, transient=True) as bar:
        task = bar.add_task("talk", total=total)

        def stepped(seconds: float, conversations: int) -> None:
            times.append(seconds)
            bar.update(task, advance=conversations / FRAME_RATE)

        yield from recordings.each(jobs, stepped)


def finish(job: Job, live: TextIO | None) -> None:
    """Keep what came of a conversation that is over."""
    if live is not None:
        print(flush=True, file=live)
    if job.error is not None:
        print(f"error: {job.error}", file=sys.stderr)
        return
    if job.ending is not None and not job.ending.complete:
        say(f"{job.source}: the model did not end its translation in time; cut after the last word")
    if job.answer is not None and job.answer.cut:
        say(job.answer.told(job.source))
    if job.writer is not None:
        job.writer.commit()
    if job.text_file is not None:
        write_text(job.text_file, job.reply + "\n")


def tell(args: argparse.Namespace, job: Job, answered: Answered) -> None:
    """Note what came of a conversation."""
    if job.error is not None:
        answered.failed = 1
        answered.replies.append((job.number, {"input": job.source, "error": str(job.error)}))
        return
    if job.writer is not None and not sound_goes_out(args):
        answered.wrote.append(str(job.writer.path))
    seconds = round(job.samples / job.reader.sample_rate, 3)
    reply = {
        "input": job.source,
        "output": None if job.writer is None else str(job.writer.path),
        "text": job.reply,
        # The last frame may be cut to the length that was asked for.
        "words": [{"word": w.text, "start": w.start, "end": min(w.end, seconds)} for w in job.words],
        "duration": seconds,
        **({} if job.ending is None else {"complete": job.ending.complete}),
    }
    answered.replies.append((job.number, reply))


def report(args: argparse.Namespace, everyone: list[Answered]) -> None:
    """What came of all conversations, and figures of the run; the first step of a model compiles kernels and is not one of them."""
    times = [t for a in everyone for t in (a.times[1:] or a.times)]
    if not times:
        return
    counted = np.array(times) * 1000
    figures = {
        "steps": sum(len(a.times) for a in everyone),
        "ms_per_step_p50": round(float(np.percentile(counted, 50)), 2),
        "ms_per_step_p95": round(float(np.percentile(counted, 95)), 2),
        "real_time_factor": round(float(np.mean(counted)) * FRAME_RATE / 1000, 3),
        "peak_memory_gb": round(max(a.peak for a in everyone) / 1e9, 3),
    }
    if args.json:
        replies = [reply for _, reply in sorted((r for a in everyone for r in a.replies), key=lambda r: r[0])]
        print(json.dumps({"replies": replies, **figures}, ensure_ascii=False, indent=1))
    say(
        f"{figures['steps']} steps, {figures['ms_per_step_p50']} ms per step (p95 {figures['ms_per_step_p95']}), "
        f"real-time factor {figures['real_time_factor']}, peak memory {figures['peak_memory_gb']} GB"
    )
    for path in sorted(path for a in everyone for path in a.wrote):
        say(f"wrote {path}")
