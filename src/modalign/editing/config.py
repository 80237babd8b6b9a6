"""Settings of the editing methods. Layers are given as fractions of the depth unless they are named."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from modalign.editing.engine.contexts import LENGTH
from modalign.editing.engine.rewriting import Rewriting
from modalign.editing.engine.values import ValueSettings
from modalign.errors import UsageError


class EditConfig(Rewriting):
    """Settings that every method has, besides those of its rewriting prompts.

    Attributes:
        layers: the layers to write to, ascending; None to go by ``depth``.
        depth: first and last layer as fractions of the model's depth.
        seed: of the contexts, and of the order of the text for statistics.
        batch_size: edits optimised together.
    """

    layers: tuple[int, ...] | None = None
    depth: tuple[float, float] = (3 / 28, 8 / 28)  # GPT-J's 3 to 8 of 28 (MEMIT, PMET)
    seed: int = 0
    batch_size: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _check(self) -> EditConfig:
        if self.layers is not None and (
            not self.layers or list(self.layers) != sorted(set(self.layers))
        ):
            raise ValueError("layers must be different numbers in ascending order")
        if not 0 <= self.depth[0] <= self.depth[1] <= 1:
            raise ValueError("depth must be two fractions from 0 to 1, ascending")
        return self

    def layers_of(self, depth: int) -> tuple[int, ...]:
        """Return the layers of a model of this depth.

        Raises:
            UsageError: a layer that the model does not have.
        """
        if self.layers is None:
            first, last = (min(depth - 1, round(part * depth)) for part in self.depth)
            return tuple(range(first, last + 1))
        wrong = [layer for layer in self.layers if not 0 <= layer < depth]
        if wrong:
            raise UsageError(f"layer {wrong[0]}: the model has the layers 0 to {depth - 1}")
        return self.layers


class ValueConfig(EditConfig):
    """Settings of the methods that optimise a value (ROME, MEMIT, PMET, AlphaEdit).

    Attributes:
        steps: evaluations of the value's optimisation.
        lr: its learning rate.
        clamp: the longest vector allowed, as a multiple of the initial output's length.
        widen: how often a value that does not reach its target continues with the clamp and the learning
            rate doubled.
        patience: evaluations after which a value whose target is certain is done unless the loss still
            falls; 0 to wait for the whole loss, as published.
        kl: weight of the KL term.
        decay: weight of the decay term.
        keys: one averaged key per edit (``mean``, as published), or one for each of its rewriting
            prompts (``rows``): where a subject's key depends on what stands before it, the mean fits
            only the wordings it was taken from.
        context_tokens: lengths of the sentences that the model writes as contexts, one sentence for each;
            five sentences if only one length is given.
        contexts: sentences put before the prompts; None for those that the model writes, an empty
            list for none.
        tokens: the most tokens of text for the key statistics, and of the pictures' rows; None for four
            per dimension of a key, and at least 4,096.
        image_weight: alpha in C0 = C_text + alpha C_image, where pictures are given.
    """

    steps: int = Field(default=25, ge=1)
    lr: float = Field(default=0.5, gt=0)
    clamp: float = Field(default=0.75, gt=0)
    widen: int = Field(default=0, ge=0, le=4)
    patience: int = Field(default=0, ge=0)
    kl: float = Field(default=0.0625, ge=0)
    decay: float = Field(default=0.5, ge=0)
    keys: Literal["mean", "rows"] = "mean"
    context_tokens: tuple[int, ...] = (LENGTH,)
    contexts: tuple[str, ...] | None = None
    tokens: int | None = Field(default=None, ge=16)
    image_weight: float = Field(default=1.0, ge=0)

    def value_settings(self, relax: bool = False) -> ValueSettings:
        """Return the settings as the optimiser takes them."""
        return ValueSettings(
            self.steps,
            self.lr,
            self.clamp,
            self.kl,
            self.decay,
            relax,
            widen=self.widen,
            patience=self.patience,
        )
