"""Parts that several native classes are put together from: SigLIP towers, square images, prompts, sound."""

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
    """The tower, where it is what a class has.

    Args:
        encoder: the model's.
        kind: the class's tower.
        name: of that kind, for the messages.
        layer: where the class reads it, ``OUTPUT`` or ``ALL``.
        target: the class.

    Raises:
        NotNativeError: it is another tower, is read elsewhere, or its images are no squares.
    """
    tower = encoder.tower
    if not isinstance(tower, kind):
        raise NotNativeError(
            f"{target}'s vision tower is {name}'s, and this one is {tower.config.model_type}"
        )
    if encoder.layer != layer:
        where = "with its class token" if layer == ALL else "after its last norm"
        own = repr(encoder.layer)
        own = own if isinstance(encoder.layer, str) else f"hidden layer {own}"
        raise NotNativeError(
            f"{target} reads the tower's output {where}, and this model {own}; train with "
            f"feature_layer {layer!r} for this class"
        )
    side = tower.config.image_size
    if encoder.image_size != (side, side):
        raise NotNativeError(
            f"{target}'s tower has positions for images of {side} x {side} pixels, and this model "
            f"reads {encoder.image_size[0]} x {encoder.image_size[1]}"
        )
    return tower


def siglip_tower(encoder: HuggingFaceTower, target: str) -> SiglipVisionModel:
    """The tower, where it is what Idefics2 and Idefics3 have; raises as `square_tower`."""
    return square_tower(encoder, SiglipVisionModel, "SigLIP", OUTPUT, target)


def siglip_sizes(tower: SiglipVisionModel) -> dict[str, Any]:
    """A SigLIP configuration's fields by the names that Idefics2 and Idefics3 share with it."""
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
    """Give a module on the meta device the tower's tensors (shared); its pooling head is not used.

    The Idefics classes number patches by fractions of the image. In 32-bit numbers that is off by
    one in some grids (of 19, 25 or 29 patches a side, not of 14, 16, 24, 27 or 32).

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
    """Idefics3's image processor set so that it gives the pixels of the composed model's.

    One image is one square, as in training: nothing is split, nothing keeps its proportions.

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
        do_resize=False,  # of the longest edge; the square below is made in any case
        max_image_size={"longest_edge": side},
    )
    images = [part["image"] for part in two_images()[0]["content"] if "image" in part]
    wanted = np.stack([ours(images=[image])["pixel_values"][0] for image in images])
    found = made(images=[images], return_tensors="np")["pixel_values"][0]
    if wanted.shape != found.shape or not np.allclose(wanted, found, rtol=0, atol=1e-6):
        raise NotNativeError(
            f"{type(ours).__name__} prepares images as {target}'s image processor cannot: that one "
            f"resizes every image to {side} x {side}, without cropping or padding"
        )
    return made


def plain_prompts(processor: ModalignProcessor, image_processor: Any) -> ProcessorMixin:
    """A processor of transformers' own that puts the placeholders into a prompt, and nothing else.

    The processors of the Idefics classes put further marks around an image, and BLIP-2's moves it
    to the front: prompts that training never saw.
    """
    tokenizer: Any = copy.deepcopy(processor.tokenizer)
    # An attribute that is only set would not be saved, and this processor reads it when loaded.
    tokenizer._set_model_specific_special_tokens({"image_token": processor.image_token})
    return DeepseekVLProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        chat_template=processor.chat_template,
        num_image_tokens=processor.num_image_tokens,
    )


def own_processor(cls: type[Processor], processor: ModalignProcessor) -> Processor:
    """The composed model's processor as one of its subclasses, for a class that reads other inputs."""
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
    """What a model that hears is asked by ``compare``: two clips of different lengths, and words.

    Args:
        samples: of the longest clip that it takes.
    """
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(0)).numpy() / 10
    parts = [
        {"type": "audio", "audio": noise[: samples // 3]},
        {"type": "text", "text": "a b"},
        {"type": "audio", "audio": noise[samples // 4 :]},
        {"type": "text", "text": "c?"},
    ]
    return [{"role": "user", "content": parts}]
