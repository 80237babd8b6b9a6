"""The methods side by side: the plan is paired, cells are kept, failures told, figures agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.invented import counterfactuals
from tiny_tokenizers import tokenizer

import tiny
from modalign.editing.benchmarks.evaluate import evaluate_edits
from modalign.editing.benchmarks.rows import Answer, EditRow, PromptRow
from modalign.editing.benchmarks.scores import columns_of, metrics_of
from modalign.editing.compare import run as running
from modalign.editing.compare.judging import judge_edit
from modalign.editing.compare.plan import draws_of, make_plan, without_edited_neighbours
from modalign.editing.compare.report import report_of
from modalign.editing.compare.request import CompareRequest
from modalign.editing.compare.results import CellResult, EditComparison
from modalign.editing.compare.run import compare_edits
from modalign.editing.compare.scores import differences
from modalign.editing.edits import Edit, Neighbour
from modalign.editing.engine.solve import SolveError
from modalign.editing.methods import MEMIT
from modalign.errors import ModalignError, UsageError
from modalign.numbers import words as fmt
from modalign.patches.header import EditRecord
from pages.browser import in_browser, opened, overhanging, violations

SETTINGS = {
    "": {"tokens": 3000, "contexts": [], "layers": [0, 1], "covariance_weight": 5},
    "pmet": {"clamp": 4.0, "lr": 0.5},
    "ft": {"layers": [1], "epochs": 3, "lr": 5e-3},
}


# ---------------------------------------------------------------- the plan


def test_every_method_gets_the_same_draws() -> None:
    plan = make_plan(["pmet", "ft"], [1, 10, 100], ["batch"], 60, seed=3)
    assert plan.sizes == (1, 10)
    assert "100 edits left out" in plan.notes[0]
    cells = {(c.method, c.size, c.draw): c.edits for c in plan.cells}
    for (method, size, draw), edits in cells.items():
        assert edits == plan.draws[size][draw], method
    for draws in plan.draws.values():
        flat = [i for draw in draws for i in draw]
        assert len(set(flat)) == len(flat)  # disjoint
    singles = {i for draw in plan.draws[1] for i in draw}
    assert singles <= {i for draw in plan.draws[10] for i in draw}  # their values are found again
    assert make_plan(["pmet"], [10], ["batch"], 60, seed=3).draws[10] == plan.draws[10]
    assert make_plan(["pmet"], [10], ["batch"], 60, seed=4).draws[10] != plan.draws[10]
    assert [draws_of(size, 1000) for size in (1, 10, 100, 1000)] == [20, 5, 1, 1]


def test_equal_computations_are_planned_once() -> None:
    plan = make_plan(["pmet", "rome"], [1, 20], ["batch", "sequential"], 20, draws=1)
    assert sorted(cell.key for cell in plan.cells) == [
        "pmet-batch-1-0",
        "pmet-batch-20-0",
        "pmet-sequential-20-0",
        "rome-batch-1-0",
        "rome-batch-20-0",
    ]
    steps = next(c for c in plan.cells if c.mode == "sequential").steps
    assert [len(step) for step in steps] == [2] * 10
    alone = make_plan(["rome"], [20], ["sequential"], 20)
    assert [cell.key for cell in alone.cells] == ["rome-batch-20-0"]
    blocks = make_plan(["pmet"], [20], ["sequential"], 20, block=8).cells[0].steps
    assert [len(step) for step in blocks] == [8, 8, 4]
    with pytest.raises(UsageError, match="fewer than 30"):
        make_plan(["pmet"], [30], ["batch"], 20)


def test_neighbours_that_another_edit_changes_are_left_out() -> None:
    first = Edit("1", "A", "A is", 0, "x", "y", neighbours=(Neighbour("B is", "y"),))
    second = Edit("2", "B", "B is", 0, "x", "y", neighbours=(Neighbour("C is", "y"),))
    kept, gone = without_edited_neighbours([first, second])
    assert gone == 1
    assert kept == [replace(first, neighbours=()), second]


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("task", ["counterfact", "zsre"])
def test_scores_from_rows_are_those_of_the_evaluation(task: Any) -> None:
    tok = tokenizer("bytes")
    model = tiny.language_model("llama", len(tok))
    edits = [
        Edit(
            str(number),
            "Danielle",
            f"Danielle {number} speaks",
            0,
            "English",
            "French",
            paraphrases=(f"At home Danielle {number} talks in", "She talks in"),
            neighbours=(Neighbour(f"Jean {number} speaks", "French"),) * (number % 2),
        )
        for number in range(5)
    ]
    direct = evaluate_edits(model, tok, edits, task, resamples=100, seed=2)
    ours = metrics_of(columns_of(direct.rows, task), task, resamples=100, seed=2)
    for name, found in ours.items():
        theirs = direct.metrics[name]
        assert (found.n, found.unit, found.protocol) == (theirs.n, theirs.unit, theirs.protocol)
        assert found.value == pytest.approx(theirs.value, abs=1e-9), name
        assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def columns(es: list[float]) -> dict[str, Any]:
    ones = np.ones(len(es))
    return {"ES": np.array(es), "PS": ones, "NS": ones}


def test_differences_are_paired_and_careful() -> None:
    pairs = {"a": columns([1.0] * 40), "b": columns([1.0] * 30 + [0.0] * 10)}
    found = {d.metric: d for d in differences(pairs, "counterfact", "batch", 40)}
    assert found["ES"].value == pytest.approx(25)
    assert found["ES"].verdict == "first"
    assert found["ES"].low < 25 < found["ES"].high
    assert found["PS"].verdict == "no difference found"
    # Two edits that agree must not be sure of anything, whatever the bootstrap says.
    few = {"a": columns([1.0, 1.0]), "b": columns([0.5, 0.5])}
    found = {d.metric: d for d in differences(few, "counterfact", "batch", 2)}
    assert found["ES"].value == pytest.approx(50)
    assert found["ES"].p_value == 0.5
    assert found["ES"].verdict == "no difference found"


def row(rewrite: bool, paraphrase: bool) -> EditRow:
    def prompt(kind: Any, success: bool) -> PromptRow:
        answer = Answer(success=success, accuracy=float(success), says="x")
        return PromptRow(kind=kind, prompt="p", wanted="x", after=answer)

    prompts = [prompt("rewrite", rewrite), prompt("paraphrase", paraphrase)]
    return EditRow(id="1", source="", subject="s", target="x", truth="y", prompts=prompts)


@pytest.mark.parametrize(
    ("rewrite", "paraphrase", "value", "at_step", "status"),
    [
        (True, True, 0.9, None, "done"),
        (True, False, 0.9, None, "not generalised"),
        (False, False, 0.9, True, "overwritten"),
        (False, False, 0.2, False, "not reached"),
        (False, True, 0.9, False, "not written"),
        (False, False, None, None, "not written"),
    ],
)
def test_an_edit_fails_where_it_was_lost(
    rewrite: bool, paraphrase: bool, value: float | None, at_step: bool | None, status: str
) -> None:
    record = EditRecord(id="1", subject="s", prompt="p", target="x", steps=9, probability=value)
    found = judge_edit(
        row(rewrite, paraphrase), record, "counterfact", at_step=at_step, one_after_another=False
    )
    assert found[0] == status
    assert bool(found[1]) == (status != "done")


# ---------------------------------------------------------------- the whole


@pytest.fixture(scope="module")
def place(editable: Callable[[Any], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, edits and a text."""
    folder = tmp_path_factory.mktemp("compare")
    made = editable("gptj")
    made.model.save_pretrained(folder / "model")
    made.tokenizer.save_pretrained(folder / "model")
    rows = [
        {
            "id": edit.id,
            "subject": edit.subject,
            "prompt": edit.prompt,
            "target": edit.target,
            "truth": edit.truth,
            "paraphrases": list(edit.paraphrases),
            "neighbours": [{"prompt": n.prompt, "answer": n.answer} for n in edit.neighbours],
        }
        for edit in counterfactuals(made.world, 6)
    ]
    (folder / "edits.json").write_text(json.dumps(rows))
    (folder / "text.json").write_text(json.dumps(made.texts[:300]))
    (folder / "other.json").write_text(json.dumps(made.texts[300:330]))
    return folder


def request(place: Path, out: str, **changes: Any) -> CompareRequest:
    asked = CompareRequest(
        model=str(place / "model"),
        edits=place / "edits.json",
        out=place / out,
        methods=("pmet", "memit", "ft"),
        sizes=(1, 4, 1000),
        draws=2,
        block=2,
        text=place / "text.json",
        held_out=place / "other.json",
        settings=SETTINGS,
    )
    return replace(asked, **changes)


def cells_of(out: Path) -> dict[str, CellResult]:
    files = sorted((out / "cells").glob("*.json"))
    return {file.stem: CellResult.model_validate_json(file.read_bytes()) for file in files}


@pytest.fixture(scope="module")
def finished(place: Path) -> EditComparison:
    """A small comparison, run once."""
    return compare_edits(request(place, "whole"))


def test_values_are_optimised_once(place: Path, finished: EditComparison) -> None:
    cells = cells_of(place / "whole")
    singles = [cells[f"pmet-batch-1-{draw}"] for draw in range(2)]
    assert [cell.values_new for cell in singles] == [1, 1]
    assert cells["pmet-batch-4-0"].values_new == 2  # both singles are among its four
    assert cells["pmet-batch-4-0"].values_found == 2
    # Later steps stand on other weights: their values are new, the first step's are not.
    assert cells["pmet-sequential-4-0"].values_new == 2
    assert finished.point("ft", "batch", 4) is not None
    assert not finished.failures


def test_the_report_says_what_was_found(place: Path, finished: EditComparison) -> None:
    written = EditComparison.model_validate_json((place / "whole" / "report.json").read_text())
    assert written == finished
    assert finished.sizes == [1, 4]
    assert {(p.method, p.mode, p.size) for p in finished.points} == {
        (m, mode, size)
        for m in ("pmet", "memit", "ft")
        for mode in ("batch", "sequential")
        for size in (1, 4)
    }
    page, words = report_of(finished).html(), report_of(finished).markdown()
    assert page == (place / "whole" / "report.html").read_text()
    for point in finished.points:
        for name in ("S", "ES", "PS", "NS"):
            assert f"<span>{fmt.value(point.metrics[name])}</span>" in page
            assert fmt.interval(point.metrics[name]) in words
        assert point.metrics["drift_kl"].value >= 0
        assert sum(point.statuses.values()) == point.n
    before = next(r for r in finished.references if r.size == 4)
    assert before.metrics["ES"].value <= 5
    assert before.metrics["NS"].value >= 95
    assert len(finished.table) == 4
    assert {a.method for a in finished.table[0].after} == {"pmet", "memit", "ft"}
    assert any("1000 edits left out" in note for note in finished.notes)
    assert set(finished.setting.hashes) >= {"weights", "edits", "text"}
    schema = json.loads((place / "whole" / "report.schema.json").read_text())
    assert schema == EditComparison.model_json_schema()


def test_the_page_shows_every_edit_and_every_score(finished: EditComparison) -> None:
    """A line per edit, a chart per score and mode, and the outcomes of all edits."""
    report = report_of(finished)
    parts = {part.id: part for section in report.sections for part in section.parts}
    entries = parts["every-edit"]
    assert [entry.note.split(",")[0] for entry in entries.entries] == [r.id for r in finished.table]
    for mode in ("batch", "sequential"):
        charts = parts[f"scores-{mode}"].charts
        assert [chart.title for chart in charts] == ["S", "ES", "PS", "NS"]
        for chart in charts:
            of_methods = [p for p in chart.points if p.series != "unedited"]
            assert len(of_methods) == 6  # three methods at two sizes
        outcomes = parts[f"outcomes-{mode}"].charts[0]
        drawn = sum(point.value for point in outcomes.points)
        assert drawn == sum(p.n for p in finished.points if p.mode == mode)


@in_browser
@pytest.mark.parametrize("width", [1300, 390])
def test_the_page_in_a_browser(place: Path, finished: EditComparison, width: int) -> None:
    with opened(place / "whole" / "report.html", width) as page:
        assert overhanging(page) == []
        assert violations(page) == []
        page.get_by_label("Search").fill("no such edit")
        assert page.locator("#every-edit > details:visible").count() == 0


def test_finished_cells_are_kept(
    place: Path, finished: EditComparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []
    real = running.run_cell

    def counting(bench: Any, planned: Any, *rest: Any) -> CellResult:
        computed.append(planned.key)
        return real(bench, planned, *rest)

    monkeypatch.setattr(running, "run_cell", counting)
    with pytest.raises(UsageError, match="--resume"):
        compare_edits(request(place, "whole"))
    again = compare_edits(request(place, "whole", resume=True))
    assert computed == []
    assert again.points == finished.points
    assert again.differences == finished.differences
    # A cell that a kill left half written is computed again, and so is one of other settings.
    (place / "whole" / "cells" / "ft-batch-4-0.json").write_text('{"fingerprint": "')
    changed = SETTINGS | {"memit": {"clamp": 2.0}}
    only = request(place, "whole", resume=True, settings=changed, sizes=(4,), modes=("batch",))
    compare_edits(replace(only, draws=1))
    assert computed == ["memit-batch-4-0", "ft-batch-4-0"]


def test_a_failing_cell_costs_only_itself(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise SolveError("the key statistics cannot be factored")

    monkeypatch.setattr(MEMIT, "solve", fail)
    said: list[str] = []
    asked = request(place, "failing", methods=("memit", "ft"), sizes=(4,), modes=("batch",))
    found = compare_edits(asked, said=said.append)
    assert [(f.method, f.failure) for f in found.failures] == [
        ("memit", "the key statistics cannot be factored")
    ]
    assert found.point("memit", "batch", 4) is None
    assert found.point("ft", "batch", 4) is not None
    assert any("memit-batch-4-0 failed" in line for line in said)
    assert "cannot be factored" in report_of(found).html()
    assert "cannot be factored" in report_of(found).markdown()
    monkeypatch.undo()
    found = compare_edits(replace(asked, resume=True))  # a failed cell is tried again
    assert not found.failures
    monkeypatch.setattr(MEMIT, "solve", fail)
    with pytest.raises(ModalignError, match=r"no cell has a result.*factored"):
        compare_edits(replace(asked, out=place / "none", methods=("memit",)))
    assert (place / "none" / "report.html").exists()


def test_the_command_line(cli: Any, place: Path) -> None:
    base = ["edit", "compare", place / "model", place / "edits.json"]
    options = ["--methods", "ft,ft-l", "--sizes", "1,4", "--draws", "1", "--no-generate"]
    more = ["--set", "layers=[1]", "--set", "ft.epochs=2", "--out", place / "cli"]
    code, out, err = cli(*base, *options, *more, "--json")
    assert code == 0, err
    found = EditComparison.model_validate_json(out)
    assert found.methods[0].settings["epochs"] == 2
    assert found.methods[1].layers == [1]
    assert "edit compare" in found.setting.command
    assert any("--held-out" in note for note in found.notes)
    code, out, err = cli(*base, *options, *more, "--resume")
    assert code == 0, err
    assert "FT+L" in out
    assert "minus" in out
    assert "report.html" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "pmte"], "did you mean pmet"),
        (["--modes", "both"], "batch, sequential"),
        (["--sizes", "one"], "expected numbers"),
        (["--sizes", "50"], "fewer than 50"),
        (["--set", "rmoe.clamp=1"], "--set rmoe"),
        (["--set", "clmap=1"], "none of"),
        (["--set", "pmet.clmap=1"], "clmap"),
        (["--set", "pmet.layers=[77]"], "layer 77"),
        (["--task", "mcf"], "counterfact, zsre"),
    ],
)
def test_wrong_usage_is_refused(cli: Any, place: Path, arguments: list[str], said: str) -> None:
    base = ["edit", "compare", place / "model", place / "edits.json", "--out", place / "wrong"]
    code, _, err = cli(*base, *arguments)
    assert code == 2
    assert said in " ".join(err.split())
    assert not list((place / "wrong").glob("cells/*")) if (place / "wrong").exists() else True
