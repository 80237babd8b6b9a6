"""``modalign edit run`` and ``edit stats`` from the command line, on a small model that can be edited."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bench.editable import Editable
from bench.invented import counterfactuals
from safetensors import safe_open

from tiny_editable import CONTEXTS, LAYERS, editable


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest) -> Editable:
    return editable("gptj", Path(str(request.config.cache.mkdir("editable"))))  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def files(made: Editable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, edits, and text for the statistics."""
    folder = tmp_path_factory.mktemp("editing")
    made.model.save_pretrained(folder / "model")
    made.tokenizer.save_pretrained(folder / "model")
    edits = [
        {
            "id": edit.id,
            "subject": edit.subject,
            "prompt": edit.relation,
            "target": edit.target,
            "truth": edit.truth,
            "paraphrases": list(edit.paraphrases),
            "neighbours": [{"prompt": n.prompt, "answer": n.answer} for n in edit.neighbours],
        }
        for edit in counterfactuals(made.world, 5, seed=1)
    ]
    (folder / "edits.json").write_text(json.dumps(edits, indent=1))
    (folder / "text.json").write_text(json.dumps(made.texts[:300]))
    return folder


def called(cli: Any, *arguments: str) -> Done:
    code, stdout, stderr = cli(*arguments)
    return Done(code, stdout, stderr)


SETTINGS = [
    "--method", "pmet", "--settings", "published",
    "--set", f"layers={list(LAYERS)}", "--set", "clamp=2", "--set", "lr=0.5",
    "--set", "covariance_weight=5", "--set", f"contexts={json.dumps(CONTEXTS[:2])}",
]  # fmt: skip


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    stdout: str
    stderr: str


def run(cli: Any, files: Path, out: Path, *more: str) -> Any:
    return called(
        cli,
        "edit", "run", str(files / "model"), str(files / "edits.json"), "-o", str(out),
        "--text", str(files / "text.json"), "--cache", str(out.parent / "cache"), *SETTINGS, *more,
    )  # fmt: skip


def test_from_edits_to_a_patch_that_holds_and_comes_out_again(
    cli: Any, files: Path, tmp_path: Path
) -> None:
    out = tmp_path / "fix.safetensors"
    weights = (files / "model" / "model.safetensors").read_bytes()
    done = run(cli, files, out, "--json")
    assert done.code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["method"] == "pmet"
    assert len(told["edits"]) == 5
    assert sum(edit["written"] > 0.5 for edit in told["edits"]) >= 4
    assert (files / "model" / "model.safetensors").read_bytes() == weights

    measured = called(
        cli,
        "eval", str(files / "model"), "--task", "counterfact", "--edits",
        str(files / "edits.json"), "--patch", str(out), "--json", "--no-generate",
    )  # fmt: skip
    assert measured.code == 0, measured.stderr
    scores = json.loads(measured.stdout)
    assert scores["before"]["S"]["value"] == 0
    assert scores["metrics"]["S"]["value"] > 70
    assert scores["metrics"]["S"]["n"] == 5

    gone = told["edits"][1]["id"]
    less = called(
        cli,
        "patch", "drop", str(out), "--id", gone, "--model", str(files / "model"),
        "--text", str(files / "text.json"), "--json",
    )  # fmt: skip
    assert less.code == 0, less.stderr
    compared = json.loads(less.stdout)
    assert compared["same_statistics"]
    # The first layer's keys do not depend on other edits, so there the two are the same.
    assert min(compared["distance"].values()) < 5e-6  # float32's rounding, by processor
    assert max(compared["distance"].values()) < 0.5


def test_a_second_run_finds_its_values_again(cli: Any, files: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert run(cli, files, first).code == 0
    again = run(cli, files, second, "--resume")
    assert again.code == 0
    assert "5 of 5 values were found before" in again.stderr
    with safe_open(first, "pt") as one, safe_open(second, "pt") as other:
        assert set(one.keys()) == set(other.keys())
        for key in one.keys():  # noqa: SIM118
            assert (one.get_tensor(key) == other.get_tensor(key)).all()


def test_strict_writes_nothing(cli: Any, files: Path, tmp_path: Path) -> None:
    out = tmp_path / "fix.safetensors"
    done = run(cli, files, out, "--strict", "--set", "steps=1")
    assert done.code == 1
    assert "refused by --strict" in done.stderr
    assert "not reached" in done.stderr
    assert not out.exists()


def test_edits_on_top_of_a_patch(cli: Any, files: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert run(cli, files, first, "--limit", "3").code == 0
    on = run(cli, files, second, "--on", str(first), "--skip-known", "--json")
    assert on.code == 0, on.stderr
    told = json.loads(on.stdout)
    assert len(told["after"]) == 1
    assert len(told["edits"]) < 5  # what the first patch wrote is known already


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--method", "memitt"], 2, "did you mean memit"),
        (["--set", "clamp=-1"], 2, "clamp"),
        (["--set", "nothing=1"], 2, "image_share, layers, depth, seed"),
        (["--set", "layers=[1"], 2, "not YAML"),
        (["--set", "layers"], 2, "field=value"),
        (["--set", "layers=[9]"], 2, "layer 9: the model has the layers 0 to"),
        (["--dtype", "float31"], 2, "there is no dtype"),
        (["--text", "nowhere.txt"], 3, "nowhere.txt"),
    ],
)
def test_what_is_wrong_is_said(
    cli: Any, files: Path, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    done = run(cli, files, tmp_path / "fix.safetensors", *arguments)
    assert done.code == code
    assert said in " ".join(done.stderr.split())
    assert not (tmp_path / "fix.safetensors").exists()


def test_edits_the_model_says_already_are_refused_with_their_lines(
    cli: Any, files: Path, tmp_path: Path
) -> None:
    edits = json.loads((files / "edits.json").read_text())
    edits[2]["target"], edits[2]["truth"] = edits[2]["truth"], None
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(edit) + "\n" for edit in edits))
    done = called(
        cli,
        "edit", "run", str(files / "model"), str(tmp_path / "edits.jsonl"),
        "-o", str(tmp_path / "fix.safetensors"),
    )  # fmt: skip
    assert done.code == 3
    assert "edits.jsonl:3: the model says" in " ".join(done.stderr.split())


def test_a_run_that_writes_no_edit_fails_and_replaces_nothing(
    cli: Any, files: Path, tmp_path: Path
) -> None:
    out = tmp_path / "fix.safetensors"
    out.write_bytes(b"a good patch")
    done = called(
        cli,
        "edit", "run", str(files / "model"), str(files / "edits.json"), "-o", str(out), "--overwrite",
        "--method", "ft", "--set", "epochs=1", "--set", "lr=1e-9",
    )  # fmt: skip
    assert done.code == 1
    assert "no edit was written, so no patch was saved" in done.stderr
    said = " ".join(done.stderr.split())
    assert "what may help (--set): more epochs, other layers" in said
    assert out.read_bytes() == b"a good patch"


def test_statistics_are_shown_and_kept(cli: Any, files: Path, tmp_path: Path) -> None:
    arguments = [
        "edit", "stats", str(files / "model"), "--text", str(files / "text.json"),
        "--layers", "0,2", "--cache", str(tmp_path), "--json",
    ]  # fmt: skip
    told = json.loads(called(cli, *arguments).stdout)
    assert [row["layer"] for row in told["layers"]] == [0, 2]
    assert told["tokens"] > 1000
    files_kept = sorted((tmp_path / "covariance").iterdir())
    assert len(files_kept) == 2  # one a layer: other layers beside them need only their own
    written = [file.stat().st_mtime_ns for file in files_kept]
    assert json.loads(called(cli, *arguments).stdout) == told
    assert [file.stat().st_mtime_ns for file in files_kept] == written
    more = [*arguments[:6], "0,1,2", *arguments[7:]]
    assert len(json.loads(called(cli, *more).stdout)["layers"]) == 3
    assert [file.stat().st_mtime_ns for file in files_kept] == written
    assert len(list((tmp_path / "covariance").iterdir())) == 3
