"""Assembling: evaluation answers change accuracies and nothing that was chosen."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from compared import Compared, results
from modalign.comparison.assemble import (
    Gathered,
    assemble,
    candidates,
    seen_in_training,
)
from modalign.comparison.job import JobResult, load_scores
from modalign.comparison.prepared import prepare
from modalign.comparison.setting import shown_part
from modalign.errors import UsageError

KEPT = {"rank", "candidate", "val_accuracy", "learning_rate", "trials", "flops", "seconds", "name"}


@pytest.fixture(scope="module")
def prepared(compared: Compared):
    return compared.prepared()


def test_it_gives_the_same_again(compared: Compared, prepared):
    gathered = Gathered(prepared.splits, results(prepared), compared.out / "runs")
    again = assemble(gathered, compared.config, prepared.methods)
    assert again.methods == compared.comparison.methods
    assert again.recommendation == compared.comparison.recommendation


def test_evaluation_answers_choose_nothing(compared: Compared, prepared, tmp_path):
    shutil.copytree(compared.out / "runs", tmp_path / "runs")
    rng = np.random.default_rng(0)
    for path in (tmp_path / "runs").glob("*/*/scores.npz"):
        scores = load_scores(path.parent)
        for name in {"eval", "blank", "shuffled", "yes", "untrained"} & scores.keys():
            scores[name] = rng.random(len(scores[name])) < 0.8
        np.savez_compressed(path, **scores)
    gathered = Gathered(prepared.splits, results(prepared), tmp_path / "runs")
    found = assemble(gathered, compared.config, prepared.methods)
    assert found.recommendation == compared.comparison.recommendation
    for new, old in zip(found.methods, compared.comparison.methods, strict=True):
        assert new.model_dump(include=KEPT) == old.model_dump(include=KEPT)
        assert new.accuracy != old.accuracy


def test_the_search_is_charged_to_every_seed(compared: Compared, prepared):
    for result in results(prepared):
        if result.seed:
            assert result.search.samples == 0
        else:
            assert 0.25 * 480 <= result.search.samples <= 0.25 * 480 + 6 * 5
    for method in compared.comparison.methods:
        samples = [run.samples for run in method.seeds]
        assert max(samples) - min(samples) <= 5, method.name


def test_who_was_trained_once_is_no_candidate_where_others_were_twice(prepared, tmp_path):
    """Unless nothing trains in it."""
    twice, once, fixed = (method.name for method in prepared.methods)

    def found(*runs: tuple[str, int, int]) -> list[str]:
        made = [JobResult(method=m, seed=seed, trainable={"llm": n}) for m, seed, n in runs]
        return candidates(Gathered(prepared.splits, made, tmp_path), prepared.methods)

    assert found((twice, 0, 9), (twice, 1, 9), (once, 0, 9), (fixed, 0, 0)) == [twice, fixed]
    assert found((twice, 0, 9), (once, 0, 9)) == [twice, once]


def test_parts_are_named_without_the_folders_they_lie_in(compared: Compared, tmp_path, monkeypatch):
    setting = compared.comparison.setting
    assert (setting.llm, setting.encoder) == ("starter language model", "starter vision encoder")
    card = (compared.out / "best" / "README.md").read_text()
    assert "Language model: starter language model. Encoder: starter vision encoder." in card
    (tmp_path / "mine").mkdir()
    assert shown_part(str(tmp_path / "mine")) == "mine"
    monkeypatch.chdir(tmp_path / "mine")
    assert shown_part(".") == "mine"
    for name in ("Qwen/Qwen2.5-0.5B", "none", "package.module:Class"):
        assert shown_part(name) == name


def test_a_failed_method_stands_last_with_its_reason(compared: Compared, prepared):
    bad = prepared.methods[0].name
    found = [r for r in results(prepared) if r.method != bad]
    found.append(JobResult(method=bad, seed=0, failure="the loss became nan"))
    gathered = Gathered(prepared.splits, found, compared.out / "runs")
    found = assemble(gathered, compared.config, prepared.methods)
    last = found.methods[-1]
    assert (last.name, last.status, last.failure) == (bad, "failed", "the loss became nan")
    assert last.rank is None
    assert found.recommendation is not None
    assert found.recommendation.method != bad


def test_all_failed_means_no_recommendation(compared: Compared, prepared):
    first = [JobResult(method=m.name, seed=0, failure="no") for m in prepared.methods]
    gathered = Gathered(prepared.splits, first, compared.out / "runs")
    assert assemble(gathered, compared.config, prepared.methods).recommendation is None


def test_a_skill_only_the_evaluation_has_measures_transfer(prepared):
    evaluation = prepared.splits.evaluation
    seen = seen_in_training(evaluation, prepared.splits.train)
    assert {s.record.skill for s, k in zip(evaluation, seen, strict=True) if not k} == {"next"}
    assert seen_in_training(evaluation, []).all()


def test_who_does_not_beat_the_majority_is_said(compared: Compared, prepared, tmp_path):
    shutil.copytree(compared.out / "runs", tmp_path / "runs")
    for path in (tmp_path / "runs").glob("*/*/scores.npz"):
        scores = load_scores(path.parent)
        scores["eval"] = np.ones_like(scores["eval"])
        np.savez_compressed(path, **scores)
    gathered = Gathered(prepared.splits, results(prepared), tmp_path / "runs")
    notes = assemble(gathered, compared.config, prepared.methods).notes
    assert not [note for note in notes if "most frequent answer" in note]
    one = prepared.methods[0].name
    for path in (tmp_path / "runs" / one).glob("*/scores.npz"):
        scores = load_scores(path.parent)
        scores["eval"] = np.zeros_like(scores["eval"])
        np.savez_compressed(path, **scores)
    notes = assemble(gathered, compared.config, prepared.methods).notes
    assert notes[0].startswith("Not every method is better")
    assert notes[0].endswith(f"no difference was found, or a worse figure, for {one}.")


def test_a_larger_budget_is_asked_of_the_curves(compared: Compared, prepared):
    config = compared.config.model_copy(update={"plan_for": "100000samples"})
    gathered = Gathered(prepared.splits, results(prepared), compared.out / "runs")
    found = assemble(gathered, config, prepared.methods).plan
    assert found is not None
    assert found.budget == "100000samples"
    assert "100,000 samples" in found.words
    if found.methods:
        assert {each.method for each in found.methods} <= {m.name for m in prepared.methods}
        assert sum(each.best for each in found.methods) == pytest.approx(1)
    assert compared.comparison.plan is None


def test_a_plan_for_less_is_refused_before_anything_is_read(compared: Compared, tmp_path):
    config = compared.config.model_copy(update={"plan_for": "10samples"})
    with pytest.raises(UsageError, match="10samples is not larger than --budget"):
        prepare(config, tmp_path, compared.cache)
