"""A form with a recording in it: fields as text, the recording in a temporary file, however large it is."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import BodyPartReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from ...output import OutputFile, ScratchFolder
from .errors import ApiError, bad

LARGEST_UPLOAD, LONGEST_FIELD, MOST_FIELDS = 512 << 20, 64 << 10, 100
_PIECE = 1 << 20
# A client's name of its file, as far as it may be one of ours.
_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass
class Form:
    """`file` None: there was none. Fields that may come several times, named `...[]`, are all kept."""

    file: Path | None = None
    name: str = ""
    fields: dict[str, list[str]] = field(default_factory=dict)

    def get(self, name: str) -> str | None:
        """The last value of a field; None where it is missing or empty."""
        return (self.fields.get(name) or [""])[-1] or None

    def all(self, name: str) -> list[str]:
        """Every value of `name` and of `name[]`, which clients use for lists."""
        return self.fields.get(name, []) + self.fields.get(f"{name}[]", [])


@contextmanager
def scratch() -> Iterator[Path]:
    folder = ScratchFolder()
    try:
        yield folder.path
    finally:
        folder.remove()


async def receive(request: web.Request, folder: Path) -> Form:
    """Raises `ApiError` for what is no form, or too large."""
    if request.content_type != "multipart/form-data":
        found = request.headers.get(hdrs.CONTENT_TYPE, "none")
        raise bad(f"the body should be multipart/form-data with a file in it, found the type {found[:80]}.")
    form = Form()
    try:
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            if not isinstance(part, BodyPartReader) or not part.name:
                continue
            if part.name == "file" and form.file is None:
                form.name = _plain(part.filename)
                form.file = await _keep(part, folder / form.name)
            else:
                form.fields.setdefault(part.name, []).append(await _text(part))
            if sum(map(len, form.fields.values())) > MOST_FIELDS:
                raise bad(f"the form has more than {MOST_FIELDS} fields.")
    except (ValueError, AssertionError, LookupError, RuntimeError, HttpProcessingError) as e:
        # How aiohttp says that it found something else.
        raise bad(f"the body is no whole form ({getattr(e, 'message', None) or e or type(e).__name__}).") from None
    return form


def _plain(name: str | None) -> str:
    """A name to make a file of: the end of it, where the kind stands."""
    return _NAME.sub("_", (name or "").replace("\\", "/").rpartition("/")[2]).lstrip(".")[-80:] or "file"


async def _keep(part: BodyPartReader, path: Path) -> Path:
    size, waiting = 0, bytearray()
    with OutputFile(path) as output:
        while piece := await part.read_chunk(1 << 16):
            size += len(piece)
            if size > LARGEST_UPLOAD:
                raise ApiError(413, f"a file may have {LARGEST_UPLOAD >> 20} MiB.", param="file", code="file_too_large")
            waiting += part.decode(piece)
            if len(waiting) >= _PIECE:
                # A disk that is slow holds up nobody else.
                await asyncio.to_thread(output.write, bytes(waiting))
                waiting.clear()
        await asyncio.to_thread(output.write, bytes(waiting))
        await asyncio.to_thread(output.commit)
    return path


async def _text(part: BodyPartReader) -> str:
    value = bytearray()
    while piece := await part.read_chunk(1 << 13):
        value += part.decode(piece)
        if len(value) > LONGEST_FIELD:
            raise bad(f"a field may have {LONGEST_FIELD} bytes.", part.name)
    return value.decode()
