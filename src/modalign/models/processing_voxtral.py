"""Processor of a model saved as Voxtral: that class's inputs, with the prompts of training.

transformers' VoxtralProcessor builds prompts with Mistral's own tokenizer; with another it returns
ids without the sound.

This file imports only torch, transformers and its siblings: it is copied into exported models.
"""

from __future__ import annotations

from typing import Any

from transformers import BatchFeature

from modalign.models.processing import ModalignProcessor


class ModalignVoxtralProcessor(ModalignProcessor):
    """The composed model's processor, with sound under Voxtral's name for it."""

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Process as the composed model's; ``input_features`` (n, F, T) are the spectrograms of all clips."""
        found = super().__call__(images=images, text=text, **kwargs)
        if "audio_values" in found:
            found["input_features"] = found.pop("audio_values")
        return found
