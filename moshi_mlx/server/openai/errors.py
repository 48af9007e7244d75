"""Errors as clients of OpenAI's interface expect them: a status, and JSON that says what is wrong with which field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from aiohttp import hdrs, web

from ...engine.streams import ModelStopped, NoFreeRow
from ...errors import InputError, MoshiError
from .. import log
from ..chat import without_folders
from ..guard import Handler
from ..listening import Gone

T = TypeVar("T")
PREFIX = "/v1/"
RETRY_SECONDS = "5"
# What other parts of the server say of these statuses, in OpenAI's words.
_CODES = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


class ApiError(Exception):
    """An answer that is an error. `param` is the field that is wrong; `kind` and `code` are for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    @property
    def kind(self) -> str:
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> web.Response:
        return web.json_response(self.body(), status=self.status, headers=self.headers)


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that cannot be: 400."""
    return ApiError(400, message, param=param, code=code)


def full() -> ApiError:
    """Every row is taken: 503, and when to come again."""
    sentence = "every row of this server is taken; try again later."
    return ApiError(503, sentence, code="server_full", headers={hdrs.RETRY_AFTER: RETRY_SECONDS})


def check(name: str, value: Any, checked: Callable[..., T], *rest: Any) -> T:
    """`checked(name, value, *rest)` of `moshi_mlx.arguments`, whose complaint becomes the answer."""
    try:
        return checked(name, value, *rest)
    except InputError as e:
        raise bad(str(e), name) from None


def of(error: BaseException) -> ApiError:
    """What to tell of an error of a stream."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, NoFreeRow):
        return full()
    if isinstance(error, ModelStopped):
        return ApiError(503, "the model of this server has stopped; it has to be started again.", code="model_stopped")
    if isinstance(error, MoshiError):
        return bad(without_folders(str(error)))
    log.logger.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed; its log says why.", code="internal_error")


@web.middleware
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Everything below `/v1/` fails in OpenAI's form, also where another part of the server refuses."""
    if not request.path.startswith(PREFIX):
        return await handler(request)
    try:
        response = await handler(request)
    except (Gone, ConnectionError):
        # Nobody reads it.
        return web.Response(status=499)
    except Exception as e:
        return of(e).response()
    if response.status < 400 or not isinstance(response, web.Response) or response.content_type != "text/plain":
        return response
    return _rewritten(response)


def _rewritten(refused: web.Response) -> web.Response:
    """A refusal in plain text, such as that of a wrong token, of a path that is not there, of a body that is too large."""
    sentence = (refused.text or "").strip()
    kept = {k: v for k, v in refused.headers.items() if k in (hdrs.ALLOW, hdrs.RETRY_AFTER, hdrs.UPGRADE)}
    return ApiError(refused.status, sentence, code=_CODES.get(refused.status), headers=kept).response()
