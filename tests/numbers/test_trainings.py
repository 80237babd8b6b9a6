"""Questions and trainings: intervals cover the truth, spreads come from where they should."""

import time

import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import binomtest, ttest_1samp

from modalign.numbers.pairs import difference_estimate, differences
from modalign.numbers.trainings import estimate_mean, estimate_ratio, hierarchical_bootstrap


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
        found = estimate_mean(answers["a"], resamples=400, seed=trial)
        hits += found.low <= truth <= found.high
    assert 0.90 <= hits / 200 <= 1.0


def test_paired_differences_cover_the_truth():
    rng = np.random.default_rng(2)
    truth = true_accuracy(1.0, 0.8, 0.1) - true_accuracy(0.5, 0.8, 0.1)
    hits = 0
    for trial in range(150):
        answers = simulate(rng, {"a": 1.0, "b": 0.5}, 3, 200, 0.1)
        drawn = hierarchical_bootstrap(answers, resamples=400, seed=trial)
        found = difference_estimate(drawn, "a", "b")
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
        right = estimate_mean(answers, groups=groups, resamples=400, seed=trial)
        wrong = estimate_mean(answers, resamples=400, seed=trial)
        clustered += right.low <= truth <= right.high
        naive += wrong.low <= truth <= wrong.high
    assert clustered / 150 >= 0.89
    assert naive < clustered


def test_no_difference_is_rarely_called_one():
    rng = np.random.default_rng(4)
    false = 0
    for trial in range(100):
        answers = simulate(rng, {"a": 0.5, "b": 0.5, "c": 0.5}, 1, 150, 0.0)
        drawn = hierarchical_bootstrap(answers, resamples=1000, seed=trial)
        false += any(d.verdict != "no difference found" for d in differences(drawn))
    assert false <= 10  # family-wise 5 %


def test_pairing_makes_differences_narrower_than_the_parts():
    rng = np.random.default_rng(5)
    base = (rng.random((1, 400)) < 0.6).astype(float)
    better = base.copy()
    better[0, np.flatnonzero(base[0] == 0)[:20]] = 1
    drawn = hierarchical_bootstrap({"base": base, "better": better})
    difference = difference_estimate(drawn, "better", "base")
    single = drawn.estimate("base")
    assert difference.value == pytest.approx(0.05)
    assert difference.high - difference.low < 0.6 * (single.high - single.low)
    assert differences(drawn)[0].verdict == "second"


def test_more_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(6)
    question = rng.random(500)
    same = np.stack([(question < 0.6)] * 3).astype(float)
    apart = np.stack([(question < p) for p in (0.5, 0.6, 0.7)]).astype(float)
    drawn = hierarchical_bootstrap({"same": same, "apart": apart})
    widths = {m: drawn.estimate(m).high - drawn.estimate(m).low for m in ("same", "apart")}
    assert widths["apart"] > 1.5 * widths["same"]


def test_three_equal_seeds_are_surer_than_one():
    rng = np.random.default_rng(7)
    p = rng.random(400)
    three = (rng.random((3, 400)) < p).astype(float)
    widths = [
        np.mean([f.high - f.low for f in (estimate_mean(rows, seed=s) for s in range(3))])
        for rows in (three, three[:1])
    ]
    assert widths[0] < 0.95 * widths[1]


def test_methods_trained_once_have_the_spread_of_the_others():
    rng = np.random.default_rng(8)
    alone, paired = [], []
    for trial in range(30):
        once = simulate(rng, {f"single {i}": 0.7 for i in range(4)}, 1, 600, 0.12)
        twice = simulate(rng, {"a": 0.7, "b": 0.7}, 3, 600, 0.12)
        for answers, false in ((once, alone), (once | twice, paired)):
            found = differences(hierarchical_bootstrap(answers, resamples=2000, seed=trial))
            false.append(any(d.verdict != "no difference found" for d in found))
    assert np.mean(paired) <= 0.07 < np.mean(alone)


def test_one_training_of_every_method_is_told_apart_from_none_needed():
    answers = {name: np.random.default_rng(0).random((1, 30)).round() for name in "ab"}
    found = hierarchical_bootstrap(answers, fixed={"b"})
    assert found.estimate("a").by_trainings is None  # not known
    assert found.estimate("b").trainings is None  # nobody trains it
    assert difference_estimate(found, "a", "b").by_trainings is None


def test_the_parts_of_the_width():
    rng = np.random.default_rng(1)
    answers = (rng.random((3, 4000)) < np.array([[0.6], [0.66], [0.75]])).astype(float)
    found = estimate_mean(answers)
    slope = 0.67 * 0.33  # the interval is made on the logit scale
    reach = (logit(found.high) - logit(found.low)) / 2 * slope
    assert reach == pytest.approx(np.hypot(found.by_questions, found.by_trainings), rel=0.05)
    means = answers.mean(axis=1)
    theirs = ttest_1samp(means, 0).confidence_interval()
    assert found.by_trainings == pytest.approx((theirs.high - theirs.low) / 2, rel=0.02)


def test_shares_are_compared_on_the_logit_scale():
    """The same spread in logits is lent as a smaller one where nearly all answers are right."""
    rng = np.random.default_rng(5)
    twice = rng.random((8, 2, 20_000)) < 1 / (1 + np.exp(-rng.normal(0, 0.3, (8, 2, 1))))
    answers = {f"m{i}": each.astype(float) for i, each in enumerate(twice)}
    for name, share in (("half", 0.5), ("most", 0.95)):
        answers[name] = (rng.random((1, 20_000)) < share).astype(float)
    found = hierarchical_bootstrap(answers)
    half, most = (found.estimate(name).by_trainings for name in ("half", "most"))
    assert most / half == pytest.approx(0.95 * 0.05 / 0.25, rel=0.05)


def test_accuracies_stay_shares():
    nearly = np.ones((3, 50))
    nearly[0, :8] = 0
    found = estimate_mean(nearly)
    assert 0 <= found.low < found.value < found.high <= 1


def test_all_equal_is_no_difference():
    ones = np.ones((3, 40))
    drawn = hierarchical_bootstrap({"a": ones, "b": ones})
    (difference,) = differences(drawn)
    assert difference.verdict == "no difference found"
    assert difference.p_value == difference.p_holm == 1.0
    found = drawn.estimate("a")
    # Nothing to redraw, but 40 questions: what all of them being right allows (Wilson).
    low = binomtest(40, 40).proportion_ci(method="wilson").low
    assert (found.value, found.low, found.high) == (1.0, pytest.approx(low), 1.0)


def test_skills_are_the_items_of_the_skill():
    answers = {"a": np.array([[1, 1, 0, 0, 1, 0]]), "b": np.array([[0, 0, 0, 1, 1, 1]])}
    skills = ["count", "count", "text", "text", None, None]
    drawn = hierarchical_bootstrap(answers, skills=skills)
    found = {skill: part.estimate("a") for skill, part in drawn.skills.items()}
    assert list(found) == ["count", "text"]
    assert (found["count"].value, found["text"].value, found["count"].n) == (1.0, 0.0, 2)


def test_equal_seeds_give_equal_replicates():
    answers = {"a": np.random.default_rng(0).random((2, 30))}
    one, two, other = (hierarchical_bootstrap(answers, seed=s).values["a"] for s in (1, 1, 2))
    assert (one == two).all()
    assert (one != other).any()


@pytest.mark.parametrize(
    "answers",
    [{}, {"a": [1, 0]}, {"a": [[1, np.nan]]}, {"a": [[1, 0]], "b": [[1]]}, {"a": np.ones((0, 3))}],
)
def test_unusable_arrays_are_refused(answers):
    with pytest.raises(ValueError, match=r"no method|expected|not numbers|different numbers"):
        hierarchical_bootstrap(answers)


def test_labels_must_fit():
    with pytest.raises(ValueError, match="2 groups for 3 items"):
        hierarchical_bootstrap({"a": np.ones((1, 3))}, groups=["x", "y"])
    with pytest.raises(ValueError, match="1 skills for 3 items"):
        hierarchical_bootstrap({"a": np.ones((1, 3))}, skills=["x"])


def test_eighteen_methods_are_fast():
    rng = np.random.default_rng(0)
    answers = {f"m{i}": rng.random((3, 2000)) < 0.5 + i / 100 for i in range(18)}
    skills = [f"s{i % 8}" for i in range(2000)]
    start = time.process_time()
    drawn = hierarchical_bootstrap(answers, skills=skills)
    differences(drawn)
    assert time.process_time() - start < 6  # about 1.5 s; a loaded machine gets room


@pytest.mark.parametrize("accuracies", [[0.6, 0.66, 0.75], [0.5, 0.5, 0.6, 0.61, 0.4]])
def test_where_questions_tell_nothing_apart_trainings_have_students_interval(accuracies):
    answers = np.repeat(np.array(accuracies)[:, None], 2000, axis=1)
    answers[:, :2] = [0, 1]  # what an answer is worth at least and at most
    theirs = ttest_1samp(accuracies, 0).confidence_interval()
    found = estimate_mean(answers, resamples=10_000, unit="score")
    assert found.trainings == len(accuracies)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=6e-3)


def test_one_training_has_the_interval_of_its_questions():
    values = np.random.default_rng(1).random((1, 400))
    theirs = ttest_1samp(values[0], 0).confidence_interval()
    found = estimate_mean(values, resamples=20_000)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=2e-3)


def test_luck_on_single_questions_is_counted_once():
    """Trainings of equal skill that err independently: the variance of all their answers together."""
    rng = np.random.default_rng(2)
    spreads = []
    for seed in range(40):
        answers = (rng.random((5, 400)) < 0.5).astype(float)
        drawn = hierarchical_bootstrap({"a": answers}, seed=seed, resamples=400)
        spreads.append(drawn.values["a"].var())
    assert np.mean(spreads) == pytest.approx(0.25 / 2000, rel=0.2)


def test_a_ratio_is_that_of_the_sums():
    above, below = np.array([[1.0, 0, 2, 1]]), np.array([[2.0, 1, 2, 3]])
    found = estimate_ratio(above, below)
    assert found is not None
    assert found.value == pytest.approx(4 / 8)
    assert found.n == 4
    assert estimate_ratio(above, np.zeros((1, 4))) is None


def test_shares_keep_off_their_ends():
    """A share near 1 whose trainings differ: the interval leans down and stays below 1."""
    rng = np.random.default_rng(4)
    answers = (rng.random((3, 500)) < np.array([[0.99], [0.96], [0.91]])).astype(float)
    found = estimate_mean(answers)
    assert found.high < 1
    assert found.value - found.low > 2 * (found.high - found.value)
