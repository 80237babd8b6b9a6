"""Figures as people read them."""

import pytest

from modalign.numbers import words as fmt
from modalign.numbers.estimate import Estimate


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (fmt.count, 1_200_000, "1.2 M"),
        (fmt.count, 0, "0"),
        (fmt.count, 64, "64"),
        (fmt.count, 999_600, "1 M"),
        (fmt.count, 135_000_000, "135 M"),
        (fmt.count, 1.12e9, "1.1 B"),
        (fmt.count, None, "–"),
        (fmt.flops, 3.4e13, "34 TFLOPs"),
        (fmt.flops, 0, "0 FLOPs"),
        (fmt.flops, 9.96e9, "10 GFLOPs"),
        (fmt.flops, 2.5e15, "2.5 PFLOPs"),
        (fmt.seconds, 12.3, "12.3 s"),
        (fmt.seconds, 0.085, "85 ms"),
        (fmt.seconds, 0.9999, "1.0 s"),
        (fmt.seconds, 0, "0 s"),
        (fmt.seconds, 840, "14 min"),
        (fmt.seconds, 11_520, "3.2 h"),
        (fmt.seconds, float("nan"), "–"),
        (fmt.size, 512_000_000, "512 MB"),
        (fmt.size, 1_300_000_000, "1.3 GB"),
        (fmt.percent, 0.7134, "71.3 %"),
        (fmt.percent, -0.02, "−2.0 %"),
        (fmt.percent, -0.0001, "0.0 %"),
        (fmt.points, 0.041, "+4.1"),
        (fmt.points, -0.041, "−4.1"),
        (fmt.points, -0.0001, "0.0"),
        (fmt.number, 3.1824, "3.18"),
        (fmt.number, None, "–"),
        (fmt.scientific, 3e-5, "3e-05"),
        (fmt.p_value, 0.0004, "< 0.001"),
        (fmt.p_value, 0.0321, "0.032"),
        (fmt.names, ["a"], "a"),
        (fmt.names, ["a", "b", "c"], "a, b and c"),
        (fmt.names, [], ""),
        (fmt.interval, Estimate(value=0.713, low=0.68, high=0.744, n=9), "71.3 % (68.0 to 74.4)"),
        (fmt.interval, None, "–"),
        (
            fmt.point_interval,
            Estimate(value=0.041, low=-0.01, high=0.072, n=9),
            "+4.1 (−1.0 to +7.2)",
        ),
    ],
)
def test_format(function, value, text):
    assert function(value) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.713, "share", "71.3 % (70.3 to 72.3)"),
        (0.713, "difference of shares", "+71.3 (+70.3 to +72.3)"),
        (71.3, "percent", "71.3 % (71.3 to 71.3)"),
        (-4.1, "percentage points", "−4.1 (−4.1 to −4.1)"),
        (0.713, "score", "0.713 (0.703 to 0.723)"),
        (0.713, "", "0.71 (0.70 to 0.72)"),
        (0.0713, "nats", "0.071 (0.061 to 0.081)"),
    ],
)
def test_a_unit_says_how_an_estimate_is_written(value, unit, text):
    estimate = Estimate(value=value, low=value - 0.01, high=value + 0.01, n=9, unit=unit)
    assert fmt.interval(estimate) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (4.1, "four times the tokens"),
        (2, "twice the tokens"),
        (0.5, "half the tokens"),
        (1.02, "about the same tokens"),
        (0.07, "0.07 times the tokens"),
        (2.5, "2.5 times the tokens"),
        (1234, "1,234 times the tokens"),
    ],
)
def test_times(ratio, text):
    assert fmt.times(ratio, "tokens") == text


def test_without_an_interval_the_value_stands_alone():
    estimate = Estimate(value=0.5, n=9)
    assert fmt.interval(estimate) == "50.0 %"
    assert fmt.ends(estimate) == "–"
