"""Table encoders against formulas: scales, quantiles, states, and that the fixed form can do all."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from torch import nn

from modalign.data.records import Media
from modalign.data.signals import SignalError
from modalign.data.tables import open_table
from modalign.encoders.base import EncoderError
from modalign.encoders.table import MAX_CATEGORIES, build, prepare
from modalign.errors import DataError, UsageError
from modalign.models.encoders.table import decode, load


def inline(row: Any) -> Media:
    return Media("table", data=json.dumps(row).encode())


ROWS = [
    {"age": 10, "sex": "f", "pet": "cat"},
    {"age": 30, "sex": "m", "pet": "cat"},
    {"age": None, "sex": "m", "pet": None},
    {"sex": "f", "age": 20, "pet": "dog"},
]
MEDIA = [inline(row) for row in ROWS]


def features(spec: dict[str, Any], encoder: Any, *rows: dict[str, Any]) -> torch.Tensor:
    ready = prepare(spec, [open_table(inline(row)) for row in rows])
    found, mask = encoder(ready.values, ready.mask)
    assert mask.all()
    assert mask.sum(1).tolist() == ready.counts
    assert found.shape == (len(rows), encoder.num_features, encoder.feature_size)
    return found.detach()


def test_what_is_read_from_the_training_data() -> None:
    spec, encoder = load(None, MEDIA, {})
    age, sex, pet = spec["columns"]
    ages = np.array([10, 30, 20])
    assert age == {"name": "age", "mean": ages.mean(), "scale": ages.std()}
    assert sex == {"name": "sex", "categories": ["f", "m"]}
    assert pet == {"name": "pet", "categories": ["cat", "dog"]}
    assert (encoder.num_features, spec["dropped"]) == (3, [])
    assert spec == json.loads(json.dumps(spec))
    assert not list(encoder.parameters())


def test_fixed_features() -> None:
    """[number at its column | column | missing, unseen and each category of each column]."""
    spec, encoder = load("none", MEDIA, {})
    (found,) = features(spec, encoder, {"age": 25, "sex": "x", "pet": "dog"})
    z = (25 - 20) / np.std([10, 30, 20])
    states = 1 + 4 + 4
    expected = torch.zeros(3, 6 + states)
    expected[0, 0], expected[0, 3] = z, 1
    expected[1, 4], expected[1, 6 + 1 + 1] = 1, 1  # unseen
    expected[2, 5], expected[2, 6 + 5 + 3] = 1, 1  # missing, unseen, cat, dog
    torch.testing.assert_close(found, expected)
    (found,) = features(spec, encoder, {"sex": "m"})
    assert found[:, 6:].nonzero().tolist() == [[0, 0], [1, 1 + 3], [2, 5]]
    assert found[:, :3].abs().sum() == 0


def test_embeddings_follow_the_formula() -> None:
    spec, encoder = load("columns", MEDIA, {"width": 5})
    column, slope, state = encoder.columns, encoder.slopes, encoder.state.weight
    found = features(spec, encoder, {"age": 30, "sex": "m", "pet": None}, {"age": None, "sex": "x"})
    z = 10 / np.std([10, 30, 20])
    torch.testing.assert_close(found[0, 0], (column[0] + float(z) * slope[0]).detach())
    torch.testing.assert_close(found[0, 1], (column[1] + state[1 + 4]).detach())
    torch.testing.assert_close(found[0, 2], column[2].detach())  # untrained: nothing is added
    torch.testing.assert_close(found[1], column.detach())
    with torch.no_grad():
        state.copy_(torch.arange(10.0)[:, None].expand(10, 5))
    found = features(spec, encoder, {"age": None, "sex": "x", "pet": None}) - column.detach()
    assert found[0, :, 0].round().tolist() == [1, 3, 6]  # each its own


CELLS = st.none() | st.integers(-5, 5)
TABLE = st.lists(
    st.fixed_dictionaries({"a": CELLS, "b": st.sampled_from(["x", "y", None]), "c": CELLS}),
    min_size=2,
    max_size=6,
).filter(lambda rows: all(any(row[name] is not None for row in rows) for name in "abc"))


@settings(deadline=None)
@given(TABLE, st.sampled_from(["standard", "quantile"]), st.randoms(use_true_random=False))
def test_a_linear_connector_over_fixed_features_is_the_embedding(
    rows: list[dict[str, Any]], numbers: str, random: Any
) -> None:
    media = [inline(row) for row in rows]
    spec, fixed = load("none", media, {"numbers": numbers})
    learnt_spec, learnt = load("columns", media, {"numbers": numbers, "width": 4})
    linear = nn.Linear(fixed.feature_size, 4, bias=False)
    with torch.no_grad():
        parts = [learnt.slopes, learnt.columns, learnt.state.weight[1:]]
        linear.weight.copy_(torch.cat(parts).T)
        found = linear(features(spec, fixed, *rows))
    expected = features(learnt_spec, learnt, *rows)
    torch.testing.assert_close(found, expected)
    order = list("abc")  # the order of a row's columns is nothing
    random.shuffle(order)
    shuffled = [{name: row[name] for name in order} for row in rows]
    assert torch.equal(features(learnt_spec, learnt, *shuffled), expected)


def test_the_order_of_columns_permutes_features() -> None:
    spec, encoder = load("none", MEDIA, {})
    turned, other = load("none", MEDIA, {"columns": ["pet", "age", "sex"]})
    first = prepare(spec, [open_table(MEDIA[0])]).values[0]
    second = prepare(turned, [open_table(MEDIA[0])]).values[0]
    assert torch.equal(second, first[[2, 0, 1]])
    assert encoder.feature_size == other.feature_size


def test_standardised_numbers_are_bounded() -> None:
    spec, _ = load(None, [inline({"x": 0}), inline({"x": 2})], {})
    values = prepare(spec, [{"x": x} for x in (0.0, 3.0, 1e38, -1e38)]).values
    assert values[:, 0, 0].tolist() == [-1, 2, 10, -10]
    spec, _ = load(None, [inline({"x": 7})] * 3, {})  # never varies
    assert prepare(spec, [{"x": 7.0}]).values.tolist() == [[[0, 0]]]


def test_quantiles_are_ranks() -> None:
    rng = np.random.default_rng(0)
    numbers = np.exp(rng.normal(size=33) * 3)  # as many as knots: exact
    media = [inline({"x": float(x)}) for x in numbers]
    spec, _ = load(None, media, {"numbers": "quantile"})
    found = prepare(spec, [{"x": float(x)} for x in numbers]).values[:, 0, 0]
    expected = ((rankdata(numbers) - 1) / 32 - 0.5) * np.sqrt(12)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    far = prepare(spec, [{"x": -1e30}, {"x": 1e30}]).values[:, 0, 0]
    np.testing.assert_allclose(far, [-np.sqrt(3), np.sqrt(3)], rtol=1e-6)
    spec, _ = load(None, [inline({"x": 7})] * 3, {"numbers": "quantile"})
    assert prepare(spec, [{"x": 9.0}]).values.tolist() == [[[0, 0]]]


def test_a_column_without_any_value_is_dropped_and_named(caplog: Any) -> None:
    media = [inline({"a": 1, "ghost": None}), inline({"a": 2})]
    with caplog.at_level(logging.WARNING):
        spec, encoder = load(None, media, {})
    assert "ghost" in caplog.text
    assert (spec["dropped"], encoder.num_features) == (["ghost"], 1)
    assert decode(inline({"a": 1, "ghost": 5}), spec) == {"a": 1.0, "ghost": 5.0}
    with pytest.raises(UsageError, match="'ghost' has no value"):
        load(None, media, {"numeric": ["ghost"]})
    with pytest.raises(DataError, match="none of the tables' 1 columns has a value"):
        load(None, [inline({"ghost": None})], {})


def test_kinds_can_be_forced() -> None:
    media = [inline({"code": 1, "x": 1}), inline({"code": 2.5, "x": 2})]
    spec, _ = load(None, media, {"categorical": ["code"]})
    assert spec["columns"][0] == {"name": "code", "categories": ["1", "2.5"]}
    assert prepare(spec, [{"code": 2.5}]).values[0, 0].tolist() == [0, 4]
    with pytest.raises(SignalError, match="column 'sex' is 'f', but it was declared numeric"):
        load(None, MEDIA, {"numeric": ["sex"]})
    with pytest.raises(UsageError, match="no column 'six' in the tables; columns: age, sex, pet"):
        load(None, MEDIA, {"categorical": ["six"]})
    with pytest.raises(UsageError, match="'sex' cannot be numeric and categorical"):
        load(None, MEDIA, {"categorical": ["sex"], "numeric": ["sex"]})


def test_rare_and_too_many_categories(caplog: Any) -> None:
    spec, _ = load(None, MEDIA, {"min_count": 2})
    assert spec["columns"][2]["categories"] == ["cat"]
    media = [inline({"id": f"n{i}"}) for i in range(MAX_CATEGORIES + 9)]
    with caplog.at_level(logging.WARNING):
        spec, encoder = load("columns", media, {})
    assert len(spec["columns"][0]["categories"]) == MAX_CATEGORIES
    assert f"{MAX_CATEGORIES + 9} categories" in caplog.text
    ready = prepare(spec, [{"id": name} for name in spec["columns"][0]["categories"]])
    assert torch.equal(ready.values, ready.values.bfloat16().float())
    assert len(encoder(ready.values)[0].unique(dim=0)) == MAX_CATEGORIES


def test_rows_that_do_not_fit_the_training_data() -> None:
    spec, _ = load(None, MEDIA, {})
    with pytest.raises(
        SignalError, match=r"column 'sxe' that training did not have.*age, sex, pet"
    ):
        decode(inline({"sxe": "f"}), spec)
    with pytest.raises(SignalError, match="column 'age' is 'old'; it had numbers in training"):
        decode(inline({"age": "old"}), spec)
    with pytest.raises(EncoderError, match="column 'age' is 'old'"):
        prepare(spec, [{"age": "old"}])
    spec, encoder = load(None, MEDIA, {"columns": ["age"]})
    assert decode(inline({"sxe": "f"}), spec) == {"sxe": "f"}
    assert encoder.num_features == 1


def test_a_rebuilt_encoder_is_the_same_and_trains() -> None:
    spec, encoder = load("columns", MEDIA, {})
    again = build(json.loads(json.dumps(spec)))
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(features(spec, again, *ROWS), features(spec, encoder, *ROWS))
    ready = prepare(spec, [open_table(medium) for medium in MEDIA])
    encoder(ready.values)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_rows_as_others_write_them() -> None:
    """A processor in a program of its own gets rows that no reader saw."""
    spec, _ = load(None, [inline({"x": 1, "y": True}), inline({"x": 3, "y": False})], {})
    values = prepare(spec, [{"x": 3, "y": True}, {"x": float("nan"), "y": None}]).values
    assert values.tolist() == [[[1, 0], [0, 4]], [[0, 1], [0, 1]]]


def test_wrong_settings() -> None:
    with pytest.raises(UsageError, match="choose none or columns"):
        load("bert", MEDIA, {})
    with pytest.raises(
        UsageError, match=r"no option 'wide'; (did .*)?choose from categorical, columns"
    ):
        load(None, MEDIA, {"wide": 1})
    with pytest.raises(UsageError, match="numbers"):
        load(None, MEDIA, {"numbers": "log"})
    with pytest.raises(UsageError, match="no tables in the training data"):
        load(None, [], {})
    with pytest.raises(EncoderError, match="known: fixed, columns"):
        build({"kind": "other"})
