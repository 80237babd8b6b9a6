"""Q-Former: learnt queries in a BERT-like transformer read the features by cross-attention.

    features (B, N, d) -> M queries (B, M, width) -> affine -> tokens (B, M, D)

Source: BLIP-2 (arXiv 2301.12597). Post-norm layers: self-attention of the queries, in every
``cross_every``-th layer (the first included) cross-attention to the features, feed-forward.

Parameters, with w = width, f = FFN width, X = ceil(layers / cross_every):
M w + 2 w + layers * (4 (w^2 + w) + 2 w f + f + w + 4 w)
+ X * (2 (w^2 + w) + 2 (d w + w) + 2 w) + w D + D

Published size: 12 layers of 768, FFN 3072, cross-attention in every second layer, M = 32.

Stage 1 (:class:`QFormerStageOne`) trains the queries with paired texts and without the language
model, equal weights: contrastive (queries and text do not see each other), matching (they all see
each other; hard negatives), captioning (text is causal and reads the queries, never the reverse).
Text shares the self-attention and has feed-forward layers of its own. Parameters beside the
queries' network, V words, T positions, c the width of the contrastive heads:
(V + T + 1) w + 2 w (marks) + 2 w (norm) + layers * (2 w f + f + w + 2 w) + 2 (w c + c)
+ (w^2 + w) + 2 w + V + 2 w + 2 + 1
Recipe: 10 epochs, lr 1e-4 -> 1e-5 cosine, 5000 steps of warm-up, weight decay 0.05, batch 100 per
device. Stage 2: the text branch is dropped, affine map to D, caption loss through the frozen
language model, batch 64 per device, 2000 steps of warm-up.

Deliberate changes: nothing starts from BERT (there is nothing to download), so the text's
feed-forward layers start as copies of the queries' (there the reverse); two learnt marks take the
places of BERT's [CLS] and [DEC], so any tokenizer will do; no dropout; the captions' loss without
label smoothing unless asked for. Hard negatives are never of the same item.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from modalign.connectors.base import (
    ConnectorError,
    Grid,
    PrefixConnector,
    Variant,
    Widths,
    affine_parameters,
    full_mask,
    linear_flops,
    quarter_tokens,
    zero_masked,
)
from modalign.connectors.layers import Attention, FeedForward, heads_of, learnt

NORM_EPS = 1e-12  # BERT's
CONTRASTIVE_WIDTH = 256
TEMPERATURE = 0.07
NO_TARGET = -100  # a position without a caption target

Seeing = Literal["apart", "together", "causal"]


class QFormerLayer(nn.Module):
    """One layer in its three steps, so that stage 1 can run queries and text through it jointly."""

    def __init__(self, feature_size: int, width: int, heads: int, ffn: int, reads: bool) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.cross = Attention(width, heads, memory_width=feature_size) if reads else None
        self.cross_norm = nn.LayerNorm(width, eps=NORM_EPS) if reads else None
        self.ffn = FeedForward(width, ffn)
        self.ffn_norm = nn.LayerNorm(width, eps=NORM_EPS)

    def mix(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Self-attention: x (B, S, w), allowed (B, S, S)."""
        return self.attention_norm(x + self.attention(x, x, allowed))

    def read(self, queries: Tensor, features: Tensor, mask: Tensor) -> Tensor:
        """Cross-attention to features (B, N, d), mask (B, N), then the feed-forward."""
        if self.cross is not None and self.cross_norm is not None:
            read = self.cross(queries, features, mask.unsqueeze(1))
            queries = self.cross_norm(queries + read)
        return self.ffn_norm(queries + self.ffn(queries))


def _typed(layers: nn.ModuleList) -> list[QFormerLayer]:
    return cast("list[QFormerLayer]", list(layers))


def _parameters(
    widths: Widths,
    *,
    num_tokens: int = 32,
    width: int = 768,
    layers: int = 12,
    heads: int = 12,
    ffn: int = 3072,
    cross_every: int = 2,
) -> int:
    layer = (
        Attention.parameters_for(width, width) + FeedForward.parameters_for(width, ffn) + 4 * width
    )
    cross = Attention.parameters_for(width, width, widths.feature_size) + 2 * width
    readers = -(-layers // cross_every)
    out = affine_parameters(width, widths.hidden_size)
    return (num_tokens + 2) * width + layers * layer + readers * cross + out


class QFormer(PrefixConnector):
    """Learnt queries with self-attention, cross-attention and an own pre-training."""

    name = "qformer"
    family = "perceiver"
    group = "Q-Former perceiver"
    token_formula = "M"
    parameter_text = "layers * (4w^2 + 2wf) + X * (2w^2 + 2dw) + Mw + wD"
    rate_scale = 0.3
    papers = (
        "BLIP-2 (arXiv 2301.12597)",
        "InstructBLIP (arXiv 2305.06500)",
        "SALMONN (arXiv 2310.13289)",
    )
    has_stage_one = True

    def __init__(
        self,
        widths: Widths,
        *,
        num_tokens: int = 32,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        ffn: int = 3072,
        cross_every: int = 2,
    ) -> None:
        super().__init__(widths)
        self.shape = (num_tokens, width, layers, heads, ffn, cross_every)
        self.queries = learnt(num_tokens, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.layers = nn.ModuleList(
            QFormerLayer(widths.feature_size, width, heads, ffn, reads=i % cross_every == 0)
            for i in range(layers)
        )
        self.project = nn.Linear(width, widths.hidden_size)

    @classmethod
    def options_for(cls, variant: Variant, widths: Widths) -> dict[str, Any]:
        """Published: BLIP-2's. Matched: 2 layers as wide as the LLM, both reading the features."""
        if variant == "published":
            return {
                "num_tokens": 32,
                "width": 768,
                "layers": 12,
                "heads": 12,
                "ffn": 3072,
                "cross_every": 2,
            }
        width = min(widths.hidden_size, 768)
        return {
            "num_tokens": quarter_tokens(widths),
            "width": width,
            "layers": 2,
            "heads": heads_of(width),
            "ffn": 4 * width,
            "cross_every": 1,
        }

    @classmethod
    def parameter_count(cls, widths: Widths, **options: Any) -> int:
        """The first sum of the module docstring."""
        return _parameters(widths, **options)

    def num_tokens(self, num_features: int) -> int:
        """M, whatever N is."""
        return self.shape[0]

    def flops(self, num_features: int) -> float:
        """The network in use: queries only."""
        M, width, layers, _, ffn, cross_every = self.shape
        layer = Attention.flops_for(M, M, width, width) + FeedForward.flops_for(M, width, ffn)
        cross = Attention.flops_for(M, num_features, width, width, self.widths.feature_size)
        readers = -(-layers // cross_every)
        out = linear_flops(M, width, self.widths.hidden_size)
        return layers * layer + readers * cross + out

    def forward(
        self, features: Tensor, mask: Tensor, grid: Grid | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, N, d), (B, N) -> (B, M, D), (B, M); the grid does not matter."""
        tokens = self.project(self.read(features, mask))
        return tokens, full_mask(tokens)

    def read(self, features: Tensor, mask: Tensor) -> Tensor:
        """The queries after the last layer: (B, M, width)."""
        features = zero_masked(features, mask)
        x = self.norm(self.queries).expand(len(features), -1, -1)
        for layer in _typed(self.layers):
            x = layer.read(layer.mix(x), features, mask)
        return x

    def build_stage_one(self, vocab_size: int, max_positions: int) -> QFormerStageOne:
        """Return the network of stage 1; training it trains this connector's own tensors."""
        return QFormerStageOne(self, vocab_size, max_positions)


@dataclass
class StageOneOutputs:
    """What the three losses of stage 1 read (B items, T text positions, V words).

    Attributes:
        image_to_text: (B, B) similarity of item i with text j over the temperature.
        text_to_image: (B, B) similarity of text i with item j over the temperature.
        item_ids: (B,) equal where two rows hold the same item.
        match_logits: (3 B, 2) true pairs, texts with a wrong item, items with a wrong text.
        match_targets: (3 B,) 1 for the true pairs, 0 for the others.
        caption_logits: (B, T, V) for the word at each position, given the ones before it.
        caption_targets: (B, T) the words, -100 where there is none.
    """

    image_to_text: Tensor
    text_to_image: Tensor
    item_ids: Tensor
    match_logits: Tensor
    match_targets: Tensor
    caption_logits: Tensor
    caption_targets: Tensor


class Pairs(NamedTuple):
    """Items and their texts, row by row; padded features are zero."""

    features: Tensor  # (B, N, d)
    mask: Tensor  # (B, N)
    text_ids: Tensor  # (B, T)
    text_mask: Tensor  # (B, T)


class TextBranch(nn.Module):
    """Feed-forward of the text positions in one layer."""

    def __init__(self, layer: QFormerLayer) -> None:
        super().__init__()
        self.ffn = copy.deepcopy(layer.ffn)
        self.norm = copy.deepcopy(layer.ffn_norm)

    def forward(self, text: Tensor) -> Tensor:
        """(B, T, w) -> (B, T, w)."""
        return self.norm(text + self.ffn(text))


class CaptionHead(nn.Module):
    """BERT's language-model head: affine, GELU, norm, then the tied word embeddings and a bias."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        """X (B, T, w) and the embedding table (V, w) -> logits (B, T, V)."""
        return functional.linear(self.norm(functional.gelu(self.transform(x))), words, self.bias)


class QFormerStageOne(nn.Module):
    """The connector's queries and layers, by reference, and the text branch around them.

    The connector's affine map to D has no part in stage 1 and is not held.
    """

    def __init__(self, connector: QFormer, vocab_size: int, max_positions: int) -> None:
        super().__init__()
        width = connector.queries.shape[1]
        contrastive = min(CONTRASTIVE_WIDTH, width)
        self.max_positions = max_positions
        self.queries, self.query_norm = connector.queries, connector.norm
        self.layers = connector.layers
        self.words = nn.Embedding(vocab_size, width)
        self.positions = learnt(max_positions + 1, width)  # one more for the mark
        self.marks = nn.ParameterDict({"text": learnt(width), "caption": learnt(width)})
        self.text_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.text_branches = nn.ModuleList(TextBranch(layer) for layer in _typed(connector.layers))
        self.image_head = nn.Linear(width, contrastive)
        self.text_head = nn.Linear(width, contrastive)
        self.match_head = nn.Linear(width, 2)
        self.caption_head = CaptionHead(width, vocab_size)
        self.temperature = nn.Parameter(torch.tensor(TEMPERATURE))
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(
        self,
        features: Tensor,
        mask: Tensor,
        grid: Grid | None,
        text_ids: Tensor,
        text_mask: Tensor,
        item_ids: Tensor,
        generator: torch.Generator | None = None,
    ) -> StageOneOutputs:
        """Run the three passes over a batch of pairs.

        Args:
            features: (B, N, d).
            mask: (B, N) bool.
            grid: of the features; does not matter here.
            text_ids: (B, T), padded on any side.
            text_mask: (B, T) bool, True where there is a word.
            item_ids: (B,), equal where rows hold the same item (several texts for one image).
            generator: draws the hard negatives; the global one by default.
        """
        words = text_mask.bool()
        pairs = Pairs(zero_masked(features, mask), mask, text_ids, words)
        similarities = self._similarities(pairs)
        match_logits, match_targets = self._match(pairs, similarities, item_ids, generator)
        return StageOneOutputs(
            image_to_text=similarities,
            text_to_image=similarities.T,
            item_ids=item_ids,
            match_logits=match_logits,
            match_targets=match_targets,
            caption_logits=self._caption(pairs),
            caption_targets=text_ids.masked_fill(~words, NO_TARGET),
        )

    def joint(self, pairs: Pairs, seeing: Seeing) -> tuple[Tensor, Tensor]:
        """Queries (B, M, w) and text (B, 1 + T, w), mark first, after the last layer.

        ``seeing`` says who reads whom: queries and text ``apart``, all ``together``, or the text
        ``causal``: each position reads the queries and the text up to itself.
        """
        B, M = len(pairs.features), len(self.queries)
        text, text_mask = self._embed(pairs, seeing)
        allowed = who_sees_whom(M, text_mask, seeing)
        queries = self.query_norm(self.queries).expand(B, -1, -1)
        for layer, branch in zip(_typed(self.layers), self.text_branches, strict=True):
            mixed = layer.mix(torch.cat([queries, text], 1), allowed)
            queries = layer.read(mixed[:, :M], pairs.features, pairs.mask)
            text = branch(mixed[:, M:])
        return queries, text

    def _embed(self, pairs: Pairs, seeing: Seeing) -> tuple[Tensor, Tensor]:
        ids = pairs.text_ids
        if ids.shape[1] > self.max_positions:
            raise ConnectorError(
                f"a text of stage 1 has {ids.shape[1]} tokens, more than the {self.max_positions} "
                "positions it was built for; truncate the texts or build it with more"
            )
        mark = self.marks["caption" if seeing == "causal" else "text"].expand(len(ids), 1, -1)
        x = torch.cat([mark, self.words(ids)], 1)
        mask = functional.pad(pairs.text_mask, (1, 0), value=True)
        # Words are counted, not columns: padding on either side gives the same positions.
        return self.text_norm(x + self.positions[mask.cumsum(1) - 1]), mask

    def _similarities(self, pairs: Pairs) -> Tensor:
        """(B, B): item i with text j is the best of the item's queries, over the temperature."""
        queries, text = self.joint(pairs, "apart")
        images = functional.normalize(self.image_head(queries), dim=-1)
        texts = functional.normalize(self.text_head(text[:, 0]), dim=-1)
        best = torch.einsum("imc,jc->ijm", images, texts).amax(-1)
        return best / self.temperature.clamp(0.001, 0.5)

    def _match(
        self,
        pairs: Pairs,
        similarities: Tensor,
        item_ids: Tensor,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """(3 B, 2) logits, averaged over the queries, and (3 B,) targets."""
        own = torch.arange(len(item_ids), device=similarities.device)
        wrong_text = draw_hard_negatives(similarities, item_ids, generator)
        wrong_image = draw_hard_negatives(similarities.T, item_ids, generator)
        images = torch.cat([own, wrong_image, own])
        texts = torch.cat([own, own, wrong_text])
        drawn = Pairs(
            pairs.features[images],
            pairs.mask[images],
            pairs.text_ids[texts],
            pairs.text_mask[texts],
        )
        queries, _ = self.joint(drawn, "together")
        logits = self.match_head(queries).mean(1)
        return logits, (torch.arange(len(images), device=own.device) < len(own)).long()

    def _caption(self, pairs: Pairs) -> Tensor:
        """(B, T, V): the mark and the words before predict each word.

        In a text padded on the left the word before the first one is padding, so each word is
        predicted from the nearest real position before it.
        """
        _, text = self.joint(pairs, "causal")
        columns = torch.arange(text.shape[1], device=text.device)
        real = functional.pad(pairs.text_mask, (1, 0), value=True)
        last_real = columns.where(real, 0).cummax(1).values[:, :-1]
        before = text.gather(1, last_real.unsqueeze(-1).expand(-1, -1, text.shape[-1]))
        return self.caption_head(before, self.words.weight)


def who_sees_whom(num_queries: int, text_mask: Tensor, seeing: Seeing) -> Tensor:
    """(B, S, S) bool over [queries; text]: may the row's position read the column's."""
    B, T = text_mask.shape
    M, S = num_queries, num_queries + T
    allowed = torch.ones(B, S, S, dtype=torch.bool, device=text_mask.device)
    if seeing != "together":
        allowed[:, :M, M:] = False
    if seeing == "apart":
        allowed[:, M:, :M] = False
    if seeing == "causal":
        allowed[:, M:, M:] = allowed[:, M:, M:].tril()
    allowed[:, :, M:] &= text_mask.unsqueeze(1)
    return allowed


@torch.no_grad()
def draw_hard_negatives(
    similarities: Tensor, item_ids: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """For each row one column of another item, drawn from the softmax of its similarities.

    Args:
        similarities: (B, B).
        item_ids: (B,).
        generator: the global one by default.

    Raises:
        ConnectorError: a row has no other item in its batch.
    """
    same = item_ids.unsqueeze(0) == item_ids.unsqueeze(1)
    if same.all(1).any():
        raise ConnectorError(
            f"image-text matching needs at least two different items in a batch; this one has "
            f"{len(item_ids)} rows of one item; raise the batch size or drop the short last batch"
        )
    chances = similarities.float().masked_fill(same, float("-inf")).softmax(1)
    return torch.multinomial(chances, 1, generator=generator)[:, 0]
