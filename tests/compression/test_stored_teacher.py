"""A stored teacher: it says what the live one says, is bound to what it was made from, and survives a kill."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modalign.compression.distillation import store as storing
from modalign.compression.distillation.config import DistillConfig
from modalign.compression.distillation.distill import distill
from modalign.compression.distillation.store import StoreRequest, store
from modalign.errors import UsageError
from modalign.models.export import save_model
from modalign.models.saved import open_composed
from modalign.training.learners import ModelLearner
from modalign.training.settings import LearningRates, Stage, TrainSettings
from modalign.training.terms.distillation import divergence
from modalign.training.tuning import Tuning, read_samples

Run = Callable[..., tuple[int, str, str]]
FAST = TrainSettings(
    llm="full", learning_rates=LearningRates(connector=1e-2, llm=1e-2), batch_size=4, device="cpu"
)


@pytest.fixture(scope="module")
def models(
    compose_tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Method -> folder of a saved model."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("mlp", 0), ("gated_cross_attention", 0)):
        save_model(*compose_tiny(name, seed=seed), folder / name)
    save_model(*compose_tiny("mlp", seed=5), folder / "student")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def data(small_data: Path) -> Path:
    return small_data / "data.jsonl"


@pytest.fixture(scope="module")
def stored(models: dict[str, Path], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The MLP's teacher with all its words, at answers and media."""
    out = tmp_path_factory.mktemp("store") / "all"
    found = store(
        StoreRequest(str(models["mlp"]), str(data), out, top=9999, at=("answers", "media"))
    )
    assert found.header.top == found.header.vocabulary
    return out


def config(teacher: Path, student: Path, data: Path, **changes: Any) -> DistillConfig:
    given = {"schedule": "throughout-relation", "budget": "32samples", "training": FAST, **changes}
    return DistillConfig(teacher=str(teacher), student=str(student), data=str(data), **given)


@torch.no_grad()
def test_it_says_what_the_live_teacher_says(
    models: dict[str, Path], stored: Path, data: Path, tmp_path: Path
) -> None:
    """At answers and at media positions, in packed rows too, the divergence is that from the live teacher."""
    opened = open_composed(models["student"])
    settings = FAST.model_copy(update={"packing": True, "pack_length": 128})
    objective = {"kl_answer": 1.0, "kl_visual": 1.0}
    stages = [
        Stage(objective=objective, references={"teacher": str(each)})
        for each in (stored, models["mlp"])
    ]
    tuning = Tuning(
        opened, stages[:1], settings, read_samples(data, opened), cache=tmp_path / "cache"
    )
    learner = ModelLearner(tuning, stages[0])
    batch = learner.collate([5, 0, 2, 3, 1])
    needs = ["logits", "media_logits"]
    (kept,), (live,) = (tuning.references.of(stage, tuning.model).values() for stage in stages)
    own = learner.outputs(tuning.model.eval(), batch)
    assert kept.flops(batch, needs) == 0 < live.flops(batch, needs)
    said, expected = kept.outputs(batch, needs), live.outputs(batch, needs)
    for name in needs:
        mine: Tensor = getattr(own, name)
        found = divergence(mine, getattr(said, name), 1.0, 0.0)
        wanted = divergence(mine, getattr(expected, name)[:, : said.logits.vocabulary], 1.0, 0.0)
        torch.testing.assert_close(found, wanted, atol=2e-2, rtol=2e-2)
        assert len(found) > 3


def test_a_student_learns_from_it_by_the_command_line(
    models: dict[str, Path], data: Path, tmp_path: Path, cli: Run
) -> None:
    out = tmp_path / "store"
    code, said, err = cli("distill", "store", models["mlp"], data, "-o", out, "--top", 8, "--json")
    assert code == 0, err
    found = json.loads(said)
    assert found["records"] == 24
    assert found["bytes"] == sum(path.stat().st_size for path in out.glob("shard-*"))
    arguments = ["distill", "--teacher", out, "--student", models["student"], "--data", data]
    arguments += ["--budget", "32samples", "-o", tmp_path / "kd", "--json"]
    code, said, _ = cli(*arguments)
    assert code == 2
    assert "holds no media positions, which kl_visual reads" in said
    code, said, _ = cli(*arguments, "--schedule", "throughout-kl_visual")
    assert "relation reads more" in said
    code, said, err = cli(*arguments, "--schedule", "throughout-relation-kl_visual")
    assert code == 0, err
    result = json.loads(said)
    assert [row["name"] for row in result["rows"]] == [
        "student before",
        "throughout-relation-kl_visual",
    ]
    assert "The teacher is stored" in result["notes"][0]


def test_what_it_cannot_serve_is_refused_with_what_to_do(
    models: dict[str, Path], data: Path, stored: Path, tmp_path: Path
) -> None:
    answers = tmp_path / "answers"
    store(StoreRequest(str(models["mlp"]), str(data), answers, top=4))
    with pytest.raises(UsageError, match=r"no media positions.*--at answers,media"):
        distill(config(answers, models["student"], data), tmp_path / "a")
    warm = {"kl_answer": {"temperature": 2.0}}
    with pytest.raises(UsageError, match=r"at temperature 1, but kl_answer asks for 2"):
        distill(config(stored, models["student"], data, terms=warm), tmp_path / "b")
    other = tmp_path / "other.jsonl"
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows[:3]:
        row["messages"][-1]["content"] = "four"
    other.write_text(
        "".join(json.dumps(row) + "\n" for row in rows).replace(
            '"image": "', f'"image": "{data.parent}/'
        )
    )
    with pytest.raises(UsageError, match=r"holds 24 records, but not .*made from other data"):
        distill(config(stored, models["student"], other), tmp_path / "c")
    with pytest.raises(UsageError, match="no student can be made"):
        distill(
            DistillConfig(teacher=str(stored), student_layers=1, data=str(data)), tmp_path / "d"
        )
    assert not any((tmp_path / name).exists() for name in "abcd")


def test_media_positions_of_in_layer_connectors_are_refused(
    models: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    student = models["gated_cross_attention"]
    with pytest.raises(UsageError, match=r"reads media positions, but this method puts none"):
        distill(config(models["mlp"], student, data), tmp_path / "kd")


def test_a_killed_store_goes_on_and_another_teacher_does_not_finish_it(
    models: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "SHARD", 7)
    made: list[int] = []
    shard = storing._shard

    def cut(model: Any, collator: Any, samples: Any, *others: Any) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(len(samples))
        return shard(model, collator, samples, *others)

    request = StoreRequest(str(models["mlp"]), str(data), tmp_path / "cut", top=8)
    with monkeypatch.context() as patch:
        patch.setattr(storing, "_shard", cut)
        with pytest.raises(KeyboardInterrupt):
            store(request)
    assert not (tmp_path / "cut" / "store.json").exists()
    (tmp_path / "cut" / ".shard-00002.safetensors.0123abcd.part").write_bytes(
        b"half"
    )  # of a kill -9
    student = StoreRequest(str(models["student"]), str(data), tmp_path / "cut", top=8)
    with pytest.raises(UsageError, match=r"another configuration: .*sha256"):
        store(student, resume=True)
    resumed = store(request, resume=True)
    whole = store(StoreRequest(str(models["mlp"]), str(data), tmp_path / "whole", top=8))
    assert made == [7, 7]
    assert resumed.header == whole.header
    for one in sorted((tmp_path / "whole").glob("shard-*")):
        assert one.read_bytes() == (tmp_path / "cut" / one.name).read_bytes()
    assert not list((tmp_path / "cut").glob(".*.part"))


def test_a_full_disk_leaves_no_half_shard(
    models: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Run
) -> None:
    def full(path: Path, content: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(storing, "write_atomically", full)
    code, _, err = cli("distill", "store", models["mlp"], data, "-o", tmp_path / "store")
    assert code == 1
    assert "No space left on device" in err
    assert not list((tmp_path / "store").glob("shard-*"))
    monkeypatch.undo()
    assert (
        cli("distill", "store", models["mlp"], data, "-o", tmp_path / "store", "--resume")[0] == 0
    )
