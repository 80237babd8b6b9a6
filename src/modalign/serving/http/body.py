"""Reading a request's body: only JSON, never more than allowed, never for longer than allowed."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from modalign.serving.http.errors import ApiError, refused, wrong_fields
from modalign.serving.http.fields import refuse_unsupported
from modalign.serving.http.schemas import Sampled
from modalign.serving.http.settings import Settings

Schema = TypeVar("Schema", bound=Sampled)


async def read_body(request: Request, settings: Settings) -> bytes:
    """Read the body.

    Only ``application/json`` is read: a page of another origin needs a preflight to send that, which
    this server does not answer.

    Raises:
        ApiError: of another type (415), larger (413, noticed while reading), or slower (408) than allowed.
        ClientDisconnect: the client disconnected.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "send the body as Content-Type: application/json")
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > settings.body_bytes:
        raise _too_large(settings)
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > settings.body_bytes:
                    raise _too_large(settings)
    except TimeoutError:
        raise ApiError(
            408, f"the body did not arrive within {settings.body_seconds:g} s", headers=_CLOSE
        ) from None
    return bytes(body)


def parsed(schema: type[Schema], body: bytes) -> Schema:
    """Parse a body as a request.

    Raises:
        ApiError: not JSON, not of the schema, or with an unsupported field.
    """
    try:
        # Parsed as JSON first, so that messages can give the place in the sent JSON.
        given = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise refused("body", f"not valid JSON ({error})") from None
    if not isinstance(given, dict):
        raise refused("body", "must be a JSON object: {...}")
    try:
        request = schema.model_validate(given)
    except ValidationError as error:
        raise wrong_fields(error, given) from None
    refuse_unsupported(request)
    if request.stream_options is not None and not request.stream:
        raise refused("stream_options", "needs stream: true")
    return request


_CLOSE = {"Connection": "close"}  # the rest of the body is not read


def _too_large(settings: Settings) -> ApiError:
    return ApiError(
        413,
        f"the body is larger than the {settings.body_bytes / 2**20:g} MB that this server takes: send "
        "smaller media",
        headers=_CLOSE,
    )
