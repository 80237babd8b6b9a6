"""A language model of a folder or the hub as a chat model."""

from __future__ import annotations

from modalign.devices import device_named
from modalign.endpoints import LocalChat
from modalign.models.compose import load_language_model
from modalign.models.templates import end_ids


def open_chat(name: str, device: str = "auto") -> LocalChat:
    """Load a causal language model to talk to; one without a chat template gets modalign's default.

    Args:
        name: folder or hub name.
        device: where to put it, ``auto`` for CUDA where there is one.

    Raises:
        UsageError: it cannot be loaded; the message says why.
    """
    loaded = load_language_model(name, modalities=())
    model = loaded.model.to(device_named(device)).eval()
    ends = end_ids(loaded.tokenizer, model.generation_config.eos_token_id)
    return LocalChat(model, loaded.tokenizer, end_ids=ends)
