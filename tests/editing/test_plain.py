"""The oracle itself: the small models can be edited by the papers' plain algorithms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from bench.editable import Editable, Family, memorised
from bench.invented import counterfactuals
from plain import (
    MEMIT,
    PMET_TINY,
    ROME,
    Scores,
    Settings,
    Values,
    plain_covariances,
    plain_rome,
    plain_scores,
    plain_update,
    plain_values,
    write,
)
from torch import Tensor

from modalign.editing.edits import Edit
from tiny_editable import CONTEXTS, LAYERS

PMET = replace(PMET_TINY, lr=0.2)  # the small model's components are smaller still


@dataclass(frozen=True)
class Outcome:
    values: list[Values]
    deltas: dict[int, Tensor]
    scores: Scores


def edited(known: Editable, edits: list[Edit], settings: Settings) -> Outcome:
    """Edit the model in place, and score it."""
    block = settings.sites == ("block",)
    values = [
        plain_values(known.model, known.tokenizer, e, CONTEXTS, layer=LAYERS[-1], settings=settings)
        for e in edits
    ]
    deltas = plain_update(
        known.model,
        known.tokenizer,
        edits,
        torch.stack([value.goal("block" if block else "ffn") for value in values]),
        CONTEXTS,
        plain_covariances(known.model, known.tokenizer, known.texts[:300], LAYERS),
        layers=LAYERS,
        weight=5.0,
        site="block" if block else "ffn",
        spread="linear" if block else "sqrt",
        ridge=1e-6,
    )
    write(known.model, deltas)
    return Outcome(values, deltas, plain_scores(known.model, known.tokenizer, edits))


@pytest.mark.parametrize("family", ["gptj", "llama"])  # whose modules the oracle knows by name
def test_memit_edits_facts_and_spares_their_neighbours(
    editable: Callable[[Family], Editable], family: Family
) -> None:
    known = editable(family)
    edits = counterfactuals(known.world, 10)
    assert memorised(known.model, known.tokenizer, known.world) == 1
    before = plain_scores(known.model, known.tokenizer, edits)
    assert (before.es, before.ps, before.ns) == (0, 0, 100)
    after = edited(known, edits, MEMIT).scores
    assert after.es >= 90
    assert after.ns >= 90
    assert after.ps >= 70


def test_pmet_needs_both_its_vectors_where_attention_comes_before_the_ffn(
    editable: Callable[[Family], Editable],
) -> None:
    edits = counterfactuals(editable("llama").world, 6)
    both = edited(editable("llama"), edits, PMET)
    alone = edited(editable("llama"), edits, replace(PMET, sites=("ffn",)))
    cosines = [
        float(torch.cosine_similarity(v.deltas["attention"], v.deltas["ffn"], dim=0))
        for v in both.values
    ]
    assert max(cosines) < 0.99
    goals = [[value.goal("ffn") for value in outcome.values] for outcome in (both, alone)]
    assert all(not torch.allclose(a, b, rtol=1e-2) for a, b in zip(*goals, strict=True))
    assert both.scores.es > 50


def test_the_model_is_unchanged_until_something_is_written(
    editable: Callable[[Family], Editable],
) -> None:
    known, fresh = editable("gptj"), editable("gptj")
    edit = counterfactuals(known.world, 1)[0]
    value = plain_values(
        known.model,
        known.tokenizer,
        edit,
        CONTEXTS,
        layer=2,
        settings=replace(MEMIT, evaluations=3),
    )
    covariances = plain_covariances(known.model, known.tokenizer, known.texts[:20], [2])
    plain_update(
        known.model,
        known.tokenizer,
        [edit],
        value.goal("block")[None],
        CONTEXTS,
        covariances,
        layers=[2],
        weight=5.0,
        site="block",
        spread="linear",
        ridge=1e-3,
    )
    assert value.evaluations == 3
    same = zip(known.model.parameters(), fresh.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def test_rome_puts_the_value_where_its_key_looks(editable: Callable[[Family], Editable]) -> None:
    known = editable("llama")
    edit = counterfactuals(known.world, 1)[0]
    value = plain_values(known.model, known.tokenizer, edit, (), layer=1, settings=ROME)
    covariance = plain_covariances(known.model, known.tokenizer, known.texts[:300], [1])[1]
    delta = plain_rome(known.model, known.tokenizer, edit, value.goal("ffn"), (), covariance, 1)
    assert torch.linalg.matrix_rank(delta) == 1
    write(known.model, {1: delta})
    assert plain_scores(known.model, known.tokenizer, [edit]).es == 100
