"""Export into transformers' own Llava class, when it computes what the composed model computes.

What Llava can hold is told from the structure first, then measured: the Llava model is put together
around the very same modules, and its logits are compared before anything is written.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import (
    AutoModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
)

from modalign.connectors.converters.linear import LinearConnector
from modalign.connectors.converters.mlp import MlpConnector
from modalign.encoders.image import HuggingFaceTower
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.parts import embedding
from modalign.models.processing import ModalignProcessor

# Towers whose keys on the hub have a level that transformers 5 dropped; every version reads it.
_TOWERS_WITH_INNER_LEVEL = ("clip_vision_model", "siglip_vision_model")


class NotNativeError(ValueError):
    """The model cannot be a Llava; the message says what stands against it."""


@dataclass
class Native:
    """A Llava model around the composed model's own modules, and its processor."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor


def build_native(model: ModalignForConditionalGeneration, processor: ModalignProcessor) -> Native:
    """Put a Llava together from the composed model's modules (shared, not copied).

    Raises:
        NotNativeError: Llava cannot hold this model, or it would not compute the same.
    """
    if set(model.connectors) != {"image"}:
        raise NotNativeError(f"Llava has one modality, image, not {sorted(model.connectors)}")
    linears, act = _projector_parts(model.connectors["image"])
    encoder = model.encoders["image"]
    if not isinstance(encoder, HuggingFaceTower):
        raise NotNativeError("the encoder is no Hugging Face vision tower")
    patch, strategy = _feature_selection(encoder)
    tower: PreTrainedModel = encoder.tower
    language = model.language_model
    _check_language_model(language)
    _check_auto_class(tower, "vision tower")
    _check_auto_class(language.base_model, "language model")
    config = LlavaConfig(
        vision_config=copy.deepcopy(tower.config),
        text_config=copy.deepcopy(language.config),
        image_token_index=processor.image_token_id,
        image_seq_length=processor.num_image_tokens,
        projector_hidden_act=act,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=encoder.layer,
        multimodal_projector_bias=True,
        tie_word_embeddings=bool(language.config.tie_word_embeddings),
    )
    for part in (config, config.vision_config, config.text_config):
        part.dtype = model.dtype
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    llava.model.vision_tower = tower
    llava.model.language_model = language.base_model
    llava.lm_head = language.get_output_embeddings()
    llava.model.multi_modal_projector.linear_1 = linears[0]
    llava.model.multi_modal_projector.linear_2 = linears[1]
    llava.generation_config = copy.deepcopy(model.generation_config)
    _compare(model, llava, processor)
    made = LlavaProcessor(
        image_processor=processor.image_processor,
        tokenizer=processor.tokenizer,
        patch_size=patch,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=encoder.extra,
        image_token=processor.image_token,
        chat_template=processor.chat_template,
    )
    return Native(llava, made)


def _projector_parts(connector: nn.Module) -> tuple[tuple[nn.Linear, nn.Linear], str]:
    if type(connector) is LinearConnector:
        first: nn.Module = connector.projection
        assert isinstance(first, nn.Linear)
        width = first.out_features
        second = nn.Linear(width, width).to(first.weight.device, first.weight.dtype)
        with torch.no_grad():
            second.weight.copy_(torch.eye(width))
            second.bias.zero_()
        return (first, second), "linear"
    if type(connector) is MlpConnector and connector.depth == 2:
        first, _, last = connector.layers
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        return (first, last), "gelu"
    raise NotNativeError(f"Llava has no connector like {getattr(connector, 'name', connector)!r}")


def _feature_selection(encoder: HuggingFaceTower) -> tuple[int, str]:
    """Patch size and strategy under which Llava reads the same features."""
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


def _check_language_model(language: PreTrainedModel) -> None:
    head = language.get_output_embeddings()
    inner = getattr(language, "base_model", language)
    if inner is language or not isinstance(head, nn.Linear) or head.bias is not None:
        raise NotNativeError(
            f"{type(language).__name__} is not a decoder with a linear head without bias"
        )
    if getattr(inner, "embed_tokens", None) is None:
        raise NotNativeError(f"{type(inner).__name__} has no embed_tokens, which Llava ties")


def _check_auto_class(part: PreTrainedModel, what: str) -> None:
    built = AutoModel._model_mapping.get(type(part.config), None)
    if isinstance(built, tuple):
        built = built[0]
    if built is not type(part):
        raise NotNativeError(
            f"for this {what} transformers would build "
            f"{getattr(built, '__name__', 'nothing')}, not {type(part).__name__}"
        )


@torch.no_grad()
def _compare(
    model: ModalignForConditionalGeneration,
    llava: LlavaForConditionalGeneration,
    processor: ModalignProcessor,
) -> None:
    """Refuse a Llava that computes something else (a scaled or capped head, say)."""
    encoder = model.encoders["image"]
    assert isinstance(encoder, HuggingFaceTower)
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, *encoder.image_size, generator=draw)
    size = embedding(model).weight.shape[0]
    text = torch.randint(0, size, (1, 6), generator=draw)
    text[text == processor.image_token_id] = (processor.image_token_id + 1) % size
    image = torch.full((1, processor.num_image_tokens), processor.image_token_id)
    inputs = {
        "input_ids": torch.cat([text[:, :2], image, text[:, 2:]], dim=1).to(model.device),
        "pixel_values": pixels.to(model.device, model.dtype),
    }
    states = [(part, part.training) for part in (model, llava)]
    model.eval()
    llava.eval()
    try:
        ours, theirs = model(**inputs).logits.float(), llava(**inputs).logits.float()
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise NotNativeError(f"Llava around these parts does not run: {error}") from error
    finally:
        for part, training in states:
            part.train(training)
    difference = float((ours - theirs).abs().max())
    allowed = {torch.float32: 1e-5, torch.float64: 1e-8}.get(model.dtype, 2e-2)
    if not difference <= allowed * max(1.0, float(ours.abs().max())):
        raise NotNativeError(f"Llava around these parts gives logits {difference:.1e} apart")


def save_native(native: Native, folder: Path) -> None:
    """Write a Llava folder with the keys that transformers 4 and 5 and vLLM read."""
    llava = native.model
    config = copy.deepcopy(llava.config)
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    llava.generation_config.save_pretrained(folder)
    native.processor.save_pretrained(folder)
    state = llava.state_dict()
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    model_type = config.vision_config.model_type
    tensors = {canonical_key(key, model_type): value for key, value in state.items()}
    save_torch_state_dict(_plain(tensors), folder, metadata={"format": "pt"})


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().contiguous() for key, value in tensors.items()}


def canonical_key(key: str, vision_type: str) -> str:
    """The hub's name of a Llava tensor."""
    renames = {
        "model.vision_tower.": "vision_tower.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
    }
    for old, new in renames.items():
        if key.startswith(old):
            rest = key.removeprefix(old)
            if old == "model.vision_tower." and vision_type in _TOWERS_WITH_INNER_LEVEL:
                new += "" if rest.startswith("vision_model.") else "vision_model."
            return new + rest
    return key
