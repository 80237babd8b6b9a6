"""A number estimated from a sample, with its 95 % interval and what it was taken over."""

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
    "extrapolation",
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
        low, high: ends of the interval; NaN (``null`` in JSON) where there is none, so that every
            comparison with them is false.
        n: how many of ``over`` it was taken over, or what it is a share of.
        over: what was sampled: records, questions, edits, windows of text.
        trainings: trainings (seeds) of the model that the interval speaks of; None where the
            model is given.
        by_questions, by_trainings: how far the interval would reach on each side if only questions, or
            only trainings, were drawn again; None where the model is given, and ``by_trainings`` where
            nothing is known of the spread between trainings: the interval is then about questions alone.
        interval: how the interval was made; None where there is none, or where it is not said.
        unit: ``share`` (of 1), ``difference of shares`` (of 1, shown in percentage points),
            ``percent``, ``percentage points``, ``points`` (of 100), ``score``, ``nats`` and so on;
            see :data:`modalign.numbers.words.UNITS`.
        protocol: how the model was asked; numbers of different protocols are not comparable.
        chance: what it would be without any relation, where that is known.
        chance_high: 97.5 % quantile of what chance gives.
        p: share of random pairings that give as much.
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
        """1 where the whole interval lies above zero, -1 below, 0 where it holds zero or is unknown."""
        return (self.low > 0) - (self.high < 0)


def exactly(value: float, n: int, unit: str = "share", over: str = "records") -> Estimate:
    """A number that is known rather than estimated, such as chance."""
    return Estimate(value=value, low=value, high=value, n=n, over=over, unit=unit, interval="exact")
