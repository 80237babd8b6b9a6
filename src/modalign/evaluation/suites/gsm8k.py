"""GSM8K (arXiv 2110.14168): word problems answered in writing after worked examples."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from modalign.data.records import Source
from modalign.errors import DataError
from modalign.evaluation.suites.parts import MAJORITY, Answer, Measure, Part, Problem
from modalign.evaluation.suites.rules import NUMBER
from modalign.numbers.bootstrap import Floats
from modalign.strict_json import loads

SHOTS = 5
STOPS = ("Question:",)
_MARKED = re.compile(r"####\s*(-?[0-9.,]+)")
_LAST = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


class Gsm8k(Part):
    """The share of problems whose number is right."""

    kind = "written"

    def __init__(
        self, name: str, items: Sequence[Problem], common: str, notes: Sequence[str] = ()
    ) -> None:
        super().__init__(name, items, notes)
        self.common = common

    def measures(self, items: Sequence[Problem]) -> list[Measure]:
        """By the last number written, and by the number after the mark."""
        guessed = {
            MAJORITY: _equal(items, [self.common] * len(items)),
            "last number of the question": _equal(items, [_last_of(i.question) for i in items]),
        }
        return [
            _measure("accuracy (last number)", last_number, items, guessed, True),
            _measure("accuracy (after ####)", marked_number, items, guessed, False),
        ]


def _measure(
    name: str,
    read: Callable[[str], str],
    items: Sequence[Problem],
    guessed: dict[str, Floats],
    headline: bool,
) -> Measure:
    def of(answers: Sequence[Answer]) -> Floats:
        return _equal(items, [read(written(answer)) for answer in answers])

    return Measure(name, of=of, right=of, constants=guessed, headline=headline)


def written(answer: str) -> str:
    """Return a continuation up to where it begins a problem of its own."""
    for stop in STOPS:
        answer = answer.partition(stop)[0]
    return answer


def last_number(text: str) -> str:
    """Return the last number of a text, normalised; empty if there is none."""
    found = _LAST.findall(text)
    return normalised(found[-1]) if found else ""


def marked_number(text: str) -> str:
    """Return the number after ``####``, normalised; empty if there is none."""
    found = _MARKED.search(text)
    return normalised(found[1]) if found else ""


def normalised(number: str) -> str:
    """Remove commas, currency signs and a final point."""
    return number.replace(",", "").replace("$", "").removesuffix(".")


def _last_of(question: str) -> str:
    found = NUMBER.findall(question)
    return normalised(found[-1]) if found else ""


def _equal(items: Sequence[Problem], said: Sequence[str]) -> Floats:
    return np.array([float(item.answer == text) for item, text in zip(items, said, strict=True)])


def gsm8k(
    file: Path,
    examples: Path | None,
    *,
    shots: int = SHOTS,
    seed: int = 0,
    limit: int | None = None,
) -> Gsm8k:
    """Read problems, and put examples of another file before each.

    Args:
        file: JSON Lines of ``question`` and ``answer``, which ends in ``#### `` and a number.
        examples: the same, for the examples and the most frequent answer.
        shots: how many examples.
        seed: of the examples, drawn anew for every problem, and of the problems drawn.
        limit: at most so many problems.

    Raises:
        DataError: a file has another form, no row, or an example is one of the problems.
    """
    rows = _rows(file)
    if shots and examples is None:
        raise DataError(f"{file}: {shots} examples need gsm8k_train.jsonl beside it; or --shots 0")
    worked = _rows(examples) if examples is not None else []
    asked = {" ".join(question.split()).casefold(): number for number, question, _ in rows}
    for number, question, _ in worked:
        if (same := asked.get(" ".join(question.split()).casefold())) is not None:
            raise DataError(
                f"{examples}:{number}: is also problem {file}:{same}: examples must not be evaluated"
            )
    if shots > len(worked):
        raise DataError(f"{examples}: {len(worked)} examples are fewer than {shots} shots")
    if limit is not None and limit < len(rows):
        chosen = np.random.default_rng(seed).choice(len(rows), limit, replace=False)
        rows = [rows[place] for place in sorted(chosen.tolist())]
    items = []
    for number, question, answer in rows:
        drawn = np.random.default_rng([seed, number]).permutation(len(worked))[:shots]
        before = [worked[place] for place in drawn]
        turns = [text for _, q, a in before for text in (q, a)]
        blocks = [f"Question: {q}\nAnswer: {a}" for _, q, a in before]
        prompt = "\n\n".join([*blocks, f"Question: {question}\nAnswer:"])
        source = Source(str(file), number)
        items.append(Problem(source, prompt, (*turns, question), question, marked_number(answer)))
    common = Counter(marked_number(answer) for _, _, answer in worked or rows).most_common(1)[0][0]
    return Gsm8k(f"gsm8k, {shots} shots", items, common)


def _rows(file: Path) -> list[tuple[int, str, str]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as UTF-8 text ({error})") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = loads(line)
        except ValueError as error:
            raise DataError(f"{file}:{number}: is not JSON ({error})") from error
        texts = [row.get(key) for key in ("question", "answer")] if isinstance(row, dict) else []
        if len(texts) != 2 or not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError(f"{file}:{number}: expected the fields question and answer")
        if not marked_number(str(texts[1])):
            raise DataError(f"{file}:{number}: the answer does not end in #### and a number")
        found.append((number, str(texts[0]), str(texts[1])))
    if not found:
        raise DataError(f"{file}: holds no problem")
    return found
