"""Patches in memory: the formula, exact removal, views that touch no weight."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_patches import FFN, IDS, logits, patch_for, randn, same, snapshot, written

import tiny
from modalign.errors import DataError, ModalignError, UsageError
from modalign.hashing import tokenizer_hash
from modalign.patches import (
    apply_patch,
    check_tokenizer,
    patches_of,
    remove_patch,
)
from modalign.patches.changes import DenseChange, LowRankChange
from modalign.patches.header import patch_hash
from modalign.patches.patch import Patch

FAMILIES = ["gpt2", "gptj", "llama", "gpt_neox"]
KINDS = ["solved", "low_rank", "dense"]
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


def model_of(family: str, dtype: torch.dtype = torch.float32):
    return tiny.language_model(family, 60).to(dtype)


def names_of(family: str, *layers: int) -> list[str]:
    return [FFN[family].format(layer) for layer in layers]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_weights_are_the_rounded_sum_and_come_back_bit_for_bit(family, kind, dtype):
    model = model_of(family, dtype)
    before = snapshot(model)
    patch = patch_for(model, names_of(family, 1, 2), kind)
    expected = {**before, **written(model, patch)}
    with patch.applied(model):
        assert same(snapshot(model), expected)
        assert [carried.patch for carried in patches_of(model)] == [patch]
    assert same(snapshot(model), before)
    assert patches_of(model) == ()
    with pytest.raises(ZeroDivisionError), patch.applied(model):
        _ = 1 / 0
    assert same(snapshot(model), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_view_computes_what_changed_weights_compute(family, kind):
    model = model_of(family)
    patch = patch_for(model, names_of(family, 1, 3), kind)
    before, plain = snapshot(model), logits(model)
    view = model + patch
    found = logits(view)
    generated = view.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert same(snapshot(model), before)
    assert torch.equal(logits(model), plain)
    assert {id(p) for p in view.parameters()} == {id(p) for p in model.parameters()}
    assert list(dict(view.named_parameters())) == list(dict(model.named_parameters()))
    assert (found - plain).abs().max() > 0.05
    with patch.applied(model):
        torch.testing.assert_close(found, logits(model), **TOLERANCE)
        expected = model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(generated, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_beside_half_weights_the_branch_is_computed_in_float32(kind):
    model = model_of("llama", torch.bfloat16)
    patch = patch_for(model, names_of("llama", 1), kind)
    view = model + patch
    ((name, change),) = patch.changes.items()
    layer, own = (m.get_submodule(name.removesuffix(".weight")) for m in (view, model))
    x = randn(5, 7, 48).bfloat16()
    wanted = own(x).double() + x.double() @ change.delta().T
    found = layer(x)
    assert found.dtype == torch.bfloat16
    # one rounding of the sum: half a unit in the last of 8 places
    torch.testing.assert_close(found.double(), wanted, rtol=2**-8, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x.float()).double(), wanted, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_several_on_top_of_each_other(family):
    model = model_of(family)
    before = snapshot(model)
    one = patch_for(model, names_of(family, 1, 2), "solved", seed=1)
    two = patch_for(model, names_of(family, 2, 3), "dense", seed=2)
    view = (model + one) + two
    assert [carried.patch for carried in patches_of(view)] == [one, two]
    assert patches_of(model) == ()
    seen = logits(view)
    apply_patch(model, one)
    apply_patch(model, two)
    stacked = snapshot(model)
    torch.testing.assert_close(seen, logits(model), **TOLERANCE)
    remove_patch(model, one)  # from below: exact all the same
    assert same(snapshot(model), {**before, **written_on(before, model, two)})
    apply_patch(model, one)
    for name, value in snapshot(model).items():
        torch.testing.assert_close(value, stacked[name], atol=1e-6, rtol=1e-6)
    remove_patch(model, "patch2")
    remove_patch(model, patch_hash(one)[:8])
    assert same(snapshot(model), before)


def written_on(before, model, patch):
    original = copy.deepcopy(model)
    original.load_state_dict(before)
    return written(original, patch)


def test_norms_biases_and_vectors_get_a_tensor_of_their_own():
    model = model_of("gpt2")
    names = ["transformer.h.1.mlp.c_proj.bias", "transformer.ln_f.weight"]
    one = patch_for(model, names, "dense", seed=1)
    two = patch_for(model, names, "dense", seed=2)
    before = snapshot(model)
    view = (model + one) + two
    found = logits(view)
    assert same(snapshot(model), before)
    with one.applied(model), two.applied(model):
        torch.testing.assert_close(found, logits(model), **TOLERANCE)


def test_views_of_models_with_hooks_of_their_own(compose_tiny):
    model, processor = compose_tiny("gated_cross_attention")
    (name,) = [
        n for n, _ in model.named_parameters() if n.endswith("layers.1.mlp.down_proj.weight")
    ]
    patch = patch_for(model, [name], "solved")
    talk = [{"role": "user", "content": [{"type": "image", "image": tiny.picture(1)},
                                         {"type": "text", "text": "what is seven?"}]}]  # fmt: skip
    inputs = dict(processor.apply_chat_template([talk], tokenize=True, return_dict=True,
                                                return_tensors="pt", add_generation_prompt=True))  # fmt: skip
    view = model + patch
    with torch.no_grad():
        plain, found = model(**inputs).logits, view(**inputs).logits
        words = view.generate(**inputs, max_new_tokens=3, do_sample=False)
        with patch.applied(model):
            torch.testing.assert_close(found, model(**inputs).logits, **TOLERANCE)
            assert torch.equal(words, model.generate(**inputs, max_new_tokens=3, do_sample=False))
        torch.testing.assert_close(plain, model(**inputs).logits, atol=0, rtol=0)
    assert (plain - found).abs().max() > 1e-3


def test_a_language_models_patch_fits_it_inside_another_model(compose_tiny, llm_folder):
    from modalign.models.open import open_model

    plain, _ = open_model(llm_folder("llama"))
    patch = patch_for(plain, names_of("llama", 1, 2))
    whole, _ = compose_tiny("mlp")
    with patch.applied(whole):
        (carried,) = patches_of(whole)
        assert all(found.startswith("language_model.") for found in carried.names.values())
        held = dict(whole.named_parameters())
        for name, value in written(plain, patch).items():
            assert torch.equal(held[carried.names[name]], value)
    view = whole + patch
    expected = logits(plain + patch)
    found = logits(view.language_model)[..., : expected.shape[-1]]  # it has a placeholder more
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_what_does_not_fit_is_refused_and_nothing_changes():
    model = model_of("llama")
    names = names_of("llama", 1)
    patch = patch_for(model, names)
    other = model_of("llama")
    with torch.no_grad():
        other.get_parameter(names[0])[0, 0] += 1
    before = snapshot(other)
    for act in (lambda: other + patch, lambda: apply_patch(other, patch)):
        with pytest.raises(DataError, match="made for another model") as caught:
            act()
        assert names[0] in str(caught.value)
        assert patch.header.base[names[0]].sha256[:12] in str(caught.value)
    with pytest.raises(DataError, match="has no tensor"):
        apply_patch(model_of("gptj"), patch)
    half = patch_for(model_of("llama", torch.bfloat16), names)
    with pytest.raises(DataError, match="rounded to bfloat16"):
        apply_patch(model, half)
    with pytest.raises(DataError, match="narrower type"):
        apply_patch(model_of("llama", torch.bfloat16), patch)
    assert same(snapshot(other), before)
    apply_patch(model, patch)
    with pytest.raises(DataError, match="already"):
        apply_patch(model, patch)
    with pytest.raises(DataError, match="already"):
        model + patch


def test_a_change_too_large_for_the_type_is_refused():
    model = model_of("llama", torch.float16)
    (name,) = names_of("llama", 1)
    patch = patch_for(model, [name], "dense")
    huge = Patch(patch.header, {name: DenseChange(patch.changes[name].delta() * 1e7)})
    before = snapshot(model)
    with pytest.raises(DataError, match="does not fit the weights' type float16"):
        apply_patch(model, huge)
    assert same(snapshot(model), before)
    assert patches_of(model) == ()


def test_patches_below():
    model = model_of("gptj")
    (name,) = names_of("gptj", 2)
    one = patch_for(model, [name], seed=1)
    two = patch_for(model, [name], seed=2, after=(patch_hash(one),))
    three = patch_for(model, [name], seed=3, after=(patch_hash(one), patch_hash(two)))
    with pytest.raises(DataError, match="computed on top of"):
        apply_patch(model, two)
    view = ((model + one) + two) + three
    assert len(patches_of(view)) == 3
    for each in (one, two, three):
        apply_patch(model, each)
    with pytest.raises(DataError, match="remove both"):
        remove_patch(model, one)
    reordered = patch_for(
        model_of("gptj"), [name], seed=4, after=(patch_hash(two), patch_hash(one))
    )
    with pytest.raises(DataError, match="another order"):
        apply_patch(model, reordered)
    with pytest.raises(UsageError, match=r"is not applied; applied to .*: patch1"):
        remove_patch(model, "nope")
    with pytest.raises(UsageError, match="is not applied"):
        remove_patch(model, reordered)


def test_tied_weights_are_refused():
    model = tiny.language_model("llama", 60, tied=True)
    patch = patch_for(model, ["model.embed_tokens.weight"], "dense")
    with pytest.raises(UsageError, match=r"same tensor as lm_head\.weight"):
        model + patch


def test_a_view_is_neither_written_nor_saved(tmp_path):
    model = model_of("llama")
    one, two = (patch_for(model, names_of("llama", 1), seed=seed) for seed in (1, 2))
    view = model + one
    with pytest.raises(UsageError, match="is a view"):
        apply_patch(view, two)
    with pytest.raises(ModalignError, match="would lose"):
        view.save_pretrained(tmp_path)
    with pytest.raises(TypeError):
        3 + one
    model.save_pretrained(tmp_path)  # the model itself still saves


def test_another_tokenizer_is_refused(tokenizer):
    model = model_of("llama")
    names = names_of("llama", 1)
    check_tokenizer(patch_for(model, names), tokenizer)
    check_tokenizer(patch_for(model, names, tokenizer=tokenizer_hash(tokenizer)), tokenizer)
    with pytest.raises(DataError, match="another tokenizer"):
        check_tokenizer(patch_for(model, names, tokenizer="0" * 64), tokenizer)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(KINDS), st.integers(0, 9)), min_size=1, max_size=4, unique=True
    ),
    st.permutations(range(4)),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_removed_in_any_order_they_leave_nothing_behind(kinds, order, dtype):
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4)).to(dtype)
    before = snapshot(model)
    patches = [
        patch_for(model, ["0.weight", "1.weight"], kind, n=2, seed=seed) for kind, seed in kinds
    ]
    for patch in patches:
        apply_patch(model, patch)
    for place in order:
        if place < len(patches):
            remove_patch(model, patches[place])
    assert same(snapshot(model), before)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8), st.integers(0, 50))
def test_balanced_factors_are_the_change(d_out, d_in, n, seed):
    change = LowRankChange(randn(seed, d_out, n) * 1e4, randn(seed + 1, d_in, n) * 1e-4, (0,) * n)
    left, right, values = change.balanced()
    torch.testing.assert_close(left @ right.T, change.delta(), atol=1e-12, rtol=1e-9)
    torch.testing.assert_close((left**2).sum(0), (right**2).sum(0))  # of equal size
    expected = torch.linalg.svdvals(change.delta())
    torch.testing.assert_close(values, expected[: len(values)], atol=1e-12, rtol=1e-9)
    assert left.shape[1] == torch.linalg.matrix_rank(change.delta())
