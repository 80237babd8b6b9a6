"""Open a language model from a folder or the hub as a chat model."""

from __future__ import annotations

from modalign.devices import device_named
from modalign.endpoints import LocalChat
from modalign.models.compose import load_language_model


def open_chat(name: str, device: str = "auto") -> LocalChat:
    """Load a causal language model as a chat model; without a chat template it gets modalign's default.

    Args:
        name: folder or hub name.
        device: device; ``auto`` is CUDA if available.

    Raises:
        UsageError: it cannot be loaded; the message says why.
    """
    loaded = load_language_model(name, modalities=())
    return LocalChat(loaded.model.to(device_named(device)).eval(), loaded.tokenizer)
