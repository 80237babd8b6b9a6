"""Configurations: a parent plus the changed fields."""

from __future__ import annotations

import pytest
import yaml

from modalign.comparison import config as module
from modalign.comparison.config import CompareConfig, load_config
from modalign.configuration import validated
from modalign.errors import UsageError
from modalign.starter.build import WEIGHTS
from modalign.training import experiment
from modalign.training.sources import Parts

STARTER = {
    "parts": {
        "llm": "starter-llm",
        "encoder": {"image": "starter-encoder"},
        "feature_layer": -1,
        "image_size": 48,
        "patch_size": 8,
    },
    "data": {"train": "t.jsonl", "val": "v.jsonl", "eval": "e.jsonl"},
}


@pytest.fixture(autouse=True)
def _no_starter_data(monkeypatch):
    monkeypatch.setattr(experiment, "starter_experiment", lambda progress=None: STARTER)
    monkeypatch.setattr(module, "DEMO", {"methods": ["linear"]})


def written(folder, name="c.yaml", **values):
    path = folder / name
    path.write_text(yaml.safe_dump(values))
    return path


def test_without_a_file_the_starter():
    config, changed = load_config(None)
    assert config.parts.llm == "starter-llm"
    assert (config.seeds, config.total, config.first_seed) == ("auto", None, 0)
    assert changed == {}


def test_what_differs_is_listed(tmp_path):
    file = written(tmp_path, extends="starter", training={"batch_size": 4}, seeds=2)
    config, changed = load_config(file, {"seeds": "5", "training": {"llm": "full"}})
    assert (config.seeds, config.training.batch_size, config.training.llm) == (5, 4, "full")
    assert changed == {"seeds": "5", "training.batch_size": "4", "training.llm": "full"}


@pytest.mark.parametrize("in_file", [True, False])
def test_other_training_data_brings_no_foreign_splits(tmp_path, in_file):
    own = {"data": {"train": str(tmp_path / "mine.jsonl")}}
    config, _ = load_config(
        written(tmp_path, extends="starter", **(own if in_file else {})), None if in_file else own
    )
    assert config.data.train == str(tmp_path / "mine.jsonl")
    assert config.data.val is None
    assert config.data.eval is None


def test_other_evaluation_data_alone_keeps_the_rest():
    config, _ = load_config(None, {"data": {"eval": "other.jsonl"}})
    assert (config.data.train, config.data.val, config.data.eval) == (
        "t.jsonl",
        "v.jsonl",
        "other.jsonl",
    )


def test_another_encoder_is_not_read_as_the_parents(tmp_path):
    config, _ = load_config(None, {"parts": {"encoder": {"image": "other"}}})
    assert config.parts == Parts(llm="starter-llm", encoder={"image": "other"})
    config, _ = load_config(None, {"parts": {"llm": "other"}})
    assert (config.parts.feature_layer, config.parts.image_size) == (-1, 48)
    parts = {"encoder": {"image": "mine"}, "feature_layer": -3}
    config, _ = load_config(written(tmp_path, extends="starter", parts=parts))
    assert config.parts.feature_layer == -3
    config, _ = load_config(tmp_path / "c.yaml", {"parts": {"llm": "other"}})
    assert config.parts.feature_layer == -3


def test_relative_paths_count_from_the_file(tmp_path):
    folder = tmp_path / "deep"
    (folder / "model").mkdir(parents=True)
    written(folder, parts={"llm": "model", "encoder": {"image": "hub/name"}}, data={"train": "t"})
    config, _ = load_config(written(tmp_path, "child.yaml", extends="deep/c.yaml", seeds=1))
    assert config.parts.llm == str(folder / "model")
    assert config.parts.encoder == {"image": "hub/name"}
    assert config.data.train == str(folder / "t")
    assert config.seeds == 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"extends": "starter", "sedes": 2}, "sedes"),
        ({"extends": "starter", "training": {"learning_rates": {"conector": 1}}}, "conector"),
        ({"extends": "starter", "seeds": 0}, "seeds: .*1 or more, or auto"),
        ({"extends": "starter", "seeds": "many"}, "seeds: .*1 or more, or auto"),
        ({"extends": "starter", "training": 3}, "training"),
        ({"extends": "starter", "data": "x.jsonl"}, "data"),
        ({"extends": "c.yaml"}, "extends itself"),
        ({"extends": "gone.yaml"}, "gone.yaml"),
        ({"seeds": 1}, "parts"),
    ],
)
def test_wrong_files_are_explained(tmp_path, values, said):
    with pytest.raises(UsageError, match=said):
        load_config(written(tmp_path, **values))


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00"])
def test_what_is_no_mapping_is_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"c\.yaml"):
        load_config(tmp_path / "c.yaml")


def test_one_job_at_a_time_on_an_accelerator():
    config = CompareConfig.model_validate({**STARTER, "training": {"device": "cpu"}})
    assert config.workers >= 1
    assert config.model_copy(update={"jobs": 3}).workers == 3
    meta = CompareConfig.model_validate({**STARTER, "training": {"device": "meta"}})
    assert meta.workers == 1
    nowhere = CompareConfig.model_validate({**STARTER, "training": {"device": "banana"}})
    with pytest.raises(UsageError, match="banana"):
        _ = nowhere.workers


def test_parts_of_the_starter_are_stored_by_name(tmp_path, monkeypatch):
    """So that a run goes on where another installation, or another cache, has its own."""
    values = {"llm": str(WEIGHTS / "language"), "encoder": {"image": str(WEIGHTS / "vision")}}
    parts = Parts.model_validate(values)
    assert (parts.llm, parts.encoder) == (values["llm"], values["encoder"])
    stored = parts.model_dump(mode="json")
    assert (stored["llm"], stored["encoder"]) == ("starter:llm", {"image": "starter:encoder"})
    monkeypatch.setattr("modalign.starter.build.WEIGHTS", tmp_path)
    assert Parts.model_validate(stored).llm == str(tmp_path / "language")
    with pytest.raises(UsageError, match=r"no part 'lm': did you mean llm\?"):
        validated(Parts, stored | {"llm": "starter:lm"}, "x")
    assert Parts(llm="my/model", encoder={}).model_dump(mode="json")["llm"] == "my/model"
