"""What connectors share whose tokens are a code, that is, a short description that can be decoded.

    features (B, N, d) -> CodeEncoder -> code (B, M, c) -> embeddings (B, M, D)
                                              '-> Autoencoder (stage one) -> features (B, N, d)

Discrete codes choose one of K vectors by direction: inputs and vectors are compared on the unit
sphere (ViT-VQGAN, arXiv 2110.04627), which keeps the two from drifting apart.

The training forward pass keeps the code for objective terms, and ``take_code`` takes it once; nothing
is kept in evaluation.
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
CHUNK = 16384  # vectors compared at a time: a whole vocabulary in float32 would take gigabytes


@dataclass
class Code:
    """The output of a code encoder.

    Attributes:
        values: (B, M, c), to be decoded and embedded; gradients reach the encoder through them.
        mask: (B, M) bool, True where there is a code.
    """

    values: Tensor
    mask: Tensor


@dataclass
class DiscreteCode(Code):
    """A code with one of K vectors in each place.

    Attributes:
        inputs: (B, M, c) of length 1, before the choice.
        vectors: (B, M, c) of length 1, the chosen ones.
        ids: (B, M) the numbers of the chosen vectors.
    """

    inputs: Tensor
    vectors: Tensor
    ids: Tensor


@dataclass
class GaussianCode(Code):
    """A code with a normal distribution in each place.

    Attributes:
        mean: (B, M, c).
        log_variance: (B, M, c).
        free_bits: nats per value that are not penalised (arXiv 1606.04934).
    """

    mean: Tensor
    log_variance: Tensor
    free_bits: float = 0.0


# ---------------------------------------------------------------------- choosing vectors


@torch.no_grad()
def nearest(inputs: Tensor, vectors: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Return the number of the vector nearest in direction, the lowest among equals.

    It is computed in float32: in half precision many vectors of a large codebook would be equally near.

    Args:
        inputs: (..., c).
        vectors: (K, c).
        allowed: (K,) bool, the vectors to choose from; all by default.
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
    """Return ``chosen``; gradients flow to it and, unchanged, to ``inputs`` as well (arXiv 1308.3432)."""
    return chosen + (inputs - inputs.detach())


# ---------------------------------------------------------------------- how codes are used


def perplexity(counts: Tensor) -> float:
    """Return the exponential of the entropy of the codes' frequencies: (K,) counts -> 1 to K."""
    shares = counts.double() / counts.sum().clamp(min=1)
    return math.exp(-float(torch.special.xlogy(shares, shares).sum()))


def dead_rate(counts: Tensor) -> float:
    """Return the share of codes that were never used: (K,) counts -> 0 to 1."""
    return float((counts == 0).double().mean())


# ---------------------------------------------------------------------- encoders


class CodeEncoder(nn.Module):
    """Features -> code; stage one trains it. Subclasses end in the affine map ``out``."""

    feature_size: int
    out: nn.Linear

    @abstractmethod
    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Code:
        """Encode features (B, N, d) with mask (B, N) as a code of M places."""

    @abstractmethod
    def flops(self, num_features: int) -> float:
        """Return the FLOPs of one item, without those of choosing vectors."""

    def start(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> None:
        """Choose initial values from the features of some training media."""


class WindowEncoder(CodeEncoder):
    """Windows of neighbouring features -> affine, tanh, affine -> one code per window.

    On a grid, windows are squares; otherwise they are neighbours in order, and the last may be partly
    padding. Affine maps with a tanh between them also precede the codes of BEiT v2 (arXiv 2208.06366)
    and SEED.

    Args:
        feature_size: d.
        window: features per code; on a grid a square number whose root divides both sides.
        hidden: width after the first map.
        outputs: width after the second.
        grid: the encoder's, to check the window against.
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
        """Cut features (B, N, d), mask (B, N) into windows (B, M, window, d), mask (B, M, window)."""
        if grid is None:
            return windows(features, mask, self.window)
        side = square_side(self.window, self.name)
        folded, _ = space_to_depth(features, mask, grid, side, self.name)
        present, _ = space_to_depth(mask.unsqueeze(-1).float(), mask, grid, side, self.name)
        return folded.unflatten(-1, (self.window, -1)), present > 0

    def read(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """Map features (B, N, d), mask (B, N) to (B, M, outputs), mask (B, M)."""
        folded, present = self.fold(features, mask, grid)
        return self.out(self.enter(folded.flatten(2)).tanh()), present.any(-1)

    @torch.no_grad()
    def spread(
        self, found: tuple[Tensor, Tensor], mean: Tensor | float, std: Tensor | float
    ) -> None:
        """Set mean and standard deviation in every dimension of what :meth:`read` makes of a batch.

        A new network gives nearly the same output for all media, so that all would choose the same code.

        Args:
            found: the present output.
            mean: (outputs,), or one number.
            std: likewise.
        """
        places = found[0][found[1]]
        factor = std / places.std(0).clamp(min=1e-6)
        self.out.bias.copy_((self.out.bias - places.mean(0)) * factor + mean)
        self.out.weight.mul_(factor.unsqueeze(-1))

    def places(self, num_features: int) -> int:
        """Return M of an item with N features."""
        return -(-num_features // self.window)

    def flops(self, num_features: int) -> float:
        """Return the FLOPs of the two maps."""
        return map_flops(self.places(num_features), self.enter, self.out)


# ---------------------------------------------------------------------- the contract


class CodeConnector(PrefixConnector):
    """A prefix connector whose tokens are a code's embeddings; subclasses set ``encoder``."""

    encoder: CodeEncoder
    code_width: int  # c, of a code's values
    _code: Code | None = None

    @abstractmethod
    def embed(self, code: Code) -> Tensor:
        """Embed a code of M places: (B, M, D)."""

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """Features (B, N, d), mask (B, N) -> tokens (B, M, D), mask (B, M)."""
        code = self.encoder(features, mask, grid)
        self._code = code if self.training and torch.is_grad_enabled() else None
        return self.embed(code), code.mask

    def take_code(self) -> Code | None:
        """Return the last training forward pass's code, only once, since it keeps that pass's graph alive."""
        code, self._code = self._code, None
        return code

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a forward pass in progress, so that copies start without it."""
        return self.__dict__ | {"_code": None}

    def build_stage_one(
        self, features: Tensor, mask: Tensor, grid: Grid | None = None
    ) -> nn.Module:
        """Return the auto-encoder of stage one; training it trains this connector's own encoder.

        The module is imported by name, since a saved model carries whatever ``import`` statements name.

        Args:
            features: (B, N, d) of some training media, from which initial values are chosen.
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
        """Return the numbers of the vectors that may be chosen."""

    def num_tokens(self, num_features: int) -> int:
        """Return one token per window."""
        return self.encoder.places(num_features)

    @torch.no_grad()
    def codes(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Tensor:
        """Tokenise the signal: (B, N, d), (B, N) -> numbers (B, M), -1 where there is no code."""
        code = self.encoder(features, mask, grid)
        assert isinstance(code, DiscreteCode)
        return code.ids.masked_fill(~code.mask, -1)

    def diagnose(self, media: Iterable[tuple[Tensor, Tensor, Grid | None]]) -> dict[str, float]:
        """Measure the codes' perplexity, and the share of codes that no medium used."""
        found = torch.cat([self.codes(*batch).flatten().cpu() for batch in media])
        found, choices = found[found >= 0], self.choices.cpu()
        counts = torch.bincount(found, minlength=int(choices.max()) + 1)[choices]
        return {
            "code perplexity": perplexity(counts),
            "dead-code rate": dead_rate(counts),
            "codes": float(len(counts)),
            "places counted": float(len(found)),
        }
