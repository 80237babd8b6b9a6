"""Configurations: merge fields from YAML files and options, with errors that name the field."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from yaml.composer import ComposerError

from modalign.errors import UsageError, choose
from modalign.strict_json import DEPTH, is_deep

Fields = dict[str, Any]
M = TypeVar("M", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML's safe reader, which lets the last of equal keys win, without that."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return a mapping's node; equal keys are an error, those that ``<<`` brings are not."""
        node = super().compose_mapping_node(anchor)
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice = next((name for name, count in names.items() if count > 1), None)
        if twice is not None:
            said = f"the key {twice!r} occurs twice: keep one of them"
            raise ComposerError(None, None, said, node.start_mark)
        return node


def read_yaml(text: str) -> Any:
    """Parse a YAML (or JSON) text.

    Raises:
        ValueError: it is not YAML, nested too deeply, or has a key twice in one mapping.
    """
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        value = None
    else:
        if not is_deep(value):
            return value
    raise ValueError(f"more than {DEPTH} nested lists and mappings: flatten it")


def read_fields(path: Path) -> Fields:
    """Read the fields of a YAML (or JSON) file.

    Raises:
        UsageError: the file cannot be read, or contains something else.
    """
    try:
        values = read_yaml(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error  # without the number and the path again
        raise UsageError(f"the configuration {path} cannot be read: {why}") from error
    if not isinstance(values, dict):
        raise UsageError(f"the configuration {path} is not a mapping of fields to values")
    return values


def merged(base: Fields, changes: Fields) -> Fields:
    """Return ``base`` with changes; mappings are merged field by field."""
    whole = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(whole.get(key), dict)
        whole[key] = merged(whole[key], value) if both else value
    return whole


def assign(target: Fields, path: str, value: Any) -> None:
    """Set a nested field by its dotted path.

    Raises:
        UsageError: the path goes through a value without fields.
    """
    *parents, last = path.split(".")
    for key in parents:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise UsageError(f"{path}: {key} is a value here and has no fields")
    target[last] = value


def assigned(items: Iterable[str] | None, changes: Fields | None = None) -> Fields:
    """Apply ``field=value`` options to ``changes``: dotted paths make nested fields, values are YAML.

    Raises:
        UsageError: an item has another form.
    """
    found = {} if changes is None else changes
    for item in items or ():
        path, sign, text = item.partition("=")
        if not sign:
            raise UsageError(f"--set {item!r} is not of the form field=value")
        try:
            value = read_yaml(text)
        except ValueError as error:
            raise UsageError(f"--set {item!r}: the value is not YAML") from error
        assign(found, path.strip(), value)
    return found


def validated(schema: type[M], values: Any, where: str) -> M:
    """Validate values as a model of ``schema``.

    Raises:
        UsageError: an unknown field or a wrong value; the message says ``where``.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{where}: {explained(error, schema)}") from None


def explained(error: ValidationError, schema: type[BaseModel] | None = None) -> str:
    """Format a validation error in one line: the fields, and what is wrong with each.

    Args:
        error: pydantic's error.
        schema: the schema whose fields are suggested for an unknown one.
    """
    found = []
    for problem in error.errors():
        field, said = ".".join(map(str, problem["loc"])), problem["msg"]
        if problem["type"] == "extra_forbidden":
            known = _fields_beside(schema, problem["loc"])
            hint = f"; {choose(problem['loc'][-1], known)}" if known else ""
            said = f"there is no such field{hint}"
        found.append(f"{field}: {said}" if field else said)
    return "; ".join(found)


def _fields_beside(schema: Any, place: tuple[int | str, ...]) -> list[str]:
    """Return the fields of the model that contains the last field of a path, if it is a single model."""
    for name in place[:-1]:
        if isinstance(name, str):
            field = getattr(schema, "model_fields", {}).get(name)
            schema = field and _model_in(field.annotation)
    return list(getattr(schema, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """Return the only model in a type: for ``list[Stage]`` or ``Stage | None``, ``Stage``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
