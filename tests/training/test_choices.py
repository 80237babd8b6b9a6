"""Budgets, methods, objective terms, and what trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modalign.connectors.registry import connectors
from modalign.errors import ModalignError, UsageError
from modalign.training.budget import Budget, Ledger
from modalign.training.methods import method_names, resolve_method, resolve_methods
from modalign.training.objectives import objective_term, term
from modalign.training.settings import LearningRates, Stage, TrainSettings
from modalign.training.trainable import FrozenCheck, add_lora, count_parts, freeze, parameter_groups


@given(
    st.sampled_from(["samples", "seconds", "flops"]),
    st.one_of(st.integers(1, 10**18), st.floats(1e-3, 1e25)),
)
def test_budgets_are_printed_as_they_are_read(kind: Any, amount: float) -> None:
    budget = Budget(kind, float(amount))
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("20000samples", "samples", 20000),
        ("1_000 samples", "samples", 1000),
        ("1sample", "samples", 1),
        ("90s", "seconds", 90),
        ("10m", "seconds", 600),
        ("1.5h", "seconds", 5400),
        ("3e14flops", "flops", 3e14),
        (" 2TFLOPs ", "flops", 2e12),
        ("1e+3gflops", "flops", 1e12),
    ],
)
def test_budgets_by_hand(text: str, kind: str, amount: float) -> None:
    assert Budget.parse(text) == Budget(kind, amount)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "10", "s", "10 apples", "-5s", "0s", "0.0h", "1e400s", "1 h 5 m", "nans", "٣s"]
)
def test_bad_budgets(text: str) -> None:
    with pytest.raises(UsageError, match="budget"):
        Budget.parse(text)


def test_shares_and_the_ledger() -> None:
    budget = Budget.parse("100samples").share(0.3)
    assert str(budget) == "30samples"
    ledger = Ledger()
    ledger.spend(12, 3.5, 1e9)
    ledger.spend(3, 0.5, 1e9)
    assert ledger.fraction(budget) == pytest.approx(0.5)
    assert ledger.fraction(Budget.parse("8s")) == pytest.approx(0.5)
    assert ledger.state() == {"samples": 15, "seconds": 4.0, "flops": 2e9}


def test_methods_by_name_family_and_all() -> None:
    names = [method.name for method in resolve_methods("all")]
    assert names == method_names()
    assert set(connectors()) < set(names)
    families = [m.name for m in resolve_methods(["converters", "perceiver"])]
    assert sorted(families) == sorted(names)
    converters = resolve_methods("converter")
    assert {m.facts.family for m in converters} == {"converter"}
    mixed = resolve_methods("mlp, linear,mlp, converters")
    assert [m.name for m in mixed[:2]] == ["mlp", "linear"]
    assert len(mixed) == len(converters)
    assert [m.variant for m in resolve_methods("published")] == ["published"] * len(names)


def test_stage_one_is_a_choice() -> None:
    first, second = resolve_method("qformer").stages
    assert (first.runs, second.runs) == ("stage_one", "model")
    assert first.share + second.share == pytest.approx(1)
    (only,) = resolve_method("qformer_no_stage_one:published").stages
    assert (only.runs, only.share) == ("model", 1)
    assert resolve_method("qformer_no_stage_one").connector == "qformer"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("linaer", "did you mean linear"),
        ("Linear", "did you mean linear"),
        ("mlp_no_stage_one", "no method is called"),
        ("mlp:large", "no method is called"),
        ("xyzzy", "'modalign methods' lists them"),
        ("converterss", "no method is called"),
        (" , ", "no method was given"),
    ],
)
def test_unknown_methods(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_methods(name)


def test_objective_terms_have_one_name_each() -> None:
    assert term("cross_entropy") is term("cross_entropy")
    with pytest.raises(UsageError, match="registered twice"):
        objective_term("cross_entropy")(lambda *_: torch.zeros(()))
    with pytest.raises(
        UsageError,
        match=r"'entropy'; did you mean cross_entropy\? choose from ascent, choice, classify, ",
    ):
        term("entropy")


def _frozen(model: Any, llm: Any = "frozen", encoder: Any = "frozen", **rates: float) -> set[str]:
    freeze(model, llm, encoder, LearningRates(**rates))
    trains = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trains == {
        {"connector": "connectors", "llm": "language_model", "encoder": "encoders"}[count.part]
        for count in count_parts(model)
        if count.trainable
    }
    return trains


def test_what_trains(compose_tiny: Callable[..., Any]) -> None:
    model, _ = compose_tiny("mlp")
    assert _frozen(model) == {"connectors"}
    assert not model.language_model.training
    assert not model.encoders.training
    assert _frozen(model, llm="full") == {"connectors", "language_model"}
    assert _frozen(model, llm="full", encoder="full", connector=0) == {"language_model", "encoders"}
    freeze(model, "full", "full", LearningRates(connector=0, llm=0, encoder=0))
    with pytest.raises(UsageError, match="nothing trains"):
        parameter_groups(model, LearningRates(), 0.1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_lora_reaches_the_layers_of_the_language_model_only(
    family: str, compose_tiny: Callable[..., Any]
) -> None:
    model, _ = compose_tiny("qformer", llm=family)
    ids = torch.tensor([[5, 6, 7]])
    before = model(ids).logits
    lora = add_lora(model, TrainSettings(llm="lora", lora_rank=2))
    added = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert added
    layers = ("model.layers.", "transformer.h.", "gpt_neox.layers.")
    assert all(
        name.startswith(tuple(f"language_model.{layer}" for layer in layers)) for name in added
    )
    assert not any("lm_head" in name or "embed_out" in name for name in added)
    assert torch.allclose(model(ids).logits, before, atol=1e-5)
    freeze(model, "lora", "frozen", LearningRates(connector=0))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(added)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.05)
    changed = model.eval()(ids).logits
    assert not torch.allclose(changed, before, atol=1e-2)
    model.language_model = lora.merge_and_unload()
    assert torch.allclose(model(ids).logits, changed, atol=1e-3)
    assert not any("lora_" in name for name, _ in model.named_parameters())


def test_groups_hold_every_trained_tensor_once(compose_tiny: Callable[..., Any]) -> None:
    model, _ = compose_tiny("gated_cross_attention")
    rates = LearningRates(connector=1e-3, llm=2e-5, encoder=3e-6)
    freeze(model, "full", "full", rates)
    groups = parameter_groups(model, rates, 0.1)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    for part, rate in rates.model_dump().items():
        own = [group for group in groups if group["lr"] == rate]
        assert {group["weight_decay"] for group in own} == {0.0, 0.1}, part
    for group in groups:
        assert all((p.dim() > 1) == (group["weight_decay"] > 0) for p in group["params"])


def test_frozen_tensors_that_change_are_found(compose_tiny: Callable[..., Any]) -> None:
    model, _ = compose_tiny("gated_cross_attention")
    freeze(model, "frozen", "frozen", LearningRates(connector=0))  # gates are single numbers
    check = FrozenCheck(model)
    check.verify(model)
    for name, parameter in list(model.named_parameters())[::7]:
        saved = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-3
        with pytest.raises(ModalignError, match=f"1 frozen tensors changed.*{name}"):
            check.verify(model)
        with torch.no_grad():
            parameter.copy_(saved)
    check.verify(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_change_of_any_element_is_found(dtype: torch.dtype, size: int) -> None:
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.ones(size, dtype=dtype), requires_grad=False)
    for place in range(size):
        check = FrozenCheck(module)
        with torch.no_grad():
            module.weight[place] *= 3
        with pytest.raises(ModalignError):
            check.verify(module)


def test_a_method_takes_connector_options_and_a_recipe() -> None:
    method = resolve_method("mlp[depth=3]:published")
    assert (method.connector, method.variant, method.options) == ("mlp", "published", {"depth": 3})
    with pytest.raises(UsageError, match="depth"):
        resolve_method("mlp[width=3]")
    align = Stage(name="align", share=1, llm="frozen", learning_rates=LearningRates(connector=1e-3))
    tune = Stage(name="tune", share=3, llm="full")
    plain = resolve_method("linear", [align, tune])
    assert [(stage.name, stage.share) for stage in plain.stages] == [
        ("align", 0.25),
        ("tune", 0.75),
    ]
    own = resolve_method("qformer", [align, tune])
    assert [stage.name for stage in own.stages] == ["stage_one", "align", "tune"]
    assert sum(stage.share for stage in own.stages) == pytest.approx(1.0)
