"""OpenAI's own client, connected to a server of the tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai

from serving.fake_engine import FakeEngine, Served, served

HELLO: list[Any] = [{"role": "user", "content": "hi"}]
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "count", "parameters": {"type": "object"}}}
]


@contextmanager
def connected(engine: FakeEngine) -> Iterator[tuple[Served, openai.OpenAI]]:
    """A server and a client of it."""
    with (
        served(engine) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield server, client


def asked(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "tiny", "messages": HELLO, **fields}  # type: ignore[call-overload]
    )
