"""Find tool calls in an answer's text while it arrives."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import Any

from modalign.endpoints.tool_calls import end_of_thoughts, find_calls, without

TAG = "<tool_call>"


class CallReader:
    """Holds back possible tool calls; all other text can be shown at once.

    A call is a JSON mapping between ``<tool_call>`` tags, or an answer that consists only of such a mapping
    with the name of an offered tool. Invalid JSON is text, and so is a call within thoughts.

    Args:
        names: names of the offered tools.
        thinking: whether the prompt ends within thoughts.
    """

    def __init__(self, names: Collection[str], thinking: bool = False) -> None:
        self.names = names
        self._thinking = thinking
        self._text = ""
        self._shown = 0
        self._begun = False

    def feed(self, text: str) -> str:
        """Add text; return what can be shown."""
        self._text += text
        if not self._begun:
            self._shown = len(self._text) - len(self._text.lstrip())
        thoughts, begin = self._places()
        rest = self._text[begin:]
        place = rest.find(TAG)
        if place < 0:
            place = len(rest) - _open_end(rest, TAG)
        if rest.lstrip().startswith("{") and not self._text[thoughts:begin].strip():
            place = 0  # an answer that may consist only of a call
        return self._show(begin + place)

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """Return the rest: text, and calls in OpenAI's format."""
        _, begin = self._places()
        thoughts, rest = self._show(begin), self._text[begin:]
        calls = [
            (span, call)
            for span, call in find_calls(rest)
            if call.name and (TAG in rest or call.name in self.names)
        ]
        if not calls:
            return thoughts + rest, []
        return thoughts + without(rest, [span for span, _ in calls]), [
            {
                "id": f"call_{secrets.token_hex(12)}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for _, call in calls
        ]

    def _places(self) -> tuple[int, int]:
        """Return where thoughts end, and where the held-back text begins."""
        thoughts = end_of_thoughts(self._text, self._thinking)
        return thoughts, max(self._shown, thoughts)

    def _show(self, end: int) -> str:
        shown, self._shown = self._text[self._shown : end], max(end, self._shown)
        self._begun = self._begun or bool(shown)
        return shown


def _open_end(text: str, tag: str) -> int:
    """Count the characters at the end of a text that may begin a tag."""
    return next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)
