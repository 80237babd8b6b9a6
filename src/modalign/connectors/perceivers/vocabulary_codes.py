"""Vocabulary codes: windows of the signal become words of the language model's own vocabulary.

    features (B, N, d) -> windows of neighbours (B, M, W d) -> affine, tanh, affine to D
    -> the vocabulary embedding of nearest direction (B, M) -> tokens (B, M, D)

Sources: V2L Tokenizer (arXiv 2403.07874), whose local tokens are one word for each patch, SPAE (arXiv
2306.17842) and LQAE (arXiv 2302.00902): the codebook is a language model's embedding; both it and the
language model stay frozen. The signal becomes a text that can be given to any copy of that model
(``words_of``).

Only the two maps train, by straight-through gradients. Special and added tokens, including the
placeholder, are never chosen; ``words`` narrows the choice to printable pieces or to whole words.

Parameters, with W = features per window, h = hidden width:
(W d h + h) + (h D + D)

Published size: one word for each feature, as in V2L's local tokens; the sources' convolutional or
CLIP encoders are here the encoder before the connector. Stage one rebuilds the features from the words'
directions; before its first step the last map is scaled so that its directions spread as the
vocabulary's do.

Deliberate changes: words are compared by direction alone; there is no commitment term, since directions
are bounded anyway, and with one nearly all windows became the same word; the language model's answer
trains the code as well, whereas the sources stop after stage one and show the code in a prompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from modalign.connectors.base import ConnectorError, Grid, Options, Widths, linear_flops
from modalign.connectors.codes import (
    Code,
    DiscreteCode,
    DiscreteConnector,
    WindowEncoder,
    nearest,
    straight_through,
)
from modalign.connectors.converters.shared import matched_factor

SPACES = ("\u0120", "\u2581")  # how byte-level BPE and SentencePiece write a space before a word

Words = Literal["all", "printable", "whole"]


@dataclass(frozen=True)
class VocabularyCodesOptions(Options):
    """Options of ``vocabulary_codes``.

    Attributes:
        window: W, features per word; on a grid a square number.
        hidden: h.
        words: the words that may be chosen, see :func:`allowed_ids`.
    """

    window: int = 1
    hidden: int = 768
    words: Words = "printable"

    @classmethod
    def published(cls, widths: Widths) -> Self:
        """Return one word per feature."""
        return cls(hidden=widths.feature_size)

    @classmethod
    def matched(cls, widths: Widths) -> Self:
        """Return about N/4 words, with a hidden width equal to the LLM's."""
        return cls(matched_factor(widths) ** 2, widths.hidden_size)


class WordQuantiser(WindowEncoder):
    """Windows -> the nearest allowed row of the language model's embedding.

    The embedding is borrowed: it is not a submodule, does not train and is not saved here.
    """

    allowed: Tensor

    def __init__(self, widths: Widths, window: int, hidden: int) -> None:
        D, name = widths.hidden_size, VocabularyCodes.name
        super().__init__(widths.feature_size, window, hidden, D, widths.grid, name)
        self._seen: tuple[nn.Embedding, ...] = ()

    def attach(self, embedding: nn.Embedding) -> None:
        """Borrow the embedding (V, D); every row may be chosen until the choice is narrowed."""
        self._seen = (embedding,)
        self.register_buffer("allowed", torch.ones(embedding.num_embeddings, dtype=torch.bool))

    @property
    def embedding(self) -> nn.Embedding:
        """The language model's embedding.

        Raises:
            ConnectorError: none is attached.
        """
        if not self._seen:
            raise ConnectorError(
                "vocabulary_codes chooses from the language model's embedding; call "
                "attach_embeddings(model.get_input_embeddings()) first"
            )
        return self._seen[0]

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> DiscreteCode:
        """Encode features (B, N, d), mask (B, N); values (B, M, D) have length sqrt(D)."""
        weight = self.embedding.weight.detach()
        found, present = self.read(features, mask, grid)
        inputs = functional.normalize(found.float(), dim=-1)
        ids = nearest(inputs, weight, self.allowed)
        vectors = functional.normalize(functional.embedding(ids, weight).float(), dim=-1)
        values = math.sqrt(weight.shape[1]) * straight_through(inputs, vectors)
        return DiscreteCode(values, present, inputs, vectors, ids)

    @torch.no_grad()
    def start(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> None:
        """Spread the inputs as the directions of the allowed words are."""
        words = functional.normalize(self.embedding.weight[self.allowed].float(), dim=-1)
        self.spread(self.read(features, mask, grid), words.mean(0), words.std(0))


class VocabularyCodes(DiscreteConnector):
    """Words of the frozen language model stand for the signal.

    Raises:
        ConnectorError: ``words`` is not one of the three.
    """

    name = "vocabulary_codes"
    family = "perceiver"
    group = "VAE-style / discrete codes"
    token_formula = "N/W"
    parameter_text = "Wdh + hD"
    papers = (
        "V2L Tokenizer (arXiv 2403.07874)",
        "SPAE (arXiv 2306.17842)",
        "LQAE (arXiv 2302.00902)",
    )
    keeps_llm_frozen = True
    options_type = VocabularyCodesOptions
    options: VocabularyCodesOptions

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        chosen = self.options
        if chosen.words not in ("all", "printable", "whole"):
            raise ConnectorError(f"words is all, printable or whole, not {chosen.words!r}")
        self.code_width = widths.hidden_size
        self.encoder: WordQuantiser = WordQuantiser(widths, chosen.window, chosen.hidden)

    @classmethod
    def stage_one_terms(cls, **options: Any) -> dict[str, float]:
        """Return only VQ-VAE's reconstruction: the codebook does not train, and nothing commits to it."""
        return {"reconstruction": 1.0}

    def attach_embeddings(self, embedding: nn.Embedding) -> None:
        """Borrow the language model's input embedding (V, D)."""
        self.encoder.attach(embedding)

    def attach_tokenizer(self, tokenizer: Any) -> None:
        """Narrow the choice as ``words`` says; the choice is saved with the weights.

        Raises:
            ConnectorError: fewer than two pieces are left.
        """
        size = self.encoder.embedding.num_embeddings
        ids = allowed_ids(tokenizer, self.options.words, size)
        if len(ids) < 2:
            raise ConnectorError(
                f"words={self.options.words!r} leaves {len(ids)} of the tokenizer's {len(tokenizer)} "
                "pieces to choose from; use words=printable or words=all"
            )
        self.encoder.allowed.zero_()
        self.encoder.allowed[ids] = True

    @property
    def choices(self) -> Tensor:
        """Return the ids that may be chosen."""
        return self.encoder.allowed.nonzero()[:, 0]

    def flops(self, num_features: int) -> float:
        """Return the FLOPs of the encoder and of similarities to the whole vocabulary, once it is attached."""
        D = self.widths.hidden_size
        M, V = self.num_tokens(num_features), self.encoder.embedding.num_embeddings
        likenesses = linear_flops(M, D, V)
        return self.encoder.flops(num_features) + likenesses

    def embed(self, code: Code) -> Tensor:
        """Return exactly the words' embeddings (B, M, D), with the gradient as if they were the inputs."""
        assert isinstance(code, DiscreteCode)
        rows = self.encoder.embedding(code.ids)
        # Zero is added, only to pass the gradient on at the rows' own length.
        length = rows.detach().float().norm(dim=-1, keepdim=True)
        return rows + (length * (code.inputs - code.inputs.detach())).to(rows.dtype)


def allowed_ids(tokenizer: Any, words: Words, size: int) -> list[int]:
    """Return the ids below ``size`` that may stand for a signal.

    Args:
        tokenizer: a transformers tokenizer.
        words: ``all`` except special and added tokens, those that are ``printable`` on their own,
            or ``whole`` words: only letters, with a space before them if the tokenizer marks spaces.
        size: rows of the embedding; more than the tokenizer's pieces if it is padded.
    """
    added = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ids = [i for i in range(min(size, len(tokenizer))) if i not in added]
    if words == "all":
        return ids
    texts = tokenizer.batch_decode([[i] for i in ids])
    shown = [
        (i, text.strip())
        for i, text in zip(ids, texts, strict=True)
        if text.strip().isprintable() and text.strip() and "\ufffd" not in text
    ]
    if words == "printable":
        return [i for i, _ in shown]
    pieces = tokenizer.convert_ids_to_tokens([i for i, _ in shown])
    marked = any(piece.startswith(SPACES) for piece in pieces)
    return [
        i
        for (i, text), piece in zip(shown, pieces, strict=True)
        if text.isalpha() and (piece.startswith(SPACES) if marked else piece[:2] != "##")
    ]


def words_of(ids: Tensor, tokenizer: Any) -> list[list[str]]:
    """Return the words that each medium became: ids (B, M) -> B lists of up to M words."""
    rows = (row[row >= 0].unsqueeze(-1) for row in ids.cpu())
    return [[text.strip() for text in tokenizer.batch_decode(row)] for row in rows]
