"""``modalign data probe`` from configuration to report: judged, resumed, planned, and with bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import tiny
from modalign.cli import main
from modalign.mixtures.assemble import Choice, judged
from modalign.mixtures.trials import Scored, Trained
from modalign.training.tuning import Tuning

ROWS = 48


@pytest.fixture(scope="session")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 questions about pictures with answers of many lengths, 12 to choose by and 12 to judge by."""
    folder = tmp_path_factory.mktemp("probed")
    words = ["one", "two", "seven", "three four"]
    rows = []
    for n in range(ROWS + 24):
        (folder / f"{n}.png").write_bytes(tiny.png_bytes(1000 + n))
        row = {"id": f"r{n}", "image": f"{n}.png", "question": "what is one?"}
        row |= {"answer": " ".join(words[: 1 + n % 4]), "good": n % 3 > 0, "score": n}
        rows.append(row)
    tiny.write_jsonl(folder / "train.jsonl", rows[:ROWS])
    tiny.write_jsonl(folder / "val.jsonl", rows[ROWS : ROWS + 12])
    tiny.write_jsonl(folder / "eval.jsonl", rows[ROWS + 12 :])
    tiny.write_jsonl(folder / "leaking.jsonl", [*rows[ROWS : ROWS + 12], *rows[:5]])
    return folder


@pytest.fixture
def config(
    probed: Path,
    tmp_path: Path,
    llm_folder: Callable[..., Path],
    tower_folder: Callable[..., Path],
    small_cache: Path,
) -> Callable[..., str]:
    """Changed fields -> the file of a probe of seconds."""

    def make(**changes: Any) -> str:
        data: dict[str, str] = {"train": "train.jsonl", "val": "val.jsonl", "eval": "eval.jsonl"}
        fields: dict[str, Any] = {
            "parts": {
                "llm": str(llm_folder()),
                "encoder": {"image": str(tower_folder())},
                "feature_layer": -1,
            },
            "data": {k: str(probed / v) for k, v in (data | changes.pop("data", {})).items()},
            "operators": ["length[of=answer]"],
            "budget": "8samples",
            "seeds": 2,
            "training": {"batch_size": 4, "device": "cpu"},
        }
        file = tmp_path / "probe.yaml"
        file.write_text(yaml.safe_dump(fields | changes))
        return str(file)

    return make


@pytest.fixture
def said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Words -> exit code and all that the command line printed."""

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["modalign", "data", *words])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out + err

    return call


def test_a_probe_from_file_to_report(
    config: Callable[..., str],
    said: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file, out = config(operators=["agreement", "column[name=score]"], truth="good",
                       seeds=1, combine="always", repetition="always", shares=[0.5]), tmp_path / "run"  # fmt: skip
    code, text = said("probe", file, "--out", str(out))
    assert code == 0, text
    report = json.loads((out / "report.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    for name in ("untrained", "no filter", "oracle", "random third", "agreement high"):
        assert name in rows
    assert rows["no filter"]["records"] == ROWS
    assert rows["oracle"]["records"] == ROWS * 2 // 3
    assert rows["oracle"]["good"] == 1
    assert rows["column[name=score] low"]["records"] == ROWS // 3
    assert rows["column[name=score] low"]["passes"] == pytest.approx(8 / 16)
    repeated = [row for row in report["rows"] if row["phase"] == "repetition"]
    best = next(row for row in repeated if row["kind"] == "candidate")
    assert rows[best["control"]]["records"] == best["records"] == ROWS // 2
    finds = next(each for each in report["operators"] if "score" in each["name"])["finds"]
    assert finds["low"] <= finds["value"] <= finds["high"]
    for name in ("report.html", "report.md", "report.schema.json"):
        assert (out / name).stat().st_size
    assert "no filter" in (out / "report.md").read_text()
    if report["chosen"] == "no filter":
        assert not (out / "kept.jsonl").exists()

    monkeypatch.setattr(Tuning, "run", lambda *_: pytest.fail("nothing is trained again"))
    code, text = said("probe", file, "--out", str(out), "--resume", "--json")
    assert code == 0, text
    again = json.loads(text)
    assert again["rows"] == report["rows"]
    assert said("probe", file, "--out", str(out))[0] == 2


def test_a_plan_trains_nothing(
    config: Callable[..., str],
    said: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Tuning, "run", lambda *_: pytest.fail("nothing is trained"))
    out = tmp_path / "run"
    code, text = said("probe", config(truth="good"), "--dry-run", "--out", str(out), "--json")
    assert code == 0, text
    plan = json.loads(text)
    pools = [f"length[of=answer] {level}" for level in ("low", "middle", "high")]
    assert plan["rows"] == ["no filter", "oracle", "random third", *pools]
    assert plan["trainings, at most"] == 2 * (6 + 4)
    assert not out.exists()


def test_leaks_are_counted_and_left_out(
    config: Callable[..., str], said: Callable[..., tuple[int, str]]
) -> None:
    code, text = said("probe", config(data={"val": "leaking.jsonl"}), "--dry-run")
    assert code == 0, text
    assert f"records: {ROWS - 5}" in text
    assert f"5 of {ROWS} training records share a medium" in text


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        (
            {"data": {"val": "train.jsonl"}},
            3,
            "all 48 training records are in the held-out records",
        ),
        ({"operators": ["column[name=good]"]}, 3, "fewer than three different values"),
        ({"operators": ["column[name=nothing]"]}, 3, "none of the 48 records has a value"),
        ({"operators": ["lenght"]}, 2, "did you mean length"),
        ({"truth": "answer"}, 3, "truth needs true or false"),
        ({"budget": "5s"}, 2, "budget: give samples or flops"),
        ({"operators": ["chance", "chance"]}, 2, "one is named twice"),
        ({"parts": None}, 2, "or a saved model"),
        ({"data": {"train": "nothing.jsonl"}}, 3, "nothing.jsonl"),
    ],
)
def test_bad_input_is_one_sentence(
    config: Callable[..., str],
    said: Callable[..., tuple[int, str]],
    tmp_path: Path,
    changes: dict[str, Any],
    code: int,
    words: str,
) -> None:
    found, text = said("probe", config(**changes), "--out", str(tmp_path / "run"))
    assert found == code, text
    assert words in " ".join(text.split())
    assert "Traceback" not in text


def scored(losses: np.ndarray) -> Scored:
    tokens = (np.arange(len(losses)) % 3 + 2).tolist()
    return Scored(loss=losses.tolist(), tokens=tokens, correct=[False] * len(losses))


def rows(gains: dict[str, float], seed: int = 0) -> tuple[list[Choice], dict[str, list[Trained]]]:
    """Rows of three trainings on 60 records, that differ by a gain in nats per record and by noise."""
    rng = np.random.default_rng(seed)
    hard = rng.gamma(4, 1, 60)
    choices, trainings = [], {}
    for name, gain in gains.items():
        kind = "reference" if name in ("no filter", "oracle") else "candidate"
        choices.append(Choice(name, kind, lambda seed: np.arange(3)))  # type: ignore[arg-type]
        trainings[name] = [
            Trained(row=name, seed=n, records=3, samples=3, seconds=0,
                    scored={"held": scored(hard - gain + rng.normal(0, 0.05, 60))})
            for n in range(3)
        ]  # fmt: skip
    return choices, trainings


def test_a_gain_is_found_and_is_the_ratio_of_sums() -> None:
    choices, trainings = rows({"no filter": 0.0, "oracle": 1.0, "a": 0.5, "b": -0.5, "c": 0.0})
    found = judged(choices, trainings, "held", "loss", [str(n) for n in range(60)], [])
    assert found.better == ["a"]
    assert [each.verdict for each in found.candidates] == ["first", "second", "no difference found"]
    tokens = 60 * 3  # 2, 3 and 4 in turn
    sums = {
        name: np.mean([sum(t.scored["held"].loss) for t in each])
        for name, each in trainings.items()
    }
    assert found.against("a").difference.value == pytest.approx(
        (sums["no filter"] - sums["a"]) / tokens
    )
    assert found.figure("a").value == pytest.approx(sums["a"] / tokens)
    assert found.figure("a").low < found.figure("a").value < found.figure("a").high
    assert found.references[0].verdict == "first"


def test_equal_rows_are_rarely_found_different() -> None:
    """Of 30 probes of three equal candidates each, hardly any may find one better (5 % would be 1.5)."""
    wrong = 0
    for seed in range(30):
        made = rows(dict.fromkeys(("no filter", "a", "b", "c"), 0.0), seed)
        wrong += bool(judged(*made, "held", "loss", [str(n) for n in range(60)], []).better)
    assert wrong <= 3
