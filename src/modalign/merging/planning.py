"""A merge that was checked and not yet made: aligned parents, the method, coefficients, what a search tries."""

from __future__ import annotations

from dataclasses import replace

from modalign.errors import UsageError, choose
from modalign.merging.alignment import align
from modalign.merging.coefficients import Coefficients
from modalign.merging.config import LEARNED, MergeConfig
from modalign.merging.parents import Parent, open_parent
from modalign.merging.registry import MergeMethod, merge_methods, method_named
from modalign.merging.results import ParentRow, Plan
from modalign.merging.soup import patched_parent
from modalign.merging.writing import Hashes, Recipe

BASE = "base"
WEIGHT = "weight"


class Merge:
    """A merge that was checked and not yet made.

    Attributes:
        config: what was asked for.
        alignment: of the parents.
        recipe: how tensors are merged; of a search, its first candidate.
        candidates: name -> recipe: what a search tries, else the recipe alone.
    """

    def __init__(self, config: MergeConfig) -> None:
        self.config = config
        parents = [open_parent(name, folder) for name, folder in config.parents.items()]
        self.method = _method(config)
        base = _base(config, self.method, parents)
        self.alignment = align(
            parents, base, like=config.like, assign=config.assign, tokens=config.tokens
        )
        self.recipe = _recipe(config, self.method)
        if unused := self.recipe.coefficients.unused(self.alignment.merged):
            raise UsageError(
                f"--weight {unused[0]}=...: no tensor that is merged matches this pattern; tensors are "
                f"called such as {self.alignment.merged[len(self.alignment.merged) // 2]}"
            )
        self.candidates = _candidates(config, self.recipe)
        if config.form == "patch":
            patched_parent(self.alignment)

    def plan(self, hashes: Hashes | None = None, recipe: Recipe | None = None) -> Plan:
        """Return what is done with which tensors, by the recipe that was chosen or is first."""
        found, recipe = self.alignment, recipe or self.recipe
        rows = [
            ParentRow(
                name=each.name,
                role="base" if each is found.base else "parent",
                folder=str(each.folder),
                tensors=len(each.weights.everything),
                sha256=hashes.of(each.name) if hashes and each.name in hashes.tensors else "",
                like=each is found.like,
            )
            for each in found.everyone.values()
        ]
        assigned: dict[str, int] = {}
        for parent in found.assigned.values():
            assigned[parent.name] = assigned.get(parent.name, 0) + 1
        return Plan(
            parents=rows,
            method=self.config.method,
            options=dict(recipe.options),
            weights=recipe.coefficients.words(),
            candidates=list(self.candidates) if self.config.search else [],
            merged=len(found.merged),
            assigned=assigned,
            bytes=sum(p.end - p.begin for p in found.like.weights.everything.values()),
            notes=found.notes,
        )


def _method(config: MergeConfig) -> MergeMethod:
    if config.method == LEARNED:
        return method_named("linear")
    known = merge_methods()
    if config.method not in known:
        raise UsageError(
            f"no merge method is called {config.method!r}; {choose(config.method, [*known, LEARNED])}"
        )
    method = known[config.method]
    if method.most is not None and len(config.parents) > method.most:
        raise UsageError(
            f"{method.name} takes {method.most} parents; {len(config.parents)} were given"
        )
    return method


def _base(config: MergeConfig, method: MergeMethod, parents: list[Parent]) -> Parent | None:
    if config.base is None:
        if method.needs_base:
            raise UsageError(
                f"{method.name} merges differences from the model that the parents came from: --base FOLDER"
            )
        return None
    if BASE in config.parents:
        raise UsageError("a parent may not be called base")
    return open_parent(BASE, config.base)


def _recipe(config: MergeConfig, method: MergeMethod) -> Recipe:
    names = list(config.parents)
    default = 1 / len(names) if method.default == "shares" else 1.0
    coefficients = Coefficients.read(config.weight, names, default)
    options = method.checked(config.options)
    for pattern, weights in coefficients.rules:
        if method.default == "shares" and not sum(weights):
            raise UsageError(f"--weight: the weights of {method.name} add up to 0 in {pattern}")
    return Recipe(method, options, coefficients, config.seed)


def _candidates(config: MergeConfig, recipe: Recipe) -> dict[str, Recipe]:
    if config.search is None:
        return {config.method: recipe}
    name, values = config.searched()
    found = {}
    for value in values:
        label = f"{config.method} {name} {value:g}"
        if name == WEIGHT:
            names = recipe.coefficients.parents
            given = f"{value}" if len(names) == 2 else ",".join([str(value)] * len(names))
            default = 1 / len(names) if recipe.method.default == "shares" else 1.0
            texts = [given, *(t for t in config.weight if "=" in t)]
            made = Coefficients.read(texts, names, default)
            found[label] = replace(recipe, coefficients=made)
        else:
            options = recipe.method.checked({**config.options, name: value})
            found[label] = replace(recipe, options=options)
    return found
