"""How many features an encoder gives for an input of some length: measured, not taken from a formula."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from modalign.encoders.base import EncoderError
from modalign.encoders.speech import num_features

FAR = 16  # times the length tried first; the mean step over them says about where to look


def steps_of(count: Callable[[int], int], around: int) -> dict[str, int]:
    """Find the step function of an encoder.

    Convolutions of any kernels, strides and paddings, one after another, give
    ``floor((length - first) / stride) + 1`` features; an encoder that pools a whole clip, a constant.

    Args:
        count: runs the encoder on an input of some length and counts its features.
        around: a length at which it certainly gives some.

    Returns:
        {"first", "stride"} or {"constant"}, as ``num_features`` of the encoders reads them.

    Raises:
        EncoderError: it is no such function.
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
        "its number of features is no step function of an input's length; wrap it in a module that gives "
        "one feature per fixed number of samples"
    )


def _edge(count: Callable[[int], int], features: int, start: int, span: int) -> int:
    """The first length behind ``start`` that gives so many features."""
    return start + bisect_left(range(start, start + span), features, key=count)
