"""What clients do differently: ``plain``, ``prompt``, ``proximal``, ``proximal:adaptive``, joined by plus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from modalign.errors import UsageError, choose
from modalign.models.parts import decoder_layers
from modalign.training.settings import Stage

MU = 0.01  # FedMLLM's weight of the proximal term
ADAPTIVE = 0.1  # factor on that weight for the middle layers
EDGE = 4 / 28  # share of layers at either end that are not middle: 4 to 23 of 28
KNOWN = ("plain", "prompt", "proximal", "proximal:adaptive", "proximal:MU")


@dataclass(frozen=True)
class Strategy:
    """A client's strategy.

    Attributes:
        prompt: records begin with a prompt that names no modality.
        mu: weight of the proximal term; 0 for none.
        adaptive: only on the middle layers, with a tenth of the weight.
    """

    prompt: bool = False
    mu: float = 0.0
    adaptive: bool = False


def parse(name: str) -> Strategy:
    """Read ``plain``, or several joined: ``prompt+proximal:adaptive``, ``proximal:0.1``.

    Raises:
        UsageError: one is unknown.
    """
    prompt, mu, adaptive = False, 0.0, False
    for word in name.split("+"):
        kind, colon, value = word.strip().partition(":")
        if kind == "prompt" and not colon:
            prompt = True
        elif kind == "proximal":
            adaptive = value == "adaptive"
            mu = _mu(name, value) if colon and not adaptive else MU
        elif word.strip() != "plain":
            raise UsageError(f"no strategy is called {word!r}; {choose(word, KNOWN)}")
    return Strategy(prompt, mu, adaptive)


def _mu(name: str, text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if found <= 0:
        raise UsageError(f"strategy {name!r}: {text!r} is not a positive weight, nor adaptive")
    return found


def objective_of(stage: Stage, strategy: Strategy, model: Any) -> Stage:
    """Return the stage with the strategy's proximal term.

    Args:
        stage: the client's.
        strategy: what it does differently.
        model: the composed model, whose decoder layers are found by structure.
    """
    if not strategy.mu:
        return stage
    setting: dict[str, Any] = {"weight": strategy.mu}
    if strategy.adaptive:
        setting = {"weight": strategy.mu * ADAPTIVE, "within": middle_layers(model)}
    return stage.model_copy(update={"objective": {**stage.objective, "proximal": setting}})


def middle_layers(model: nn.Module) -> list[str]:
    """Return the paths of the decoder's middle layers."""
    layers = decoder_layers(model.language_model)  # type: ignore[arg-type]
    edge = max(round(EDGE * len(layers)), 1)
    middle = list(layers)[edge : len(layers) - edge] or list(layers)
    paths = {id(module): name for name, module in model.named_modules()}
    return [paths[id(layer)] for layer in middle]
