"""Training and inference FLOPs of a composed model, by formula (a multiply-add counts 2).

Forward: 2 x parameters x positions for every matrix of the language model, 4 T^2 times the heads'
joint width per layer for attention scores and sums, the output projection only where it is needed.
Backward: as much again for gradients of activations, and as much again for gradients of trained weights;
attention has two activations in every product, so it always costs twice its forward. With a frozen language
model nothing flows below the first layer that a connector enters. A frozen encoder whose features are cached
is shared by all methods and charged to none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from modalign.connectors.base import InLayerConnector
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.parts import decoder_layers, embedding, hidden_size
from modalign.training.settings import EncoderMode, LLMMode


def _matrix_parameters(module: nn.Module, only: str = "") -> int:
    """Count the parameters that multiply every position: all except embeddings and vectors."""
    return sum(
        parameter.numel()
        for name, parameter in module.named_parameters()
        if parameter.dim() > 1 and only in name
    )


def _attention_width(config: Any) -> int:
    """Return the width of all heads together; without a head size, the model's width."""
    head = getattr(config, "head_dim", None)
    return head * config.num_attention_heads if head else config.hidden_size


def _encoder_flops(encoder: nn.Module) -> float:
    N = int(encoder.num_features)  # type: ignore[arg-type]
    flops = 2.0 * _matrix_parameters(encoder) * N
    config = getattr(getattr(encoder, "tower", None), "config", None)
    layers, width = (getattr(config, key, None) for key in ("num_hidden_layers", "hidden_size"))
    return flops + (4.0 * layers * N**2 * width if layers and width else 0.0)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


@dataclass(frozen=True)
class CostModel:
    """FLOPs of one model in one stage.

    Attributes:
        layer_parameters: matrix parameters of all decoder layers, LoRA's included.
        lora_parameters: LoRA's alone.
        layers: number of decoder layers.
        first_layer: the lowest one that a connector enters.
        hidden: D.
        attention: width of all attention heads together.
        vocabulary: V.
        connector: FLOPs of the connector per medium.
        per_position: FLOPs an in-layer connector adds per text position.
        encoder: FLOPs of the encoder per medium.
    """

    layer_parameters: int
    lora_parameters: int
    layers: int
    first_layer: int
    hidden: int
    attention: int
    vocabulary: int
    connector: float
    per_position: float
    encoder: float

    @classmethod
    def of(cls, model: ModalignForConditionalGeneration) -> CostModel:
        """Read the sizes off a model; of several modalities, a medium costs their mean."""
        layers = decoder_layers(model.language_model)
        bridges = [(model.connector(name), model.encoders[name]) for name in model.connectors]
        in_layer = [c for c, _ in bridges if isinstance(c, InLayerConnector)]
        prefix = len(in_layer) < len(bridges)
        return cls(
            layer_parameters=_matrix_parameters(layers),
            lora_parameters=_matrix_parameters(layers, "lora_"),
            layers=len(layers),
            first_layer=0 if prefix or not in_layer else min(c.first_layer for c in in_layer),
            hidden=hidden_size(model.language_model),
            attention=_attention_width(model.language_model.config),
            vocabulary=embedding(model).num_embeddings,
            connector=_mean([c.flops(int(e.num_features)) for c, e in bridges]),  # type: ignore[arg-type]
            per_position=sum(connector.flops_per_position() for connector in in_layer),
            encoder=_mean([_encoder_flops(encoder) for _, encoder in bridges]),
        )

    def forward(self, rows: int, length: int, kept: int, media: int, encode: bool = False) -> float:
        """Forward FLOPs of (rows, length) positions with ``kept`` output projections."""
        return (
            2.0 * self.layer_parameters * rows * length
            + self._attention(rows, length)
            + self._head(kept)
            + self.per_position * rows * length
            + media * (self.connector + (self.encoder if encode else 0))
        )

    def training(
        self, rows: int, length: int, kept: int, media: int, llm: LLMMode, encoder: EncoderMode
    ) -> float:
        """FLOPs of a training step: forward and backward."""
        connector = media * self.connector + self.per_position * rows * length
        tower = media * self.encoder if encoder == "full" else 0.0
        maps = 2.0 * self.layer_parameters * rows * length
        attention, head = self._attention(rows, length), self._head(kept)
        if llm == "full":
            return 3 * (connector + tower + maps + attention + head)
        lora = 2.0 * self.lora_parameters * rows * length
        # The share of layers that gradients reach.
        reached = 1.0 if llm == "lora" else 1 - self.first_layer / self.layers
        language = maps + attention + reached * (maps + 2 * attention) + lora + 2 * head
        return 3 * (connector + tower) + language

    def _attention(self, rows: int, length: int) -> float:
        return 4.0 * self.layers * rows * length**2 * self.attention

    def _head(self, kept: int) -> float:
        return 2.0 * kept * self.hidden * self.vocabulary
