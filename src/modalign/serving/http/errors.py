"""Errors in OpenAI's format: ``{"error": {"message", "type", "param", "code"}}``, whatever went wrong."""

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

GONE = 499  # the client has disconnected; only for the log and the metrics
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
INTERNAL = "the server failed to answer; see its log"


class ApiError(ModalignError):
    """An error response.

    Args:
        status: HTTP status.
        message: what was wrong and what to do.
        param: the invalid field of the request: ``messages[0].content``.
        code: an error code for programs.
        headers: further response headers.
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
        """Return the response's JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self), "type": _TYPES.get(self.status, kind)}
        return {"error": {**error, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the response."""
        return JSONResponse(self.body(), self.status, self.headers)


def refused(param: str, message: str, code: str | None = None) -> ApiError:
    """Create the error for an invalid field (400)."""
    return ApiError(400, f"{param}: {message}", param=param, code=code)


def draining() -> ApiError:
    """Create the error of a server that is shutting down (503)."""
    return ApiError(
        503, "the server is shutting down and accepts no further requests", code="draining"
    )


def api_error(error: Exception) -> ApiError:
    """Convert a failure for the client; what the client cannot fix goes only to the log."""
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
    """Convert a schema error: the deepest location is closest to the cause.

    A list that may be of several kinds is read up to the first wrong element for each; the kind that got
    furthest is meant.
    """
    found = [
        (_path(problem["loc"], given, problem["type"] == "missing"), _words(problem["msg"]))
        for problem in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    deepest = max((path for path, _ in found), key=_reach)
    said = dict.fromkeys(message for path, message in found if path == deepest)
    param = dotted(deepest) or "body"
    return refused(param, ", or ".join(said)[:500])


def _reach(path: tuple[int | str, ...]) -> tuple[int, list[int]]:
    return len(path), [step for step in path if isinstance(step, int)]


def _words(message: str) -> str:
    return re.sub(r"dictionary( or instance of \w+)?", "object", message)


def _path(location: tuple[int | str, ...], given: Any, missing: bool) -> tuple[int | str, ...]:
    """Reduce a location to the path into the request, without the schema's branches.

    A branch may have the name of a field (a part's type "text"): the longer path is meant, and of equally long
    ones the one that ends where the location ends.
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
    words = "".join(f"[{step}]" if isinstance(step, int) else f".{step[:100]}" for step in path)
    return words.removeprefix(".")


def add_handlers(app: FastAPI) -> None:
    """Give every failure of an application OpenAI's format."""

    async def ours(_: Request, error: Exception) -> JSONResponse:
        return api_error(error).response()

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        shown = request.url.path[:200]
        if error.status_code == 404:
            message = f"there is no {shown}; see /openapi.json for the routes"
        elif error.status_code == 405:
            message = f"{shown} does not take {request.method}"
        else:
            message = str(error.detail)
        return ApiError(error.status_code, message, headers=error.headers).response()

    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ModalignError, ours)
    app.add_exception_handler(Exception, ours)
