"""Send a request's answer: whole as JSON, or in chunks as server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from modalign.serving.http.errors import GONE, ApiError, draining
from modalign.serving.http.runs import Ask, Run
from modalign.serving.http.shapes import Collected, Shape
from modalign.serving.requests import Delta, Event, Finished, Prompt, Started

log = logging.getLogger("modalign.serving")
Result = TypeVar("Result")

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Work:
    """A request, parsed and ready for the engine.

    Attributes:
        prompts: without repetition.
        asks: ``n`` for every prompt, in the order of the answer's choices.
        shape: format of the answer.
        stream: whether to send server-sent events.
        stream_usage: whether the stream ends with the usage.
    """

    prompts: list[Prompt]
    asks: list[Ask]
    shape: Shape
    stream: bool = False
    stream_usage: bool = False

    def usage(self, run: Run) -> dict[str, Any]:
        """Count tokens read and generated; every prompt counts once, whatever ``n``."""
        read = sum(len(prompt.ids) for prompt in self.prompts)
        each = len(self.asks) // len(self.prompts)
        cached = sum(run.cached(place * each) for place in range(len(self.prompts)))
        details: dict[str, int] = {"cached_tokens": cached, "text_tokens": read}
        for prompt in self.prompts:
            for modality, count in prompt.media_tokens.items():
                name = f"{modality}_tokens"
                details[name] = details.get(name, 0) + count
                details["text_tokens"] -= count
        return {
            "prompt_tokens": read,
            "completion_tokens": run.new_tokens,
            "total_tokens": read + run.new_tokens,
            "prompt_tokens_details": details,
        }


def failure(event: Finished) -> ApiError | None:
    """Return the client's error if the engine failed; the engine's own message goes to the log."""
    if event.reason == "cancelled":
        return draining()
    if event.reason == "error":
        log.error("the engine gave up a request: %s", event.error)
        return ApiError(500, "the model failed; see the server's log", code="engine_error")
    return None


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result | None:
    """Do work for a client while it is connected; None if it disconnects."""
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        for task in (doing, leaving):
            task.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Answer(Response):
    """Runs a request's work and sends its answer; always frees the engine's slots.

    Args:
        work: the prepared request.
        run: its answers, started.
        stalled_seconds: a client that reads nothing for so long is dropped.
        left: called at the end.
    """

    def __init__(
        self, work: Work, run: Run, stalled_seconds: float, left: Callable[[], None]
    ) -> None:
        self.work, self.run, self.stalled, self.left = work, run, stalled_seconds, left
        self.status_code = 200
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            answer = self._stream(send) if self.work.stream else self._whole(scope, receive, send)
            if await unless_gone(receive, answer) is None:
                scope["modalign.status"] = GONE
        except TimeoutError:  # the response stays open-ended: the connection is closed
            scope["modalign.status"] = GONE
        finally:
            self.run.cancel()
            self.left()

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> bool:
        answers = [Collected() for _ in self.work.asks]
        error = None
        while self.run.open and error is None:
            for choice, event in await self.run.events():
                error = error or _collect(answers[choice], event)
        if error is None:
            usage = self.work.usage(self.run)
            # A scored prompt is megabytes of JSON, which no other client should wait for.
            body = await asyncio.to_thread(self.work.shape.written_whole, answers, usage)
            await Response(body, media_type="application/json")(scope, receive, send)
        else:
            await error.response()(scope, receive, send)
        return True

    async def _stream(self, send: Send) -> bool:
        """Chunks as they come: all that came together goes out together."""
        begun = False
        while self.run.open:
            events, error = await self.run.events(), None
            for _, event in events:
                error = error or (failure(event) if isinstance(event, Finished) else None)
            if any(isinstance(event, Started) and event.prompt for _, event in events):
                chunks = await asyncio.to_thread(self._chunks, events)
            else:
                chunks = self._chunks(events)
            if error is not None and not begun:  # an error still can have its status
                await _send_whole(send, error)
                return True
            if not begun:
                await _begin(send)
                begun = True
            if error is not None:
                chunks.append(f"data: {json.dumps(error.body())}\n\n")
            await self._send(send, "".join(chunks).encode())
            if error is not None:
                break
        else:
            if self.work.stream_usage:
                usage = self.work.shape.usage_chunk(self.work.usage(self.run))
                await self._send(send, usage.encode())
        await self._send(send, DONE, more=False)
        return True

    def _chunks(self, events: Sequence[tuple[int, Event]]) -> list[str]:
        return [self.work.shape.chunk(choice, event) for choice, event in events]

    async def _send(self, send: Send, body: bytes, more: bool = True) -> None:
        if body:
            async with asyncio.timeout(self.stalled):
                await send({"type": "http.response.body", "body": body, "more_body": more})


def _collect(answer: Collected, event: Event) -> ApiError | None:
    if isinstance(event, Delta):
        answer.texts.append(event.text)
        answer.tokens += event.tokens
    elif isinstance(event, Started):
        answer.prompt = event.prompt
    else:
        answer.reason = event.reason
        return failure(event)
    return None


async def _begin(send: Send) -> None:
    headers = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # a proxy that collects chunks would undo streaming
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _send_whole(send: Send, error: ApiError) -> None:
    response = error.response()
    head = {"type": "http.response.start", "status": error.status, "headers": response.raw_headers}
    await send(head)
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": False})
