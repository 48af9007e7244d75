"""`python -m moshi_mlx.run_inference IN [OUT]`: a recording in, the model's reply as sound and text out."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import mlx.core as mx
import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from . import commands
from .audio.files import AudioReader, AudioWriter, Raw
from .checkpoint import files as checkpoint_files
from .checkpoint import registry
from .commands import console, say
from .errors import AudioError, InputError, MoshiError
from .output import check_writable, is_standard_output, make_folder, refuse_terminal, write_text
from .session import hibiki
from .session.answer import MOST_SECONDS, QUIET_SECONDS, Answer
from .session.hibiki import Ending
from .session.session import Frame, Session
from .text import Word, WordTimer


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m moshi_mlx.run_inference", description=__doc__)
    p.add_argument(
        "files",
        nargs="*",
        metavar="IN [OUT]",
        help="input audio (- for standard input) and output audio (- for standard output); --demo alone answers a question of its own",
    )
    p.add_argument(
        "--batch", metavar="DIR", help="answer all given files at once; replies go to DIR under the same names"
    )
    p.add_argument("--text", metavar="FILE", help="also write the reply's text to FILE")
    p.add_argument("--stereo", action="store_true", help="write the user on the left and the reply on the right")
    p.add_argument(
        "--json", action="store_true", help="print the text, words with times and figures as JSON instead of live text"
    )
    p.add_argument(
        "--tail",
        type=float,
        metavar="SECONDS",
        help="listen to exactly so much silence after the input, 0 for none (default: until the model has been silent for "
        f"{QUIET_SECONDS:.0f}, at most {MOST_SECONDS:.0f}; for a translation, at most {hibiki.TAIL_SECONDS:.0f} until the model ends it)",
    )
    p.add_argument(
        "--raw",
        nargs="?",
        type=commands.sample_rate,
        const=0,
        metavar="RATE",
        help="sound without a header: what goes to standard output (24000 samples a second), and with RATE the input too",
    )
    commands.add_raw_format(p)
    p.add_argument("--no-compile", dest="compile", action="store_false", help="run every operation by itself")
    p.add_argument("--verbose", action="store_true", help=argparse.SUPPRESS)
    commands.add_checkpoint_arguments(p, demo=True)
    commands.add_sampling_arguments(p)
    commands.add_prompt_arguments(p)
    return p


@dataclass
class Job:
    """One conversation: an input, and what comes of it."""

    source: str
    reader: AudioReader
    writer: AudioWriter | None
    text_file: Path | None = None
    text: list[str] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    samples: int = 0
    length: int | None = None
    heard: bool = False
    # Of a translation: how it ends; below, what was said since its last word.
    ending: Ending | None = None
    # Of a dialogue without --tail: when its answer is over.
    answer: Answer | None = None
    error: AudioError | None = None
    held: list[np.ndarray] = field(default_factory=list)

    def close(self) -> None:
        self.reader.close()
        if self.writer is not None:
            self.writer.discard()


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = parser()
    args = p.parse_args(argv)
    if not args.files:
        if args.model != str(registry.DEMO_FOLDER) or args.batch is not None:
            p.error("the following arguments are required: IN [OUT]")
        args.files = [str(registry.DEMO_FOLDER / "prompts" / "sum.flac")]
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    commands.check_checkpoint(args, commands.TALKERS)
    new_folder = args.batch is not None and not Path(args.batch).exists()
    check_outputs(args)
    jobs, unread = open_jobs(args)
    if not jobs:
        return 1
    try:
        loaded = commands.load(args, batch=len(jobs), check=checkpoint_files.require_tokenizer)
        text_sampler, audio_sampler = commands.samplers(args, loaded.config.generation)
        session = Session(
            loaded,
            batch=len(jobs),
            seed=args.seed,
            text_sampler=text_sampler,
            audio_sampler=audio_sampler,
            cfg_coef=args.cfg_coef,
            voice=args.voice,
            text_prompt=args.text_prompt,
            compile=args.compile,
            kv_bits=args.kv_bits,
        )
        live = None if args.json or len(jobs) > 1 else sys.stderr if sound_goes_out(args) else sys.stdout
        try:
            times = converse(session, jobs, args.tail, args.stereo, live)
        except MoshiError:
            # What went wrong begins a line of its own.
            if live is not None and jobs[0].text:
                print(file=live, flush=True)
            raise
        for job in jobs:
            finish(job, live)
    finally:
        for job in jobs:
            job.close()
        if new_folder:
            # Goes only if nothing was written into it.
            with contextlib.suppress(OSError):
                Path(args.batch).rmdir()
    report(args, session, jobs, unread, times)
    return 1 if unread or any(job.error for job in jobs) else 0


def sound_goes_out(args: argparse.Namespace) -> bool:
    """Whether standard output is taken by the reply's sound."""
    return args.batch is None and len(args.files) > 1 and args.files[1] != "" and is_standard_output(args.files[1])


def check_outputs(args: argparse.Namespace) -> None:
    """What can be refused before anything is opened."""
    if args.batch is None and len(args.files) > 2:
        raise InputError(f"expected IN [OUT], found {len(args.files)} names. Use --batch DIR for several inputs.")
    if args.tail is not None and not 0 <= args.tail < float("inf"):
        raise InputError(f"--tail should be 0 or more seconds, found {args.tail}.")
    if args.batch is not None:
        stems = [Path(f).stem for f in args.files]
        if len(set(stems)) != len(stems):
            raise InputError(
                "the inputs of --batch should have different names, or their replies would overwrite each other."
            )
        folder = Path(args.batch)
        commands.refuse_overwriting(args, made=[folder / f"{stem}.{kind}" for stem in stems for kind in ("wav", "txt")])
        return
    out = args.files[1] if len(args.files) > 1 and args.files[1] else None
    commands.refuse_overwriting(args, [out, args.text])
    if args.text is not None:
        check_writable(args.text)
    if sound_goes_out(args):
        if args.json:
            raise InputError("--json and the sound cannot both go to standard output; name a file for the sound.")
        refuse_terminal(args.files[1])
    elif args.raw == 0:
        raise InputError(
            "--raw alone is for sound on standard output: name - as OUT. Of an input, say its rate: --raw RATE."
        )


def open_jobs(args: argparse.Namespace) -> tuple[list[Job], dict[str, AudioError]]:
    """Open every input and output before anything is loaded. Of several inputs, those that cannot be read are told and left out."""
    channels = 2 if args.stereo else 1
    raw = Raw(args.raw, args.raw_format) if args.raw else None
    jobs: list[Job] = []
    unread: dict[str, AudioError] = {}
    try:
        if args.batch is None:
            infile, *rest = args.files
            text_file = None if args.text is None else Path(args.text)
            jobs.append(Job(infile, open_input(infile, raw), None, text_file))
            if rest and rest[0]:
                form = args.raw_format if args.raw is not None and sound_goes_out(args) else None
                jobs[0].writer = AudioWriter(rest[0], channels, raw=form)
            return jobs, unread
        folder = Path(args.batch)
        for name in args.files:
            try:
                jobs.append(Job(name, open_input(name, raw), None, folder / f"{Path(name).stem}.txt"))
            except AudioError as e:
                if len(args.files) == 1:
                    raise
                unread[name] = e
                print(f"error: {e}", file=sys.stderr)
        if jobs:
            make_folder(folder)
        for job in jobs:
            job.writer = AudioWriter(folder / f"{Path(job.source).stem}.wav", channels)
    except BaseException:
        for job in jobs:
            job.close()
        raise
    return jobs, unread


def open_input(name: str, raw: Raw | None = None) -> AudioReader:
    """A recording long enough to be heard. Whether it is silent is known only once it has been read."""
    reader = AudioReader(name, raw=raw, tell=say)
    if reader.duration is not None and reader.duration < 0.08:
        duration = 1000 * reader.duration
        reader.close()
        raise AudioError(f"{reader.name} lasts {duration:.0f} ms, less than one frame of 80 ms.")
    return reader


def frames_of_many(job: Job, session: Session, tail: float) -> Iterator[tuple[np.ndarray, bool]]:
    """As `conversation_frames`; one recording that cannot be read to its end does not stop the others."""
    try:
        yield from conversation_frames(job, session, tail)
    except AudioError as e:
        job.error = e


def conversation_frames(job: Job, session: Session, tail: float) -> Iterator[tuple[np.ndarray, bool]]:
    """The input's frames, then what its end needs: `tail` seconds of silence, silence while the answer goes on, or what a translation
    ends with; true marks its source's end.
    """
    size = session.frame_size
    # One frame behind the reader: the last one is known to be last when it is stepped.
    pending: np.ndarray | None = None
    for pcm in job.reader.frames(size):
        job.heard = job.heard or bool(pcm.any())
        if pending is not None:
            yield pending, False
        pending = pcm
    if pending is None or not job.heard:
        raise AudioError(
            f"{job.reader.name} holds nothing but digital silence. Check that the right input was recorded."
        )
    if job.ending is not None:
        yield pending, False
        yield from job.ending.frames(size)
        return
    if job.answer is not None:
        yield pending, False
        for silence in job.answer.frames(size):
            yield silence, False
        return
    # The reply lasts as long as input and tail, to the sample.
    job.length = job.reader.samples + round(tail * session.sample_rate)
    yield pending, False
    for _ in range(-(-job.length // size) - -(-job.reader.samples // size)):
        yield np.zeros(size, np.float32), False


def converse(session: Session, jobs: list[Job], tail: float | None, stereo: bool, live: TextIO | None) -> list[float]:
    """Step all conversations to the end of the longest; returns the seconds each step took."""
    rate = session.mimi.frame_rate
    if hibiki.is_translation(session.checkpoint):
        wait = round(commands.first(tail, hibiki.TAIL_SECONDS) * rate)
        for job in jobs:
            job.ending = Ending(wait, without_last=session.lm.cfg.is_hibiki_zero)
    elif tail is None:
        for job in jobs:
            job.answer = Answer(rate)
    frames_of = conversation_frames if len(jobs) == 1 else frames_of_many
    sources = [frames_of(job, session, tail or 0.0) for job in jobs]
    timers = [WordTimer(rate) for _ in jobs]
    nothing = np.zeros(session.frame_size, np.float32), False
    times: list[float] = []
    durations = [j.reader.duration for j in jobs]
    total = None if None in durations else max(d for d in durations if d is not None) + (tail or 0.0)
    columns = (TextColumn("{task.completed:.0f} s"), BarColumn(), TimeRemainingColumn())
    shown = console.is_terminal and live is None
    left_out = hibiki.lead_in(session)
    with Progress(*columns, console=console, disable=not shown, transient=True) as bar:
        task = bar.add_task("talk", total=total)
        while True:
            given = [next(source, None) for source in sources]
            if all(g is None for g in given):
                break
            heard, ended = zip(*(nothing if g is None else g for g in given), strict=True)
            start = time.perf_counter()
            frames = session.step(np.stack(heard), ended)
            times.append(time.perf_counter() - start)
            for job, g, frame, timer in zip(jobs, given, frames, timers, strict=True):
                if g is not None:
                    keep(job, g[0], replace(frame, index=frame.index - left_out), timer, stereo, live)
            bar.update(task, completed=len(times) / rate)
    for job, timer in zip(jobs, timers, strict=True):
        job.words += timer.flush()
    return times


def keep(job: Job, heard: np.ndarray, frame: Frame, timer: WordTimer, stereo: bool, live: TextIO | None) -> None:
    """Store one frame of reply."""
    pcm = frame.pcm if job.length is None else frame.pcm[: job.length - job.samples]
    heard = heard[: len(pcm)]
    job.words += timer.feed(frame.text, frame.index)
    if frame.text:
        if live is not None:
            print(frame.text if job.text else frame.text.lstrip(), end="", flush=True, file=live)
        job.text.append(frame.text)
    if job.answer is not None:
        job.answer.see(frame.text, frame.pcm)
    job.held.append(np.stack([heard, pcm], axis=1) if stereo else pcm)
    if job.ending is None or job.ending.wants(frame.text_token, job.held):
        release(job)


def release(job: Job) -> None:
    """Write the frames held back."""
    for pcm in job.held:
        job.samples += len(pcm)
        if job.writer is not None:
            job.writer.write(pcm)
    job.held.clear()


def finish(job: Job, live: TextIO | None) -> None:
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
        write_text(job.text_file, reply_text(job) + "\n")


def reply_text(job: Job) -> str:
    return "".join(job.text).strip()


def report(
    args: argparse.Namespace, session: Session, jobs: list[Job], unread: dict[str, AudioError], times: list[float]
) -> None:
    """Figures of the run; the first step compiles kernels and is not one of them."""
    rate = session.mimi.frame_rate
    counted = np.array(times[1:] or times) * 1000
    figures = {
        "steps": len(times),
        "ms_per_step_p50": round(float(np.percentile(counted, 50)), 2),
        "ms_per_step_p95": round(float(np.percentile(counted, 95)), 2),
        "real_time_factor": round(float(np.mean(counted)) * rate / 1000, 3),
        "peak_memory_gb": round(mx.get_peak_memory() / 1e9, 3),
    }
    if args.json:
        replies: list[dict[str, Any]] = [
            {
                "input": job.source,
                "output": None if job.writer is None else str(job.writer.path),
                "text": reply_text(job),
                "words": [{"word": w.text, "start": w.start, "end": w.end} for w in job.words],
                "duration": round(job.samples / session.sample_rate, 3),
                **({} if job.ending is None else {"complete": job.ending.complete}),
            }
            if job.error is None
            else {"input": job.source, "error": str(job.error)}
            for job in jobs
        ]
        replies += [{"input": name, "error": str(e)} for name, e in unread.items()]
        print(json.dumps({"replies": replies, **figures}, ensure_ascii=False, indent=1))
    say(
        f"{figures['steps']} steps, {figures['ms_per_step_p50']} ms per step (p95 {figures['ms_per_step_p95']}), "
        f"real-time factor {figures['real_time_factor']}, peak memory {figures['peak_memory_gb']} GB"
    )
    for job in jobs:
        if job.writer is not None and job.error is None and not sound_goes_out(args):
            say(f"wrote {job.writer.path}")


if __name__ == "__main__":
    commands.run(main)
