"""What connectors share whose tokens are a code: a short description that can be decoded again.

    features (B, N, d) -> CodeEncoder -> code (B, M, c) -> embeddings (B, M, D)
                                              '-> Autoencoder (stage one) -> features (B, N, d)

The encoder is a resampler core with an affine map behind it. Discrete codes choose one of K vectors
by direction: input and vectors are compared on the unit sphere (ViT-VQGAN, arXiv 2110.04627), which
keeps the two from running away from each other.

What objective terms read of a code is kept by the training forward pass and taken once by
``take_code``; nothing is kept in evaluation.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from modalign.connectors.base import (
    Grid,
    PrefixConnector,
    Widths,
    affine_parameters,
    full_mask,
    linear_flops,
    quarter_tokens,
)
from modalign.connectors.layers import heads_of
from modalign.connectors.perceivers.resampler import ResamplerCore

AUTOENCODER = "modalign.connectors.autoencoder"
CHUNK = 16384  # vectors compared at a time: a vocabulary in float32 would take gigabytes


@dataclass
class Code:
    """What a code encoder gives.

    Attributes:
        values: (B, M, c), what is decoded and embedded; gradients reach the encoder through it.
    """

    values: Tensor


@dataclass
class DiscreteCode(Code):
    """One of K vectors in each place.

    Attributes:
        inputs: (B, M, c) of length 1, before the choice.
        vectors: (B, M, c) of length 1, the chosen ones.
        ids: (B, M) their numbers.
    """

    inputs: Tensor
    vectors: Tensor
    ids: Tensor


@dataclass
class GaussianCode(Code):
    """A normal distribution in each place.

    Attributes:
        mean: (B, M, c).
        log_variance: (B, M, c).
        free_bits: nats per value that cost nothing (arXiv 1606.04934).
    """

    mean: Tensor
    log_variance: Tensor
    free_bits: float = 0.0


# ---------------------------------------------------------------------- choosing vectors


@torch.no_grad()
def nearest(inputs: Tensor, vectors: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Number of the vector whose direction is nearest, the lowest among equals.

    Always in float32: in half precision many vectors of a large codebook are equally near.

    Args:
        inputs: (..., c).
        vectors: (K, c).
        allowed: (K,) bool, those to choose from; all by default.
    """
    with torch.autocast(inputs.device.type, enabled=False):
        wanted = inputs.float()
        best = wanted.new_full(inputs.shape[:-1], -math.inf)
        ids = torch.zeros(inputs.shape[:-1], dtype=torch.long, device=inputs.device)
        for start in range(0, len(vectors), CHUNK):
            part = functional.normalize(vectors[start : start + CHUNK].float(), dim=-1)
            likeness = wanted @ part.T
            if allowed is not None:
                likeness = likeness.masked_fill(~allowed[start : start + CHUNK], -math.inf)
            highest, place = likeness.max(-1)
            ids = torch.where(highest > best, place + start, ids)
            best = torch.maximum(highest, best)
    return ids


def straight_through(inputs: Tensor, chosen: Tensor) -> Tensor:
    """``chosen``, with its own gradient and, unchanged, to ``inputs`` (arXiv 1308.3432)."""
    return chosen + (inputs - inputs.detach())


# ---------------------------------------------------------------------- how codes are used


def perplexity(counts: Tensor) -> float:
    """Exponential of the entropy of how often each code is used: (K,) counts -> 1 to K."""
    shares = counts.double() / counts.sum().clamp(min=1)
    return math.exp(-float(torch.special.xlogy(shares, shares).sum()))


def dead_rate(counts: Tensor) -> float:
    """Share of the codes that were never used: (K,) counts -> 0 to 1."""
    return float((counts == 0).double().mean())


# ---------------------------------------------------------------------- the network and the contract


@dataclass(frozen=True)
class CoreSize:
    """Size of the resampler core that reads the features: M latents, layers, heads, FFN width."""

    num_tokens: int
    width: int
    layers: int
    heads: int
    ffn: int

    @property
    def options(self) -> dict[str, Any]:
        """Of :class:`ResamplerCore`, in the form whose latents read the features alone."""
        return {**vars(self), "head_size": self.width // self.heads, "style": "cross"}

    @classmethod
    def matched(cls, widths: Widths) -> dict[str, int]:
        """Options of the size matched to the LLM: two layers of its width, about N/4 tokens."""
        width = min(widths.hidden_size, 1024)
        return vars(cls(quarter_tokens(widths), width, 2, heads_of(width), 4 * width))


class CodeEncoder(nn.Module):
    """Features -> code: a resampler core, then an affine map to ``outputs``."""

    def __init__(self, feature_size: int, outputs: int, size: CoreSize) -> None:
        super().__init__()
        self.feature_size, self.size = feature_size, size
        self.core = ResamplerCore(feature_size, **size.options)
        self.out = nn.Linear(size.width, outputs)

    @abstractmethod
    def forward(self, features: Tensor, mask: Tensor) -> Code:
        """Features (B, N, d), mask (B, N) -> code of M places, whatever N is."""

    def start(self, features: Tensor, mask: Tensor) -> None:
        """Choose initial values by the features of some training media."""

    def read(self, features: Tensor, mask: Tensor) -> Tensor:
        """Features (B, N, d), mask (B, N) -> (B, M, outputs)."""
        return self.out(self.core(features, mask))

    @torch.no_grad()
    def spread(
        self, features: Tensor, mask: Tensor, mean: Tensor | float, std: Tensor | float
    ) -> None:
        """Give what :meth:`read` makes of a batch that mean and deviation in every dimension.

        A new network gives nearly the same for all media, so all of them would choose one code.
        """
        found = self.read(features, mask).flatten(0, 1)
        factor = std / found.std(0).clamp(min=1e-6)
        self.out.bias.copy_((self.out.bias - found.mean(0)) * factor + mean)
        self.out.weight.mul_(factor.unsqueeze(-1))

    def flops(self, num_features: int) -> float:
        """FLOPs of :meth:`read` on one item."""
        core = ResamplerCore.flops_for(
            self.feature_size, num_features=num_features, **self.size.options
        )
        return core + linear_flops(self.size.num_tokens, self.size.width, self.out.out_features)

    @staticmethod
    def parameters_for(feature_size: int, outputs: int, size: CoreSize) -> int:
        """Number of parameters of core and map."""
        core = ResamplerCore.parameters_for(feature_size, **size.options)
        return core + affine_parameters(size.width, outputs)


class CodeConnector(PrefixConnector):
    """A prefix connector whose tokens are a code's embeddings; subclasses set ``encoder``."""

    encoder: CodeEncoder
    code_width: int  # c, of a code's values
    _code: Code | None = None

    @abstractmethod
    def embed(self, code: Code) -> Tensor:
        """Code of M places -> embeddings (B, M, D)."""

    def num_tokens(self, num_features: int) -> int:
        """M, whatever N is."""
        return self.encoder.size.num_tokens

    def forward(
        self, features: Tensor, mask: Tensor, grid: Grid | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, N, d), (B, N) -> (B, M, D), (B, M); the grid does not matter."""
        code = self.encoder(features, mask)
        self._code = code if self.training and torch.is_grad_enabled() else None
        tokens = self.embed(code)
        return tokens, full_mask(tokens)

    def take_code(self) -> Code | None:
        """The code of the last training forward, once: it holds on to that forward's graph."""
        code, self._code = self._code, None
        return code

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a forward pass under way: copies start without."""
        return self.__dict__ | {"_code": None}

    def build_stage_one(self, features: Tensor, mask: Tensor) -> nn.Module:
        """Return the auto-encoder of stage one; training it trains this connector's own encoder.

        Imported by name: what an ``import`` statement names would travel with a saved model.

        Args:
            features: (B, N, d) of some training media, by which initial values are chosen.
            mask: (B, N) bool.
        """
        self.encoder.start(features, mask)
        build = import_module(AUTOENCODER).Autoencoder
        return build(self.encoder, self.code_width, self.widths.num_features)


class DiscreteConnector(CodeConnector):
    """A code connector that chooses one of K vectors in each of its places."""

    @property
    @abstractmethod
    def choices(self) -> Tensor:
        """Numbers of the vectors there are to choose from."""

    @torch.no_grad()
    def codes(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Tensor:
        """The tokenizer of the signal: (B, N, d), (B, N) -> numbers (B, M), 0 to K - 1."""
        code = self.encoder(features, mask)
        assert isinstance(code, DiscreteCode)
        return code.ids

    def diagnose(self, media: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Perplexity of the codes, and the share of those there are that no medium used."""
        found = torch.cat([self.codes(*batch).flatten().cpu() for batch in media])
        choices = self.choices.cpu()
        counts = torch.bincount(found, minlength=int(choices.max()) + 1)[choices]
        return {
            "code perplexity": perplexity(counts),
            "dead-code rate": dead_rate(counts),
            "codes": float(len(counts)),
            "places counted": float(len(found)),
        }
