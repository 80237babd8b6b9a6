"""Tiny models whose native class has a processor of modalign's own: Idefics and Voxtral."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

import tiny
from modalign.models.compose import LanguageModel, compose, prepare_tokenizer
from modalign.models.encoders.image import load_image_encoder
from modalign.models.encoders.loading import load_encoder
from modalign.starter import language

RATE, SECONDS = 16_000, 2

Composed = tuple[Any, Any]  # model and processor


def idefics(folder: Path, **options: Any) -> Composed:
    """Gated blocks in an ungrouped LLaMA behind CLIP, whose files go into ``folder``."""
    for part in tiny.tower("clip"):
        part.save_pretrained(folder)
    chosen = {"head_size": 8, "ffn": 48, **options}
    encoder = load_image_encoder(str(folder), layer="all")
    return _joined(encoder, "idefics_cross_attention", "image", chosen)


def voxtral(folder: Path, **options: Any) -> Composed:
    """Four stacked features of a Whisper, whose files go into ``folder``, before a LLaMA."""
    whisper(folder)
    encoder = load_encoder("audio", str(folder), [], {"form": "voxtral"})
    return _joined(encoder, "stack_mlp", "audio", options)


def _joined(encoder: Any, connector: str, modality: str, options: dict[str, Any]) -> Composed:
    tokenizer = language.build_tokenizer()
    prepare_tokenizer(tokenizer, (modality,))
    llm = tiny.language_model("ungrouped", len(tokenizer))
    torch.manual_seed(3)
    model, processor = compose(
        LanguageModel("tiny", llm, tokenizer), encoder, connector, options=options
    )
    with torch.no_grad():
        for parameter in model.connectors.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return model.eval(), processor


def whisper(folder: Path) -> None:
    """A tiny Whisper of windows of two seconds."""
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,  # four times the width, as in every Whisper
        decoder_ffn_dim=32,
        vocab_size=50,
        max_source_positions=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(chunk_length=SECONDS).save_pretrained(folder)
