"""What scores read: weights, gradients and inputs of output projections, over calibration samples.

Only what some score declares is computed. Means and variances of inputs are Welford's, updated by batches in
float32; gradients are of the mean loss over samples, a sample's loss being the mean over its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from modalign.compression.layers import watched_cosines
from modalign.compression.pruning.structure import Kind, Stack, Units
from modalign.data.supervision import Sample
from modalign.errors import DataError
from modalign.models.collation import Batch, Collator
from modalign.models.projections import evaluating
from modalign.progress import Progress

BATCH = 16


@dataclass
class InputStatistics:
    """Of each input of an output projection over all tokens, (d_in,) each, float32.

    Attributes:
        count: tokens.
        mean: of the values.
        deviations: sum of squared deviations from the mean.
        magnitude: sum of absolute values.
    """

    count: int
    mean: Tensor
    deviations: Tensor
    magnitude: Tensor

    @classmethod
    def of(cls, width: int) -> InputStatistics:
        """Nothing seen yet."""
        return cls(0, torch.zeros(width), torch.zeros(width), torch.zeros(width))

    def add(self, rows: Tensor) -> None:
        """Add rows (n, d_in)."""
        rows = rows.float().cpu()
        if not len(rows):
            return
        mean, total = rows.mean(0), self.count + len(rows)
        apart = mean - self.mean
        self.deviations += (rows - mean).square().sum(0)
        self.deviations += apart.square() * (self.count * len(rows) / total)
        self.mean += apart * (len(rows) / total)
        self.magnitude += rows.abs().sum(0)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """Divided by the number of tokens."""
        return self.deviations / max(self.count, 1)

    @property
    def norm(self) -> Tensor:
        """Root mean square."""
        return (self.variance + self.mean.square()).sqrt()


@dataclass
class Evidence:
    """What was measured on calibration samples.

    Attributes:
        loss: of the samples, mean over samples, nats per token.
        inputs: (layer, kind) -> the inputs of the output projection.
        gradients: parameter -> gradient g of the mean loss.
        squares: parameter -> mean over samples of g_i^2.
        cosine: per layer, mean over tokens of the cosine of its input and output.
        without: per layer, the loss of the model without it.
    """

    loss: float = float("nan")
    inputs: dict[tuple[int, Kind], InputStatistics] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    squares: dict[str, Tensor] = field(default_factory=dict)
    cosine: list[float] = field(default_factory=list)
    without: list[float] = field(default_factory=list)


def gather(
    stack: Stack,
    samples: Sequence[Sample],
    collator: Collator,
    needs: Collection[str],
    progress: Progress = lambda name, done, total: None,
) -> Evidence:
    """Measure what scores need.

    Args:
        stack: the part of a float32 model; its weights stay as they are.
        samples: of calibration.
        collator: of the model.
        needs: ``inputs``, ``gradients``, ``squares``, ``cosine`` and ``without``.
        progress: told after each batch.

    Raises:
        DataError: the samples have no tokens to predict, or the model's loss on them is not a number.
    """
    found = Evidence()
    passes = _Passes(stack, samples, collator, progress)
    with evaluating(stack.whole):
        if {"inputs", "cosine"} & set(needs):
            with ExitStack() as hooks, torch.no_grad():
                _watch(stack, passes, found, needs, hooks)
                found.loss = passes.loss("reading calibration samples")
        if {"gradients", "squares"} & set(needs):
            _differentiate(stack, passes, found, each="squares" in needs)
        if "without" in needs:
            with torch.no_grad():
                for layer in range(stack.depth):
                    with skipped(stack.layers[layer]):
                        found.without.append(passes.loss(f"loss without layer {layer}"))
    return found


class _Passes:
    """Forward passes over the samples, in batches."""

    def __init__(
        self, stack: Stack, samples: Sequence[Sample], collator: Collator, progress: Progress
    ) -> None:
        if not samples or not any(sample.supervised[1:].any() for sample in samples):
            raise DataError("the calibration samples have no tokens to predict")
        self.stack, self.samples, self.collator = stack, samples, collator
        self.progress = progress
        self.batch: Batch | None = None

    def losses(self, name: str, size: int = BATCH) -> Iterator[Tensor]:
        """Each batch's losses, a sample's being the mean over its tokens, (B,)."""
        for start in range(0, len(self.samples), size):
            self.progress(name, start, len(self.samples))
            batch = self.collator(list(self.samples[start : start + size]))
            self.batch = batch.to(self.stack.whole.device)
            yield sample_losses(self.stack.whole, self.batch)
        self.progress(name, len(self.samples), len(self.samples))

    def loss(self, name: str) -> float:
        """The mean over samples."""
        value = float(torch.cat(list(self.losses(name))).mean())
        if math.isnan(value):
            raise DataError("the model's loss on the calibration samples is not a number")
        return value

    def rows(self, values: Tensor) -> Tensor:
        """The rows of hidden values that belong to tokens, (n, d); all of an encoder's."""
        flat = values.detach().reshape(-1, values.shape[-1])
        assert self.batch is not None
        if self.stack.name == "vision":
            return flat
        return flat[(self.batch.segments >= 0).flatten().to(flat.device)]


def sample_losses(model: Any, batch: Batch) -> Tensor:
    """Mean loss over each sample's supervised tokens, (B,), nats."""
    logits = model(**batch.model_inputs(), use_cache=False).logits.float()
    losses = functional.cross_entropy(logits, batch.targets, reduction="none")
    size = len(batch.samples)
    totals = losses.new_zeros(size).index_add(0, batch.owner, losses)
    counts = losses.new_zeros(size).index_add(0, batch.owner, torch.ones_like(losses))
    return totals / counts.clamp(min=1)


def _watch(
    stack: Stack, passes: _Passes, found: Evidence, needs: Collection[str], hooks: ExitStack
) -> None:
    """Hooks that collect what a forward pass shows."""
    if "inputs" in needs:
        for layer, module in enumerate(stack.layers):
            for kind, units in stack.units.items():
                width = units.slices[-1].indices.numel()
                statistics = found.inputs[layer, kind] = InputStatistics.of(width)
                projection = module.get_submodule(units.output)
                hooks.enter_context(
                    projection.register_forward_pre_hook(_adding(statistics, passes))
                )
    if "cosine" in needs:
        cosines = hooks.enter_context(watched_cosines(stack.layers, passes.rows))
        hooks.callback(lambda: found.cosine.extend(cosines()))


def _adding(statistics: InputStatistics, passes: _Passes) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any) -> None:
        statistics.add(passes.rows(args[0]))

    return hook


def _differentiate(stack: Stack, passes: _Passes, found: Evidence, each: bool) -> None:
    """Gradients of the mean loss; with ``each`` by single samples, for the mean of their squares."""
    names = {s.name for units in stack.units.values() for s in units.slices}
    own = dict(stack.whole.named_parameters())
    wanted = {
        name: own[name]
        for layer in range(stack.depth)
        for name in (stack.parameter(layer, each) for each in names)
    }
    before = {name: p.requires_grad for name, p in own.items()}
    try:
        for name, parameter in own.items():
            parameter.requires_grad_(name in wanted)
        for losses in passes.losses("reading gradients", 1 if each else BATCH):
            gradients = torch.autograd.grad(losses.sum(), list(wanted.values()), allow_unused=True)
            for name, gradient in zip(wanted, gradients, strict=True):
                value = torch.zeros_like(wanted[name]) if gradient is None else gradient
                found.gradients[name] = found.gradients.get(name, 0) + value / len(passes.samples)
                if each:
                    square = value.square() / len(passes.samples)
                    found.squares[name] = found.squares.get(name, 0) + square
    finally:
        for name, parameter in own.items():
            parameter.requires_grad_(before[name])


@contextmanager
def skipped(layer: nn.Module) -> Iterator[None]:
    """Run a model as if a layer were not there: it hands on what it is given."""

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    with layer.register_forward_hook(hook, with_kwargs=True):
        yield


def grouped(parameter: Tensor, indices: Tensor, axis: int) -> Tensor:
    """The numbers of one parameter that each unit owns, (U, n)."""
    units = parameter.detach().movedim(axis, 0)[indices.to(parameter.device)]  # (U, k, ...)
    return units.reshape(len(indices), -1)


def columns(layer: nn.Module, units: Units) -> Tensor:
    """Each unit's columns of the output projection, (U, D, k)."""
    last = units.slices[-1]
    weight = dict(layer.named_parameters())[last.name].detach()
    return weight.movedim(last.axis, 0)[last.indices.to(weight.device)].transpose(1, 2)
