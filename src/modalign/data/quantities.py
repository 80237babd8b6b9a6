"""Numbers as people print them: signs, separators, currencies, per cent, scales."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Decimal = Literal[".", ","]
SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_CURRENCIES = {"$": "USD", "€": "EUR", "£": "GBP", "¥": "JPY"}
_NUMBER = re.compile(r"\d[\d.,'\u00a0\u202f ]*")
_FORM = re.compile(
    r"""^(?P<open>\()?\s*(?P<sign>[-+\u2212\u2013])?\s*(?P<money>[$€£¥]|USD|EUR|GBP|RM)?\s*
    (?P<sign2>[-+\u2212\u2013])?\s*(?P<open2>\()?\s*(?P<digits>\d[\d.,'\u00a0\u202f ]*?)\s*(?P<close>\))?\s*
    (?P<after>%|[$€£¥]|per\s?cent)?\s*(?P<scale>thousands?|millions?|billions?|trillions?|k|m|bn)?\s*(?P<close2>\))?$""",
    re.VERBOSE | re.IGNORECASE,
)
_SHORT = {"k": "thousand", "m": "million", "bn": "billion"}


@dataclass(frozen=True)
class Quantity:
    """A printed number.

    Attributes:
        value: as printed, with its sign: 12.5 of "12.5 %", -1234 of "(1,234)".
        unit: ``%``, a currency or none.
        scale: ``thousand``, ``million``, ... if printed with it.
    """

    value: float
    unit: str = ""
    scale: str = ""


def parse_quantity(text: str, decimal: Decimal = ".") -> Quantity | None:
    """Read a text that is one number, else None: ``$ 1,452.4``, ``(1,234)``, ``1.234,5``, ``12 %``.

    Brackets are a minus. Of several separators the last is the decimal one, unless it recurs.

    Args:
        text: the text, such as a table's cell.
        decimal: what a single separator before three digits means; see :func:`decimal_of`.
    """
    found = _FORM.match(text.strip())
    if found is None:
        return None
    value = _value(found["digits"], decimal)
    if value is None:
        return None
    bracketed = bool((found["open"] or found["open2"]) and (found["close"] or found["close2"]))
    minus = (found["sign"] or found["sign2"] or "+") not in "+"
    after, money = (found["after"] or "").lower(), (found["money"] or "").upper()
    unit = "%" if after.startswith(("%", "per")) else _CURRENCIES.get(money or after, money)
    scale = (found["scale"] or "").lower().rstrip("s")
    return Quantity(-value if bracketed or minus else value, unit, _SHORT.get(scale, scale))


def decimal_of(texts: Iterable[str]) -> Decimal:
    """Return the decimal separator that the unambiguous numbers of a document use; a point if none are."""
    votes = {".": 0, ",": 0}
    for text in texts:
        for digits in _NUMBER.findall(text):
            kind = _certain(digits.rstrip(" .,"))
            if kind:
                votes[kind] += 1
    return "," if votes[","] > votes["."] else "."


def _certain(digits: str) -> Decimal | None:
    """The decimal separator of a number that leaves no choice."""
    marks = re.findall(r"[.,]", digits)
    if not marks:
        return None
    other: Decimal = "," if marks[-1] == "." else "."
    if len(set(marks)) == 2:
        return "." if marks[-1] == "." else ","
    if len(marks) > 1:
        return other  # it recurs, so it groups
    tail = re.split(r"[.,]", digits)[1]
    return None if len(tail) == 3 and not digits.startswith("0") else ("." if other == "," else ",")


def _value(digits: str, decimal: Decimal) -> float | None:
    bare = re.sub(r"['\u00a0\u202f ]", "", digits).rstrip(".,")
    point = _certain(bare) or decimal
    group = "," if point == "." else "."
    whole, _, part = bare.replace(group, "").partition(point)
    groups = re.split(r"[.,]", bare)
    grouped = bare.count(group) and any(
        len(each) != 3 for each in groups[1 : bare.count(group) + 1]
    )
    if grouped or not (whole + part).isdigit():
        return None
    return float(f"{whole}.{part or 0}")
