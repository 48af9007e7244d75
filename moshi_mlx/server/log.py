"""One line for each thing that happens, as `name=value`: for people and for programs. Nothing that was said, no token."""

from __future__ import annotations

import logging
import sys
from datetime import datetime, timezone

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError

logger = logging.getLogger("moshi_mlx.server")


def event(name: str, **fields: object) -> None:
    """`2026-11-27T07:00:00.000Z talk.begin talk=1 audio=opus`; floats with three digits, None left out."""
    logger.info("%s", " ".join([name, *(f"{k}={_value(v)}" for k, v in fields.items() if v is not None)]))


def _value(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text if text and all(c.isprintable() and c not in ' "=' for c in text) else repr(text)


class _FaultsOfClients(logging.Filter):
    """What was no request is told in a line: quoted, it could hold a token or what somebody wrote. And who has gone is no error."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            event("request.unreadable", status=error.code, reason=type(error).__name__)
        elif isinstance(error, RequestPayloadError):
            event("request.unreadable", status=400, reason=type(error).__name__)
        elif isinstance(error, ConnectionError):
            event("request.lost")
        else:
            return True
        return False


# For aiohttp's own words.
requests = logger.getChild("requests")
requests.addFilter(_FaultsOfClients())


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        line = f"{moment.strftime('%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def to_standard_error() -> None:
    """Where the commands want it; programs that embed the server configure the logger `moshi_mlx.server` themselves."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
