"""FT: train one layer's FFN projection on the edits, optionally bounding how far each weight may move.

These are the baselines of ROME and MEMIT (arXiv 2202.05262, 2210.07229): Adam without decay. The
constrained form (FT+L) clamps every weight to its original value +- epsilon after each step.
``loss = "target"`` is the conditional likelihood of the whole target; ``"prompt_last"`` is the released
code's, which trains every target token as if it came right after the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from modalign.editing.computation import Computation, Solution
from modalign.editing.config import EditConfig
from modalign.editing.engine.forward import logits_at
from modalign.editing.engine.requests import Request
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.engine.values import ValueNotFiniteError, frozen
from modalign.editing.methods.base import Method
from modalign.models.projections import evaluating
from modalign.patches.changes import DenseChange


class FTConfig(EditConfig):
    """GPT-J's values of the released code.

    Attributes:
        epochs: the most passes over all edits.
        lr: Adam's learning rate.
        minibatch: edits per step.
        stop: mean loss below which the training ends.
        epsilon: largest change of any weight; None for no bound.
        loss: see the module.
    """

    depth: tuple[float, float] = (21 / 28, 21 / 28)
    epochs: int = Field(default=25, ge=1)
    lr: float = Field(default=5e-4, gt=0)
    minibatch: int = Field(default=64, ge=1)
    stop: float = Field(default=1e-2, gt=0)
    epsilon: float | None = Field(default=None, gt=0)
    loss: Literal["target", "prompt_last"] = "target"


class FTLConfig(FTConfig):
    """FT with the L-infinity bound, in the first layer, as in GPT-J's file."""

    depth: tuple[float, float] = (0.0, 0.0)
    epsilon: float | None = Field(default=5e-5, gt=0)


class FT(Method):
    """Unconstrained fine-tuning."""

    name: ClassVar[str] = "ft"
    title: ClassVar[str] = "FT"
    config_class: ClassVar[type[EditConfig]] = FTConfig
    config: FTConfig

    def solve(self, computation: Computation) -> Solution:
        """Train in place; the change is read off the weights."""
        spec, weights, layers = computation.spec, computation.weights, computation.plan.layers
        names = [spec.weight_name(layer) for layer in layers]
        start = {name: weights.track(name).detach().clone() for name in names}
        with frozen(spec.model), evaluating(spec.model):
            self._train(computation, {name: weights.track(name) for name in names})
        changes = {}
        for layer, name in zip(layers, names, strict=True):
            now = weights.track(name).detach()
            change = (now.double() - start[name].double()).cpu()
            changes[name] = DenseChange(change.T.contiguous() if spec.transposed(layer) else change)
        return Solution(changes, None)

    def _train(self, computation: Computation, weights: dict[str, nn.Parameter]) -> None:
        """Train, on float32 copies if the weights are in half precision, since the steps are small."""
        originals = {
            name: p.detach().to(computation.spec.exact, copy=True) for name, p in weights.items()
        }
        masters = {name: value.clone() for name, value in originals.items()}
        for parameter in weights.values():
            parameter.requires_grad_(True)
        optimiser = torch.optim.Adam(list(masters.values()), lr=self.config.lr)
        try:
            for epoch in range(self.config.epochs):
                computation.plan.tell("epochs", epoch, self.config.epochs)
                if self._epoch(computation, weights, masters, originals, optimiser, epoch):
                    break
            computation.plan.tell("epochs", self.config.epochs, self.config.epochs)
        finally:
            for parameter in weights.values():
                parameter.requires_grad_(False)

    def _epoch(
        self,
        computation: Computation,
        weights: dict[str, nn.Parameter],
        masters: dict[str, Tensor],
        originals: dict[str, Tensor],
        optimiser: torch.optim.Optimizer,
        epoch: int,
    ) -> bool:
        """Make one pass over the edits; return whether training is done."""
        size = self.config.minibatch
        requests = computation.plan.requests
        losses: list[float] = []
        for start in range(0, len(requests), size):
            part = requests[start : start + size]
            loss = self._loss(computation.spec, part)
            if not loss.isfinite():
                raise ValueNotFiniteError(
                    f"the fine-tuning loss became {float(loss)} in epoch {epoch + 1}; lower lr"
                )
            losses += [float(loss.detach())] * len(part)
            if losses[-1] < self.config.stop:
                continue
            gradients = torch.autograd.grad(loss, list(weights.values()))
            for master, gradient in zip(masters.values(), gradients, strict=True):
                master.grad = gradient.to(master.dtype)
            optimiser.step()
            self._write(weights, masters, originals)
        return sum(losses) / len(losses) < self.config.stop

    def _write(
        self,
        weights: dict[str, nn.Parameter],
        masters: dict[str, Tensor],
        originals: dict[str, Tensor],
    ) -> None:
        epsilon = self.config.epsilon
        with torch.no_grad():
            for name, master in masters.items():
                if epsilon is not None:
                    master.copy_(master.clamp(originals[name] - epsilon, originals[name] + epsilon))
                weights[name].copy_(master.to(weights[name].dtype))

    def _loss(self, spec: ModelSpec, requests: Sequence[Request]) -> Tensor:
        """Return the mean over edits of the mean over target tokens of -log p."""
        rows = [request.continued for request in requests]
        logits = logits_at(spec, rows, [request.predicting for request in requests])
        losses = []
        for request, row in zip(requests, logits, strict=True):
            log_probs = row.log_softmax(-1)
            target = torch.tensor(request.target, device=row.device)
            mine = (
                log_probs if self.config.loss == "target" else log_probs[0].expand(len(target), -1)
            )
            losses.append(-mine.gather(1, target[:, None]).mean())
        return torch.stack(losses).mean()


class FTL(FT):
    """Fine-tuning with the L-infinity bound."""

    name: ClassVar[str] = "ft-l"
    title: ClassVar[str] = "FT+L"
    config_class: ClassVar[type[EditConfig]] = FTLConfig
