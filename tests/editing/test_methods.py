"""The fast engine against the plain one: values, updates, patches; and that edits work at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import plain
import pytest
import torch
from bench.editable import Editable
from bench.invented import counterfactuals

from modalign.data.corpus import Corpus
from modalign.editing.checks import StrictError, refuse_warnings
from modalign.editing.computation import Options
from modalign.editing.edits import Edit
from modalign.editing.engine import covariance
from modalign.editing.engine.covariance import collect
from modalign.editing.engine.forward import PartialForward, Row
from modalign.editing.engine.keys import read_keys, read_outputs
from modalign.editing.engine.parts import Parts
from modalign.editing.engine.rewriting import Rewriter, Rewriting
from modalign.editing.engine.solve import factorise
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.engine.store import ValueStore
from modalign.editing.engine.values import Value, ValueSettings, optimise
from modalign.editing.methods import (
    FT,
    FTL,
    MEMIT,
    PMET,
    ROME,
    AlphaEdit,
    AlphaEditConfig,
    FTConfig,
    FTLConfig,
    MEMITConfig,
    PMETConfig,
    ROMEConfig,
    method_named,
)
from modalign.errors import ModalignError, UsageError
from modalign.patches import applied, drop, load_patch, save_patch
from modalign.patches.changes import LowRankChange, SolvedChange
from tiny_editable import CONTEXTS, LAYERS, editable

FAMILIES = ("gptj", "llama")
TEXTS = 1000
SITES: dict[str, tuple[Any, ...]] = {
    "memit": ("block",),
    "rome": ("ffn",),
    "pmet": ("attention", "ffn"),
}
PLAIN = {"memit": plain.MEMIT, "rome": plain.ROME, "pmet": plain.PMET_TINY}
FAST = {
    "memit": ValueSettings(25, 0.5, 0.75, 0.0625, 0.5),
    "rome": ValueSettings(20, 0.5, 4.0, 0.0625, 0.5),
    "pmet": ValueSettings(30, 0.5, 4.0, 1.0, 0.5, relax=True),
}


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest) -> Editable:
    """A small model whose facts can be edited, trained once for all runs."""
    folder = Path(str(request.config.cache.mkdir("editable")))  # type: ignore[union-attr]
    return editable(request.param, folder)


@pytest.fixture
def options(made: Editable, tmp_path: Path) -> Options:
    """Text for the statistics, and a cache of the test's own."""
    return Options(corpus=Corpus("its corpus", made.texts[:TEXTS]), cache=tmp_path)


def found_by_engine(
    model: Any, tokenizer: Any, edits: list[Edit], method: str, batch_size: int = 16
) -> list[Value]:
    spec = ModelSpec.detect(model)
    found: dict[int, Value] = {}
    optimise(
        spec,
        LAYERS[-1],
        SITES[method],
        FAST[method],
        Rewriter(spec, tokenizer, Rewriting()).requests(edits, CONTEXTS[:2]),
        batch_size=batch_size,
        done=found.__setitem__,
    )
    return [found[i] for i in range(len(edits))]


def errors(ours: list[Value], theirs: list[plain.Values]) -> list[float]:
    """Relative distance of what is wanted, per edit and site."""
    return [
        float((a.wanted(site) - b.goal(site)).norm() / b.goal(site).norm())
        for a, b in zip(ours, theirs, strict=True)
        for site in b.deltas
    ]


@pytest.mark.parametrize("method", SITES)
def test_values_equal_those_of_one_edit_on_the_whole_model(made: Editable, method: str) -> None:
    """Within 1e-5 at the median, 1e-4 at worst; where rounding alone moves the plain ones further
    from what float64 gives, no further than three times that."""
    edits = counterfactuals(made.world, 6, seed=3)
    exact, theirs = (
        [
            plain.plain_values(
                model, made.tokenizer, edit, CONTEXTS[:2], layer=LAYERS[-1], settings=PLAIN[method]
            )
            for edit in edits
        ]
        for model in (plain.in_double(made.model), made.model)
    )
    ours = found_by_engine(made.model, made.tokenizer, edits, method)
    rounding = sorted(
        float((a.goal(site) - b.goal(site)).norm() / b.goal(site).norm())
        for a, b in zip(theirs, exact, strict=True)
        for site in b.deltas
    )
    wrong = sorted(errors(ours, exact))
    middle = len(wrong) // 2
    assert wrong[middle] <= max(1e-5, 3 * rounding[middle])
    assert wrong[-1] <= max(1e-4, 3 * rounding[-1])
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.probability == pytest.approx(other.probability, abs=2e-2)


@pytest.mark.parametrize("method", ["memit", "pmet"])
def test_in_float64_values_are_equal_to_eight_digits(made: Editable, method: str) -> None:
    model = plain.in_double(made.model)
    edits = counterfactuals(made.world, 3, seed=4)
    theirs = [
        plain.plain_values(
            model, made.tokenizer, edit, CONTEXTS[:2], layer=LAYERS[-1], settings=PLAIN[method]
        )
        for edit in edits
    ]
    assert max(errors(found_by_engine(model, made.tokenizer, edits, method), theirs)) <= 1e-8


def test_the_batch_changes_nothing(made: Editable) -> None:
    edits = counterfactuals(made.world, 5, seed=5)
    model = made.model.double()  # float32's rounding differs with the batch
    together = found_by_engine(model, made.tokenizer, edits, "pmet")
    alone = found_by_engine(model, made.tokenizer, edits, "pmet", batch_size=1)
    model.float()
    for one, other in zip(together, alone, strict=True):
        assert one.steps == other.steps
        for site in one.deltas:
            assert (one.wanted(site) - other.wanted(site)).norm() <= 1e-4 * other.wanted(
                site
            ).norm()


def test_memory_that_runs_out_halves_the_batch(
    made: Editable, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = Parts.of
    sizes = []

    def scarce(forward: PartialForward, rows: Sequence[Row]) -> Parts:
        sizes.append(len(rows))
        if len(rows) > 4 * 4:
            raise torch.OutOfMemoryError
        return of(forward, rows)

    monkeypatch.setattr(Parts, "of", scarce)
    edits = counterfactuals(made.world, 5, seed=5)
    found_by_engine(made.model, made.tokenizer, edits, "memit")
    assert sizes == [20, 8, 8, 4]  # rows: three prompts and the KL prompt per edit


@pytest.mark.parametrize("method", ["memit", "pmet"])
def test_updates_from_the_same_values_equal_the_plain_ones(
    made: Editable, options: Options, method: str
) -> None:
    # In float64, for C0 has nearly empty directions: they magnify what float32 rounds off the keys.
    model = plain.in_double(made.model)
    edits = counterfactuals(made.world, 6, seed=6)
    weight = 5.0
    kind, config = (MEMIT, MEMITConfig) if method == "memit" else (PMET, PMETConfig)
    settings = {"clamp": 4.0, "lr": 0.5} if method == "pmet" else {}
    patch = kind(
        config(layers=LAYERS, contexts=CONTEXTS[:2], covariance_weight=weight, **settings)
    ).compute(model, made.tokenizer, edits, options=options)
    values = found_by_engine(model, made.tokenizer, edits, method)
    site: Any = "block" if method == "memit" else "ffn"
    goals = torch.stack([value.wanted(site) for value in values])
    spec = ModelSpec.detect(model)
    C = collect(spec, made.tokenizer, LAYERS, corpus=options.corpus, cache=options.cache).matrices
    # The fast path adds a ridge where C0 cannot be factored; the plain one is given the same.
    ridged = {}
    for layer in LAYERS:
        ridge = factorise(C[layer]).ridge
        eye = torch.eye(len(C[layer]), dtype=torch.float64)
        ridged[layer] = C[layer] + ridge * C[layer].diagonal().mean() * eye
    want = plain.plain_update(
        model, made.tokenizer, edits, goals, CONTEXTS[:2], ridged,
        layers=LAYERS, weight=weight, site=site, spread="linear" if method == "memit" else "sqrt",
    )  # fmt: skip
    for layer in LAYERS:
        delta = patch.changes[spec.weight_name(layer)].delta()
        assert (delta - want[layer]).norm() <= 1e-6 * want[layer].norm()


def test_statistics_equal_their_definition(made: Editable, tmp_path: Path) -> None:
    spec = ModelSpec.detect(made.model)
    texts = made.texts[:40]
    corpus = Corpus("forty", texts)
    got = collect(spec, made.tokenizer, LAYERS, corpus=corpus, cache=tmp_path)
    want = plain.plain_covariances(made.model, made.tokenizer, texts, LAYERS)
    for layer in LAYERS:
        torch.testing.assert_close(got.matrices[layer], want[layer], rtol=1e-4, atol=1e-6)
    assert got.tokens == sum(len(made.tokenizer(text)["input_ids"]) for text in texts)


def test_statistics_are_found_again_and_never_those_of_other_weights(
    made: Editable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec.detect(made.model)
    corpus = Corpus("forty", made.texts[:40])
    first = collect(spec, made.tokenizer, LAYERS, corpus=corpus, cache=tmp_path)
    monkeypatch.setattr(covariance, "_add", lambda *a: pytest.fail("computed again"))
    again = collect(spec, made.tokenizer, LAYERS, corpus=corpus, cache=tmp_path)
    assert again.fingerprint == first.fingerprint
    assert all(torch.equal(again.matrices[layer], first.matrices[layer]) for layer in LAYERS)

    def key() -> str:
        tokens = covariance.enough_tokens(spec, LAYERS)
        found = covariance._fingerprints(spec, made.tokenizer, LAYERS, corpus, tokens, 0)
        return covariance._of_all(found)

    # The projection of the last layer is not what its own keys depend on; the one before is.
    with torch.no_grad():
        spec.projection(LAYERS[-1], "ffn").weight.add_(1)
        same = key()
        spec.projection(LAYERS[-1], "ffn").weight.sub_(1)
        spec.projection(LAYERS[0], "ffn").weight[0, 0].add_(1)
        other = key()
        spec.projection(LAYERS[0], "ffn").weight[0, 0].sub_(1)
    assert same == first.fingerprint != other


def test_interrupted_statistics_go_on(
    made: Editable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(covariance, "BATCH_TOKENS", 200)
    monkeypatch.setattr(covariance, "SAVE_EVERY", 400)
    spec = ModelSpec.detect(made.model)
    corpus = Corpus("eighty", made.texts[:80])
    add, calls = covariance._add, []
    monkeypatch.setattr(covariance, "_add", lambda *args: calls.append(args) or add(*args))
    whole = collect(spec, made.tokenizer, LAYERS, corpus=corpus, cache=tmp_path / "a")
    batches = len(calls)
    calls.clear()

    def killed(*args: Any) -> int:
        calls.append(args)
        if len(calls) == batches // 2:
            raise KeyboardInterrupt
        return add(*args)

    monkeypatch.setattr(covariance, "_add", killed)
    with pytest.raises(KeyboardInterrupt):
        collect(spec, made.tokenizer, LAYERS, corpus=corpus, cache=tmp_path / "b")
    resumed = collect(spec, made.tokenizer, LAYERS, corpus=corpus, cache=tmp_path / "b")
    assert resumed.tokens == whole.tokens
    assert all(torch.equal(resumed.matrices[i], whole.matrices[i]) for i in LAYERS)
    assert len(calls) < 1.4 * batches  # half of it, and from the last write on again


@pytest.mark.parametrize(
    ("method", "least"),
    [
        (
            PMET(
                PMETConfig(layers=LAYERS, contexts=CONTEXTS, clamp=2, lr=0.5, covariance_weight=5)
            ),
            75,
        ),
        (MEMIT(MEMITConfig(layers=LAYERS, contexts=CONTEXTS, covariance_weight=5)), 90),
        (AlphaEdit(AlphaEditConfig(layers=LAYERS, contexts=CONTEXTS, l2=0.1)), 78),
        (ROME(ROMEConfig(layers=LAYERS[-2:-1])), 50),
        (FT(FTConfig(layers=LAYERS[-1:], lr=5e-3)), 65),
        (FTL(FTLConfig(layers=LAYERS[:1], lr=5e-3, epsilon=2e-2)), 65),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_edits_hold_and_the_model_stays_as_it_was(
    made: Editable, options: Options, method: Any, least: float
) -> None:
    """S of ten edits of 48 facts, which is 0 before; the bounds are below what two kinds of processors show."""
    edits = counterfactuals(made.world, 10, seed=1)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    patch = method.compute(made.model, made.tokenizer, edits, options=options)
    now = made.model.state_dict()
    assert all(torch.equal(now[name], value) for name, value in before.items())
    assert not any(p.grad is not None for p in made.model.parameters())
    assert plain.plain_scores(made.model, made.tokenizer, edits).s == 0
    with applied(made.model, patch):
        assert plain.plain_scores(made.model, made.tokenizer, edits).s >= least
    assert [record.id for record in patch.header.editing.edits] == [edit.id for edit in edits]


def test_the_two_vectors_are_one_on_parallel_blocks_only(made: Editable) -> None:
    """Without clamp and decay both get the same gradient where the block only adds them up."""
    settings = ValueSettings(8, 0.5, 1e6, 1.0, 0.0, relax=True)
    spec = ModelSpec.detect(made.model)
    edits = counterfactuals(made.world, 3, seed=2)
    requests = Rewriter(spec, made.tokenizer, Rewriting()).requests(edits, CONTEXTS[:2])
    found: dict[int, Value] = {}
    optimise(
        spec, LAYERS[-1], SITES["pmet"], settings, requests, batch_size=3, done=found.__setitem__
    )
    for value in found.values():
        attention, ffn = value.deltas["attention"], value.deltas["ffn"]
        cosine = float(torch.cosine_similarity(attention, ffn, dim=0))
        assert cosine > 0.9999 if spec.parallel else cosine < 0.99


def test_alphaedit_equals_the_released_form(made: Editable, options: Options) -> None:
    """(P (K K^T + Kp Kp^T) + L2 I)^-1 P K R^T, the unsymmetric system, solved directly."""
    first = AlphaEdit(AlphaEditConfig(layers=LAYERS, l2=0.1))
    edits = counterfactuals(made.world, 6, seed=1)
    below = first.compute(made.model, made.tokenizer, edits[:3], options=options)
    patch = first.compute(
        made.model, made.tokenizer, edits[3:], options=replace(options, below=(below,))
    )
    assert len(patch.header.after) == 1
    spec = ModelSpec.detect(made.model)
    C = collect(spec, made.tokenizer, LAYERS, corpus=options.corpus, cache=options.cache).matrices
    for layer in LAYERS:
        name = spec.weight_name(layer)
        change = patch.changes[name]
        assert isinstance(change, SolvedChange)
        assert change.edits == (0, 1, 2, -1, -1, -1)
        K, Kp, R = change.keys[:, :3], change.keys[:, 3:], change.residuals[:, :3]
        earlier = below.changes[name]
        assert isinstance(earlier, SolvedChange)
        assert torch.equal(Kp, earlier.keys)
        values, vectors = torch.linalg.eigh(C[layer])
        P = vectors[:, values < 2e-2] @ vectors[:, values < 2e-2].T
        system = P @ (K @ K.T + Kp @ Kp.T) + 0.1 * torch.eye(len(K), dtype=K.dtype)
        want = torch.linalg.solve(system, P @ K @ R.T).T
        assert (change.delta() - want).norm() <= 1e-8 * want.norm()


@pytest.mark.parametrize("key", ["one", "mixed"])
def test_rome_equals_the_plain_formula(made: Editable, options: Options, key: str) -> None:
    [edit] = counterfactuals(made.world, 1, seed=8)
    layer = LAYERS[-1]
    patch = ROME(
        ROMEConfig(layers=(layer,), contexts=CONTEXTS[:2], key=key)  # type: ignore[arg-type]
    ).compute(made.model, made.tokenizer, [edit], options=options)
    [value] = found_by_engine(made.model, made.tokenizer, [edit], "rome")
    spec = ModelSpec.detect(made.model)
    C = collect(spec, made.tokenizer, (layer,), corpus=options.corpus, cache=options.cache)
    want = plain.plain_rome(
        made.model, made.tokenizer, edit, value.wanted("ffn"), CONTEXTS[:2],
        C.matrices[layer], layer, one_key=key == "one",
    )  # fmt: skip
    change = patch.changes[spec.weight_name(layer)]
    assert isinstance(change, LowRankChange)
    assert (change.delta() - want).norm() <= 1e-4 * want.norm()


def test_the_bound_of_ft_l_holds(made: Editable, options: Options) -> None:
    edits = counterfactuals(made.world, 4, seed=1)
    patch = FTL(FTLConfig(layers=(0,), lr=5e-3, epsilon=1e-3)).compute(
        made.model, made.tokenizer, edits, options=options
    )
    [change] = patch.changes.values()
    assert 0.0009 < float(change.delta().abs().max()) <= 0.001 + 1e-7


def test_a_killed_run_goes_on_to_the_same_patch(
    made: Editable, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits = counterfactuals(made.world, 6, seed=9)
    model = plain.in_double(made.model)  # after the kill the batches differ, and so does rounding
    method = PMET(PMETConfig(layers=LAYERS, clamp=4, lr=0.5, covariance_weight=5, batch_size=2))
    whole = method.compute(model, made.tokenizer, edits, options=options)
    elsewhere = replace(options, cache=options.cache / "other", resume=True)  # type: ignore[operator]
    put, kept = ValueStore.put, []

    def killed(self: ValueStore, request: Any, value: Value) -> None:
        if len(kept) == 3:
            raise KeyboardInterrupt
        kept.append(request.edit.id)
        put(self, request, value)

    monkeypatch.setattr(ValueStore, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        method.compute(model, made.tokenizer, edits, options=elsewhere)
    monkeypatch.setattr(ValueStore, "put", put)
    said: list[str] = []
    resumed = method.compute(
        model, made.tokenizer, edits, options=replace(elsewhere, said=said.append)
    )
    assert "3 of 6 values were found before" in said
    for name, change in whole.changes.items():
        difference = (resumed.changes[name].delta() - change.delta()).norm()
        assert difference <= 1e-6 * change.delta().norm()


def test_dropping_an_edit_is_close_to_never_having_made_it(
    made: Editable, options: Options, tmp_path: Path
) -> None:
    edits = counterfactuals(made.world, 5, seed=10)
    method = MEMIT(MEMITConfig(layers=LAYERS, covariance_weight=5))
    patch = method.compute(made.model, made.tokenizer, edits, options=options)
    save_patch(patch, tmp_path / "all.safetensors")
    less = drop(load_patch(tmp_path / "all.safetensors"), edits[2].id)
    with applied(made.model, less):
        kept = plain.plain_scores(made.model, made.tokenizer, edits[:2] + edits[3:])
        gone = plain.plain_scores(made.model, made.tokenizer, [edits[2]])
    assert kept.es == 100
    assert gone.es == 0


def test_what_went_wrong_is_told_per_edit(made: Editable, options: Options) -> None:
    first = counterfactuals(made.world, 1, seed=11)[0]
    others = {edit.target for edit in counterfactuals(made.world, 30, seed=12)}
    second = replace(first, id="twin", target=sorted(others - {first.target, first.truth})[0])
    patch = MEMIT(MEMITConfig(layers=LAYERS, covariance_weight=5, steps=1)).compute(
        made.model, made.tokenizer, [first, second], options=options
    )
    warnings = [" ".join(record.warnings) for record in patch.header.editing.edits]
    assert "near-duplicate key: almost that of edit twin" in warnings[0]
    assert "near-duplicate key" in warnings[1]
    assert any("not reached" in text for text in warnings)
    with pytest.raises(StrictError, match=f"edit {first.id} .*near-duplicate"):
        refuse_warnings(patch)


def test_a_loss_that_is_not_a_number_names_the_edit(made: Editable, options: Options) -> None:
    edits = counterfactuals(made.world, 2, seed=1)
    weight = ModelSpec.detect(made.model).projection(3, "ffn").weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] = float("nan")
    try:
        with pytest.raises(ModalignError, match=f"edit {edits[0].id} .*not a number|not finite"):
            MEMIT(MEMITConfig(layers=LAYERS, contexts=())).compute(
                made.model, made.tokenizer, edits, options=options
            )
        assert torch.isnan(weight[0, 0])
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_settings_and_names_are_checked(made: Editable) -> None:
    with pytest.raises(UsageError, match="layer 99: the model has the layers 0 to"):
        PMET(PMETConfig(layers=(0, 99))).compute(
            made.model, made.tokenizer, counterfactuals(made.world, 1)
        )
    with pytest.raises(UsageError, match="did you mean memit"):
        method_named("memitt")
    with pytest.raises(UsageError, match="no edits"):
        PMET().compute(made.model, made.tokenizer, [])
    assert PMETConfig().layers_of(28) == (3, 4, 5, 6, 7, 8)
    assert FTConfig().layers_of(28) == (21,)
    assert ROMEConfig().layers_of(28) == (5,)


def test_keys_and_outputs_are_the_plain_ones(made: Editable) -> None:
    edits = counterfactuals(made.world, 3, seed=13)
    spec = ModelSpec.detect(made.model)
    requests = Rewriter(spec, made.tokenizer, Rewriting()).requests(edits, CONTEXTS[:3])
    keys = read_keys(spec, 1, requests)
    states = read_outputs(spec, 1, "block", requests)
    for i, edit in enumerate(edits):
        want = plain.plain_key(made.model, made.tokenizer, edit, CONTEXTS[:3], 1).double()
        assert (keys[:, i] - want).norm() <= 1e-5 * want.norm()
        state = plain.plain_state(made.model, made.tokenizer, edit, 1, "block").double()
        assert (states[:, i] - state).norm() <= 1e-5 * state.norm()
