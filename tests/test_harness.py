"""Both harnesses against our server: the questions, the comparison, and the whole where they are installed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from bench.harness import __main__ as harness
from bench.harness.data import choose, render
from bench.harness.equality import compare
from bench.harness.tools import TASKS, HarnessError, Scored, run, samples

import tiny
from compared import Compared
from modalign.evaluation.likelihood import score_options
from modalign.models.open import open_model

ASKED = {f"what is {n} plus nothing?": name for n, name in enumerate(("two", "six", "ten", "one"))}
ASKED |= {"is it even or odd?": "odd", "is it larger?": "no"}


def test_options_hold_the_answer_once() -> None:
    rows = choose(ASKED, 6, random.Random(0))
    assert rows == choose(ASKED, 6, random.Random(0))
    assert sorted(row["question"] for row in rows) == sorted(ASKED)
    for row in rows:
        assert row["answer"] == ASKED[row["question"]]
        assert row["options"].count(row["answer"]) == 1
        assert (
            len(set(row["options"]))
            == len(row["options"])
            == (2 if "is it" in row["question"] else 4)
        )


def test_what_a_harness_reads_has_the_likelihoods_that_eval_gives(llm_folder: Any) -> None:
    """Prompt and continuation as text, tokenised as lm-evaluation-harness does it."""
    model, tokenizer = open_model(llm_folder())
    row = choose(ASKED, 1, random.Random(3))[0]
    given = render(tokenizer, row)
    record = tiny.record(row["question"], row["answer"])
    ours = score_options(model, tokenizer, [record], [row["options"]])[0]
    for option, found in zip(given["choices"], ours, strict=True):
        ids = tokenizer(given["prompt"] + option, add_special_tokens=False)["input_ids"]
        start = len(tokenizer(given["prompt"], add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        plain = sum(float(logs[place - 1, ids[place]]) for place in range(start, len(ids)))
        assert found.loglikelihood == pytest.approx(plain, abs=1e-3)
    assert given["choices"][given["gold"]].startswith(row["answer"])


def test_a_difference_is_found_whatever_the_mean_says() -> None:
    ours = [Scored(1.0, "two"), Scored(0.0, "six")]
    assert compare("x", ours, [Scored(1.0, " two"), Scored(0.0, "six\n")]).holds
    swapped = compare("x", ours, [Scored(0.0, "two"), Scored(1.0, "six")])
    assert swapped.ours == swapped.theirs
    assert swapped.different == (0, 1)
    assert compare("x", ours, [Scored(1.0, "two"), Scored(0.0, "ten")]).different == (1,)
    options = [Scored(1.0, options=(-1.0, -2.0))]
    assert compare("x", options, [Scored(1.0, options=(-1.00001, -2.0))]).holds
    apart = compare("x", options, [Scored(1.0, options=(-1.0, -2.1))])
    assert apart.largest == pytest.approx(0.1)
    assert not apart.holds
    with pytest.raises(ValueError, match="2 records against 1"):
        compare("x", ours, ours[:1])
    with pytest.raises(ValueError, match="0 records"):
        compare("x", [], [])


def test_a_failed_process_is_told_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"(?s)failed \(3\).*no such task"):
        run(["sh", "-c", "echo no such task; exit 3"], tmp_path / "it.log")
    with pytest.raises(HarnessError, match="0 files of samples"):
        samples(tmp_path, "modalign_choices")


@pytest.mark.parametrize(
    ("file", "metric"), [("lm/modalign_choices", "acc"), ("lmms/modalign_scenes", "exact_match")]
)
def test_tasks_are_local(file: str, metric: str) -> None:
    text = (TASKS / f"{file}.yaml").read_text().replace("!function ", "")
    task = yaml.safe_load(text)
    assert task["task"] == file.split("/")[1]
    assert task["dataset_path"] == "json"
    assert "/" not in task["dataset_kwargs"]["data_files"]["test"]
    assert [each["metric"] for each in task["metric_list"]] == [metric]


def test_without_the_environments_it_says_what_to_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["bench.harness"])
    assert harness.main() == 2
    assert "run make harness" in capsys.readouterr().err


@pytest.mark.skipif(
    bool(harness.missing_tools()),
    reason=f"no environment of {' and '.join(harness.missing_tools())}: make harness",
)
def test_both_harnesses_score_as_eval_does(compared: Compared, tmp_path: Path) -> None:
    for found in harness.measure(compared.out / "best", tmp_path / "run", 8):
        assert found.n == 8
        assert found.holds, found
