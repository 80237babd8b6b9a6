"""VQ codes: windows of the signal become new vocabulary ids, whose embeddings are learnt.

    features (B, N, d) -> windows of neighbours (B, M, W d) -> affine, tanh, affine to c
    -> number of the nearest of K codebook vectors (B, M) -> its embedding row -> tokens (B, M, D)

Sources: VQ-VAE (arXiv 1711.00937) for codebook, commitment and straight-through; BEiT v2 (arXiv
2208.06366) for codes of a frozen encoder's features, of few dimensions and compared by direction
(ViT-VQGAN, arXiv 2110.04627); SEED (arXiv 2307.08041) for such codes as words of a language model.

The row of code k is ``P e_k + r_k``: its codebook vector mapped by P, plus its own correction, which
starts at zero. So similar codes start with similar rows, each row is free to depart, and the LLM's
gradient reaches the encoder straight through P. Once trained, the rows are (K, D) constants: the
model is a plain causal LM with K more ids (``vocabulary_rows``) and a tokenizer for the signal
(``codes``).

Parameters, with W = features per window, h = hidden width:
(W d h + h) + (h c + c) + K c + (c D + D) + K D

Published size: BEiT v2's and SEED's 8192 codes of 32 dimensions, one for each feature. Stage one
rebuilds the features from the codes (reconstruction + codebook + 0.25 commitment); before its first
step the codebook is drawn from the encoder's output for some training media. The codebook and
commitment terms stay in the stage through the language model; the codebook learns only from its own.

Deliberate changes: SEED's codes come from 32 causal queries trained on image-text pairs; here each
code is that of one window and needs no text. BEiT v2 moves its codebook by running means; here it is
trained. Windows (in the matched size, about N/4 codes) cost as many tokens as other methods. The
tokenizer is not frozen while the language model reads its codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from modalign.connectors.base import Grid, Options, Widths, linear_flops, map_flops
from modalign.connectors.codes import (
    Code,
    DiscreteCode,
    DiscreteConnector,
    WindowEncoder,
    nearest,
    straight_through,
)
from modalign.connectors.converters.shared import matched_factor
from modalign.connectors.layers import learnt

COMMITMENT = 0.25  # van den Oord et al.'s and SEED's


@dataclass(frozen=True)
class VqCodesOptions(Options):
    """Options of ``vq_codes``.

    Attributes:
        window: W, features per code; on a grid a square number.
        hidden: h.
        num_codes: K.
        code_width: c.
    """

    window: int = 1
    hidden: int = 768
    num_codes: int = 8192
    code_width: int = 32

    @classmethod
    def published(cls, widths: Widths) -> Self:
        """Return 8192 codes, one per feature."""
        return cls(hidden=widths.feature_size)

    @classmethod
    def matched(cls, widths: Widths) -> Self:
        """Return a codebook of about 4 D codes, about N/4 of them per item."""
        D = widths.hidden_size
        codes = min(cls().num_codes, 2 ** (4 * D - 1).bit_length())
        return cls(matched_factor(widths) ** 2, D, codes, min(cls().code_width, D))


class VectorQuantiser(WindowEncoder):
    """Windows -> the nearest of K codebook vectors."""

    def __init__(self, widths: Widths, options: VqCodesOptions) -> None:
        sizes = (options.window, options.hidden, options.code_width)
        super().__init__(widths.feature_size, *sizes, widths.grid, VqCodes.name)
        self.codebook = learnt(options.num_codes, options.code_width)

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> DiscreteCode:
        """Encode features (B, N, d), mask (B, N); values are unit vectors (B, M, c)."""
        found, present = self.read(features, mask, grid)
        inputs = functional.normalize(found.float(), dim=-1)
        ids = nearest(inputs, self.codebook)
        vectors = functional.normalize(functional.embedding(ids, self.codebook).float(), dim=-1)
        values = straight_through(inputs, vectors.detach())
        return DiscreteCode(values, present, inputs, vectors, ids)

    @torch.no_grad()
    def start(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> None:
        """Spread the inputs over the sphere and draw the codebook from them."""
        self.spread(self.read(features, mask, grid), 0.0, 1.0)
        found, present = self.read(features, mask, grid)
        inputs = functional.normalize(found[present], dim=-1)
        K = len(self.codebook)
        drawn = torch.randperm(len(inputs)).repeat(-(-K // len(inputs)))[:K].to(inputs.device)
        apart = 0.01 * torch.randn(self.codebook.shape).to(inputs)  # separates what was drawn twice
        self.codebook.copy_(inputs[drawn] + apart)


class VqCodes(DiscreteConnector):
    """A learnt codebook; its codes are new ids of the language model."""

    name = "vq_codes"
    family = "perceiver"
    group = "VAE-style / discrete codes"
    token_formula = "N/W"
    parameter_text = "Wdh + hc + K(c + D) + cD"
    papers = ("VQ-VAE (arXiv 1711.00937)", "BEiT v2 (arXiv 2208.06366)", "SEED (arXiv 2307.08041)")
    options_type = VqCodesOptions
    options: VqCodesOptions

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        self.code_width = self.options.code_width
        self.encoder: VectorQuantiser = VectorQuantiser(widths, self.options)
        self.project = nn.Linear(self.code_width, widths.hidden_size)
        self.corrections = nn.Parameter(torch.zeros(self.options.num_codes, widths.hidden_size))

    @classmethod
    def stage_one_terms(cls, **options: Any) -> dict[str, float]:
        """Return VQ-VAE's three terms."""
        return {"reconstruction": 1.0, **cls.model_terms()}

    @classmethod
    def model_terms(cls, **options: Any) -> dict[str, float]:
        """Return codebook and commitment, which stay while the language model reads the codes."""
        return {"codebook": 1.0, "commitment": COMMITMENT}

    @property
    def choices(self) -> Tensor:
        """Return 0 to K - 1."""
        return torch.arange(len(self.encoder.codebook))

    def flops(self, num_features: int) -> float:
        """Return the FLOPs of the encoder, of similarities to all codes and of the map to D."""
        M, c = self.num_tokens(num_features), self.code_width
        likenesses = linear_flops(M, c, len(self.encoder.codebook))
        return self.encoder.flops(num_features) + likenesses + map_flops(M, self.project)

    def embed(self, code: Code) -> Tensor:
        """Return the codes' rows (B, M, D)."""
        assert isinstance(code, DiscreteCode)
        mapped = self.project(code.values.to(self.project.weight.dtype))
        return mapped + functional.embedding(code.ids, self.corrections)

    @torch.no_grad()
    def vocabulary_rows(self) -> Tensor:
        """Return (K, D), the embedding that each code has in the sequence, as in a plain LM.

        An embedding that scales its rows (Gemma's) must hold them divided by that factor. A head
        that is tied to the embedding, or given rows for them, scores these ids too: whoever writes
        that model must suppress them in generation and leave them out of likelihoods.
        """
        vectors = functional.normalize(self.encoder.codebook.float(), dim=-1)
        return self.project(vectors.to(self.project.weight.dtype)) + self.corrections
