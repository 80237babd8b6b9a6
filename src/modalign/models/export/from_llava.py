"""Convert a Llava back to a composed model, for the rungs that need its parts: gateway, remote code."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    ProcessorMixin,
)

from modalign.connectors.converters.linear import LinearConnector
from modalign.connectors.converters.mlp import MlpConnector
from modalign.data.images import blank_image, open_image
from modalign.data.records import mark
from modalign.encoders.image import build
from modalign.errors import UsageError
from modalign.models.compose import LanguageModel, compose
from modalign.models.encoders.loading import Encoder
from modalign.models.encoders.plain import plain_config
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.processing import ModalignProcessor


def composed_from_llava(
    llava: LlavaForConditionalGeneration, processor: ProcessorMixin
) -> tuple[ModalignForConditionalGeneration, ModalignProcessor]:
    """Build a composed model from a Llava's modules (shared, except a linear map's).

    Args:
        llava: that reads one layer, with GELU or nothing between its projector's two maps.
        processor: its processor.

    Raises:
        UsageError: no connector of modalign has this Llava's form; the message says why.
    """
    config, reader = llava.config, _Reader(processor)
    if not isinstance(config.vision_feature_layer, int):
        raise UsageError(
            f"this Llava reads layers {config.vision_feature_layer} of its tower; modalign reads one"
        )
    if config.projector_hidden_act not in ("gelu", "linear"):
        raise UsageError(
            f"this Llava's projector has {config.projector_hidden_act!r} between its maps; modalign's has GELU"
        )
    if reader.image_token != mark("image"):
        raise UsageError(
            f"this Llava's image token is {reader.image_token!r}; modalign's is {mark('image')!r}"
        )
    encoder = _encoder(llava, reader)
    linear = config.projector_hidden_act == "linear"
    model, made = compose(
        LanguageModel("the Llava's own", _language_model(llava), reader.tokenizer),
        encoder,
        "linear" if linear else "mlp",
        "published",
    )
    _take_weights(model.connectors["image"], llava.model.multi_modal_projector, linear)
    model.generation_config = copy.deepcopy(llava.generation_config)
    model.config.origins = None  # the Llava's own card names them
    return model.to(llava.dtype).eval(), made


class _Reader:
    def __init__(self, processor: Any) -> None:
        self.tokenizer = processor.tokenizer
        self.image_processor = processor.image_processor
        self.image_token = processor.image_token
        if self.tokenizer.chat_template is None:
            self.tokenizer.chat_template = processor.chat_template


def _language_model(llava: LlavaForConditionalGeneration) -> PreTrainedModel:
    with torch.device("meta"):
        causal = AutoModelForCausalLM.from_config(llava.config.text_config)
    setattr(causal, causal.base_model_prefix, llava.model.language_model)
    causal.set_output_embeddings(llava.lm_head)
    causal.generation_config = copy.deepcopy(llava.generation_config)
    found: PreTrainedModel = causal
    return found


def _encoder(llava: LlavaForConditionalGeneration, reader: _Reader) -> Encoder:
    blank = open_image(blank_image(512, 512))
    pixels = reader.image_processor(images=[blank], return_tensors="pt")["pixel_values"]
    spec = {
        "kind": "tower",
        "config": plain_config(llava.config.vision_config),
        "layer": llava.config.vision_feature_layer,
        "image_size": list(pixels.shape[-2:]),
    }
    module: Any = build(spec)
    module.tower = llava.model.vision_tower
    strategy = ("full", "default")[module.extra] if module.extra < 2 else None
    if llava.config.vision_feature_select_strategy != strategy:
        raise UsageError(
            f"this Llava keeps {llava.config.vision_feature_select_strategy!r} features of a tower with "
            f"{module.extra} tokens besides its patches; modalign keeps the patches only"
        )
    return Encoder("the Llava's own", spec, module.eval(), reader.image_processor)


@torch.no_grad()
def _take_weights(connector: nn.Module, projector: Any, linear: bool) -> None:
    first, second = projector.linear_1, projector.linear_2
    if linear:
        assert isinstance(connector, LinearConnector)
        whole, target = second.weight @ first.weight, connector.projection
        assert isinstance(target, nn.Linear)
        target.weight.copy_(whole)
        target.bias.copy_(second.weight @ first.bias + second.bias)
        return
    assert isinstance(connector, MlpConnector)
    connector.layers[0], connector.layers[2] = first, second
