"""The fingerprint of a source: its character n-grams, weighted by logistic regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel

from modalign.applications.fingerprints.data import CUT, LEAST, Text, cut, halves
from modalign.errors import DataError
from modalign.index.lexical_classes import Floats, LexicalClasses
from modalign.numbers.classes import macro_f1
from modalign.numbers.ranking import auroc, threshold_between


class Fingerprints(BaseModel):
    """The file that ``modalign app fingerprint train`` writes: plain numbers, no pickle.

    Attributes:
        classes: the sources.
        most: how many characters of a text are read; None for all.
        threshold: mean log-probability below which texts are of no known source; None if that cannot be told.
        identifiable: whether the sources were told apart better than by chance.
    """

    classes: LexicalClasses
    most: int | None = CUT
    threshold: float | None = None
    identifiable: bool = False

    @property
    def sources(self) -> list[str]:
        """The sources that it knows."""
        return self.classes.classes

    def log_shares(self, texts: Sequence[str]) -> Floats:
        """Return (n, sources) log-probabilities."""
        return self.classes.log_shares([cut(text, self.most) for text in texts])


def trained(texts: Sequence[Text], most: int | None = CUT, balanced: bool = False) -> Fingerprints:
    """Fit the fingerprints of the texts' sources, two or more."""
    own, labels = [cut(each.text, most) for each in texts], [each.source for each in texts]
    return Fingerprints(classes=LexicalClasses.fit(own, labels, balanced), most=most)


def checked(texts: Sequence[Text], seed: int = 0) -> Fingerprints:
    """Fit, and check on the other half of the documents whether sources, and unknown ones, can be told apart."""
    inside, outside = halves(texts, seed)
    found = trained(texts)
    if outside and {each.source for each in inside} == set(found.sources):
        guessed = trained(inside).log_shares([each.text for each in outside]).argmax(1)
        gold = [found.sources.index(each.source) for each in outside]
        found.identifiable = macro_f1(guessed, gold, len(found.sources)).low > 1 / len(
            found.sources
        )
        known, unknown = left_out(inside, outside)
        if len(unknown) and auroc(known, unknown).low > 0.5:
            found.threshold = threshold_between(known, unknown)
    return found


def left_out(inside: Sequence[Text], outside: Sequence[Text]) -> tuple[Floats, Floats]:
    """Return best log-probabilities of texts of known and of unknown sources, each source unknown in turn."""
    known, unknown = [np.zeros(0)], [np.zeros(0)]
    sources = sorted({each.source for each in inside})
    for source in sources if len(sources) > 2 else ():
        made = trained([each for each in inside if each.source != source])
        for where, same in ((unknown, True), (known, False)):
            own = [each.text for each in outside if (each.source == source) == same]
            if own:
                where.append(made.log_shares(own).max(1))
    return np.concatenate(known), np.concatenate(unknown)


def enrolled(inside: Sequence[Text], outside: Sequence[Text], few: int) -> list[bool]:
    """Return whether texts of each source are nearest to its few enrolled ones, in a space fitted without it."""
    sources, hits = sorted({each.source for each in inside}), list[bool]()
    for source in sources if len(sources) > 2 else ():
        made = trained([each for each in inside if each.source != source])
        means = [
            np.asarray(
                made.classes.rows([cut(e.text) for e in inside if e.source == own][:few]).mean(0)
            )
            for own in sources
        ]
        asked = made.classes.rows([cut(each.text) for each in outside if each.source == source])
        near = np.asarray(asked @ np.concatenate(means).T) / np.linalg.norm(
            np.concatenate(means), axis=1
        )
        hits += (near.argmax(1) == sources.index(source)).tolist()
    return hits


@dataclass(frozen=True)
class Verdict:
    """The verdict on texts of one origin.

    Attributes:
        source: the likeliest one; None if not identifiable.
        shares: source -> probability, from the mean of the texts' log-probabilities.
        texts: number of texts judged.
        refused: number of texts too short to be judged.
    """

    source: str | None
    shares: dict[str, float]
    texts: int
    refused: int


def identify(made: Fingerprints, texts: Sequence[str]) -> Verdict:
    """Judge texts of one origin together.

    Raises:
        DataError: all of them are shorter than 100 words.
    """
    long = [text for text in texts if len(text.split()) >= LEAST]
    if not long:
        most = max((len(text.split()) for text in texts), default=0)
        raise DataError(
            f"the longest text has {most} words: below {LEAST} a text is not judged; give longer texts"
        )
    mean = made.log_shares(long).mean(0)
    shares = np.exp(mean - mean.max())
    shares /= shares.sum()
    there = made.identifiable and (made.threshold is None or mean.max() >= made.threshold)
    named = dict(zip(made.sources, shares.tolist(), strict=True))
    source = made.sources[int(mean.argmax())] if there else None
    return Verdict(source, named, len(long), len(texts) - len(long))
