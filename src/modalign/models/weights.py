"""How pretrained weights are read: from safetensors, or from a pickle if allowed."""

from __future__ import annotations


def safetensors_only(allow_pickle: bool) -> bool | None:
    """Return transformers' setting: safetensors only, or any file (pickles as weights only)."""
    return None if allow_pickle else True


def pickle_hint(error: BaseException) -> str:
    """Return the hint for a message when weights were refused because they are a pickle."""
    if "safetensors" not in str(error):
        return ""
    return (
        ". Weights that are a pickle are not read: save them as safetensors, or give --allow-pickle "
        "(they are then read with weights_only=True)"
    )
