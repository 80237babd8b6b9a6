"""The difference of two model folders: with it the base has the other's values, or it is refused."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from made_patches import FFN, logits, patch_for, randn, same, snapshot
from safetensors.torch import load_file, save_file
from test_patch_folder import contents, made, opened, tensors

import tiny
from modalign.errors import DataError, UsageError
from modalign.patches import load_patch, save_patch, scale
from modalign.patches.difference import difference
from modalign.patches.inspection import fits_folder
from modalign.patches.model_folders import apply_to_folder, remove_from_folder


def changed_folder(base: Path, out: Path, change, shard: str = "1GB") -> Path:
    """A copy of a model after ``change(model)``."""
    model = opened(base)
    with torch.no_grad():
        change(model)
    model.save_pretrained(out, max_shard_size=shard)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["solved", "low_rank", "dense"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_it_recovers_what_a_patch_did(family, kind, dtype, tmp_path):
    model = made(tmp_path / "base", family, dtype)
    patch = patch_for(model, [FFN[family].format(i) for i in (1, 2)], kind)
    apply_to_folder(tmp_path / "base", [patch], tmp_path / "patched")
    shutil.rmtree(tmp_path / "patched" / "patches")
    found = difference(tmp_path / "patched", tmp_path / "base")
    files = fits_folder(patch, tmp_path / "base")
    assert set(found.changes) == set(files.values())
    for own, name in files.items():
        delta, wanted = found.changes[name].delta().double(), patch.changes[own].delta().double()
        assert found.header.base[name] == patch.header.base[own]
        weight = tensors(tmp_path / "patched")[name].double().abs()
        weight = weight.T if patch.header.base[own].transposed else weight
        # half a unit in the last place of the weight it was rounded into
        unit = torch.finfo(dtype).eps * weight.clamp(min=float(torch.finfo(dtype).tiny))
        assert ((delta - wanted).abs() <= unit).all()
    save_patch(found, tmp_path / "d.safetensors")
    apply_to_folder(tmp_path / "base", [load_patch(tmp_path / "d.safetensors")], tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "patched")
    remove_from_folder(tmp_path / "again", ["patched"])
    assert contents(tmp_path / "again") == contents(tmp_path / "base")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_whole_training_with_norms_biases_and_embeddings(family, tied, dtype, tmp_path):
    base = tiny.language_model(family, 60, tied=tied).to(dtype)
    base.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    generator = torch.Generator().manual_seed(1)

    def train(model) -> None:
        for parameter in model.parameters():
            step = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((0.05 * step).to(parameter.dtype))

    changed_folder(tmp_path / "base", tmp_path / "tuned", train)  # in one file
    found = difference(tmp_path / "tuned", tmp_path / "base")
    ties = [name for name, each in found.header.base.items() if each.tied]
    assert len(ties) == tied
    apply_to_folder(tmp_path / "base", [found], tmp_path / "again")
    assert same(tensors(tmp_path / "again"), tensors(tmp_path / "tuned"))
    model, wanted = opened(tmp_path / "base"), opened(tmp_path / "tuned")
    before = snapshot(model)
    with found.applied(model):
        assert same(snapshot(model), snapshot(wanted))
    assert same(snapshot(model), before)
    view = model + found
    tolerance = 1e-3 if dtype == torch.float32 else 0.5
    assert (logits(view) - logits(wanted)).abs().max() <= tolerance
    assert same(snapshot(model), before)
    if tied:
        apart = tiny.language_model(family, 60)
        apart.load_state_dict(model.state_dict())
        with pytest.raises(UsageError, match="they are two tensors"):
            _ = apart.to(dtype) + found


def test_few_columns_are_found_where_they_are_exact(tmp_path):
    made(tmp_path / "base", "llama")
    name = FFN["llama"].format(1)

    def coarse(*shape: int, seed: int) -> torch.Tensor:
        return (randn(seed, *shape) * 4).round() / 4

    def make_coarse(model) -> None:
        weight = model.get_parameter(name)
        weight.copy_(coarse(*weight.shape, seed=1) + 1 / 32)  # no sum is 0: rounding hides the rest

    changed_folder(tmp_path / "base", tmp_path / "coarse", make_coarse)
    left, right = coarse(32, 3, seed=2), coarse(48, 3, seed=3)

    def add(model) -> None:
        model.get_parameter(name).add_((left @ right.T).float())

    changed_folder(tmp_path / "coarse", tmp_path / "tuned", add)
    found = difference(tmp_path / "tuned", tmp_path / "coarse")
    change = found.changes[name]
    assert (change.form, change.columns) == ("low-rank", 3)
    torch.testing.assert_close(change.delta(), left @ right.T, atol=1e-12, rtol=1e-12)
    assert (
        difference(tmp_path / "tuned", tmp_path / "coarse", max_rank=2).changes[name].form
        == "dense"
    )


def test_within_a_tolerance_it_is_as_few_columns_as_needed_and_says_its_error(tmp_path):
    made(tmp_path / "base", "llama")
    name = FFN["llama"].format(1)
    delta = 0.1 * randn(1, 32, 2) @ randn(2, 48, 2).T + 1e-5 * randn(3, 32, 48)

    def add(model) -> None:
        model.get_parameter(name).add_(delta.float())

    changed_folder(tmp_path / "base", tmp_path / "tuned", add)
    assert difference(tmp_path / "tuned", tmp_path / "base").changes[name].form == "dense"
    found = difference(tmp_path / "tuned", tmp_path / "base", tolerance=1e-3)
    values = torch.linalg.svdvals(delta)
    best = float(values[2:].norm() / values.norm())  # Eckart and Young: no rank 2 is nearer
    assert found.changes[name].columns == 2
    error = found.header.settings["errors"][name]
    assert best * 0.99 <= error <= min(1e-3, best * 1.5)
    old, new = (tensors(tmp_path / each)[name].double() for each in ("base", "tuned"))
    measured = (new - old - found.changes[name].delta()).norm() / (new - old).norm()
    assert error == pytest.approx(float(measured), rel=1e-9)


def test_half_way_between_two_models(tmp_path):
    made(tmp_path / "base", "llama")
    tuned = changed_folder(
        tmp_path / "base", tmp_path / "tuned", lambda m: m.model.norm.weight.add_(0.5)
    )
    half = scale(difference(tuned, tmp_path / "base"), 0.5)
    apply_to_folder(tmp_path / "base", [half], tmp_path / "half")
    old, new, mean = (
        tensors(tmp_path / each)["model.norm.weight"] for each in ("base", "tuned", "half")
    )
    assert torch.equal(mean, ((old.double() + new.double()) / 2).float())


def test_what_is_no_difference(tmp_path):
    model = made(tmp_path / "base", "llama")
    with pytest.raises(DataError, match="the same values"):
        difference(tmp_path / "base", tmp_path / "base")
    tiny.language_model("gpt2", 60).save_pretrained(tmp_path / "other")
    with pytest.raises(DataError, match=r"has no tensor .*: not a change of values alone"):
        difference(tmp_path / "other", tmp_path / "base")
    tiny.language_model("llama", 61).save_pretrained(tmp_path / "wider")
    with pytest.raises(DataError, match=r"has the shape \(60, 32\).*\(61, 32\)"):
        difference(tmp_path / "wider", tmp_path / "base")
    for value in (math.nan, math.inf):
        changed_folder(
            tmp_path / "base",
            tmp_path / "broken",
            lambda m, v=value: m.model.norm.weight[0].fill_(v),
        )
        with pytest.raises(
            DataError, match=r"model\.norm\.weight holds values that are not finite"
        ):
            difference(tmp_path / "broken", tmp_path / "base")
    wide = tmp_path / "wide"
    model.double().save_pretrained(wide)
    held = load_file(wide / "model.safetensors")
    held["model.norm.weight"] += 1e-9
    save_file(held, wide / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match="stored as float32 in the base and as float64"):
        difference(wide, tmp_path / "base")
    with pytest.raises(UsageError, match="tolerance"):
        difference(wide, tmp_path / "base", tolerance=1.5)
    (wide / "model.safetensors").write_bytes((wide / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(DataError, match="truncated"):
        difference(wide, tmp_path / "base")
    patch = patch_for(opened(tmp_path / "base"), [FFN["llama"].format(1)])
    apply_to_folder(tmp_path / "base", [patch], tmp_path / "edited")
    with pytest.raises(UsageError, match="carries the patch"):
        difference(tmp_path / "broken", tmp_path / "edited")
    assert set(difference(tmp_path / "edited", tmp_path / "base").changes) == set(patch.changes)


def test_whole_numbers_that_differ_and_a_tied_tensor_stored_twice(tmp_path):
    made(tmp_path / "base", "llama")
    held = load_file(tmp_path / "base" / "model.safetensors")
    shutil.copytree(tmp_path / "base", tmp_path / "tuned")
    for folder, number in (("base", 1), ("tuned", 2)):
        numbers = {**held, "position_ids": torch.tensor([number])}
        save_file(numbers, tmp_path / folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match="position_ids holds whole numbers that differ"):
        difference(tmp_path / "tuned", tmp_path / "base")
    twice = {**held, "lm_head.weight": held["model.embed_tokens.weight"].clone()}
    save_file(twice, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    moved = {name: value + 1 if "embed" in name or "lm_head" in name else value
             for name, value in twice.items()}  # fmt: skip
    save_file(moved, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"stores the tied tensor .* twice"):
        difference(tmp_path / "tuned", tmp_path / "base")
