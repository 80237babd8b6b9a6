"""Make a tool's result safe: JSON-able, readable as text, of bounded length; and split it into lines."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modalign.tools.base import Json, NotTextError

MAX_DEPTH = 20
# A text with a larger share of unprintable characters is decoded binary data.
UNPRINTABLE_SHARE = 0.1
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_TEXT_KEYS = ("text", "generated_text", "label", "answer", "word")


@dataclass(frozen=True, slots=True)
class Line:
    """One finding of a tool.

    Attributes:
        text: without line breaks.
        score: the tool's confidence, 0 to 1; 1 if it states none.
        box: (x0, y0, x1, y1) in the medium's own units, if the tool gives one.
    """

    text: str
    score: float = 1.0
    box: tuple[float, float, float, float] | None = None


def jsonable(value: Any, depth: int = 0) -> Json:
    """Plain data of a tool's result: numpy scalars and arrays, tuples, sets, dataclasses, UTF-8 bytes.

    Raises:
        NotTextError: binary data, an object without a JSON form, or nesting deeper than `MAX_DEPTH`.
    """
    if depth > MAX_DEPTH:
        raise NotTextError(f"the result is nested deeper than {MAX_DEPTH} levels")
    match value:
        case None | bool() | int():
            plain: Json = value
        case float():
            plain = value if math.isfinite(value) else None
        case str():
            plain = readable(value)
        case bytes() | bytearray() | memoryview():
            plain = _decoded(bytes(value))
        case Mapping():
            plain = {readable(str(key)): jsonable(item, depth + 1) for key, item in value.items()}
        case list() | tuple():
            plain = [jsonable(item, depth + 1) for item in value]
        case set() | frozenset():
            plain = [jsonable(item, depth + 1) for item in sorted(value, key=repr)]
        case _:
            plain = jsonable(_unpacked(value), depth + 1)
    return plain


def _unpacked(value: Any) -> Any:
    """Return the plain data in a dataclass, a numpy array or scalar, or a tensor."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    raise NotTextError(
        f"the result contains a {type(value).__name__}, which is neither text nor JSON"
    )


def readable(text: str) -> str:
    """Return a text whose control characters and lone surrogates are spaces.

    Raises:
        NotTextError: a NUL, or more than a tenth of it unprintable.
    """
    kept, replaced = _UNPRINTABLE.subn(" ", text)
    replaced += text.count("\ufffd")
    if "\0" in text or replaced > UNPRINTABLE_SHARE * len(text):
        raise NotTextError(f"the result is binary data ({len(text):,} characters), not text")
    return kept


def _decoded(data: bytes) -> str:
    try:
        return readable(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise NotTextError(f"the result is {len(data):,} bytes that are not UTF-8 text") from None


@dataclass(frozen=True, slots=True)
class Bounded:
    """A result of bounded length.

    Attributes:
        value: the result, cut if it was longer.
        length: its characters before.
    """

    value: Json
    length: int


def bounded(value: Any, limit: int) -> Bounded:
    """Return a tool's result as JSON-able data of at most ``limit`` characters.

    Raises:
        NotTextError: it is not text, see :func:`jsonable`.
    """
    if isinstance(value, Bounded):
        return value
    plain = jsonable(value)
    return Bounded(_cut(plain, limit), _length(plain))


def _cut(value: Json, limit: int) -> Json:
    """Return a result of at most ``limit`` characters.

    A text is cut after its last whole line (or word) that fits, a list after its last whole item. A
    mapping, or a first item, that is too long becomes the cut text of its JSON.
    """
    if _length(value) <= limit or value == []:
        return value
    if isinstance(value, str):
        return _cut_text(value, limit)
    if isinstance(value, list):
        kept: list[Any] = []
        used = -1
        for item in value:
            used += _length(item) + 1  # and the separator
            if used > limit:
                break
            kept.append(item)
        return kept or [_cut_text(_as_text(value[0]), limit)]
    return _cut_text(_as_text(value), limit)


def _length(value: Json) -> int:
    return len(_as_text(value))


def _as_text(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cut_text(text: str, limit: int) -> str:
    head = text[:limit]
    for mark in ("\n", " "):
        before, found, _ = head.rpartition(mark)
        if found and before.strip():
            return before
    return head


def lines(value: Json) -> list[Line]:
    """Return the lines of a result.

    A text gives its non-empty lines. Of a list each item gives its own; of a mapping the first of
    ``text``, ``generated_text``, ``label``, ``answer`` and ``word`` is the text, ``score`` or
    ``confidence`` the score and ``box`` the box; a mapping without such a field is read as ``key: value``.
    """
    if value is None:
        return []
    if isinstance(value, list):
        return [line for item in value for line in lines(item)]
    if isinstance(value, dict):
        return _line_of(value)
    text = value if isinstance(value, str) else json.dumps(value)
    return [Line(piece) for piece in map(_one_line, text.splitlines()) if piece]


def _line_of(item: dict[str, Any]) -> list[Line]:
    key = next((key for key in _TEXT_KEYS if isinstance(item.get(key), str)), None)
    fields = (f"{name}: {_as_text(field)}" for name, field in item.items())
    text = "; ".join(fields) if key is None else item[key]
    score = item.get("score", item.get("confidence"))
    given = isinstance(score, int | float) and not isinstance(score, bool)
    text = _one_line(text)
    certainty = min(1.0, max(0.0, float(score))) if given and score is not None else 1.0
    return [Line(text, certainty, _box(item.get("box")))] if text else []


def _box(value: Any) -> tuple[float, float, float, float] | None:
    """``[x0, y0, x1, y1]``, or transformers' mapping of the same."""
    if isinstance(value, dict):
        value = [value.get(key) for key in ("xmin", "ymin", "xmax", "ymax")]
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(isinstance(number, int | float) for number in value):
        return None
    left, top, right, bottom = map(float, value)
    return left, top, right, bottom


def _one_line(text: str) -> str:
    return " ".join(text.split())
