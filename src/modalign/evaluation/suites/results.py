"""The results of a suite."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import Difference
from modalign.version import __version__

RANDOM = "random weights"


class Spread(BaseModel):
    """The lowest and the highest figure over the orders of the options."""

    low: float
    high: float


class Paired(BaseModel):
    """The model against another on the same items.

    Attributes:
        difference: the model's figure minus the other's; ``p_holm`` is corrected over all tests of the report. Its
            verdict is of the larger figure.
        verdict: better, worse, or no difference found.
        only_model, only_other: items that only one of them has right; None where values are not right or wrong.
        mcnemar: the exact two-sided p-value of these two counts.
    """

    difference: Difference
    verdict: str
    only_model: int | None = None
    only_other: int | None = None
    mcnemar: float | None = None


class Line(BaseModel):
    """A measure of a part.

    Attributes:
        part, measure: their names.
        headline: whether it was tested.
        lower_is_better: whether less is better.
        n, over: how many of what every row was judged by.
        rows: row -> figure: the model, the others, random weights, chance, majority, surface rules.
        rules: rows that are rules without a model.
        orders: row -> spread over the orders of the options.
        pairs: other model -> the paired difference.
    """

    part: str
    measure: str
    headline: bool
    lower_is_better: bool
    n: int
    over: str
    rows: dict[str, Estimate]
    rules: list[str] = []
    orders: dict[str, Spread] = {}
    pairs: dict[str, Paired] = {}


class Suite(BaseModel):
    """The results of a suite, with everything needed to repeat it.

    Attributes:
        suite, model, data: what was asked.
        models: rows that are models, the judged one first -> its folder.
        settings: form, orders, shots, seed and so on.
        patches: on the judged model.
        lines: a line per measure.
        left_out: part -> items left out because some model does not read so much.
        notes: what the figures do not say.
        harness: version.
        command: as it was called.
    """

    suite: str
    model: str
    data: str
    models: dict[str, str]
    settings: dict[str, Any]
    patches: list[str] = []
    lines: list[Line]
    left_out: dict[str, int] = {}
    notes: list[str] = []
    harness: str = f"modalign {__version__}"
    command: str = ""
