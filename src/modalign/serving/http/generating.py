"""/v1/transform: one instruction in, text and media out, by the model's calls to generators.

The server asks itself, over its own chat route with ``tools``: limits, key, batching and metrics are those of any
chat.
"""

from __future__ import annotations

import asyncio
import base64
import mimetypes
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field
from starlette.requests import ClientDisconnect

from modalign.endpoints import ChatEndpoint, EndpointError, Retries
from modalign.serving.http.errors import GONE, ApiError, refused
from modalign.serving.http.schemas import MOST_TOKENS, Sampled
from modalign.tools.base import ToolError
from modalign.tools.planning.generate import Generating, Transformed

PATH = "/v1/transform"
TOKENS = 256
FORWARDED = ("temperature", "top_p", "seed", "stop")


class TransformRequest(Sampled):
    """An instruction."""

    instruction: Annotated[str, Field(min_length=1, max_length=20_000)]
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None


def add_generating(app: FastAPI, service: Any) -> None:
    """Add the route to the application of a :class:`~modalign.serving.http.app.Service`."""
    settings = service.settings

    @app.post(PATH, response_model=None, include_in_schema=False)
    async def transform(request: Request) -> Response:
        """Answer an instruction with text, and with media as data URLs."""
        try:
            given = await service.parsed_body(request, TransformRequest)
        except ClientDisconnect:
            return Response(status_code=GONE)
        if not given.instruction.strip():
            raise refused("instruction", "is empty: say what to make")
        if given.stream or (given.n or 1) > 1:
            raise refused("stream" if given.stream else "n", "one whole answer is given here")
        address = _address(request.scope["server"])

        def work() -> Transformed:
            chat = ChatEndpoint(
                f"{address}/v1", settings.name, settings.api_key, retries=Retries(attempts=1)
            )
            asked = given.model_dump(include=set(FORWARDED), exclude_none=True)
            asked |= {"max_tokens": given.max_tokens or TOKENS}
            try:
                return Generating(settings.generators, chat, settings=asked).answer(
                    given.instruction
                )
            finally:
                chat.close()

        try:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(service.media_pool, work)
        except (ToolError, EndpointError) as error:
            raise ApiError(502, str(error), code="no_answer") from error
        return JSONResponse(shown(found))


def _address(server: tuple[str, int]) -> str:
    host, port = server
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def shown(found: Transformed) -> dict[str, Any]:
    """Return an answer as JSON: its text, and each call with what it made or why it did not."""
    calls = []
    for call in found.calls:
        made = call.made
        kind = mimetypes.guess_type(f"x{made.suffix}")[0] if made else None
        data = base64.b64encode(made.data).decode() if made else ""
        calls.append(
            {
                "name": call.name,
                "arguments": call.arguments,
                "problem": call.problem or None,
                "modality": made.modality if made else None,
                "shows": made.shows if made else None,
                "url": f"data:{kind or 'application/octet-stream'};base64,{data}" if made else None,
            }
        )
    return {"object": "transform", "text": found.text, "calls": calls, "repaired": found.repaired}
