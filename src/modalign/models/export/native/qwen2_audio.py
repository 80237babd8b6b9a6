"""Qwen2Audio: Whisper's encoder in Qwen2-Audio's form, one affine map, any decoder.

Source: Qwen2-Audio (arXiv 2407.10759). Neighbours are averaged inside its encoder, before the last
norm, and padding is hidden from attention. So the encoder must be loaded in that form
(``form: qwen2_audio``), and the connector must be a single affine map: ``linear``, or ``pool_linear`` with
pool 1. Averaging after Whisper's own norm would differ.

If all clips of a prompt have one position (under 80 ms), the class takes an older path that fails in
generation.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioEncoder,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

from modalign.connectors.base import Connector
from modalign.connectors.converters.linear import LinearConnector
from modalign.connectors.converters.pool_linear import PoolLinearConnector
from modalign.encoders.base import SignalEncoder
from modalign.encoders.speech import SpeechTower
from modalign.models.export.native.base import (
    Native,
    NotNativeError,
    check_language_model,
    compare,
    only_modality,
    renamed,
    set_dtype,
)
from modalign.models.export.native.parts import two_clips
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.processing import ModalignProcessor


def build(model: ModalignForConditionalGeneration, processor: ModalignProcessor) -> Native:
    """Build a Qwen2Audio from the composed model's modules.

    All are shared except a tied head: the class does not tie it, so it is copied.

    Raises:
        NotNativeError: Qwen2Audio cannot hold this model, or it would not compute the same.
    """
    connector = only_modality(model, "audio", "Qwen2Audio")
    tower = _tower(model.encoders["audio"])  # type: ignore[arg-type]
    projection = _projection(connector)
    language = model.language_model
    check_language_model(language)
    text_config = copy.deepcopy(language.config)
    text_config.tie_word_embeddings = False
    own = processor.signals["audio"]
    config = Qwen2AudioConfig(
        audio_config=copy.deepcopy(tower.config),
        text_config=text_config,
        audio_token_index=processor.tokenizer.convert_tokens_to_ids(own["token"]),
        tie_word_embeddings=False,
    )
    set_dtype(model.dtype, config, config.audio_config, config.text_config)
    with torch.device("meta"):
        made = Qwen2AudioForConditionalGeneration(config)
    made.model.audio_tower = tower
    made.model.multi_modal_projector.linear = projection
    made.model.language_model = language.base_model
    head = language.get_output_embeddings()
    made.lm_head = copy.deepcopy(head) if language.config.tie_word_embeddings else head
    made.generation_config = copy.deepcopy(model.generation_config)
    native = Native(
        "Qwen2Audio",
        made,
        Qwen2AudioProcessor(
            feature_extractor=WhisperFeatureExtractor.from_dict(own["spec"]["extractor"]),
            tokenizer=processor.tokenizer,
            chat_template=processor.chat_template,
            audio_token=own["token"],
        ),
        renamed(
            {
                "model.audio_tower.": "audio_tower.",
                "model.multi_modal_projector.": "multi_modal_projector.",
                "model.language_model.": "language_model.model.",
                "lm_head.": "language_model.lm_head.",
            }
        ),
    )
    compare(model, processor, native, two_clips(own["spec"]["window"]["samples"]))
    return native


def _tower(encoder: SignalEncoder) -> Qwen2AudioEncoder:
    tower = getattr(encoder, "tower", None)
    if isinstance(encoder, SpeechTower) and isinstance(tower, Qwen2AudioEncoder):
        return tower
    raise NotNativeError(
        "Qwen2Audio's encoder is Whisper's with padding hidden from attention and neighbours "
        "averaged before the last norm; train with a Whisper encoder and its option "
        "form=qwen2_audio for this class"
    )


def _projection(connector: Connector) -> nn.Linear:
    if type(connector) is LinearConnector:
        return connector.projection
    if type(connector) is PoolLinearConnector:
        if connector.options.pool == 1:
            return connector.projection
        raise NotNativeError(
            f"Qwen2Audio averages only inside its encoder, but {connector.name!r} "
            f"averages {connector.options.pool} of its features; take linear, or pool 1"
        )
    raise NotNativeError(f"Qwen2Audio has one affine map, which {connector.name!r} is not")
