"""Stage one of connectors with a code: rebuild the encoder's features from it, without the LLM.

    features (B, N, d) -> code (B, M, c) -> decoder -> features (B, N, d)

The features to rebuild are layer-normed, each on its own (no affine): otherwise only a tower's large
dimensions would count. An error of 1 is that of always answering zero. A window's features are rebuilt
from its code by affine maps with a tanh between them; features read by queries are rebuilt by a
resampler core with one query per place of the signal. A saved model does not carry this file.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional

from modalign.connectors.base import ConnectorError, Grid, map_flops, zero_masked
from modalign.connectors.codes import Code, CodeEncoder, WindowEncoder
from modalign.connectors.perceivers.resampler import ResamplerCore
from modalign.connectors.perceivers.variational import GaussianEncoder

DECODER_LAYERS = 2


@dataclass
class Reconstruction:
    """What the objective terms of stage one read (R places to rebuild).

    Attributes:
        codes: of all media, one entry per connector, so here one.
        rebuilt: (B, R, d).
        target: (B, R, d) layer-normed features.
        mask: (B, R) bool, True where there is a feature.
    """

    codes: list[Code]
    rebuilt: Tensor
    target: Tensor
    mask: Tensor


class Autoencoder(nn.Module):
    """A connector's code encoder, by reference, with a decoder.

    The map from the code to the LLM's embeddings does not belong to it.
    """

    def __init__(self, encoder: CodeEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    @abstractmethod
    def decode(
        self, code: Code, target: Tensor, mask: Tensor, grid: Grid | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return rebuilt features, target and mask, in the order in which the decoder rebuilds."""

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Reconstruction:
        """Encode features (B, N, d) with mask (B, N), and rebuild them from the code."""
        code = self.encoder(features, mask, grid)
        target = functional.layer_norm(zero_masked(features, mask).float(), features.shape[-1:])
        return Reconstruction([code], *self.decode(code, target, mask, grid))

    @abstractmethod
    def flops(self, num_features: int) -> float:
        """Return the FLOPs of one item, forward only, without those of choosing vectors."""


class WindowAutoencoder(Autoencoder):
    """Each window's features from its own code."""

    encoder: WindowEncoder

    def __init__(self, encoder: WindowEncoder, code_width: int) -> None:
        super().__init__(encoder)
        self.enter = nn.Linear(code_width, encoder.hidden)
        self.out = nn.Linear(encoder.hidden, encoder.enter.in_features)

    def decode(
        self, code: Code, target: Tensor, mask: Tensor, grid: Grid | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode windows side by side: R = M * window."""
        folded, present = self.encoder.fold(target, mask, grid)
        rebuilt = self.out(self.enter(code.values.to(self.enter.weight.dtype)).tanh())
        return rebuilt.view_as(folded).flatten(1, 2), folded.flatten(1, 2), present.flatten(1)

    def flops(self, num_features: int) -> float:
        """Return the FLOPs of the encoder and of the two maps back."""
        back = map_flops(self.encoder.places(num_features), self.enter, self.out)
        return self.encoder.flops(num_features) + back


class QueryAutoencoder(Autoencoder):
    """All features from the whole code, by N learnt queries (B, N, width) that read it."""

    encoder: GaussianEncoder

    def __init__(self, encoder: GaussianEncoder, code_width: int, num_features: int) -> None:
        super().__init__(encoder)
        core = replace(encoder.core.options, num_tokens=num_features, layers=DECODER_LAYERS)
        self.decoder = ResamplerCore(code_width, core)
        self.out = nn.Linear(core.width, encoder.feature_size)

    def decode(
        self, code: Code, target: Tensor, mask: Tensor, grid: Grid | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode in the features' own order: R = N."""
        N, most = mask.shape[1], self.decoder.options.num_tokens
        if most < N:
            raise ConnectorError(f"stage one was built for {most} features per item, not {N}")
        values = code.values.to(self.out.weight.dtype)
        return self.out(self.decoder(values, code.mask)[:, :N]), target, mask

    def flops(self, num_features: int) -> float:
        """Return the FLOPs of the encoder, of reading the code and of the map back."""
        read = self.decoder.flops(self.encoder.options.num_tokens)
        back = map_flops(self.decoder.options.num_tokens, self.out)
        return self.encoder.flops(num_features) + read + back


def autoencoder_of(encoder: CodeEncoder, code_width: int, num_features: int) -> Autoencoder:
    """Build the auto-encoder around a connector's encoder.

    Args:
        encoder: the one that it trains.
        code_width: c.
        num_features: N, the most features of an item.
    """
    if isinstance(encoder, WindowEncoder):
        return WindowAutoencoder(encoder, code_width)
    if isinstance(encoder, GaussianEncoder):
        return QueryAutoencoder(encoder, code_width, num_features)
    raise ConnectorError(f"there is no stage-one decoder for {type(encoder).__name__}")
