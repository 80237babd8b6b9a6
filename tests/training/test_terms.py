"""Each objective term against its formula, by an oracle of its own."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cosine, jensenshannon
from scipy.special import rel_entr, softmax
from torch import Tensor

from modalign.errors import UsageError
from modalign.training.objectives import term
from modalign.training.outputs import TopWords
from modalign.training.terms import distillation
from modalign.training.terms.contrast import contrast
from modalign.training.terms.distillation import divergence

V = 7


def drawn(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def distribution(logits: Tensor, temperature: float = 1.0) -> np.ndarray:
    return softmax(logits.double().numpy() / temperature, axis=-1)


@given(st.floats(0.3, 4), st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), st.integers(0, 99))
def test_divergence_is_scipys(temperature: float, beta: float, seed: int) -> None:
    own, reference = drawn(3, V, seed=seed), drawn(3, V, seed=seed + 1)
    q, p = distribution(own, temperature), distribution(reference, temperature)
    if beta in (0, 1):
        expected = rel_entr(p, q) if beta == 0 else rel_entr(q, p)
    else:
        m = beta * p + (1 - beta) * q
        expected = beta * rel_entr(p, m) + (1 - beta) * rel_entr(q, m)
    found = divergence(own, reference, temperature, beta)
    assert found.tolist() == pytest.approx(
        (expected.sum(-1) * temperature**2).tolist(), rel=1e-3, abs=1e-6
    )


def test_half_way_it_is_the_jensen_shannon_divergence_and_of_equals_nothing() -> None:
    own, reference = drawn(2, V), drawn(2, V, seed=5)
    pairs = zip(distribution(own), distribution(reference), strict=True)
    expected = [jensenshannon(p, q) ** 2 for p, q in pairs]
    assert divergence(own, reference, 1.0, 0.5).tolist() == pytest.approx(expected, rel=1e-4)
    for beta in (0.0, 0.3, 1.0):
        assert divergence(own, own + 3, 1.0, beta).abs().max() < 1e-6  # logits may be shifted


def test_padding_of_either_vocabulary_is_cut_and_the_rest_renormalised() -> None:
    own, reference = drawn(2, V), drawn(2, V, seed=5)
    padded = torch.cat([own, drawn(2, 3, seed=9)], 1)
    whole = divergence(own, reference, 1.0, 0.0)
    assert torch.equal(divergence(padded, reference, 1.0, 0.0), whole)
    assert torch.equal(
        divergence(reference, padded, 1.0, 0.0), divergence(reference, own, 1.0, 0.0)
    )


def test_answers_and_media_are_means_over_their_own_positions() -> None:
    own = SimpleNamespace(logits=drawn(3, V), media_logits=drawn(5, V, seed=1))
    teacher = SimpleNamespace(logits=drawn(3, V, seed=2), media_logits=drawn(5, V, seed=3))
    batch = SimpleNamespace(num_supervised=12.0, num_media_positions=20.0)
    for name, rows, count in (("kl_answer", "logits", 12), ("kl_visual", "media_logits", 20)):
        p, q = (distribution(getattr(each, rows), 2.0) for each in (teacher, own))
        found = term(name)(own, batch, {"t": teacher}, reference="t", temperature=2.0, beta=0.0)
        assert float(found) == pytest.approx(rel_entr(p, q).sum() * 4 / count, rel=1e-4)


def test_relations_of_a_records_positions() -> None:
    owners = torch.tensor([0, 0, 0, 2, 2])
    own, teacher = drawn(5, V), drawn(5, V + 2, seed=4)
    batch = SimpleNamespace(num_media_samples=4.0, owners=lambda at: owners)
    expected = 0.0
    for rows in ([0, 1, 2], [3, 4]):
        z, t = own[rows].double().numpy(), teacher[rows][:, :V].double().numpy()
        expected += cosine((z @ z.T).ravel(), (t @ t.T).ravel())
    outputs, reference = SimpleNamespace(media_logits=own), SimpleNamespace(media_logits=teacher)
    found = term("relation")(outputs, batch, {"teacher": reference}, reference="teacher")
    assert float(found) == pytest.approx(expected / 4, rel=1e-4)
    turned = SimpleNamespace(media_logits=3 * own)  # lengths do not matter
    same = term("relation")(outputs, batch, {"teacher": turned}, reference="teacher")
    assert float(same) == pytest.approx(0, abs=1e-6)


def test_distance_of_hidden_states() -> None:
    own, theirs = drawn(4, 6), drawn(4, 6, seed=1)
    outputs = SimpleNamespace(hidden=lambda layer, at: {2: own}[layer])
    reference = SimpleNamespace(hidden=lambda layer, at: {5: theirs}[layer])
    batch = SimpleNamespace(num_supervised=8.0, num_media_positions=16.0, num_positions=1.0)
    options: dict[str, Any] = {"layer": 2, "reference_layer": 5, "reference": "t"}

    def found(**more: Any) -> float:
        return float(term("hidden")(outputs, batch, {"t": reference}, **options, **more))

    angles = sum(cosine(a, b) for a, b in zip(own.numpy(), theirs.numpy(), strict=True))
    assert found(distance="cosine") == pytest.approx(angles / 8, rel=1e-4)
    squares = float(((own - theirs) ** 2).mean(-1).sum())
    assert found(distance="mse", at="media") == pytest.approx(squares / 16, rel=1e-5)
    reference.hidden = lambda layer, at: drawn(4, 5)
    with pytest.raises(UsageError, match="width 6, those of the reference 't' 5"):
        found()


def slow_contrast(a: np.ndarray, p: np.ndarray, keys: list[int], temperature: float) -> float:
    """By loops: each anchor against its positive and those of other groups, and the other way."""
    total = 0.0
    for one, other in ((a, p), (p, a)):
        for i, key in enumerate(keys):
            scores = {
                j: (1 - cosine(one[i], other[j])) / temperature
                for j, foreign in enumerate(keys)
                if j == i or foreign != key
            }
            total += math.log(sum(math.exp(s - scores[i]) for s in scores.values()))
    return total / (2 * len(keys))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.floats(0.05, 2), st.integers(0, 99))
def test_contrast_is_the_slow_loop(keys: list[int], temperature: float, seed: int) -> None:
    a, p = drawn(len(keys), 5, seed=seed), drawn(len(keys), 5, seed=seed + 1)
    found = contrast(a, p, torch.tensor(keys), temperature)
    expected = slow_contrast(a.double().numpy(), p.double().numpy(), keys, temperature)
    assert float(found) == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_contrast_is_sentence_transformers_loss(hard: bool, symmetric: bool) -> None:
    losses = pytest.importorskip("sentence_transformers.losses")
    a, p, n = drawn(7, 5), drawn(7, 5, seed=1), drawn(7, 5, seed=2)
    names = {True: "MultipleNegativesSymmetricRankingLoss", False: "MultipleNegativesRankingLoss"}
    theirs = getattr(losses, names[symmetric])(None, scale=20.0)
    columns = [a, p, n] if hard else [a, p]
    expected = theirs.compute_loss_from_embeddings(columns, None)
    found = contrast(a, p, torch.arange(7), 0.05, n if hard else None, symmetric)
    assert float(found) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("keys", [[0], [0, 1, 2], [0, 0, 1], [2, 2, 2]])
def test_hard_negatives_are_candidates_of_every_anchor(keys: list[int]) -> None:
    a, p, n = drawn(len(keys), 5), drawn(len(keys), 5, seed=1), drawn(3, 5, seed=9)
    found = contrast(a, p, torch.tensor(keys), 0.5, n, symmetric=False)
    total = 0.0
    for i, key in enumerate(keys):
        near = [(1 - cosine(a[i].double().numpy(), x.double().numpy())) / 0.5 for x in (*p, *n)]
        there = [near[j] for j, foreign in enumerate(keys) if j == i or foreign != key]
        total += math.log(sum(math.exp(s - near[i]) for s in [*there, *near[len(keys) :]]))
    assert float(found) == pytest.approx(total / len(keys), rel=1e-3, abs=1e-5)


def test_half_the_squared_distance_of_weights() -> None:
    weights = {"a": drawn(2, 3), "b": drawn(4, seed=1)}
    before = {"a": drawn(2, 3, seed=2), "b": drawn(4, seed=3), "c": drawn(1)}
    outputs, batch = SimpleNamespace(weights=weights), SimpleNamespace(share=0.25)
    flat = np.concatenate([(weights[n] - before[n]).numpy().ravel() for n in weights])
    reference = SimpleNamespace(weights=before)
    found = term("proximal")(outputs, batch, {"start": reference})
    assert float(found) == pytest.approx(0.25 * 0.5 * np.linalg.norm(flat) ** 2, rel=1e-5)
    del before["b"]
    with pytest.raises(UsageError, match="has none like b"):
        term("proximal")(outputs, batch, {"start": reference})


def answers(seed: int = 0) -> tuple[Tensor, SimpleNamespace]:
    """Logits of records of 2, 1 and 3 supervised tokens."""
    logits = drawn(6, V, seed=seed).requires_grad_()
    batch = SimpleNamespace(
        targets=torch.tensor([1, 2, 3, 4, 5, 6]),
        owner=torch.tensor([0, 0, 1, 2, 2, 2]),
        samples=[0, 1, 2],
        numbers=torch.tensor([0, 1, 2]),
        num_supervised=6.0,
        num_samples=3.0,
    )
    return logits, batch


def log_likelihoods(logits: Tensor, batch: SimpleNamespace) -> list[float]:
    logs = np.log(distribution(logits.detach()))
    found = [0.0, 0.0, 0.0]
    for row, (owner, target) in enumerate(zip(batch.owner, batch.targets, strict=True)):
        found[int(owner)] += logs[row, int(target)]
    return found


def test_negative_preference_by_its_definition() -> None:
    (own, batch), (before, _) = answers(), answers(1)
    outputs, reference = SimpleNamespace(logits=own), SimpleNamespace(logits=before.detach())
    pairs = zip(log_likelihoods(own, batch), log_likelihoods(before, batch), strict=True)
    beta = 0.3
    # -(2 / beta) log sigmoid(-beta log(p / p_ref)), mean over records
    expected = sum(2 / beta * math.log(1 + math.exp(beta * (p - q))) for p, q in pairs) / 3
    found = term("npo")(outputs, batch, {"start": reference}, beta=beta)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    (slope,) = torch.autograd.grad(
        term("npo")(outputs, batch, {"start": reference}, beta=1e-4) * 3, own
    )
    (ascent,) = torch.autograd.grad(term("ascent")(outputs, batch, {}) * 6, own)
    torch.testing.assert_close(slope, ascent, atol=1e-3, rtol=1e-2)  # its limit at beta 0


def test_ascent_stops_at_its_limit() -> None:
    logits, batch = answers()
    outputs = SimpleNamespace(logits=logits)
    losses = -np.log(distribution(logits.detach())[range(6), batch.targets])
    assert float(term("ascent")(outputs, batch, {})) == pytest.approx(-losses.mean(), rel=1e-5)
    limit = float(np.median(losses))
    found = term("ascent")(outputs, batch, {}, limit=limit)
    assert float(found) == pytest.approx(-np.minimum(losses, limit).mean(), rel=1e-5)
    (slope,) = torch.autograd.grad(found, logits)
    assert (slope.abs().sum(1) > 0).tolist() == (losses < limit).tolist()


def test_simple_preference_is_per_token() -> None:
    logits, batch = answers()
    sums, lengths, beta, delta = log_likelihoods(logits, batch), [2, 1, 3], 1.7, 0.4
    margins = [beta * (-s / n - delta) for s, n in zip(sums, lengths, strict=True)]
    expected = sum(-2 / beta * math.log(1 / (1 + math.exp(-m))) for m in margins) / 3
    outputs = SimpleNamespace(logits=logits)
    found = term("simnpo")(outputs, batch, {}, beta=beta, delta=delta)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    batch.numbers = torch.tensor([0, -1, 1])  # the second only pads
    left = sum(-2 / beta * math.log(1 / (1 + math.exp(-margins[i]))) for i in (0, 2)) / 3
    assert term("simnpo")(outputs, batch, {}, beta=beta, delta=delta).item() == pytest.approx(left)


def test_self_distillation_lowers_the_true_tokens_logit_alone() -> None:
    (own, batch), (before, _) = answers(), answers(1)
    lowered = before.detach().clone()
    for row, target in enumerate(batch.targets.tolist()):
        lowered[row, target] -= 4
    expected = -(distribution(lowered) * np.log(distribution(own.detach()))).sum() / 6
    outputs, reference = SimpleNamespace(logits=own), SimpleNamespace(logits=before.detach())
    found = term("undial")(outputs, batch, {"start": reference}, beta=4.0)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(reference.logits, before.detach())  # the reference is read, not changed


def test_misdirection_is_towards_one_direction_of_relative_length() -> None:
    own, before = drawn(4, 6), drawn(4, 6, seed=1)
    outputs = SimpleNamespace(hidden=lambda layer, at: {(2, "tokens"): own}[layer, at])
    reference = SimpleNamespace(hidden=lambda layer, at: {(2, "tokens"): before}[layer, at])
    batch = SimpleNamespace(num_positions=8.0)

    def found(states: Tensor, **more: Any) -> float:
        outputs.hidden = lambda layer, at: states
        return float(term("rmu")(outputs, batch, {"start": reference}, layer=2, scale=3.0, **more))

    unit = torch.randn(6, generator=torch.Generator().manual_seed(7)).numpy()
    unit /= np.linalg.norm(unit)
    wanted = 3 * np.linalg.norm(before.numpy(), axis=1, keepdims=True) * unit
    expected = ((own.numpy() - wanted) ** 2).mean(1).sum() / 8
    assert found(own, direction=7) == pytest.approx(expected, rel=1e-4)
    assert found(torch.tensor(wanted, dtype=torch.float32), direction=7) < 1e-10
    assert found(own, direction=8) != pytest.approx(expected, rel=1e-2)


@given(st.integers(1, V), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 99))
def test_a_stored_reference_is_compared_over_its_words_and_the_rest(
    k: int, beta: float, seed: int
) -> None:
    """Against the divergence of the coarse distributions by scipy; it never exceeds that of the whole ones."""
    own, whole = drawn(3, V, seed=seed), drawn(3, V, seed=seed + 1)
    values, ids = whole.log_softmax(-1).topk(k)
    others = whole.log_softmax(-1).scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    stored = TopWords(ids, torch.cat([values, others.clamp(min=-1e4)], -1), V)
    found = divergence(own, stored, 1.0, beta)
    q, p = (np.take_along_axis(distribution(each), ids.numpy(), 1) for each in (own, whole))
    q, p = (
        np.concatenate([each, 1 - each.sum(1, keepdims=True)], 1).clip(1e-12) for each in (q, p)
    )
    m = beta * p + (1 - beta) * q
    expected = {0.0: rel_entr(p, q), 1.0: rel_entr(q, p)}.get(
        beta, beta * rel_entr(p, m) + (1 - beta) * rel_entr(q, m)
    )
    assert found.tolist() == pytest.approx(expected.sum(-1).tolist(), rel=1e-3, abs=1e-5)
    assert (found <= divergence(own, whole, 1.0, beta) + 1e-5).all()


def test_in_chunks_it_is_the_same_and_keeps_only_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    own, reference = drawn(64, V).requires_grad_(), drawn(64, V, seed=1)

    def taken() -> tuple[Tensor, Tensor, int]:
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = divergence(own, reference, 1.3, 0.4)
        (gradient,) = torch.autograd.grad(value.sum(), own)
        return value.detach(), gradient, sum(kept.values())

    whole = taken()
    monkeypatch.setattr(distillation, "CHUNK", 5 * V)
    chunked = taken()
    torch.testing.assert_close(whole[0], chunked[0])
    torch.testing.assert_close(whole[1], chunked[1])
    assert chunked[2] <= 2 * own.nbytes < whole[2]
