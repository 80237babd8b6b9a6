"""Errors in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``, whatever went wrong."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from modalign.errors import DataError, ModalignError
from modalign.serving.requests import DrainingError, PromptError, QueueFullError

log = logging.getLogger("modalign.serving")

GONE = 499  # nobody reads it: the client has left; for the log and the metrics
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
INTERNAL = "the server failed to answer; its log says why"


class ApiError(ModalignError):
    """A request that gets an error for an answer.

    Args:
        status: of HTTP.
        message: what was wrong and what to do.
        param: the field of the request that was wrong: ``messages[0].content``.
        code: a word that programs can go by.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self), "type": _TYPES.get(self.status, kind)}
        return {"error": {**error, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def refused(param: str, message: str, code: str | None = None) -> ApiError:
    """A wrong field (400)."""
    return ApiError(400, f"{param}: {message}", param=param, code=code)


def draining() -> ApiError:
    """The server takes no further request (503)."""
    return ApiError(
        503, "the server is shutting down and takes no further request", code="draining"
    )


def api_error(error: Exception) -> ApiError:
    """What a failure is to the client; what it cannot act on is told to the log alone."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        wait = {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
        return ApiError(429, str(error), code="queue_full", headers=wait)
    if isinstance(error, DrainingError):
        return draining()
    if isinstance(error, PromptError | DataError):
        return ApiError(400, str(error))
    log.error("a request failed", exc_info=error)
    return ApiError(500, INTERNAL, code="internal_error")


def wrong_fields(error: ValidationError, given: Any) -> ApiError:
    """A request that is not of the schema: of all that was found the deepest, which is nearest to the cause."""
    found = [
        (_path(problem["loc"], given, problem["type"] == "missing"), _words(problem["msg"]))
        for problem in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    deepest = max(found, key=lambda one: len(one[0]))[0]
    said = dict.fromkeys(message for path, message in found if path == deepest)
    param = dotted(deepest) or "body"
    return refused(param, ", or ".join(said)[:500])


def _words(message: str) -> str:
    """pydantic's message in the words of JSON."""
    return re.sub(r"dictionary( or instance of \w+)?", "object", message)


def _path(location: tuple[int | str, ...], given: Any, missing: bool) -> tuple[int | str, ...]:
    """A location without the names of the schema's own branches: only what leads into the request.

    A branch may be called as a field is (a part's type "text"): of two ways the longer is meant, and of equal
    ones that which ends where the location ends.
    """
    if missing:
        return (*_path(location[:-1], given, False), location[-1])
    if not location:
        return ()
    step, *rest = location
    without = _path(tuple(rest), given, False)
    inside = (isinstance(given, dict) and step in given) or (
        isinstance(given, list) and isinstance(step, int) and step < len(given)
    )
    if not inside:
        return without
    through = (step, *_path(tuple(rest), given[step], False))
    return max(through, without, key=lambda way: (len(way), way[-1:] == location[-1:]))


def dotted(path: tuple[int | str, ...]) -> str:
    """``messages[0].content``."""
    words = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return words.removeprefix(".")


def add_handlers(app: FastAPI) -> None:
    """Give every failure of an application OpenAI's shape."""

    async def ours(_: Request, error: Exception) -> JSONResponse:
        return api_error(error).response()

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        shown = request.url.path[:200]
        if error.status_code == 404:
            message = f"there is no {shown}; see /openapi.json for what there is"
        elif error.status_code == 405:
            message = f"{shown} does not take {request.method}"
        else:
            message = str(error.detail)
        return ApiError(error.status_code, message, headers=error.headers).response()

    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ModalignError, ours)
    app.add_exception_handler(Exception, ours)
