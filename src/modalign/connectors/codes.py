"""What connectors share whose tokens are a code: a short description that can be decoded again.

    features (B, N, d) -> CodeEncoder -> code (B, M, c) -> embeddings (B, M, D)
                                              '-> Autoencoder (stage one) -> features (B, N, d)

Discrete codes choose one of K vectors by direction: inputs and vectors are compared on the unit
sphere (ViT-VQGAN, arXiv 2110.04627), which keeps the two from running away from each other.

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

from modalign.connectors.base import Grid, Masked, PrefixConnector, map_flops
from modalign.connectors.converters.shared import (
    check_factor,
    require_positive,
    space_to_depth,
    square_side,
)
from modalign.connectors.layers import windows

AUTOENCODER = "modalign.connectors.autoencoder"
CHUNK = 16384  # vectors compared at a time: a vocabulary in float32 would take gigabytes


@dataclass
class Code:
    """What a code encoder gives.

    Attributes:
        values: (B, M, c), what is decoded and embedded; gradients reach the encoder through it.
        mask: (B, M) bool, where there is a place.
    """

    values: Tensor
    mask: Tensor


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


# ---------------------------------------------------------------------- encoders


class CodeEncoder(nn.Module):
    """Features -> code; what stage one trains. Subclasses end in the affine map ``out``."""

    feature_size: int
    out: nn.Linear

    @abstractmethod
    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Code:
        """Features (B, N, d), mask (B, N) -> code of M places."""

    @abstractmethod
    def flops(self, num_features: int) -> float:
        """FLOPs of one item, without those of choosing."""

    def start(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> None:
        """Choose initial values by the features of some training media."""


class WindowEncoder(CodeEncoder):
    """Windows of neighbouring features -> affine, tanh, affine: one code for each window.

    On a grid windows are squares, else neighbours in order; the last may be partly padding. Affine
    maps with a tanh between them stand before the codes of BEiT v2 (arXiv 2208.06366) and of SEED.

    Args:
        feature_size: d.
        window: features per code; on a grid a square number whose root divides both sides.
        hidden: width after the first map.
        outputs: width after the second.
        grid: the encoder's, for the check of the window.
        name: the connector, for error messages.
    """

    def __init__(
        self,
        feature_size: int,
        window: int,
        hidden: int,
        outputs: int,
        grid: Grid | None,
        name: str,
    ) -> None:
        super().__init__()
        require_positive(name, window=window)
        if grid is not None:
            check_factor(square_side(window, name), grid, name)
        self.feature_size, self.window, self.hidden = feature_size, window, hidden
        self.grid, self.name = grid, name
        self.enter = nn.Linear(window * feature_size, hidden)
        self.out = nn.Linear(hidden, outputs)

    def fold(self, features: Tensor, mask: Tensor, grid: Grid | None) -> Masked:
        """Features (B, N, d), mask (B, N) -> windows (B, M, window, d), mask (B, M, window)."""
        if grid is None:
            return windows(features, mask, self.window)
        side = square_side(self.window, self.name)
        folded, _ = space_to_depth(features, mask, grid, side, self.name)
        present, _ = space_to_depth(mask.unsqueeze(-1).float(), mask, grid, side, self.name)
        return folded.unflatten(-1, (self.window, -1)), present > 0

    def read(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """Features (B, N, d), mask (B, N) -> (B, M, outputs), mask (B, M)."""
        folded, present = self.fold(features, mask, grid)
        return self.out(self.enter(folded.flatten(2)).tanh()), present.any(-1)

    @torch.no_grad()
    def spread(
        self, found: tuple[Tensor, Tensor], mean: Tensor | float, std: Tensor | float
    ) -> None:
        """Give what :meth:`read` makes of a batch that mean and deviation in every dimension.

        A new network gives nearly the same for all media, so that all would choose one code.

        Args:
            found: what it makes of them now.
            mean: (outputs,), or one number.
            std: likewise.
        """
        places = found[0][found[1]]
        factor = std / places.std(0).clamp(min=1e-6)
        self.out.bias.copy_((self.out.bias - places.mean(0)) * factor + mean)
        self.out.weight.mul_(factor.unsqueeze(-1))

    def places(self, num_features: int) -> int:
        """M of an item with N features."""
        return -(-num_features // self.window)

    def flops(self, num_features: int) -> float:
        """The two maps."""
        return map_flops(self.places(num_features), self.enter, self.out)


# ---------------------------------------------------------------------- the contract


class CodeConnector(PrefixConnector):
    """A prefix connector whose tokens are a code's embeddings; subclasses set ``encoder``."""

    encoder: CodeEncoder
    code_width: int  # c, of a code's values
    _code: Code | None = None

    @abstractmethod
    def embed(self, code: Code) -> Tensor:
        """Code of M places -> embeddings (B, M, D)."""

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """Features (B, N, d), mask (B, N) -> tokens (B, M, D), mask (B, M)."""
        code = self.encoder(features, mask, grid)
        self._code = code if self.training and torch.is_grad_enabled() else None
        return self.embed(code), code.mask

    def take_code(self) -> Code | None:
        """The code of the last training forward, once: it holds on to that forward's graph."""
        code, self._code = self._code, None
        return code

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a forward pass under way: copies start without."""
        return self.__dict__ | {"_code": None}

    def build_stage_one(
        self, features: Tensor, mask: Tensor, grid: Grid | None = None
    ) -> nn.Module:
        """Return the auto-encoder of stage one; training it trains this connector's own encoder.

        Imported by name: what an ``import`` statement names would travel with a saved model.

        Args:
            features: (B, N, d) of some training media, by which initial values are chosen.
            mask: (B, N) bool.
            grid: of the features.
        """
        self.encoder.start(features, mask, grid)
        build = import_module(AUTOENCODER).autoencoder_of
        return build(self.encoder, self.code_width, self.widths.num_features)


class DiscreteConnector(CodeConnector):
    """A code connector that chooses one of K vectors for each window of features."""

    discrete = True
    encoder: WindowEncoder

    @property
    @abstractmethod
    def choices(self) -> Tensor:
        """Numbers of the vectors there are to choose from."""

    def num_tokens(self, num_features: int) -> int:
        """One for each window."""
        return self.encoder.places(num_features)

    @torch.no_grad()
    def codes(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Tensor:
        """The signal's tokenizer: (B, N, d), (B, N) -> numbers (B, M), -1 where nothing stands."""
        code = self.encoder(features, mask, grid)
        assert isinstance(code, DiscreteCode)
        return code.ids.masked_fill(~code.mask, -1)

    def diagnose(self, media: Iterable[tuple[Tensor, Tensor, Grid | None]]) -> dict[str, float]:
        """Perplexity of the codes, and the share of those there are that no medium used."""
        found = torch.cat([self.codes(*batch).flatten().cpu() for batch in media])
        found, choices = found[found >= 0], self.choices.cpu()
        counts = torch.bincount(found, minlength=int(choices.max()) + 1)[choices]
        return {
            "code perplexity": perplexity(counts),
            "dead-code rate": dead_rate(counts),
            "codes": float(len(counts)),
            "places counted": float(len(found)),
        }
