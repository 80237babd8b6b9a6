"""Llava: one affine map, or two with a GELU between them, from any vision tower to any decoder.

Source: LLaVA-1.5 (arXiv 2310.03744). The single map of ``linear`` becomes Llava's first one; its
second is then the identity, without an activation between them: exact in every number format.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from modalign.connectors.converters.linear import LinearConnector
from modalign.connectors.converters.mlp import MlpConnector
from modalign.encoders.image import HuggingFaceTower
from modalign.models.export.native.base import (
    Native,
    NotNativeError,
    check_auto_class,
    check_language_model,
    compare,
    image_tower,
    only_modality,
    renamed,
    set_dtype,
    tower_prefix,
    two_images,
)
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.processing import ModalignProcessor


def build(model: ModalignForConditionalGeneration, processor: ModalignProcessor) -> Native:
    """Build a Llava from the composed model's modules (shared, not copied).

    Raises:
        NotNativeError: Llava cannot hold this model, or it would not compute the same.
    """
    linears, act = _projector(only_modality(model, "image", "Llava"))
    encoder = image_tower(model)
    check_auto_class(encoder.tower, "vision tower")
    patch, strategy = _feature_selection(encoder)
    language = model.language_model
    check_language_model(language)
    config = LlavaConfig(
        vision_config=copy.deepcopy(encoder.tower.config),
        text_config=copy.deepcopy(language.config),
        image_token_index=processor.image_token_id,
        image_seq_length=processor.num_image_tokens,
        projector_hidden_act=act,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=encoder.layer,
        multimodal_projector_bias=True,
        tie_word_embeddings=bool(language.config.tie_word_embeddings),
    )
    set_dtype(model.dtype, config, config.vision_config, config.text_config)
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    llava.model.vision_tower = encoder.tower
    llava.model.language_model = language.base_model
    llava.lm_head = language.get_output_embeddings()
    llava.model.multi_modal_projector.linear_1 = linears[0]
    llava.model.multi_modal_projector.linear_2 = linears[1]
    llava.generation_config = copy.deepcopy(model.generation_config)
    made = LlavaProcessor(
        image_processor=processor.image_processor,
        tokenizer=processor.tokenizer,
        patch_size=patch,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=encoder.extra,
        image_token=processor.image_token,
        chat_template=processor.chat_template,
    )
    prefixes = {
        "model.vision_tower.": tower_prefix("vision_tower.", encoder.tower),
        "model.multi_modal_projector.": "multi_modal_projector.",
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
    }
    native = Native("Llava", llava, made, renamed(prefixes))
    compare(model, processor, native, two_images())
    return native


def _projector(connector: nn.Module) -> tuple[tuple[nn.Linear, nn.Linear], str]:
    if type(connector) is LinearConnector:
        first: nn.Module = connector.projection
        assert isinstance(first, nn.Linear)
        width = first.out_features
        second = nn.Linear(width, width).to(first.weight.device, first.weight.dtype)
        with torch.no_grad():
            second.weight.copy_(torch.eye(width))
            second.bias.zero_()
        return (first, second), "linear"
    if type(connector) is MlpConnector and connector.options.depth == 2:
        first, _, last = connector.layers
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        return (first, last), "gelu"
    raise NotNativeError(f"Llava has no connector like {getattr(connector, 'name', connector)!r}")


def _feature_selection(encoder: HuggingFaceTower) -> tuple[int, str]:
    """Return the patch size and strategy with which Llava reads the same features."""
    if isinstance(encoder.layer, str):
        raise NotNativeError(
            "Llava reads a hidden layer of the tower, but this model reads its output after the last norm"
        )
    patch = getattr(encoder.tower.config, "patch_size", None)
    if not isinstance(patch, int):
        raise NotNativeError(f"the vision tower's patch size is {patch!r}, not one number")
    height, width = encoder.image_size
    if encoder.extra > 1 or encoder.num_features != (height // patch) * (width // patch):
        raise NotNativeError(
            f"the tower gives {encoder.num_features} features and {encoder.extra} further tokens; "
            "Llava drops none or one, and takes the rest as a full grid of patches"
        )
    return patch, ("full", "default")[encoder.extra]
