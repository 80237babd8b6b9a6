"""A language model of a folder or the hub as a chat model."""

from __future__ import annotations

from modalign.devices import device_named
from modalign.endpoints import LocalChat
from modalign.models.compose import load_language_model


def open_chat(name: str, device: str = "auto") -> LocalChat:
    """Load a causal language model to talk to; one without a chat template gets modalign's default.

    Args:
        name: folder or hub name.
        device: where to put it, ``auto`` for CUDA where there is one.

    Raises:
        UsageError: it cannot be loaded; the message says why.
    """
    loaded = load_language_model(name, modalities=())
    return LocalChat(loaded.model.to(device_named(device)).eval(), loaded.tokenizer)
