"""Memory, half precision, the default text, and what PMET's attention vector does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import plain
import pytest
import torch
from bench.editable import Editable
from bench.invented import counterfactuals

from modalign.data.corpus import Corpus, read_corpus
from modalign.editing.computation import Options
from modalign.editing.engine import covariance, memory
from modalign.editing.engine.covariance import OWN, collect
from modalign.editing.engine.rewriting import Rewriter, Rewriting
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.engine.values import optimise
from modalign.editing.methods import MEMIT, PMET, MEMITConfig, PMETConfig
from modalign.errors import DataError, ModalignError, UsageError
from modalign.patches import applied, apply_patch, remove_patch
from tiny_editable import CONTEXTS, LAYERS


@pytest.fixture
def made(editable: Callable[[str], Editable]) -> Editable:
    return editable("llama")


def options_for(made: Editable, cache: Path) -> Options:
    return Options(corpus=Corpus("its corpus", made.texts[:500]), cache=cache)


def requests_of(made: Editable, count: int) -> list[Any]:
    edits = counterfactuals(made.world, count, seed=1)
    rewriter = Rewriter(ModelSpec.detect(made.model), made.tokenizer, Rewriting())
    return rewriter.requests(edits, CONTEXTS[:2])


def test_the_batch_shrinks_to_the_memory_that_is_free(
    made: Editable, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec.detect(made.model)
    requests = requests_of(made, 4)
    each = memory.bytes_per_edit(spec, LAYERS[-1], requests)
    monkeypatch.setattr(memory, "_left", lambda device: 8 * each)
    assert memory.fitting_batch(spec, LAYERS[-1], requests, 16) == 4  # half of what is free
    monkeypatch.setattr(memory, "_left", lambda device: each // 2)
    with pytest.raises(ModalignError, match=r"one edit's value needs about .* are free"):
        memory.fitting_batch(spec, LAYERS[-1], requests, 16)
    monkeypatch.setattr(memory, "_left", lambda device: 1000)
    with pytest.raises(ModalignError, match="key statistics of 3 layers"):
        memory.check_statistics(spec, LAYERS)


def test_the_estimate_is_an_upper_bound_of_what_is_kept_for_the_backward_pass(
    made: Editable,
) -> None:
    """Counted by torch's own hooks on saved tensors."""
    from modalign.editing.engine.forward import Inputs, PartialForward
    from modalign.editing.engine.values import _layout, _rows_of, frozen

    spec = ModelSpec.detect(made.model)
    requests = requests_of(made, 1)
    forward = PartialForward(spec, LAYERS[-1], ("block",))
    base = forward.prepare(Inputs.of(_rows_of(requests[0]), spec))
    layout = _layout(requests, spec)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    vector = torch.zeros(len(base.hidden), spec.width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), frozen(spec.model):
        forward.logits(base, {"block": vector}, (layout.rows, layout.positions))
    weights = {p.untyped_storage().data_ptr() for p in spec.model.parameters()}
    measured = sum(size for place, size in kept.items() if place not in weights)
    estimated = memory.bytes_per_edit(spec, LAYERS[-1], requests)
    assert 0.5 * measured < estimated < 20 * measured


def test_without_a_text_the_model_writes_its_own(made: Editable, tmp_path: Path) -> None:
    spec = ModelSpec.detect(made.model)
    first = collect(spec, made.tokenizer, LAYERS, tokens=2000, cache=tmp_path / "a")
    again = collect(spec, made.tokenizer, LAYERS, tokens=2000, cache=tmp_path / "b")
    other = collect(spec, made.tokenizer, LAYERS, tokens=2000, seed=1, cache=tmp_path / "c")
    assert first.corpus == OWN
    assert first.tokens == 2000
    for layer in LAYERS:
        assert torch.equal(first.matrices[layer], again.matrices[layer])
        assert not torch.equal(first.matrices[layer], other.matrices[layer])
        assert torch.linalg.eigvalsh(first.matrices[layer])[0] > -1e-9


@pytest.mark.parametrize(
    ("name", "content", "documents"),
    [
        ("a.txt", "one\nline\n\n\n\ntwo", ["one\nline", "two"]),
        ("a.jsonl", '{"text": "one"}\n\n"two"\n', ["one", "two"]),
        ("a.json", '["one", {"content": "two"}]', ["one", "two"]),
    ],
)
def test_texts_are_read(tmp_path: Path, name: str, content: str, documents: list[str]) -> None:
    (tmp_path / name).write_text(content)
    assert [text.strip() for text in read_corpus(tmp_path / name).documents] == documents


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"\n\n", "holds no text"),
        ("a.txt", b"caf\xe9", "not UTF-8 text at byte 3"),
        ("a.jsonl", b'{"text": "one"}\n{"texts": 1}\n', r"a.jsonl:2: no text"),
        ("a.jsonl", b"{", "a.jsonl:1: is not JSON"),
        ("a.json", b"{}", "expected a list of texts"),
    ],
)
def test_texts_that_cannot_be_read_are_named(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_corpus(tmp_path / name)


def test_a_bfloat16_model_is_edited_and_comes_back_bit_for_bit(
    made: Editable, tmp_path: Path
) -> None:
    model = made.model.bfloat16()
    edits = counterfactuals(made.world, 5, seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    patch = MEMIT(MEMITConfig(layers=LAYERS, contexts=CONTEXTS[:2], covariance_weight=5)).compute(
        model, made.tokenizer, edits, options=options_for(made, tmp_path)
    )
    apply_patch(model, patch)
    assert plain.plain_scores(model, made.tokenizer, edits).es >= 80
    remove_patch(model, patch)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_leaving_out_the_attention_vector_changes_the_scores(
    made: Editable, tmp_path: Path
) -> None:
    """On sequential blocks; which way it goes is measured in the docs, not promised here."""
    edits = counterfactuals(made.world, 24, seed=1)
    scores = []
    for attention in (True, False):
        config = PMETConfig(
            layers=LAYERS, contexts=CONTEXTS[:2], clamp=2, lr=0.5, covariance_weight=5,
            attention_vector=attention,
        )  # fmt: skip
        options = replace(options_for(made, tmp_path), resume=True)
        patch = PMET(config).compute(made.model, made.tokenizer, edits, options=options)
        with applied(made.model, patch):
            scores.append(plain.plain_scores(made.model, made.tokenizer, edits).s)
    print(scores)
    assert min(scores) > 30
    assert abs(scores[0] - scores[1]) > 0.5


def test_a_model_in_training_gives_the_same_patch_and_keeps_its_modes(
    made: Editable, tmp_path: Path
) -> None:
    edits = counterfactuals(made.world, 2, seed=1)
    method = MEMIT(MEMITConfig(layers=LAYERS, contexts=CONTEXTS[:2], covariance_weight=5))
    made.model.config.attention_dropout = 0.5
    for module in made.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    quiet = method.compute(
        made.model, made.tokenizer, edits, options=options_for(made, tmp_path / "a")
    )
    made.model.train()
    ModelSpec.detect(made.model).layers[1].eval()
    modes = [module.training for module in made.model.modules()]
    loud = method.compute(
        made.model, made.tokenizer, edits, options=options_for(made, tmp_path / "b")
    )
    assert [module.training for module in made.model.modules()] == modes
    for name, change in quiet.changes.items():
        torch.testing.assert_close(loud.changes[name].delta(), change.delta())


def test_a_model_that_carries_a_patch_is_refused(made: Editable, tmp_path: Path) -> None:
    edits = counterfactuals(made.world, 2, seed=1)
    method = MEMIT(MEMITConfig(layers=LAYERS, contexts=CONTEXTS[:2], covariance_weight=5))
    options = options_for(made, tmp_path)
    patch = method.compute(made.model, made.tokenizer, edits[:1], options=options)
    for carrying in (made.model + patch, made.model):
        if carrying is made.model:
            apply_patch(made.model, patch)
        with pytest.raises(UsageError, match="carries the patch 'memit'"):
            method.compute(carrying, made.tokenizer, edits[1:], options=options)


def test_a_forward_that_another_library_set_is_given_back(made: Editable) -> None:
    spec = ModelSpec.detect(made.model)
    layer = spec.layers[0]
    mine = layer.forward
    layer.forward = mine  # as accelerate's hooks do
    found: dict[int, Any] = {}
    settings = MEMITConfig(steps=2).value_settings()
    optimise(
        spec, 2, ("block",), settings, requests_of(made, 1), batch_size=1, done=found.__setitem__
    )
    assert layer.__dict__["forward"] is mine


def test_statistics_know_the_tokenizer_and_what_the_models_own_text_depends_on(
    made: Editable,
) -> None:
    spec = ModelSpec.detect(made.model)
    corpus = Corpus("text", made.texts[:10])

    def key(text: Corpus | None) -> str:
        found = covariance._fingerprints(spec, made.tokenizer, (0, 1), text, 1000, 0)
        return covariance._of_all(found)

    with_text, own = key(corpus), key(None)
    with torch.no_grad():
        spec.projection(3, "ffn").weight.add_(0.1)  # above the layers that are written
    assert key(corpus) == with_text
    assert key(None) != own
    made.tokenizer.add_tokens(["<new>"])
    assert key(corpus) != with_text
