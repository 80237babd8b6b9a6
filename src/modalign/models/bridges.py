"""The path from media to a language model's input: encoders, connectors, placeholders.

Shared by the composed model and by the part of it that a gateway runs. Imports only torch,
transformers and its siblings: it is copied into exported models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from modalign.connectors.base import Connector, Grid, InLayerConnector, PrefixConnector, Widths
from modalign.connectors.frames import fitted
from modalign.connectors.registry import connector_class
from modalign.encoders.base import SignalEncoder
from modalign.encoders.registry import build_encoder


def signal_names(modality: str) -> tuple[str, str]:
    """Return the forward arguments of a modality's signals and mask; images have no mask."""
    if modality == "image":  # transformers' name
        return "pixel_values", ""
    return f"{modality}_values", f"{modality}_mask"


class PlaceholderError(ValueError):
    """Placeholders in the token ids do not match the media."""


@dataclass
class Features:
    """Encoder features of all media of a batch, in reading order.

    Attributes:
        values: (n, N, d).
        mask: (n, N) bool.
        grid: (h, w) shared by all, or None.
    """

    values: Tensor
    mask: Tensor
    grid: Grid | None = None


@dataclass(frozen=True)
class Sizes:
    """The language model's sizes that connectors need.

    Attributes:
        hidden_size: D.
        num_layers: decoder layers.
        num_heads: attention heads.
    """

    hidden_size: int
    num_layers: int = 0
    num_heads: int = 1


class Bridges:
    """An encoder and a connector per modality; a mixin of models.

    Attributes:
        encoders: by modality.
        connectors: by modality.
    """

    encoders: nn.ModuleDict
    connectors: nn.ModuleDict

    def build_bridges(
        self,
        bridges: dict[str, Any],
        sizes: Sizes,
        encoders: dict[str, SignalEncoder] | None = None,
    ) -> None:
        """Build both from their descriptions, or around loaded encoders."""
        self.encoders, self.connectors = nn.ModuleDict(), nn.ModuleDict()
        for modality, bridge in bridges.items():
            encoder = (encoders or {}).get(modality) or build_encoder(modality, bridge["encoder"])
            widths = Widths(
                feature_size=encoder.feature_size,
                hidden_size=sizes.hidden_size,
                num_features=encoder.num_features,
                grid=encoder.grid,
                num_layers=sizes.num_layers,
                num_heads=sizes.num_heads,
            )
            chosen = bridge["connector"]
            cls, widths = fitted(
                connector_class(chosen["name"]),
                widths,
                encoder.frames,
                encoder.frame_grid,
                encoder.each_frame,
            )
            self.encoders[modality] = encoder
            self.connectors[modality] = cls(widths, **chosen["options"])

    @property
    def signal_names(self) -> list[str]:
        """Return the forward arguments of the model's media."""
        return [name for modality in self.encoders for name in signal_names(modality) if name]

    def connector(self, modality: str) -> Connector:
        """Return the connector of a modality."""
        return self.connectors[modality]  # type: ignore[return-value]

    def encode(self, modality: str, values: Tensor, mask: Tensor | None = None) -> Features:
        """Run the encoder of a modality: signals (n, ...), mask (n, T) -> features (n, N, d)."""
        encoder = self.encoders[modality]
        features, found = encoder(values, mask)
        return Features(features, found, encoder.grid)  # type: ignore[arg-type]

    def encoded(
        self, features: dict[str, Features] | None, **signals: Tensor | None
    ) -> dict[str, Features]:
        """Return the features of all media; raw signals (by their forward names) are encoded."""
        encoded = {
            modality: self.encode(modality, signals[values], signals.get(mask))  # type: ignore[arg-type]
            for modality in self.encoders
            for values, mask in [signal_names(modality)]
            if signals.get(values) is not None
        }
        return {**(features or {}), **encoded}

    def connect(self, modality: str, features: Features) -> tuple[Tensor, Tensor]:
        """Features -> the connector's tokens (n, M, D) and their mask (n, M)."""
        connector = self.connector(modality)
        weight = next(connector.parameters(), features.values)
        values = features.values.to(weight.dtype)
        if isinstance(connector, InLayerConnector):
            return connector.encode(values, features.mask, features.grid)
        assert isinstance(connector, PrefixConnector)
        return connector(values, features.mask, features.grid)


def check_given(modality: str, places: Tensor) -> None:
    """Refuse placeholders (B, T) of a modality without media.

    Raises:
        PlaceholderError: there are some.
    """
    if places.any():
        raise PlaceholderError(
            f"{int(places.sum())} {modality} placeholders, but no {modality} was given"
        )


def check_count(modality: str, places: Tensor, given: int, media: int) -> None:
    """Check that there are as many placeholders (B, T) as tokens.

    Raises:
        PlaceholderError: the numbers differ.
    """
    if int(places.sum()) != given:
        raise PlaceholderError(
            f"{int(places.sum())} {modality} placeholders, but the connector gave {given} tokens "
            f"for {media} {modality}s; the processor and the model disagree"
        )


def placed(modality: str, embeds: Tensor, places: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Put a prefix connector's tokens (n, M, D) into embeddings (B, T, D) at ``places`` (B, T).

    Raises:
        PlaceholderError: tokens and places differ in number.
    """
    chosen = tokens[mask]
    check_count(modality, places, len(chosen), len(tokens))
    return embeds.masked_scatter(places[..., None], chosen.to(embeds.dtype))
