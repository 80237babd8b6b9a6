"""What all native targets share: structural checks, the comparison that decides, saving.

Structure tells first whether a class can hold the model; then it is measured: the class is built around the
composed model's own modules, both processors get the same input, and ids and logits are compared before
anything is written.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import save_torch_state_dict
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, ProcessorMixin

from modalign.connectors.base import Connector
from modalign.encoders.image import HuggingFaceTower
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.probe import Conversation, placed, prepare
from modalign.models.processing import ModalignProcessor

# Towers whose keys on the hub have a level that transformers 5 dropped; every version reads it.
_TOWERS_WITH_INNER_LEVEL = ("clip_vision_model", "siglip_vision_model")


C = TypeVar("C", bound=Connector)


class NotNativeError(ValueError):
    """The model cannot be of a native class; the message says why."""


@dataclass
class Native:
    """A native transformers model around the composed model's modules, shared, not copied.

    Attributes:
        target: the class without its ending, ``Llava``.
        model: the native model.
        processor: its processor, which gives the same ids as in training.
        canonical: maps a tensor's name in ``model`` to its name on the hub.
    """

    target: str
    model: PreTrainedModel
    processor: ProcessorMixin
    canonical: Callable[[str], str]


def only_modality(model: ModalignForConditionalGeneration, modality: str, target: str) -> Connector:
    """Return the connector, if the model has only this modality.

    Raises:
        NotNativeError: it has others.
    """
    if set(model.connectors) != {modality}:
        found = " and ".join(sorted(model.connectors)) or "none"
        raise NotNativeError(f"{target} has one modality, {modality}, but this model has {found}")
    return model.connector(modality)


def only_connector(
    model: ModalignForConditionalGeneration, modality: str, target: str, kind: type[C]
) -> C:
    """Return the connector, if the model has only this modality and this kind of connector.

    Raises:
        NotNativeError: it has others.
    """
    connector = only_modality(model, modality, target)
    if type(connector) is not kind:
        raise NotNativeError(
            f"{target} has no connector like {connector.name!r}, only like {kind.name!r}"
        )
    return connector


def image_tower(model: ModalignForConditionalGeneration) -> HuggingFaceTower:
    """Return the image encoder, if it is a Hugging Face vision tower.

    Raises:
        NotNativeError: it is not.
    """
    encoder = model.encoders["image"]
    if not isinstance(encoder, HuggingFaceTower):
        raise NotNativeError("the encoder is not a Hugging Face vision tower")
    return encoder


def check_language_model(language: PreTrainedModel) -> None:
    """Check for a decoder below a linear head, built by AutoModel, with an embedding that can be tied.

    Raises:
        NotNativeError: it is something else.
    """
    head = language.get_output_embeddings()
    inner = getattr(language, "base_model", language)
    if inner is language or not isinstance(head, nn.Linear) or head.bias is not None:
        raise NotNativeError(
            f"{type(language).__name__} is not a decoder with a linear head without bias"
        )
    if getattr(inner, "embed_tokens", None) is None:
        raise NotNativeError(
            f"{type(inner).__name__} has no embed_tokens, which native classes tie to the head"
        )
    check_auto_class(inner, "language model")


def check_auto_class(part: PreTrainedModel, what: str) -> None:
    """Check that AutoModel builds the same class from the part's configuration.

    Raises:
        NotNativeError: it would build another.
    """
    built = AutoModel._model_mapping.get(type(part.config), None)
    if isinstance(built, tuple):
        built = built[0]
    if built is not type(part):
        raise NotNativeError(
            f"for this {what} transformers would build "
            f"{getattr(built, '__name__', 'nothing')}, not {type(part).__name__}"
        )


def set_dtype(dtype: torch.dtype, *configs: PreTrainedConfig) -> None:
    """Write the number format into every part's configuration, because each is read separately."""
    for config in configs:
        config.dtype = dtype


def two_images() -> Conversation:
    """Return the conversation for :func:`compare` with images: two different images and words."""
    noise = torch.randint(0, 256, (2, 40, 56, 3), generator=torch.Generator().manual_seed(0))
    first, second = (Image.fromarray(each.byte().numpy()) for each in noise)
    parts: list[dict[str, Any]] = [
        {"type": "image", "image": first},
        {"type": "text", "text": "a b"},
        {"type": "image", "image": second},
        {"type": "text", "text": "c?"},
    ]
    return [{"role": "user", "content": parts}]


@torch.no_grad()
def compare(
    model: ModalignForConditionalGeneration,
    processor: ModalignProcessor,
    native: Native,
    conversation: Conversation,
) -> float:
    """Give both the same input, through their own processors.

    Returns:
        The largest difference of logits.

    Raises:
        NotNativeError: the native processor gives other ids, or the native model other logits (for example
            with a scaled or capped head), or one of them does not run.
    """
    states = [(part, part.training) for part in (model, native.model)]
    model.eval()
    native.model.eval()
    try:
        ours, theirs = (
            placed(prepare(each, copy.deepcopy([conversation])), model)
            for each in (processor, native.processor)
        )
        _check_ids(ours["input_ids"][0].tolist(), theirs["input_ids"][0].tolist(), native)
        expected = model(**ours).logits.float()
        found = native.model(**theirs).logits.float()
    except NotNativeError:
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
        raise NotNativeError(f"{native.target} around these parts does not run: {error}") from error
    finally:
        for part, training in states:
            part.train(training)
    difference = float((expected - found).abs().max())
    allowed = {torch.float32: 1e-5, torch.float64: 1e-8}.get(model.dtype, 2e-2)
    if not difference <= allowed * max(1.0, float(expected.abs().max())):  # refuses NaN too
        raise NotNativeError(
            f"{native.target} around these parts gives logits {difference:.1e} apart"
        )
    return difference


def _check_ids(ours: list[int], theirs: list[int], native: Native) -> None:
    if ours == theirs:
        return
    pairs = enumerate(zip(ours, theirs, strict=False))
    where = next((i for i, pair in pairs if pair[0] != pair[1]), min(len(ours), len(theirs)))
    raise NotNativeError(
        f"{type(native.processor).__name__} gives {len(theirs)} token ids for a prompt of "
        f"{len(ours)}; they differ from position {where} on"
    )


def save_native(native: Native, folder: Path) -> None:
    """Write a folder with keys for transformers 4 and 5 and vLLM."""
    config = copy.deepcopy(native.model.config)
    config.architectures = [type(native.model).__name__]
    config.save_pretrained(folder)
    native.model.generation_config.save_pretrained(folder)
    native.processor.save_pretrained(folder)
    state = native.model.state_dict()
    if config.get_text_config().tie_word_embeddings:
        state = {k: v for k, v in state.items() if not k.endswith("lm_head.weight")}
    tensors = {native.canonical(key): value for key, value in state.items()}
    save_torch_state_dict(_plain(tensors), folder, metadata={"format": "pt"})


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().contiguous() for key, value in tensors.items()}


def renamed(prefixes: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that replaces a name's first matching prefix."""

    def canonical(key: str) -> str:
        for old, new in prefixes.items():
            if key.startswith(old):
                return new + key.removeprefix(old)
        return key

    return canonical


def tower_prefix(prefix: str, tower: PreTrainedModel) -> str:
    """Return ``prefix`` with the additional level of the hub's files for this tower."""
    inner = tower.config.model_type in _TOWERS_WITH_INNER_LEVEL
    held = any(key.startswith("vision_model.") for key in tower.state_dict())
    return f"{prefix}vision_model." if inner and not held else prefix
