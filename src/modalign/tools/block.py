"""The text block that replaces a medium for the language model, within a token budget.

Natural-language-assisted tool use: a template formats captions, tags, lines of OCR and detections. If the
block exceeds the budget, its least informative lines are dropped first.

A line's informativeness is its score (the tool's confidence) times its *novelty*, the share of its words that
no more informative line contains, each word weighted by its inverse frequency among all lines of the block.
Lines are ranked greedily by that product, as in maximal marginal relevance (Carbonell &
Goldstein 1998): a repeated line, or one that only rephrases others, has novelty 0 and is dropped first.
Ties keep the order of the tools. The result is deterministic and independent of other media.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from modalign.errors import UsageError
from modalign.tools.results import Line

Count = Callable[[str], int]

DEFAULT_TEMPLATE = """\
{% for tool in tools if tool.lines -%}
{{ tool.name }}: {{ tool.lines | map(attribute="text") | join("; ") }}
{% endfor %}"""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class ToolLines:
    """The lines of one tool, as a template sees them."""

    name: str
    lines: tuple[Line, ...]


class Block:
    """Formats lines as a text within a token budget.

    Args:
        names: of the tools.
        template: jinja2, over ``tools``: each has a ``name`` and ``lines``, each of these ``text``,
            ``score`` and ``box``. It runs in a sandbox.
        budget: tokens of the text.
        count: counts tokens with the language model's tokenizer.

    Raises:
        UsageError: the template is wrong, or is longer than the budget without any line.
    """

    def __init__(
        self, names: Sequence[str], template: str | None, budget: int, count: Count
    ) -> None:
        self._source = template if template is not None else DEFAULT_TEMPLATE
        self._budget = budget
        self._count = count
        empty = count(self._rendered([ToolLines(name, ()) for name in names]))
        if empty > budget:
            raise UsageError(
                f"the template alone has {empty} tokens, the budget is {budget}: shorten it"
            )

    def write(self, sections: Sequence[ToolLines]) -> str:
        """Return the text of some tools' lines.

        Whole lines are dropped until the text fits. Only if a single line is left and still does
        not fit is that line cut, between words if it has several.
        """
        text = self._rendered(sections)
        if self._fits(text):
            return text
        places = [(i, j) for i, section in enumerate(sections) for j in range(len(section.lines))]
        order = rank([sections[i].lines[j] for i, j in places])
        kept = _most(len(order) - 1, lambda n: self._fits(self._with(sections, places, order[:n])))
        if kept:
            return self._with(sections, places, order[:kept])
        return self._rendered(self._cut_to_fit(sections, places[order[0]]))

    def _with(
        self, sections: Sequence[ToolLines], places: list[tuple[int, int]], kept: Sequence[int]
    ) -> str:
        chosen = {places[number] for number in kept}
        return self._rendered(
            [
                ToolLines(s.name, tuple(x for j, x in enumerate(s.lines) if (i, j) in chosen))
                for i, s in enumerate(sections)
            ]
        )

    def _cut_to_fit(self, sections: Sequence[ToolLines], place: tuple[int, int]) -> list[ToolLines]:
        """Return the sections with as much of one line as fits, and no other."""
        line = sections[place[0]].lines[place[1]]

        def only(text: str) -> list[ToolLines]:
            lines = (Line(text, line.score, line.box),) if text else ()
            return [
                ToolLines(s.name, lines if i == place[0] else ()) for i, s in enumerate(sections)
            ]

        words = line.text.split(" ")
        count = _most(len(words), lambda n: self._fits(self._rendered(only(" ".join(words[:n])))))
        if count:
            return only(" ".join(words[:count]))
        letters = _most(len(words[0]), lambda n: self._fits(self._rendered(only(words[0][:n]))))
        return only(words[0][:letters])

    def _fits(self, text: str) -> bool:
        return self._count(text) <= self._budget

    @cached_property
    def _template(self) -> Template:
        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
        )
        return environment.from_string(self._source)

    def _rendered(self, sections: Sequence[ToolLines]) -> str:
        try:
            return self._template.render(tools=list(sections))
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise UsageError(f"the template of the tools' text cannot be used: {error}") from None


def rank(lines: Sequence[Line]) -> list[int]:
    """Rank the lines, most informative first (see the module's docstring)."""
    words = [frozenset(_WORD.findall(line.text.casefold())) for line in lines]
    frequency = Counter(word for said in words for word in said)
    said: set[str] = set()

    def value(number: int) -> float:
        whole = sum(1 / frequency[word] for word in sorted(words[number]))
        new = sum(1 / frequency[word] for word in sorted(words[number] - said))
        return lines[number].score * (new / whole if whole else 0.0)

    # Values only decrease while others are chosen: only the first in the heap is compared again.
    heap = [(-value(number), number) for number in range(len(lines))]
    heapq.heapify(heap)
    order: list[int] = []
    while heap:
        _, number = heapq.heappop(heap)
        now = (-value(number), number)
        if heap and now > heap[0]:
            heapq.heappush(heap, now)
            continue
        order.append(number)
        said |= words[number]
    return order


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """Find by bisection the largest amount up to a limit that fits; else 0.

    More content nearly always means more tokens; otherwise less is kept than possible.
    """
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
