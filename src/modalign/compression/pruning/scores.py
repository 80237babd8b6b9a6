"""Scores: how much a unit or a layer matters. One small function each, registered by name.

A unit score is ``score(group) -> (U,)``, larger where removing the unit costs more; a layer score is
``score(layers) -> (L,)``. Third parties add theirs by entry points in the group ``modalign.pruning_scores`` that
load such a function, registered with :func:`pruning_score`.

With w the weights of a unit, g their gradient of the mean loss, h the mean over samples of the squared gradient,
x the inputs of the output projection and W that projection.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Literal

import torch
from torch import Tensor

from modalign.compression.pruning.evidence import Evidence, columns, grouped
from modalign.compression.pruning.structure import Kind, Stack
from modalign.errors import UsageError, choose

ENTRY_POINT_GROUP = "modalign.pruning_scores"
NEEDS = ("inputs", "gradients", "squares", "cosine", "without")


@dataclass(frozen=True)
class Group:
    """What a score sees of the U units of one kind in one layer.

    Attributes:
        weights: (U, n), every weight of each unit.
        gradients, squares: (U, n), g and h; empty unless needed.
        columns: (U, D, k), the unit's columns of the output projection.
        mean, variance, norm, magnitude: (U, k) of the inputs of those columns; empty unless needed.
        generator: for chance.
    """

    weights: Tensor
    gradients: Tensor
    squares: Tensor
    columns: Tensor
    mean: Tensor
    variance: Tensor
    norm: Tensor
    magnitude: Tensor
    generator: torch.Generator


@dataclass(frozen=True)
class Layers:
    """What a score of layers sees: (L,) each, empty unless needed.

    Attributes:
        cosine: mean cosine of a layer's input and output.
        without: loss of the model without the layer.
    """

    cosine: Tensor
    without: Tensor


@dataclass(frozen=True)
class Score:
    """A registered score.

    Attributes:
        name: its name.
        function: of a :class:`Group` or of :class:`Layers`.
        of: units or layers.
        needs: what must be measured.
        additive: it estimates an effect, so that units of different layers and kinds compare by score
            per parameter; else scores are standardised within layer and kind first.
        meaning: one line.
    """

    name: str
    function: Callable[..., Tensor]
    of: Literal["units", "layers"]
    needs: frozenset[str]
    additive: bool
    meaning: str


_SCORES: dict[str, Score] = {}


def pruning_score(
    name: str,
    *,
    of: Literal["units", "layers"] = "units",
    needs: Collection[str] = (),
    additive: bool = False,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a score; its docstring's first line is its meaning.

    Raises:
        UsageError: the name is taken, or it needs what nobody measures.
    """

    def add(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if name in _SCORES and _SCORES[name].function is not function:
            raise UsageError(f"two pruning scores are called {name!r}; rename one")
        if unknown := set(needs) - set(NEEDS):
            raise UsageError(
                f"the pruning score {name!r} needs {sorted(unknown)[0]!r}; there is {', '.join(NEEDS)}"
            )
        meaning = (function.__doc__ or name).strip().splitlines()[0]
        _SCORES[name] = Score(name, function, of, frozenset(needs), additive, meaning)
        return function

    return add


@pruning_score("random")
def random(group: Group) -> Tensor:
    """Chance."""
    return torch.rand(len(group.weights), generator=group.generator)


@pruning_score("l2", additive=True)
def l2(group: Group) -> Tensor:
    """Sum of w^2."""
    return group.weights.square().sum(1)


@pruning_score("taylor", needs={"gradients"}, additive=True)
def taylor(group: Group) -> Tensor:
    """Sum of |w g| (LLM-Pruner's param_first)."""
    return (group.weights * group.gradients).abs().sum(1)


@pruning_score("taylor_signed", needs={"gradients"}, additive=True)
def taylor_signed(group: Group) -> Tensor:
    """|sum of w g| (LLM-Pruner's vectorize)."""
    return (group.weights * group.gradients).sum(1).abs()


@pruning_score("taylor2", needs={"squares"}, additive=True)
def taylor2(group: Group) -> Tensor:
    """Sum of |w^2 h| (LLM-Pruner's param_second)."""
    return (group.weights.square() * group.squares).abs().sum(1)


@pruning_score("taylor_mix", needs={"gradients", "squares"}, additive=True)
def taylor_mix(group: Group) -> Tensor:
    """Sum of |w g - w^2 h / 2| (LLM-Pruner's param_mix)."""
    w = group.weights
    return (w * group.gradients - w.square() * group.squares / 2).abs().sum(1)


@pruning_score("wanda", needs={"inputs"})
def wanda(group: Group) -> Tensor:
    """Mean over rows of |W|, times the input's root mean square (Wanda-sp)."""
    return (group.columns.abs().mean(1) * group.norm).sum(1)


@pruning_score("fluctuation", needs={"inputs"})
def fluctuation(group: Group) -> Tensor:
    """Variance of x times the sum of W^2, standardised in layer and kind (FLAP's WIFV)."""
    return standardised((group.variance * group.columns.square().sum(1)).sum(1))


@pruning_score("activation", needs={"inputs"})
def activation(group: Group) -> Tensor:
    """Mean magnitude of x (Minitron)."""
    return group.magnitude.sum(1)


@pruning_score("block_influence", of="layers", needs={"cosine"})
def block_influence(layers: Layers) -> Tensor:
    """1 - mean cosine of a layer's input and output (ShortGPT)."""
    return 1 - layers.cosine


@pruning_score("leave_one_out", of="layers", needs={"without"})
def leave_one_out(layers: Layers) -> Tensor:
    """Loss of the model without the layer (Shortened LLaMA)."""
    return layers.without


def standardised(values: Tensor) -> Tensor:
    """Minus the mean, over the standard deviation."""
    spread = values.std(correction=0)
    return (values - values.mean()) / spread.clamp(min=1e-12)


@cache
def _load_others() -> None:
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        entry.load()


def scores() -> dict[str, Score]:
    """Every known score by name."""
    _load_others()
    return dict(_SCORES)


def score_named(name: str) -> Score:
    """The score of a name.

    Raises:
        UsageError: there is none; the message names what there is.
    """
    known = scores()
    if name not in known:
        raise UsageError(f"no pruning score is called {name!r}; {choose(name, known)}")
    return known[name]


@dataclass(frozen=True)
class Scored:
    """What a score said.

    Attributes:
        score: which.
        units: (layer, kind) -> (U,); empty for scores of layers.
        layers: (L,); of an additive unit score the sum over a layer's units; None where layers do not compare.
    """

    score: Score
    units: dict[tuple[int, Kind], Tensor]
    layers: Tensor | None


def rate(stack: Stack, score: Score, evidence: Evidence, seed: int = 0) -> Scored:
    """Apply a score to every unit, or to every layer.

    Raises:
        UsageError: a score is not a finite number.
    """
    if score.of == "layers":
        found = score.function(
            Layers(torch.tensor(evidence.cosine), torch.tensor(evidence.without))
        )
        return Scored(score, {}, _finite(score, found, stack.depth))
    generator = torch.Generator().manual_seed(seed)
    units: dict[tuple[int, Kind], Tensor] = {}
    for layer in range(stack.depth):
        for kind in stack.units:
            group = _group(stack, layer, kind, evidence, generator)
            units[layer, kind] = _finite(score, score.function(group).cpu(), len(group.weights))
    layers = None
    if score.additive or score.name == "random":
        totals = [[units[layer, k].sum() for k in stack.units] for layer in range(stack.depth)]
        layers = torch.tensor(totals).sum(1)
    return Scored(score, units, layers)


def _finite(score: Score, values: Tensor, count: int) -> Tensor:
    if values.shape != (count,) or not bool(values.isfinite().all()):
        raise UsageError(f"the score {score.name!r} did not give {count} finite numbers")
    return values.detach().float()


def _group(
    stack: Stack, layer: int, kind: Kind, evidence: Evidence, generator: torch.Generator
) -> Group:
    units, module = stack.units[kind], stack.layers[layer]
    own = dict(module.named_parameters())

    def of(values: Callable[[str], Tensor]) -> Tensor:
        return torch.cat([grouped(values(s.name), s.indices, s.axis) for s in units.slices], dim=1)

    def measured(table: dict[str, Tensor]) -> Tensor:
        return of(lambda name: table[stack.parameter(layer, name)]) if table else torch.empty(0)

    seen = evidence.inputs.get((layer, kind))
    places = units.slices[-1].indices
    statistics = {
        name: torch.empty(0) if seen is None else values(seen)[places].to(stack.whole.device)
        for name, values in _STATISTICS.items()
    }
    return Group(
        weights=of(lambda name: own[name]),
        gradients=measured(evidence.gradients),
        squares=measured(evidence.squares),
        columns=columns(module, units),
        generator=generator,
        **statistics,
    )


_STATISTICS: dict[str, Callable[..., Tensor]] = {
    "mean": lambda seen: seen.mean,
    "variance": lambda seen: seen.variance,
    "norm": lambda seen: seen.norm,
    "magnitude": lambda seen: seen.magnitude / max(seen.count, 1),
}
