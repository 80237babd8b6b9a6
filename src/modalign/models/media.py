"""The media side of a composed model: encoders and connectors, without the language model.

A gateway runs it in front of a language model elsewhere (``forward``: prompt embeddings), and it is the
tokenizer of a modality whose tokens are discrete codes (``code_ids``: token ids). Imports only torch,
transformers and its siblings: it is copied into exported folders.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from modalign.connectors.base import ConnectorError
from modalign.models.bridges import Bridges, Sizes, check_count, check_given, placed
from modalign.models.configuration import ModalignMediaConfig


class ModalignMedia(Bridges, PreTrainedModel):
    """Encoders and prefix connectors, with the language model's input embedding if it is kept.

    Attributes:
        embedding: (V, D), the output of the language model's own embedding for every id, including any
            factor; None: not kept.
    """

    config_class = ModalignMediaConfig
    config: ModalignMediaConfig
    base_model_prefix = ""
    main_input_name = "input_ids"

    def __init__(self, config: ModalignMediaConfig) -> None:
        """Build from configuration, without weights."""
        super().__init__(config)
        self.build_bridges(config.bridges or {}, Sizes(config.hidden_size))
        self.embedding: nn.Embedding | None = None
        if config.vocabulary:
            self.embedding = nn.Embedding(config.vocabulary, config.hidden_size)
            for connector in self.connectors.values():
                connector.attach_embeddings(self.embedding)  # type: ignore[operator]
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: all weights are loaded."""

    @torch.no_grad()
    def forward(self, input_ids: Tensor, **inputs: Any) -> Tensor:
        """Compute prompt embeddings, the language model's input instead of token ids.

        Args:
            input_ids: (B, T) with placeholders, from the processor.
            **inputs: the media's tensors under the composed model's names, or ``features`` (modality ->
                :class:`Features`) of already encoded media; others are ignored.

        Returns:
            (B, T, D).

        Raises:
            PlaceholderError: placeholders and media do not match in number.
            ConnectorError: the embedding was not kept.
        """
        if self.embedding is None:
            raise ConnectorError("this folder has no input embedding: it only gives code ids")
        embeds = self.embedding(input_ids)
        features = self.encoded(inputs.get("features"), **_tensors(inputs))
        for modality in self.connectors:
            places = self._places(modality, input_ids)
            if modality not in features:
                check_given(modality, places)
                continue
            tokens, mask = self.connect(modality, features[modality])
            embeds = placed(modality, embeds, places, tokens, mask)
        return embeds

    @torch.no_grad()
    def code_ids(self, input_ids: Tensor, **inputs: Any) -> Tensor:
        """Compute a plain language model's token ids: every placeholder becomes its code's id.

        Args:
            input_ids: (B, T) with placeholders, from the processor.
            **inputs: the media's tensors under the composed model's names; others are ignored.

        Returns:
            (B, T).

        Raises:
            PlaceholderError: placeholders and media do not match in number.
            ConnectorError: a modality's tokens are not codes.
        """
        ids = input_ids.clone()
        features = self.encoded(None, **_tensors(inputs))
        offsets = self.config.code_offsets or {}
        for modality, connector in self.connectors.items():
            places = self._places(modality, input_ids)
            if modality not in features:
                check_given(modality, places)
                continue
            if modality not in offsets:
                raise ConnectorError(f"the tokens of {modality} are not discrete codes")
            given = features[modality]
            weight = next(connector.parameters(), given.values)
            codes = connector.codes(  # type: ignore[operator]
                given.values.to(weight.dtype), given.mask, given.grid
            )
            chosen = codes[codes >= 0]
            check_count(modality, places, len(chosen), len(codes))
            ids[places] = chosen + offsets[modality]
        return ids

    def _places(self, modality: str, input_ids: Tensor) -> Tensor:
        return input_ids == self.config.bridges[modality]["token_id"]  # type: ignore[index]


def _tensors(inputs: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
