"""Load image encoders: any Hugging Face vision model, a user's module, or raw patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    PreTrainedConfig,
    SiglipImageProcessorPil,
)

from modalign.data.images import decode_image
from modalign.data.records import Media
from modalign.encoders.base import EncoderError, SignalEncoder
from modalign.encoders.image import build
from modalign.errors import UsageError, first_line
from modalign.models.encoders.loading import Encoder
from modalign.models.encoders.plain import plain_config
from modalign.models.pretrained import read_pretrained
from modalign.models.weights import pickle_hint, safetensors_only


def load_image_encoder(
    name: str | None,
    *,
    layer: int | str = -2,
    image_size: int = 48,
    patch_size: int = 8,
    options: dict[str, Any] | None = None,
    allow_pickle: bool = False,
) -> Encoder:
    """Load an image encoder.

    Args:
        name: hub name or folder of a vision model, ``package.module:Class``, or None/"none" for
            raw patches of ``patch_size`` pixels of an image of ``image_size``.
        layer: hidden layer to read (LLaVA reads -2), or "output" (the tower's own, after its last norm) or
            "all" (that with its class token).
        image_size: side in pixels, for raw patches and imported modules.
        patch_size: side of a raw patch.
        options: keyword arguments of an imported module.
        allow_pickle: also read weights that are a pickle, with ``weights_only=True``.

    Raises:
        UsageError: it cannot be loaded.
    """
    try:
        if name is None or name == "none":
            spec = {
                "kind": "patches",
                "patch_size": patch_size,
                "image_size": [image_size, image_size],
            }
            return Encoder("none", spec, build(spec), plain_processor(image_size))
        if ":" in name and not Path(name).exists():
            spec = {
                "kind": "module",
                "path": name,
                "arguments": options or {},
                "image_size": [image_size, image_size],
            }
            return Encoder(name, spec, build(spec), plain_processor(image_size))
        return _load_tower(name, layer, allow_pickle)
    except (OSError, EncoderError, KeyError, IndexError, ValueError) as error:
        raise UsageError(
            f"the image encoder {name!r} cannot be loaded: {first_line(error)}{pickle_hint(error)}"
        ) from error


def load(
    name: str | None, media: Sequence[Media], options: dict[str, Any], allow_pickle: bool = False
) -> tuple[dict[str, Any], SignalEncoder, Any]:
    """Load an image encoder through the interface of all modalities; see :func:`load_image_encoder`.

    Args:
        name: as there.
        media: not used.
        options: ``layer``, ``image_size``, ``patch_size``; all others are arguments of an imported module.
        allow_pickle: as there.
    """
    own = {key: options.pop(key) for key in ("layer", "image_size", "patch_size") if key in options}
    found = load_image_encoder(name, **own, options=options, allow_pickle=allow_pickle)
    return found.spec, found.module, found.processor


decode = decode_image

# Names of the tower in checkpoints of whole models that transformers does not expect.
_OF_A_WHOLE_MODEL = {"blip_2_vision_model": {r"^vision_model\.": ""}}


def plain_processor(image_size: int) -> SiglipImageProcessorPil:
    """Return a processor that resizes to a square, with values from -1 to 1."""
    size = {"height": image_size, "width": image_size}
    return SiglipImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def _load_tower(name: str, layer: int | str, allow_pickle: bool) -> Encoder:
    config = read_pretrained(AutoConfig, name, "image encoder")
    vision: PreTrainedConfig = getattr(config, "vision_config", None) or config
    processor = read_pretrained(AutoImageProcessor, name, "image encoder", backend="pil")
    pixels = processor(images=[Image.new("RGB", (512, 512))], return_tensors="pt")["pixel_values"]
    spec = {
        "kind": "tower",
        "config": plain_config(vision),
        "layer": layer,
        "image_size": list(pixels.shape[-2:]),  # a tower may be built for larger ones
    }
    module = build(spec)
    empty: Any = module.tower
    tower, info = type(empty).from_pretrained(
        name,
        config=vision,
        output_loading_info=True,
        key_mapping=_OF_A_WHOLE_MODEL.get(vision.model_type),
        use_safetensors=safetensors_only(allow_pickle),
    )
    if info["missing_keys"]:
        raise EncoderError(f"its weights lack {sorted(info['missing_keys'])[0]}")
    empty.load_state_dict(tower.state_dict())
    return Encoder(name, spec, module.eval(), processor)
