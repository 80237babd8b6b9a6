"""A chain of tools: the text that replaces a medium for the language model, and its cost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from modalign.data.records import Media
from modalign.errors import UsageError
from modalign.progress import Progress
from modalign.tools.base import Tool, ToolCost, ToolError
from modalign.tools.block import Block, Count, ToolLines
from modalign.tools.cache import ResultCache
from modalign.tools.guard import PASSING, call_safely

COMMIT_SECONDS = 2.0  # at most this much work is lost when a run is killed
Keys = tuple[str, ...]  # of one medium: a result's key per tool


@dataclass(frozen=True)
class Use:
    """A tool and the arguments that a chain calls it with."""

    tool: Tool
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolProblem:
    """Failed calls of a tool of one kind.

    Attributes:
        tool: its name.
        kind: see :class:`~modalign.tools.guard.Outcome`.
        count: calls.
        example: of one of them, the medium and the message.
    """

    tool: str
    kind: str
    count: int
    example: str


@dataclass(frozen=True)
class _Described:
    text: str
    tokens: int
    seconds: float
    problems: list[tuple[str, str, str]]  # tool, kind, example


class ToolChain:
    """Calls tools in order and formats their lines as one text within a token budget.

    Args:
        uses: tools with their arguments; names are unique.
        template: see :class:`~modalign.tools.block.Block`.
        budget: tokens of the text.
        count: tokens of a text, by the language model's own tokenizer.
        cache: cache of results.

    Raises:
        UsageError: duplicate names, invalid arguments, or an unusable template.
    """

    def __init__(
        self,
        uses: Sequence[Use],
        template: str | None,
        budget: int,
        count: Count,
        cache: ResultCache,
    ) -> None:
        self.uses = tuple(uses)
        _check(self.uses)
        self._block = Block([use.tool.name for use in uses], template, budget, count)
        self._count = count
        self._cache = cache
        self._described: dict[Keys, _Described] = {}

    @property
    def modalities(self) -> set[str]:
        """Return the modalities that at least one tool accepts."""
        return {modality for use in self.uses for modality in use.tool.modalities}

    def fill(self, media: Iterable[Media], progress: Progress | None = None) -> int:
        """Run what is not cached; return the number of tool calls.

        Calls that hung, died or were abandoned are tried again; other failures are cached as
        the tool's answer. Completed work survives an interruption.

        Raises:
            UsageError: a medium of a modality that no tool takes.
        """
        different = {self._keys(medium): medium for medium in media}
        made, saved = 0, time.monotonic()
        try:
            for done, (keys, medium) in enumerate(different.items(), 1):
                made += self._ask(keys, medium, again=True)
                self.text(medium)
                if time.monotonic() - saved > COMMIT_SECONDS:
                    self._cache.commit()
                    saved = time.monotonic()
                if progress:
                    progress("tools", done, len(different))
        finally:
            self._cache.commit()
        return made

    def text(self, medium: Media) -> str:
        """Return a medium's text for the language model; missing results are computed now.

        Raises:
            UsageError: no tool takes its modality.
        """
        keys = self._keys(medium)
        if keys not in self._described:
            if self._ask(keys, medium):
                self._cache.commit()
            self._described[keys] = self._describe(keys, medium)
        return self._described[keys].text

    def cost(self) -> ToolCost:
        """Return the cost of the distinct media described so far: parameters, seconds and tokens."""
        tools = [use.tool for use in self.uses]
        return ToolCost(
            parameters=sum(tool.parameters or 0 for tool in tools),
            calls=len(self._described),
            seconds=sum(described.seconds for described in self._described.values()),
            tokens=sum(described.tokens for described in self._described.values()),
            unstated=tuple(tool.name for tool in tools if tool.parameters is None),
        )

    def problems(self) -> list[ToolProblem]:
        """Return the problems with the media described so far, the most frequent first."""
        found = [one for described in self._described.values() for one in described.problems]
        counts = Counter((tool, kind) for tool, kind, _ in found)
        examples = {(tool, kind): text for tool, kind, text in reversed(found)}
        return [
            ToolProblem(tool, kind, count, examples[tool, kind])
            for (tool, kind), count in counts.most_common()
        ]

    def close(self) -> None:
        """Release the tools' processes and models."""
        for use in self.uses:
            use.tool.close()

    def _uses_for(self, medium: Media) -> list[Use]:
        uses = [use for use in self.uses if medium.modality in use.tool.modalities]
        if not uses:
            raise UsageError(
                f"no tool of this chain takes {medium.modality} ({medium.label}); "
                f"they take {', '.join(sorted(self.modalities))}"
            )
        return uses

    def _keys(self, medium: Media) -> Keys:
        uses = self._uses_for(medium)
        return tuple(self._cache.key(use.tool, use.arguments, medium) for use in uses)

    def _ask(self, keys: Keys, medium: Media, again: bool = False) -> int:
        """Run missing tools; with ``again`` also those that failed temporarily."""
        made = 0
        for use, key in zip(self._uses_for(medium), keys, strict=True):
            known = self._cache.get(key)
            if known is None or (again and known.problem in PASSING):
                outcome = call_safely(use.tool, medium, **use.arguments)
                self._cache.put(key, use.tool.name, outcome)
                made += 1
        if made:
            self._described.pop(keys, None)
        return made

    def _describe(self, keys: Keys, medium: Media) -> _Described:
        sections, problems, seconds = [], [], 0.0
        for use, key in zip(self._uses_for(medium), keys, strict=True):
            outcome = self._cache.get(key)
            assert outcome is not None, "asked just before"
            sections.append(ToolLines(use.tool.name, tuple(outcome.lines)))
            seconds += outcome.seconds
            if outcome.problem:
                example = f"{medium.label}: {outcome.message}"
                problems.append((use.tool.name, outcome.problem, example))
        text = self._block.write(sections)
        return _Described(text, self._count(text), seconds, problems)


def _check(uses: Sequence[Use]) -> None:
    names = [use.tool.name for use in uses]
    if double := [name for name, count in Counter(names).items() if count > 1]:
        raise UsageError(f"two tools are called {double[0]!r}: rename one")
    for use in uses:
        try:
            use.tool.signature.check(use.arguments)
        except ToolError as error:
            raise UsageError(f"tool {use.tool.name}: {error}") from None
