"""The Q-Former's stage 1: masks, losses against slow oracles, the network against BLIP-2."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from properties import CLIP_L_TO_7B, SIGLIP_B_TO_135M, SIGLIP_B_TO_HALF_B, TINY, random_features
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from modalign.connectors.base import ConnectorError, Widths
from modalign.connectors.perceivers.qformer import QFormer
from modalign.connectors.perceivers.qformer_stage_one import (
    ItemTextPairs,
    QFormerStageOne,
    StageOneOutputs,
    draw_hard_negatives,
    who_sees_whom,
)
from modalign.training.objectives import term
from modalign.training.terms.qformer import soft_targets

VOCAB, T = 40, 7
LENGTHS = torch.tensor([7, 4, 5, 3])


def build(batch_seed: int = 0) -> tuple[QFormer, QFormerStageOne]:
    torch.manual_seed(batch_seed)
    connector = QFormer(TINY, **QFormer.options_for("matched", TINY))
    return connector, connector.build_stage_one(VOCAB, T)


def pairs(batch: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ids = torch.randint(VOCAB, (batch, T), generator=torch.Generator().manual_seed(0))
    return (
        random_features(TINY, batch),
        torch.ones(batch, 36, dtype=torch.bool),
        ids,
        torch.arange(T) < LENGTHS[:batch, None],
    )


def run(stage: QFormerStageOne, items: list[int], seed: int = 0) -> StageOneOutputs:
    features, mask, ids, text_mask = pairs(len(items))
    generator = torch.Generator().manual_seed(seed)
    return stage(features, mask, (6, 6), ids, text_mask, torch.tensor(items), generator=generator)


def losses(out: StageOneOutputs) -> list[Tensor]:
    """All three terms, on their own."""
    return [term(name)(out, None, {}) for name in QFormer.stage_one_terms()]


def contrastive(similarities: Tensor, items: Tensor, **options: float) -> Tensor:
    outputs = SimpleNamespace(
        image_to_text=similarities, text_to_image=similarities.T, item_ids=items
    )
    return term("image_text_contrastive")(outputs, None, {}, **options)


def test_outputs_have_their_shapes_and_a_batch_of_two_is_enough() -> None:
    _, stage = build()
    for items in ([0, 1], [0, 1, 2], [3, 3, 1, 2]):
        B = len(items)
        out = run(stage, items)
        assert out.image_to_text.shape == out.text_to_image.shape == (B, B)
        assert out.match_logits.shape == (3 * B, 2)
        assert out.match_targets.tolist() == [1] * B + [0] * 2 * B
        assert out.caption_logits.shape == (B, T, VOCAB)
        assert ((out.caption_targets != -100).sum(1) == LENGTHS[:B]).all()
        assert all(loss.ndim == 0 and loss.isfinite() for loss in losses(out))


@pytest.mark.parametrize("items", [[0], [5, 5]])
def test_a_batch_of_one_item_is_refused(items: list[int]) -> None:
    _, stage = build()
    with pytest.raises(ConnectorError, match="two different items"):
        run(stage, items)


def test_long_texts_are_refused() -> None:
    connector, _ = build()
    stage = connector.build_stage_one(VOCAB, T - 1)
    with pytest.raises(ConnectorError, match="positions"):
        run(stage, [0, 1])


def test_every_tensor_trains_but_the_map_to_the_language_model() -> None:
    connector, stage = build()
    torch.stack(losses(run(stage, [0, 1, 2, 3]))).sum().backward()
    missing = [n for n, p in stage.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing
    assert all(p.grad is None for p in connector.project.parameters())
    assert connector.queries.grad is not None, "the connector's own tensors are what trains"


def changes(stage: QFormerStageOne, seeing: str, edit: str, column: int = 0) -> tuple[Tensor, ...]:
    """Which queries and text places (mark first) of row 0 change when a text or item changes."""
    features, mask, ids, text_mask = pairs()
    before = stage.joint(ItemTextPairs(features, mask, ids, text_mask), seeing)  # type: ignore[arg-type]
    features, ids = features.clone(), ids.clone()
    if edit == "text":
        ids[0, column] = (ids[0, column] + 1) % VOCAB
    else:
        features[0] += 1
    after = stage.joint(ItemTextPairs(features, mask, ids, text_mask), seeing)  # type: ignore[arg-type]
    return tuple((a[0] != b[0]).any(-1) for a, b in zip(before, after, strict=True))


@torch.no_grad()
def test_apart_queries_and_text_do_not_see_each_other() -> None:
    _, stage = build()
    queries, text = changes(stage, "apart", "text", column=2)
    assert not queries.any()
    assert text.all()  # both ways within the text
    queries, text = changes(stage, "apart", "item")
    assert queries.all()
    assert not text.any()


@torch.no_grad()
def test_together_all_see_all() -> None:
    _, stage = build()
    for edit in ("text", "item"):
        queries, text = changes(stage, "together", edit, column=2)
        assert queries.all()
        assert text.all()


@torch.no_grad()
def test_causal_text_reads_the_queries_and_its_past() -> None:
    _, stage = build()
    queries, text = changes(stage, "causal", "text", column=2)
    assert not queries.any()
    assert text.tolist() == [False] * 3 + [True] * 5  # places: the mark, then the words
    queries, text = changes(stage, "causal", "item")
    assert queries.all()
    assert text.all()


def test_masks_written_out() -> None:
    words = torch.tensor([[True, True, False]])
    expected = {
        "apart": ["11000", "11000", "00110", "00110", "00110"],
        "together": ["11110"] * 5,
        "causal": ["11000", "11000", "11100", "11110", "11110"],
    }
    for seeing, rows in expected.items():
        allowed = who_sees_whom(2, words, seeing)[0]  # type: ignore[arg-type]
        assert ["".join(str(int(x)) for x in row) for row in allowed] == rows, seeing


@torch.no_grad()
def test_queries_of_stage_one_are_the_connectors() -> None:
    connector, stage = build()
    features, mask, ids, words = pairs()
    for seeing in ("apart", "causal"):
        queries, _ = stage.joint(ItemTextPairs(features, mask, ids, words), seeing)  # type: ignore[arg-type]
        torch.testing.assert_close(queries, connector.read(features, mask))


@torch.no_grad()
def test_captions_equal_a_loop_over_prefixes() -> None:
    """The word at place t from the item and the words before it alone, nothing else given."""
    _, stage = build()
    features, mask, ids, words = pairs()
    logits = run(stage, [0, 1, 2, 3]).caption_logits
    for row in range(4):
        for t in range(int(LENGTHS[row])):
            here = slice(row, row + 1)
            short = ItemTextPairs(features[here], mask[here], ids[here, :t], words[here, :t])
            _, text = stage.joint(short, "causal")
            expected = stage.caption_head(text[:, -1:], stage.words.weight)[0, 0]
            torch.testing.assert_close(logits[row, t], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_padding_on_the_left_changes_nothing() -> None:
    _, stage = build()
    features, mask, ids, words = pairs()
    left = torch.stack([r.roll(T - int(n)) for r, n in zip(ids, LENGTHS, strict=True)])
    left_mask = words.flip(1)
    out = [
        stage(features, mask, None, i, m, torch.arange(4), torch.Generator().manual_seed(1))
        for i, m in ((ids, words), (left, left_mask))
    ]
    torch.testing.assert_close(out[0].image_to_text, out[1].image_to_text)
    torch.testing.assert_close(out[0].match_logits, out[1].match_logits)
    torch.testing.assert_close(out[0].caption_logits[words], out[1].caption_logits[left_mask])


@torch.no_grad()
def test_similarity_is_the_best_query_over_the_temperature() -> None:
    connector, stage = build()
    features, mask, ids, words = pairs()
    out = run(stage, [0, 1, 2, 3])
    queries = connector.read(features, mask)
    _, text = stage.joint(ItemTextPairs(features, mask, ids, words), "apart")
    for i in range(4):
        for j in range(4):
            similar = [
                nn.functional.cosine_similarity(
                    stage.image_head(q), stage.text_head(text[j, 0]), dim=0
                ).item()
                for q in queries[i]
            ]
            assert out.image_to_text[i, j].item() == pytest.approx(max(similar) / 0.07, rel=1e-4)
    assert torch.equal(out.text_to_image, out.image_to_text.T)


@torch.no_grad()
def test_matching_runs_the_pairs_it_says() -> None:
    _, stage = build()
    features, mask, ids, words = pairs()
    out = run(stage, [0, 1, 2, 3], seed=9)
    generator = torch.Generator().manual_seed(9)
    items = torch.arange(4)
    wrong_text = draw_hard_negatives(out.image_to_text, items, generator)
    wrong_image = draw_hard_negatives(out.text_to_image, items, generator)
    rows = [(i, i) for i in range(4)]
    rows += [(int(wrong_image[i]), i) for i in range(4)]
    rows += [(i, int(wrong_text[i])) for i in range(4)]
    for (image, text), logits in zip(rows, out.match_logits, strict=True):
        a, b = slice(image, image + 1), slice(text, text + 1)
        queries, _ = stage.joint(ItemTextPairs(features[a], mask[a], ids[b], words[b]), "together")
        per_query = torch.stack([stage.match_head(q) for q in queries[0]])
        torch.testing.assert_close(logits, per_query.mean(0), atol=1e-5, rtol=1e-4)


def test_hard_negatives_are_other_items_and_follow_the_softmax() -> None:
    similarities = torch.tensor([[9.0, 9.0, 1.0, 0.0], [9.0, 9.0, 0.0, 0.0]] * 2)
    items = torch.tensor([7, 7, 1, 2])
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([draw_hard_negatives(similarities, items, generator) for _ in range(4000)])
    assert not (items[draws] == items).any()
    share = (draws[:, 0] == 2).float().mean().item()
    assert share == pytest.approx(math.e / (math.e + 1), abs=0.03)
    again = draw_hard_negatives(similarities, items, torch.Generator().manual_seed(0))
    assert torch.equal(again, draws[0])


def test_hard_negatives_survive_extreme_similarities() -> None:
    similarities = torch.full((3, 3), -1e4)
    similarities.fill_diagonal_(1e4)
    drawn = draw_hard_negatives(similarities, torch.arange(3))
    assert (drawn != torch.arange(3)).all()


def test_soft_targets_share_the_item() -> None:
    targets = soft_targets(torch.tensor([4, 9, 4]))
    assert targets.tolist() == [[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]]
    smoothed = soft_targets(torch.tensor([4, 9, 4]), 0.3)
    torch.testing.assert_close(smoothed[1], torch.tensor([0.1, 0.8, 0.1]))


def slow_contrastive(similarities: Tensor, items: list[int], smoothing: float) -> float:
    B, total = len(items), 0.0
    for direction in (similarities, similarities.T):
        for i in range(B):
            mates = [j for j in range(B) if items[j] == items[i]]
            logs = [
                float(direction[i, j]) - math.log(sum(math.exp(float(x)) for x in direction[i]))
                for j in range(B)
            ]
            for j in range(B):
                hard = 1 / len(mates) if j in mates else 0.0
                total -= (hard * (1 - smoothing) + smoothing / B) * logs[j] / B / 2
    return total


@pytest.mark.parametrize("items", [[0, 1, 2, 3], [0, 1, 0, 0], [5, 5, 5, 5]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_contrastive_equals_a_slow_loop(items: list[int], smoothing: float) -> None:
    torch.manual_seed(1)
    similarities = torch.randn(4, 4) * 3
    loss = contrastive(similarities, torch.tensor(items), label_smoothing=smoothing)
    assert loss.item() == pytest.approx(slow_contrastive(similarities, items, smoothing), rel=1e-5)


def test_contrastive_of_distinct_items_is_torchs_label_smoothing() -> None:
    torch.manual_seed(2)
    similarities = torch.randn(5, 5)
    expected = sum(
        nn.functional.cross_entropy(s, torch.arange(5), label_smoothing=0.1)
        for s in (similarities, similarities.T)
    )
    loss = contrastive(similarities, torch.arange(5))
    torch.testing.assert_close(loss * 2, expected)


def test_matching_and_captioning_equal_slow_loops() -> None:
    torch.manual_seed(3)
    logits, targets = torch.randn(6, 2), torch.tensor([1, 1, 0, 0, 0, 0])
    expected = -sum(float(r.log_softmax(0)[t]) for r, t in zip(logits, targets, strict=True)) / 6
    outputs = SimpleNamespace(match_logits=logits, match_targets=targets)
    loss = term("image_text_matching")(outputs, None, {})
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    words = torch.tensor([[3, 1, -100], [2, -100, -100]])
    logits = torch.randn(2, 3, 5)
    real = [(0, 0), (0, 1), (1, 0)]
    expected = -sum(float(logits[i, t].log_softmax(0)[words[i, t]]) for i, t in real) / 3
    for targets, value in ((words, expected), (torch.full((2, 3), -100), 0.0)):
        outputs = SimpleNamespace(caption_logits=logits, caption_targets=targets)
        loss = term("image_grounded_captioning")(outputs, None, {})
        assert loss.item() == pytest.approx(value, rel=1e-5)


def stage_parameters(stage: QFormerStageOne) -> int:
    return sum(p.numel() for p in stage.parameters())


@pytest.mark.parametrize(
    ("widths", "figure"),
    [(CLIP_L_TO_7B, 185), (SIGLIP_B_TO_HALF_B, 180), (SIGLIP_B_TO_135M, 180)],
)
def test_table_of_stage_one(widths: Widths, figure: float) -> None:
    with torch.device("meta"):
        connector = QFormer(widths, **QFormer.options_for("published", widths))
        stage = connector.build_stage_one(30522, 512)
    # The table counts the connector, word and position embeddings and the text's feed-forward.
    texts = [stage.words.weight, stage.positions, *stage.text_branches.parameters()]
    table = sum(p.numel() for p in (*connector.parameters(), *texts))
    assert round(table / 1e6) == figure
    # What runs here has the heads (1.0 M) and not the map to D (0.4 - 3.2 M): within 1 %.
    assert stage_parameters(stage) == pytest.approx(figure * 1e6, rel=0.01)


def test_formula_of_stage_one() -> None:
    connector, stage = build()
    w, layers, f, c, V = 96, 2, 384, 96, VOCAB
    queries = sum(p.numel() for p in connector.parameters()) - (w * 96 + 96)
    beside = (
        (V + T + 1) * w
        + 2 * w
        + 2 * w
        + layers * (2 * w * f + f + w + 2 * w)
        + 2 * (w * c + c)
        + (w * w + w)
        + 2 * w
        + V
        + 2 * w
        + 2
        + 1
    )
    assert stage_parameters(stage) == queries + beside


def copied_into_blip2(connector: QFormer, layers: int, heads: int, ffn: int) -> Blip2QFormerModel:
    """transformers' network with the connector's weights."""
    width, every = connector.queries.shape[1], 2
    config = Blip2QFormerConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
        cross_attention_frequency=every,
        encoder_hidden_size=TINY.feature_size,
    )
    theirs = Blip2QFormerModel(config).eval()
    theirs.layernorm.load_state_dict(connector.norm.state_dict())
    for ours, layer in zip(connector.layers, theirs.encoder.layer, strict=True):
        blocks = [(ours.attention, ours.attention_norm, layer.attention)]
        if ours.cross is not None:
            blocks.append((ours.cross, ours.cross_norm, layer.crossattention))
        for attention, norm, target in blocks:
            for name, part in (("query", "q"), ("key", "k"), ("value", "v")):
                source = getattr(attention, part).state_dict()
                getattr(target.attention, name).load_state_dict(source)
            target.output.dense.load_state_dict(attention.out.state_dict())
            target.output.LayerNorm.load_state_dict(norm.state_dict())
        layer.intermediate_query.dense.load_state_dict(ours.ffn.up.state_dict())
        layer.output_query.dense.load_state_dict(ours.ffn.down.state_dict())
        layer.output_query.LayerNorm.load_state_dict(ours.ffn_norm.state_dict())
    return theirs


@torch.no_grad()
def test_the_network_is_blip2s() -> None:
    torch.manual_seed(4)
    connector = QFormer(TINY, num_tokens=5, width=32, layers=4, heads=4, ffn=64, cross_every=2)
    for parameter in connector.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))  # norms and biases that matter
    theirs = copied_into_blip2(connector, layers=4, heads=4, ffn=64)
    features = random_features(TINY, 3)
    mask = torch.arange(36) < torch.tensor([[36], [20], [1]])
    expected = theirs(
        query_embeds=connector.queries.expand(3, -1, -1),
        encoder_hidden_states=features,
        encoder_attention_mask=mask.long(),
    ).last_hidden_state
    torch.testing.assert_close(connector.read(features, mask), expected, atol=1e-5, rtol=1e-5)
