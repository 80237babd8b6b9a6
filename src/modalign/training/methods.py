"""A method: a named, complete choice of connector, size and recipe. What ``compare`` compares."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

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
    """

    name: str
    connector: str
    variant: Variant
    stages: tuple[Stage, ...]

    @property
    def cls(self) -> type[Connector]:
        """The connector's class."""
        return connector_class(self.connector)


def _stages(has_stage_one: bool) -> tuple[Stage, ...]:
    if not has_stage_one:
        return (Stage(),)
    terms = ("image_text_contrastive", "image_text_matching", "image_grounded_captioning")
    first = Stage(
        name="stage_one",
        share=STAGE_ONE_SHARE,
        runs="stage_one",
        objective=dict.fromkeys(terms, 1.0),
        data="media",
    )
    return (first, Stage(name="train", share=1 - STAGE_ONE_SHARE))


def method_names(variant: Variant = "matched") -> list[str]:
    """Every method's name at one size, converters first."""
    names: list[str] = []
    for name, cls in connectors().items():
        names.append(name)
        if cls.has_stage_one:
            names.append(name + WITHOUT_STAGE_ONE)
    return names if variant == "matched" else [name + PUBLISHED_SUFFIX for name in names]


def resolve_method(name: str) -> Method:
    """Return the method of exactly this name.

    Raises:
        UsageError: there is none; the message names the nearest.
    """
    base = name.removesuffix(PUBLISHED_SUFFIX)
    variant: Variant = "published" if name.endswith(PUBLISHED_SUFFIX) else "matched"
    if base not in method_names():
        near = difflib.get_close_matches(base, method_names(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "'modalign methods' lists them"
        raise UsageError(f"no method is called {name!r}; {hint}")
    connector = base.removesuffix(WITHOUT_STAGE_ONE)
    with_stage_one = connector_class(connector).has_stage_one and connector == base
    return Method(name, connector, variant, _stages(with_stage_one))


def resolve_methods(choice: list[str] | str) -> list[Method]:
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
    return [resolve_method(name) for name in dict.fromkeys(names)]
