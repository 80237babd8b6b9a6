"""How pretrained weights are read: from safetensors, or from a pickle where that is allowed."""

from __future__ import annotations


def safetensors_only(allow_pickle: bool) -> bool | None:
    """What transformers is told: safetensors only, or whatever there is (pickles as weights only)."""
    return None if allow_pickle else True


def pickle_hint(error: BaseException) -> str:
    """What to do, for a message, where weights were not read because they are a pickle."""
    if "safetensors" not in str(error):
        return ""
    return (
        ". Weights that are a pickle are not read: save them as safetensors, or give --allow-pickle "
        "(they are then read with weights_only=True)"
    )
