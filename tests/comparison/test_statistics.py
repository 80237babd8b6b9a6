"""Intervals cover the truth, differences are paired, Holm is Holm's."""

import time

import numpy as np
import pytest

from modalign.comparison import statistics as st


def simulate(rng, methods, seeds, items, seed_sd, difficulty_sd=0.8, clusters=None):
    """Draw right/wrong answers whose true accuracy is known only by averaging; see the caller."""
    difficulty = rng.normal(0, difficulty_sd, items)
    if clusters is not None:
        difficulty = difficulty + rng.normal(0, 1.0, clusters.max() + 1)[clusters]
    out = {}
    for name, ability in methods.items():
        shift = rng.normal(0, seed_sd, (seeds, 1))
        p = 1 / (1 + np.exp(-(ability + shift + difficulty)))
        out[name] = (rng.random((seeds, items)) < p).astype(float)
    return out


def true_accuracy(ability, *spreads):
    draws = np.random.default_rng(9).normal(0, np.sqrt(sum(s**2 for s in spreads)), 400_000)
    return float((1 / (1 + np.exp(-(ability + draws)))).mean())


@pytest.mark.parametrize(("seeds", "seed_sd"), [(1, 0.0), (3, 0.15), (5, 0.15)])
def test_intervals_cover_the_truth(seeds, seed_sd):
    rng = np.random.default_rng(1)
    truth = true_accuracy(0.7, seed_sd, 0.8)
    hits = 0
    for trial in range(200):
        answers = simulate(rng, {"a": 0.7}, seeds, 200, seed_sd)
        found = st.mean_interval(answers["a"], resamples=400, seed=trial)
        hits += found.low <= truth <= found.high
    assert 0.90 <= hits / 200 <= 1.0


def test_paired_differences_cover_the_truth():
    rng = np.random.default_rng(2)
    truth = true_accuracy(1.0, 0.8, 0.1) - true_accuracy(0.5, 0.8, 0.1)
    hits = 0
    for trial in range(150):
        answers = simulate(rng, {"a": 1.0, "b": 0.5}, 3, 200, 0.1)
        drawn = st.hierarchical_bootstrap(answers, resamples=400, seed=trial)
        found = st.difference_interval(drawn, "a", "b")
        hits += found.low <= truth <= found.high
    assert hits / 150 >= 0.9


def test_clusters_widen_the_interval_and_keep_coverage():
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(50), 6)
    groups = [f"image {c}" for c in clusters]
    truth = true_accuracy(0.5, 0.3, 1.0)
    clustered = naive = 0
    for trial in range(150):
        answers = simulate(rng, {"a": 0.5}, 1, 300, 0.0, 0.3, clusters)["a"]
        right = st.mean_interval(answers, groups=groups, resamples=400, seed=trial)
        wrong = st.mean_interval(answers, resamples=400, seed=trial)
        clustered += right.low <= truth <= right.high
        naive += wrong.low <= truth <= wrong.high
    assert clustered / 150 >= 0.89
    assert naive < clustered


def test_no_difference_is_rarely_called_one():
    rng = np.random.default_rng(4)
    false = 0
    for trial in range(100):
        answers = simulate(rng, {"a": 0.5, "b": 0.5, "c": 0.5}, 1, 150, 0.0)
        drawn = st.hierarchical_bootstrap(answers, resamples=1000, seed=trial)
        false += any(d.verdict != "no difference found" for d in st.differences(drawn))
    assert false <= 10  # family-wise 5 %


def test_pairing_makes_differences_narrower_than_the_parts():
    rng = np.random.default_rng(5)
    base = (rng.random((1, 400)) < 0.6).astype(float)
    better = base.copy()
    better[0, np.flatnonzero(base[0] == 0)[:20]] = 1
    drawn = st.hierarchical_bootstrap({"base": base, "better": better})
    difference = st.difference_interval(drawn, "better", "base")
    single = st.interval(drawn, "base")
    assert difference.value == pytest.approx(0.05)
    assert difference.high - difference.low < 0.6 * (single.high - single.low)
    assert st.differences(drawn)[0].verdict == "second"


def test_more_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(6)
    question = rng.random(500)
    same = np.stack([(question < 0.6)] * 3).astype(float)
    apart = np.stack([(question < p) for p in (0.5, 0.6, 0.7)]).astype(float)
    drawn = st.hierarchical_bootstrap({"same": same, "apart": apart})
    widths = {m: st.interval(drawn, m).high - st.interval(drawn, m).low for m in ("same", "apart")}
    assert widths["apart"] > 1.5 * widths["same"]


def test_seed_shifts_have_the_variance_of_a_mean():
    shifts = st._seed_shifts(3, 200_000, np.random.default_rng(0))
    values = np.array([-1.0, 0.0, 1.0])  # sample variance 1
    assert shifts.sum(axis=1) == pytest.approx(np.zeros(len(shifts)))
    assert (shifts @ values).var() == pytest.approx(1 / 3, rel=0.02)
    assert (st._seed_shifts(1, 5, np.random.default_rng(0)) == 0).all()


def test_three_equal_seeds_are_surer_than_one():
    rng = np.random.default_rng(7)
    p = rng.random(400)
    three = (rng.random((3, 400)) < p).astype(float)
    widths = [
        np.mean([f.high - f.low for f in (st.mean_interval(rows, seed=s) for s in range(3))])
        for rows in (three, three[:1])
    ]
    assert widths[0] < 0.95 * widths[1]


def test_one_seed_can_borrow_the_spread_of_the_others():
    rng = np.random.default_rng(8)
    alone, paired = [], []
    for trial in range(60):
        methods = {f"single {i}": 0.7 for i in range(4)}
        answers = simulate(rng, methods, 1, 600, 0.12)
        answers |= simulate(rng, {"a": 0.7, "b": 0.7}, 3, 600, 0.12)
        for borrow, false in ((False, alone), (True, paired)):
            drawn = st.hierarchical_bootstrap(
                answers, resamples=2000, seed=trial, borrow_seeds=borrow
            )
            found = st.differences(drawn)
            false.append(any(d.verdict != "no difference found" for d in found))
    assert np.mean(paired) <= 0.12
    assert np.mean(paired) < np.mean(alone)


def test_nothing_to_borrow_changes_nothing():
    answers = {"a": np.random.default_rng(0).random((1, 30))}
    one, two = (
        st.hierarchical_bootstrap(answers, borrow_seeds=borrow).values["a"]
        for borrow in (False, True)
    )
    assert (one == two).all()


def test_compare_all_is_every_pair():
    rng = np.random.default_rng(0)
    answers = {name: rng.random((2, 50)) < p for name, p in (("a", 0.9), ("b", 0.2), ("c", 0.9))}
    found = {(d.first, d.second): d.verdict for d in st.compare_all(answers)}
    assert found[("a", "b")] == "first"
    assert found[("b", "c")] == "second"
    assert set(found) == {("a", "b"), ("a", "c"), ("b", "c")}


def test_accuracies_stay_shares():
    nearly = np.ones((3, 50))
    nearly[0, :8] = 0
    found = st.mean_interval(nearly)
    assert 0 <= found.low < found.value < found.high <= 1


def test_all_equal_is_no_difference():
    ones = np.ones((3, 40))
    drawn = st.hierarchical_bootstrap({"a": ones, "b": ones})
    (difference,) = st.differences(drawn)
    assert difference.verdict == "no difference found"
    assert difference.p_value == difference.p_holm == 1.0
    found = st.interval(drawn, "a")
    assert (found.value, found.low, found.high, found.n) == (1.0, 1.0, 1.0, 40)


def test_holm_by_hand():
    # sorted .005 .01 .03 .04 -> x4 .02, x3 .03, x2 .06, x1 .04 raised to .06
    assert st.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert st.holm([0.6, 0.9]) == [1.0, 1.0]
    assert st.holm([0.02]) == [0.02]
    assert st.holm([]) == []


def test_p_value_by_hand():
    values = {"a": np.array([0.1, 0.2, 0.3, -0.1]), "b": np.zeros(4)}
    drawn = st.Replicates({"a": 0.1, "b": 0.0}, values, 10)
    assert st.p_value(drawn, "a", "b") == pytest.approx(2 * (1 + 1) / 5)
    assert st.p_value(drawn, "a", "b") == st.p_value(drawn, "b", "a")


def test_resamples_are_enough_for_holm_among_all_pairs():
    assert st.resamples_for(2) == 2000
    pairs = 18 * 17 // 2
    assert 2 / (st.resamples_for(18) + 1) * pairs < 0.05 / 1.5


def test_skills_are_the_items_of_the_skill():
    answers = {"a": np.array([[1, 1, 0, 0, 1, 0]]), "b": np.array([[0, 0, 0, 1, 1, 1]])}
    skills = ["count", "count", "text", "text", None, None]
    drawn = st.hierarchical_bootstrap(answers, skills=skills)
    found = st.skill_intervals(drawn, "a")
    assert list(found) == ["count", "text"]
    assert (found["count"].value, found["text"].value, found["count"].n) == (1.0, 0.0, 2)


def test_equal_seeds_give_equal_replicates():
    answers = {"a": np.random.default_rng(0).random((2, 30))}
    one, two, other = (st.hierarchical_bootstrap(answers, seed=s).values["a"] for s in (1, 1, 2))
    assert (one == two).all()
    assert (one != other).any()


def test_none_is_a_group_of_its_own():
    assert st._cluster_ids(["x", None, "x", None], 4).tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize(
    "answers",
    [{}, {"a": [1, 0]}, {"a": [[1, np.nan]]}, {"a": [[1, 0]], "b": [[1]]}, {"a": np.ones((0, 3))}],
)
def test_unusable_arrays_are_refused(answers):
    with pytest.raises(ValueError, match=r"no method|expected|not numbers|different numbers"):
        st.hierarchical_bootstrap(answers)


def test_labels_must_fit():
    with pytest.raises(ValueError, match="2 groups for 3 items"):
        st.hierarchical_bootstrap({"a": np.ones((1, 3))}, groups=["x", "y"])
    with pytest.raises(ValueError, match="1 skills for 3 items"):
        st.hierarchical_bootstrap({"a": np.ones((1, 3))}, skills=["x"])


def test_eighteen_methods_are_fast():
    rng = np.random.default_rng(0)
    answers = {f"m{i}": rng.random((3, 2000)) < 0.5 + i / 100 for i in range(18)}
    skills = [f"s{i % 8}" for i in range(2000)]
    start = time.process_time()
    drawn = st.hierarchical_bootstrap(answers, skills=skills)
    st.differences(drawn)
    assert time.process_time() - start < 6  # about 1.5 s; a loaded machine gets room
