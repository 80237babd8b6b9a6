"""Route instructions to generators: by keywords, or by a language model."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from modalign.endpoints.chat import ToolCall
from modalign.tools.generators import PROMPT, Generator
from modalign.tools.planning.generate import Transformed, carried_out

KEYWORDS = {
    "picture": "picture image draw drawing sketch paint illustration photo",
    "sound": "sound audio play tone beep noise hear melody",
    "plot": "plot chart graph bars histogram diagram",
}
_CLAUSE = re.compile(r"[.;!?]\s+|,?\s+(?:and|then)\s+(?:then\s+)?", re.IGNORECASE)


def keyword_calls(text: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the generators whose words occur, each with its clause; clauses without any join the one before."""
    found: list[tuple[str, str]] = []
    for clause in _CLAUSE.split(text):
        words = set(re.findall(r"\w+", clause.lower()))
        here = [name for name in names if words & {name, *KEYWORDS.get(name, "").split()}]
        new = [name for name in here if all(name != other for other, _ in found)]
        if not new and found:
            found[-1] = (found[-1][0], f"{found[-1][1]} and {clause}")
        found += [(name, clause) for name in new]
    return [(name, text) for name, _ in found] if len(found) == 1 else found


def by_keywords(text: str, generators: Sequence[Generator]) -> Transformed:
    """Answer an instruction by the keyword rule; without any of the words, nothing is generated."""
    calls = keyword_calls(text, [each.name for each in generators])
    asked = [ToolCall(name, json.dumps({PROMPT: prompt}), name) for name, prompt in calls]
    called = tuple(carried_out(generators, call) for call in asked)
    return Transformed("" if called else "There is nothing to generate.", called, called)
