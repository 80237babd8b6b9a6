"""Hold a model's reply to text or valid calls: which texts may still become one.

A reply that begins a call (``<tool_call>``) has to finish it: a known name and one text for each of its arguments,
as JSON. Any other reply is free. :class:`~modalign.endpoints.local.LocalChat` asks before every token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

OPEN, CLOSE = "<tool_call>", "</tool_call>"
LONGEST = 100  # characters of an argument
MOST = 4  # calls in a reply


class CallGrammar:
    """The texts that may become a valid reply.

    Args:
        tools: schemas of functions whose arguments are texts.
        most: calls in a reply.
    """

    def __init__(self, tools: Sequence[Mapping[str, object]], most: int = MOST) -> None:
        self.most = most
        self.parts: list[list[str]] = []  # of each tool: literals between its arguments' texts
        for tool in tools:
            function = tool["function"]
            assert isinstance(function, Mapping)
            names = list(function["parameters"]["properties"])
            hole = "\0"
            call = {"name": function["name"], "arguments": dict.fromkeys(names, hole)}
            text = f"{OPEN}{json.dumps(call)}{CLOSE}"
            self.parts.append(text.split(json.dumps(hole)[1:-1]))

    def begins(self, text: str) -> bool:
        """Whether a text is, or can go on to be, a valid reply."""
        bare = text.lstrip()
        if not bare or (not bare.startswith(OPEN) and not OPEN.startswith(bare)):
            return OPEN not in bare
        return any(self._rest(bare, self.most))

    def ended(self, text: str) -> bool:
        """Whether a reply may end here."""
        bare = text.strip()
        if OPEN.startswith(bare) and bare:
            return False
        return not bare.startswith(OPEN) or (bare.endswith(CLOSE) and self.begins(text))

    def free(self, text: str) -> bool:
        """Whether any plain character may come next: in free text, or within an argument."""
        return self.begins(f"{text}x") and self.begins(f"{text} 7")

    def _rest(self, text: str, calls: int) -> list[bool]:
        """Return [True] for each way in which a text begins up to this many calls."""
        text = text.lstrip("\n")
        if not text:
            return [True]
        if not calls:
            return []
        found: list[bool] = []
        for parts in self.parts:
            left = self._after(text, parts)
            if left == "":
                found.append(True)
            elif left is not None:
                found += self._rest(left, calls - 1)
        return found

    @staticmethod
    def _after(text: str, parts: Sequence[str]) -> str | None:
        """Return what follows a whole call, "" within it, None if the text is not one."""
        for number, part in enumerate(parts):
            if not text.startswith(part):
                return "" if part.startswith(text) else None
            text = text[len(part) :]
            if number == len(parts) - 1:
                return text
            end = text.find('"')
            said = text if end < 0 else text[:end]
            if (
                "\\" in said
                or len(said) > LONGEST
                or not (said + "x").isprintable()
                or OPEN in said
                or CLOSE in said
            ):
                return None
            if end < 0:
                return ""
            if not said.strip():
                return None
            text = text[end:]
        return text
