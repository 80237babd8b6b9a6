"""Videos: any image encoder, applied to some frames of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL.Image import Resampling
from pydantic import Field, PositiveInt

from modalign.data.frame_sampling import Sampling
from modalign.data.records import Media
from modalign.data.video import decode_video
from modalign.encoders.base import EncoderError
from modalign.encoders.image import ImageEncoder
from modalign.encoders.video import FramesEncoder, frame_pixels
from modalign.errors import UsageError
from modalign.models.encoders.image import load_image_encoder
from modalign.models.encoders.options import Options


class VideoOptions(Options):
    """Options of video encoders.

    Attributes:
        frames: F, maximum frames of a clip.
        sampling: uniform or scene.
        temporal_pooling: none, mean, adaptive:K or spatiotemporal.
        spatial_pooling: side of the squares of features averaged in a frame (1: none), or "mean".
        positions: add sinusoidal temporal positions to the features.
        each_frame: the connector processes every frame separately; those that need a grid always do.
        layer: hidden layer of a Hugging Face tower to read.
        image_size: side in pixels, for raw patches and imported modules.
        patch_size: side of a raw patch.
        arguments: keyword arguments of an imported module.
    """

    frames: PositiveInt = 8
    sampling: Sampling = "uniform"
    temporal_pooling: str = "none"
    spatial_pooling: PositiveInt | Literal["mean"] = 1
    positions: bool = True
    each_frame: bool = False
    layer: int = -2
    image_size: PositiveInt = 48
    patch_size: PositiveInt = 8
    arguments: dict[str, Any] = Field(default_factory=dict)


def load(
    name: str | None, media: Sequence[Media], options: dict[str, Any], allow_pickle: bool = False
) -> tuple[dict[str, Any], FramesEncoder]:
    """Load the image encoder for the frames, and describe the video encoder.

    Args:
        name: hub name or folder of a vision model, ``package.module:Class``, or None/"none" for raw
            patches: the image encoders.
        media: not used.
        options: see :class:`VideoOptions`.
        allow_pickle: also read weights that are a pickle, with ``weights_only=True``.

    Raises:
        UsageError: it cannot be loaded, an option is unknown, or the image processor does more than
            resize, crop, scale and normalise.
    """
    chosen = VideoOptions.read("video", options)
    image = load_image_encoder(
        name,
        layer=chosen.layer,
        image_size=chosen.image_size,
        patch_size=chosen.patch_size,
        options=chosen.arguments,
        allow_pickle=allow_pickle,
    )
    assert isinstance(image.module, ImageEncoder)
    try:
        encoder = FramesEncoder(
            image.module,
            chosen.frames,
            chosen.temporal_pooling,
            chosen.spatial_pooling,
            chosen.positions,
            chosen.each_frame,
        )
    except EncoderError as error:
        raise UsageError(f"video encoder: {error}") from None
    spec = {
        "kind": "frames",
        "image": image.spec,
        "pixels": pixel_recipe(image.processor),
        "frames": chosen.frames,
        "sampling": chosen.sampling,
        "temporal_pooling": chosen.temporal_pooling,
        "spatial_pooling": chosen.spatial_pooling,
        "positions": chosen.positions,
        "each_frame": chosen.each_frame,
        "frame_features": encoder.places,
    }
    return spec, encoder.eval()


decode = decode_video


def pixel_recipe(processor: Any) -> dict[str, Any]:
    """Extract a Hugging Face image processor's settings for :func:`~modalign.encoders.video.frame_pixels`.

    Raises:
        UsageError: the processor does something else, as shown by a picture with a different result.
    """
    values = processor.to_dict()
    crop = values.get("crop_size") if values.get("do_center_crop") else None
    resample = values.get("resample")
    normalises = values.get("do_normalize")
    recipe = {
        "resize": _size(values.get("size")) if values.get("do_resize") else None,
        "resample": Resampling.BILINEAR.value if resample is None else int(resample),
        "crop": None if crop is None else [crop["height"], crop["width"]],
        "scale": values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1.0,
        "mean": list(values["image_mean"]) if normalises else [0.0] * 3,
        "std": list(values["image_std"]) if normalises else [1.0] * 3,
    }
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    theirs = processor(images=[picture], return_tensors="pt")["pixel_values"][0]
    ours = frame_pixels(picture, recipe)
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, atol=1e-3):
        raise UsageError(
            f"video encoder: {type(processor).__name__} does more than resize, crop, scale and "
            "normalise; choose another image encoder, or wrap it as package.module:Class"
        )
    return recipe


def _size(size: dict[str, int]) -> list[int] | int:
    if "height" in size:
        return [size["height"], size["width"]]
    if set(size) == {"shortest_edge"}:
        return size["shortest_edge"]
    raise UsageError(f"video encoder: images resized to {size} have no fixed size")
