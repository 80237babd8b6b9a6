"""Classes of texts by their letters: n-grams of characters and a logistic regression, kept as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, model_validator
from scipy.special import log_softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from modalign.errors import DataError

GRAMS = 20_000
Floats = NDArray[np.float64]


class LexicalClasses(BaseModel):
    """A trained classifier; its JSON is all of it.

    Attributes:
        classes: that it knows, two or more.
        grams, idf: n-grams of characters and their weights.
        weights, bias: of the regression, a row per class.
    """

    classes: list[str]
    grams: list[str]
    idf: list[float]
    weights: list[list[float]]
    bias: list[float]

    @model_validator(mode="after")
    def _shapes_agree(self) -> LexicalClasses:
        rows, columns = len(self.classes), len(self.grams)
        shapes = {len(self.weights), len(self.bias)}, {len(self.idf), *map(len, self.weights)}
        if rows < 2 or shapes != ({rows}, {columns}):
            raise ValueError(f"{rows} classes and {columns} grams do not fit the weights' shapes")
        return self

    @classmethod
    def fit(
        cls, texts: Sequence[str], labels: Sequence[str], balanced: bool = False
    ) -> LexicalClasses:
        """Train on texts and their classes; ``balanced`` gives every class the same weight.

        Raises:
            DataError: fewer than two classes, or texts without letters.
        """
        classes = sorted(set(labels))
        if len(classes) < 2:
            raise DataError(
                f"texts of {' and '.join(classes) or 'no class'} only: two or more can be told apart"
            )
        made = _grams(max_features=GRAMS)
        try:
            rows = made.fit_transform(texts)
        except ValueError as error:
            raise DataError("the texts hold no letters to compare") from error
        fit: Any = LogisticRegression(
            C=10, max_iter=300, class_weight="balanced" if balanced else None
        )
        fit.fit(rows, list(labels))
        weights, bias = fit.coef_, fit.intercept_
        if len(classes) == 2:  # one row stands for the second of two
            weights, bias = (np.concatenate([0 * each, each]) for each in (weights, bias))
        return cls(
            classes=classes,
            grams=made.get_feature_names_out().tolist(),
            idf=made.idf_.tolist(),
            weights=weights.round(6).tolist(),
            bias=bias.tolist(),
        )

    def rows(self, texts: Sequence[str]) -> Any:
        """Return (n, grams), sparse: the weighed n-grams of texts, of length 1."""
        made = _grams(vocabulary={gram: place for place, gram in enumerate(self.grams)})
        made.idf_ = np.array(self.idf)
        return made.transform(texts)

    def log_shares(self, texts: Sequence[str]) -> Floats:
        """Return (n, classes) log-probabilities."""
        scores = self.rows(texts) @ np.array(self.weights).T + np.array(self.bias)
        found: Floats = log_softmax(scores, axis=1)
        return found


def _grams(**options: Any) -> Any:
    return TfidfVectorizer(
        analyzer="char", ngram_range=(2, 4), sublinear_tf=True, lowercase=False, **options
    )
