"""Search by words or letters, without a model: TF-IDF and its cosines, the simple rule of applications."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from modalign.errors import DataError

PART = 256  # queries compared at once
Scores = NDArray[np.float64]


class Lexical:
    """Texts to search.

    Args:
        texts: one or more.
        by: ``letters``: 2- to 4-grams of characters within words; ``words``: words and pairs of words.

    Raises:
        DataError: no text holds anything to compare.
    """

    def __init__(self, texts: Sequence[str], by: Literal["letters", "words"] = "letters") -> None:
        letters = by == "letters"
        self._grams = TfidfVectorizer(
            analyzer="char_wb" if letters else "word",
            ngram_range=(2, 4) if letters else (1, 2),
            sublinear_tf=letters,
        )
        try:
            self._rows = self._grams.fit_transform(texts)
        except ValueError as error:
            raise DataError("the texts to search hold no words or letters to compare") from error

    def scores(self, queries: Sequence[str]) -> Scores:
        """Return cosines (queries, texts), rounded so that equal texts score equally."""
        parts = [
            (self._grams.transform(queries[at : at + PART]) @ self._rows.T).toarray()
            for at in range(0, len(queries), PART)
        ]
        found: Scores = np.concatenate(parts).round(9)
        return found
