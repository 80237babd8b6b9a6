"""CHAIR: objects that a caption names but the image does not contain (Rohrbach et al. 2018, arXiv 1809.02156).

    CHAIR-i = hallucinated mentions / all mentions of objects
    CHAIR-s = captions with a hallucinated object / all captions

An object is in the image when the record lists it or a reference caption names it, as in the paper.
Only objects of the vocabulary count as mentions: all names in the records and the object file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modalign.data.records import Record
from modalign.errors import DataError
from modalign.evaluation.tasks.base import Groups, Output, Score, Task
from modalign.numbers.estimate import Estimate
from modalign.strict_json import loads

_WORD = re.compile(r"[^\W_]+")


def phrase(text: str) -> tuple[str, ...]:
    """Return the words of a name in lower case, for matching."""
    return tuple(_WORD.findall(text.lower()))


def plural(word: str) -> str:
    """Return the regular plural of a noun; list irregular ones as synonyms."""
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "z", "ch", "sh")) else "s")


class Vocabulary:
    """Names mapped to objects; the longest matching name in a text wins."""

    def __init__(self, synonyms: Mapping[str, Sequence[str]]) -> None:
        self._names: dict[tuple[str, ...], str] = {}
        self._plurals: dict[
            tuple[str, ...], str
        ] = {}  # give way to names: "glasses" are not a glass
        for name, others in synonyms.items():
            for other in (name, *others):
                self.add(other, name)

    def add(self, word: str, name: str) -> None:
        """Map a word and its plural to an object.

        Raises:
            DataError: the word is already mapped to another object.
        """
        known = self._names.setdefault(phrase(word), name)
        if known != name:
            raise DataError(
                f"{word!r} stands for two objects, {known!r} and {name!r}: keep one of them"
            )
        *before, last = phrase(word)
        self._plurals.setdefault((*before, plural(last)), name)

    def find(self, words: tuple[str, ...]) -> str | None:
        """Return the object that these words name."""
        return self._names.get(words) or self._plurals.get(words)

    def mentions(self, text: str) -> list[str]:
        """Return every mention of an object in a text, in order."""
        words, found, place = phrase(text), [], 0
        longest = max(map(len, self._names), default=0)
        while place < len(words):
            for length in range(min(longest, len(words) - place), 0, -1):
                name = self.find(words[place : place + length])
                if name is not None:
                    found.append(name)
                    place += length
                    break
            else:
                place += 1
        return found


class Chair(Task):
    """CHAIR-s, CHAIR-i and recall of generated captions.

    Args:
        objects: JSON file ``{object: [other words for it, ...]}``; records may add to it.
        seed: of intervals.
    """

    name = "chair"
    headline = "CHAIR-s"
    per_question = False
    advice = (
        'list what is in the image in the field "objects", as ["dog", "car"]; other words for objects go '
        'into --objects FILE or the field "synonyms", as {"dog": ["puppy"]}'
    )
    lower_is_better = True

    def __init__(self, *, objects: Path | None = None, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.file = objects
        self.given = {} if objects is None else _read_objects(objects)

    def check(self, records: Sequence[Record]) -> None:
        """Check that every record lists its objects and that no word names two."""
        super().check(records)
        self.vocabulary(records)

    def problem(self, record: Record) -> str | None:
        """No list of objects, or one that cannot be looked for."""
        objects = record.extra.get("objects")
        if not isinstance(objects, list) or not all(isinstance(name, str) for name in objects):
            return (
                "no list of objects"
                if objects is None
                else f"objects is {objects!r}, not a list of names"
            )
        empty = [name for name in objects if not phrase(name)]
        if empty:
            return f"the object {empty[0]!r} has no word"
        synonyms = record.extra.get("synonyms", {})
        if not _is_synonyms(synonyms):
            return 'synonyms is not a mapping of names to lists, {"dog": ["puppy"]}'
        return None

    def vocabulary(self, records: Sequence[Record]) -> Vocabulary:
        """Return all objects of the file and the records with their synonyms."""
        found = Vocabulary(self.given)
        for record in records:
            for name, words in record.extra.get("synonyms", {}).items():
                known = found.find(phrase(name)) or name
                for word in (name, *words):
                    found.add(word, known)
        listed = {name for record in records for name in record.extra["objects"]}
        for name in sorted(listed, key=lambda name: (len(name), name)):  # dog before dogs
            if found.find(phrase(name)) is None:
                found.add(name, name)
        return found

    def score(self, records: Sequence[Record], outputs: Sequence[Output]) -> list[Score]:
        """Score 1 for a caption that names an absent object, else 0."""
        vocabulary = self.vocabulary(records)
        return [
            _score(vocabulary, record, output)
            for record, output in zip(records, outputs, strict=True)
        ]

    def measures(self, scores: Sequence[Score], groups: Groups) -> dict[str, Estimate]:
        """CHAIR-s with a Wilson interval, CHAIR-i and recall with a bootstrap's."""
        found = {
            "CHAIR-s": self.share(scores, groups),
            "CHAIR-i": self.of_counts(scores, ("hallucinated",), ("mentions",), groups),
            "recall": self.of_counts(scores, ("found",), ("present",), groups),
        }
        return {name: measure for name, measure in found.items() if measure is not None}

    def constants(self, records: Sequence[Record]) -> dict[str, list[Output]]:
        """Return none: captions have no most frequent one."""
        return {}

    def settings(self) -> dict[str, Any]:
        """The file of objects."""
        return {} if self.file is None else {"objects": str(self.file)}

    def notes(self) -> list[str]:
        """How a low score is read."""
        return [
            "CHAIR falls when a caption says less: read it beside recall, the share of present objects named."
        ]


def _score(vocabulary: Vocabulary, record: Record, output: Output) -> Score:
    listed = [name for text in record.extra["objects"] for name in vocabulary.mentions(text)]
    captions = [
        name for text in (record.answer, *record.answers) for name in vocabulary.mentions(text)
    ]
    present = set(listed) | set(captions)
    named = vocabulary.mentions(output.text)
    wrong = [name for name in named if name not in present]
    counts = {
        "hallucinated": len(wrong),
        "mentions": len(named),
        "found": len(present & set(named)),
        "present": len(present),
        "hallucinated_objects": wrong,
        "named_objects": named,
    }
    return Score(float(bool(wrong)), " ".join(named), counts)


def _is_synonyms(value: Any) -> bool:
    return isinstance(value, dict) and all(
        phrase(name)
        and isinstance(words, list)
        and all(isinstance(word, str) and phrase(word) for word in words)
        for name, words in value.items()
    )


def _read_objects(file: Path) -> dict[str, list[str]]:
    try:
        found = loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}") from error
    if not _is_synonyms(found):
        raise DataError(
            f'{file} is not a mapping of objects to other words for them, {{"dog": ["puppy"]}}'
        )
    return dict(found)
