"""Image encoders: turn pixels (n, 3, H, W) into features (n, N, d) with a grid.

Three kinds: any Hugging Face vision model (its vision tower, found from its configuration), a user's
own ``torch.nn.Module`` by import path, and none (raw patches, the input of Fuyu-style converters).
This file imports only torch and transformers: it is copied into exported models.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from modalign.encoders.base import EncoderError, Grid, SignalEncoder, all_features, imported

# Instead of a layer's number: the tower's own output, only patches or all tokens.
OUTPUT, ALL = "output", "all"


class ImageEncoder(SignalEncoder):
    """Pixels (n, 3, H, W) -> features, equally many for every image."""

    @abstractmethod
    def features(self, pixel_values: Tensor) -> Tensor:
        """(n, 3, H, W) -> (n, N, d)."""

    def forward(self, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(n, 3, H, W) -> features (n, N, d) and their mask (n, N), True everywhere."""
        return all_features(self.features(values))

    def _measure(self, maps: Tensor) -> None:
        """Set d, N and the grid from the features of one blank image."""
        self.grid = (maps.shape[2], maps.shape[3]) if maps.dim() == 4 else None
        flat = _flat(maps)
        self.num_features, self.feature_size = flat.shape[1], flat.shape[2]
        side = math.isqrt(self.num_features)
        if self.grid is None and side * side == self.num_features:
            self.grid = (side, side)


def _flat(features: Tensor) -> Tensor:
    return features.flatten(2).transpose(1, 2) if features.dim() == 4 else features


def _blank(module: nn.Module, image_size: Grid) -> Tensor:
    parameter = next(module.parameters(), torch.empty(0))
    return torch.zeros(1, 3, *image_size, device=parameter.device, dtype=parameter.dtype)


class RawPatches(ImageEncoder):
    """No encoder: the image cut into (p, p) patches, each flattened to 3 p^2 values.

    Source: Fuyu-8B (Adept, 2023) and EVE (arXiv 2406.11832) feed such patches to the language model.
    """

    def __init__(self, patch_size: int, image_size: Grid) -> None:
        super().__init__()
        height, width = image_size
        if height % patch_size or width % patch_size:
            raise EncoderError(
                f"patches of {patch_size} pixels do not tile an image of {height} x {width}"
            )
        self.patch_size = patch_size
        self.grid = (height // patch_size, width // patch_size)
        self.num_features = self.grid[0] * self.grid[1]
        self.feature_size = 3 * patch_size * patch_size

    def features(self, pixel_values: Tensor) -> Tensor:
        """(n, 3, H, W) -> (n, N, 3 p^2)."""
        return nn.functional.unfold(
            pixel_values, self.patch_size, stride=self.patch_size
        ).transpose(1, 2)


def _tower(config: PreTrainedConfig) -> PreTrainedModel:
    if isinstance(config, Blip2VisionConfig):  # the only tower that AutoModel does not support
        return Blip2VisionModel._from_config(config)
    return AutoModel.from_config(config)


class HuggingFaceTower(ImageEncoder):
    """The vision tower of a Hugging Face model, read at one hidden layer, without extra tokens.

    Args:
        config: the tower's configuration (with ``model_type``).
        layer: index into hidden_states, as LLaVA's ``vision_feature_layer`` (-2 by default there);
            or "output", the tower's own output (SigLIP applies one more norm to its last hidden layer,
            which Idefics2, Idefics3 and nanoVLM read); or "all", that output with its class and register
            tokens and without a grid, as read by BLIP-2's Q-Former.
        image_size: size given by the image processor; default: from the configuration.
    """

    def __init__(
        self, config: dict[str, Any], layer: int | str, image_size: Grid | None = None
    ) -> None:
        super().__init__()
        model_type = config.get("model_type")
        if not model_type:
            raise EncoderError("the vision tower's configuration has no model_type")
        self.tower = _tower(AutoConfig.for_model(**config)).eval()
        if self.tower.main_input_name != "pixel_values":
            raise EncoderError(f"{type(self.tower).__name__} does not read images")
        if layer not in (OUTPUT, ALL) and not isinstance(layer, int):
            raise EncoderError(
                f"the layer to read is {layer!r}, not a number, {OUTPUT!r} or {ALL!r}"
            )
        self.layer, self.extra = layer, 0
        size = image_size or getattr(self.tower.config, "image_size", None)
        if size is None:
            raise EncoderError(f"the image size of {model_type!r} is unknown")
        self.image_size: Grid = (size, size) if isinstance(size, int) else (size[0], size[1])
        with torch.no_grad():
            self._measure(self._hidden(_blank(self.tower, self.image_size)))
        patch = getattr(self.tower.config, "patch_size", None)
        if layer == ALL:
            self.grid = None
        elif isinstance(patch, int):
            grid = (self.image_size[0] // patch, self.image_size[1] // patch)
            extra = self.num_features - grid[0] * grid[1]
            if 0 <= extra <= 16:  # a class token, register tokens
                self.extra, self.grid = extra, grid
                self.num_features -= extra

    def _hidden(self, pixel_values: Tensor) -> Tensor:
        if isinstance(self.layer, str):
            return self.tower(pixel_values=pixel_values).last_hidden_state
        output = self.tower(pixel_values=pixel_values, output_hidden_states=True)
        return output.hidden_states[self.layer]

    def features(self, pixel_values: Tensor) -> Tensor:
        """(n, 3, H, W) -> (n, N, d)."""
        return _flat(self._hidden(pixel_values))[:, self.extra :]


class ImportedEncoder(ImageEncoder):
    """A user's own module, by import path ``package.module:Class`` and keyword arguments.

    It maps (n, 3, H, W) to (n, N, d) or (n, d, h, w).
    """

    def __init__(self, path: str, arguments: dict[str, Any], image_size: Grid) -> None:
        super().__init__()
        self.path, self.module = path, imported(path, arguments)
        with torch.no_grad():
            self._measure(self._maps(_blank(self.module, image_size)))

    def _maps(self, pixel_values: Tensor) -> Tensor:
        features = self.module(pixel_values)
        if not isinstance(features, Tensor) or features.dim() not in (3, 4):
            shape = (
                tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            )
            raise EncoderError(
                f"{type(self.module).__name__} gave {shape}, not (n, N, d) or (n, d, h, w)"
            )
        return features

    def features(self, pixel_values: Tensor) -> Tensor:
        """(n, 3, H, W) -> (n, N, d)."""
        return _flat(self._maps(pixel_values))


def build(spec: dict[str, Any]) -> ImageEncoder:
    """Build an encoder from its JSON-able description (``kind``: tower, patches or module)."""
    kind = spec["kind"]
    if kind == "patches":
        return RawPatches(spec["patch_size"], tuple(spec["image_size"]))
    if kind == "tower":
        size = spec.get("image_size")
        return HuggingFaceTower(spec["config"], spec["layer"], tuple(size) if size else None)
    if kind == "module":
        return ImportedEncoder(spec["path"], spec.get("arguments", {}), tuple(spec["image_size"]))
    raise EncoderError(f"unknown encoder kind {kind!r}; known: tower, patches, module")
