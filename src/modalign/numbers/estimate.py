"""A number estimated from a sample, with its 95 % interval and sample."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

NOT_KNOWN = float("nan")

IntervalKind = Literal[
    "exact",
    "wilson",
    "bootstrap",
    "clustered bootstrap",
    "hierarchical bootstrap",
    "jackknife",
    "student",
    "order statistics",
    "extrapolation",
    "fisher",
]


def _nan_of_none(value: Any) -> Any:
    return NOT_KNOWN if value is None else value


def _not_known() -> float:
    return NOT_KNOWN


# pydantic writes NaN as null; this reads it back. (A default of NaN would make the schema invalid JSON.)
End = Annotated[
    float,
    Field(default_factory=_not_known),
    BeforeValidator(_nan_of_none),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}]}),
]


class Estimate(BaseModel):
    """A number with its 95 % interval.

    Attributes:
        value: the estimate, in ``unit``.
        low, high: ends of the interval; NaN (``null`` in JSON) if there is none, so that every
            comparison with them is false.
        n: the number of ``over`` sampled, or the denominator of a share.
        over: the kind of item sampled: records, questions, edits, windows of text.
        trainings: trainings (seeds) that the interval covers; None if the
            model is fixed.
        by_questions, by_trainings: half-width of the interval if only questions, or
            only trainings, were resampled; None if the model is fixed, and ``by_trainings`` also if
            the spread between trainings is unknown: the interval then covers questions only.
        interval: method of the interval; None if there is none or it is unknown.
        unit: ``share`` (of 1), ``difference of shares`` (of 1, shown in percentage points),
            ``percent``, ``percentage points``, ``points`` (of 100), ``score``, ``nats`` and so on;
            see :data:`modalign.numbers.words.UNITS`.
        protocol: how the model was prompted; figures of different protocols are not comparable.
        chance: expected value by chance, if known.
        chance_high: 97.5 % quantile by chance.
        p: share of random pairings that reach the value.
    """

    model_config = ConfigDict(extra="forbid")

    value: float
    low: End
    high: End
    n: int
    over: str = "records"
    trainings: int | None = None
    by_questions: float | None = None
    by_trainings: float | None = None
    interval: IntervalKind | None = None
    unit: str = "share"
    protocol: str | None = None
    chance: float | None = None
    chance_high: float | None = None
    p: float | None = None

    @property
    def bounded(self) -> bool:
        """Whether the interval is known and finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def of_questions_alone(self) -> bool:
        """Whether a model was trained, but nothing is known of how its trainings differ."""
        return self.trainings is not None and self.by_trainings is None

    @property
    def sign(self) -> int:
        """1 if the whole interval is above zero, -1 if below, 0 if it contains zero or is unknown."""
        return (self.low > 0) - (self.high < 0)


def exactly(value: float, n: int, unit: str = "share", over: str = "records") -> Estimate:
    """Return a known rather than estimated number, such as chance."""
    return Estimate(value=value, low=value, high=value, n=n, over=over, unit=unit, interval="exact")
