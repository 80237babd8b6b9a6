"""Structures: pruned folders load in plain transformers, patches are sliced along, all comes back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from made_patches import FFN, IDS, depth_structure, logits, mlp_structure, patch_for, same
from safetensors.torch import load_file, save_file
from test_patch_folder import Interrupted, contents, interrupt_at, made, opened, tensors

import tiny
from modalign.errors import DataError, ModalignError, UsageError
from modalign.models.export import save_model
from modalign.models.export.folder import load_model
from modalign.patches import Patch, load_patch, merge, save_patch, scale, soup, structure_patch
from modalign.patches.cuts import Cut
from modalign.patches.folder_log import Log
from modalign.patches.header import patch_hash
from modalign.patches.inspection import fits_folder, inspect_patch
from modalign.patches.model_folders import (
    apply_to_folder,
    folder_status,
    remove_from_folder,
    repair_folder,
)

KEPT = [i for i in range(48) if i % 4]
GONE = [i for i in range(48) if i % 4 == 0]
CLEAN = """
import sys, torch
from transformers import AutoModelForCausalLM
assert not any(name.split(".")[0] == "modalign" for name in sys.modules)
model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto", output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
torch.save(model.eval()(input_ids=torch.tensor(eval(sys.argv[2]))).logits, sys.argv[3])
"""


def logits_of_a_clean_process(folder: Path, out: Path) -> torch.Tensor:
    """What plain transformers computes, in a process without this package."""
    code = [sys.executable, "-c", CLEAN, str(folder), str(IDS.tolist()), str(out)]
    subprocess.run(code, check=True, cwd=folder, env={**os.environ, "PYTHONPATH": ""})
    found: torch.Tensor = torch.load(out, weights_only=True)
    return found


def silenced(model, family: str):
    """The model whose cut MLP units give nothing: what remains computes the same, units removed."""
    with torch.no_grad():
        for layer in range(4):
            module = model.get_submodule(FFN[family].format(layer).removesuffix(".weight"))
            if family == "gpt2":
                module.weight[GONE] = 0  # Conv1D: (d_in, d_out)
            else:
                module.weight[:, GONE] = 0
    return model


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_pruned_folder_computes_without_the_units_and_all_comes_back(
    family, dtype, shard, tmp_path
):
    made(tmp_path / "base", family, dtype, shard)
    before = contents(tmp_path / "base")
    structure = mlp_structure(tmp_path / "base", KEPT)
    status = apply_to_folder(tmp_path / "base", [structure], tmp_path / "pruned")
    assert contents(tmp_path / "base") == before
    assert status.problems == ()
    assert [(e.name, e.kind) for e in status.stack] == [("narrow", "structure")]
    found = opened(tmp_path / "pruned")
    assert found.dtype == dtype
    wanted = silenced(opened(tmp_path / "base"), family)
    assert found.num_parameters() < wanted.num_parameters()
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
    scale_of = float(logits(wanted).abs().max())
    assert (logits(found) - logits(wanted)).abs().max() <= tolerance * max(1.0, scale_of)
    old, new = tensors(tmp_path / "base"), tensors(tmp_path / "pruned")
    index = torch.tensor(KEPT)
    for name, value in new.items():
        cut = structure.cuts.get(name)
        expected = old[name]
        for axis, kept in enumerate(cut.kept if cut else ()):
            expected = expected if kept is None else expected.index_select(axis, index)
        assert torch.equal(value, expected)
    assert (tmp_path / "pruned" / "notes.txt").read_text() == "kept"
    remove_from_folder(tmp_path / "pruned", ["narrow"])
    assert contents(tmp_path / "pruned") == before
    assert folder_status(tmp_path / "pruned").stack == ()
    assert sorted(p.name for p in (tmp_path / "pruned" / "patches").iterdir()) == [
        ".lock",
        "log.jsonl",
    ]


def test_plain_transformers_loads_it_in_a_clean_process(tmp_path):
    made(tmp_path / "base", "llama")
    patch = patch_for(opened(tmp_path / "base"), [FFN["llama"].format(1)])
    structure = mlp_structure(tmp_path / "base", KEPT)
    apply_to_folder(tmp_path / "base", [structure, patch], tmp_path / "pruned")
    shutil.rmtree(tmp_path / "pruned" / "patches")  # for good
    found = logits_of_a_clean_process(tmp_path / "pruned", tmp_path / "logits.pt")
    assert torch.equal(found, logits(opened(tmp_path / "pruned")))


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_layers_are_removed_and_those_above_renamed(shard, tmp_path):
    model = made(tmp_path / "base", "llama", shard=shard)
    before = contents(tmp_path / "base")
    structure = depth_structure(tmp_path / "base", 1)
    apply_to_folder(tmp_path / "base", [structure], tmp_path / "pruned")
    wanted = opened(tmp_path / "base")
    del wanted.model.layers[1]
    for number, layer in enumerate(wanted.model.layers):
        layer.self_attn.layer_idx = number
    wanted.config.num_hidden_layers = 3
    assert torch.equal(logits(opened(tmp_path / "pruned")), logits(wanted))
    above = patch_for(model, [FFN["llama"].format(3)], seed=1)
    status = apply_to_folder(tmp_path / "pruned", [above])
    assert list(status.stack[1].tensors.values()) == [FFN["llama"].format(2)]
    removed = patch_for(model, [FFN["llama"].format(1)], seed=2)
    with pytest.raises(DataError, match="removes: it cannot be sliced along"):
        apply_to_folder(tmp_path / "pruned", [removed])
    remove_from_folder(tmp_path / "pruned", [], every=True)
    assert contents(tmp_path / "pruned") == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["solved", "low_rank", "dense", "soup"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_slicing_and_applying_is_applying_and_slicing(family, kind, dtype, tmp_path):
    model = made(tmp_path / "base", family, dtype)
    names = [FFN[family].format(i) for i in (0, 2)]
    if kind == "soup":
        parts = [patch_for(model, names, each, seed=i, tag=f"{i}.")
                 for i, each in enumerate(("solved", "dense"))]  # fmt: skip
        patch = soup(parts, [0.3, 0.7])
    else:
        patch = patch_for(model, names, kind)
    structure = mlp_structure(tmp_path / "base", KEPT)
    apply_to_folder(tmp_path / "base", [structure, patch], tmp_path / "sliced")
    apply_to_folder(tmp_path / "base", [patch], tmp_path / "patched")
    whole = tensors(tmp_path / "patched")
    for name, cut in structure.cuts.items():
        whole[name] = cut.of(whole[name])
    assert same(tensors(tmp_path / "sliced"), whole)
    # In two steps it is the same, and it comes out on its own.
    apply_to_folder(tmp_path / "base", [structure], tmp_path / "pruned")
    bare = contents(tmp_path / "pruned")
    status = apply_to_folder(tmp_path / "pruned", [patch])
    assert contents(tmp_path / "pruned") == contents(tmp_path / "sliced")
    held = load_patch(tmp_path / "pruned" / "patches" / status.stack[1].file)
    assert held.header.sliced_from == patch_hash(patch)
    assert scale(held, 2.0).header.sliced_from is None  # it is no longer that patch's part
    assert held.header.after == (patch_hash(structure),)
    with pytest.raises(DataError, match=r"in .* already"):
        apply_to_folder(tmp_path / "pruned", [patch])
    with pytest.raises(DataError, match="remove both"):
        remove_from_folder(tmp_path / "pruned", ["narrow"])
    remove_from_folder(tmp_path / "pruned", [patch.header.name])
    assert contents(tmp_path / "pruned") == bare
    apply_to_folder(tmp_path / "pruned", [patch])
    remove_from_folder(tmp_path / "pruned", [], every=True)
    assert contents(tmp_path / "pruned") == contents(tmp_path / "base")


def test_a_patch_of_the_pruned_model_and_a_stack_on_top_of_another(tmp_path):
    model = made(tmp_path / "base", "llama")
    name = FFN["llama"].format(1)
    structure = mlp_structure(tmp_path / "base", KEPT)
    apply_to_folder(tmp_path / "base", [structure], tmp_path / "pruned")
    own = patch_for(opened(tmp_path / "pruned"), [name], seed=1)
    one = patch_for(model, [name], seed=2)
    two = patch_for(model, [name], seed=3, after=(patch_hash(one),))
    with pytest.raises(DataError, match="apply that first"):
        apply_to_folder(tmp_path / "pruned", [two])
    assert fits_folder(one, tmp_path / "pruned") == {name: name}
    apply_to_folder(tmp_path / "pruned", [own, one, two])
    base = load_file(tmp_path / "base" / "model.safetensors")[name]
    index = torch.tensor(KEPT)
    expected = base[:, index].double() + own.changes[name].delta()
    for patch in (one, two):
        expected += patch.changes[name].delta()[:, index]
    assert torch.equal(tensors(tmp_path / "pruned")[name], expected.float())
    with pytest.raises(DataError, match="computed on top of it; remove both"):
        remove_from_folder(tmp_path / "pruned", ["patch2"])
    with pytest.raises(DataError, match=r"'patch1' was applied to the pruned model|remove both"):
        remove_from_folder(tmp_path / "pruned", ["narrow", "patch2", "patch3"])
    remove_from_folder(tmp_path / "pruned", ["narrow", "patch1", "patch2", "patch3"])
    assert contents(tmp_path / "pruned") == contents(tmp_path / "base")


def test_what_is_refused(tmp_path):
    model = made(tmp_path / "base", "llama")
    folder, name = tmp_path / "base", FFN["llama"].format(1)
    structure, patch = mlp_structure(folder, KEPT), patch_for(model, [name])
    with pytest.raises(UsageError, match="name a new folder"):
        apply_to_folder(folder, [structure])
    with pytest.raises(UsageError, match="below all other patches"):
        apply_to_folder(folder, [patch, structure], tmp_path / "new")
    with pytest.raises(UsageError, match="below all other patches"):
        apply_to_folder(folder, [structure, structure], tmp_path / "new")
    with pytest.raises(UsageError, match="changes shapes; apply it to a model folder"):
        _ = model + structure
    with pytest.raises(DataError, match="is a structure"):
        scale(structure, 2.0)
    with pytest.raises(DataError, match="is a structure"):
        merge([structure, patch])
    apply_to_folder(folder, [patch], tmp_path / "edited")
    with pytest.raises(DataError, match="a structure goes below all others"):
        apply_to_folder(tmp_path / "edited", [structure], tmp_path / "new")
    apply_to_folder(folder, [structure], tmp_path / "pruned")
    with pytest.raises(DataError, match="a structure goes below all others"):
        apply_to_folder(tmp_path / "pruned", [structure], tmp_path / "new")
    other = tiny.language_model("llama", 60)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(DataError, match="made for another model"):
        apply_to_folder(tmp_path / "other", [structure], tmp_path / "new")
    with pytest.raises(DataError, match="made for another model"):
        apply_to_folder(tmp_path / "pruned", [patch_for(other, [name])])
    assert not (tmp_path / "new").exists()


def test_a_structure_that_its_configuration_does_not_fit_is_refused(tmp_path):
    made(tmp_path / "base", "llama")
    good = mlp_structure(tmp_path / "base", KEPT)
    configuration = json.loads((tmp_path / "base" / "config.json").read_text())
    bad = structure_patch(tmp_path / "base", good.cuts, configuration, name="bad", method="m")
    with pytest.raises(DataError, match="does not fit its configuration"):
        apply_to_folder(tmp_path / "base", [bad], tmp_path / "new")
    deep = depth_structure(tmp_path / "base", 2).cuts
    bad = structure_patch(tmp_path / "base", deep, configuration, name="bad", method="m")
    with pytest.raises(DataError, match=r"does not fit its configuration.*missing"):
        apply_to_folder(tmp_path / "base", [bad], tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]
    name = FFN["llama"].format(0)
    for kept, said in (
        ((None, torch.tensor([3, 3])), "do not ascend"),
        ((None, torch.tensor([0, 48])), "do not ascend within 0 to 47"),
        ((None, torch.tensor([0.0])), "not a list of whole numbers"),
        ((None,), "keeps indices of 1 axes"),
    ):
        with pytest.raises(DataError, match=said):
            structure_patch(tmp_path / "base", {name: Cut(kept, name)}, configuration, name="b",
                            method="m")  # fmt: skip
    with pytest.raises(DataError, match="has no tensor nowhere"):
        structure_patch(
            tmp_path / "base", {"nowhere": Cut((None,), None)}, {}, name="b", method="m"
        )


def test_a_structure_s_file_comes_back_and_shows_what_it_keeps(tmp_path):
    made(tmp_path / "base", "llama")
    structure = mlp_structure(tmp_path / "base", KEPT)
    sha256 = save_patch(structure, tmp_path / "s.safetensors")
    again = load_patch(tmp_path / "s.safetensors")
    assert patch_hash(again) == sha256 == patch_hash(structure)
    assert again.header.format_version == 2
    assert again.header.structure == structure.header.structure
    for name, cut in structure.cuts.items():
        assert again.cuts[name].name == cut.name
        assert all(
            (a is None and b is None) or torch.equal(a, b)
            for a, b in zip(again.cuts[name].kept, cut.kept, strict=True)
        )
    report = {each.name: each for each in inspect_patch(again, tmp_path / "base").tensors}
    down = report[FFN["llama"].format(0)]
    assert (down.form, down.shape, down.kept) == ("cut", (32, 48), (32, 36))
    shallow = depth_structure(tmp_path / "base", 3)
    save_patch(shallow, tmp_path / "d.safetensors")
    again = load_patch(tmp_path / "d.safetensors")
    assert {cut.name for cut in again.cuts.values()} == {None}
    assert all(not each.kept for each in inspect_patch(again).tensors)
    content = (tmp_path / "s.safetensors").read_bytes()
    (tmp_path / "s.safetensors").write_bytes(content[:-3])
    with pytest.raises(DataError, match="truncated"):
        load_patch(tmp_path / "s.safetensors")
    (tmp_path / "s.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="changed after it was written"):
        load_patch(tmp_path / "s.safetensors")
    mixed = Patch(structure.header, {}, {**structure.cuts, "more": Cut((None,), None)})
    with pytest.raises(ModalignError, match="only in its header"):
        save_patch(mixed, tmp_path / "m")
    header = structure.header.model_copy(update={"kind": "delta"})
    with pytest.raises(ModalignError, match="not that of a patch of kind delta"):
        save_patch(Patch(header, {"w": None}), tmp_path / "m")  # type: ignore[dict-item]


def test_something_else_wrote_to_a_pruned_folder(tmp_path):
    made(tmp_path / "base", "llama")
    structure = mlp_structure(tmp_path / "base", KEPT)
    folder = tmp_path / "pruned"
    apply_to_folder(tmp_path / "base", [structure], folder)
    held = load_file(folder / "model.safetensors")
    held[FFN["llama"].format(2)][0, 0] += 1
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    assert FFN["llama"].format(2) in folder_status(folder).problems[0]
    with pytest.raises(DataError, match="not what its log says"):
        remove_from_folder(folder, ["narrow"])


def test_unpruned_files_that_are_gone_or_changed_are_noticed_before_anything_is_written(tmp_path):
    made(tmp_path / "base", "llama")
    folder = tmp_path / "pruned"
    apply_to_folder(tmp_path / "base", [mlp_structure(tmp_path / "base", KEPT)], folder)
    before = contents(folder)
    kept = folder / "patches" / "unpruned" / "model.safetensors"
    held = load_file(kept)
    held[FFN["llama"].format(2)][0, 0] += 1
    save_file(held, kept, {"format": "pt"})
    with pytest.raises(DataError, match=r"does not hold the .* that was pruned"):
        remove_from_folder(folder, ["narrow"])
    kept.write_bytes(kept.read_bytes()[:-5])
    with pytest.raises(DataError, match="truncated"):
        remove_from_folder(folder, ["narrow"])
    shutil.rmtree(kept.parent)
    assert folder_status(folder).problems == ("the unpruned files (patches/unpruned) are gone",)
    with pytest.raises(DataError, match="are gone"):
        remove_from_folder(folder, ["narrow"])
    assert not folder_status(folder).interrupted
    assert contents(folder) == before


# ---- interruptions -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pruned(tmp_path_factory) -> tuple[Path, Patch]:
    root = tmp_path_factory.mktemp("pruned")
    made(root / "base", "llama", torch.bfloat16, "20KB")
    structure = mlp_structure(root / "base", KEPT)
    patch = patch_for(opened(root / "base"), [FFN["llama"].format(i) for i in (0, 3)])
    apply_to_folder(root / "base", [structure, patch], root / "pruned")
    return root, structure


def test_an_interrupted_pruning_leaves_no_folder(pruned, tmp_path, monkeypatch):
    root, structure = pruned

    def fail() -> None:
        raise Interrupted

    for place in range(1, 60):
        with monkeypatch.context() as patched:
            steps = interrupt_at(patched, place, fail)
            try:
                apply_to_folder(root / "base", [structure], tmp_path / "new")
            except Interrupted:
                assert list(tmp_path.iterdir()) == []
                continue
        assert len(steps) < place
        return
    pytest.fail("there were more steps")


def test_a_kill_at_any_step_of_unpruning_is_put_right(pruned, tmp_path):
    root, _ = pruned
    before, after = contents(root / "pruned"), contents(root / "base")
    ends = set()
    for place in range(1, 80):
        folder = tmp_path / f"{place}"
        shutil.copytree(root / "pruned", folder)
        child = os.fork()
        if child == 0:
            try:
                with pytest.MonkeyPatch.context() as patched:
                    interrupt_at(patched, place, lambda: os._exit(9))
                    remove_from_folder(folder, [], every=True)
                os._exit(0)
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        interrupted = folder_status(folder).interrupted
        assert repair_folder(folder) == interrupted
        status = folder_status(folder)
        assert status.problems == ()
        names = [entry.name for entry in status.stack]
        held = {n: c for n, c in contents(folder).items() if not n.endswith(".part")}
        if len(names) != 1:  # between the two, the patch is out and the model still pruned
            assert held == (before if names else after)
        ends.add((interrupted, len(names)))
        if names:
            remove_from_folder(folder, [], every=True)
        assert {n: c for n, c in contents(folder).items() if not n.endswith(".part")} == after
        shutil.rmtree(folder)
        if code == 0:
            assert {(True, 0), (False, 2), (True, 1)} <= ends
            return
    pytest.fail("there were more steps")


def test_the_log_of_pruning_names_every_tensor(pruned):
    root, structure = pruned
    first = Log(root / "pruned" / "patches" / "log.jsonl").events[0]
    assert first.action == "apply"
    assert set(first.tensors) == set(structure.cuts)
    for name, change in first.tensors.items():
        assert change.before == structure.header.base[name].sha256 != change.after


def test_the_language_part_of_a_multimodal_model(compose_tiny, tmp_path):
    model, processor = compose_tiny("mlp")
    save_model(model, processor, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    kept = torch.arange(0, config["text_config"]["intermediate_size"], 2)
    cuts = {
        name: Cut((None, kept) if "down_proj" in name else (kept, None), name)
        for name in tensors(tmp_path / "m")
        if name.endswith(("gate_proj.weight", "up_proj.weight", "down_proj.weight"))
    }
    assert cuts
    text = {**config["text_config"], "intermediate_size": len(kept)}
    structure = structure_patch(
        tmp_path / "m", cuts, {**config, "text_config": text}, name="narrow", method="chosen"
    )
    before = contents(tmp_path / "m")
    apply_to_folder(tmp_path / "m", [structure], tmp_path / "pruned")
    found, _ = load_model(tmp_path / "pruned")
    assert found.num_parameters() < model.num_parameters()
    remove_from_folder(tmp_path / "pruned", ["narrow"])
    assert contents(tmp_path / "pruned") == before
