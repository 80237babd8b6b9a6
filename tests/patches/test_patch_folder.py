"""Patched folders: only the touched tensors change, removal is bit for bit, interruptions leave no mess."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from made_patches import FFN, logits, patch_for, same, written
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tiny
from modalign.errors import DataError, ModalignError, UsageError
from modalign.hashing import tensor_hash
from modalign.patches import Patch, save_patch, soup
from modalign.patches.folder_log import Log
from modalign.patches.header import patch_hash
from modalign.patches.model_folders import (
    apply_to_folder,
    folder_status,
    remove_from_folder,
    repair_folder,
)
from modalign.patches.patched_folder import PatchedFolder

FAMILIES = ["gpt2", "gptj", "llama"]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, the room of the patches left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] != "patches"
    }


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        n: t for path in sorted(folder.glob("*.safetensors")) for n, t in load_file(path).items()
    }


def made(
    folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32, shard: str = "1GB"
):
    model = tiny.language_model(family, 60).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    (folder / "notes.txt").write_text("kept")
    return model


def opened(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def names_of(family: str, *layers: int) -> list[str]:
    return [FFN[family].format(layer) for layer in layers]


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_touched_tensors_change_and_come_back(family, dtype, shard, tmp_path):
    model = made(tmp_path / "base", family, dtype, shard)
    before = contents(tmp_path / "base")
    assert (len([n for n in before if n.endswith("safetensors")]) > 1) == (shard == "20KB")
    patch = patch_for(model, names_of(family, 1, 2))
    status = apply_to_folder(tmp_path / "base", [patch], tmp_path / "edited")
    assert contents(tmp_path / "base") == before
    assert [each.sha256 for each in status.stack] == [patch_hash(patch)]
    assert status.problems == ()
    expected = written(model, patch)
    old, new = tensors(tmp_path / "base"), tensors(tmp_path / "edited")
    files = status.stack[0].tensors
    assert set(files) == set(patch.changes)
    assert same(new, {**old, **{files[name]: value for name, value in expected.items()}})
    edited = opened(tmp_path / "edited")
    assert edited.dtype == dtype
    plain = opened(tmp_path / "base")
    with patch.applied(plain):
        assert torch.equal(logits(edited), logits(plain))
    remove_from_folder(tmp_path / "edited", [patch.header.name])
    assert contents(tmp_path / "edited") == before
    assert sorted(p.name for p in (tmp_path / "edited" / "patches").iterdir()) == [
        ".lock",
        "log.jsonl",
    ]


def test_a_float32_patch_fits_a_bfloat16_file(tmp_path):
    made(tmp_path / "base", dtype=torch.bfloat16)
    model = opened(tmp_path / "base").float()
    patch = patch_for(model, names_of("llama", 1), "low_rank")
    apply_to_folder(tmp_path / "base", [patch], tmp_path / "edited")
    (name,) = patch.changes
    wanted = (model.get_parameter(name).double() + patch.changes[name].delta()).bfloat16()
    assert torch.equal(tensors(tmp_path / "edited")[name], wanted)


def test_a_patch_of_rounded_weights_does_not_fit_the_wider_file(tmp_path):
    model = made(tmp_path / "base")
    patch = patch_for(model.bfloat16(), names_of("llama", 1))
    with pytest.raises(DataError, match="rounded to bfloat16"):
        apply_to_folder(tmp_path / "base", [patch], tmp_path / "edited")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_patches_stack_and_leave_in_any_order(tmp_path):
    model = made(tmp_path / "base", dtype=torch.bfloat16)
    one, two, three = (
        patch_for(model, names_of("llama", *layers), kind, seed=seed)
        for seed, kind, layers in (
            (1, "solved", (1, 2)),
            (2, "dense", (2, 3)),
            (3, "low_rank", (0, 2)),
        )
    )
    folder = tmp_path / "edited"
    apply_to_folder(tmp_path / "base", [one, two], folder)
    status = apply_to_folder(folder, [three])
    assert [each.name for each in status.stack] == ["patch1", "patch2", "patch3"]
    apply_to_folder(tmp_path / "base", [one, three], tmp_path / "without")
    remove_from_folder(folder, [patch_hash(two)[:8]])
    assert contents(folder) == contents(tmp_path / "without")
    save_patch(one, tmp_path / "one.safetensors")
    remove_from_folder(folder, [str(tmp_path / "one.safetensors")])
    apply_to_folder(tmp_path / "base", [three], tmp_path / "alone")
    assert contents(folder) == contents(tmp_path / "alone")
    held = load_file(folder / "patches" / "originals.safetensors")
    assert set(held) == set(three.changes)
    remove_from_folder(folder, [], every=True)
    assert contents(folder) == contents(tmp_path / "base")
    assert not (folder / "patches" / "originals.safetensors").exists()


def test_a_patched_folder_can_be_the_base_of_a_new_one(tmp_path):
    model = made(tmp_path / "base")
    one, two = (patch_for(model, names_of("llama", 1), seed=seed) for seed in (1, 2))
    apply_to_folder(tmp_path / "base", [one], tmp_path / "a")
    before = {p.name: p.read_bytes() for p in (tmp_path / "a" / "patches").iterdir()}
    apply_to_folder(tmp_path / "a", [two], tmp_path / "b")
    assert {p.name: p.read_bytes() for p in (tmp_path / "a" / "patches").iterdir()} == before
    apply_to_folder(tmp_path / "base", [one, two], tmp_path / "c")
    assert contents(tmp_path / "b") == contents(tmp_path / "c")
    remove_from_folder(tmp_path / "b", ["patch1", "patch2"])
    assert contents(tmp_path / "b") == contents(tmp_path / "base")


def test_the_log_only_grows_and_says_what_happened(tmp_path):
    model = made(tmp_path / "base")
    patch = patch_for(model, names_of("llama", 1))
    apply_to_folder(tmp_path / "base", [patch], tmp_path / "edited")
    path = tmp_path / "edited" / "patches" / "log.jsonl"
    first = path.read_bytes()
    remove_from_folder(tmp_path / "edited", ["patch0"])
    assert path.read_bytes().startswith(first)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(e["number"], e["state"], e.get("action")) for e in lines] == [
        (1, "begun", "apply"), (1, "done", None), (2, "begun", "remove"), (2, "done", None),
    ]  # fmt: skip
    (name,) = patch.changes
    after = tensor_hash(written(model, patch)[name])
    assert lines[0]["tensors"] == {name: {"before": patch.header.base[name].sha256, "after": after}}
    assert lines[0]["patches"] == {"patch0": patch_hash(patch)}
    assert lines[2]["tensors"] == {name: {"before": after, "after": patch.header.base[name].sha256}}
    assert all(line["time"] for line in lines)


def test_patches_below_are_kept(tmp_path):
    model = made(tmp_path / "base")
    (name,) = names_of("llama", 2)
    one = patch_for(model, [name], seed=1)
    two = patch_for(model, [name], seed=2, after=(patch_hash(one),))
    with pytest.raises(DataError, match="apply that first"):
        apply_to_folder(tmp_path / "base", [two], tmp_path / "edited")
    apply_to_folder(tmp_path / "base", [one, two], tmp_path / "edited")
    with pytest.raises(DataError, match=r"'patch2'.*computed on top of it; remove both"):
        remove_from_folder(tmp_path / "edited", ["patch1"])
    remove_from_folder(tmp_path / "edited", ["patch1", "patch2"])
    assert contents(tmp_path / "edited") == contents(tmp_path / "base")


def test_what_is_refused(tmp_path):
    model = made(tmp_path / "base")
    patch = patch_for(model, names_of("llama", 1))
    other = tiny.language_model("llama", 60)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    with pytest.raises(UsageError, match="only copy"):
        apply_to_folder(tmp_path / "base", [patch])
    with pytest.raises(UsageError, match="exists already"):
        apply_to_folder(tmp_path / "base", [patch], tmp_path / "base")
    with pytest.raises(DataError, match="made for another model"):
        apply_to_folder(tmp_path / "base", [patch_for(other, names_of("llama", 1))], tmp_path / "e")
    with pytest.raises(UsageError, match=r"no config\.json"):
        apply_to_folder(tmp_path, [patch], tmp_path / "e")
    with pytest.raises(UsageError, match="at least one patch"):
        apply_to_folder(tmp_path / "base", [], tmp_path / "e")
    with pytest.raises(UsageError, match="carries no patches"):
        remove_from_folder(tmp_path / "base", ["patch0"])
    apply_to_folder(tmp_path / "base", [patch], tmp_path / "e")
    with pytest.raises(DataError, match="already"):
        apply_to_folder(tmp_path / "e", [patch])
    with pytest.raises(UsageError, match=r"is not applied; applied to .*patch0 \("):
        remove_from_folder(tmp_path / "e", ["nope"])
    with pytest.raises(UsageError, match="no patch to remove"):
        remove_from_folder(tmp_path / "e", [])
    (tmp_path / "base" / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="no safetensors weights"):
        apply_to_folder(tmp_path / "base", [patch], tmp_path / "f")


def test_tied_weights_are_refused(tmp_path):
    model = tiny.language_model("llama", 60, tied=True)
    model.save_pretrained(tmp_path / "tied")
    name = "model.embed_tokens.weight"
    patch = patch_for(model, [name], "dense")
    with pytest.raises(UsageError, match="tied weights"):
        apply_to_folder(tmp_path / "tied", [patch], tmp_path / "e")
    untied = made(tmp_path / "base")
    apply_to_folder(tmp_path / "base", [patch_for(untied, [name], "dense")], tmp_path / "e")


def test_weights_that_are_not_as_logged_are_reported(tmp_path):
    model = made(tmp_path / "base")
    one, two = (patch_for(model, names_of("llama", 1), seed=seed) for seed in (1, 2))
    folder = tmp_path / "e"
    apply_to_folder(tmp_path / "base", [one], folder)
    held = load_file(folder / "model.safetensors")
    (name,) = one.changes
    held[name][0, 0] += 1
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    (problem,) = folder_status(folder).problems
    assert name in problem
    for act in (
        lambda: apply_to_folder(folder, [two]),
        lambda: apply_to_folder(folder, [two], tmp_path / "f"),
        lambda: remove_from_folder(folder, ["patch1"]),
    ):
        with pytest.raises(DataError, match="not what its log says"):
            act()
    shutil.copy(tmp_path / "base" / "model.safetensors", folder)  # the patch overwritten by a copy
    assert name in folder_status(folder).problems[0]
    log = folder / "patches" / "log.jsonl"
    log.write_text("{}\n" + log.read_text())
    with pytest.raises(DataError, match=r"log\.jsonl:1 is not an entry"):
        folder_status(folder)


def test_a_damaged_copy_of_a_patch_is_named(tmp_path):
    model = made(tmp_path / "base")
    one, two = (patch_for(model, names_of("llama", 1), seed=seed) for seed in (1, 2))
    apply_to_folder(tmp_path / "base", [one, two], tmp_path / "e")
    copy = tmp_path / "e" / "patches" / folder_status(tmp_path / "e").stack[0].file
    save_patch(two, copy)
    with pytest.raises(DataError, match="is not the patch that was applied"):
        remove_from_folder(tmp_path / "e", ["patch2"])
    copy.unlink()
    assert "is gone" in folder_status(tmp_path / "e").problems[0]


def test_one_process_at_a_time(tmp_path):
    import fcntl

    model = made(tmp_path / "base")
    patch = patch_for(model, names_of("llama", 1))
    apply_to_folder(tmp_path / "base", [patch], tmp_path / "e")
    with (tmp_path / "e" / "patches" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ModalignError, match="another process"):
            remove_from_folder(tmp_path / "e", ["patch0"])


# ---- interruptions -----------------------------------------------------------------------------


class Interrupted(BaseException):
    """What a signal would raise."""


def interrupt_at(monkeypatch: pytest.MonkeyPatch, place: int, act) -> list[str]:
    """Count every step that changes the disk; at one of them, call ``act`` instead of it."""
    steps: list[str] = []

    def counted(module: Any, name: str) -> None:
        original = getattr(module, name)

        def step(*args: Any, **kwargs: Any) -> Any:
            steps.append(name)
            if len(steps) == place:
                act()
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, step)

    for module, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink"), (shutil, "copyfile"),
                         (Log, "_append")):  # fmt: skip
        counted(module, name)
    return steps


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> tuple[Path, Patch, Patch]:
    """A folder of several weight files with one patch in it; that patch, and a soup."""
    root = tmp_path_factory.mktemp("sharded")
    model = made(root / "base", dtype=torch.bfloat16, shard="20KB")
    one, *parents = (
        patch_for(model, names_of("llama", 0, 1, 3), kind, seed=seed, tag=f"{seed}.")
        for seed, kind in ((1, "solved"), (2, "low_rank"), (3, "dense"))
    )
    two = soup(parents, [0.5, -2.0], name="patch2")
    apply_to_folder(root / "base", [one], root / "one")
    apply_to_folder(root / "base", [one, two], root / "both")
    return root, one, two


ACTIONS = {
    "apply": ("one", "both", lambda folder, two: apply_to_folder(folder, [two])),
    "remove": ("both", "one", lambda folder, two: remove_from_folder(folder, ["patch2"])),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_an_exception_at_any_step_leaves_before_or_after(sharded, tmp_path, monkeypatch, action):
    root, _, two = sharded
    start, end, act = ACTIONS[action]
    ends = set()

    def fail() -> None:
        raise Interrupted

    for place in range(1, 60):
        folder = tmp_path / f"{place}"
        shutil.copytree(root / start, folder)
        with monkeypatch.context() as patched:
            interrupt_at(patched, place, fail)
            try:
                act(folder, two)
            except Interrupted:
                finished = False
            else:
                finished = True
        repair_folder(folder)
        ends.add(settled(root, folder, start, end))
        if not finished and stack_of(folder) == stack_of(root / start):
            act(folder, two)
        assert contents(folder) == contents(root / end)
        assert stack_of(folder) == stack_of(root / end)
        shutil.rmtree(folder)
        if finished:
            assert place > 10
            assert ends == {start, end}
            return
    pytest.fail("there were more steps")


def stack_of(folder: Path) -> list[str]:
    return [entry.name for entry in folder_status(folder).stack]


def settled(root: Path, folder: Path, *allowed: str) -> str:
    """Which of the allowed ones the folder is; its log must say the same."""
    status = folder_status(folder)
    assert status.problems == ()
    held = {n: c for n, c in contents(folder).items() if not n.endswith(".part")}
    (which,) = [each for each in allowed if contents(root / each) == held]
    assert stack_of(folder) == stack_of(root / which)
    return which


@pytest.mark.parametrize("action", ACTIONS)
def test_a_kill_at_any_step_is_put_right(sharded, tmp_path, action):
    root, _, two = sharded
    start, end, act = ACTIONS[action]
    ends: set[tuple[bool, str]] = set()
    assert len(PatchedFolder(root / "one").weights.files_of(two.changes)) > 1
    for place in range(1, 60):
        folder = tmp_path / f"{place}"
        shutil.copytree(root / start, folder)
        child = os.fork()
        if child == 0:
            try:
                with pytest.MonkeyPatch.context() as patched:
                    interrupt_at(patched, place, lambda: os._exit(9))
                    act(folder, two)
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        interrupted = folder_status(folder).interrupted
        assert os.waitstatus_to_exitcode(status) in (0, 9)
        assert repair_folder(folder) == interrupted
        ends.add((interrupted, settled(root, folder, start, end)))
        if stack_of(folder) == stack_of(root / start):
            act(folder, two)
        assert contents(folder) == contents(root / end)
        shutil.rmtree(folder)
        if os.waitstatus_to_exitcode(status) == 0:
            assert ends == {(False, start), (True, start), (True, end), (False, end)}
            return
    pytest.fail("there were more steps")


def test_an_interrupted_copy_leaves_no_folder(sharded, tmp_path, monkeypatch):
    root, _, two = sharded

    def fail() -> None:
        raise Interrupted

    for place in (1, 3, 6, 9):
        with monkeypatch.context() as patched:
            interrupt_at(patched, place, fail)
            with pytest.raises(Interrupted):
                apply_to_folder(root / "one", [two], tmp_path / "new")
        assert list(tmp_path.iterdir()) == []


def test_a_torn_last_line_of_the_log_was_never_written(sharded, tmp_path):
    root, _, two = sharded
    shutil.copytree(root / "one", tmp_path / "m")
    log = tmp_path / "m" / "patches" / "log.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"time": "2030')
    assert stack_of(tmp_path / "m") == ["patch1"]
    apply_to_folder(tmp_path / "m", [two])
    assert log.read_bytes().startswith(whole + b'{"time":')
    assert PatchedFolder(tmp_path / "m").log.pending is None
