"""The request for a curation, and operators from YAML, options or a card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modalign.configuration import read_yaml, validated
from modalign.data.curation.operators import OPERATORS, Operator
from modalign.errors import UsageError, choose


@dataclass(frozen=True)
class Request:
    """A curation.

    Attributes:
        inputs: data sets in any supported format, read in this order.
        out: the JSON Lines file to write.
        operators: in the order of application.
        card: the data card to write (`.json`; a `.md` goes beside it); default: named after `out`.
        media_root: the base folder of relative media paths (default: each input's own).
        modalities: the modalities whose columns hold media.
        columns: column that is read -> its name in the inputs; the output has the names that are read.
        skip_broken: the share of rows that may be unreadable: 0.01 or "1%".
        examples: dropped rows to show per operator.
        resume: continue an interrupted run.
    """

    inputs: tuple[str, ...]
    out: Path
    operators: tuple[Operator, ...]
    card: Path | None = None
    media_root: Path | None = None
    modalities: tuple[str, ...] = ("image",)
    columns: Mapping[str, str] = field(default_factory=dict)
    skip_broken: float | str = 0.0
    examples: int = 5
    resume: bool = False

    @property
    def card_path(self) -> Path:
        """The card's path."""
        return self.card or self.out.with_suffix(".card.json")


def load_operators(path: Path) -> tuple[Operator, ...]:
    """Read operators from YAML: a list of names, or of `name: {setting: value}`.

    A mapping with the key `operators` is accepted, too.

    Raises:
        UsageError: the file cannot be read, or an operator or setting is invalid.
    """
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a readable YAML file ({error})") from None
    if isinstance(content, dict) and list(content) == ["operators"]:
        content = content["operators"]
    if not isinstance(content, list) or not content:
        raise UsageError(f"{path}: expected a list of operators: - length: {{min_chars: 10}}")
    return tuple(_from_item(item, path) for item in content)


def operator_of(name: str, settings: dict[str, Any], where: str) -> Operator:
    """Make an operator.

    Raises:
        UsageError: an unknown operator or an invalid setting.
    """
    if name not in OPERATORS:
        raise UsageError(f"{where}: no operator {name!r}: {choose(name, OPERATORS)}")
    return validated(OPERATORS[name], settings, f"{where}: {name}")


def located(operator: Operator, change: Any) -> Operator:
    """Return an operator with a function applied to its path settings."""
    changed: dict[str, Any] = {}
    for name in operator.paths:
        value = getattr(operator, name)
        changed[name] = change(value) if isinstance(value, str) else tuple(map(change, value))
    return operator.model_copy(update=changed)


def _from_item(item: Any, path: Path) -> Operator:
    if isinstance(item, str):
        return operator_of(item, {}, str(path))
    if isinstance(item, dict) and len(item) == 1:
        ((name, settings),) = item.items()
        if settings is None or isinstance(settings, dict):
            return operator_of(str(name), settings or {}, str(path))
    raise UsageError(f"{path}: {item!r} is neither a name nor one name with its settings")


def described(operators: Sequence[Operator]) -> list[dict[str, Any]]:
    """Return names and settings as plain JSON values."""
    return [{op.name: op.model_dump(mode="json")} for op in operators]


def operators_from(options: dict[str, dict[str, Any]]) -> tuple[Operator, ...]:
    """Build the operators that have a setting (not None), in the order of `OPERATORS`.

    Raises:
        UsageError: an invalid setting.
    """
    found = []
    for name in OPERATORS:
        given = {key: v for key, v in options.get(name, {}).items() if v is not None}
        if given:
            found.append(operator_of(name, given, "options"))
    return tuple(found)
