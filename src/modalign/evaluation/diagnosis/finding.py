"""Locate a model's parts for the diagnostics by its configuration and structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from modalign.errors import UsageError
from modalign.models.modeling import ModalignForConditionalGeneration


def placeholder(model: Any, modality: str) -> int:
    """Return the placeholder token id of a modality.

    Raises:
        UsageError: the model has none.
    """
    if isinstance(model, ModalignForConditionalGeneration):
        return int((model.config.bridges or {})[modality]["token_id"])
    for name in (f"{modality}_token_id", f"{modality}_token_index"):
        found = getattr(model.config, name, None)
        if isinstance(found, int):
            return found
    raise UsageError(
        f"the configuration of {type(model).__name__} names no {modality} placeholder: it does not put "
        f"{modality}s in the place of tokens, so there is nothing to compare with text; Llava and its like do"
    )


def enters(model: Any, modality: str) -> str:
    """``prefix`` or ``in-layer``."""
    if not isinstance(model, ModalignForConditionalGeneration):
        return "prefix"
    return model.connector(modality).enters


def decoder(model: Any) -> nn.Module:
    """Return the module that receives the embeddings of text and media."""
    if isinstance(model, ModalignForConditionalGeneration):
        return model.language_model
    found: nn.Module = model.get_decoder()
    if found is model:
        raise UsageError(f"the language model inside {type(model).__name__} cannot be found")
    return found


def encoder_of(model: Any, modality: str) -> nn.Module | None:
    """Return a modality's encoder, or None if a transformers model does not reveal it."""
    if isinstance(model, ModalignForConditionalGeneration):
        return model.encoders[modality]
    found = model.get_encoder(modality=modality)
    return None if found is model or found is model.base_model else found


def kept_features(model: Any, modality: str, inputs: dict[str, Tensor]) -> Callable[..., Any]:
    """Return a function that extracts from an encoder's output: values (n, N, d), mask (n, N), grid."""
    if isinstance(model, ModalignForConditionalGeneration):
        grid = model.encoders[modality].grid
        return lambda args, kwargs, output: (output[0], output[1], grid)
    layer: Any = getattr(model.config, "vision_feature_layer", None)
    whole = getattr(model.config, "vision_feature_select_strategy", "full") != "default"

    def keep(args: Any, kwargs: Any, output: Any) -> Any:
        states: Any = output.get("hidden_states") if hasattr(output, "get") else None
        read = states is not None and isinstance(layer, int)
        values = states[layer] if read else output[0]
        values = values if whole or values.dim() < 3 else values[:, 1:]  # the class token
        values = values[None] if values.dim() == 2 else values
        return values, _present(values, inputs.get("feature_attention_mask")), None

    return keep


def _present(values: Tensor, signal: Tensor | None) -> Tensor:
    """Return (n, N) bool: features (n, N, d) of signal, not padding, given the signal's mask (n, T)."""
    n, N = values.shape[:2]
    if signal is None or len(signal) != n:
        return torch.ones(n, N, dtype=torch.bool, device=values.device)
    counts = (N * signal.float().mean(dim=1)).ceil().clamp(min=1)
    return torch.arange(N, device=values.device)[None] < counts[:, None]


def ask_for_attention(model: Any) -> str | None:
    """Switch to attention that returns its weights; return the reason if this fails."""
    try:
        model.set_attn_implementation("eager")
    except (ValueError, AttributeError, ImportError) as error:
        return f"the model has no eager attention ({str(error).splitlines()[0]})"
    return None
