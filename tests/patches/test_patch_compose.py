"""Dropping and merging edits, against the formula they were solved by."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_patches import FFN, by_formula, covariance, patch_for, randn, record, solved

import tiny
from modalign.errors import DataError, UsageError
from modalign.patches import drop, keep, load_patch, merge, save_patch
from modalign.patches.changes import LowRankChange, SolvedChange
from modalign.patches.header import BaseTensor, PatchHeader, patch_hash
from modalign.patches.inspection import distance
from modalign.patches.patch import Patch

D_OUT, D_IN = 5, 7
C = covariance(D_IN)


def patch(n: int, seed: int = 0, kind: str = "solved", tensors: int = 2, tag: str = "", **fields):
    """A patch of random tensors of no model in particular."""
    base = {f"w{i}": BaseTensor(sha256=f"{i}", shape=(D_OUT, D_IN)) for i in range(tensors)}
    changes = {}
    for i, name in enumerate(base):
        at = 1000 * seed + 10 * i
        if kind == "solved":
            changes[name] = solved((D_OUT, D_IN), tuple(range(n)), at, C=C)
        else:
            changes[name] = LowRankChange(
                randn(at, D_OUT, n), randn(at + 1, D_IN, n), tuple(range(n))
            )
    given = {"name": f"p{seed}", "method": "pmet", "model": "m", "base": base, "covariance": "c",
             "settings": {"clamp": 4}, "edits": tuple(record(i, tag) for i in range(n))}  # fmt: skip
    return Patch(PatchHeader(**{**given, **fields}), changes)


def without(change: SolvedChange, places: set[int]) -> SolvedChange:
    left = [i for i in range(change.keys.shape[1]) if i not in places]
    return SolvedChange(*(t[:, left] for t in (change.keys, change.dual, change.residuals)),
                        tuple(change.edits[i] for i in left))  # fmt: skip


def close(first: Patch, second: Patch, bound: float = 1e-9) -> bool:
    return all(value < bound for value in distance(first, second).values())


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.data())
def test_a_dropped_edit_leaves_the_solve_over_the_others(n, data):
    gone = data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=n - 1))
    whole = patch(n, seed=n)
    found = drop(whole, [str(each) for each in gone])
    for name, change in whole.changes.items():
        expected = by_formula(without(change, gone), C)
        error = (found.changes[name].delta() - expected).norm() / expected.norm()
        assert error < 1e-9
    assert [e.id for e in found.header.editing.edits] == [str(i) for i in range(n) if i not in gone]
    assert found.changes["w0"].edits == tuple(range(n - len(gone)))
    assert "dropped" in found.header.history[-1]
    assert len(whole.header.editing.edits) == n


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 8), st.data(), st.sampled_from(["solved", "low_rank"]))
def test_what_is_dropped_can_be_merged_back(n, data, kind):
    gone = data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=n - 1))
    whole = patch(n, seed=n, kind=kind)
    ids = [str(each) for each in gone]
    again = merge([drop(whole, ids), keep(whole, ids)])
    assert close(again, whole)
    assert {e.id for e in again.header.editing.edits} == {e.id for e in whole.header.editing.edits}


@settings(max_examples=20, deadline=None)
@given(st.permutations([0, 1, 2]), st.sampled_from(["solved", "low_rank"]))
def test_the_order_of_merging_does_not_matter(order, kind):
    parts = [patch(2, seed=i, kind=kind, tag=f"{i}.") for i in range(3)]
    assert close(merge([parts[i] for i in order]), merge(parts))


def test_a_joint_solve_is_the_solve_of_all_keys_together():
    one, two = patch(3, 1, tag="a"), patch(2, 2, tag="b")
    both = merge([one, two], name="both")
    assert both.header.name == "both"
    assert "joint solve" in both.header.history[-1]
    for name, change in both.changes.items():
        K = torch.cat([p.changes[name].keys for p in (one, two)], 1)
        R = torch.cat([p.changes[name].residuals for p in (one, two)], 1)
        expected = R @ K.T @ torch.linalg.inv(C + K @ K.T)
        assert (change.delta() - expected).norm() < 1e-9 * expected.norm()
        summed = one.changes[name].delta() + two.changes[name].delta()
        assert (change.delta() - summed).norm() > 1e-3 * expected.norm()
    assert [e.id for e in both.header.editing.edits] == ["a0", "a1", "a2", "b0", "b1"]
    assert close(drop(both, ["b0", "b1"]), one)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"covariance": "other"}, "key statistics"),
        ({"covariance": None}, "key statistics"),
        ({"settings": {"clamp": 1}}, "settings differ"),
        ({"method": "memit"}, "settings differ"),
    ],
)
def test_otherwise_changes_are_added_up(fields, said):
    one, two = patch(1, 1, tag="a"), patch(1, 2, tag="b", **fields)
    if fields.get("covariance", "c") is None:
        one = patch(1, 1, tag="a", covariance=None)
    both = merge([one, two])
    assert (
        f"adding up their changes ({'they' if 'key' in said else 'their'}"
        in both.header.history[-1]
    )
    assert said in both.header.history[-1]
    for name, change in both.changes.items():
        expected = one.changes[name].delta() + two.changes[name].delta()
        torch.testing.assert_close(change.delta(), expected, atol=1e-12, rtol=1e-12)
    with pytest.raises(DataError, match="keep its edits apart"):
        drop(both, "a0")


def test_low_rank_and_dense_sums():
    model = tiny.language_model("gptj", 40)
    names = [FFN["gptj"].format(i) for i in (0, 1)]
    rome = patch_for(model, names[:1], "low_rank", n=1, seed=1, tag="a")
    more = patch_for(model, names, "low_rank", n=2, seed=2, tag="b")
    tuned = patch_for(model, names, "dense", seed=3, n=1, tag="c")
    both = merge([rome, more])
    assert isinstance(both.changes[names[0]], LowRankChange)
    assert close(drop(both, "a0"), more)
    assert close(drop(both, ["b0", "b1"]), rome)
    assert list(drop(both, ["b0", "b1"]).changes) == names[:1]
    whole = merge([tuned, both])
    for name in names:
        parts = [p.changes[name].delta() for p in (rome, more, tuned) if name in p.changes]
        torch.testing.assert_close(whole.changes[name].delta(), sum(parts), atol=1e-12, rtol=1e-12)
    with pytest.raises(DataError, match="is dense"):
        drop(whole, "a0")


def test_protected_keys_stay_and_are_protected_once():
    edits = (-1, 0, -1, 1)
    whole = patch(2)
    change = solved((D_OUT, D_IN), edits, 5, C=C)
    whole = Patch(
        whole.header.model_copy(update={"base": {"w0": whole.header.base["w0"]}}), {"w0": change}
    )
    found = drop(whole, "1")
    assert found.changes["w0"].edits == (-1, 0, -1)
    expected = by_formula(without(change, {3}), C)
    assert (found.changes["w0"].delta() - expected).norm() < 1e-9 * expected.norm()
    again = merge([found, keep(whole, "1")])
    assert close(again, whole)
    assert sorted(again.changes["w0"].edits) == [-1, -1, 0, 1]


def test_conflicts():
    one = patch(2, 1)
    other = record(7, subject="Subject  0", prompt="the colour of  subject 0 is", target="red")
    two = patch(1, 2, edits=(other,))
    with pytest.raises(DataError, match="conflicting edits") as caught:
        merge([one, two])
    assert all(word in str(caught.value) for word in ("p1", "p2", "'t0'", "'red'", "drop one"))
    assert len(merge([one, two], allow_conflicts=True).header.editing.edits) == 3
    same = patch(1, 3, edits=(record(0, target="T0"),))
    assert [e.id for e in merge([one, same]).header.editing.edits] == ["p1/0", "1", "p3/0"]


def test_what_cannot_be_merged():
    one = patch(1, 1, tag="a")
    with pytest.raises(UsageError, match="two or more different"):
        merge([one])
    with pytest.raises(UsageError, match="two or more different"):
        merge([one, one])
    elsewhere = patch(
        1, 2, base={n: BaseTensor(sha256="9", shape=(D_OUT, D_IN)) for n in ("w0", "w1")}
    )
    with pytest.raises(DataError, match="other values of w0"):
        merge([one, elsewhere])
    with pytest.raises(DataError, match="different tokenizers"):
        merge([patch(1, 1, tokenizer="a"), patch(1, 2, tag="b", tokenizer="b")])
    with pytest.raises(DataError, match="on top of different patches"):
        merge([one, patch(1, 2, tag="b", after=("f" * 64,))])


def test_a_stack_becomes_one_patch():
    one = patch(2, 1, tag="a")
    two = patch(2, 2, tag="b", after=(patch_hash(one),))
    both = merge([one, two])
    assert both.header.after == ()
    assert "on top of another" in both.header.history[-1]
    for name, change in both.changes.items():
        torch.testing.assert_close(
            change.delta(), one.changes[name].delta() + two.changes[name].delta()
        )


def test_what_cannot_be_dropped():
    whole = patch(3)
    with pytest.raises(UsageError, match="no edit '17'; it has 0, 1, 2"):
        drop(whole, "17")
    with pytest.raises(UsageError, match="remove the patch instead"):
        drop(whole, ["0", "1", "2"])
    with pytest.raises(UsageError, match="at least one"):
        drop(whole, [])
    assert keep(whole, ["0", "1", "2"]) is whole


def test_the_results_are_files(tmp_path):
    both = merge([patch(3, 1, tag="a"), patch(2, 2, tag="b")])
    for number, made in enumerate((both, drop(both, "a1"))):
        path = tmp_path / f"{number}.safetensors"
        assert save_patch(made, path) == patch_hash(load_patch(path))
