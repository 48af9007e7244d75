"""A form with a recording in it: fields as text, the recording in a temporary file, however large it is."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import BodyPartReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from .. import recordings
from .errors import ApiError, bad

LONGEST_FIELD, MOST_FIELDS = 64 << 10, 100
_CHUNK = 1 << 16
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
            if part.name == "file":
                if form.file is not None:
                    raise bad("the form has more than one `file`; send each recording in a request of its own.", "file")
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
    try:
        await recordings.keep(_pieces(part), path, recordings.LARGEST)
    except recordings.TooLarge as e:
        raise ApiError(413, str(e), param="file", code="file_too_large") from None
    return path


async def _pieces(part: BodyPartReader) -> AsyncIterator[bytes]:
    while piece := await part.read_chunk(_CHUNK):
        yield part.decode(piece)


async def _text(part: BodyPartReader) -> str:
    value = bytearray()
    async for piece in _pieces(part):
        value += piece
        if len(value) > LONGEST_FIELD:
            raise bad(f"a field may have {LONGEST_FIELD} bytes.", part.name)
    return value.decode()
