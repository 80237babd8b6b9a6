"""Reading a request's body: only JSON, never more than allowed, never for longer than allowed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from modalign.serving.http.errors import ApiError, refused, wrong_fields
from modalign.serving.http.fields import refuse_unsupported
from modalign.serving.http.schemas import Sampled
from modalign.serving.http.settings import Settings

Schema = TypeVar("Schema", bound=Sampled)


@dataclass(eq=False)
class _Upload:
    """A body that is arriving: its bytes so far, and the timeout that ends it."""

    timeout: asyncio.Timeout
    content: bytearray = field(default_factory=bytearray)
    dropped: bool = False


class Bodies:
    """Reads the bodies of all requests within a common memory limit.

    If they would exceed it, the body that has been arriving for longest is dropped.

    Attributes:
        size: bytes held.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._arriving: dict[_Upload, None] = {}  # the oldest first
        self.size = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Read the body; it counts towards the limit until the block ends.

        Only ``application/json`` is read: a page of another origin needs a preflight to send that, which
        this server does not answer.

        Raises:
            ApiError: of another type (415), larger (413, noticed while reading), or slower (408) than allowed;
                or there is no memory for it (429).
            ClientDisconnect: the client disconnected.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, "send the body as Content-Type: application/json")
        stated = request.headers.get("content-length", "")
        if stated.isdigit() and int(stated) > self._settings.body_bytes:
            raise _too_large(self._settings)
        upload = _Upload(asyncio.timeout(self._settings.body_seconds))
        try:
            yield await self._arrived(request, upload)
        finally:
            self._let_go(upload)

    async def _arrived(self, request: Request, upload: _Upload) -> bytes:
        try:
            async with upload.timeout:
                self._arriving[upload] = None
                async for chunk in request.stream():
                    self._take(upload, chunk)
        except TimeoutError:
            if upload.dropped:
                raise _no_room() from None
            seconds = self._settings.body_seconds
            message = f"the body did not arrive within {seconds:g} s"
            raise ApiError(408, message, headers=_CLOSE) from None
        self._arriving.pop(upload, None)
        return bytes(upload.content)

    def _take(self, upload: _Upload, chunk: bytes) -> None:
        upload.content += chunk
        self.size += len(chunk)
        if len(upload.content) > self._settings.body_bytes:
            raise _too_large(self._settings)
        while self.size > self._settings.bodies_bytes and self._arriving:
            oldest = next(iter(self._arriving))
            oldest.dropped = True
            self._let_go(oldest)
            if oldest is upload:
                raise _no_room()
            oldest.timeout.reschedule(asyncio.get_running_loop().time())

    def _let_go(self, upload: _Upload) -> None:
        self._arriving.pop(upload, None)
        self.size -= len(upload.content)
        upload.content = bytearray()


def parsed(schema: type[Schema], body: bytes, settings: Settings) -> Schema:
    """A body as a request.

    Raises:
        ApiError: no JSON, too many values, not of the schema, or with a field that is not supported.
    """
    if body.count(b",") >= settings.values:
        raise refused("body", f"has more than {settings.values:,} values: send several requests")
    try:
        # Parsed as JSON first, so that messages can give the place in the sent JSON.
        given = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise refused("body", f"not valid JSON ({error})") from None
    if not isinstance(given, dict):
        raise refused("body", "must be a JSON object: {...}")
    if _most_fields(given) > settings.fields:
        raise refused("body", f"has an object of more than {settings.fields:,} fields")
    try:
        request = schema.model_validate(given)
    except ValidationError as error:
        raise wrong_fields(error, given) from None
    refuse_unsupported(request)
    if request.stream_options is not None and not request.stream:
        raise refused("stream_options", "needs stream: true")
    return request


def _most_fields(given: dict[str, Any]) -> int:
    """Count the fields of the largest object: each wrong one would be an error of its own."""
    most = 0
    level: list[dict[str, Any] | list[Any]] = [given]
    while level:
        most = max(most, *(len(each) for each in level if isinstance(each, dict)), 0)
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
    return most


_CLOSE = {"Connection": "close"}  # the rest of the body is not read


def _too_large(settings: Settings) -> ApiError:
    return ApiError(
        413,
        f"the body is larger than the {settings.body_bytes / 2**20:g} MB that this server takes: send "
        "smaller media",
        headers=_CLOSE,
    )


def _no_room() -> ApiError:
    return ApiError(
        429,
        "more bodies are on their way than the server can hold; try again soon",
        code="too_many_requests",
        headers=_CLOSE | {"Retry-After": "1"},
    )
