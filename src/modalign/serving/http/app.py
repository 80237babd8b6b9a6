"""The application: routes, what they share, and its OpenAPI document."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic.json_schema import models_json_schema
from starlette.requests import ClientDisconnect

from modalign.data.modalities import modality_of
from modalign.serving.decoding import Decoders, DecodingLimits, memory_for
from modalign.serving.http import answers, chat, completions
from modalign.serving.http.answering import Answer, Work
from modalign.serving.http.body import Bodies, Schema, parsed
from modalign.serving.http.errors import GONE, ApiError, add_handlers, draining
from modalign.serving.http.fetch import Fetcher
from modalign.serving.http.fields import further_fields
from modalign.serving.http.gate import Gate
from modalign.serving.http.generating import add_generating
from modalign.serving.http.media import MediaReader
from modalign.serving.http.metrics import Metrics
from modalign.serving.http.page import add_page
from modalign.serving.http.runs import Relay, Run
from modalign.serving.http.schemas import ChatRequest, CompletionRequest, Sampled
from modalign.serving.http.settings import Settings
from modalign.serving.requests import Engine
from modalign.serving.shares import Shares
from modalign.version import __version__

GATE = (401, 421, 500)  # statuses that every route may return
WORK = (400, 404, 408, 413, 415, 429, 503)


class Service:
    """What the routes share.

    Args:
        engine: makes the answers.
        settings: of the server.

    Attributes:
        draining: new requests are refused.
        serving: requests being prepared or answered; those whose body is still arriving do not count.
        most: maximum of these at a time.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine, self.settings = engine, settings
        self.metrics = Metrics(engine.state)
        media = settings.media
        self.fetcher = Fetcher(settings.url_hosts, media.url_bytes, media.url_seconds)
        self.decoders = Decoders(
            DecodingLimits(
                media.decode_seconds, memory_for(max(media.image_pixels, media.video_pixels))
            )
        )
        self.pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="modalign-request")
        # Requests with media wait for hosts and decoders: on threads of their own, which cost little.
        self.media_pool = ThreadPoolExecutor(
            settings.requests, thread_name_prefix="modalign-request-media"
        )
        self._media: Counter[str] = Counter()  # requests whose media are read now, by client
        self.created = int(time.time())
        self.draining = False
        self.serving, self.most = 0, settings.requests
        self._shares = Shares(settings.requests)
        self._bodies = Bodies(settings)
        self._relay: Relay | None = None

    async def answer(
        self, request: Request, schema: type[Schema], prepare: Callable[[Schema], Work]
    ) -> Response:
        """Read, prepare and start one request; the returned response sends its answer.

        Raises:
            ApiError: it is refused.
        """
        client = client_of(request)
        self._admit(client)
        counted = 0
        try:
            async with self._bodies.read(request) as body:  # let go before media are waited for
                self._admit(client)  # others may have come meanwhile
                counted = 1
                self.serving += 1
                self._shares.take(client)
                loop = asyncio.get_running_loop()
                given = await loop.run_in_executor(self.pool, self._parsed, schema, body)
                del body
            run, work = await self._started(request, given, prepare)
        except BaseException:
            if counted:
                self._left(client)
            raise
        return Answer(work, run, self.settings.stalled_seconds, partial(self._left, client))

    def _admit(self, client: str) -> None:
        if self.draining:
            raise draining()
        if self.serving >= self.most or not self._shares.free(client):
            raise ApiError(
                429,
                f"{self.serving} requests are being served; try again soon",
                code="too_many_requests",
                headers={"Retry-After": "1"},
            )

    async def _started(
        self, request: Request, given: Schema, prepare: Callable[[Schema], Work]
    ) -> tuple[Run, Work]:
        loop = asyncio.get_running_loop()
        with self._place(given, client_of(request)) as pool:
            work = await loop.run_in_executor(pool, prepare, given)
        if self._relay is None:
            self._relay = Relay(loop)
        run = Run(self.engine, self._relay, work.asks, self.metrics, client_of(request))
        run.start()
        return run, work

    def _left(self, client: str) -> None:
        self.serving -= 1
        self._shares.give_back(client)

    async def parsed_body(self, request: Request, schema: type[Schema]) -> Schema:
        """Read and parse one request's body, for a route that answers by further requests.

        Raises:
            ApiError: it is refused.
        """
        self._admit(client_of(request))
        async with self._bodies.read(request) as body:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self.pool, self._parsed, schema, body)

    def _parsed(self, schema: type[Schema], body: bytes) -> Schema:
        request = parsed(schema, body, self.settings)
        if request.model is not None:
            self.known(request.model)
        return request

    @contextmanager
    def _place(self, request: Sampled, client: str) -> Iterator[ThreadPoolExecutor]:
        """Give the threads that prepare a request; with media, clients leave one another and texts a share.

        Raises:
            ApiError: too many requests with media are being prepared (429).
        """
        if not request.has_media:
            yield self.pool
            return
        most = max(self.settings.requests // 2, 1)
        if self._media.total() >= most or self._media[client] >= max(3 * most // 4, 1):
            raise ApiError(
                429,
                f"the media of {self._media.total()} requests are being read; try again soon",
                code="too_many_requests",
                headers={"Retry-After": "1"},
            )
        self._media[client] += 1
        try:
            yield self.media_pool
        finally:
            self._media[client] -= 1
            self._media += Counter()  # without those that have none

    def close(self) -> None:
        """Let threads and processes end."""
        for pool in (self.pool, self.media_pool):
            pool.shutdown(wait=False, cancel_futures=True)
        self.decoders.close()

    def known(self, name: str) -> None:
        """Refuse the name of another model (404)."""
        if name != self.settings.name:
            raise ApiError(
                404,
                f"there is no model {name[:200]!r} here, only {self.settings.name!r}",
                param="model",
                code="model_not_found",
            )

    def media(self, client: str) -> MediaReader:
        """Return a reader for the media of one request."""
        decode = partial(self.decoders.decoded, specs=self.engine.signals, client=client)
        return MediaReader(self.engine.modalities, self.settings.media, self.fetcher, decode)

    def model(self) -> dict[str, Any]:
        """Describe the model as listed by /v1/models."""
        return {
            "id": self.settings.name,
            "object": "model",
            "created": self.created,
            "owned_by": "modalign",
            "max_model_len": self.engine.max_length,
            "modalities": ["text", *self.engine.modalities],
            "media": [_medium(name) for name in self.engine.modalities],
        }


def client_of(request: Request) -> str:
    """Who asks, by address: clients of one address share what one client is given."""
    return request.client.host if request.client is not None else ""


def _medium(modality: str) -> dict[str, Any]:
    known = modality_of(modality)
    json = known.inline.json if known.inline is not None else None
    return {"name": modality, "words": known.words, "endings": known.endings, "json": json}


def build_app(service: Service) -> FastAPI:
    """Build the application of a service, including its gate."""
    app = FastAPI(
        title="modalign",
        version=__version__,
        description="A model made by modalign, behind the OpenAI API.",
        docs_url=None,  # these pages load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    add_handlers(app)
    _add_completions(app, service)
    _add_models(app, service)
    _add_state(app, service)
    add_page(app)
    if service.settings.generators:
        add_generating(app, service)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    app.add_middleware(Gate, settings=service.settings, metrics=service.metrics)
    return app


def _add_completions(app: FastAPI, service: Service) -> None:
    engine, settings = service.engine, service.settings

    async def ask(
        request: Request, schema: type[Schema], prepare: Callable[[Schema], Work]
    ) -> Response:
        try:
            return await service.answer(request, schema, prepare)
        except ClientDisconnect:
            return Response(status_code=GONE)

    @app.post("/v1/chat/completions", **_described(ChatRequest, answers.ChatCompletion))
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation, with media if the model takes them."""
        return await ask(
            request,
            ChatRequest,
            lambda given: chat.prepare(
                given, engine, service.media(client_of(request)), settings.name
            ),
        )

    @app.post("/v1/completions", **_described(CompletionRequest, answers.Completion))
    async def text_completions(request: Request) -> Response:
        """Continue a text, or score it (`echo`, `max_tokens` 0, `logprobs`)."""
        return await ask(
            request,
            CompletionRequest,
            lambda given: completions.prepare(given, engine, settings.name, settings.choices),
        )


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", response_model=None, responses=_answers(answers.Models))
    async def models() -> JSONResponse:
        """List the models: there is one."""
        return JSONResponse({"object": "list", "data": [service.model()]})

    @app.get("/v1/models/{model:path}", response_model=None, responses=_answers(answers.Model, 404))
    async def model(model: str) -> JSONResponse:
        """Describe a model."""
        service.known(model)
        return JSONResponse(service.model())


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health", response_model=None, responses=_answers(answers.Health, 503))
    async def health() -> JSONResponse:
        """Report the server's state: 200 while it accepts requests."""
        state = service.engine.state()
        if service.draining or state.draining:
            raise draining()
        shown = ("running", "waiting", "max_batch", "batching", "note", "reading", "reading_note")
        fields = {name: getattr(state, name) for name in shown}
        return JSONResponse({"status": "ok", "model": service.settings.name, **fields})

    text = {"description": "Figures", "content": {"text/plain": {"schema": {"type": "string"}}}}

    @app.get(
        "/metrics",
        response_class=Response,
        response_model=None,
        responses={200: text, **answers.problems(*GATE)},
    )
    async def metrics() -> Response:
        """Give the server's figures in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


# --- the OpenAPI document -----------------------------------------------------------------------


def _answers(model: type[answers.Shown], *errors: int) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": model}, **answers.problems(*errors, *GATE)}


def _described(schema: type[Schema], model: type[answers.Shown]) -> dict[str, Any]:
    """Document a route that reads its own body (under limits, off the event loop)."""
    reference = {"$ref": f"#/components/schemas/{schema.__name__}"}
    body = {"required": True, "content": {"application/json": {"schema": reference}}}
    responses = _answers(model, *WORK)
    # Of each event; the last one's data is [DONE].
    event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    responses[200]["content"] = {"text/event-stream": {"schema": event}}
    return {
        "response_model": None,
        "responses": responses,
        "openapi_extra": {"requestBody": body},
    }


def _document(app: FastAPI) -> dict[str, Any]:
    """Add the bodies' schemas to FastAPI's document."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        _, defined = models_json_schema(
            [(ChatRequest, "validation"), (CompletionRequest, "validation")],
            ref_template="#/components/schemas/{model}",
        )
        for schema in (ChatRequest, CompletionRequest):
            defined["$defs"][schema.__name__] |= further_fields(
                defined["$defs"][schema.__name__]["properties"], app.state.service.settings.name
            )
        document["components"]["schemas"] |= defined["$defs"]
        app.openapi_schema = document
    return app.openapi_schema
