"""Files of the page: those of the package, or of a folder of one's own. Nothing outside of it, nothing hidden, no listing."""

from __future__ import annotations

from pathlib import Path

from aiohttp import hdrs, web

PAGE_FOLDER = Path(__file__).parent / "static"
# The system's own table may call a script something that browsers refuse to run.
TYPES = {
    ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml",
    ".json": "application/json", ".webmanifest": "application/manifest+json", ".wasm": "application/wasm",
    ".png": "image/png", ".jpg": "image/jpeg", ".ico": "image/x-icon", ".woff2": "font/woff2", ".wav": "audio/wav",
}  # fmt: skip
TEXT = ("text/", "application/json", "application/manifest+json", "image/svg+xml")


def find(root: Path, path: str) -> Path | None:
    """The file of the URL's decoded `path` below `root`, None where there is none that may be seen."""
    parts = [p for p in path.split("/") if p]
    if any(p.startswith(".") or "\\" in p or "\0" in p for p in parts):
        return None
    try:
        found = root.joinpath(*parts, *(() if parts else ("index.html",))).resolve()
        return found if found.is_relative_to(root.resolve()) and found.is_file() else None
    except OSError:
        return None


class Page(web.DynamicResource):
    """The files below `root` and no other path, so that what is not there is nobody's and not of a wrong method."""

    def __init__(self, root: Path):
        super().__init__("/{path:.*}")
        self._root = root
        for method in (hdrs.METH_GET, hdrs.METH_HEAD):
            self.add_route(method, self._send)

    async def resolve(self, request: web.Request) -> tuple[web.UrlMappingMatchInfo | None, set[str]]:
        return (None, set()) if find(self._root, request.path) is None else await super().resolve(request)

    async def _send(self, request: web.Request) -> web.StreamResponse:
        found = find(self._root, request.path)
        if found is None:
            raise web.HTTPNotFound
        kind = TYPES.get(found.suffix.lower(), "application/octet-stream")
        charset = "; charset=utf-8" if kind.startswith(TEXT) else ""
        # Revalidated each time: a page and its scripts are always of one version.
        headers = {hdrs.CONTENT_TYPE: kind + charset, hdrs.CACHE_CONTROL: "no-cache"}
        return web.FileResponse(found, headers=headers)
