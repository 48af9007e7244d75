"""How every command begins and ends: signals, exit codes, and errors told in one sentence."""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from ..errors import CutShortWarning, MoshiError, clean, quit_at_once
from ..output import open_nowhere, remove_unfinished

# Signals that end a command, and how that is told.
_ENDS = {"SIGTERM": "terminated", "SIGHUP": "the terminal was closed"}
# Whether this process is a command of ours, so that Ctrl-C is ours too.
_is_command = False


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Around the import of what a command needs: until then Ctrl-C ends it at once. Libraries are not made for an exception while they are
    imported, Python's own callbacks swallow it, and nothing is under way yet that would have to be ended in order.
    """
    if _is_command:
        signal.signal(signal.SIGINT, quit_at_once)
    yield
    if _is_command:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def server_packages() -> Iterator[None]:
    """Around the import of the server, whose packages are an extra: what is missing, and how it is installed."""
    try:
        yield
    except ModuleNotFoundError as e:
        if e.name not in ("aiohttp", "sphn", "msgpack"):
            raise
        raise SystemExit(
            f"error: the server needs {e.name}: pip install '.[server]' in the clone of moshi_mlx"
        ) from None


def run(main: Callable[[list[str] | None], int | None], argv: list[str] | None = None) -> NoReturn:
    """Call a command's `main` and exit: 0, 1 for a `MoshiError` or what the system refuses, 130 when interrupted, 143 when asked to terminate,
    129 when the terminal is closed. Nothing unfinished is left.
    """
    global _is_command
    ended_by = None

    def end(signum, frame):
        nonlocal ended_by
        ended_by = _ENDS[signal.Signals(signum).name]
        raise SystemExit(128 + signum)

    show = warnings.showwarning

    def notice(message, category, *rest):
        if issubclass(category, CutShortWarning):
            print(clean(str(message)), file=sys.stderr)
        else:
            show(message, category, *rest)

    warnings.showwarning = notice
    # Stays so until what it needs has been imported.
    _is_command = signal.getsignal(signal.SIGINT) is quit_at_once
    for name in _ENDS:
        # What was started to be deaf for it (`nohup`) stays so.
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), end)
    _escape_unwritable(sys.stdout)
    try:
        code = main(argv) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
    except MoshiError as e:
        print(f"error: {e}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        code = 130
    except SystemExit:
        if ended_by is not None:
            # The terminal may be gone.
            with contextlib.suppress(OSError):
                print(f"\n{ended_by}", file=sys.stderr)
        raise
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does.
        _drop_output()
        code = 1
    except OSError as e:
        # A folder that may not be looked into, a full disk behind `> file`; anything else is a defect of ours.
        if e.filename is None:
            if e.errno not in (errno.ENOSPC, errno.EFBIG, errno.EIO):
                raise
            _drop_output()
        print(f"error: {e.filename or 'standard output'} cannot be used: {e.strerror}.", file=sys.stderr)
        code = 1
    except MemoryError:
        advice = "Close other programs, or take fewer bits: -q 4, or a folder that python -m moshi_mlx.quantize made."
        print(f"error: out of memory. {advice}", file=sys.stderr)
        code = 1
    finally:
        remove_unfinished()
    sys.exit(code)


def _drop_output() -> None:
    """What is still buffered for standard output would fail again at exit."""
    if sys.stdout is not None:
        with contextlib.suppress(OSError, MoshiError):
            os.dup2(open_nowhere(), sys.stdout.fileno())


def _escape_unwritable(stream: Any) -> None:
    """Have a text stream write what its encoding lacks as JSON writes it (`\\u00e9`), rather than fail: JSON stays what it is."""
    codecs.register_error("json escapes", _json_escapes)
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="json escapes")


def _json_escapes(problem: UnicodeError) -> tuple[str, int]:
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    return json.dumps(problem.object[problem.start : problem.end])[1:-1], problem.end
