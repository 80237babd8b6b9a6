"""``modalign distill`` end to end on tiny models, and its schedules."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from modalign.compression.distillation import distill as distillation
from modalign.compression.distillation.config import DistillConfig
from modalign.compression.distillation.distill import distill
from modalign.compression.distillation.schedules import Variant, schedules
from modalign.errors import DataError, UsageError
from modalign.models.export import save_model
from modalign.models.open import open_model
from modalign.training.settings import LearningRates, TrainSettings
from modalign.training.trainer import Trainer

Run = Callable[..., tuple[int, str, str]]
RATES = LearningRates(connector=1e-2, llm=1e-2)
FAST = TrainSettings(llm="full", learning_rates=RATES, batch_size=4)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain text: twelve documents."""
    path = tmp_path_factory.mktemp("text") / "poem.txt"
    words = "one two three four five six seven"
    path.write_text("\n\n".join(f"what is {words[place:]}?" for place in range(12)))
    return path


@pytest.fixture(scope="session")
def teacher(compose_tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with an MLP between its tower and its language model, saved."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    save_model(*compose_tiny("mlp"), folder)
    return folder


def layers_of(folder: Path) -> int:
    return int(open_model(folder)[0].config.get_text_config().num_hidden_layers)


# ---------------------------------------------------------------------- schedules


def test_every_schedule_runs_with_and_without_media() -> None:
    for name in schedules():
        stages = Variant.of(name).stages_for("T", {}, connectors=True)
        assert sum(stage.share for stage in stages) == pytest.approx(1)
        plain = Variant.of(name).stages_for("T", {}, connectors=False)
        assert not {"kl_visual", "relation"} & {t for stage in plain for t in stage.objective}
        assert all(stage.llm != "frozen" for stage in plain)


def test_a_variant_leaves_terms_out_and_takes_options() -> None:
    found = Variant.of("throughout-relation-kl_visual")
    options = {"kl_answer": {"temperature": 2.0, "weight": 3.0}}
    (dpt, _) = found.stages_for("T", options, connectors=True)
    assert dpt.objective == {
        "cross_entropy": 1.0,
        "kl_answer": {"weight": 3.0, "temperature": 2.0},
    }
    assert dpt.references == {"teacher": "T"}
    assert Variant.of("ce").same_time
    assert all(not s.references for s in Variant.of("ce").stages_for("T", {}, connectors=True))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("trough", "no schedule is called 'trough'"),
        ("throughout-relatoin", "throughout has no term 'relatoin'"),
        ("nowhere.yaml", "nowhere.yaml cannot be read"),
    ],
)
def test_unknown_schedules_and_terms_are_named(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Variant.of(name)


def test_a_schedule_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("stages: [{objective: {kl_answer: {beta: 0.5}}}]")
    (stage,) = Variant.of(str(file)).stages_for("T", {}, connectors=False)
    assert stage.references == {"teacher": "T"}
    assert stage.objective == {"kl_answer": {"beta": 0.5}}


# ---------------------------------------------------------------------- end to end


def test_a_language_model_is_cut_and_comes_nearer_to_its_teacher(
    llm_folder: Callable[..., Path], text: Path, tmp_path: Path, cli: Run
) -> None:
    arguments = ["distill", "--teacher", llm_folder(), "--student-layers", 2, "--data", text]
    arguments += ["--against", "ce", "--budget", "160samples", "-o", tmp_path / "kd", "--json"]
    arguments += ["--set", "training.learning_rates.llm=0.01", "--set", "training.batch_size=4"]
    code, out, err = cli(*arguments)
    assert code == 0, err
    found = json.loads(out)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["teacher", "student before", "throughout", "ce"]
    assert rows["throughout"]["nll"]["value"] < rows["student before"]["nll"]["value"]
    assert rows["throughout"]["accuracy"] is None  # a window of text is not an answer
    assert rows["throughout"]["parameters"] < rows["teacher"]["parameters"]
    assert layers_of(tmp_path / "kd" / "model") == 2
    assert (tmp_path / "kd" / "report.html").is_file()
    assert cli(*arguments)[0] == 2  # the folder holds a run
    again = json.loads(cli(*arguments, "--resume")[1])
    assert again["rows"] == found["rows"]


def test_a_student_with_media_learns_at_their_positions(
    teacher: Path, small_data: Path, tmp_path: Path
) -> None:
    config = DistillConfig(
        teacher=str(teacher),
        student_layers=3,
        layers_by="every_other",
        student_connector="mlp",
        data=str(small_data / "data.jsonl"),
        schedule="llava_kd",
        budget="48samples",
        training=FAST,
        seeds=2,
    )
    found = distill(config, tmp_path / "kd")
    main = found.rows[2]
    assert main.nll.trainings == 2
    assert None not in (main.accuracy, main.moved, main.gained)
    assert [stage["name"] for stage in found.stages["llava_kd"]] == ["dpt", "sft", "dft"]
    assert layers_of(tmp_path / "kd" / "model") == 3
    page = (tmp_path / "kd" / "report.md").read_text()
    assert "LLaVA-KD's order" in page
    assert "moved by blank media" in page


def test_a_teacher_with_another_tokenizer_is_refused_with_both_named(
    llm_folder: Callable[..., Path], text: Path, tmp_path: Path, cli: Run
) -> None:
    other = tmp_path / "other"
    tokenizer = AutoTokenizer.from_pretrained(llm_folder())
    tokenizer.add_tokens(["quokka"])
    tokenizer.save_pretrained(other)
    tiny.language_model("llama", len(tokenizer)).save_pretrained(other)
    code, _, err = cli(
        "distill",
        "--teacher",
        other,
        "--student",
        llm_folder(),
        "--data",
        text,
        "-o",
        tmp_path / "kd",
    )
    assert code == 2
    said = " ".join(err.split())
    assert all(name in said for name in (str(other), str(llm_folder()), "'quokka'"))
    assert not (tmp_path / "kd").exists()


def test_options_that_would_change_nothing_are_refused(
    llm_folder: Callable[..., Path], teacher: Path, small_data: Path, text: Path, tmp_path: Path
) -> None:
    def run(**given: Any) -> None:
        distill(DistillConfig(budget="16samples", training=FAST, **given), tmp_path / "kd")

    llm = str(llm_folder())
    with pytest.raises(UsageError, match=r"terms.kl_anser: no schedule has this term"):
        run(teacher=llm, student_layers=1, data=str(text), terms={"kl_anser": {"beta": 1}})
    with pytest.raises(UsageError, match=r"9 layers cannot be kept: the model has 4"):
        run(teacher=llm, student_layers=9, data=str(text))
    with pytest.raises(UsageError, match="there is no student"):
        run(teacher=llm, data=str(text))
    with pytest.raises(DataError, match="takes none: --student-connector mlp"):
        run(teacher=str(teacher), student=llm, data=str(small_data / "data.jsonl"))
    assert not (tmp_path / "kd").exists()


def test_an_interrupted_run_goes_on_to_the_same_rows(
    llm_folder: Callable[..., Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DistillConfig(
        teacher=str(llm_folder()),
        student_layers=2,
        data=str(text),
        against=["cross_entropy"],
        budget="32samples",
        training=FAST,
    )
    whole = distill(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(distillation, "assemble", lambda *_: pytest.fail("not cut"))
        steps: list[int] = []
        step = Trainer._step

        def cut(self: Trainer, fraction: float) -> Any:
            steps.append(1)
            if len(steps) == 11:  # in the second training
                raise KeyboardInterrupt
            return step(self, fraction)

        patch.setattr(Trainer, "_step", cut)
        with pytest.raises(KeyboardInterrupt):
            distill(config, tmp_path / "cut")
    resumed = distill(config, tmp_path / "cut", resume=True)
    assert [row.nll for row in resumed.rows] == [row.nll for row in whole.rows]


def test_a_larger_student_is_said_and_allowed(
    llm_folder: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    model = AutoModelForCausalLM.from_pretrained(llm_folder(), dtype=torch.bfloat16)
    del model.model.layers[2:]
    model.config.num_hidden_layers = 2
    model.save_pretrained(small)  # a teacher of another dtype
    AutoTokenizer.from_pretrained(llm_folder()).save_pretrained(small)
    config = DistillConfig(
        teacher=str(small),
        student=str(llm_folder()),
        data=str(text),
        budget="16samples",
        training=FAST,
    )
    found = distill(config, tmp_path / "kd")
    assert any("larger than its teacher" in said for said in found.warnings)


def test_a_blind_teacher_is_warned_of(
    compose_tiny: Callable[..., Any], small_data: Path, tmp_path: Path
) -> None:
    model, processor = compose_tiny("mlp")
    with torch.no_grad():
        for parameter in model.connectors.parameters():
            parameter.zero_()
    save_model(model, processor, tmp_path / "blind")
    config = DistillConfig(
        teacher=str(tmp_path / "blind"),
        student_layers=2,
        data=str(small_data / "data.jsonl"),
        budget="16samples",
        training=FAST,
    )
    found = distill(config, tmp_path / "kd")
    assert any("does not look" in said for said in found.warnings)
    assert "does not look" in (tmp_path / "kd" / "report.md").read_text()
