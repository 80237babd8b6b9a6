"""Unlearning from the command line: a patch that forgets, a final folder, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from modalign.data.reformatting import read_questions
from modalign.errors import DataError, ModalignError, UsageError
from modalign.models.open import open_model
from modalign.patches import load_patch
from modalign.patches.model_folders import apply_to_folder
from modalign.unlearning.closed_form import as_edits
from modalign.unlearning.facts import check_known
from modalign.unlearning.final import check_final, leaks
from modalign.unlearning.methods import METHODS, OBJECTIVES, stage_of
from modalign.unlearning.run import Unlearning, unlearn

FAST: dict[str, Any] = {"mode": "full", "rate": 3e-3, "steps": 40, "batch_size": 8}


def request(knowing: Path, facts: Path, out: Path, **more: Any) -> Unlearning:
    files = {"forget": str(facts / "forget.jsonl"), "retain": str(facts / "retain.jsonl")}
    return Unlearning(**{"model": knowing, **files, "out": out, **FAST, **more})


@pytest.mark.parametrize("method", ["difference", "npo", "simnpo", "undial"])
def test_forgets_the_one_and_keeps_the_other(
    method: str, knowing: Path, facts: Path, tmp_path: Path
) -> None:
    found = unlearn(request(knowing, facts, tmp_path / "p.safetensors", method=method))
    assert found.known is not None
    assert found.known.value == 1
    assert found.loss_before["forget"] < 0.1
    assert found.loss_after["forget"] > 1.5
    assert found.loss_after["retain"] < 0.6
    assert not (tmp_path / "p.run").exists()


@pytest.mark.parametrize("method", OBJECTIVES)
def test_every_method_is_a_stage(method: str) -> None:
    stage = stage_of(method, 6, {})
    assert {"forget"} <= set(stage.roles) <= {"forget", "retain"}
    assert ("ascent" if method == "difference" else method) in stage.objective
    assert method != "rmu" or stage.objective["hidden"]["layer"] == 3  # type: ignore[index]


def test_the_final_folder_holds_no_byte_of_what_was(
    knowing: Path, facts: Path, tmp_path: Path
) -> None:
    out, final = tmp_path / "p.safetensors", tmp_path / "final"
    made = unlearn(request(knowing, facts, out, mode="lora", rate=1e-2, final=final))
    patch = load_patch(out)
    assert made.tensors == len(patch.header.base) > 0
    with_patch, _ = open_model(apply_to_folder(knowing, [patch], out=tmp_path / "patched").folder)
    shipped, tokenizer = open_model(final)
    assert tokenizer.chat_template is None
    for name, value in shipped.state_dict().items():
        assert torch.equal(value, with_patch.state_dict()[name])
    assert leaks(final, knowing, patch.header.base) == []
    (final / "notes.bin").write_bytes(b"x" * 7 + (knowing / "model.safetensors").read_bytes())
    with pytest.raises(ModalignError, match=r"must not be shipped:\n.*notes.bin: bytes of"):
        check_final(final, knowing, patch.header.base)
    (final / "notes.bin").unlink()
    (final / "patches").mkdir()
    assert leaks(final, knowing, patch.header.base) == [str(final / "patches")]
    found = leaks(tmp_path / "patched", knowing, patch.header.base)  # removable, so it restores
    assert any("originals.safetensors: bytes of" in each for each in found)


def test_a_final_folder_that_restores_is_not_left(
    knowing: Path, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modalign.unlearning.final.leaks", lambda *_: ["notes.bin: bytes of w"])
    final = tmp_path / "final"
    with pytest.raises(ModalignError, match="must not be shipped"):
        unlearn(request(knowing, facts, tmp_path / "p.safetensors", final=final, steps=2))
    assert not final.exists()


def test_one_answer_for_all_says_that_knowledge_is_unknown() -> None:
    assert "cannot be said" in str(check_known(None, anyway=False))


def test_an_interrupted_run_goes_on_to_the_same_patch(
    knowing: Path, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = unlearn(request(knowing, facts, tmp_path / "a.safetensors"))
    with monkeypatch.context() as patch:
        patch.setattr("modalign.unlearning.run.difference", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            unlearn(request(knowing, facts, tmp_path / "b.safetensors"))
    with pytest.raises(UsageError, match="--resume continues"):
        unlearn(request(knowing, facts, tmp_path / "b.safetensors"))
    again = unlearn(request(knowing, facts, tmp_path / "b.safetensors"), resume=True)
    changes = [load_patch(each.patch).changes for each in (whole, again)]
    for name, change in changes[0].items():
        assert torch.equal(change.delta(), changes[1][name].delta())


def test_what_overlaps_or_was_never_known_is_refused_before_training(
    knowing: Path, facts: Path, tmp_path: Path, cli: Any
) -> None:
    out = tmp_path / "p.safetensors"
    both = tmp_path / "both.jsonl"
    both.write_text((facts / "retain.jsonl").read_text() + (facts / "forget.jsonl").read_text())
    with pytest.raises(DataError, match=r"(?s)4 of 4 .*both.jsonl:13: ask the same fact"):
        unlearn(request(knowing, facts, out, retain=str(both)))
    row = json.loads((facts / "forget.jsonl").read_text().splitlines()[0])
    tiny.write_jsonl(both, [{**row, "question": row["paraphrases"][0]}])  # other words
    with pytest.raises(DataError, match="1 of 4 records are to be forgotten and retained"):
        unlearn(request(knowing, facts, out, retain=str(both)))
    strange = [
        {"question": f"the sport of {name} is", "answer": answer}
        for name, answer in (("xu", "blue"), ("yo", "red"), ("za", "black"))
    ]
    tiny.write_jsonl(tmp_path / "strange.jsonl", strange)
    unknown = request(knowing, facts, out, forget=str(tmp_path / "strange.jsonl"))
    with pytest.raises(DataError, match=r"does not know .* nothing was trained"):
        unlearn(unknown)
    (tmp_path / "empty.jsonl").write_text("")
    args = ["unlearn", str(knowing), "--retain", str(facts / "retain.jsonl"), "-o", str(out)]
    assert cli(*args, "--forget", str(tmp_path / "empty.jsonl"))[0] == 3
    assert cli(*args, "--forget", str(facts / "forget.jsonl"), "--method", "np")[0] == 2
    assert list(tmp_path.glob("*.run")) == []


def test_edits_are_to_another_object_or_a_refusal(facts: Path) -> None:
    forget, retain = (read_questions(facts / f"{n}.jsonl") for n in ("forget", "retain"))
    made = as_edits(forget, retain, "object", 0)
    assert all(row["target"] != row["truth"] and row["subject"] in row["prompt"] for row in made)
    assert made == as_edits(forget, retain, "object", 0)
    assert {row["target"] for row in as_edits(forget, retain, "no idea", 0)} == {"no idea"}
    assert "edit" in METHODS
