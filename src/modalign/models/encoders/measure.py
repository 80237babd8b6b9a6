"""Measure how many features an encoder gives for an input of a given length."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from modalign.encoders.base import EncoderError
from modalign.encoders.speech import num_features

FAR = 16  # times the first length; the mean step over them says roughly where to search


def steps_of(count: Callable[[int], int], around: int) -> dict[str, int]:
    """Find the step function of an encoder.

    A sequence of convolutions with any kernels, strides and paddings gives
    ``floor((length - first) / stride) + 1`` features; an encoder that pools a whole clip gives a constant.

    Args:
        count: runs the encoder on an input of a given length and counts its features.
        around: a length that certainly gives features.

    Returns:
        {"first", "stride"} or {"constant"}, for ``num_features`` of the encoders.

    Raises:
        EncoderError: it is not such a function.
    """
    base, far = count(around), count((1 + FAR) * around)
    if far == base:
        return {"constant": base}
    about = max(1, FAR * around // (far - base)) if far > base else 0
    edge = _edge(count, base + 1, around, 2 * about + 2)
    stride = _edge(count, base + 2, edge, 2 * about + 2) - edge
    steps = {"first": edge - base * stride, "stride": stride}
    probes = [max(1, steps["first"]), around // 2 + 7, around + stride // 2, 2 * around + 11]
    if stride and all(num_features(length, steps) == count(length) for length in probes):
        return steps
    raise EncoderError(
        "its number of features is not a step function of an input's length; wrap it in a module that gives "
        "one feature per fixed number of samples"
    )


def _edge(count: Callable[[int], int], features: int, start: int, span: int) -> int:
    """Find the first length after ``start`` with this many features."""
    return start + bisect_left(range(start, start + span), features, key=count)
