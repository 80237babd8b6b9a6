"""Perplexity per text domain, over passages that are the same whatever the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from modalign.data.corpus import read_corpus
from modalign.data.records import Source
from modalign.evaluation.suites.parts import Answer, Measure, Part, Passage
from modalign.numbers.bootstrap import Floats

PASSAGE = 2000  # characters
LEAST = 200  # a shorter remainder is left out
SUFFIXES = (".txt", ".md", ".json", ".jsonl", ".parquet")


class Domain(Part):
    """Bits per byte (for any two models) and perplexity per token (for models of one tokenizer)."""

    kind = "read"

    def measures(self, items: Sequence[Passage]) -> list[Measure]:
        """Ratios of sums over passages, linearised, so that passages can be redrawn."""
        sizes = np.array([float(len(item.text.encode())) for item in items])

        def bits(answers: Sequence[Answer]) -> Floats:
            return linearised(np.array([nats / math.log(2) for nats, _ in answers]), sizes)

        def nats_per_token(answers: Sequence[Answer]) -> Floats:
            return linearised(
                np.array([nats for nats, _ in answers]),
                np.array([float(tokens) for _, tokens in answers]),
            )

        return [
            Measure(
                "bits per byte",
                of=bits,
                unit="bits per byte",
                over="passages",
                headline=True,
                lower_is_better=True,
            ),
            Measure(
                "perplexity",
                of=nats_per_token,
                unit="perplexity",
                over="passages",
                lower_is_better=True,
            ),
        ]


def linearised(above: Floats, below: Floats) -> Floats:
    """Return each passage's contribution to the ratio of sums, which is their mean (Woodruff 1971)."""
    ratio = above.sum() / below.sum()
    return np.asarray(ratio + (above - ratio * below) / below.mean())


def domain(file: Path, *, seed: int = 0, limit: int | None = None) -> Domain:
    """Cut a file's text into passages.

    Args:
        file: a text file (one text), or what :func:`modalign.data.corpus.read_corpus` reads (a text per row).
        seed: of the passages drawn.
        limit: at most so many passages.

    Raises:
        DataError: the file cannot be read or holds no text.
    """
    texts = read_corpus(file).documents
    if file.suffix in (".txt", ".md"):
        texts = ["\n\n".join(texts)]
    pieces = [piece for text in texts for piece in passages(text)]
    found = [Passage(Source(str(file), number), piece) for number, piece in enumerate(pieces, 1)]
    if limit is not None and limit < len(found):
        chosen = np.random.default_rng(seed).choice(len(found), limit, replace=False)
        found = [found[place] for place in sorted(chosen.tolist())]
    return Domain(f"text {file.stem}", found)


def passages(text: str) -> Iterator[str]:
    """Cut a text at white space into pieces of at most ``PASSAGE`` characters; a short rest is left out."""
    text = text.strip()
    start = 0
    while len(text) - start > PASSAGE:
        cut = max(text.rfind(mark, start + LEAST, start + PASSAGE) for mark in (" ", "\n"))
        stop = cut if cut > 0 else start + PASSAGE
        yield text[start:stop]
        start = stop + (cut > 0)
    if start == 0 or len(text) - start >= LEAST:
        yield text[start:]
