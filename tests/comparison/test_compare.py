"""A whole comparison: what it writes, that it never selects on test data, that a kill costs nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from compared import Compared, counted, read_rows, results, write_rows
from modalign.comparison.compare import compare
from modalign.comparison.job import Job, load_scores
from modalign.comparison.results import Comparison
from modalign.comparison.winner import trained_session
from modalign.errors import UsageError
from modalign.evaluation.generation import generate_answers
from modalign.models.asking import conversation_of
from modalign.models.export import Expected, load_model, observe
from modalign.models.export.verify import NEW_TOKENS, verify_in_clean_process


def selection(comparison: Comparison) -> dict[str, object]:
    """Everything that must not depend on evaluation answers."""
    assert comparison.recommendation is not None
    return {
        "methods": {
            m.name: (
                m.rank,
                m.candidate,
                m.learning_rate,
                m.val_accuracy,
                [trial.model_dump() for trial in m.trials],
                [(run.seed, run.val_loss, run.val_accuracy) for run in m.seeds],
            )
            for m in comparison.methods
        },
        "recommendation": comparison.recommendation.model_dump(),
    }


def test_report_says_at_the_top_what_counts(compared: Compared):
    report = json.loads((compared.out / "report.json").read_text())
    Draft202012Validator(Comparison.model_json_schema()).validate(report)
    for method in report["methods"]:
        for key in (
            "name",
            "family",
            "accuracy",
            "trainable_parameters",
            "tokens",
            "flops",
            "seconds",
        ):
            assert method[key] is not None, key
    assert {"method", "rule", "confidence"} <= report["recommendation"].keys()
    assert {m["name"] for m in report["methods"]} == set(compared.config.methods)
    for name in ("report.html", "report.md", "best/config.json", "config.yaml"):
        assert (compared.out / name).is_file(), name


def test_every_method_is_trained_twice_and_more_where_it_decides(compared: Compared):
    comparison = compared.comparison
    schedule, recommended = comparison.schedule, comparison.recommendation
    assert schedule is not None
    assert recommended is not None
    seeds = {m.name: [run.seed for run in m.seeds] for m in comparison.methods}
    assert all(each == list(range(len(each))) and len(each) >= 2 for each in seeds.values())
    assert all(m.candidate for m in comparison.methods)
    assert schedule.rounds[0].trainings == 6
    for before, after in pairwise(schedule.rounds):
        assert after.trainings == before.trainings + len(after.added)
    again = Counter(name for each in schedule.rounds for name in each.added)
    assert seeds == {m.name: list(range(2 + again[m.name])) for m in comparison.methods}
    last = schedule.rounds[-1]
    assert (last.method, last.trainings) == (recommended.method, sum(map(len, seeds.values())))
    assert last.confidence == recommended.confidence
    for name in ("report.html", "report.md"):
        assert f"Stopped after {last.trainings} trainings" in (compared.out / name).read_text()


def test_every_method_spends_the_budget(compared: Compared):
    batch = compared.config.training.batch_size
    for method in compared.comparison.methods:
        for run in method.seeds:
            assert 480 <= run.samples <= 480 + 8 * batch, method.name  # a step per stage and trial


def test_features_are_computed_once(compared: Compared):
    images = {*compared.data.glob("images/*/*.png")}
    assert compared.encoded == [len(images) + 1]  # and the blank one


def test_text_only_questions_are_evaluated(compared: Compared):
    assert "text" in compared.comparison.methods[0].skills
    assert compared.comparison.methods[0].transfer is not None


def session_members(session: int) -> set[int]:
    """Processes of a session that are not zombies."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


def wait_for_half(runs: Path, seconds: float) -> tuple[list[Path], Path]:
    """Wait until a job is finished and another is past its first checkpoint."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done = [path.parent for path in runs.glob("*/seed-*/result.json")]
        going = [path.parent.parent for path in runs.glob("*/seed-*/train/step-*")]
        going = [path for path in going if not (path / "trained.safetensors").exists()]
        if done and going:
            return done, going[0]
        time.sleep(0.01)
    raise AssertionError("no moment with a finished and a running job")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.timeout(600)
def test_killed_resumed_and_with_other_test_answers_it_selects_the_same(
    compared: Compared, small_config, tmp_path, monkeypatch
):
    rows = read_rows(compared.data / "eval.jsonl")
    for row in rows:  # media are found from the file's own folder
        for part in row["messages"][0]["content"]:
            if part["type"] == "image":
                part["image"] = str(compared.data / part["image"])
    turned = np.random.default_rng(1).permutation(len(rows))
    answers = [rows[index]["messages"][-1]["content"] for index in turned]
    for row, answer in zip(rows, answers, strict=True):
        row["messages"][-1]["content"] = answer
    write_rows(tmp_path / "permuted.jsonl", rows)
    file = small_config(data={"eval": str(tmp_path / "permuted.jsonl")})
    out = tmp_path / "out"

    parent = subprocess.Popen(
        [sys.executable, "-m", "modalign", "compare", str(file), "--out", str(out)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        done, going = wait_for_half(out / "runs", 600)
        parent.kill()
        parent.wait()
        until = time.monotonic() + 10
        while session_members(parent.pid) and time.monotonic() < until:
            time.sleep(0.05)
        assert not session_members(parent.pid), "workers outlive their parent"
    finally:
        if parent.poll() is None or session_members(parent.pid):
            os.killpg(parent.pid, signal.SIGKILL)
    assert not (going / "result.json").exists()
    assert list((going / "train").glob("step-*"))
    kept = [*(folder / "result.json" for folder in done), *going.glob("trials.json")]
    times = [path.stat().st_mtime_ns for path in kept]

    with pytest.raises(UsageError, match=r"budget was 480samples, now 496samples"):
        compare(small_config(data={"eval": str(tmp_path / "permuted.jsonl")}, budget="496samples"),
                out=out, resume=True, cache=compared.cache)  # fmt: skip
    encoded = counted(monkeypatch)
    again = compare(file, out=out, resume=True, cache=compared.cache)

    assert encoded == [0]
    assert times == [path.stat().st_mtime_ns for path in kept]
    trained = sorted((compared.out / "runs").glob("*/seed-*/trained.safetensors"))
    assert len(trained) == len(results(compared.prepared()))
    for path in trained:
        other = out / path.relative_to(compared.out)
        assert other.read_bytes() == path.read_bytes(), other
    assert selection(again) == selection(compared.comparison)
    assert again.schedule == compared.comparison.schedule
    assert [m.accuracy for m in again.methods] != [m.accuracy for m in compared.comparison.methods]


def test_a_folder_in_use_is_refused(compared: Compared):
    before = (compared.out / "config.yaml").read_text()
    with pytest.raises(UsageError, match="--resume"):
        compare(compared.config_file, out=compared.out, cache=compared.cache)
    assert (compared.out / "config.yaml").read_text() == before


@pytest.mark.parametrize("wrong", [{"methods": ["linaer"]}, {"budget": "many"}])
def test_a_wrong_configuration_leaves_the_folder_free(small_config, small_cache, tmp_path, wrong):
    with pytest.raises(UsageError):
        compare(small_config(**wrong), out=tmp_path / "out", cache=small_cache)
    assert not (tmp_path / "out" / "config.yaml").exists()


def test_teacher_forced_scores_are_those_of_generation(compared: Compared):
    prepared = compared.prepared()
    first = [result for result in results(prepared) if result.seed == 0]
    for method, result in zip(prepared.methods, first, strict=True):
        assert result.method == method.name
        job = Job(compared.out, method.name, 0)
        session = trained_session(job, compared.cache)
        samples = prepared.splits.evaluation
        said = generate_answers(
            session.model, session.collator, samples, session.processor.tokenizer
        )
        right = [a == s.record.answer.strip() for a, s in zip(said, samples, strict=True)]
        assert right == load_scores(job.run)["eval"].tolist(), method.name


def test_the_winner_loads_in_plain_transformers(compared: Compared):
    best = compared.out / "best"
    model, processor = load_model(best)
    samples = [s for s in compared.prepared().splits.evaluation if s.media][:3]
    conversations = [conversation_of(sample.record, processor) for sample in samples]
    seen = observe(model, processor, conversations, NEW_TOKENS)
    verify_in_clean_process([Expected(best, conversations, seen)])


def test_one_method_one_seed_without_further_files(
    compared: Compared, small_config, tmp_path, monkeypatch
):
    encoded = counted(monkeypatch)
    file = small_config(
        data={"val": None, "eval": None},
        methods=["linear"],
        seeds=1,
        budget="32samples",
        examples=1,
    )
    found = compare(file, out=tmp_path / "out", cache=compared.cache)
    (method,) = found.methods
    assert method.candidate
    assert [run.seed for run in method.seeds] == [0]
    assert method.accuracy == method.val_accuracy
    assert method.image_gain_blank is None
    assert found.recommendation is not None
    assert (found.recommendation.method, found.recommendation.confidence) == (None, None)
    assert found.recommendation.saved == "linear"  # 32 samples teach nothing
    card = (tmp_path / "out" / "best" / "README.md").read_text()
    assert "**Not recommended.**" in card
    assert any("validation data" in note for note in found.notes)
    assert found.setting.eval_records == 0
    assert found.setting.val_records > 0
    assert encoded == [0]
    assert "linear" in (tmp_path / "out" / "report.md").read_text()
