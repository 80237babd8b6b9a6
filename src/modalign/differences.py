"""Differences between two sets of nested fields, for a folder started with another configuration."""

from __future__ import annotations

from typing import Any


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested fields to dotted paths."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found


def differences(before: Any, now: dict[str, Any]) -> list[str]:
    """Return ``field was A, now B`` for every field that differs; only mappings have fields."""
    old, new = flat(before if isinstance(before, dict) else {}), flat(now)
    return [
        f"{key} was {old.get(key, 'not there')}, now {new.get(key, 'not there')}"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]
