"""A gateway: encoders and connectors run here, the language model on a separate server.

The backend is an unmodified server of the plain language model whose completions route accepts prompt
embeddings, as vLLM's does (``--enable-prompt-embeds``; documented from 0.9.2 on: ``prompt_embeds``, a base64
``torch.save`` of the ``(T, D)`` tensor; run with 0.32). That route applies no chat template, so the embeddings
cover the whole templated prompt. A pickle is written here but never read.
"""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import torch

from modalign.chat_templates import end_ids
from modalign.devices import device_named
from modalign.errors import ModalignError, UsageError
from modalign.lengths import served_length
from modalign.models.export.gateway import Gateway, load_gateway
from modalign.serving.fair import Turns
from modalign.serving.prompts import Prompts
from modalign.serving.requests import (
    Alternative,
    Delta,
    DrainingError,
    EngineState,
    Finished,
    FinishReason,
    Listener,
    Prompt,
    PromptError,
    QueueFullError,
    Sampling,
    Scored,
    Started,
    Turn,
)
from modalign.serving.runners import MediaCache, encoded
from modalign.serving.shares import Shares
from modalign.serving.text import Detokenizer, Piece, Spelling
from modalign.strict_json import loads

log = logging.getLogger(__name__)
_numbers = count()
ENDED: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class BackendError(ModalignError):
    """The language model's server did not answer as expected; the message quotes it."""


def open_gateway(
    folder: Path | str,
    backend: str,
    *,
    model: str | None = None,
    api_key: str | None = None,
    device: str = "auto",
    max_batch: int = 16,
    max_waiting: int = 64,
    max_length: int | None = None,
    timeout: float = 300.0,
) -> GatewayEngine:
    """Load a gateway folder and check that its backend is reachable.

    Args:
        folder: written by ``modalign export --to gateway``.
        backend: the server's address, with or without ``/v1``.
        model: the language model's name there; None: the only one served.
        api_key: sent as a bearer token.
        device: of encoders and connectors.
        max_batch: concurrent requests at the backend, which batches them.
        max_waiting: requests that may wait.
        max_length: positions of prompt and answer; None: the limit of the backend, or of the language model.
        timeout: seconds without data from the backend.

    Raises:
        UsageError: there is no gateway, or the backend does not answer or serves another model.
    """
    gateway = load_gateway(folder, device_named(device))
    address = _address(backend)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    served = _served(address, headers, model)
    declared = served.get("max_model_len") or gateway.language_model["max_position_embeddings"]
    return GatewayEngine(
        gateway,
        Backend(address, served["id"], headers, timeout),
        max_batch=max_batch,
        max_waiting=max_waiting,
        max_length=served_length(max_length, declared),
    )


def _address(backend: str) -> str:
    try:
        url = httpx2.URL(backend)
    except (httpx2.InvalidURL, TypeError) as error:
        raise UsageError(f"--backend {backend!r} is not an address: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError(f"--backend {backend!r} is not an address: write http://HOST:PORT")
    plain = str(url).rstrip("/")
    return plain if plain.endswith("/v1") else f"{plain}/v1"


def _served(address: str, headers: Mapping[str, str], wanted: str | None) -> dict[str, Any]:
    """Return the backend's entry for its model."""
    try:
        response = httpx2.get(f"{address}/models", headers=dict(headers), timeout=30)
        response.raise_for_status()
        models = {each["id"]: each for each in response.json()["data"]}
    except httpx2.HTTPStatusError as error:
        raise UsageError(f"the backend {address} refuses: {error}") from error
    except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"no OpenAI-compatible server answers at {address} ({error}): start it first, for instance "
            "'vllm serve LANGUAGE_MODEL --enable-prompt-embeds'"
        ) from error
    if wanted is None and len(models) == 1:
        return next(iter(models.values()))
    if wanted not in models:
        raise UsageError(
            f"the backend {address} serves {', '.join(sorted(models)) or 'nothing'}: choose one with "
            "--backend-model"
        )
    return models[wanted]


@dataclass(frozen=True)
class Backend:
    """The server of the language model.

    Attributes:
        address: including ``/v1``.
        model: its name there.
        headers: headers of every request.
        timeout: seconds without data.
    """

    address: str
    model: str
    headers: Mapping[str, str]
    timeout: float


@dataclass(eq=False)
class _Asked:
    prompt: Prompt
    sampling: Sampling
    listener: Listener
    text: Detokenizer
    most: int
    loop: asyncio.AbstractEventLoop
    client: Hashable
    number: int = field(default_factory=lambda: next(_numbers))
    turn: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    cancelled: bool = False
    running: bool = False
    counted: int = field(default=0)
    scores: deque[dict[str, Any]] = field(
        default_factory=deque
    )  # scores of tokens whose text was not delivered yet

    def cancel(self) -> None:
        """Close the connection, which frees the slot at the backend."""
        self.cancelled = True
        self.loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()


class GatewayEngine:
    """The engine in front of a backend; see :class:`modalign.serving.requests.Engine`.

    Args:
        gateway: encoders, connectors and the input embedding.
        backend: where the language model is.
        max_batch, max_waiting, max_length: as :func:`open_gateway` takes them.
    """

    def __init__(
        self,
        gateway: Gateway,
        backend: Backend,
        *,
        max_batch: int,
        max_waiting: int,
        max_length: int,
    ) -> None:
        self.gateway, self.backend = gateway, backend
        self.prompts = Prompts(gateway.processor)
        self.spelling = Spelling(self.prompts.tokenizer)
        self.ends = end_ids(self.prompts.tokenizer, gateway.generation)
        self.modalities = self.prompts.modalities
        self.signals: Mapping[str, Mapping[str, Any]] = self.prompts.signals
        self.takes_tools = self.prompts.takes_tools
        self.max_batch, self.max_waiting, self.max_length = max_batch, max_waiting, max_length
        self.media = MediaCache()
        self._asked: set[_Asked] = set()
        self._changed = threading.Condition()
        self._draining = False
        self._read = self._made = 0
        self._encoder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="modalign-encoder")
        self._loop = asyncio.new_event_loop()
        self._queue, self._running, self._turns = list[_Asked](), list[_Asked](), Turns()
        self._shares = Shares(max_batch + max_waiting)
        self._client = httpx2.AsyncClient(
            headers=dict(backend.headers),
            timeout=httpx2.Timeout(backend.timeout, connect=10),
            limits=httpx2.Limits(max_connections=max_batch),
        )
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="modalign-gateway", daemon=True
        )
        self._thread.start()

    def chat_prompt(self, messages: Sequence[Turn], tools: Sequence[Any] | None = None) -> Prompt:
        """Render messages with the chat template, up to the answer; see ``Engine``."""
        return self.prompts.chat(messages, tools)

    def text_prompt(self, text: str | Sequence[int]) -> Prompt:
        """Make a prompt of plain text or token ids; see ``Engine``."""
        return self.prompts.text(text)

    def submit(
        self, prompt: Prompt, sampling: Sampling, listener: Listener, client: str = ""
    ) -> _Asked:
        """Queue a client's request; the next free place goes to whoever has fewest (:class:`Turns`).

        Raises:
            PromptError: it leaves no room for an answer, or asks for the prompt's log-probabilities.
            QueueFullError: too many wait, or of this client too many where others ask.
            DrainingError: the engine is shutting down.
        """
        if sampling.prompt_logprobs or sampling.max_tokens < 1:
            raise PromptError(
                "a prompt of embeddings has no tokens to score: echo and max_tokens 0 need a model that runs "
                "here"
            )
        left = self.max_length - len(prompt.ids)
        if left < 1:
            raise PromptError(
                f"the prompt has {len(prompt.ids)} tokens; this model reads {self.max_length}, the answer "
                "included"
            )
        before = prompt.ids if prompt.continued else ()
        text = Detokenizer(self.spelling, sampling.stop, before)
        asked = _Asked(
            prompt, sampling, listener, text, min(sampling.max_tokens, left), self._loop, client
        )
        with self._changed:
            if self._draining:
                raise DrainingError("the server is shutting down")
            most = self.max_batch + self.max_waiting
            if not self._shares.free(client) or len(self._asked) >= most:
                raise QueueFullError(f"{self.max_waiting} requests wait already; try again soon")
            self._shares.take(client)
            self._asked.add(asked)
        asyncio.run_coroutine_threadsafe(self._serve(asked), self._loop)
        return asked

    def state(self) -> EngineState:
        """Return the current state; the backend's steps are unknown."""
        with self._changed:
            running = sum(asked.running for asked in self._asked)
            waiting = len(self._asked) - running
        return EngineState(
            running=running,
            waiting=waiting,
            draining=self._draining,
            prompt_tokens=self._read,
            new_tokens=self._made,
            media_hits=self.media.hits,
            media_misses=self.media.misses,
            max_batch=self.max_batch,
            batching="the backend's",
            note=f"the language model runs at {self.backend.address}",
        )

    def drain(self, timeout: float) -> bool:
        """Stop accepting, finish running requests; return True if all finish within ``timeout`` seconds."""
        end = time.monotonic() + timeout
        with self._changed:
            self._draining = True
            while self._asked:
                left = end - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def close(self) -> None:
        """Stop at once and cancel running requests."""
        with self._changed:
            self._draining = True
            for asked in self._asked:
                asked.cancel()
        self.drain(30)
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=30)
        self._encoder.shutdown(wait=False, cancel_futures=True)

    async def _serve(self, asked: _Asked) -> None:
        """Send one request to the backend and deliver its events; the last event always comes."""
        asked.task = asyncio.current_task()
        last = Finished("cancelled")
        try:
            if not asked.cancelled:
                self._queue.append(asked)
                self._give_places()
                await asked.turn.wait()
                last = await self._answer(asked)
        except asyncio.CancelledError:
            pass
        except Exception as error:
            log.exception("a request failed")
            last = Finished("error", f"{type(error).__name__}: {error}")
        finally:
            for held in (self._queue, self._running):
                if asked in held:
                    held.remove(asked)
            self._give_places()
            asked.listener(last)
            with self._changed:
                self._asked.discard(asked)
                self._shares.give_back(asked.client)
                self._changed.notify_all()

    def _give_places(self) -> None:
        while self._queue and len(self._running) < self.max_batch:
            asked = self._turns.first(self._queue, self._running)
            self._turns.took(asked.client)
            self._queue.remove(asked)
            self._running.append(asked)
            asked.running = True
            asked.turn.set()

    async def _answer(self, asked: _Asked) -> Finished:
        embeddings = await self._loop.run_in_executor(self._encoder, self._embed, asked.prompt)
        self._read += len(asked.prompt.ids)
        body = self._body(asked, embeddings)
        reason: FinishReason | None = None
        begun = False
        async with aclosing(self._chunks(body)) as chunks:  # cancelling closes the connection
            async for chunk in chunks:
                if not begun:
                    asked.listener(Started())
                    begun = True
                reason = self._take(asked, chunk) or reason
        if reason is None:
            raise BackendError("the backend's answer ended without a finish reason")
        text, pieces = asked.text.finish()
        pieces += [Piece("", b"")] * (len(asked.scores) - len(pieces))  # an end mark has no text
        self._tell(asked, text, () if asked.text.stopped else self._scored(asked, pieces), 0)
        return Finished("stop" if asked.text.stopped else reason)

    def _take(self, asked: _Asked, chunk: Mapping[str, Any]) -> FinishReason | None:
        """Deliver a chunk of the backend's stream; return the finish reason, if it has one."""
        if not chunk.get("choices"):
            made = (chunk.get("usage") or {}).get("completion_tokens", 0)
            self._tell(asked, "", (), max(made - asked.counted, 0))
            return None
        choice = chunk["choices"][0]
        scores = _by_id(choice.get("logprobs"))
        text, told = "", list[Piece]()
        for score in scores:
            asked.scores.append(score)
            if score["token"] in self.ends or asked.text.stopped:
                continue
            new, pieces = asked.text.push(score["token"])
            text, told = text + new, told + pieces
        if choice.get("text") and not scores and not asked.counted:
            raise BackendError(
                "the backend sends no token ids: it must support return_tokens_as_token_ids, as vLLM does"
            )
        if scores:
            self._tell(asked, text, self._scored(asked, told), len(scores))
        return ENDED.get(choice.get("finish_reason") or "")

    def _scored(self, asked: _Asked, pieces: Sequence[Piece]) -> tuple[Scored, ...]:
        """Return delivered tokens with their log-probabilities, if requested."""
        found = []
        for piece in pieces:
            score = asked.scores.popleft()
            top = tuple(
                Alternative(*self.spelling.named(token, False), value)
                for token, value in score["top"].items()
            )
            name = self.spelling.named(score["token"], False).text
            found.append(Scored(score["token"], *piece, score["logprob"], top, name))
        return () if asked.sampling.logprobs is None else tuple(found)

    def _tell(self, asked: _Asked, text: str, tokens: tuple[Scored, ...], count: int) -> None:
        asked.counted += count
        self._made += count
        if text or tokens or count:
            asked.listener(Delta(text, tokens, count))

    @torch.inference_mode()
    def _embed(self, prompt: Prompt) -> torch.Tensor:
        """Compute the embeddings of the whole prompt, (T, D), on the CPU."""
        model = self.gateway.model
        ids = torch.tensor([prompt.ids], device=model.device)
        features = encoded(model, [prompt], self.media)
        return model(ids, features=features)[0].cpu()

    def _body(self, asked: _Asked, embeddings: torch.Tensor) -> dict[str, Any]:
        sampling, generation = asked.sampling, self.gateway.generation
        stops = [
            *([] if sampling.ignore_end else self.ends),
            *self.spelling.stop_ids(sampling.stop),
        ]
        rows = self.gateway.language_model["rows"]
        # The language model cannot generate placeholders beyond its vocabulary anyway.
        never = [token for token in generation.suppress_tokens or [] if token < rows]
        body: dict[str, Any] = {
            "model": self.backend.model,
            # No "prompt": vLLM 0.32 treats an empty one as a second prompt and refuses it.
            "prompt_embeds": wire_format(embeddings),
            "max_tokens": asked.most,
            "temperature": 0.0 if sampling.greedy else sampling.temperature,
            "top_p": sampling.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
            "stop_token_ids": stops,  # ignore_eos concerns other tokens
            # Ids, not texts: a token's text depends on the prompt, which the backend does not know.
            "logprobs": sampling.logprobs or 0,
            "return_tokens_as_token_ids": True,
        }
        optional = {
            "seed": sampling.seed,
            "stop": list(sampling.stop) or None,
            "logit_bias": {str(token): -100 for token in never} or None,
            "ignore_eos": True if sampling.ignore_end else None,
        }
        return body | {name: value for name, value in optional.items() if value is not None}

    async def _chunks(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        url = f"{self.backend.address}/completions"
        async with self._client.stream("POST", url, json=body) as response:
            if response.status_code != 200:
                said = (await response.aread())[:500].decode(errors="replace")
                raise BackendError(f"the backend answers {response.status_code}: {said}")
            async for line in response.aiter_lines():
                data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                if data == "[DONE]":
                    return
                if data:
                    chunk = loads(data)
                    if "error" in chunk:
                        raise BackendError(f"the backend failed: {chunk['error']}")
                    yield chunk


def wire_format(embeddings: torch.Tensor) -> str:
    """Encode a (T, D) tensor for the backend: ``torch.save`` of a plain CPU tensor, in base64."""
    buffer = io.BytesIO()
    torch.save(embeddings.detach().cpu().contiguous().clone(), buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


TOKEN = "token_id:"


def _by_id(logprobs: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Parse the completions route's log-probabilities, token by token, with ids (``token_id:5``)."""
    tokens = (logprobs or {}).get("tokens") or []
    if not logprobs or not all(str(token).startswith(TOKEN) for token in tokens):
        return []
    tops = logprobs.get("top_logprobs") or [None] * len(tokens)
    return [
        {
            "token": int(token.removeprefix(TOKEN)),
            "logprob": value,
            "top": {int(other.removeprefix(TOKEN)): each for other, each in (top or {}).items()},
        }
        for token, value, top in zip(tokens, logprobs["token_logprobs"], tops, strict=True)
    ]
