"""A method: a named, complete choice of connector, size and recipe. What ``compare`` compares."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from modalign.configuration import read_yaml
from modalign.connectors.base import Connector, Variant
from modalign.connectors.registry import connector_class, connectors
from modalign.errors import UsageError, meant
from modalign.training.objectives import check_stages
from modalign.training.recipes import SEPARATOR, Recipe, recipe_names, resolve_recipe
from modalign.training.settings import STAGE_ONE, WITHOUT_STAGE_ONE, LLMMode, Stage
from modalign.training.tool_methods import ToolMethod, parse_tool_method, tool_names

STAGE_ONE_SHARE = 0.3
PUBLISHED_SUFFIX = ":published"
Family = Literal["converter", "perceiver", "tool", "data"]


@dataclass(frozen=True)
class Method:
    """A connector at a size, or a tool chain, with a recipe.

    Attributes:
        name: e.g. ``mlp``, ``resampler:published``, ``qformer_no_stage_one``,
            ``mlp+captions_first``, ``tool:ocr``.
        connector: registered name; empty for a tool chain.
        variant: ``matched`` to the language model's width, or the ``published`` size.
        stages: the recipe; shares add up to 1.
        options: options of the connector that replace the variant's.
        recipe: the named recipe that the stages come from, if any.
        tools: the tool chain that replaces a connector.
    """

    name: str
    connector: str
    variant: Variant
    stages: tuple[Stage, ...]
    options: dict[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None
    tools: ToolMethod | None = None

    @property
    def key(self) -> str:
        """Return its name in a form suitable for folders."""
        return method_key(self.name)

    @property
    def control(self) -> bool:
        """Whether it only shows the score without media; controls are never recommended."""
        blind = self.tools is not None and not self.tools.chain
        return blind or (self.recipe is not None and self.recipe.control)

    @property
    def family(self) -> Family:
        """The survey's family: a method with a recipe is data-driven."""
        family: Family = "tool" if self.tools else self.facts.family  # type: ignore[assignment]
        return "data" if self.recipe else family

    @property
    def group(self) -> str:
        """Return the group within the family."""
        return f"data-driven: {self.recipe.title}" if self.recipe else self.facts.group

    @property
    def facts(self) -> type[Connector] | ToolMethod:
        """Return the connector's class, or the tool chain."""
        return self.tools or connector_class(self.connector)

    def trains(self, llm: LLMMode) -> bool:
        """Whether anything is trained; ``llm`` is the language model's setting."""
        return self.tools is None or any((s.llm or llm) != "frozen" for s in self.stages)


def method_key(name: str) -> str:
    """Return the key of a method's name."""
    return re.sub(r"[^A-Za-z0-9_.=-]+", "-", name).strip("-")


def _stages(
    cls: type[Connector], stage_one: bool, options: dict[str, Any], recipe: Sequence[Stage]
) -> tuple[Stage, ...]:
    """Return the connector's own stage one, if wanted, then the recipe with the rest of the budget."""
    terms = cls.stage_one_terms(**options) if stage_one else {}
    whole = sum(stage.share for stage in recipe)
    left = 1 - STAGE_ONE_SHARE if terms else 1.0
    rest = tuple(
        _as_connector_has_it(stage, cls, options).model_copy(
            update={"share": stage.share / whole * left}
        )
        for stage in recipe
    )
    if not terms:
        return rest
    first = Stage(
        name=STAGE_ONE,
        share=STAGE_ONE_SHARE,
        runs="stage_one",
        objective=terms,
        data="media",
        pairs=recipe[-1].pairs,  # a control must not see true pairs in stage one either
    )
    return (first, *rest)


def _as_connector_has_it(stage: Stage, cls: type[Connector], options: dict[str, Any]) -> Stage:
    """Add the connector's own terms (the recipe's weights win) and frozen parts to a stage."""
    changes: dict[str, Any] = {}
    if stage.runs == "model":
        changes["objective"] = {**cls.model_terms(**options), **stage.objective}
    if cls.keeps_llm_frozen:
        changes["llm"] = "frozen"
    return stage.model_copy(update=changes)


def method_names(variant: Variant = "matched") -> list[str]:
    """Return every method's name at one size, converters first."""
    names: list[str] = []
    for name, cls in connectors().items():
        names.append(name)
        if cls.stage_one_terms():
            names.append(name + WITHOUT_STAGE_ONE)
    return names if variant == "matched" else [name + PUBLISHED_SUFFIX for name in names]


_WITH_OPTIONS = re.compile(r"^(?P<base>[^\[]+)\[(?P<options>[^\]]*)\](?P<rest>.*)$")


def resolve_method(name: str, recipe: Sequence[Stage] = (Stage(),)) -> Method:
    """Return the method of exactly this name.

    Args:
        name: a registered name, with ``:published`` for that size, with connector options in
            brackets: ``mlp[depth=3]``, ``c_abstractor[depth=2;num_tokens=16]:published``.
        recipe: stages instead of the ordinary single one. A connector's own stage one runs before
            them. A recipe given after a plus, ``mlp+captions_first``, takes precedence.

    Raises:
        UsageError: there is none (the message suggests the nearest), or an option is unknown.
    """
    check_stages(recipe)
    whole, (name, named) = name, _split_recipe(name)
    tools = parse_tool_method(name)
    if tools is not None:
        stages = tools.stages(named.stages if named else recipe)
        return Method(whole, "", "matched", stages, recipe=named, tools=tools)
    found = _WITH_OPTIONS.match(name)
    plain = found["base"] + found["rest"] if found else name
    base = plain.removesuffix(PUBLISHED_SUFFIX)
    variant: Variant = "published" if plain.endswith(PUBLISHED_SUFFIX) else "matched"
    if base not in method_names():
        hint = meant(base, method_names()) or "'modalign methods' lists them"
        raise UsageError(f"no method is called {name!r}; {hint}")
    connector = base.removesuffix(WITHOUT_STAGE_ONE)
    cls = connector_class(connector)
    wanted = named.stages if named else recipe
    options = _options(name, cls, found["options"]) if found else {}
    stages = _stages(cls, connector == base, options, wanted)
    return Method(whole, connector, variant, stages, options, named)


def _split_recipe(name: str) -> tuple[str, Recipe | None]:
    """Split ``mlp+captions_first`` into connector and recipe; ignore a plus within brackets."""
    plain, plus, recipe = name.rpartition(SEPARATOR)
    return (plain, resolve_recipe(recipe)) if plus and "]" not in recipe else (name, None)


def _options(name: str, cls: type[Connector], text: str) -> dict[str, Any]:
    known = [field.name for field in fields(cls.options_type)]
    options: dict[str, Any] = {}
    for item in filter(None, text.split(";")):
        key, equals, value = item.partition("=")
        if not equals or key.strip() not in known:
            raise UsageError(
                f"method {name!r}: {item!r} is not option=value; {cls.name} has "
                f"{', '.join(known) or 'no options'}"
            )
        try:
            options[key.strip()] = read_yaml(value)
        except ValueError as error:
            raise UsageError(f"method {name!r}: {item!r} cannot be read ({error})") from None
    return options


def resolve_methods(
    choice: list[str] | str,
    recipe: Sequence[Stage] = (Stage(),),
    recipes: Sequence[str] = (),
    chains: Sequence[str] = (),
) -> list[Method]:
    """Resolve names, families (``converter``, ``perceiver``, ``tool``) and ``all``, without repeats.

    Args:
        choice: a list, or names with commas between them.
        recipe: stages of methods without a named recipe.
        recipes: recipe names to combine with every method, or ``all``.
        chains: tool chains selected by ``all`` and ``tool``.

    Raises:
        UsageError: an unknown name.
    """
    words = choice.split(",") if isinstance(choice, str) else choice
    names: list[str] = []
    for word in (word.strip() for word in words):
        if word == "all":
            names += [*method_names(), *tool_names(chains)]
        elif word in ("tool", "tools"):
            names += tool_names(chains)
        elif word in ("all:published", "published"):
            names += method_names("published")
        elif word.removesuffix("s") in ("converter", "perceiver"):
            family = word.removesuffix("s")
            names += [name for name in method_names() if resolve_method(name).family == family]
        elif word:
            names.append(word)
    if not names:
        raise UsageError("no method was given; 'modalign methods' lists them")
    methods = [resolve_method(name, recipe) for name in dict.fromkeys(names)]
    return crossed(methods, recipes) if recipes else methods


def crossed(methods: Sequence[Method], recipes: Sequence[str]) -> list[Method]:
    """Combine connectors with recipes; tools, and methods with a named recipe, are unchanged.

    Raises:
        UsageError: an unknown recipe, or only controls, with nothing to compare them with.
    """
    names: list[str] = []
    for method in methods:
        own = [method.name] if method.recipe or method.tools else []
        names += own or [method.name + SEPARATOR + recipe for recipe in recipe_names(recipes)]
    found = [resolve_method(name) for name in dict.fromkeys(names)]
    if all(method.control for method in found):
        raise UsageError(
            f"{', '.join(recipes)}: a control alone shows nothing; compare it with another recipe"
        )
    return found
