"""Differences of nested fields are named."""

from __future__ import annotations

from modalign.differences import differences, flat


def test_nested_fields_by_dotted_path() -> None:
    assert flat({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}


def test_every_difference_is_named_once() -> None:
    old = {"same": 1, "deep": {"x": 1, "gone": 2}}
    new = {"same": 1, "deep": {"x": 3, "added": 4}}
    assert differences(old, new) == [
        "deep.x was 1, now 3",
        "deep.gone was 2, now not there",
        "deep.added was not there, now 4",
    ]
    assert differences(new, new) == []
    assert differences("damaged", {"a": 1}) == ["a was not there, now 1"]
