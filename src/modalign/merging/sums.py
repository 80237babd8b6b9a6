"""Sums of deltas that several merge methods share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from modalign.errors import UsageError

Share = Annotated[float, Field(gt=0, le=1)]


def weighted_sum(deltas: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the sum of weight times delta, first parent first."""
    total: Tensor | None = None
    for name, weight in weights.items():
        part = weight * deltas[name]
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def mean(deltas: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the weighted sum divided by the sum of the weights; equal deltas give that delta, bit for bit.

    Raises:
        UsageError: the weights add up to 0.
    """
    whole = sum(weights.values())
    if not whole:
        raise UsageError("the weights of a mean add up to 0; give others")
    first, *others = weights
    total = deltas[first].clone()
    for name in others:
        total += (deltas[name] - deltas[first]) * (weights[name] / whole)
    return total


def agreed(
    deltas: Mapping[str, Tensor],
    weights: Mapping[str, float],
    votes: Mapping[str, float] | None = None,
) -> Tensor:
    """Return the weighted mean of those deltas that have the elected sign, per number.

    The sign of the votes' weighted sum is elected, plus where it is zero. Only deltas of that sign count, in the
    mean and in what it is divided by; where there is none, the result is 0. Equal deltas give that delta, bit for
    bit.

    Args:
        deltas: parent -> delta; zeros do not count.
        weights: of the mean.
        votes: of the election; None: ``weights``.
    """
    votes = votes or weights
    sign = torch.where(weighted_sum(deltas, votes) >= 0, 1.0, -1.0)
    same = {name: deltas[name] * (sign * votes[name]) > 0 for name in weights}
    one = torch.zeros_like(
        sign
    )  # any of those that count: the mean is it plus the mean distance from it
    for name, counts in same.items():
        one = torch.where(counts, deltas[name], one)
    distance, share = torch.zeros_like(sign), torch.zeros_like(sign)
    for name, counts in same.items():
        weight = weights[name] * counts
        distance += weight * (deltas[name] - one)
        share += weight
    return one + torch.where(share != 0, distance / share, 0.0)
