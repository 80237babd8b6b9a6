"""Stage 1 of the Q-Former: queries and paired texts, trained without the language model.

:mod:`modalign.connectors.perceivers.qformer` describes what it does, its parameters and its recipe. A
saved model does not carry this file.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from modalign.connectors.base import ConnectorError, Grid, Masked, zero_masked
from modalign.connectors.layers import learnt, typed
from modalign.connectors.perceivers.qformer import NORM_EPS, QFormer, QFormerLayer

CONTRASTIVE_WIDTH = 256
TEMPERATURE = 0.07
NO_TARGET = -100  # a position without a caption target

Seeing = Literal["apart", "together", "causal"]


@dataclass
class StageOneOutputs:
    """What the three losses of stage 1 read (B items, T text positions, V words).

    Attributes:
        image_to_text: (B, B) similarity of item i with text j, divided by the temperature.
        text_to_image: (B, B) similarity of text i with item j, divided by the temperature.
        item_ids: (B,) equal where two rows hold the same item.
        match_logits: (3 B, 2) true pairs, texts with a wrong item, items with a wrong text.
        match_targets: (3 B,) 1 for the true pairs, 0 for the others.
        caption_logits: (B, T, V) for the word at each position, given the ones before it.
        caption_targets: (B, T) the words, -100 where there is no target.
    """

    image_to_text: Tensor
    text_to_image: Tensor
    item_ids: Tensor
    match_logits: Tensor
    match_targets: Tensor
    caption_logits: Tensor
    caption_targets: Tensor


class ItemTextPairs(NamedTuple):
    """Items and their texts, row by row; padded features are zero."""

    features: Tensor  # (B, N, d)
    mask: Tensor  # (B, N)
    text_ids: Tensor  # (B, T)
    text_mask: Tensor  # (B, T)


class TextBranch(nn.Module):
    """The feed-forward of the text positions in one layer."""

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

    The connector's affine map to D plays no part in stage 1 and is left out.
    """

    def __init__(self, connector: QFormer, vocab_size: int, max_positions: int) -> None:
        super().__init__()
        width = connector.queries.shape[1]
        contrastive = min(CONTRASTIVE_WIDTH, width)
        self.max_positions = max_positions
        self.queries, self.query_norm = connector.queries, connector.norm
        self.layers = connector.layers
        self.words = nn.Embedding(vocab_size, width)
        self.positions = learnt(max_positions + 1, width)  # plus one for the mark
        self.marks = nn.ParameterDict({"text": learnt(width), "caption": learnt(width)})
        self.text_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.text_branches = nn.ModuleList(
            TextBranch(layer) for layer in typed(connector.layers, QFormerLayer)
        )
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
            grid: of the features; not used here.
            text_ids: (B, T), padded on any side.
            text_mask: (B, T) bool, True where there is a word.
            item_ids: (B,), equal where rows hold the same item (several texts for one image).
            generator: draws the hard negatives; the global one by default.
        """
        words = text_mask.bool()
        pairs = ItemTextPairs(zero_masked(features, mask), mask, text_ids, words)
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

    def joint(self, pairs: ItemTextPairs, seeing: Seeing) -> tuple[Tensor, Tensor]:
        """Return queries (B, M, w) and text (B, 1 + T, w), mark first, after the last layer.

        ``seeing`` says who reads whom: queries and text ``apart``, all ``together``, or the text
        ``causal``: each position reads the queries and the text up to itself.
        """
        B, M = len(pairs.features), len(self.queries)
        text, text_mask = self._embed(pairs, seeing)
        allowed = who_sees_whom(M, text_mask, seeing)
        queries = self.query_norm(self.queries).expand(B, -1, -1)
        for layer, branch in zip(typed(self.layers, QFormerLayer), self.text_branches, strict=True):
            mixed = layer.mix(torch.cat([queries, text], 1), allowed)
            queries = layer.read(mixed[:, :M], pairs.features, pairs.mask)
            text = branch(mixed[:, M:])
        return queries, text

    def _embed(self, pairs: ItemTextPairs, seeing: Seeing) -> Masked:
        ids = pairs.text_ids
        if ids.shape[1] > self.max_positions:
            raise ConnectorError(
                f"a text of stage 1 has {ids.shape[1]} tokens, more than the {self.max_positions} "
                "positions it was built for; truncate the texts or build it with more"
            )
        mark = self.marks["caption" if seeing == "causal" else "text"].expand(len(ids), 1, -1)
        x = torch.cat([mark, self.words(ids)], 1)
        mask = functional.pad(pairs.text_mask, (1, 0), value=True)
        # Words are counted, not columns, so that padding on either side gives the same positions.
        return self.text_norm(x + self.positions[mask.cumsum(1) - 1]), mask

    def _similarities(self, pairs: ItemTextPairs) -> Tensor:
        """Return (B, B): the best similarity of item i's queries with text j, divided by the temperature."""
        queries, text = self.joint(pairs, "apart")
        images = functional.normalize(self.image_head(queries), dim=-1)
        texts = functional.normalize(self.text_head(text[:, 0]), dim=-1)
        best = torch.einsum("imc,jc->ijm", images, texts).amax(-1)
        return best / self.temperature.clamp(0.001, 0.5)

    def _match(
        self,
        pairs: ItemTextPairs,
        similarities: Tensor,
        item_ids: Tensor,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """Return logits (3 B, 2), averaged over the queries, and targets (3 B,)."""
        own = torch.arange(len(item_ids), device=similarities.device)
        wrong_text = draw_hard_negatives(similarities, item_ids, generator)
        wrong_image = draw_hard_negatives(similarities.T, item_ids, generator)
        images = torch.cat([own, wrong_image, own])
        texts = torch.cat([own, own, wrong_text])
        drawn = ItemTextPairs(
            pairs.features[images],
            pairs.mask[images],
            pairs.text_ids[texts],
            pairs.text_mask[texts],
        )
        queries, _ = self.joint(drawn, "together")
        logits = self.match_head(queries).mean(1)
        return logits, (torch.arange(len(images), device=own.device) < len(own)).long()

    def _caption(self, pairs: ItemTextPairs) -> Tensor:
        """Return logits (B, T, V): the mark and the preceding words predict each word.

        In a text padded on the left, padding precedes the first word, so each word is
        predicted from the nearest real position before it.
        """
        _, text = self.joint(pairs, "causal")
        columns = torch.arange(text.shape[1], device=text.device)
        real = functional.pad(pairs.text_mask, (1, 0), value=True)
        last_real = columns.where(real, 0).cummax(1).values[:, :-1]
        before = text.gather(1, last_real.unsqueeze(-1).expand(-1, -1, text.shape[-1]))
        return self.caption_head(before, self.words.weight)


def who_sees_whom(num_queries: int, text_mask: Tensor, seeing: Seeing) -> Tensor:
    """Return (B, S, S) bool over [queries; text]: whether the row's position may read the column's."""
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
    """Draw for each row one column of another item, from the softmax of its similarities.

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
