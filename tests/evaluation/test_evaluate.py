"""Evaluating a saved model: by generation, and equal to the comparison's teacher-forced scores."""

from __future__ import annotations

import json

import pytest

from compared import Compared, read_rows, results
from modalign.comparison.job import Job, load_scores
from modalign.data.readers import read_records
from modalign.errors import DataError
from modalign.evaluation.evaluate import Evaluation, evaluate_model
from modalign.evaluation.guessing import BlindGuess
from modalign.evaluation.passes import BLANK, SHUFFLED, shuffled
from modalign.evaluation.tasks.base import CHANCE, MOST_FREQUENT


@pytest.fixture(scope="module")
def evaluated(compared: Compared, tmp_path_factory) -> tuple[Evaluation, list[dict]]:
    out = tmp_path_factory.mktemp("evaluated") / "deep" / "answers.jsonl"
    data = str(compared.data / "eval.jsonl")
    found = evaluate_model(compared.out / "best", data, out=out, batch_size=7)
    return found, read_rows(out)


def test_it_equals_the_comparison_record_by_record(compared: Compared, evaluated):
    found, lines = evaluated
    prepared = compared.prepared()
    chosen = compared.comparison.recommendation
    assert chosen is not None
    runs = [r for r in results(prepared) if r.method == chosen.saved]
    best = min(runs, key=lambda result: result.val_loss)
    (method,) = [m for m in prepared.methods if m.name == chosen.saved]
    scores = load_scores(Job(compared.out, method.name, best.seed).run)
    assert [line["score"] for line in lines] == scores["eval"].tolist()
    assert found.overall.measures["accuracy"].value == pytest.approx(
        scores["eval"].mean(), abs=1e-12
    )
    for name, key in ((BLANK, "blank"), (SHUFFLED, "shuffled")):
        beside = found.overall.references[name]["accuracy"].value
        assert beside == pytest.approx(scores[key].mean(), abs=1e-12)
        kept = [line["references"][name]["score"] for line in lines]
        assert kept == scores[key].tolist()


def test_every_record_is_written_down(compared: Compared, evaluated):
    found, lines = evaluated
    rows = read_rows(compared.data / "eval.jsonl")
    assert [line["id"] for line in lines] == [row["id"] for row in rows]
    assert [line["expected"] for line in lines] == [r["messages"][-1]["content"] for r in rows]
    for line in lines:
        assert line["harness"].startswith("modalign ")
        assert line["generation"]["do_sample"] is False
        assert line["prompt"][-1][0] == "user"
        assert (line["task"], line["task_version"]) == ("exact", 1)
        assert line["normalised"] == line["output"].strip().casefold()
        assert line["score"] == (line["output"].strip() == line["expected"])
    assert found.overall.measures["accuracy"].n == len(rows)
    assert sum(row.measures["accuracy"].n for row in found.skills) == len(rows)
    for row in [*found.skills, found.overall]:
        accuracy = row.measures["accuracy"]
        assert accuracy.low <= accuracy.value <= accuracy.high
        assert 0 < row.references[MOST_FREQUENT]["accuracy"].value <= 1
    prepared = compared.prepared()  # as the comparison says, record by record
    asked = read_records(compared.data / "eval.jsonl").records
    known = BlindGuess.of(sample.record for sample in prepared.splits.train).mean_chance(asked)
    assert found.overall.references[CHANCE]["accuracy"].value == pytest.approx(known)
    json.loads(found.model_dump_json())


def test_a_limit_and_text_alone(compared: Compared, tmp_path):
    texts = [r for r in read_rows(compared.data / "eval.jsonl") if r["skill"] == "text"]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    found = evaluate_model(compared.out / "best", str(tmp_path / "text.jsonl"), limit=2)
    assert found.overall.measures["accuracy"].n == 2
    assert BLANK not in found.overall.references
    assert SHUFFLED not in found.overall.references


def test_shuffling_leaves_nobody_the_own_image(compared: Compared):
    records = read_records(compared.data / "eval.jsonl").records
    for own, other in zip(records, shuffled(records), strict=True):
        assert own.answer == other.answer
        assert (list(own.media()) == []) == (list(other.media()) == [])
        if list(own.media()):
            assert list(own.media()) != list(other.media())


def test_broken_data_is_refused(compared: Compared, tmp_path):
    with pytest.raises(DataError, match=r"gone\.jsonl"):
        evaluate_model(compared.out / "best", str(tmp_path / "gone.jsonl"))
