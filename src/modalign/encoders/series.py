"""Series encoders: patches of P steps, every series on its own scale, gaps marked.

A patch holds all channels (PatchTST, arXiv 2211.14730, uses the same patches but separate channels).
Each channel of each series is normalised by its own mean m and standard deviation s over the observed
steps (RevIN, Kim et al. 2022, equation 1). Level and scale are added back as two numbers per channel in every
patch, relative to the channel's mean M and standard deviation S in the training data: (m - M) / S and s / S.
So shape is learnt separately from level, and no level is lost.

A missing value is 0 after normalisation, with a 1 in its channel's indicator; so is the padding of
the last patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modalign.encoders.base import EncoderError, Prepared, SignalEncoder, all_features, padded

CLIP = 10.0  # limit of a level or scale, in the training data's standard deviations
FLAT = 1e-9  # a deviation below this share of a channel's size is rounding error: the channel is constant


class Patches(SignalEncoder):
    """No encoder: the 2 P C + 2 C numbers of a patch are its feature. Kind ``patches``.

    Args:
        patch: P, steps.
        channels: C.
        steps: maximum steps of a series.
    """

    def __init__(self, patch: int, channels: int, steps: int) -> None:
        super().__init__()
        self.num_features = -(-steps // patch)
        self.feature_size = 2 * patch * channels + 2 * channels

    def forward(self, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(n, N, 2 P C + 2 C) -> the same, with the mask of existing patches."""
        return all_features(values) if mask is None else (values, mask)


class ConvPatches(SignalEncoder):
    """A small convolutional encoder over the steps, then one feature per patch. Kind ``conv``.

    Two convolutions of width 3, a linear map of each patch's P outputs, one of its levels, and a layer
    norm. Steps outside the series are zero at every layer, so padding changes nothing.

    Args:
        patch: P, steps.
        channels: C.
        steps: maximum steps of a series.
        width: d.
    """

    fresh = True

    def __init__(self, patch: int, channels: int, steps: int, width: int) -> None:
        super().__init__()
        self.num_features = -(-steps // patch)
        self.feature_size = width
        self.patch, self.channels = patch, channels
        self.first = nn.Conv1d(2 * channels, width, 3, padding=1)
        self.second = nn.Conv1d(width, width, 3, padding=1)
        self.join = nn.Conv1d(width, width, patch, stride=patch)
        self.levels = nn.Linear(2 * channels, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(n, N, 2 P C + 2 C) -> features (n, N, d) and the mask of existing patches."""
        if mask is None:
            mask = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        values = values.where(mask[..., None], torch.zeros_like(values))
        split = 2 * self.patch * self.channels
        steps = values[..., :split].reshape(len(values), -1, 2 * self.channels).transpose(1, 2)
        there = mask.repeat_interleave(self.patch, dim=1)[:, None].to(values.dtype)
        hidden = nn.functional.gelu(self.first(steps)) * there
        hidden = nn.functional.gelu(self.second(hidden)) * there
        joined = self.join(hidden).transpose(1, 2)
        return self.norm(joined + self.levels(values[..., split:])), mask


def build(spec: dict[str, Any]) -> SignalEncoder:
    """Build an encoder from its description (``kind``: patches or conv)."""
    if spec["kind"] == "patches":
        return Patches(spec["patch"], spec["channels"], spec["steps"])
    if spec["kind"] == "conv":
        return ConvPatches(spec["patch"], spec["channels"], spec["steps"], spec["width"])
    raise EncoderError(f"unknown series encoder {spec['kind']!r}; known: patches, conv")


def prepare(spec: dict[str, Any], signals: Sequence[Any]) -> Prepared:
    """(T_i, C) arrays or lists, NaN where missing -> patches (n, N, 2 P C + 2 C) and their mask (n, N).

    A patch is its P steps of C values and C indicators, then the C levels and C scales of its series.

    Raises:
        EncoderError: another number of channels, or more steps than the model accepts.
    """
    patch, channels = spec["patch"], spec["channels"]
    signals = [torch.as_tensor(signal, dtype=torch.float64) for signal in signals]
    for signal in signals:
        if signal.dim() != 2 or signal.shape[1] != channels or not 0 < len(signal) <= spec["steps"]:
            raise EncoderError(
                f"a series of shape {tuple(signal.shape)}; the model takes (T, {channels}) with T up "
                f"to {spec['steps']}"
            )
    return padded([_patches(spec, each, -(-len(each) // patch)).float() for each in signals])


def _patches(spec: dict[str, Any], signal: Tensor, count: int) -> Tensor:
    """Cut one series (T, C) into patches (count, 2 P C + 2 C)."""
    missing = signal.isnan()
    mean, scale = statistics(signal)
    safe = scale.where(scale > 0, torch.ones_like(scale))
    normal = ((signal - mean) / safe).where(~missing & (scale > 0), torch.zeros_like(signal))
    steps = torch.cat([normal, missing.double()], dim=1)
    filling = torch.zeros(count * spec["patch"] - len(signal), steps.shape[1], dtype=steps.dtype)
    filling[:, signal.shape[1] :] = 1
    patches = torch.cat([steps, filling]).reshape(count, -1)
    usual_mean, usual_scale = torch.tensor([spec["mean"], spec["scale"]], dtype=torch.float64)
    level = torch.cat([(mean - usual_mean) / usual_scale, scale / usual_scale])
    level = level.where(~missing.all(dim=0).repeat(2), torch.zeros_like(level)).clamp(-CLIP, CLIP)
    return torch.cat([patches, level.expand(count, -1)], dim=1)


def statistics(signal: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and standard deviation (C,) of a series (T, C) over its observed steps.

    The deviation of a constant channel is exactly 0; a channel without values has mean and deviation 0.
    """
    observed = ~signal.isnan()
    values = signal.where(observed, torch.zeros_like(signal))
    count = observed.sum(dim=0).clamp(min=1)
    mean = values.sum(dim=0) / count
    apart = (values - mean).where(observed, torch.zeros_like(values))
    scale = (apart.square().sum(dim=0) / count).sqrt()
    return mean, scale.where(scale > FLAT * mean.abs(), torch.zeros_like(scale))
