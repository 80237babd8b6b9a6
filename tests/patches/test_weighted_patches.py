"""Patches scaled, added up with weights, and kept as a soup: against the same sums taken by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_patches import (  # fmt: skip
    FFN,
    by_formula,
    change_of,
    covariance,
    logits,
    patch_for,
    randn,
    record,
    same,
    snapshot,
    solved,
)

import tiny
from modalign.errors import DataError, ModalignError, UsageError
from modalign.patches import (
    Patch,
    PatchHeader,
    add,
    apply_patch,
    drop,
    load_patch,
    merge,
    remove_patch,
    save_patch,
    scale,
    soup,
)
from modalign.patches.changes import Change, LowRankChange, SlicedChange, SolvedChange
from modalign.patches.header import BaseTensor, patch_hash
from modalign.patches.weighted import WeightedChange

D_OUT, D_IN = 6, 8
KINDS = ("solved", "low_rank", "dense")
WEIGHTS = st.floats(-4, 4, allow_nan=False, width=32)


def patch(kind: str, seed: int, n: int = 3, tensors: tuple[str, ...] = ("w0", "w1"), **fields):
    base = {name: BaseTensor(sha256=name, shape=(D_OUT, D_IN)) for name in tensors}
    changes = {
        name: change_of(kind, (D_OUT, D_IN), tuple(range(n)), 100 * seed + i)
        for i, name in enumerate(tensors)
    }
    given = {"name": f"p{seed}", "method": kind, "model": "m", "base": base,
             "edits": tuple(record(i, f"{seed}.") for i in range(n))}  # fmt: skip
    return Patch(PatchHeader(**{**given, **fields}), changes)


def deltas(patch: Patch) -> dict[str, torch.Tensor]:
    return {name: change.delta().double() for name, change in patch.changes.items()}


def close(first: torch.Tensor, second: torch.Tensor) -> None:
    torch.testing.assert_close(first, second, atol=1e-12, rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KINDS), WEIGHTS), min_size=1, max_size=4), st.booleans())
def test_sums_and_soups_are_the_sum_taken_by_hand(given_terms, narrow):
    names = [("w0", "w1"), ("w0",), ("w1",), ("w0", "w1")]
    parts = [
        patch(kind, seed, n=1 if narrow else 5, tensors=names[seed])
        for seed, (kind, _) in enumerate(given_terms)
    ]
    weights = [weight for _, weight in given_terms]
    total, kept = add(parts, weights), soup(parts, weights)
    for name in total.changes:
        expected = sum(
            weight * deltas(part)[name]
            for weight, part in zip(weights, parts, strict=True)
            if name in part.changes
        )
        close(deltas(total)[name], expected)
        close(deltas(kept)[name], expected)
    assert set(total.changes) == {name for part in parts for name in part.changes}
    assert [edit.id for edit in kept.edits] == [e.id for part in parts for e in part.edits]
    assert [(p.sha256, p.weight) for p in kept.header.parents] == [
        (patch_hash(part), weight) for part, weight in zip(parts, weights, strict=True)
    ]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(KINDS), WEIGHTS, WEIGHTS)
def test_scaling_is_linear_and_keeps_the_form(kind, a, b):
    whole = patch(kind, 1)
    for name, change in scale(scale(whole, a), b).changes.items():
        assert change.form == whole.changes[name].form
        close(change.delta().double(), a * b * deltas(whole)[name])
    mixed = soup([whole, patch("dense", 2)], [1.0, 0.5])
    halved = scale(mixed, a)
    assert halved.header.kind == "soup"
    assert [p.weight for p in halved.header.parents] == [a, a * 0.5]
    for name in mixed.changes:
        close(deltas(halved)[name], a * deltas(mixed)[name])


@pytest.mark.parametrize("kind", KINDS)
def test_scaled_by_nothing_it_changes_nothing_and_by_one_nothing_of_it_changes(kind):
    model = tiny.language_model("llama", 60)
    whole = patch_for(model, [FFN["llama"].format(1)], kind)
    before = snapshot(model)
    with scale(whole, 0.0).applied(model):
        assert same(snapshot(model), before)
    view = model + scale(whole, 0.0)
    assert torch.equal(logits(view), logits(model))
    for name, change in scale(whole, 1.0).changes.items():
        assert torch.equal(change.delta(), whole.changes[name].delta())
        assert change.layout == whole.changes[name].layout


def test_a_scaled_solve_can_still_lose_an_edit():
    C = covariance(D_IN)
    change = solved((D_OUT, D_IN), (0, 1, 2), 5, C=C)
    whole = Patch(patch("solved", 1, tensors=("w0",)).header, {"w0": change})
    found = drop(scale(whole, 0.5), "1.1").changes["w0"]
    left = SolvedChange(
        change.keys[:, [0, 2]], change.dual[:, [0, 2]], 0.5 * change.residuals[:, [0, 2]], (0, 1)
    )
    close(found.delta(), by_formula(left, C))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_soup_is_the_rounded_sum_in_weights_and_comes_out_bit_for_bit(dtype):
    model = tiny.language_model("gpt2", 60).to(dtype)
    names = [FFN["gpt2"].format(i) for i in (1, 2)]
    one, two, three = (patch_for(model, names[: i + 1], kind, seed=i, tag=f"{i}.")
                       for i, kind in enumerate(KINDS[:2] + KINDS[2:]) for i in [min(i, 1)])  # fmt: skip
    made = soup([one, two, three], [0.5, -0.25, 0.1])
    before = snapshot(model)
    apply_patch(model, made)
    for name in names:
        total = sum(
            weight * part.changes[name].delta().double().T
            for weight, part in ((0.5, one), (-0.25, two), (0.1, three))
            if name in part.changes
        )
        wanted = (before[name].double() + total).to(dtype)
        found = model.get_parameter(name)
        # the order of three float64 terms may move a sum across a rounding boundary, no further
        torch.testing.assert_close(found, wanted, rtol=torch.finfo(dtype).eps, atol=1e-6)
    remove_patch(model, made)
    assert same(snapshot(model), before)


def test_a_view_of_a_soup_computes_what_its_weights_compute():
    model = tiny.language_model("llama", 60)
    parts = [patch_for(model, [FFN["llama"].format(2)], kind, seed=i, tag=f"{i}.")
             for i, kind in enumerate(("solved", "low_rank"))]  # fmt: skip
    made = soup(parts, [0.7, 0.3])
    view = model + made
    found = logits(view)
    with made.applied(model):
        torch.testing.assert_close(found, logits(model), atol=2e-5, rtol=1e-4)


def test_a_soup_s_parents_lose_edits_one_by_one():
    one, two = patch("solved", 1), patch("low_rank", 2)
    made = soup([one, two], [0.5, 2.0])
    found = drop(made, ["1.0", "2.2"])
    for name in made.changes:
        expected = 0.5 * deltas(drop(one, "1.0"))[name] + 2.0 * deltas(drop(two, "2.2"))[name]
        close(deltas(found)[name], expected)
    assert [edit.id for edit in found.edits] == ["1.1", "1.2", "2.0", "2.1"]
    with pytest.raises(DataError, match="is dense"):
        drop(soup([one, patch("dense", 3)], [1, 1]), "1.0")


def changes_of_every_form() -> dict[str, Change]:
    rows, columns = torch.tensor([0, 2, 5]), torch.tensor([1, 2, 3, 7])
    plain = {kind: change_of(kind, (D_OUT, D_IN), (0, 1), 7) for kind in KINDS}
    sliced = {f"sliced {kind}": plain[kind].sliced(rows, columns) for kind in KINDS}
    nested = WeightedChange(((0.5, sliced["sliced solved"]), (2.0, sliced["sliced dense"])))
    return {
        **plain,
        **sliced,
        "weighted": nested,
        "weighted again": WeightedChange(((3.0, nested),)),
    }


@pytest.mark.parametrize("form", changes_of_every_form())
def test_every_form_comes_back_from_a_file_bit_for_bit(form, tmp_path: Path):
    change = changes_of_every_form()[form]
    base = {"w": BaseTensor(sha256="0", shape=change.shape)}
    edits = tuple(record(i) for i in range(2))
    new = form not in KINDS
    header = PatchHeader(
        format_version=1 + new, name="p", method="m", model="m", base=base, edits=edits
    )
    assert save_patch(Patch(header, {"w": change}), tmp_path / "p") == patch_hash(
        found := load_patch(tmp_path / "p")
    )
    assert torch.equal(found.changes["w"].delta(), change.delta())
    assert found.changes["w"].layout == change.layout
    assert found.changes["w"].form == change.form


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(changes_of_every_form())), st.data())
def test_slices_are_exact_whatever_the_form(form, data):
    change = changes_of_every_form()[form]
    d_out, d_in = change.shape
    rows, columns = (
        torch.tensor(sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1))))
        for size in (d_out, d_in)
    )
    found = change.sliced(rows, columns)
    assert torch.equal(found.delta(), change.delta()[rows][:, columns])
    assert found.shape == (len(rows), len(columns))
    twice = found.sliced(torch.arange(1), None)
    assert torch.equal(twice.delta(), found.delta()[:1])
    if (factors := found.low_rank()) is not None:
        close(factors.delta(), found.delta())
    if (keys := found.own_keys()) is not None:
        assert torch.equal(keys, change.own_keys()[columns])


def test_a_sliced_solve_loses_an_edit_as_the_whole_does():
    change = change_of("solved", (D_OUT, D_IN), (0, 1, 2), 3)
    rows, columns = torch.tensor([1, 4]), torch.tensor([0, 5, 6])
    kept = change.sliced(rows, columns).keeping({0: 0, 2: 1})
    whole = change.keeping({0: 0, 2: 1})
    assert isinstance(kept, SlicedChange)
    assert torch.equal(kept.delta(), whole.delta()[rows][:, columns])


def test_low_rank_sums_stay_small_and_separable():
    parts = [patch("low_rank", i, n=1) for i in range(3)]
    total = add(parts, [1.0, 2.0, 3.0])
    assert isinstance(total.changes["w0"], LowRankChange)
    close(deltas(drop(total, "1.0"))["w0"], deltas(add([parts[0], parts[2]], [1.0, 3.0]))["w0"])


def test_what_cannot_be_added_up():
    one, two = patch("dense", 1), patch("dense", 2)
    for act in (add, soup):
        with pytest.raises(UsageError, match="2 patches, 1 weights"):
            act([one, two], [1.0])
        with pytest.raises(UsageError, match="not a finite number"):
            act([one, two], [1.0, float("nan")])
        with pytest.raises(UsageError, match="each patch its weight"):
            act([], [])
        other = patch("dense", 3, base={n: BaseTensor(sha256="9", shape=(D_OUT, D_IN))
                                        for n in ("w0", "w1")})  # fmt: skip
        with pytest.raises(DataError, match="other values of w0"):
            act([one, other], [1.0, 1.0])
    with pytest.raises(UsageError, match="not a finite number"):
        scale(one, float("inf"))
    with pytest.raises(DataError, match="is a soup itself"):
        soup([soup([one], [1.0]), two], [1.0, 1.0])
    summed = merge([soup([one], [2.0]), two])
    close(deltas(summed)["w0"], 2 * deltas(one)["w0"] + deltas(two)["w0"])


def test_broken_soups_and_slices_are_not_written(tmp_path: Path):
    change = change_of("solved", (D_OUT, D_IN), (0,), 1)
    one = patch("solved", 1, n=1, tensors=("w0",))
    wrong = {
        "weights that are not finite": WeightedChange(((float("nan"), change),)),
        "terms of different shapes": WeightedChange(
            ((1.0, change), (1.0, change.sliced(torch.arange(2), None)))
        ),
        "do not ascend within 0 to 5": SlicedChange(change, torch.tensor([2, 2]), None),
        "do not ascend within 0 to 7": SlicedChange(change, None, torch.tensor([1, 8])),
        "not a list of whole numbers": SlicedChange(change, torch.tensor([0.5]), None),
    }
    for said, broken in wrong.items():
        with pytest.raises(ModalignError, match=said):
            save_patch(Patch(one.header, {"w0": broken}), tmp_path / "p")
    assert not list(tmp_path.iterdir())
    assert randn(1, 2).dtype == torch.float64
