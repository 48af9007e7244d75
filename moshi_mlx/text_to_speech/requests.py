"""Requests of the published batch format: one JSON object per line with `turns`, `voices` and `id`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.input_files import check_name
from ..config.json_text import parse_json
from ..errors import InputError, quoted
from .text_sources import read_text


@dataclass(frozen=True)
class Request:
    """Turns of the main and the other speaker in alternation, voices in the same order, and the name of the outputs."""

    turns: list[str]
    voices: list[str]
    id: str


def read_requests(path: Path) -> list[Request]:
    """All requests of a JSONL file, checked."""
    lines = read_text(path).splitlines()
    requests = [_request(f"{path}, line {n}", line) for n, line in enumerate(lines, 1) if line.strip()]
    if not requests:
        raise InputError(f"{path} holds no requests.")
    seen: set[str] = set()
    for r in requests:
        if r.id in seen:
            raise InputError(f"{path} uses the id {quoted(r.id)} twice; their outputs would overwrite each other.")
        seen.add(r.id)
    return requests


def _request(where: str, line: str) -> Request:
    try:
        data: Any = parse_json(line.encode())
    except ValueError as e:
        raise InputError(f"{where} is not valid JSON: {e}.") from None
    if not isinstance(data, dict) or set(data) != {"turns", "voices", "id"}:
        found = quoted(sorted(data)) if isinstance(data, dict) else type(data).__name__
        raise InputError(f"{where} should be an object with turns, voices and id, found {found}.")
    for key in ("turns", "voices"):
        if not isinstance(data[key], list) or any(not isinstance(v, str) for v in data[key]):
            raise InputError(f"{where}: {key!r} should be a list of texts, found {quoted(data[key])}.")
    name = data["id"]
    if not isinstance(name, str) or not name.strip() or "/" in name or name.startswith("."):
        raise InputError(f"{where}: 'id' should be a plain file name, found {quoted(name)}.")
    check_name(name, f"{where}: 'id'", InputError)
    if not any(t.strip() for t in data["turns"]):
        raise InputError(f"{where}: the turns are empty, there is nothing to say.")
    return Request(data["turns"], data["voices"], name)
