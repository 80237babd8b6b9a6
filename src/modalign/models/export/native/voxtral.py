"""Voxtral: Whisper's encoder on its whole window, four features joined, an MLP, any decoder.

Source: Voxtral (arXiv 2507.13264). Every clip is as long as the window, so the encoder must be loaded in
that form (``form: voxtral``); the connector is ``stack_mlp`` of 4.

Prompts are the same as in training, by modalign's own processor (``processing_voxtral``).
"""

from __future__ import annotations

import copy

import torch
from transformers import (
    PreTrainedConfig,
    VoxtralConfig,
    VoxtralEncoder,
    VoxtralForConditionalGeneration,
)

from modalign.connectors.converters.stack_mlp import StackMlpConnector
from modalign.encoders.base import SignalEncoder
from modalign.encoders.speech import SpeechTower
from modalign.models.export.native.base import (
    Native,
    NotNativeError,
    check_language_model,
    compare,
    only_connector,
    renamed,
    set_dtype,
)
from modalign.models.export.native.parts import own_processor, two_clips
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.processing import ModalignProcessor
from modalign.models.processing_voxtral import ModalignVoxtralProcessor

STACK = 4  # number of features that Voxtral joins


def build(model: ModalignForConditionalGeneration, processor: ModalignProcessor) -> Native:
    """Build a Voxtral from the composed model's modules.

    All are shared except a tied head: the class does not tie it, so it is copied.

    Raises:
        NotNativeError: Voxtral cannot hold this model, or it would not compute the same.
    """
    stacked = _stacked(only_connector(model, "audio", "Voxtral", StackMlpConnector))
    tower = _tower(model.encoders["audio"])  # type: ignore[arg-type]
    language = model.language_model
    check_language_model(language)
    own = processor.signals["audio"]
    config = VoxtralConfig(
        audio_config=copy.deepcopy(tower.config),
        text_config=_text_config(language.config),
        audio_token_id=processor.tokenizer.convert_tokens_to_ids(own["token"]),
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
    )
    set_dtype(model.dtype, config, config.audio_config, config.text_config)
    with torch.device("meta"):
        made = VoxtralForConditionalGeneration(config)
    made.model.audio_tower = tower
    made.model.multi_modal_projector.linear_1 = stacked.layers[0]
    made.model.multi_modal_projector.linear_2 = stacked.layers[2]
    made.model.language_model = language.base_model
    head = language.get_output_embeddings()
    made.lm_head = copy.deepcopy(head) if language.config.tie_word_embeddings else head
    made.generation_config = copy.deepcopy(model.generation_config)
    canonical = renamed(
        {
            "model.audio_tower.": "audio_tower.",
            "model.multi_modal_projector.": "multi_modal_projector.",
            "model.language_model.": "language_model.model.",
            "lm_head.": "language_model.lm_head.",
        }
    )
    native = Native("Voxtral", made, own_processor(ModalignVoxtralProcessor, processor), canonical)
    compare(model, processor, native, two_clips(own["spec"]["window"]["samples"]))
    return native


def _stacked(connector: StackMlpConnector) -> StackMlpConnector:
    if connector.options.stack != STACK:
        raise NotNativeError(
            f"Voxtral joins {STACK} features, but this connector {connector.options.stack}; train it with the "
            f"option stack {STACK} for this class"
        )
    return connector


def _tower(encoder: SignalEncoder) -> VoxtralEncoder:
    tower = getattr(encoder, "tower", None)
    if not isinstance(encoder, SpeechTower) or not isinstance(tower, VoxtralEncoder):
        raise NotNativeError(
            "Voxtral's encoder is Whisper's, and every feature of its window counts, however short "
            "the clip; train with a Whisper encoder and its option form=voxtral for this class"
        )
    if encoder.num_features % STACK:
        raise NotNativeError(
            f"Voxtral joins {STACK} features of a window, but this encoder's has "
            f"{encoder.num_features}"
        )
    return tower


def _text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the decoder's configuration with an explicit head size, which Voxtral otherwise assumes to be 128."""
    written = copy.deepcopy(config)
    written.tie_word_embeddings = False
    if getattr(written, "head_dim", None) is None:
        written.head_dim = written.hidden_size // written.num_attention_heads
    return written
