"""Take the fields of one record by name and type, and note everything that is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from modalign.errors import meant
from modalign.strict_json import loads

_KINDS: dict[type, str] = {
    str: "a text",
    dict: "an object",
    list: "a list",
    int: "a number",
    float: "a number",
    bool: "true or false",
}
_SURROGATE = re.compile("[\ud800-\udfff]")


class Fields:
    """A record's fields, taken one by one.

    Args:
        values: by name.
        cells: whether they are a table's cells, where a list is written as JSON, or with ``|`` between parts.
        inside: the prefix of the names (``requested_rewrite.``), for messages.

    Attributes:
        problems: what was wrong with the fields taken so far.
    """

    def __init__(self, values: Mapping[str, Any], cells: bool = False, inside: str = "") -> None:
        self.values, self.cells, self.inside = values, cells, inside
        self.problems: list[str] = []
        self._known: list[str] = []

    def text(self, name: str) -> str:
        """Take a text that must be there; if it is not, note the problem and return an empty one."""
        value = self.optional_text(name)
        if value is None and name not in self.values:
            self.problems.append(f"{self.inside}{name} is missing")
        elif value is None and not any(self.inside + name in p for p in self.problems):
            self.problems.append(f"{self.inside}{name} is empty")
        return value or ""

    def optional_text(self, name: str) -> str | None:
        """Take a text; None if it is missing or empty."""
        value = self._take(name)
        if value is None:
            return None
        if not isinstance(value, str):
            self._wrong(name, "a text", value)
            return None
        self._check_characters(name, value)
        return value if value.strip() else None

    def identifier(self, name: str) -> str | None:
        """Take a text or a whole number, as text."""
        value = self._take(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is not None and not isinstance(value, str):
            self._wrong(name, "a text or a whole number", value)
            return None
        return value.strip() or None if value is not None else None

    def texts(self, name: str) -> tuple[str, ...]:
        """Take a list of texts, none of them empty."""
        found = []
        for place, item in enumerate(self._list(name), start=1):
            if not isinstance(item, str):
                self._wrong(f"{name}, item {place},", "a text", item)
            elif not item.strip():
                self.problems.append(f"{self.inside}{name}: item {place} is empty")
            else:
                self._check_characters(name, item)
                found.append(item)
        return tuple(found)

    def items(self, name: str) -> list[Any]:
        """Take a list of anything."""
        return self._list(name)

    def inner(self, name: str) -> Fields:
        """Take the fields of a nested object; :meth:`close` adds its problems to these."""
        value = self._take(name)
        if isinstance(value, str) and self.cells:
            value = self._json(name, value)
        if not isinstance(value, Mapping):
            if value is None:
                self.problems.append(f"{self.inside}{name} is missing")
            else:
                self._wrong(name, "an object", value)
            value = {}
            return _Silent(value, self.cells, f"{self.inside}{name}.")
        return Fields(value, self.cells, f"{self.inside}{name}.")

    def ignore(self, *names: str) -> None:
        """Accept names that are not used."""
        self._known += names

    def close(self, *inner: Fields) -> list[str]:
        """Return every problem, including unknown names."""
        for name in self.values:
            if name not in self._known:
                hint = meant(name, self._known) or self._names()
                self.problems.append(f"unknown field {self.inside}{name}: {hint}")
        return self.problems + [problem for part in inner for problem in part.close()]

    def _names(self) -> str:
        return "the fields are " + ", ".join(dict.fromkeys(self._known))

    def _take(self, name: str) -> Any:
        self._known.append(name)
        return self.values.get(name)

    def _list(self, name: str) -> list[Any]:
        value = self._take(name)
        if value is None:
            return []
        if isinstance(value, str) and self.cells:
            if value.lstrip().startswith("["):
                value = self._json(name, value)
                return value if isinstance(value, list) else []
            return [part.strip() for part in value.split("|")]
        if not isinstance(value, list):
            self._wrong(name, "a list", value)
            return []
        return value

    def _json(self, name: str, cell: str) -> Any:
        try:
            return loads(cell)
        except ValueError as error:
            self.problems.append(f"{self.inside}{name}: not valid JSON in its cell ({error})")
            return None

    def _wrong(self, name: str, wanted: str, value: Any) -> None:
        kind = _KINDS.get(type(value), "null")
        self.problems.append(f"{self.inside}{name} must be {wanted}, not {kind}")

    def _check_characters(self, name: str, value: str) -> None:
        if _SURROGATE.search(value):
            self.problems.append(
                f"{self.inside}{name} holds half a character (a lone surrogate): write it again"
            )


class _Silent(Fields):
    """Stands for a missing object: that it is missing was already noted, so nothing else is."""

    def close(self, *inner: Fields) -> list[str]:
        return []
