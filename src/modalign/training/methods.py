"""A method: a named, complete choice of connector, size and recipe. What ``compare`` compares."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from modalign.connectors.base import Connector, Variant
from modalign.connectors.registry import connector_class, connectors
from modalign.errors import UsageError
from modalign.training.settings import Stage

STAGE_ONE_SHARE = 0.3
PUBLISHED_SUFFIX = ":published"
WITHOUT_STAGE_ONE = "_no_stage_one"


@dataclass(frozen=True)
class Method:
    """A connector at a size with a recipe.

    Attributes:
        name: e.g. ``mlp``, ``resampler:published``, ``qformer_no_stage_one``.
        connector: registered name.
        variant: ``matched`` to the language model's width, or the ``published`` size.
        stages: the recipe; shares add up to 1.
        options: of the connector, in place of the variant's.
    """

    name: str
    connector: str
    variant: Variant
    stages: tuple[Stage, ...]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def cls(self) -> type[Connector]:
        """The connector's class."""
        return connector_class(self.connector)


def _stages(has_stage_one: bool, recipe: Sequence[Stage]) -> tuple[Stage, ...]:
    """A connector's own stage one, if it has one, then the recipe in what is left of the budget."""
    whole = sum(stage.share for stage in recipe)
    left = 1 - STAGE_ONE_SHARE if has_stage_one else 1.0
    rest = tuple(stage.model_copy(update={"share": stage.share / whole * left}) for stage in recipe)
    if not has_stage_one:
        return rest
    terms = ("image_text_contrastive", "image_text_matching", "image_grounded_captioning")
    first = Stage(
        name="stage_one",
        share=STAGE_ONE_SHARE,
        runs="stage_one",
        objective=dict.fromkeys(terms, 1.0),
        data="media",
    )
    return (first, *rest)


def method_names(variant: Variant = "matched") -> list[str]:
    """Every method's name at one size, converters first."""
    names: list[str] = []
    for name, cls in connectors().items():
        names.append(name)
        if cls.has_stage_one:
            names.append(name + WITHOUT_STAGE_ONE)
    return names if variant == "matched" else [name + PUBLISHED_SUFFIX for name in names]


_WITH_OPTIONS = re.compile(r"^(?P<base>[^\[]+)\[(?P<options>[^\]]*)\](?P<rest>.*)$")


def resolve_method(name: str, recipe: Sequence[Stage] = (Stage(),)) -> Method:
    """Return the method of exactly this name.

    Args:
        name: a registered name, with ``:published`` for that size, with connector options in
            brackets: ``mlp[depth=3]``, ``c_abstractor[depth=2;num_tokens=16]:published``.
        recipe: stages in place of the ordinary single one. A connector's own stage one stays
            before them.

    Raises:
        UsageError: there is none, and the message names the nearest; or an option is unknown.
    """
    found = _WITH_OPTIONS.match(name)
    plain = found["base"] + found["rest"] if found else name
    base = plain.removesuffix(PUBLISHED_SUFFIX)
    variant: Variant = "published" if plain.endswith(PUBLISHED_SUFFIX) else "matched"
    if base not in method_names():
        near = difflib.get_close_matches(base, method_names(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "'modalign methods' lists them"
        raise UsageError(f"no method is called {name!r}; {hint}")
    connector = base.removesuffix(WITHOUT_STAGE_ONE)
    cls = connector_class(connector)
    stages = _stages(cls.has_stage_one and connector == base, recipe)
    options = _options(name, cls, found["options"]) if found else {}
    return Method(name, connector, variant, stages, options)


def _options(name: str, cls: type[Connector], text: str) -> dict[str, Any]:
    known = [p for p in inspect.signature(cls).parameters if p != "widths"]
    options: dict[str, Any] = {}
    for item in filter(None, text.split(";")):
        key, equals, value = item.partition("=")
        if not equals or key.strip() not in known:
            raise UsageError(
                f"method {name!r}: {item!r} is not option=value; {cls.name} has "
                f"{', '.join(known) or 'no options'}"
            )
        options[key.strip()] = yaml.safe_load(value)
    return options


def resolve_methods(choice: list[str] | str, recipe: Sequence[Stage] = (Stage(),)) -> list[Method]:
    """Resolve names, families (``converter``, ``perceiver``) and ``all``, in order, without repeats.

    Raises:
        UsageError: an unknown name.
    """
    words = choice.split(",") if isinstance(choice, str) else choice
    names: list[str] = []
    for word in (word.strip() for word in words):
        if word == "all":
            names += method_names()
        elif word in ("all:published", "published"):
            names += method_names("published")
        elif word.removesuffix("s") in ("converter", "perceiver"):
            family = word.removesuffix("s")
            names += [name for name in method_names() if resolve_method(name).cls.family == family]
        elif word:
            names.append(word)
    if not names:
        raise UsageError("no method was named; 'modalign methods' lists them")
    return [resolve_method(name, recipe) for name in dict.fromkeys(names)]
