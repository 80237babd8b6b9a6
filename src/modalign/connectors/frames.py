"""Apply a prefix connector to each frame of a clip separately, so that an image connector reads videos.

A whole clip has no grid, which some connectors need, but each frame has one. ``per_frame`` turns any
prefix connector into one that works frame by frame: its parameters keep their names (so one trained on
images can continue with videos), each frame is an item to it, and the frames' tokens follow one another.
LLaVA-NeXT-Video, LLaVA-OneVision (arXiv 2408.03326) and PLLaVA (arXiv 2404.16994) use their image
connectors in this way, and Video-LLaMA (arXiv 2306.02858) its Q-Former.

Shapes: features (B, T * N, d) -> frames (B * T, N, d) -> tokens (B * T, M, D) -> (B, T * M, D).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torch import Tensor

from modalign.connectors.base import (
    Connector,
    ConnectorError,
    Grid,
    Masked,
    PrefixConnector,
    Variant,
    Widths,
    zero_masked,
)


class PerFrame(PrefixConnector):
    """The first base of the classes that :func:`per_frame` makes; the connector's own class is the second.

    Widths are those of the whole clip: ``num_features`` is T * N, but ``grid`` is that of one frame.
    """

    frames: ClassVar[int]
    one: ClassVar[type[PrefixConnector]]  # the connector's own class

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(self._of_one(widths), **options)

    @classmethod
    def _of_one(cls, widths: Widths) -> Widths:
        N, rest = divmod(widths.num_features, cls.frames)
        if rest:
            raise ConnectorError(
                f"connector {cls.name!r}: {widths.num_features} features are not those of "
                f"{cls.frames} equal frames"
            )
        return dataclasses.replace(widths, num_features=N)

    @classmethod
    def options_for(cls, variant: Variant, widths: Widths) -> dict[str, Any]:
        """Return the options for one frame."""
        return super().options_for(variant, cls._of_one(widths))

    def num_tokens(self, num_features: int) -> int:
        """Return T times the tokens of a frame, the features being those of T frames."""
        N = self.widths.num_features
        return self._frames_in(num_features) * self.one.num_tokens(self, N)

    def flops(self, num_features: int) -> float:
        """Return T times the FLOPs of a frame."""
        N = self.widths.num_features
        return self._frames_in(num_features) * self.one.flops(self, N)

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """Features (B, T * N, d), mask (B, T * N) -> tokens (B, T * M, D), mask (B, T * M).

        Args:
            features: of clips of T frames each, padded with whole frames.
            mask: a frame is present or absent as a whole; tokens of an absent frame are masked.
            grid: of one frame; by default the one the connector was built for.
        """
        B, T = features.shape[0], self._frames_in(features.shape[1])
        there = mask.reshape(B * T, -1)
        frames = zero_masked(features, mask).reshape(B * T, there.shape[1], -1)
        tokens, token_mask = self.one.forward(self, frames, there, grid or self.widths.grid)
        token_mask = token_mask & there.any(dim=1, keepdim=True)
        return zero_masked(tokens, token_mask).unflatten(0, (B, T)).flatten(
            1, 2
        ), token_mask.reshape(B, -1)

    def _frames_in(self, num_features: int) -> int:
        frames, rest = divmod(num_features, self.widths.num_features)
        if rest:
            raise ConnectorError(
                f"connector {self.name!r}: {num_features} features are not a whole number of frames of "
                f"{self.widths.num_features}"
            )
        return frames


def per_frame(cls: type[PrefixConnector], frames: int) -> type[PrefixConnector]:
    """Make the class of a connector that applies ``cls`` to each of up to ``frames`` frames.

    Args:
        cls: a prefix connector.
        frames: T of the longest clip.
    """
    # It claims to come from the same module: an exported model makes it again from a copy of that module.
    own = {"frames": frames, "one": cls, "__doc__": cls.__doc__, "__module__": cls.__module__}
    return type(cls.__name__, (PerFrame, cls), own)


def fitted(
    cls: type[Connector], widths: Widths, frames: int, grid: Grid | None, each_frame: bool
) -> tuple[type[Connector], Widths]:
    """Return how a connector joins an encoder whose features are divided into frames.

    A connector that needs a grid works frame by frame, on the frame's grid. Any other reads the whole clip,
    which lets it compare frames, unless ``each_frame`` says otherwise.

    Args:
        cls: the connector.
        widths: of the whole clip.
        frames, grid, each_frame: what the encoder declares about its frames.

    Returns:
        The class to build, and the widths to build it with.
    """
    if frames == 1 or not issubclass(cls, PrefixConnector) or not (cls.needs_grid or each_frame):
        return cls, widths
    return per_frame(cls, frames), dataclasses.replace(widths, grid=grid)
