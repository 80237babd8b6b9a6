"""Hashes of tensors, tokenizers and patches: equal for equal content, however it is held."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from transformers import AutoTokenizer

from modalign import hashing
from modalign.hashing import tensor_hash, tokenizer_hash


def by_hand(array: np.ndarray) -> str:
    kind = "f8" if array.dtype == np.float64 else "f4"
    head = json.dumps([list(array.shape), kind]).encode()
    return hashlib.sha256(head + array.astype(f"<{kind}").tobytes()).hexdigest()


@pytest.mark.parametrize("chunk", [1, 3, 7, 1 << 22])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (4, 6), (3, 2, 4)])
def test_it_is_the_formula_whatever_the_chunk(monkeypatch, chunk, shape):
    monkeypatch.setattr(hashing, "CHUNK", chunk)
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert tensor_hash(torch.from_numpy(np.array(values))) == by_hand(values)
    assert tensor_hash(torch.tensor(values, dtype=torch.float64)) == by_hand(values.astype("f8"))


def test_layout_and_storage_do_not_matter_but_values_and_shape_do(monkeypatch):
    monkeypatch.setattr(hashing, "CHUNK", 5)
    half = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = tensor_hash(half)
    assert tensor_hash(half.float()) == expected
    assert tensor_hash(half.T.contiguous().T) == expected
    assert tensor_hash(torch.nn.Parameter(half)) == expected
    assert tensor_hash(half.T) != expected
    assert tensor_hash(half.reshape(6, 4)) != expected
    assert tensor_hash(half.double()) != expected
    other = half.clone()
    other[3, 5] += 1
    assert tensor_hash(other) != expected


@given(
    arrays.arrays(np.float32, (3, 4), elements=st.floats(-1e3, 1e3, width=32)),
    st.integers(0, 11),
)
def test_any_changed_bit_changes_it(values, place):
    changed = values.copy()
    changed.view(np.uint32).reshape(-1)[place] ^= 1
    assert tensor_hash(torch.from_numpy(values)) != tensor_hash(torch.from_numpy(changed))


def test_a_tokenizer_by_its_tokens(tokenizer_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    expected = tokenizer_hash(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=4)  # state of the backend
    tokenizer.padding_side = "left"
    assert tokenizer_hash(tokenizer) == expected
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_hash(again) == expected
    again.add_tokens(["<new>"])
    assert tokenizer_hash(again) != expected
