"""Stage one of connectors with a code: rebuild the encoder's features from it, without the LLM.

    features (B, N, d) -> code (B, M, c) -> N learnt queries read it -> features (B, N, d)

What is rebuilt are the features, layer-normed each (no affine): large dimensions of a tower would
otherwise be all that counts, and an error of 1 is that of always answering zero. The decoder is a
resampler core of two layers whose latents are one query per place of the signal. A model that is
saved does not carry this file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional

from modalign.connectors.base import ConnectorError, linear_flops, zero_masked
from modalign.connectors.codes import Code, CodeEncoder
from modalign.connectors.perceivers.resampler import ResamplerCore

DECODER_LAYERS = 2


@dataclass
class Reconstruction:
    """What the terms of stage one read.

    Attributes:
        codes: of all media, one entry per connector: here one.
        rebuilt: (B, N, d).
        target: (B, N, d) layer-normed features.
        mask: (B, N) bool, where there is a feature.
    """

    codes: list[Code]
    rebuilt: Tensor
    target: Tensor
    mask: Tensor


class Autoencoder(nn.Module):
    """A connector's code encoder, by reference, and a decoder of its own.

    Args:
        encoder: trained here; what turns its code into the LLM's embeddings is not held.
        code_width: c.
        num_features: N, the most features of an item.
    """

    def __init__(self, encoder: CodeEncoder, code_width: int, num_features: int) -> None:
        super().__init__()
        self.encoder, self.code_width = encoder, code_width
        self.size = replace(encoder.size, num_tokens=num_features, layers=DECODER_LAYERS)
        self.decoder = ResamplerCore(code_width, **self.size.options)
        self.out = nn.Linear(self.size.width, encoder.feature_size)

    def forward(self, features: Tensor, mask: Tensor) -> Reconstruction:
        """Features (B, N, d), mask (B, N) -> their code and what was rebuilt from it."""
        N, d = features.shape[1:]
        if self.size.num_tokens < N:
            raise ConnectorError(
                f"stage one was built for {self.size.num_tokens} features per item, not {N}"
            )
        code = self.encoder(features, mask)
        values = code.values.to(self.out.weight.dtype)
        rebuilt = self.out(self.decoder(values, mask.new_ones(values.shape[:2]))[:, :N])
        target = functional.layer_norm(zero_masked(features, mask).float(), (d,))
        return Reconstruction([code], rebuilt, target, mask)

    def flops(self, num_features: int) -> float:
        """FLOPs of one forward pass over one item."""
        places, width = self.size.num_tokens, self.size.width
        read = ResamplerCore.flops_for(
            self.code_width, num_features=self.encoder.size.num_tokens, **self.size.options
        )
        out = linear_flops(places, width, self.encoder.feature_size)
        return self.encoder.flops(num_features) + read + out
