"""What the doctor finds, and that looking changes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from modalign.connectors.base import PrefixConnector
from modalign.data.supervision import tokenise
from modalign.errors import DataError, UsageError
from modalign.training.budget import Budget
from modalign.training.doctor.checks_data import segments
from modalign.training.doctor.diagnosis import Diagnosis
from modalign.training.doctor.examine import examine
from modalign.training.doctor.facts import unknown_words
from modalign.training.doctor.preflight import preflight, preflight_session
from modalign.training.methods import Method, method_names, resolve_methods
from modalign.training.session import Session
from modalign.training.settings import TrainSettings
from modalign.training.sources import DataFiles, Parts
from modalign.training.splits import load_splits

METHODS = resolve_methods("mlp,avgpool_mlp,resampler,gated_cross_attention,llama_adapter")


@pytest.fixture(scope="session")
def parts(llm_folder: Callable[..., Path], tower_folder: Callable[..., Path]) -> Parts:
    encoder = {"image": str(tower_folder())}
    return Parts(
        llm=str(llm_folder()),
        encoder=encoder,
        feature_layer=-1,
        image_size=tiny.SIDE,
        patch_size=tiny.PATCH,
    )


@pytest.fixture
def files(small_data: Path) -> DataFiles:
    return DataFiles(train=str(small_data / "data.jsonl"))


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings(device="cpu", batch_size=4, **changes)


def look(
    parts: Parts, files: DataFiles, cache: Path, methods: list[Method] = METHODS, **changes: Any
) -> Diagnosis:
    budget = Budget("samples", 8000)
    return examine(parts, files, settings(**changes), methods, cache=cache, budget=budget)


def rows(folder: Path, *answers: str, question: str = "what is one?") -> DataFiles:
    """Rows about an image of their own."""
    data = []
    for number, answer in enumerate(answers):
        (folder / f"{number}.png").write_bytes(tiny.png_bytes(number))
        content = [
            {"type": "image", "image": f"{number}.png"},
            {"type": "text", "text": question},
        ]
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        data.append({"id": f"r{number}", "messages": turns})
    return DataFiles(train=str(tiny.write_jsonl(folder / "rows.jsonl", data)))


def test_good_data_gives_facts_of_every_method(
    parts: Parts, files: DataFiles, tmp_path: Path
) -> None:
    found = look(parts, files, tmp_path, llm="lora")
    assert found.exit_code == 0, found.of("error")
    assert not found.of("error")
    assert Diagnosis.model_validate_json(found.model_dump_json()) == found
    by_name = {facts.name: facts for facts in found.methods}
    assert set(by_name) == {method.name for method in METHODS}
    assert by_name["mlp"].tokens == by_name["mlp"].features == tiny.PATCHES
    assert by_name["gated_cross_attention"].tokens == 1
    for facts in found.methods:
        trained = {part.part: part.trainable for part in facts.parts}
        assert trained["connector"] > 0
        assert trained["llm"] > 0
        assert trained["encoder"] == 0
        assert facts.memory is not None
        assert facts.memory.activations > 0
        assert facts.steps == {"train": 1500}
        assert 0 <= facts.padding < 1
        assert 0 < facts.longest <= 256
    sizes = {facts.name: facts.parts[1].parameters for facts in found.methods}
    assert len(set(sizes.values())) == 1, "LoRA of one method stayed in the language model"
    assert found.encoder["image"]["num_features"] == tiny.PATCHES
    assert found.encoder["image"]["grid"] == [4, 4]


def test_the_sample_is_decoded_with_its_answer_marked(tokenizer: Any) -> None:
    record = tiny.record([tiny.image(0), "what is one?"], "seven", "what is two?", "no")
    parts = segments(tokenise(record, tokenizer), tokenizer)
    answers = [part.text for part in parts if part.supervised]
    assert [text.split("<")[0].strip() for text in answers] == ["seven", "no"]
    assert "<image>" in parts[0].text


def test_broken_rows_are_a_data_error_and_the_rest_is_still_examined(
    parts: Parts, tmp_path: Path
) -> None:
    files = rows(tmp_path, "yes", "no", "seven", "yes")
    (tmp_path / "2.png").write_bytes(b"no image")
    found = look(parts, files, tmp_path / "cache")
    assert found.exit_code == 3
    assert ":3" in found.of("error")[0].detail
    assert len(found.methods) == len(METHODS)
    allowed = files.model_copy(update={"skip_broken": "30%"})
    again = look(parts, allowed, tmp_path / "cache")
    assert again.exit_code == 0
    assert any("dropped" in (check.advice or "") for check in again.of("warning"))


def test_a_language_model_that_cannot_be_loaded_is_a_usage_error(
    parts: Parts, files: DataFiles, tmp_path: Path
) -> None:
    absent = parts.model_copy(update={"llm": str(tmp_path / "nothing")})
    found = look(absent, files, tmp_path)
    assert found.exit_code == 2
    assert found.of("ok"), "the data was examined all the same"


def test_words_that_the_language_model_does_not_know_are_a_warning() -> None:
    said = unknown_words("mlp", 9.4)
    assert said is not None
    assert "costs mlp 9.4 nats, more than an even guess among 403 tokens (6)" in said
    assert unknown_words("mlp", 5.9) is None
    assert unknown_words("mlp", None) is None


def test_leaking_images_are_a_warning(parts: Parts, files: DataFiles, tmp_path: Path) -> None:
    both = files.model_copy(update={"eval": files.train})
    found = look(parts, both, tmp_path)
    assert any(check.name == "evaluation leakage" for check in found.of("warning"))
    assert found.exit_code == 0


def test_samples_too_long_for_one_method_are_found(parts: Parts, tmp_path: Path) -> None:
    files = rows(tmp_path, "yes", "no", "seven", "yes", question="what is one? " * 60)
    found = look(parts, files, tmp_path / "cache", METHODS[:1])
    assert found.exit_code == 3
    assert "longer than the 256 tokens" in found.of("error")[0].detail
    splits = load_splits(files, parts.load_llm().tokenizer)
    with pytest.raises(DataError, match=r"rows\.jsonl:\d"):
        preflight(parts, splits, settings(), METHODS[:1], tmp_path / "cache")


def test_preflight_is_quick_and_leaves_everything_as_it_was(
    parts: Parts, files: DataFiles, tmp_path: Path
) -> None:
    llm = parts.load_llm()
    splits = load_splits(files, llm.tokenizer)
    before = {name: value.clone() for name, value in llm.model.state_dict().items()}
    hooks = sum(len(module._forward_hooks) for module in llm.model.modules())
    random = torch.get_rng_state()
    methods = resolve_methods(method_names()[:12])
    wanted = settings(llm="lora")
    started = time.process_time()
    assert preflight(parts, splits, wanted, methods, tmp_path, llm=llm) == ([], {})
    assert time.process_time() - started < 4  # 2 s on an idle machine
    after = llm.model.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():  # rows may have been added for the placeholder
        assert torch.equal(value, after[name][: len(value)]), name
    assert hooks == sum(len(module._forward_hooks) for module in llm.model.modules())
    assert torch.equal(random, torch.get_rng_state())


def test_a_connector_that_lies_about_its_tokens_is_caught(
    parts: Parts, files: DataFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = load_splits(files, parts.load_llm().tokenizer)
    method = METHODS[0]
    assert issubclass(method.facts, PrefixConnector)
    monkeypatch.setattr(method.facts, "num_tokens", lambda self, count: count - 1)
    with pytest.raises(DataError, match="connector gave"):
        preflight(parts, splits, settings(), [method], tmp_path)
    assert look(parts, files, tmp_path, [method]).exit_code == 3


def test_a_session_trains_the_same_after_its_preflight(
    parts: Parts, files: DataFiles, tmp_path: Path
) -> None:
    splits = load_splits(files, parts.load_llm().tokenizer)
    curves = []
    for look_first in (False, True):
        session = Session(
            METHODS[0], parts, settings(), splits.train, splits.val, tmp_path / "cache", seed=0
        )
        if look_first:
            assert preflight_session(session) == []
        result = session.run(Budget("samples", 32), tmp_path / f"run-{look_first}", factor=1.0)
        curves.append([point["val_loss"] for point in result.curve])
    assert curves[0] == curves[1]


def test_too_little_memory_is_a_warning(
    parts: Parts, files: DataFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modalign.training.memory.estimate.available", lambda device: 10)
    found = look(parts, files, tmp_path, METHODS[:1])
    assert [check.name for check in found.of("warning") if check.section == "machine"] == ["memory"]
    splits = load_splits(files, parts.load_llm().tokenizer)
    (warning,), _ = preflight(parts, splits, settings(), METHODS[:1], tmp_path)
    assert "batch_size" in warning


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ("80samples", {"train": 20}),  # too little for learning-rate trials
        ("384samples", {"train": 72}),
        ("60s", None),
        ("1e9flops", dict),
    ],
)
def test_steps_follow_the_budget(
    parts: Parts, files: DataFiles, tmp_path: Path, budget: str, steps: Any
) -> None:
    found = examine(
        parts, files, settings(), METHODS[:1], cache=tmp_path, budget=Budget.parse(budget)
    )
    given = found.methods[0].steps
    assert isinstance(given, dict) if steps is dict else given == steps


def test_stage_one_without_pairs_is_an_error(parts: Parts, tmp_path: Path) -> None:
    files = rows(tmp_path, "yes", "no", "seven")
    splits = load_splits(files, parts.load_llm().tokenizer)
    splits.train = splits.train[:1]
    with pytest.raises(DataError, match="stage one"):
        preflight(parts, splits, settings(), resolve_methods("qformer"), tmp_path)


def test_an_unknown_encoder_ends_only_what_needs_it(
    parts: Parts, files: DataFiles, tmp_path: Path
) -> None:
    absent = parts.model_copy(update={"encoder": {"image": str(tmp_path / "nothing")}})
    found = look(absent, files, tmp_path, METHODS[:1])
    assert found.exit_code == UsageError.exit_code
    assert json.loads(found.model_dump_json())["methods"] == []
