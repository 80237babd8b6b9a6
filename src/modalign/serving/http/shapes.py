"""Format answers, whole and in chunks, for both kinds of completions."""

from __future__ import annotations

import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modalign.serving.requests import Event, FinishReason, Scored

PIECE = 512  # elements of a list
_write = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
LEAST = -9999.0  # OpenAI's value for a probability of 0, because JSON has no infinity


@dataclass
class Collected:
    """One complete answer."""

    texts: list[str] = field(default_factory=list)
    prompt: tuple[Scored, ...] = ()
    tokens: list[Scored] = field(default_factory=list)
    reason: FinishReason = "stop"

    @property
    def text(self) -> str:
        """Return the whole text."""
        return "".join(self.texts)


class Shape(ABC):
    """Formats the answers of one request.

    Args:
        kind: object names, whole and in chunks.
        prefix: prefix of the ids.
        name: name of the model.
        usage: whether chunks have the field ``usage``.
    """

    def __init__(self, kind: tuple[str, str], prefix: str, name: str, usage: bool) -> None:
        self._head = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind[0],
            "created": int(time.time()),
            "model": name,
        }
        # The common part of all chunks is formatted once, because every token of every client has one.
        chunk = json.dumps(self._head | {"object": kind[1]}, separators=(",", ":"))
        self._chunk_head = f'data: {chunk[:-1]},"choices":['
        self._chunk_tail = ',"usage":null}\n\n' if usage else "}\n\n"

    @abstractmethod
    def chunk(self, choice: int, event: Event) -> str:
        """Return server-sent events for one event of the engine; empty if there is nothing to show."""

    @abstractmethod
    def choice(self, place: int, answer: Collected) -> dict[str, Any]:
        """Return one answer that is not streamed."""

    def written(self, choice: int, content: str, logprobs: str, finish: str | None) -> str:
        """Format a chunk of one choice; ``content`` and ``logprobs`` are JSON."""
        reason = "null" if finish is None else f'"{finish}"'
        return (
            f'{self._chunk_head}{{"index":{choice},{content},"logprobs":{logprobs},'
            f'"finish_reason":{reason}}}]{self._chunk_tail}'
        )

    def usage_chunk(self, usage: Mapping[str, Any]) -> str:
        """Return the last chunk, with the usage."""
        return f'{self._chunk_head}],"usage":{json.dumps(usage)}}}\n\n'

    def written_whole(self, answers: Sequence[Collected], usage: Mapping[str, Any]) -> bytes:
        """Write the response that is not streamed."""
        return in_pieces(self.whole(answers, usage)).encode()

    def whole(self, answers: Sequence[Collected], usage: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer that is not streamed."""
        choices = [self.choice(place, answer) for place, answer in enumerate(answers)]
        return {**self._head, "choices": choices, "usage": usage}


def in_pieces(value: Any, depth: int = 5) -> str:
    """Write JSON piece by piece: other threads cannot run within one."""
    if depth and isinstance(value, dict):
        members = (f"{_write(name)}:{in_pieces(each, depth - 1)}" for name, each in value.items())
        return f"{{{','.join(members)}}}"
    if depth and isinstance(value, list) and value:
        if isinstance(value[0], dict) and len(value) <= PIECE:
            return f"[{','.join(in_pieces(each, depth - 1) for each in value)}]"
        starts = range(0, len(value), PIECE)
        return f"[{','.join(_write(value[n : n + PIECE])[1:-1] for n in starts)}]"
    return _write(value)


def finite(logprob: float) -> float:
    """Return a log-probability that JSON can represent."""
    return max(logprob, LEAST)
