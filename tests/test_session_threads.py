"""Programs with sessions on any thread end well, leave nothing behind, and are told where a session may not be used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("embedding_program.py")
linux = pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")


def run(name: str, model: Path, *more: int) -> list[str]:
    """Lines of what the program `name` prints; it has to end by itself, with 0 and without a word of complaint."""
    done = subprocess.run(
        [sys.executable, PROGRAM, name, model, *map(str, more)], capture_output=True, text=True, timeout=600
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "name",
    [
        "spawn_and_close",
        "spawn_and_leave",
        "own_thread",
        "own_thread_not_waited_for",
        "daemon_that_steps",
        "daemon_that_waits",
        "worker_of_a_pool",
        "language_model_on_a_thread",
    ],
)
def test_the_program_ends_with_0(name):
    run(name, Path("demo"))


def test_a_session_whose_thread_has_ended(tiny_checkpoint):
    (line,) = run("session_outlives_its_thread", tiny_checkpoint)
    assert line.startswith("InputError this session belongs to the thread that made it (Thread-")


@linux
def test_no_thread_of_the_system_is_left(tiny_checkpoint):
    """MLX keeps a thread for every stream: those of the first session serve all that follow."""
    counts = run("own_threads_again_and_again", tiny_checkpoint)[0].split()
    assert len(set(counts)) == 1, counts


def check_steady(lines: list[str]) -> None:
    (threads, files, memory), (later_threads, later_files, later_memory) = (map(int, line.split()) for line in lines)
    assert later_threads <= threads
    assert later_files <= files
    assert later_memory <= memory + 5000, "kB"


@linux
def test_twenty_sessions_one_after_the_other(tiny_checkpoint):
    check_steady(run("again_and_again", tiny_checkpoint, 20))


@linux
@pytest.mark.slow
def test_two_hundred_sessions_one_after_the_other(tiny_checkpoint):
    check_steady(run("again_and_again", tiny_checkpoint, 200))


def test_another_thread_is_told_and_harms_nothing(tiny_checkpoint):
    *refusals, unharmed = run("wrong_thread", tiny_checkpoint)
    for line in refusals[:4]:
        assert line.startswith(
            "InputError this session belongs to the thread that made it (MainThread) and was used from another"
        )
    assert refusals[4].startswith("InputError this generator belongs to the thread")
    assert len(refusals) == 5
    assert unharmed == "True"


@pytest.mark.parametrize("bits", [(), (4,)])
def test_a_model_loaded_here_runs_on_any_thread(tiny_checkpoint, bits):
    assert run("one_model_many_threads", tiny_checkpoint, *bits) == ["True"]


def test_a_forked_child_is_told_and_harms_nothing(tiny_checkpoint):
    *refusals, code, index = run("forked_child", tiny_checkpoint)
    assert [line.split(":")[0] for line in refusals[:3]] == [
        "InputError this session belongs to the process that made it, and this is a forked child"
    ] * 3
    assert all("forked child of one that had loaded a model" in line for line in refusals[3:])
    assert len(refusals) == 5
    assert (code, index) == ("child 3", "1")


@linux
def test_a_forked_child_of_a_program_that_used_mlx_itself(tiny_checkpoint):
    refusal, code = run("forked_after_other_work", tiny_checkpoint)
    assert refusal.startswith("InputError this process is a forked child of one that had loaded a model or used MLX")
    assert code == "child 3"


def test_interrupts_leave_a_conversation_before_or_after_a_frame(tiny_checkpoint):
    assert run("interrupted", tiny_checkpoint) == ["True True"]


def test_a_forked_child_of_a_session_on_its_own_thread(tiny_checkpoint):
    *refusals, code, index = run("forked_with_a_thread", tiny_checkpoint)
    assert all(line.startswith("InputError this session's thread is in the process that made it") for line in refusals)
    assert len(refusals) == 2
    assert (code, index) == ("child 3", "0")


def test_a_child_forked_before_anything_is_loaded(tiny_checkpoint):
    assert run("forked_before_loading", tiny_checkpoint) == ["0", "child 3", "0"]
