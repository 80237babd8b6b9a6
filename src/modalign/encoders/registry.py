"""Find the modules of encoders; an exported model carries those that it needs."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from modalign.data.modalities import modality_of
from modalign.encoders.base import Prepared, SignalEncoder


def encoder_module(modality: str) -> ModuleType:
    """Import the module with a modality's encoders (see ``encoders.base``)."""
    return importlib.import_module(modality_of(modality).encoder)


def build_encoder(modality: str, spec: dict[str, Any]) -> SignalEncoder:
    """Build an encoder from its description."""
    encoder: SignalEncoder = encoder_module(modality).build(spec)
    return encoder


def prepare_signals(modality: str, spec: dict[str, Any], signals: list[Any]) -> Prepared:
    """Convert decoded signals (see ``encoders.base``) to tensors."""
    prepared: Prepared = encoder_module(modality).prepare(spec, signals)
    return prepared
