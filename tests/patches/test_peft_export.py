"""The LoRA folder: plain peft loads it, and computes what ``model + patch`` computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from made_patches import FFN, IDS, logits, patch_for, randn, same, snapshot
from peft import PeftModel

import tiny
from modalign.errors import DataError, UsageError
from modalign.patches import merge
from modalign.patches.changes import DenseChange
from modalign.patches.patch import Patch
from modalign.patches.peft_export import export_lora


def model_of(family: str, layers: int = 4):
    model = tiny.language_model(family, 60)
    if layers == 4:
        return model
    config = model.config
    config.num_hidden_layers = layers
    torch.manual_seed(0)
    return type(model)(config).eval()


def loaded(model, folder: Path):
    return PeftModel.from_pretrained(model, str(folder)).eval()


@pytest.mark.parametrize("kind", ["solved", "low_rank"])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "gpt_neox"])
def test_peft_computes_what_the_view_computes(family, kind, tmp_path):
    model = model_of(family)
    names = [FFN[family].format(i) for i in (1, 3)]
    patch = patch_for(model, names, kind)
    before = snapshot(model)
    expected, plain = logits(model + patch), logits(model)
    export = export_lora(patch, tmp_path / "lora", base="some/model", model=model)
    assert same(snapshot(model), before)
    assert torch.equal(logits(model), plain)
    assert export.logits is not None
    assert max(export.errors.values()) < 1e-6
    assert export.ranks == {name.removesuffix(".weight"): 3 for name in names}
    peft = loaded(model, tmp_path / "lora")
    torch.testing.assert_close(logits(peft), expected, atol=2e-5, rtol=1e-4)
    assert (expected - plain).abs().max() > 0.05
    peft.generate(input_ids=IDS, max_new_tokens=2, do_sample=False, pad_token_id=0)
    merged = peft.merge_and_unload()  # fan_in_fan_out decides whether this is right
    torch.testing.assert_close(logits(merged), expected, atol=2e-5, rtol=1e-4)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/model"
    assert config["fan_in_fan_out"] == (family == "gpt2")


def test_layer_two_is_not_layer_twenty(tmp_path):
    model = model_of("llama", 23)
    names = [FFN["llama"].format(i) for i in (2, 20)]
    one = patch_for(model, names[:1], n=2, seed=1, tag="a")
    two = patch_for(model, names[1:], n=5, seed=2, tag="b", covariance="other")
    patch = merge([one, two])
    export_lora(patch, tmp_path / "lora", model=model)
    expected = logits(model + patch)
    peft = loaded(model, tmp_path / "lora")
    found = {n: m for n, m in peft.get_base_model().named_modules() if hasattr(m, "lora_A")}
    assert sorted(found) == sorted(name.removesuffix(".weight") for name in names)
    assert [found[n.removesuffix(".weight")].r["default"] for n in names] == [2, 5]
    assert {m.scaling["default"] for m in found.values()} == {1.0}
    torch.testing.assert_close(logits(peft), expected, atol=2e-5, rtol=1e-4)


def test_a_dense_patch_only_at_a_stated_error(tmp_path):
    model = model_of("gpt2")
    (name,) = names = [FFN["gpt2"].format(1)]
    patch = patch_for(model, names, "dense")
    delta = patch.changes[name].delta()
    total = delta.norm()
    with pytest.raises(UsageError, match=r"dense \(rank 32\).*an error of 1 % needs rank 3\d"):
        export_lora(patch, tmp_path / "lora", model=model)
    assert list(tmp_path.iterdir()) == []
    U, s, Vh = torch.linalg.svd(delta)
    for rank in (1, 7):
        export = export_lora(patch, tmp_path / f"r{rank}", rank=rank, model=model)
        error = s[rank:].square().sum().sqrt() / total
        assert export.ranks == {name.removesuffix(".weight"): rank}
        assert export.errors[name.removesuffix(".weight")] == pytest.approx(float(error), rel=1e-6)
        best = Patch(patch.header, {name: DenseChange(U[:, :rank] * s[:rank] @ Vh[:rank])})
        expected = logits(model + best)
        peft = loaded(model, tmp_path / f"r{rank}")
        torch.testing.assert_close(logits(peft), expected, atol=2e-5, rtol=1e-4)
        model = peft.unload()
    export = export_lora(patch, tmp_path / "e", max_error=0.3)
    ((path, rank),) = export.ranks.items()
    assert export.errors[path] <= 0.3
    assert s[rank - 1 :].square().sum().sqrt() / total > 0.3  # one less would not do


def test_factors_are_balanced(tmp_path):
    from safetensors.torch import load_file

    model = model_of("llama")
    patch = patch_for(model, [FFN["llama"].format(1)])
    export_lora(patch, tmp_path / "lora")
    held = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    A, B = (next(v for k, v in held.items() if f"lora_{x}" in k) for x in "AB")
    assert A.dtype == torch.float32
    torch.testing.assert_close(A.square().sum(1), B.square().sum(0))
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"


def test_what_lora_cannot_hold(tmp_path):
    model = model_of("gpt2")
    bias = patch_for(model, ["transformer.h.1.mlp.c_proj.bias"], "dense")
    with pytest.raises(DataError, match=r"linear layers only.*c_proj\.bias"):
        export_lora(bias, tmp_path / "lora")
    llama = model_of("llama")
    embedding = patch_for(llama, ["model.embed_tokens.weight"], "low_rank")
    with pytest.raises(DataError, match="module of type Embedding"):
        export_lora(embedding, tmp_path / "lora", model=llama)
    (name,) = names = [FFN["llama"].format(1)]
    nothing = Patch(patch_for(llama, names).header, {name: DenseChange(0 * randn(0, 32, 48))})
    with pytest.raises(DataError, match="changes nothing"):
        export_lora(nothing, tmp_path / "lora")
    patch = patch_for(llama, names)
    with pytest.raises(DataError, match="made for another model"):
        export_lora(patch, tmp_path / "lora", model=model)
    with torch.no_grad():
        llama.get_parameter(name).mul_(2)
    with pytest.raises(DataError, match="made for another model"):
        export_lora(patch, tmp_path / "lora", model=llama)
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "x").touch()
    with pytest.raises(UsageError, match="exists already"):
        export_lora(patch, tmp_path / "lora")
