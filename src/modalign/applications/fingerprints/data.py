"""Read and cut texts whose source is known, and refuse unusable ones."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modalign.applications.rows import Row, read_all
from modalign.data.records import Source

CUT = 400  # characters compared, so that length gives nothing away
LEAST = 100  # words that a text needs to be judged
HUMAN = "human"


@dataclass(frozen=True)
class Text:
    """A text; ``document`` is what it was written about, ``domain`` the kind of text."""

    text: str
    source: str
    document: str
    domain: str
    place: Source


def read_texts(paths: Sequence[str | Path]) -> list[Text]:
    """Read texts: rows of ``text`` and ``source`` and, if given, ``document`` and ``domain``.

    Rows may also hold ``human``, ``machine`` and ``model``: the text of a person and of a model about one
    document. Repeated texts are left out.

    Raises:
        DataError: unusable rows.
    """

    def read(row: Row) -> list[Text]:
        document = str(row.fields.get("document") or row.source)
        domain = str(row.fields.get("domain") or "all")
        pair = "machine" in row.fields
        given = (
            [(HUMAN, row.text("human")), (row.text("model"), row.text("machine"))]
            if pair
            else [(row.text("source"), row.text("text"))]
        )
        return [Text(text, source, document, domain, row.source) for source, text in given]

    found = [each for path in paths for row in read_all(path, read) for each in row]
    seen: dict[tuple[str, str, str], Text] = {}
    for each in found:  # one human text per document, although every model's row repeats it
        key = (each.source, each.document, "" if each.source == HUMAN else each.text)
        seen.setdefault(key, each)
    return list(seen.values())


def halves(texts: Sequence[Text], seed: int) -> tuple[list[Text], list[Text]]:
    """Split by document: no document is on both sides."""
    documents = sorted({each.document for each in texts})
    order = np.random.default_rng(seed).permutation(len(documents))
    first = {documents[at] for at in order[: (len(documents) + 1) // 2]}
    inside = [each for each in texts if each.document in first]
    return inside, [each for each in texts if each.document not in first]


def cut(text: str, most: int | None = CUT) -> str:
    """Return the first characters of a text with normalised white space; None for the whole text unchanged."""
    return text if most is None else " ".join(text.split())[:most]


def _swapped(text: str) -> str:
    words, drawn = text.split(), random.Random(0)
    for at in range(0, len(words) - 1, 2):
        if drawn.random() < 0.3:
            words[at], words[at + 1] = words[at + 1], words[at]
    return " ".join(words)


ATTACKS: dict[str, Callable[[str], str]] = {
    "lower case": str.lower,
    "no punctuation": lambda text: re.sub(r"[^\w\s]", "", text),
    "words swapped": _swapped,
    "first 200 characters": lambda text: text[:200],
}
