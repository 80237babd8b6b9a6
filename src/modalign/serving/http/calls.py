"""Tool calls in an answer, told from its text while it arrives."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import Any

from modalign.endpoints.tool_calls import split_calls

TAG = "<tool_call>"


class CallReader:
    """Holds back what may be a tool call; everything else can be shown at once.

    A call is a JSON mapping between ``<tool_call>`` tags, or an answer that is nothing but such a mapping
    with the name of an offered tool. A call that is no valid JSON is text.

    Args:
        names: of the tools that were offered.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.names = names
        self._held = ""
        self._begun = False

    def feed(self, text: str) -> str:
        """Take more text; return what can be shown."""
        self._held += text
        if not self._begun:
            self._held = self._held.lstrip()
            if not self._held or self._held.startswith(("{", TAG)):
                return ""
        place = self._held.find(TAG)
        if place < 0:
            place = len(self._held) - _open_tag(self._held)
        shown, self._held = self._held[:place], self._held[place:]
        self._begun = self._begun or bool(shown)
        return shown

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """What remains: text, and calls in OpenAI's form."""
        held, self._held = self._held, ""
        rest, calls = split_calls(held)
        plain = not held.startswith(TAG)
        if not calls or not all(call.name for call in calls):
            return held, []
        if plain and calls[0].name not in self.names:
            return held, []
        return rest, [
            {
                "id": f"call_{secrets.token_hex(12)}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]


def _open_tag(text: str) -> int:
    """Characters at the end of a text that may be the beginning of a tag."""
    return next((n for n in range(len(TAG) - 1, 0, -1) if text.endswith(TAG[:n])), 0)
