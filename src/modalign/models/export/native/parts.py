"""Parts shared by several native classes: SigLIP towers, square images, prompts, sound."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import (
    DeepseekVLProcessor,
    Idefics3ImageProcessorPil,
    PreTrainedModel,
    ProcessorMixin,
    SiglipVisionModel,
)

from modalign.encoders.image import ALL, OUTPUT, HuggingFaceTower
from modalign.models.export.native.base import NotNativeError, two_images
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.probe import Conversation
from modalign.models.processing import ModalignProcessor

Processor = TypeVar("Processor", bound=ModalignProcessor)
Tower = TypeVar("Tower", bound=PreTrainedModel)


def square_tower(
    encoder: HuggingFaceTower, kind: type[Tower], name: str, layer: str, target: str
) -> Tower:
    """Return the tower, if it fits a class.

    Args:
        encoder: the model's encoder.
        kind: the class's tower.
        name: name of that kind, for messages.
        layer: what the class reads, ``OUTPUT`` or ``ALL``.
        target: the class.

    Raises:
        NotNativeError: it is another tower, is read at another layer, or its images are not square.
    """
    tower = encoder.tower
    if not isinstance(tower, kind):
        raise NotNativeError(
            f"{target}'s vision tower is {name}'s, but this one is {tower.config.model_type}"
        )
    if encoder.layer != layer:
        where = "with its class token" if layer == ALL else "after its last norm"
        own = repr(encoder.layer)
        own = own if isinstance(encoder.layer, str) else f"hidden layer {own}"
        raise NotNativeError(
            f"{target} reads the tower's output {where}, but this model reads {own}; train with "
            f"feature_layer {layer!r} for this class"
        )
    side = tower.config.image_size
    if encoder.image_size != (side, side):
        raise NotNativeError(
            f"{target}'s tower has positions for images of {side} x {side} pixels, but this model "
            f"reads {encoder.image_size[0]} x {encoder.image_size[1]}"
        )
    return tower


def siglip_tower(encoder: HuggingFaceTower, target: str) -> SiglipVisionModel:
    """Return the tower, if it fits Idefics2 and Idefics3; raises as `square_tower`."""
    return square_tower(encoder, SiglipVisionModel, "SigLIP", OUTPUT, target)


def siglip_sizes(tower: SiglipVisionModel) -> dict[str, Any]:
    """Return a SigLIP configuration's fields under the names shared with Idefics2 and Idefics3."""
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_channels",
        "image_size",
        "patch_size",
        "hidden_act",
        "layer_norm_eps",
        "attention_dropout",
    )
    return {name: getattr(tower.config, name) for name in names}


@torch.no_grad()
def take_siglip(vision: Any, tower: SiglipVisionModel, target: str) -> None:
    """Load the tower's tensors (shared) into a module on the meta device, without its pooling head.

    The Idefics classes number patches by fractions of the image, which in 32-bit arithmetic is off by one in
    some grids (of 19, 25 or 29 patches per side, not of 14, 16, 24, 27 or 32).

    Raises:
        NotNativeError: patches would get other positions.
    """
    state = {key: value for key, value in tower.state_dict().items() if not key.startswith("head.")}
    vision.load_state_dict(state, assign=True)
    size, patch = tower.config.image_size, tower.config.patch_size
    side = size // patch
    blank = torch.zeros(1, tower.config.num_channels, size, size).to(tower.device, tower.dtype)
    whole = torch.ones(1, side, side, dtype=torch.bool, device=tower.device)
    found = vision.embeddings(pixel_values=blank, patch_attention_mask=whole)
    if not torch.allclose(found, tower.embeddings(blank), atol=1e-6):
        raise NotNativeError(
            f"{target} numbers patches by fractions of the image, and rounding puts some of "
            f"{side} x {side} patches at their neighbour's position"
        )


def square_images(processor: ModalignProcessor, side: int, target: str) -> Any:
    """Configure Idefics3's image processor to give the composed model's pixels.

    One image is one square, as in training: nothing is split, proportions are not kept.

    Raises:
        NotNativeError: the pixels would differ.
    """
    ours = processor.image_processor
    kept = ("resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    settings = {name: getattr(ours, name) for name in kept if getattr(ours, name, None) is not None}
    made = Idefics3ImageProcessorPil(
        **settings,
        do_convert_rgb=True,
        do_image_splitting=False,
        do_resize=False,  # of the longest edge; the square below is made anyway
        max_image_size={"longest_edge": side},
    )
    images = [part["image"] for part in two_images()[0]["content"] if "image" in part]
    wanted = np.stack([ours(images=[image])["pixel_values"][0] for image in images])
    found = made(images=[images], return_tensors="np")["pixel_values"][0]
    if wanted.shape != found.shape or not np.allclose(wanted, found, rtol=0, atol=1e-6):
        raise NotNativeError(
            f"{type(ours).__name__} prepares images in a way that {target}'s image processor cannot: that one "
            f"resizes every image to {side} x {side}, without cropping or padding"
        )
    return made


def plain_prompts(processor: ModalignProcessor, image_processor: Any) -> ProcessorMixin:
    """Build a transformers processor that only inserts the placeholders into a prompt.

    The processors of the Idefics classes add markers around an image, and BLIP-2's moves it
    to the front, unlike in training.
    """
    tokenizer: Any = copy.deepcopy(processor.tokenizer)
    # An attribute set later would not be saved, but this processor reads it on loading.
    tokenizer._set_model_specific_special_tokens({"image_token": processor.image_token})
    return DeepseekVLProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        chat_template=processor.chat_template,
        num_image_tokens=processor.num_image_tokens,
    )


def own_processor(cls: type[Processor], processor: ModalignProcessor) -> Processor:
    """Convert the composed model's processor to a subclass, for a class with other inputs."""
    return cls(
        image_processor=processor.image_processor,
        tokenizer=processor.tokenizer,
        num_image_tokens=processor.num_image_tokens,
        image_token=processor.image_token,
        chat_template=processor.chat_template,
        signals=processor.signals,
    )


def share_language_model(native: Any, model: ModalignForConditionalGeneration, name: str) -> None:
    """Put decoder and head into a class whose inner model calls its decoder ``name``."""
    language = model.language_model
    setattr(native.model, name, language.base_model)
    native.lm_head = language.get_output_embeddings()
    native.generation_config = copy.deepcopy(model.generation_config)


def two_clips(samples: int) -> Conversation:
    """Return the conversation for ``compare`` with audio: two clips of different lengths, and words.

    Args:
        samples: samples of the longest accepted clip.
    """
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(0)).numpy() / 10
    parts = [
        {"type": "audio", "audio": noise[: samples // 3]},
        {"type": "text", "text": "a b"},
        {"type": "audio", "audio": noise[samples // 4 :]},
        {"type": "text", "text": "c?"},
    ]
    return [{"role": "user", "content": parts}]
