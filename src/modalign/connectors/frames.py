"""A prefix connector applied to each frame of a clip by itself: what a connector of images does to videos.

A connector that needs a grid has none over a whole clip, but each frame has one. ``per_frame`` makes of
any prefix connector the one that works frame by frame: the same parameters under the same names (one
trained on images can go on with videos), frames where it knew items, and the frames' tokens one after
the other. This is how LLaVA-NeXT-Video, LLaVA-OneVision (arXiv 2408.03326) and PLLaVA (arXiv 2404.16994)
use their image connectors; Video-LLaMA (arXiv 2306.02858) runs its Q-Former so.

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
    """What stands before a connector's class in the class that :func:`per_frame` makes.

    Widths are those of the whole clip: ``num_features`` T * N, and as ``grid`` the grid of one frame.
    """

    frames: ClassVar[int]

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
        """Those for one frame."""
        return super().options_for(variant, cls._of_one(widths))

    def num_tokens(self, num_features: int) -> int:
        """T times the tokens of a frame, where the features are those of T frames."""
        N = self.widths.num_features
        return self._frames_in(num_features) * super().num_tokens(N)  # type: ignore[safe-super]

    def flops(self, num_features: int) -> float:
        """T times those of a frame."""
        N = self.widths.num_features
        return self._frames_in(num_features) * super().flops(N)  # type: ignore[safe-super]

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """Features (B, T * N, d), mask (B, T * N) -> tokens (B, T * M, D), mask (B, T * M).

        Args:
            features: of clips of T frames each, padded with whole frames.
            mask: a frame is there or not; no token of one that is not counts.
            grid: of one frame; by default the one this was made for.
        """
        B, T = features.shape[0], self._frames_in(features.shape[1])
        there = mask.reshape(B * T, -1)
        frames = zero_masked(features, mask).reshape(B * T, there.shape[1], -1)
        tokens, token_mask = super().forward(frames, there, grid or self.widths.grid)  # type: ignore[safe-super]
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
    """The class of a connector that applies ``cls`` to each of up to so many frames.

    Args:
        cls: a prefix connector.
        frames: T of the longest clip.
    """
    # Told to come from the same module: an exported model makes it anew from a copy of that one.
    own = {"frames": frames, "__doc__": cls.__doc__, "__module__": cls.__module__}
    return type(cls.__name__, (PerFrame, cls), own)


def fitted(
    cls: type[Connector], widths: Widths, frames: int, grid: Grid | None, each_frame: bool
) -> tuple[type[Connector], Widths]:
    """How a connector joins an encoder whose features fall into frames.

    One that needs a grid works frame by frame, on the frame's grid. Any other reads the whole clip, where
    it can tell and compare times, unless ``each_frame`` says otherwise.

    Args:
        cls: the connector.
        widths: of the whole clip.
        frames, grid, each_frame: what the encoder says of its frames.

    Returns:
        The class to build, and the widths to build it with.
    """
    if frames == 1 or not issubclass(cls, PrefixConnector) or not (cls.needs_grid or each_frame):
        return cls, widths
    return per_frame(cls, frames), dataclasses.replace(widths, grid=grid)
