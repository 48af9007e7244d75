"""What the HTTP library refuses, in a sentence: paths that are not there, methods, bodies that cannot be read."""

from __future__ import annotations

from aiohttp import hdrs, web
from aiohttp.http_exceptions import ContentEncodingError

from .guard import Handler
from .openai.errors import bad

# Of a client's path in a message to it.
_SHOWN = 200


@web.middleware
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Stands next to the handlers: what it answers is plain text, which others may put into another form."""
    path = request.path[:_SHOWN]
    try:
        return await handler(request)
    except web.RequestPayloadError:
        sentence = "the body cannot be read: it is not what its Content-Encoding or Transfer-Encoding says."
        return web.Response(status=400, text=sentence + "\n")
    except web.HTTPError as e:
        sentence = {
            404: f"this server has no {path}.",
            405: f"{path} does not answer {request.method}.",
            413: "the request is too large.",
        }.get(e.status, (e.text or "").strip())
        headers = {hdrs.ALLOW: e.headers[hdrs.ALLOW]} if hdrs.ALLOW in e.headers else {}
        return web.Response(status=e.status, text=sentence + "\n", headers=headers)


class Line(web.RequestHandler):
    """A connection. A body of a coding that is not understood is refused before it is known which path it is for: in OpenAI's form, whose
    programs need it; everybody else can read it.
    """

    __slots__ = ()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        answer = super().handle_error(request, status, exc, message)
        if isinstance(exc, ContentEncodingError):
            answer = bad("the body's Content-Encoding is not understood; send it plain, gzip or deflate.").response()
            answer.force_close()
        return answer
