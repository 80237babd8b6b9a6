"""Voxtral's inputs, and training's prompts: the processor of a model saved as that class.

transformers' VoxtralProcessor has its prompts made by Mistral's own tokenizer, and with another gives
ids without the sound.

This file imports only torch, transformers and its siblings: it is copied into exported models.
"""

from __future__ import annotations

from typing import Any

from transformers import BatchFeature

from modalign.models.processing import ModalignProcessor


class ModalignVoxtralProcessor(ModalignProcessor):
    """The composed model's processor, with sound under the name that Voxtral reads it by."""

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """As the composed model's; ``input_features`` (n, F, T) are the spectrograms of all clips."""
        found = super().__call__(images=images, text=text, **kwargs)
        if "audio_values" in found:
            found["input_features"] = found.pop("audio_values")
        return found
