"""Few-shot with media (M-ICL, arXiv 2306.13549): examples with their media as turns before the question.

Two controls say what the examples teach. With *shuffled labels* every example has another example's answer: if
that is as good, the model copies the form of answers, not what they say. With *shuffled pictures* every example
has another example's media: if that is as good, it does not look at the examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from modalign.data.readers import read_records
from modalign.data.records import Media, Message, Record
from modalign.data.validation import validate
from modalign.errors import DataError, UsageError
from modalign.evaluation.conditions.asked import Run, Way, changed, check_task, judge
from modalign.evaluation.conditions.results import Conditions
from modalign.evaluation.opened import Opened, prompt_tokens
from modalign.evaluation.passes import with_other_media
from modalign.evaluation.scoring import exchanged
from modalign.evaluation.tasks.base import Task
from modalign.lengths import TooLongError
from modalign.progress import Progress

TRUE, LABELS, PICTURES = "true", "shuffled labels", "shuffled pictures"
ZERO = "0 shots"
COUNTED = 50  # questions whose prompt tokens are counted


@dataclass(frozen=True)
class Shots:
    """Which examples are shown.

    Attributes:
        counts: how many, each a condition; 0 is always one.
        file: that they come from.
        seed: of their draw and order, and of the shuffles.
    """

    counts: tuple[int, ...]
    file: str
    seed: int = 0


def check_files(data: str, shots: Shots) -> None:
    """Refuse examples from the evaluated file itself.

    Raises:
        UsageError: they are one file, or no example is wanted.
    """
    if not any(shots.counts):
        raise UsageError("--shots needs a number of examples above 0, such as --shots 1,2,4")
    if Path(data).exists() and Path(shots.file).exists() and Path(data).samefile(shots.file):
        raise UsageError(
            f"--shots-from {shots.file} is the evaluated file: an example must not be a question too"
        )


def evaluate_shots(
    opened: Opened,
    task: Task,
    shots: Shots,
    *,
    run: Run,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Conditions:
    """Ask with no examples, and with every number of them: true, with shuffled labels, with shuffled pictures.

    Args:
        opened: model and evaluated records.
        task: scores the answers.
        shots: which examples.
        run: where answers are kept.
        max_new_tokens: longest answer.
        batch_size: questions answered together.
        progress: told how far each condition is.

    Raises:
        UsageError: a task that cannot be compared question by question, or one of options under letters.
        DataError: examples that are evaluated too or are too few, or prompts longer than the model reads.
    """
    check_task(task, "--shots")
    if getattr(task, "letters", False):
        raise UsageError("--shots shows examples as the data have them: leave out --letters")
    check_files(opened.data, shots)
    most = max(shots.counts)
    pool, notes = _pool(opened, shots, most)
    kinds = {TRUE: pool, LABELS: with_other_labels(pool, shots.seed)}
    if any(True for record in pool for _ in record.media()):
        kinds[PICTURES] = with_shuffled_media(pool, shots.seed)
    ways, pairs = [], []

    def way(name: str, setting: dict[str, Any], change: Callable[[Record], Record]) -> Way:
        asked = changed(
            opened, task, change, max_new_tokens=max_new_tokens, batch_size=batch_size
        )  # fmt: skip

        def answer(records: Sequence[Record], tell: Any) -> Any:
            try:
                return asked(records, tell)
            except TooLongError as error:
                raise DataError(f"{name}: {error}; or give fewer --shots") from error

        def tokens() -> list[int]:
            some = [task.asked(change(record)) for record in opened.records[:COUNTED]]
            return [prompt_tokens(opened.reader, record) for record in some]

        return Way(name, setting, answer, tokens)

    ways.append(way(ZERO, {"shots": 0}, lambda record: record))
    for count in sorted({count for count in shots.counts if count}):
        true = "1 shot" if count == 1 else f"{count} shots"
        for kind, given in kinds.items():
            name = true if kind == TRUE else f"{true}, {kind}"
            ways.append(
                way(name, {"shots": count, "examples": kind}, shower(given, count, shots.seed))
            )
            pairs.append((true, ZERO) if kind == TRUE else (true, name))
    settings = {
        "shots": list(shots.counts), "shots_from": shots.file, "seed": shots.seed,
        "max_new_tokens": max_new_tokens,
    }  # fmt: skip
    return judge("shots", opened, task, ways, pairs, run, settings, notes, progress)


def _pool(opened: Opened, shots: Shots, most: int) -> tuple[list[Record], list[str]]:
    """Read the examples; refuse those that are evaluated, and say what else they share."""
    read = read_records(shots.file, modalities=opened.modalities)
    pool, _ = validate(read, modalities=opened.modalities)
    asked = {question_key(record): record for record in opened.records}
    same = [(each, asked[key]) for each in pool if (key := question_key(each)) in asked]
    if same:
        first, second = same[0]
        raise DataError(
            f"{first.source}: this example is also question {second.source} ({len(same)} of {len(pool)} examples "
            "are evaluated too): with its answer in the prompt a question measures nothing; remove them"
        )
    if len(pool) < most:
        raise DataError(f"{shots.file}: {len(pool)} examples are fewer than {most} shots")
    seen = {medium.content_hash() for record in opened.records for medium in record.media()}
    shared = sum(any(m.content_hash() in seen for m in record.media()) for record in pool)
    notes = [
        "Examples are drawn anew for every question, by the seed; a smaller number begins a larger one."
    ]
    if shared:
        notes.append(
            f"{shared} of {len(pool)} examples are about a medium that is also evaluated (other questions)."
        )
    return pool, notes


def question_key(record: Record) -> tuple[Any, ...]:
    """Return what two records share that ask the same about the same media: all turns but the last answer."""
    turns = record.messages[:-1] if record.messages[-1].role == "assistant" else record.messages
    return tuple(
        (
            message.role,
            " ".join(message.text.split()).casefold(),
            tuple(part.content_hash() for part in message.parts if isinstance(part, Media)),
        )
        for message in turns
        if message.role != "system"
    )


def shower(pool: Sequence[Record], count: int, seed: int) -> Callable[[Record], Record]:
    """Return what puts ``count`` examples before a record: drawn by the seed and the record's id alone."""

    def shown(record: Record) -> Record:
        digest = hashlib.sha256(f"{seed}:{record.id}".encode()).digest()
        order = np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(len(pool))
        system = [message for message in record.messages if message.role == "system"]
        asked = [message for message in record.messages if message.role != "system"]
        before = [
            message
            for place in order[:count]
            for message in pool[place].messages
            if message.role != "system"
        ]
        return replace(record, messages=(*system, *before, *asked))

    return shown


def with_other_labels(pool: Sequence[Record], seed: int) -> list[Record]:
    """Give every example another example's answer: of its skill, and a different one where there is one."""
    rng = np.random.default_rng([seed, 1])
    skills: dict[str | None, list[str]] = {}
    for record in pool:
        skills.setdefault(record.skill, []).append(record.answer)
    found = []
    for record in pool:
        others = [answer for answer in skills[record.skill] if answer != record.answer]
        answer = others[rng.integers(len(others))] if others else record.answer
        found.append(
            replace(record, messages=(*record.messages[:-1], Message("assistant", (answer,))))
        )
    return found


def with_shuffled_media(pool: Sequence[Record], seed: int) -> list[Record]:
    """Give every example another example's media."""
    given = exchanged([tuple(record.media()) for record in pool], seed)
    return [with_other_media(record, media) for record, media in zip(pool, given, strict=True)]
