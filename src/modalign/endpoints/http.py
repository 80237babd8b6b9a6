"""A chat model behind an OpenAI-compatible address: paced, retried, cached, counted.

Only the given address is contacted: no redirect is followed, and of the environment only the usual
variables for proxies and certificates are read.
"""

from __future__ import annotations

import email.utils
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2

from modalign.endpoints.cache import ReplyCache, request_key
from modalign.endpoints.chat import ChatMessage, Reply, Request, ToolSchema, Usage
from modalign.endpoints.errors import EndpointError, EndpointUsageError
from modalign.endpoints.pace import Pace, Retries
from modalign.endpoints.responses import listed_models, parsed_json, reply_from, server_message
from modalign.errors import UsageError

MAX_BYTES = 32 * 2**20
TRANSIENT = {408, 409, 425, 429, 500, 502, 503, 504, 529}
OURS = {"model", "messages", "tools", "stream", "n"}  # fields that the client sets, or must not


class ChatEndpoint:
    """Chat completions of one model at one address.

    Args:
        base_url: the address including its version, e.g. ``http://localhost:8000/v1``.
        model: the name the server knows the model by.
        api_key: sent as a bearer token; without it no key is sent or looked for.
        cache: file of replies (SQLite), or a :class:`ReplyCache`; a cached request is not sent.
        pace: requests per minute, and concurrent requests.
        retries: when and how often a failed request is retried.
        timeout: seconds without data from the server before an attempt fails.
        prices: cost of a million prompt and of a million completion tokens, for ``usage.cost``.
        settings: fields of every request: temperature, max_tokens, ...

    Raises:
        UsageError: the address is not an http(s) URL, or the key has characters that a header cannot carry.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        *,
        cache: ReplyCache | Path | None = None,
        pace: Pace | None = None,
        retries: Retries | None = None,
        timeout: float = 120.0,
        prices: tuple[float, float] = (0.0, 0.0),
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.base_url = _checked_address(base_url)
        self.model = model
        self.usage = Usage(prices)
        self.pace = pace or Pace()
        self.retries = retries or Retries()
        self.settings = dict(settings or {})
        self.cache = ReplyCache(cache) if isinstance(cache, Path) else cache
        self._client = httpx2.Client(
            headers=_headers(api_key),
            timeout=httpx2.Timeout(timeout),
            limits=httpx2.Limits(max_connections=self.pace.concurrency),
        )

    def __repr__(self) -> str:
        return f"ChatEndpoint({self.base_url!r}, {self.model!r})"

    def close(self) -> None:
        """Close the connections; the cache stays open for its owner."""
        self._client.close()

    def complete(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[ToolSchema] | None = None,
        *,
        sample: int = 0,
        **settings: Any,
    ) -> Reply:
        """Answer the last turn: from the cache, else from the server.

        Args:
            messages: the turns, as OpenAI's mappings.
            tools: schemas of tools that the model may call.
            sample: distinguishes equal requests in the cache.
            settings: further fields of this request.

        Raises:
            EndpointUsageError: the address, the key or the model's name is wrong.
            EndpointError: no usable reply after all attempts.
        """
        body = self._body(messages, tools, settings)
        key = request_key(self.base_url, body, sample)
        kept = None if self.cache is None else self.cache.get(key)
        if kept is not None:
            reply = reply_from(kept, cached=True)
        else:
            response, reply = self._persist(body)
            if self.cache is not None:
                self.cache.put(key, response)
        self.usage.add(reply)
        return reply

    def complete_all(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[Request, Reply | EndpointError]]:
        """Complete many requests, several at a time, in their order; a failed one yields its error.

        Requests are consumed as slots become free, so the iterable may be endless.

        Raises:
            EndpointUsageError: nothing can work (wrong address, key or model); replies so far are cached.
        """

        def one(request: Request) -> Reply | EndpointError:
            try:
                return self.complete(
                    request.messages, request.tools, sample=request.sample, **request.settings
                )
            except EndpointUsageError:
                raise
            except EndpointError as error:
                return error

        waiting: deque[tuple[Request, Future[Reply | EndpointError]]] = deque()
        pool = ThreadPoolExecutor(self.pace.concurrency)
        try:
            for request in requests:
                waiting.append((request, pool.submit(one, request)))
                if len(waiting) >= 2 * self.pace.concurrency:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _body(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[ToolSchema] | None,
        settings: dict[str, Any],
    ) -> dict[str, Any]:
        merged = self.settings | settings
        if wrong := OURS & merged.keys():
            raise UsageError(f"a request's settings cannot hold {', '.join(sorted(wrong))}")
        body = merged | {"model": self.model, "messages": list(messages)}
        if tools:
            body["tools"] = list(tools)
        return body

    def _persist(self, body: dict[str, Any]) -> tuple[dict[str, Any], Reply]:
        """Post until there is a usable reply, a final error, or no attempt left."""
        failed = 0
        while True:
            try:
                with self.pace.turn():
                    response = self._post(body)
                return response, reply_from(response)
            except EndpointError as error:
                failed += 1
                wait = self.retries.wait(failed, error.wait)
                final = not error.transient or failed >= self.retries.attempts
                if final or wait > self.retries.longest:
                    self.usage.failed()
                    raise _given_up(error, failed, wait, final) from None
                self.usage.retried()
                if error.wait is not None:
                    self.pace.hold(wait)  # the next turn starts after it
                else:
                    self.pace.clock.sleep(wait)

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.base_url}/chat/completions"
        try:
            with self._client.stream("POST", url, json=body) as response:
                status, headers = response.status_code, response.headers
                content = _bounded(response)
        except httpx2.TimeoutException as error:
            raise EndpointError(f"{url}: timed out ({error})", transient=True) from None
        except httpx2.ConnectError as error:
            message = f"{url}: cannot be reached ({error}); is the server running?"
            raise EndpointError(message, transient=True) from None
        except httpx2.RequestError as error:  # for example an interrupted response
            raise EndpointError(f"{url}: {error}", transient=True) from None
        if status == 200:
            return parsed_json(content, url)
        raise self._refused(status, headers, content)

    def _refused(self, status: int, headers: httpx2.Headers, content: bytes) -> EndpointError:
        said, code = server_message(content)
        where = f"{self.base_url} ({status}): {said}"
        if status in {401, 403}:
            return EndpointUsageError(f"{where}; the key is missing, wrong or without rights")
        if status == 404:
            return EndpointUsageError(f"{where}; {self._advice()}")
        if 300 <= status < 400:
            to = headers.get("location", "another address")
            return EndpointUsageError(f"{where}; it redirects to {to}: give that address")
        return EndpointError(
            where,
            status=status,
            wait=_retry_after(headers, self.pace.clock.now()),
            transient=status in TRANSIENT and code != "insufficient_quota",
        )

    def _advice(self) -> str:
        try:
            response = self._client.get(f"{self.base_url}/models")
            names = listed_models(response.content) if response.status_code == 200 else []
        except httpx2.RequestError:
            names = []
        if names:
            return f"no model {self.model!r} there; it has {', '.join(names[:20])}"
        return (
            f"no model {self.model!r} there, or no chat completions: the address is"
            " given up to its version, http://host:port/v1"
        )


def _checked_address(base_url: str) -> str:
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL as error:
        raise UsageError(f"{base_url}: not a URL ({error})") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise UsageError(f"{base_url}: expected http://host:port/v1 or https://...")
    if url.query or url.fragment:
        raise UsageError(f"{base_url}: an endpoint's address has no query and no fragment")
    return base_url.rstrip("/").removesuffix("/chat/completions")


def _headers(api_key: str | None) -> dict[str, str]:
    headers = {"User-Agent": "modalign", "Accept": "application/json"}
    if api_key is not None:
        key = api_key.strip()
        if not key or not key.isascii() or not key.isprintable():
            raise UsageError("the endpoint's key is empty or holds characters no key has")
        headers["Authorization"] = f"Bearer {key}"
    return headers


def _bounded(response: httpx2.Response) -> bytes:
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > MAX_BYTES:
            raise EndpointError(f"{response.url}: more than {MAX_BYTES // 2**20} MiB of response")
    return bytes(content)


def _retry_after(headers: httpx2.Headers, now: float) -> float | None:
    """Parse ``Retry-After``, in seconds or as a date (RFC 9110, 10.2.3), into seconds to wait."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except (ValueError, TypeError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _given_up(error: EndpointError, failed: int, wait: float, final: bool) -> EndpointError:
    """Create the final error: the last attempt's, and why there is no further one."""
    if isinstance(error, EndpointUsageError) or not error.transient:
        return error
    why = f"given up after {failed} attempts"
    if not final:
        why = f"the server asks to wait {wait:.0f} s, longer than the maximum wait"
    return EndpointError(f"{error}; {why}", status=error.status, wait=error.wait, transient=True)
