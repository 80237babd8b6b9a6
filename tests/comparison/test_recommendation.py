"""The rule picks what it says it picks, and its confidence means something."""

import inspect
import re

import numpy as np
import pytest

from modalign.comparison import recommendation as rec
from modalign.comparison.report.view import confidence_words
from modalign.errors import UsageError
from modalign.numbers.replicates import Part, Replicates
from modalign.numbers.spreads import Spread
from modalign.numbers.trainings import hierarchical_bootstrap


def answers(accuracies, items=600, seeds=3, seed=0):
    rng = np.random.default_rng(seed)
    return {m: (rng.random((seeds, items)) < p).astype(float) for m, p in accuracies.items()}


def cost(flops=1e9, tokens=64, parameters=1000, serving="native:Llava", inference=1e9):
    return rec.Cost(parameters, tokens, flops, inference, 10.0, serving)


def test_clear_winner_wins_whatever_it_costs():
    found = rec.recommend(
        answers({"dear": 0.9, "cheap": 0.6}), {"dear": cost(inference=9e12), "cheap": cost()}
    )
    assert (found.method, found.rule, found.best) == ("dear", "best-alone", "dear")
    assert found.confidence > 0.99
    assert found.indistinguishable == ["dear"]
    assert "dear" in found.reason


def test_cheaper_of_equals_wins():
    same = answers({"x": 0.8})["x"]
    found = rec.recommend(
        {"dear": same, "cheap": same}, {"dear": cost(inference=2e9), "cheap": cost(inference=1e9)}
    )
    assert (found.method, found.rule) == ("cheap", "cheapest-of-the-best")
    assert found.confidence > 0.7  # below 1: other seeds of "dear" might have been better
    assert found.reason.endswith("Of these cheap is the cheapest.")


def test_the_price_is_named_beside_a_dearer_and_a_cheaper_method():
    given = answers({"mid": 0.9, "dear": 0.85, "cheap": 0.6}, items=2000)
    costs = {
        "mid": cost(inference=27e6, tokens=9, parameters=34_000),
        "dear": cost(inference=60e6, tokens=36, parameters=1_000),  # in parameters it is not
        "cheap": cost(inference=9e6, tokens=9, parameters=34_000),
    }
    found = rec.recommend(given, costs)
    assert found.method == "mid"
    told = re.fullmatch(
        r"mid costs 34 k trainable parameters, 9 tokens an item and 27 MFLOPs an answer\. "
        r"dear costs four times the tokens for (\d\.\d) points less \((-?[\d.]+) to ([\d.]+)\)\. "
        r"cheap costs a third of the compute per answer for (\d+\.\d) points less \(.*\)\.",
        found.price,
    )
    assert told is not None, found.price
    value, low, high = map(float, told.groups()[:3])
    assert value == pytest.approx(5, abs=1.5)
    assert low < value < high


def test_a_gap_that_may_be_none_names_both_directions():
    same = answers({"x": 0.8})["x"]
    found = rec.recommend({"a": same, "b": same}, {"a": cost(), "b": cost(tokens=128)})
    assert re.search(
        r"b costs twice the tokens for 0\.0 points more \([\d.]+ less to [\d.]+ more\)", found.price
    )


def test_confidence_after_one_training_says_what_it_does_not_know():
    costs = {"a": cost(), "b": cost()}
    once, twice = (
        confidence_words(rec.recommend(answers({"a": 0.9, "b": 0.6}, seeds=seeds), costs))
        for seeds in (1, 2)
    )
    assert once.startswith("Nothing is known of other trainings: every method was trained once.")
    assert "sure" not in once.lower().replace("measure", "")
    assert "other seeds" not in once
    assert "trained and asked again, with other seeds" in twice


def test_another_comparison_is_less_sure_than_a_replicate_of_this_one():
    """Both may be off: a lead of two standard errors is held by 92 of 100 others, not by 98."""
    drawn = hierarchical_bootstrap(answers({"a": 0.7, "b": 0.7}, seeds=60, items=1000))
    deviations = {name: drawn.values[name] - drawn.observed[name] for name in "ab"}
    again = {name: drawn.again[name] - drawn.observed[name] for name in "ab"}
    gap, other = (np.std(each["a"] - each["b"]) for each in (deviations, again))
    assert other / gap == pytest.approx(np.sqrt(2), rel=0.05)


def test_what_leads_among_equals_is_expected_to_fall_back():
    """Of figures whose errors are as large as their spread, half the lead is luck (Efron and Morris 1975)."""
    rng = np.random.default_rng(0)
    luck = 0.02 * rng.normal(size=(6, 4000))
    middles = 0.7 + 0.02 * np.linspace(-1, 1, 6) / np.linspace(-1, 1, 6).std(ddof=1)
    still = np.zeros(4000)

    def again(error, means):
        parts = {
            str(n): Part(mean, still, error * luck[n], spread=Spread((0.02 * error) ** 2, 1e6))
            for n, mean in enumerate(means)
        }
        return [found.mean() for found in Replicates(parts, 1000, 250).again.values()]

    better = middles[3:]
    kept = better.var(ddof=1) / (better.var(ddof=1) + 0.02**2)
    regressed = better.mean() + kept * (better - better.mean())
    assert again(1, middles)[3:] == pytest.approx(regressed, abs=2e-3)
    assert again(1, middles)[:3] == pytest.approx(middles[:3], abs=2e-3)  # nobody leads there
    assert again(0.01, middles) == pytest.approx(middles, abs=1e-3)


@pytest.mark.parametrize(
    ("winner", "loser"),
    [
        (cost(inference=1e9, tokens=256), cost(inference=2e9, tokens=16)),
        (cost(tokens=16, parameters=10**9), cost(tokens=64, parameters=10)),
        (cost(parameters=10, serving="tools"), cost(parameters=20, serving="native:Llava")),
        (cost(serving="native:Llava"), cost(serving="remote-code")),
        (cost(inference=1.001e9, tokens=16), cost(inference=1.0e9, tokens=64)),  # equal FLOPs
    ],
)
def test_order_of_costs(winner, loser):
    same = answers({"x": 0.8})["x"]
    assert rec.recommend({"a": same, "b": same}, {"a": loser, "b": winner}).method == "b"


def test_training_flops_where_inference_is_unknown():
    same = answers({"x": 0.8})["x"]
    costs = {"a": cost(flops=2e9, inference=None), "b": cost(flops=1e9)}
    assert rec.recommend({"a": same, "b": same}, costs).method == "b"


def test_one_point_is_never_worth_paying_for():
    sure = np.ones((1, 1000))
    less = sure.copy()
    less[0, :9] = 0
    costs = {"best": cost(inference=2e9), "near": cost(inference=1e9)}
    assert rec.recommend({"best": sure, "near": less}, costs).method == "near"
    less[0, :20] = 0
    assert rec.recommend({"best": sure, "near": less}, costs).method == "best"


def test_exchangeable_methods_share_the_confidence():
    confidence = [
        rec.recommend(answers({"a": 0.7, "b": 0.7}, 200, 1, s), {"a": cost(), "b": cost()}, seed=s)
        for s in range(40)
    ]
    shares = [r.confidence if r.method == "a" else r.alternatives.get("a", 0) for r in confidence]
    assert 0.35 < np.mean(shares) < 0.65
    for r in confidence:
        assert r.confidence + sum(r.alternatives.values()) == pytest.approx(1)


def test_equal_validation_counts_are_a_coin_toss():
    one = np.tile([1.0, 0.0], 200)[None]
    found = rec.recommend({"a": one, "b": 1 - one}, {"a": cost(), "b": cost()})
    assert 0.4 < found.confidence < 0.6


def test_evaluation_data_has_no_way_in():
    names = set(inspect.signature(rec.recommend).parameters)
    known = {"correct", "costs", "groups", "margin", "resamples", "seed", "drawn"}
    assert names == {*known, "measure"}  # the last is a word


def test_groups_reach_the_bootstrap():
    data = answers({"a": 0.75, "b": 0.7}, items=300, seeds=1)
    costs = {"a": cost(), "b": cost(tokens=16)}
    plain = rec.recommend(data, costs)
    grouped = rec.recommend(data, costs, groups=[str(i // 30) for i in range(300)])
    assert plain.validation["a"] != grouped.validation["a"]


def test_single_candidate():
    found = rec.recommend(answers({"a": 0.7}), {"a": cost()})
    assert (found.rule, found.confidence, found.alternatives) == ("only-candidate", 1.0, {})


def test_unknown_cost_is_an_error():
    with pytest.raises(UsageError, match="no cost is known for b"):
        rec.recommend(answers({"a": 0.7, "b": 0.5}), {"a": cost()})


def test_ranking_is_by_validation_accuracy():
    assert rec.rank_by_validation({"b": 0.5, "c": 0.9, "a": 0.5}) == ["c", "a", "b"]


def test_every_rule_is_explained():
    assert set(rec.RULES) == {"cheapest-of-the-best", "best-alone", "only-candidate", "none"}


BARS = {"chance": np.full(200, 0.25), "majority answer": np.tile([1.0, 0.0], 100)}


def test_a_method_is_compared_with_the_highest_of_its_bars():
    """The majority answer is right in half of the questions, the untrained "b" in three of four."""
    correct = {"a": np.ones((1, 200)), "b": np.ones((1, 200))}
    bars = {"a": BARS, "b": {**BARS, "the untrained model": np.tile([1.0, 1.0, 1.0, 0.0], 50)}}
    first, second = rec.against_bars(correct, bars)
    assert (first.first, first.second, first.difference.value) == ("a", "majority answer", 0.5)
    assert (second.second, second.difference.value) == ("the untrained model", 0.25)
    assert first.verdict == second.verdict == "first"


@pytest.mark.parametrize(("accuracy", "chosen"), [(0.5, None), (0.3, None), (0.9, "a")])
def test_none_is_recommended_where_nothing_was_learnt(accuracy, chosen):
    correct = answers({"a": accuracy, "b": accuracy - 0.2}, items=200, seeds=2)
    found = rec.recommend(correct, {"a": cost(), "b": cost()})
    against = rec.against_bars(correct, dict.fromkeys(correct, BARS))
    checked = rec.checked(found, against, ["train longer"])
    assert checked.method == chosen
    assert checked.against == against
    assert checked.saved == checked.best == "a"
    if chosen is None:
        assert (checked.rule, checked.confidence, checked.advice) == (
            "none",
            None,
            ["train longer"],
        )
        assert "majority answer in 50.0 %" in checked.reason
    else:
        assert checked == found.model_copy(update={"against": against})
