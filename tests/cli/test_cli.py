"""The command line: exit codes, messages, JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from compared import Compared, read_rows, write_rows
from modalign.cli import resumable
from modalign.data.records import Media
from modalign.evaluation.generation import answer
from modalign.models.export import load_model
from modalign.tools.registry import BUILT_IN
from modalign.training.methods import method_names
from modalign.training.tool_methods import tool_names

VERBS = [["compare"], ["train"], ["eval"], ["ask"], ["methods"], ["starter", "build"],
         ["starter", "show"]]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_shows_examples_and_exit_codes(cli, verb):
    code, out, _ = cli(*verb, "--help")
    assert code == 0
    assert "Example" in out
    assert "Exit codes" in out
    assert f"modalign {' '.join(verb)}" in out


def test_help_groups_every_verb_by_what_it_is_for(cli):
    _, out, _ = cli("--help")
    panels = re.split(r"╭─ (\w+) ─+╮", out)
    shown = dict(zip(panels[1::2], panels[2::2], strict=True))
    assert set(shown) == {"Options", "Build", "Judge", "Use", "Correct", "Shrink", "Data"}
    verbs = {word for text in shown.values() for word in re.findall(r"│ (\w+) ", text)}
    assert {"compare", "train", "eval", "ask", "serve", "edit", "patch", "data"} <= verbs
    assert re.search(r"│ edit ", shown["Correct"])
    assert re.search(r"│ eval ", shown["Judge"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [("compare --out x", True), ("edit compare m e", True), ("edit run m e", True), ("ask m q", False),
     ("eval m compare", True), ("patch list f", False)],
)  # fmt: skip
def test_only_verbs_that_can_resume_promise_it(arguments, expected):
    assert resumable(arguments.split()) is expected


def test_as_a_module_and_piped():
    done = subprocess.run(
        [sys.executable, "-m", "modalign", "methods", "nope"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["doctor", "train", "compare"])
@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("{cros_entropy: 1}", "did you mean cross_entropy?"),
        (
            "{kl_answer: {temprature: 2}}",
            "its options are weight, role, reference, temperature, beta",
        ),
        ("{kl_answer: 1}", "name its folder under references"),
    ],
)
def test_a_wrong_objective_is_refused_before_anything_is_read(cli, verb, objective, said, tmp_path):
    assign = f"stages=[{{objective: {objective}}}]"
    out = [] if verb == "doctor" else ["--out", str(tmp_path / "run")]
    code, _, err = cli(verb, "--train", str(tmp_path / "nowhere.jsonl"), "--set", assign, *out)
    assert code == 2
    assert said in " ".join(err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "qfromer"], "qformer"),
        (["--budget", "lots"], "lots"),
        (["--llm", "./no/such/folder"], "no/such/folder"),
        (["--seeds", "0"], "seeds"),
        (["--set", "training.batch_sise=3"], "batch_sise"),
        (["--set", "training.batch_size"], "field=value"),
        (["--set", "seeds=[1"], "not YAML"),
        (["--set", "budget=1samples", "--set", "budget.x=1"], "no fields"),
        (["--device", "banana"], "banana"),
        (["--nope"], "--nope"),
        (["--seeds", "many"], "seeds: Value error, give a number of trainings"),
    ],
)
def test_wrong_usage_ends_with_two(cli, small_config, tmp_path, arguments, said):
    base = ["compare", small_config(), "--out", tmp_path / "out"]
    code, out, err = cli(*base, *arguments)
    assert code == 2
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    code, out, _ = cli(*base, *arguments, "--json")
    assert code == 2
    found = json.loads(out)
    assert found["exit_code"] == 2
    assert said in found["error"]
    assert "\n" not in found["error"]
    assert not (tmp_path / "out" / "config.yaml").exists()


def test_an_unknown_field_of_a_file_is_named(cli, small_config, tmp_path):
    code, _, err = cli("compare", small_config(sedes=2), "--out", tmp_path)
    assert code == 2
    assert "sedes" in err


def test_interrupted_work_spills_no_traceback(small_config, tmp_path):
    """Ctrl-C reaches every process of the terminal's group."""
    # Workers of pytest ignore Ctrl-C, and what they start would inherit that.
    program = ["env", "--default-signal=INT", sys.executable, "-m", "modalign", "compare"]
    process = subprocess.Popen(
        [*program, str(small_config()), "--out", str(tmp_path / "out")],
        env={**os.environ, "MODALIGN_CACHE": str(tmp_path / "cache")},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if ": started" in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait() == 130
    assert "Traceback" not in rest
    assert "interrupted; finished work is kept, --resume continues" in rest


def test_broken_data_ends_with_three(cli, small_config, scenes_folder, tmp_path):
    rows = read_rows(scenes_folder / "val.jsonl")
    rows[4]["messages"][0]["content"][0]["image"] = "gone.png"
    write_rows(tmp_path / "broken.jsonl", rows)
    for verb in (["compare"], ["train", "--method", "linear"]):
        val = {"val": str(tmp_path / "broken.jsonl"), "media_root": str(scenes_folder)}
        file = small_config(data=val)
        code, out, err = cli(*verb, file, "--out", tmp_path / verb[0])
        assert (code, out) == (3, "")
        assert "broken.jsonl:5" in err.replace("\n", "")
    file = small_config(data={"train": str(tmp_path / "no.jsonl")})
    assert cli("compare", file, "--out", tmp_path / "x")[0] == 3


def test_a_folder_in_use_ends_with_two(cli, compared: Compared):
    code, _, err = cli("compare", compared.config_file, "--out", compared.out)
    assert code == 2
    assert "--resume" in err


def test_all_methods_failed_ends_with_one_and_a_report(cli, small_config, tmp_path):
    file = small_config(
        methods=["linear"],
        training={"learning_rates": {"connector": 1e38, "llm": 1e38, "encoder": 0}},
    )
    code, out, _ = cli("compare", file, "--out", tmp_path / "out", "--json")
    assert code == 1
    message = json.loads(out)["error"]
    assert "linear" in message
    assert "at step" in message
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["recommendation"] is None
    assert report["methods"][0]["status"] == "failed"
    assert "at step" in report["methods"][0]["failure"]


def test_resumed_when_all_is_done_prints_the_report_as_json(cli, compared: Compared):
    results = sorted(compared.out.glob("runs/*/*/result.json"))
    times = [path.stat().st_mtime_ns for path in results]
    code, out, err = cli(
        "compare", compared.config_file, "--out", compared.out, "--resume", "--json"
    )
    assert code == 0
    found = json.loads(out)
    before = compared.comparison
    assert before.recommendation is not None
    advice = found["recommendation"].pop("advice")
    assert advice[:-1] == before.recommendation.advice  # made in Python, where there is no command
    assert f"{compared.out}-again" in advice[-1]
    assert found["recommendation"] == before.recommendation.model_dump(
        mode="json", exclude={"advice"}
    )
    assert [m["name"] for m in found["methods"]] == [m.name for m in before.methods]
    assert "done" in err
    assert times == [path.stat().st_mtime_ns for path in results]


def test_a_training_gives_the_same_bits_again(cli, compared, tmp_path):
    """Where the report lies, and from a copy without the trainings; other bits are found."""
    code, out, _ = cli("compare", "--verify", compared.out / "report.json")
    assert (code, out.count("gave the same bits")) == (0, 1)
    for name in ("config.yaml", "report.json"):
        shutil.copy(compared.out / name, tmp_path / name)
    shutil.copytree(compared.out / "data", tmp_path / "data")
    report = tmp_path / "report.json"
    found = json.loads(report.read_text())
    for method in found["methods"]:
        for run in method["seeds"]:
            run["weights"] = "0" * 64
    found["setting"]["libraries"]["torch"] = "1.0"
    report.write_text(json.dumps(found))
    code, out, _ = cli("compare", "--verify", report, "--json")
    said = json.loads(out)
    assert (code, said["same"], said["differs"]) == (1, False, ["weights"])
    assert said["job"].endswith("/seed-0")  # nobody knows the others' learning rates here
    (elsewhere,) = said["elsewhere"]
    assert elsewhere.startswith("torch: 1.0 then, ")
    for wrong, words in (
        (tmp_path / "gone.json", "cannot be read"),
        (tmp_path / "config.yaml", "is not"),
    ):
        code, _, err = cli("compare", "--verify", wrong)
        assert (code, words in err) == (2, True)


def test_nothing_learnt_is_said_first_and_last(cli, small_config, tmp_path):
    file = small_config(methods=["linear"], budget="32samples", examples=0)
    code, out, err = cli("compare", file, "--out", tmp_path / "out")
    assert code == 0
    assert out.startswith("No method is recommended. No method is better on validation")
    assert "Stopped after 2 trainings: no method was better on validation than what" in out
    assert "--budget" in out.partition("Accuracy (95 %)")[0]
    assert "Recommended: none; best so far: linear" in out
    last = " ".join(err.rpartition("No method is recommended")[2].split())
    assert last.startswith(", see above. Best so far, linear: ")
    assert last.endswith("best")


def test_train_writes_a_model(cli, small_config, tmp_path):
    base = ["train", small_config(), "--method", "linear", "--budget", "32samples"]
    base += ["--factor", "1", "--out", tmp_path / "run"]
    code, out, _ = cli(*base, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["method"] == "linear"
    assert found["samples"] >= 24
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    assert cli(*base)[0] == 2
    code, _, err = cli(*base, "--seed", "1", "--set", "training.batch_size=8", "--resume")
    assert code == 2
    said = " ".join(err.split())
    assert "training.batch_size was 5, now 8; seed was 0, now 1" in said
    (tmp_path / "run" / "config.yaml").write_text("{")
    code, _, err = cli(*base, "--resume")
    assert code == 2
    assert "cannot be read" in err


def test_a_corrected_run_takes_the_folder_of_one_that_never_began(cli, small_config, tmp_path):
    wrong = small_config(data={"train": str(tmp_path / "no.jsonl")})
    options = ["--method", "linear", "--budget", "32samples", "--factor", "1"]
    options += ["--out", tmp_path / "run"]
    assert cli("train", wrong, *options)[0] == 3
    assert not (tmp_path / "run").exists()
    assert cli("train", small_config(), *options)[0] == 0
    assert (tmp_path / "run" / "config.yaml").exists()


def test_help_says_what_a_given_factor_leaves_unspent(cli):
    assert "left unspent" in " ".join(cli("train", "--help")[1].replace("│", " ").split())


def test_methods_fit_a_hundred_columns(cli, monkeypatch):
    monkeypatch.setattr("modalign.cli.console.stdout.width", 100)
    code, out, _ = cli("methods")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    known = {*method_names(), *tool_names(list(BUILT_IN))}
    assert known <= {line.split()[0] for line in out.splitlines() if line}
    code, out, _ = cli("methods", "--json")
    assert {row["name"] for row in json.loads(out)} == known
    assert json.loads(cli("methods", "tool:ocr", "--json")[1])["enters"] == "text"
    assert json.loads(cli("methods", "qformer", "--json")[1])["family"] == "perceiver"
    assert "BLIP-2" in cli("methods", "qformer")[1]


def test_colours_asked_for_do_not_reach_json(cli, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    json.loads(cli("methods", "linear", "--json")[1])


def test_starter_show(cli, monkeypatch):
    monkeypatch.setattr("modalign.starter.build.SCENES", {"train": 8, "val": 4, "eval": 4})
    code, out, _ = cli("starter", "show", "--json")
    assert code == 0
    assert set(json.loads(out)) == {"llm", "encoder", "train", "val", "eval"}


def test_ask_answers_what_generation_gives(cli, compared: Compared):
    best = compared.out / "best"
    model, processor = load_model(best)
    picture = sorted(compared.data.glob("images/eval/*.png"))[0]
    shown = [Media("image", path=str(picture))]
    expected = answer(model, processor, "how many digits are there?", shown)
    code, out, _ = cli("ask", best, "--image", picture, "how many digits are there?")
    assert (code, out.strip()) == (0, expected)
    code, out, _ = cli("ask", best, "is seven even or odd?", "--json")
    assert json.loads(out)["answer"] == answer(model, processor, "is seven even or odd?")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [(["ask", "{}/none", "what?"], 2), (["eval", "{}/none", "x.jsonl"], 2)],
)
def test_a_folder_without_a_model(cli, tmp_path, arguments, wanted):
    code, out, err = cli(*(part.format(tmp_path) for part in arguments))
    assert (code, out) == (wanted, "")
    assert "no model" in err


def test_a_missing_image_ends_with_three(cli, compared: Compared):
    code, out, err = cli("ask", compared.out / "best", "--image", "gone.png", "what?")
    assert (code, out) == (3, "")
    assert "gone.png" in err
