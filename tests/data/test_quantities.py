"""Numbers as people print them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modalign.data.quantities import Quantity, decimal_of, parse_quantity


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(1,234)", Quantity(-1234)),
        ("1.234,5", Quantity(1234.5)),
        ("1,234.5", Quantity(1234.5)),
        ("$  1,452.4", Quantity(1452.4, "USD")),
        ("$(1,452.4)", Quantity(-1452.4, "USD")),
        ("(3.1)%", Quantity(-3.1, "%")),
        ("(3.1%)", Quantity(-3.1, "%")),
        ("-12 %", Quantity(-12, "%")),
        ("\u22120.5", Quantity(-0.5)),
        ("€ 3.5 million", Quantity(3.5, "EUR", "million")),
        ("3 bn", Quantity(3, "", "billion")),
        ("1.234.567", Quantity(1234567)),
        ("1'234'567", Quantity(1234567)),
        ("12 345", Quantity(12345)),
        ("1,234", Quantity(1234)),
        ("0.125", Quantity(0.125)),
        ("7", Quantity(7)),
        ("\u2014", None),
        ("", None),
        ("W 30\u20130", None),
        ("12 apples", None),
        ("1,23,4", None),
        ("2019-01-02", None),
    ],
)
def test_forms(text: str, expected: Quantity | None) -> None:
    assert parse_quantity(text) == expected


def test_a_single_separator_means_what_the_document_uses() -> None:
    german, english = ["1.234,5", "12,5", "1.234"], ["1,234.5", "12.5", "1,234"]
    assert (decimal_of(german), decimal_of(english), decimal_of(["1.234"])) == (",", ".", ".")
    assert parse_quantity("1.234", decimal_of(german)) == Quantity(1234)
    assert parse_quantity("1.234", decimal_of(english)) == Quantity(1.234)


@given(st.integers(-(10**9), 10**9), st.integers(1, 99), st.booleans())
def test_what_is_printed_is_read(whole: int, cents: int, german: bool) -> None:
    printed = f"{abs(whole):,}.{cents:02d}"
    if german:
        printed = printed.translate(str.maketrans(",.", ".,"))
    value = abs(whole) + cents / 100
    assert parse_quantity(printed) == Quantity(pytest.approx(value))
    assert parse_quantity(f"({printed})") == Quantity(pytest.approx(-value))
