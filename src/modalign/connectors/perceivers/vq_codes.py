"""VQ codes: the signal becomes M new vocabulary ids, whose embeddings are learnt.

    features (B, N, d) -> resampler core -> affine to c, on the unit sphere
    -> number of the nearest of K codebook vectors (B, M) -> its embedding row -> tokens (B, M, D)

Sources: VQ-VAE (arXiv 1711.00937) for codebook, commitment and straight-through; SEED (arXiv
2307.08041) for a query perceiver as the tokenizer of a language model; ViT-VQGAN (arXiv 2110.04627)
for codes of few dimensions compared by direction, which keeps more of them in use.

The row of code k is ``P e_k + r_k``: the map P of its codebook vector and a correction of its own,
zero at the start. So the rows of like codes start alike, each is free to leave, and the LLM's
gradient reaches the encoder straight through P. Once trained the rows are (K, D) constants: the
model is a plain causal LM with K more ids (``vocabulary_rows``) and a tokenizer for the signal
(``codes``).

Parameters, with w = width, f = FFN width:
M w + layers * (2 (w^2 + d w) + 3 w + w + 2 w f + f + w + 4 w + 2 d) + 2 w + (w c + c)
+ K c + (c D + D) + K D

Published size: SEED's 8192 codes of 32 dimensions, M = 32, 12 layers of 768. Stage one rebuilds
the features from the code (reconstruction + codebook + 0.25 commitment); before its first step
the codebook is drawn from what the encoder makes of some training media. Codebook and commitment
stay on in the stage through the language model. The codebook learns from its own term alone.

Deliberate changes: SEED's queries are causal, start from BLIP-2's and are trained on image-text
pairs; here they do not read each other, start at random and need no text. The tokenizer is not
frozen while the language model reads its codes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from modalign.connectors.base import Variant, Widths, affine_parameters, linear_flops
from modalign.connectors.codes import (
    Code,
    CodeEncoder,
    CoreSize,
    DiscreteCode,
    DiscreteConnector,
    nearest,
    straight_through,
)
from modalign.connectors.layers import learnt

COMMITMENT = 0.25  # van den Oord et al.'s and SEED's
LARGEST = 8192  # codes
PUBLISHED = {"num_tokens": 32, "width": 768, "layers": 12, "heads": 12, "ffn": 3072}


class VectorQuantiser(CodeEncoder):
    """Features -> the nearest of K codebook vectors in each of M places."""

    def __init__(self, feature_size: int, code_width: int, num_codes: int, size: CoreSize) -> None:
        super().__init__(feature_size, code_width, size)
        self.codebook = learnt(num_codes, code_width)

    def forward(self, features: Tensor, mask: Tensor) -> DiscreteCode:
        """Features (B, N, d), mask (B, N) -> code; values are unit vectors (B, M, c)."""
        inputs = functional.normalize(self.read(features, mask).float(), dim=-1)
        ids = nearest(inputs, self.codebook)
        vectors = functional.normalize(functional.embedding(ids, self.codebook).float(), dim=-1)
        values = straight_through(inputs, vectors.detach())
        return DiscreteCode(values, inputs, vectors, ids)

    @torch.no_grad()
    def start(self, features: Tensor, mask: Tensor) -> None:
        """Spread the inputs over the sphere and draw the codebook from them."""
        self.spread(features, mask, 0.0, 1.0)
        found = functional.normalize(self.read(features, mask).flatten(0, 1), dim=-1)
        K = len(self.codebook)
        drawn = torch.randperm(len(found)).repeat(-(-K // len(found)))[:K].to(found.device)
        apart = 0.01 * torch.randn(self.codebook.shape).to(found)  # what was drawn twice
        self.codebook.copy_(found[drawn] + apart)


def _parameters(
    widths: Widths, *, num_codes: int = LARGEST, code_width: int = 32, **core: int
) -> int:
    size = CoreSize(**{**PUBLISHED, **core})
    encoder = CodeEncoder.parameters_for(widths.feature_size, code_width, size)
    rows = affine_parameters(code_width, widths.hidden_size) + num_codes * widths.hidden_size
    return encoder + num_codes * code_width + rows


class VqCodes(DiscreteConnector):
    """A learnt codebook; its codes are new ids of the language model."""

    name = "vq_codes"
    family = "perceiver"
    group = "VAE-style / discrete codes"
    token_formula = "M"
    parameter_text = "resampler core + wc + K(c + D) + cD"
    papers = (
        "VQ-VAE (arXiv 1711.00937)",
        "SEED (arXiv 2307.08041)",
        "ViT-VQGAN (arXiv 2110.04627)",
    )
    rate_scale = 0.3

    def __init__(
        self,
        widths: Widths,
        *,
        num_tokens: int = 32,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        ffn: int = 3072,
        num_codes: int = LARGEST,
        code_width: int = 32,
    ) -> None:
        super().__init__(widths)
        size = CoreSize(num_tokens, width, layers, heads, ffn)
        self.code_width = code_width
        self.encoder: VectorQuantiser = VectorQuantiser(
            widths.feature_size, code_width, num_codes, size
        )
        self.project = nn.Linear(code_width, widths.hidden_size)
        self.corrections = nn.Parameter(torch.zeros(num_codes, widths.hidden_size))

    @classmethod
    def options_for(cls, variant: Variant, widths: Widths) -> dict[str, Any]:
        """Published: SEED's. Matched: 2 layers of the LLM's width, codes about four times that."""
        if variant == "published":
            return {**PUBLISHED, "num_codes": LARGEST, "code_width": 32}
        codes = min(LARGEST, 2 ** (4 * widths.hidden_size - 1).bit_length())
        return {
            **CoreSize.matched(widths),
            "num_codes": codes,
            "code_width": min(32, widths.hidden_size),
        }

    @classmethod
    def parameter_count(cls, widths: Widths, **options: Any) -> int:
        """The sum of the module docstring."""
        return _parameters(widths, **options)

    @classmethod
    def stage_one_terms(cls, **options: Any) -> dict[str, float]:
        """VQ-VAE's three."""
        return {"reconstruction": 1.0, **cls.model_terms()}

    @classmethod
    def model_terms(cls, **options: Any) -> dict[str, float]:
        """Codebook and commitment go on while the language model reads the codes."""
        return {"codebook": 1.0, "commitment": COMMITMENT}

    @property
    def choices(self) -> Tensor:
        """0 to K - 1."""
        return torch.arange(len(self.encoder.codebook))

    def flops(self, num_features: int) -> float:
        """Encoder, likenesses to all codes, map to D."""
        M, c = self.encoder.size.num_tokens, self.code_width
        likenesses = linear_flops(M, c, len(self.encoder.codebook))
        return (
            self.encoder.flops(num_features)
            + likenesses
            + linear_flops(M, c, self.widths.hidden_size)
        )

    def embed(self, code: Code) -> Tensor:
        """The codes' rows (B, M, D)."""
        assert isinstance(code, DiscreteCode)
        mapped = self.project(code.values.to(self.project.weight.dtype))
        return mapped + functional.embedding(code.ids, self.corrections)

    @torch.no_grad()
    def vocabulary_rows(self) -> Tensor:
        """(K, D), what stands in the sequence for each code: rows of the embedding of a plain LM.

        A head that is tied to the embedding, or given rows for them, scores these ids too: whoever
        writes that model must suppress them in generation and leave them out of likelihoods.
        """
        vectors = functional.normalize(self.encoder.codebook.float(), dim=-1)
        return self.project(vectors.to(self.project.weight.dtype)) + self.corrections
