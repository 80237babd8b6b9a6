"""The patch file: read back as it was written; damage is refused and named."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_patches import FFN, patch_for
from safetensors.torch import load_file, safe_open, save_file

import tiny
from modalign.errors import DataError, ModalignError
from modalign.patches import load_patch, save_patch
from modalign.patches.changes import DenseChange, LowRankChange, SolvedChange
from modalign.patches.header import EditingOrigin, patch_hash, tensors_of
from modalign.patches.patch import Patch

NAMES = [FFN["gptj"].format(i) for i in (0, 2)]


@pytest.fixture(scope="module")
def model():
    return tiny.language_model("gptj", 40)


@pytest.fixture
def saved(model, tmp_path: Path) -> Path:
    save_patch(patch_for(model, NAMES), tmp_path / "fix.safetensors")
    return tmp_path / "fix.safetensors"


@pytest.mark.parametrize("kind", ["solved", "low_rank", "dense"])
def test_it_comes_back_as_it_was(model, tmp_path, kind):
    patch = patch_for(model, NAMES, kind, history=("begun",), seed=3, contexts=("{}", "Ça. {}"))
    path = tmp_path / "new" / "fix.safetensors"
    digest = save_patch(patch, path)
    again = load_patch(path)
    assert again.header == patch.header
    assert digest == patch_hash(again) == patch_hash(patch)
    assert {type(c) for c in again.changes.values()} == {type(c) for c in patch.changes.values()}
    expected = tensors_of(patch)
    found = tensors_of(again)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value)
    part = {"solved": "keys", "low_rank": "left", "dense": "delta"}[kind]
    assert f"{NAMES[0]}::{part}" in load_file(path)
    assert [item.name for item in path.parent.iterdir()] == ["fix.safetensors"]


def test_columns_of_no_edit_and_shared_memory(model, tmp_path):
    patch = patch_for(model, NAMES[:1])
    change = patch.changes[NAMES[0]]
    assert isinstance(change, SolvedChange)
    shared = SolvedChange(change.keys, change.keys, change.residuals, (2, -1, 0))  # P K / 1 = K
    save_patch(Patch(patch.header, {NAMES[0]: shared}), tmp_path / "p")
    found = load_patch(tmp_path / "p").changes[NAMES[0]]
    assert isinstance(found, SolvedChange)
    assert found.edits == (2, -1, 0)
    assert torch.equal(found.dual, change.keys)


def test_a_truncated_file(saved: Path):
    content = saved.read_bytes()
    for length in (0, 4, 50, len(content) // 2, len(content) - 1):
        saved.write_bytes(content[:length])
        with pytest.raises(
            DataError, match=r"fix\.safetensors is not a safetensors file, or is trunc"
        ):
            load_patch(saved)


def test_every_changed_byte_of_content_is_noticed(saved: Path):
    content = saved.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + length]
    places = [
        8 + header.index(b"subject 1"),  # an edit's words
        8 + header.index(b"[0, 1, 2]") + 1,  # which column is whose
        8 + length,  # the first number
        len(content) - 1,  # the last
    ]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1
        saved.write_bytes(damaged)
        with pytest.raises(DataError, match="changed after it was written"):
            load_patch(saved)


def rewritten(path: Path, **changes: str) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, {**metadata, **changes})


def test_other_files_and_versions(saved: Path, tmp_path):
    with pytest.raises(DataError, match="there is no patch file"):
        load_patch(tmp_path / "gone")
    save_file({"a": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(DataError, match="not a modalign patch"):
        load_patch(tmp_path / "other")
    rewritten(saved, format_version="9")
    with pytest.raises(DataError, match="format version 9, this modalign reads 1 to 2"):
        load_patch(saved)
    rewritten(saved, format_version="1", header="{")
    with pytest.raises(DataError, match=r"fix\.safetensors is not a usable patch"):
        load_patch(saved)
    rewritten(saved, header=json.dumps({"name": "x"}))
    with pytest.raises(DataError, match="changed after it was written"):
        load_patch(saved)


def test_a_patch_that_contradicts_itself_is_not_written(model, tmp_path):
    patch = patch_for(model, NAMES)
    name = NAMES[0]
    change = patch.changes[name]
    assert isinstance(change, SolvedChange)
    wide, nan = change.keys.repeat(2, 1), change.keys * float("nan")
    wrong = {
        "changes nothing": Patch(patch.header, {}),
        "only in its header": Patch(patch.header, {name: change}),
        "different shapes": with_change(patch, name, replace(change, keys=wide)),
        "not finite": with_change(patch, name, replace(change, dual=nan)),
        "names the edits of 2": with_change(patch, name, replace(change, edits=(0, 1))),
        "not among its 3": with_change(patch, name, replace(change, edits=(0, 1, 3))),
        "its tensor": with_change(patch, name, DenseChange(torch.zeros(3, 3))),
        "columns": with_change(
            patch, name, LowRankChange(change.residuals, change.keys[:, :1], (0, 1, 2))
        ),
        "used twice": Patch(
            patch.header.model_copy(update={"editing": EditingOrigin(edits=patch.edits[:1] * 3)}),
            patch.changes,
        ),
    }
    for said, broken in wrong.items():
        with pytest.raises(ModalignError, match=said):
            save_patch(broken, tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def with_change(patch: Patch, name: str, change) -> Patch:
    return Patch(patch.header, {**patch.changes, name: change})


def test_a_file_of_format_1_is_read_and_written_as_it_was(tmp_path):
    """It was written before there was a format 2."""
    old = Path(__file__).parent / "data" / "format_1.safetensors"
    patch = load_patch(old)
    assert patch.header.format_version == 1
    assert patch.header.editing.covariance == "k"
    assert patch.header.editing.contexts == ("{}", "Ça. {}")
    assert [edit.truth for edit in patch.edits] == ["x", None]
    assert [patch.changes[name].form for name in "abcd"] == [
        "solved",
        "low-rank",
        "dense",
        "solved",
    ]
    assert patch.changes["a"].layout == [0, -1, 1]
    assert patch_hash(patch) == "73d38e0d831d21a8716e21f2755734393a05da849337ed06f9b7652c0ebd0f34"
    save_patch(patch, tmp_path / "again.safetensors")
    (ours, data), (theirs, expected) = map(halves, (tmp_path / "again.safetensors", old))
    assert ours == theirs  # the library shuffles the metadata's keys, their values are texts
    assert data == expected


def halves(path: Path) -> tuple[dict, bytes]:
    """A safetensors file's header and what follows it."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]
