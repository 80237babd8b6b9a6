"""Training and inference FLOPs of a composed model, by formula (a multiply-add counts 2).

Forward: 2 x parameters x positions for every matrix of the language model, 4 T^2 D per layer for
attention scores and sums, the output projection only where it is needed. Backward: as much again for
gradients of activations, and as much again for gradients of weights where they train. A frozen
encoder whose features are cached is shared by all methods and not charged to any.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from modalign.connectors.base import Connector, InLayerConnector
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.parts import decoder_layers, hidden_size
from modalign.training.settings import EncoderMode, LLMMode


def _matrix_parameters(module: nn.Module) -> int:
    """Parameters that multiply every position: all but embeddings and vectors."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() > 1)


@dataclass(frozen=True)
class CostModel:
    """FLOPs of one model in one stage.

    Attributes:
        layer_parameters: matrix parameters of all decoder layers.
        layers: number of decoder layers.
        hidden: D.
        vocabulary: V.
        connector: FLOPs of the connector per medium.
        per_position: FLOPs an in-layer connector adds per text position.
        encoder: FLOPs of the encoder per medium.
    """

    layer_parameters: int
    layers: int
    hidden: int
    vocabulary: int
    connector: float
    per_position: float
    encoder: float

    @classmethod
    def of(cls, model: ModalignForConditionalGeneration, modality: str = "image") -> CostModel:
        """Read the sizes off a model."""
        layers = decoder_layers(model.language_model)
        connector: Connector = model.connector(modality)
        encoder = model.encoders[modality]
        num_features = int(encoder.num_features)  # type: ignore[arg-type]
        return cls(
            layer_parameters=_matrix_parameters(layers),
            layers=len(layers),
            hidden=hidden_size(model.language_model),
            vocabulary=model.get_input_embeddings().weight.shape[0],
            connector=connector.flops(num_features),
            per_position=connector.flops_per_position()
            if isinstance(connector, InLayerConnector)
            else 0.0,
            encoder=2.0 * _matrix_parameters(encoder) * num_features,
        )

    def forward(self, rows: int, length: int, kept: int, media: int, encode: bool = False) -> float:
        """Forward FLOPs of (rows, length) positions with ``kept`` output projections."""
        positions = rows * length
        llm = (
            2.0 * self.layer_parameters * positions
            + 4.0 * self.layers * rows * length**2 * self.hidden
        )
        llm += 2.0 * kept * self.hidden * self.vocabulary
        return (
            llm
            + self.per_position * positions
            + media * (self.connector + (self.encoder if encode else 0))
        )

    def training(
        self, rows: int, length: int, kept: int, media: int, llm: LLMMode, encoder: EncoderMode
    ) -> float:
        """FLOPs of a training step: forward and backward."""
        connector = media * self.connector + self.per_position * rows * length
        tower = media * self.encoder if encoder == "full" else 0.0
        language = self.forward(rows, length, kept, 0) - self.per_position * rows * length
        return 3 * connector + 3 * tower + (3 if llm == "full" else 2) * language
