"""A language model that says what it was told to, and tools that need no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modalign.data.records import Media
from modalign.endpoints import Reply, ToolCall, Usage
from modalign.tools.base import LINES, Signature, Tool

PICTURE = Media("image", data=b"a picture")
OTHER = Media("image", data=b"another picture")
SOUND = Media("audio", data=b"a sound")


class Scripted:
    """Says its lines in order; a line is a text, or a list of calls (name, arguments)."""

    model = "scripted"

    def __init__(self, *lines: str | list[tuple[str, str]] | Exception) -> None:
        self.lines = list(lines)
        self.asked: list[tuple[list[dict[str, Any]], Any]] = []
        self.usage = Usage()

    def complete(
        self, messages: Sequence[dict[str, Any]], tools: Any = None, *, sample: int = 0, **_: Any
    ) -> Reply:
        self.asked.append(([dict(message) for message in messages], tools))
        line = self.lines.pop(0)
        if isinstance(line, Exception):
            raise line
        if isinstance(line, str):
            return Reply(line, (), "stop", 100, 10)
        calls = (ToolCall(name, given, f"c{i}") for i, (name, given) in enumerate(line))
        return Reply("", tuple(calls), "tool_calls", 100, 10)


class Boxes(Tool):
    """Finds three things in a picture, two of one kind; a floor for their scores may be given."""

    FOUND = (("cat", 0.9, 5), ("dog", 0.8, 50), ("cat", 0.3, 90))

    def __init__(self, **settings: Any) -> None:
        floor = {"floor": {"type": "number", "description": "least score"}}
        super().__init__(
            "detect",
            "Things in a picture.",
            signature=Signature(floor, (), LINES),
            modalities=("image",),
            **settings,
        )

    def run(self, medium: Media, floor: float = 0.0) -> list[dict[str, Any]]:
        return [
            {"text": name, "score": score, "box": [left, 0, left + 5, 5]}
            for name, score, left in self.FOUND
            if score >= floor and medium == PICTURE
        ]

    def identity(self, hash_file: Any) -> str:
        return "boxes"


class Ears(Tool):
    """Hears one sentence; a medium that is none makes it raise."""

    def __init__(self) -> None:
        super().__init__("hear", "What is said.", modalities=("audio",))

    def run(self, medium: Media) -> str:
        if medium != SOUND:
            raise ValueError("no sound at all")
        return "seven of nine"

    def identity(self, hash_file: Any) -> str:
        return "ears"
