"""A rationale before the answer (M-CoT, arXiv 2306.13549), and whether the answer depends on it.

The model writes a rationale, then a fixed mark, then the answer; only what follows the mark is scored. Held
against it: the answer at once (the mark is the answer's beginning), the answer after another question's rationale,
and everything about a blank medium. If another question's rationale is as good as one's own, it is decoration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from modalign.data.records import Message, Record
from modalign.errors import DataError, UsageError
from modalign.evaluation.conditions.asked import Answers, Run, Way, check_task, judge
from modalign.evaluation.conditions.results import Conditions
from modalign.evaluation.generation import answer_records
from modalign.evaluation.opened import Opened
from modalign.evaluation.passes import blanked
from modalign.evaluation.tasks.base import Output, Task
from modalign.models.tool_text import ToolReader
from modalign.progress import Progress

WITHOUT, WITH = "without rationale", "with rationale"
OTHER, BLANK = "another question's rationale", "with rationale, blank media"
NO_MARK = "rationales without the mark"


@dataclass(frozen=True)
class Rationale:
    """How a rationale is asked for.

    Attributes:
        mark: text between rationale and answer.
        max_tokens: longest rationale; the mark is then put after it.
        seed: of the exchange of rationales.
    """

    mark: str
    max_tokens: int = 256
    seed: int = 0


def check_rationale(task: Task, rationale: Rationale) -> None:
    """Refuse what cannot be asked this way.

    Raises:
        UsageError: an empty mark, or a task that writes no answer.
    """
    check_task(task, "--rationale")
    if not rationale.mark.strip():
        raise UsageError(
            "--rationale needs a mark that the answer follows, such as --rationale 'Answer:'"
        )
    if task.by_likelihood:
        raise UsageError(
            f"--rationale scores written answers, but task {task.name} scores options by likelihood: use exact"
        )


def evaluate_rationale(
    opened: Opened,
    task: Task,
    rationale: Rationale,
    *,
    run: Run,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Conditions:
    """Ask without, with, with another question's rationale, and about blank media.

    Args:
        opened: model and records; of an expected answer that holds the mark, what follows it counts.
        task: scores the answers.
        rationale: how it is asked for.
        run: where answers are kept.
        max_new_tokens: longest answer.
        batch_size: questions answered together.
        progress: told how far each condition is.

    Raises:
        UsageError: as :func:`check_rationale`, or a model whose media are described by tools.
        DataError: fewer than two records, so that no rationale can be exchanged.
    """
    check_rationale(task, rationale)
    if isinstance(opened.reader, ToolReader):
        raise UsageError(
            "--rationale continues an answer that is begun, which a model with tools cannot"
        )
    if len(opened.records) < 2:
        raise DataError(f"{opened.data}: one record has no other question's rationale to be given")
    opened = replace(opened, records=[_expected(each, rationale.mark) for each in opened.records])
    marked = sum(rationale.mark in record.answer for record in opened.records)
    asker = _Asker(opened, rationale, max_new_tokens, batch_size)
    ways = [
        Way(WITHOUT, {"rationale": "none"}, asker.at_once),
        Way(WITH, {"rationale": "own"}, asker.reasoned),
        Way(OTHER, {"rationale": "another question's"}, asker.with_others),
    ]
    pairs = [(WITH, WITHOUT), (WITH, OTHER)]
    if any(True for record in opened.records for _ in record.media()):
        ways.append(
            Way(BLANK, {"rationale": "own", "media": "blank"},
                lambda records, tell: asker.reasoned(blanked(records), tell))
        )  # fmt: skip
        pairs.append((WITH, BLANK))
    settings = {
        "mark": rationale.mark, "max_rationale_tokens": rationale.max_tokens, "max_new_tokens": max_new_tokens,
        "seed": rationale.seed,
    }  # fmt: skip
    notes = [
        "Only what follows the mark is scored. Where a rationale ends without it, the mark is put after it; the "
        "table counts these."
    ]
    if marked:
        notes.append(f"{marked} expected answers hold the mark more than once.")
    return judge("rationale", opened, task, ways, pairs, run, settings, notes, progress)


def _expected(record: Record, mark: str) -> Record:
    """Keep of the expected answers what follows the mark."""
    answer = record.answer.partition(mark)[2].strip() if mark in record.answer else record.answer
    others = tuple(
        each.partition(mark)[2].strip() if mark in each else each for each in record.answers
    )
    turns = (*record.messages[:-1], Message("assistant", (answer,)))
    return replace(record, messages=turns, answers=others)


@dataclass
class _Asker:
    opened: Opened
    rationale: Rationale
    max_new_tokens: int
    batch_size: int

    def at_once(self, records: Sequence[Record], tell: Any) -> Answers:
        """Answer right after the mark."""
        return self._after([self.rationale.mark] * len(records), records, tell)

    def reasoned(self, records: Sequence[Record], tell: Any) -> Answers:
        """Answer after the model's own rationale."""
        texts, lacking = self._rationales(records, tell)
        begun = [f"{text} {self.rationale.mark}".strip() for text in texts]
        return replace(self._after(begun, records, tell), counts={NO_MARK: lacking}, texts=texts)

    def with_others(self, records: Sequence[Record], tell: Any) -> Answers:
        """Answer after the rationale to another question."""
        texts, lacking = self._rationales(records, tell)
        given = exchanged_texts(texts, self.rationale.seed)
        begun = [f"{text} {self.rationale.mark}".strip() for text in given]
        return replace(self._after(begun, records, tell), counts={NO_MARK: lacking}, texts=given)

    def _rationales(self, records: Sequence[Record], tell: Any) -> tuple[list[str], int]:
        """Write rationales, and count those that end without the mark."""
        mark = self.rationale.mark
        said = self._answer(records, self.rationale.max_tokens, tell, stop=(mark,))
        return [text.partition(mark)[0].strip() for text in said], sum(mark not in t for t in said)

    def _after(self, begun: Sequence[str], records: Sequence[Record], tell: Any) -> Answers:
        said = self._answer(records, self.max_new_tokens, tell, begun=begun)
        return Answers([Output(text) for text in said])

    def _answer(self, records: Sequence[Record], longest: int, tell: Any, **how: Any) -> list[str]:
        return answer_records(
            self.opened.model, self.opened.reader, records, longest, self.batch_size, tell, **how
        )


def exchanged_texts(texts: Sequence[str], seed: int) -> list[str]:
    """Give every place another place's text: along a seeded circle through all of them."""
    order = np.random.default_rng([seed, 2]).permutation(len(texts))
    found = list(texts)
    for here, there in zip(order, np.roll(order, 1), strict=True):
        found[here] = texts[there]
    return found
