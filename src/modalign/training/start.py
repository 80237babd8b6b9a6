"""What a training begins from: a saved model, or parts composed anew with fresh connectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from modalign.data.records import Media
from modalign.errors import UsageError
from modalign.models.compose import compose
from modalign.models.saved import OpenedModel, open_composed
from modalign.training.methods import resolve_method
from modalign.training.sources import Parts


def start_of(
    model: str | None, parts: Parts | None, method: str, media: Sequence[Media], seed: int
) -> OpenedModel:
    """Open the saved model, or compose the method's parts.

    Args:
        model: folder of a saved model; then the rest has no say.
        parts: language model and encoders.
        method: whose connector is composed.
        media: of all training data, for encoders that depend on it.
        seed: of new connectors.

    Raises:
        UsageError: the parts cannot be loaded, or the method has no connector.
    """
    if model is not None:
        return open_composed(model)
    assert parts is not None
    named = resolve_method(method)
    if named.tools:
        raise UsageError(f"{method} has no connector that could be trained; choose another method")
    llm = parts.load_llm()
    torch.manual_seed(seed)
    encoders = parts.load_encoders(media, named.facts.raw_input)
    connectors = {
        each.modality: parts.connector.get(each.modality, named.connector) for each in encoders
    }
    torch.manual_seed(seed)  # decides connectors
    made, processor = compose(llm, encoders, connectors, named.variant, named.options)
    return OpenedModel(method, made, processor, encoders, llm.stored)
