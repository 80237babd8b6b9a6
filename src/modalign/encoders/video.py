"""Video encoder: an image encoder processes each frame, and the features are concatenated in time.

F frames with M features each give F * M features, frame by frame, each frame with a sinusoidal
temporal position added (Vaswani et al., arXiv 1706.03762; it has no parameters and works for any number of
frames, so even a frozen encoder's features show their order to connectors that read a set). Before that,
features may be pooled without parameters:

* ``spatial_pooling`` s: s x s neighbours of a frame are averaged (LLaVA-OneVision, arXiv 2408.03326,
  halves each side); "mean" leaves one feature per frame.
* ``temporal_pooling``: "mean" over all frames; "adaptive:K" to K slots (PLLaVA, arXiv 2404.16994);
  "spatiotemporal": the mean over time at each place, then the mean over space of each frame
  (Video-ChatGPT, arXiv 2306.05424).

A clip with fewer frames gives fewer features. This differs from the papers: PLLaVA pools its connector's
output, and repeats frames if a clip has fewer than K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.image_transforms import center_crop, get_resize_output_image_size, resize

from modalign.encoders.base import EncoderError, Grid, Prepared, SignalEncoder, padded, prefix_mask
from modalign.encoders.image import ImageEncoder
from modalign.encoders.image import build as build_image_encoder

PERIOD = 10_000.0  # period of the slowest sinusoid, in frames


class FramesEncoder(SignalEncoder):
    """Frames of a clip -> features in temporal order.

    Args:
        image: encodes a frame.
        frames: F, maximum frames of a clip.
        temporal_pooling: none, mean, adaptive:K or spatiotemporal.
        spatial_pooling: side of the squares averaged in a frame (1: none), or "mean".
        positions: add temporal positions.
        each_frame: the connector processes every frame separately, even if it needs no grid.
    """

    def __init__(
        self,
        image: ImageEncoder,
        frames: int,
        temporal_pooling: str = "none",
        spatial_pooling: int | str = 1,
        positions: bool = True,
        each_frame: bool = False,
    ) -> None:
        super().__init__()
        self.image, self.positions, self.each_frame = image, positions, each_frame
        self.places, self.pooled_grid = _pooled_places(image, spatial_pooling)
        self.slots = _slots(temporal_pooling, frames)
        self.spatiotemporal = temporal_pooling == "spatiotemporal"
        self.feature_size = image.feature_size
        self.num_features = count_features(frames, frames, temporal_pooling, self.places)
        self.frames = 1 if self.spatiotemporal else self.slots
        self.frame_grid = None if self.spatiotemporal else self.pooled_grid
        self.grid = self.frame_grid if self.frames == 1 else None

    def forward(self, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Frames (n, F, 3, H, W), mask (n, F) -> features (n, N, d) and their mask (n, N)."""
        n, F = values.shape[:2]
        mask = torch.ones(n, F, dtype=torch.bool, device=values.device) if mask is None else mask
        seen = self._in_space(self.image.features(values[mask]))
        maps = seen.new_zeros(n, F, *seen.shape[1:])
        maps[mask] = seen
        present = mask.sum(dim=1)
        if self.spatiotemporal:
            return self._spatiotemporal(maps, present)
        slots = min(self.slots, F)
        pooled = torch.einsum("nkf,nfmd->nkmd", _time_weights(present, F, slots).to(maps), maps)
        if self.positions and self.slots > 1:
            pooled = pooled + sinusoids(slots, self.feature_size).to(pooled)[:, None]
        features = pooled.flatten(1, 2)
        return features, prefix_mask(present.clamp(max=slots) * self.places, features.shape[1])

    def _in_space(self, features: Tensor) -> Tensor:
        if self.places == features.shape[1]:
            return features
        if self.places == 1:
            return features.mean(dim=1, keepdim=True)
        assert self.pooled_grid is not None
        assert self.image.grid is not None
        maps = features.transpose(1, 2).unflatten(2, self.image.grid)
        return functional.adaptive_avg_pool2d(maps, self.pooled_grid).flatten(2).transpose(1, 2)

    def _spatiotemporal(self, maps: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        over_time = maps.sum(dim=1) / present.clamp(min=1)[:, None, None]
        over_space = maps.mean(dim=2)
        if self.positions:
            over_space = over_space + sinusoids(maps.shape[1], self.feature_size).to(maps)
        features = torch.cat([over_time, over_space], dim=1)
        return features, prefix_mask(present + self.places, features.shape[1])


def count_features(frames: int, most: int, temporal_pooling: str, places: int) -> int:
    """Return the number of features of a clip.

    Args:
        frames: frames of this clip.
        most: F, frames of the longest clip.
        temporal_pooling: as of :class:`FramesEncoder`.
        places: features per frame after spatial pooling.
    """
    if temporal_pooling == "spatiotemporal":
        return places + frames
    return min(_slots(temporal_pooling, most), frames) * places


def sinusoids(length: int, width: int) -> Tensor:
    """Return (length, width) sin and cos of the position at frequencies from 1 down to 1 / PERIOD."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(PERIOD) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width]


def _time_weights(present: Tensor, frames: int, slots: int) -> Tensor:
    """Return (n, K, F), each frame's weight in each slot, for clips of ``present`` (n,) frames.

    Slot k of s averages frames floor(k f / s) to ceil((k + 1) f / s), as in adaptive pooling; a clip
    with fewer frames than slots has as many slots as frames.
    """
    f = present[:, None, None]
    s = f.clamp(min=1, max=slots)
    k = torch.arange(slots, device=present.device)[None, :, None]
    i = torch.arange(frames, device=present.device)[None, None]
    begin, end = k * f // s, -(-(k + 1) * f // s)
    inside = (i >= begin) & (i < end) & (k < s)
    return inside / (end - begin).clamp(min=1)


def _slots(temporal_pooling: str, frames: int) -> int:
    name, _, number = temporal_pooling.partition(":")
    if name == "adaptive" and number.isdecimal() and 1 <= int(number) <= frames:
        return int(number)
    if temporal_pooling in ("none", "spatiotemporal"):
        return frames
    if temporal_pooling == "mean":
        return 1
    raise EncoderError(
        f"temporal_pooling {temporal_pooling!r}: give none, mean, spatiotemporal or adaptive:K with K "
        f"from 1 to {frames}"
    )


def _pooled_places(image: ImageEncoder, spatial_pooling: int | str) -> tuple[int, Grid | None]:
    if spatial_pooling == "mean":
        return 1, (1, 1)
    if not isinstance(spatial_pooling, int) or spatial_pooling < 1:
        raise EncoderError(
            f"spatial_pooling {spatial_pooling!r}: give a side of at least 1, or mean"
        )
    if spatial_pooling == 1:
        return image.num_features, image.grid
    if image.grid is None:
        raise EncoderError(
            f"spatial_pooling {spatial_pooling} needs an image encoder whose features form a grid"
        )
    grid = (-(-image.grid[0] // spatial_pooling), -(-image.grid[1] // spatial_pooling))
    return grid[0] * grid[1], grid


def build(spec: dict[str, Any]) -> FramesEncoder:
    """Build the encoder from its description.

    Args:
        spec: ``kind`` (frames), ``image`` (the image encoder's description), ``pixels`` (see
            :func:`frame_pixels`), ``frames``, ``sampling``, ``temporal_pooling``, ``spatial_pooling``,
            ``positions``, ``each_frame``, and ``frame_features``, the features of a frame after pooling.
    """
    if spec["kind"] != "frames":
        raise EncoderError(f"unknown encoder of videos {spec['kind']!r}; known: frames")
    return FramesEncoder(
        build_image_encoder(spec["image"]),
        spec["frames"],
        spec["temporal_pooling"],
        spec["spatial_pooling"],
        spec["positions"],
        spec["each_frame"],
    )


# --- from pixels to tensors ---------------------------------------------------------------------


def prepare(spec: dict[str, Any], signals: Sequence[Any]) -> Prepared:
    """Clips, or their frames (F_i, H, W, 3) uint8, -> values (n, F, 3, H', W'), zeros behind short ones.

    Raises:
        EncoderError: no frames, more than the model takes, or no 8-bit RGB.
    """
    clips = [getattr(signal, "frames", signal) for signal in signals]
    for frames in clips:
        if frames.ndim != 4 or frames.shape[3] != 3 or str(frames.dtype) != "uint8":
            raise EncoderError(
                f"frames of shape {tuple(frames.shape)}, {frames.dtype}: not (F, H, W, 3) uint8"
            )
        if not 0 < len(frames) <= spec["frames"]:
            raise EncoderError(
                f"{len(frames)} frames; the model takes 1 to {spec['frames']}: choose among them first"
            )
    pixels = [torch.stack([frame_pixels(f, spec["pixels"]) for f in frames]) for frames in clips]
    pooling = spec["frames"], spec["temporal_pooling"], spec["frame_features"]
    counts = [count_features(len(frames), *pooling) for frames in clips]
    return padded(pixels, counts)


def frame_pixels(frame: Any, recipe: dict[str, Any]) -> Tensor:
    """What an image processor does to a picture, from its figures: resize, crop, scale, normalise.

    Args:
        frame: (H, W, 3) uint8 array.
        recipe: ``resize`` ([h, w], a shortest side, or None), ``resample`` (Pillow's number), ``crop``
            ([h, w] or None), ``scale``, ``mean`` and ``std`` (3 each).

    Returns:
        (3, H', W') float32.
    """
    layout = {"data_format": "channels_last", "input_data_format": "channels_last"}
    if recipe["resize"] is not None:
        size = get_resize_output_image_size(
            frame, recipe["resize"], default_to_square=False, input_data_format="channels_last"
        )
        frame = resize(frame, size, recipe["resample"], **layout)
    if recipe["crop"] is not None:
        frame = center_crop(frame, tuple(recipe["crop"]), **layout)
    values = torch.tensor(frame).permute(2, 0, 1) * float(recipe["scale"])
    mean, std = torch.tensor(recipe["mean"]), torch.tensor(recipe["std"])
    return (values - mean[:, None, None]) / std[:, None, None]
