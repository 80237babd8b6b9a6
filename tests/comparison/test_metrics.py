"""What a comparison judges answers by: likelihoods and similarities against another road, and one comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from rapidfuzz.distance import Levenshtein

import tiny
from modalign.comparison.compare import compare
from modalign.comparison.metrics import Metric, metric_names
from modalign.data.supervision import Sample, tokenise
from modalign.errors import DataError, UsageError
from modalign.evaluation.generation import answer_records
from modalign.evaluation.likelihood import score_options
from modalign.evaluation.tasks.base import Score
from modalign.training.staged import Staged

OPTIONS = ("yes", "no", "seven")


@pytest.fixture(scope="module")
def asked(compose_tiny: Callable[..., Any]) -> tuple[Staged, list[Sample]]:
    """A model of random weights, and five questions with options about images."""
    model, processor = compose_tiny("mlp")
    model.eval()
    session = SimpleNamespace(
        model=model,
        processor=processor,
        collator=tiny.collator(model, processor),
        device=model.device,
    )
    records = [
        replace(
            tiny.record([tiny.image(number), "what is it?"], OPTIONS[number % 3], row=number),
            options=OPTIONS,
        )
        for number in range(5)
    ]
    return cast(Staged, session), [tokenise(record, processor.tokenizer) for record in records]


def test_the_likeliest_option_is_that_of_eval(asked: tuple[Staged, list[Sample]]) -> None:
    session, samples = asked
    found = Metric.named("choice").judge(session, samples).correct
    records = [sample.record for sample in samples]
    scored = score_options(session.model, session.processor, records, [OPTIONS] * len(records))
    expected = [
        max(options, key=lambda option: option.loglikelihood).text == record.answer
        for record, options in zip(records, scored, strict=True)
    ]
    assert found.tolist() == expected


def test_similarity_is_of_the_answers_that_are_generated(
    asked: tuple[Staged, list[Sample]],
) -> None:
    session, samples = asked
    records = [sample.record for sample in samples]
    said = answer_records(session.model, session.processor, records)
    near = replace(samples[0], record=_with_answer(samples[0], said[0][:-1]))
    found = Metric.named("anls").judge(session, [near, *samples[1:]]).correct
    distance = Levenshtein.normalized_distance(
        " ".join(said[0].lower().split()), " ".join(said[0][:-1].lower().split())
    )
    assert 0 < found[0] < 1
    assert found[0] == pytest.approx(1 - distance)


def _with_answer(sample: Sample, answer: str) -> Any:
    question, last = sample.record.messages
    return replace(sample.record, messages=(question, replace(last, parts=(answer,))))


def test_guesses_are_judged_by_the_same_metric(asked: tuple[Staged, list[Sample]]) -> None:
    _, samples = asked
    choice = Metric.named("choice")
    assert choice.chance(samples, samples) == pytest.approx([1 / 3] * 5)
    # yes and no were each right twice; the most frequent is the first of them
    assert choice.majority(samples, samples) == [1.0, 0.0, 0.0, 1.0, 0.0]
    train = [replace(samples[0], record=_with_answer(samples[0], "sevens"))]
    assert Metric.named("anls").majority(train, samples[2:3]) == pytest.approx([1 - 1 / 6])


def test_a_share_of_words_is_never_negative() -> None:
    task = Metric.named("wer").task
    assert task is not None
    assert [task.quality(Score(rate, "")) for rate in (0.0, 0.25, 3.0)] == [1.0, 0.75, 0.0]


def test_what_is_no_metric_is_refused(asked: tuple[Staged, list[Sample]]) -> None:
    assert {"exact", "anls", "choice", "vqa", "pope", "wer"} == set(metric_names())
    with pytest.raises(UsageError, match="did you mean anls"):
        Metric.named("anlss")
    with pytest.raises(UsageError, match="caption' is of whole files"):
        Metric.named("caption")
    without = [replace(s, record=replace(s.record, options=())) for s in asked[1]]
    with pytest.raises(DataError, match="0 options, not two or more"):
        Metric.named("choice").check(without)


def test_a_comparison_by_similarity(compared: Any, small_config: Any, tmp_path: Any) -> None:
    file = small_config(
        data={"val": None}, methods=["linear"], seeds=1, budget="32samples", examples=0,
        metric="anls",
    )  # fmt: skip
    found = compare(file, out=tmp_path / "out", cache=compared.cache)
    (method,) = found.methods
    assert found.setting.metric == "anls"
    assert method.accuracy is not None
    scores = np.load(tmp_path / "out" / "runs" / "linear" / "seed-0" / "scores.npz")["val"]
    assert scores.dtype == float
    assert np.all((scores == 0) | ((scores > 0.5) & (scores <= 1)))  # ANLS counts from a half
    assert method.val_accuracy == pytest.approx(scores.mean())
    assert any("judged by ANLS (--metric anls)" in note for note in found.notes)
    with pytest.raises(UsageError, match="--plan-for reads learning curves"):
        compare(
            small_config(metric="anls", plan_for="1000samples", budget="32samples"),
            out=tmp_path / "other",
            cache=compared.cache,
        )
