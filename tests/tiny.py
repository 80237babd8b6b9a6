"""Models, records and images small enough to be made in a test: plain functions, no fixtures."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from modalign.data.records import Media, Message, Record, Source
from modalign.models.collation import Collator, Placeholders, RawSignals
from modalign.models.compose import compose, load_language_model, token_table
from modalign.models.encoders.image import load_image_encoder
from modalign.models.encoders.loading import Encoder
from modalign.models.modeling import Features, ModalignForConditionalGeneration
from modalign.models.processing import ModalignProcessor

transformers.logging.set_verbosity_error()

FAMILIES = ("llama", "qwen2", "gpt2", "gptj", "gpt_neox", "mistral", "gemma")
TOWERS = ("siglip", "clip", "vit", "dinov2", "resnet")
SIDE = 32  # pixels of a tiny tower's image
PATCH = 8
PATCHES = (SIDE // PATCH) ** 2
LAYERS = 4
SHARED = Path(__file__).parents[2] / "shared"  # files beside the repository, where there are

_COMMON = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
_GPT = {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 256, "n_inner": 48}


def language_model(family: str, vocabulary: int, tied: bool = False) -> PreTrainedModel:
    """A causal language model of one architecture with random weights (seed 0), in eval mode.

    ``ungrouped`` is a LLaMA with keys for each head.
    """
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    common = {"vocab_size": vocabulary, "tie_word_embeddings": tied, **ids}
    grouped = {**_COMMON, "num_key_value_heads": 2}
    config: Any = {
        "llama": lambda: transformers.LlamaConfig(**grouped, **common),
        "ungrouped": lambda: transformers.LlamaConfig(**_COMMON, **common),
        "qwen2": lambda: transformers.Qwen2Config(**grouped, **common),
        "qwen3": lambda: transformers.Qwen3Config(**grouped, head_dim=8, **common),
        "mistral": lambda: transformers.MistralConfig(**grouped, **common, sliding_window=None),
        "gemma": lambda: transformers.GemmaConfig(**grouped, head_dim=8, **common),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**_COMMON, **common),
        "gpt2": lambda: transformers.GPT2Config(**_GPT, **common),
        "gptj": lambda: transformers.GPTJConfig(**_GPT, rotary_dim=4, **common),
    }[family]()
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # larger than at birth: else every token has the same logits
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return model


def tower(kind: str) -> tuple[PreTrainedModel, Any]:
    """A vision tower with random weights (seed 0), and its processor."""
    size = {"height": SIDE, "width": SIDE}
    vit = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    torch.manual_seed(0)
    plain = transformers.SiglipImageProcessorPil(
        size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    made: Any = {
        "siglip": lambda: transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(**vit, vision_use_head=False)
        ),
        "clip": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vit)),
        "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**vit)),
        "dinov2": lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**vit, num_register_tokens=4)
        ),
        "resnet": lambda: transformers.ResNetModel(
            transformers.ResNetConfig(
                embedding_size=8, hidden_sizes=[8, 24], depths=[1, 1], layer_type="basic"
            )
        ),
    }[kind]()
    return made.eval(), plain


def raw_images(model: Any, processor: Any) -> RawSignals:
    """Images through the processor, the encoder running with the model."""
    return RawSignals(Encoder("tiny", {}, model.encoders["image"], processor.image_processor))


def collator(model: Any, processor: Any, source: Any = None, **options: Any) -> Collator:
    """A collator of images; padding is token 0."""
    entry = Placeholders(
        source or raw_images(model, processor),
        processor.image_token_id,
        token_table(model.connector("image"), model.encoders["image"]),
    )
    return Collator({"image": entry}, pad_id=0, **options)


def composed(
    llm: Path, encoder: Path | str, connector: str, seed: int = 0, **options: Any
) -> tuple[ModalignForConditionalGeneration, ModalignProcessor]:
    """Join saved parts; every connector parameter drawn anew, so that nothing is the identity."""
    torch.manual_seed(seed)
    side = {"image_size": SIDE, "patch_size": PATCH}
    model, processor = compose(
        load_language_model(str(llm)),
        load_image_encoder(str(encoder), layer=-1, **side),
        connector,
        options=options,
    )
    with torch.no_grad():
        for parameter in model.connectors.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return model.eval(), processor


def features(model: ModalignForConditionalGeneration, count: int, seed: int = 0) -> Features:
    """Random encoder features of ``count`` images."""
    encoder: Any = model.encoders["image"]
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, encoder.num_features, encoder.feature_size, generator=generator)
    mask = torch.ones(values.shape[:2], dtype=torch.bool)
    return Features(values, mask, encoder.grid)


def picture(seed: int, side: int = SIDE) -> Image.Image:
    """Noise."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8))


def png_bytes(seed: int, side: int = SIDE) -> bytes:
    """Noise as a PNG file."""
    buffer = io.BytesIO()
    picture(seed, side).save(buffer, "PNG")
    return buffer.getvalue()


def image(seed: int) -> Media:
    """A medium that holds its bytes."""
    return Media("image", data=png_bytes(seed))


def record(*turns: Sequence[str | Media] | str, row: int = 1, system: str | None = None) -> Record:
    """A conversation: user and assistant turns by turns, each a text or a list of parts."""
    messages = [Message("system", (system,))] if system is not None else []
    for number, turn in enumerate(turns):
        parts = (turn,) if isinstance(turn, str) else tuple(turn)
        messages.append(Message("assistant" if number % 2 else "user", parts))
    return Record(f"r{row}", tuple(messages), Source("data.jsonl", row))


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def largest_difference(first: Tensor, second: Tensor) -> float:
    """Largest absolute difference of two tensors of equal shape."""
    assert first.shape == second.shape
    return float((first - second).abs().max())


class NoProcess:
    """In place of the clean process that loads a merged model, where a test loads it itself."""

    def __enter__(self) -> NoProcess:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def check(self, folder: Path, like: object) -> int:
        """Say nothing."""
        return 0
