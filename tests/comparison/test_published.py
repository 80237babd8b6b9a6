"""Published orderings are looked up under their own conditions."""

import pytest

from modalign.comparison.published import ADVICE, CLAIMS, check, training_mode
from modalign.comparison.results import MethodResult
from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import Difference

KNOWN = {
    *("linear", "mlp", "fused_mlp", "avgpool_mlp", "pixel_shuffle_linear", "pixel_shuffle_mlp"),
    *("ldp", "ldpv2", "c_abstractor", "clipcap", "clipcap_lowrank", "raw_patches", "resampler"),
    *("qformer", "qformer_no_stage_one", "d_abstractor", "gated_cross_attention", "llama_adapter"),
    *("vq_codes", "vocabulary_codes"),
}


def method(name, tokens=64, **more):
    return MethodResult(
        name=name,
        family="converter",
        group="direct mapping",
        variant="matched",
        enters="prefix",
        papers=[],
        accuracy=0.5,
        tokens=tokens,
        **more,
    )


def difference(first, second, value, verdict):
    interval = Estimate(value=value, low=value - 0.02, high=value + 0.02, n=100)
    return Difference(
        first=first, second=second, difference=interval, p_value=0.001, p_holm=0.01, verdict=verdict
    )


def outcomes(methods, differences, mode="full"):
    """Claim text -> outcome, of the claims that could be compared."""
    rows = check(methods, differences, mode)
    return {row.claim: row.outcome for row in rows if row.outcome != "not comparable"}


def test_claims_name_known_methods():
    named = {name for claim in CLAIMS for pair in claim.pairs for name in pair}
    assert named <= KNOWN


def test_agreement_and_contradiction():
    methods = [method("linear"), method("resampler")]
    good = [difference("linear", "resampler", 0.1, "first")]
    bad = [difference("linear", "resampler", -0.1, "second")]
    assert set(outcomes(methods, good).values()) == {"agrees"}
    rows = [r for r in check(methods, bad, "full") if r.outcome == "contradicts"]
    assert rows
    assert all(row.advice == ADVICE for row in rows)
    assert "linear minus resampler: −10.0 points (−12.0 to −8.0; p 0.010)" in rows[0].ours


def test_order_of_the_difference_does_not_matter():
    methods = [method("linear"), method("resampler")]
    turned = [difference("resampler", "linear", -0.1, "second")]
    assert set(outcomes(methods, turned).values()) == {"agrees"}


def test_what_is_trained_turns_the_order():
    methods = [method("gated_cross_attention", tokens=1), method("resampler")]
    found = [difference("gated_cross_attention", "resampler", 0.1, "first")]
    assert set(outcomes(methods, found, "frozen").values()) == {"agrees"}
    assert set(outcomes(methods, found, "lora").values()) == {"contradicts"}
    assert outcomes(methods, found, "full") == {}


def test_unequal_tokens_are_not_comparable():
    methods = [method("linear", tokens=256), method("resampler")]
    found = [difference("linear", "resampler", -0.1, "second")]
    assert outcomes(methods, found) == {}
    assert any("linear costs 256 tokens" in row.ours for row in check(methods, found, "full"))


def test_a_small_published_gap_is_met_by_a_tie():
    methods = [method("mlp"), method("linear")]
    tie = [difference("mlp", "linear", 0.001, "no difference found")]
    assert set(outcomes(methods, tie).values()) == {"agrees"}
    methods = [method("mlp"), method("llama_adapter")]
    tie = [difference("mlp", "llama_adapter", 0.001, "no difference found")]
    assert set(outcomes(methods, tie).values()) == {"no difference found"}


def test_skills_need_intervals_that_do_not_touch():
    def skilled(name, value):
        interval = Estimate(value=value, low=value - 0.05, high=value + 0.05, n=50)
        return method(name, skills={"spatial relation": interval})

    def spatial(first, second):
        found = outcomes([skilled("mlp", first), skilled("qformer", second)], [])
        return set(found.values())

    assert spatial(0.8, 0.6) == {"agrees"}
    assert spatial(0.6, 0.8) == {"contradicts"}
    assert spatial(0.65, 0.6) == {"no difference found"}


def test_variants_speak_for_their_method_and_failures_do_not():
    methods = [method("linear"), method("resampler:published")]
    found = [difference("linear", "resampler:published", 0.1, "first")]
    assert "agrees" in outcomes(methods, found).values()
    methods[1] = method("resampler:published", status="failed")
    assert outcomes(methods, found) == {}


def test_contradictions_come_first():
    methods = [method("linear"), method("resampler"), method("llama_adapter")]
    found = [
        difference("linear", "llama_adapter", 0.1, "first"),
        difference("linear", "resampler", -0.1, "second"),
    ]
    assert check(methods, found, "full")[0].outcome == "contradicts"


@pytest.mark.parametrize(
    ("word", "mode"), [("LoRA r=16", "lora"), ("frozen", "frozen"), ("full", "full")]
)
def test_training_mode(word, mode):
    assert training_mode(word) == mode
