"""A key for each rewriting prompt, limits that give way, and null spaces relative to the keys' energy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bench.editable import Editable, Family
from bench.invented import counterfactuals
from hypothesis import given, settings
from hypothesis import strategies as st

from modalign.data.corpus import Corpus
from modalign.editing.computation import Options
from modalign.editing.engine.keys import read_outputs
from modalign.editing.engine.requests import Request
from modalign.editing.engine.rewriting import Rewriter
from modalign.editing.engine.solve import SolveError, Spectrum, null_space
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.methods import MEMIT, ROME, MEMITConfig, ROMEConfig
from modalign.editing.methods.closed_form import each_row
from modalign.patches import applied
from tiny_editable import CONTEXTS


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest) -> Editable:
    from tiny_editable import editable

    return editable("llama", Path(str(request.config.cache.mkdir("editable"))))  # type: ignore[union-attr]


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 12), st.floats(1e-6, 1e6), st.floats(0.01, 0.9), st.integers(0, 99))
def test_a_share_of_the_energy_knows_no_scale(
    width: int, scale: float, share: float, seed: int
) -> None:
    keys = torch.randn(3 * width, width, generator=torch.Generator().manual_seed(seed)).double()
    covariance = keys.T @ keys
    try:
        one = null_space(Spectrum.of(covariance), 1.0, share)
    except SolveError:
        with pytest.raises(SolveError, match="null_share"):
            null_space(Spectrum.of(scale * covariance), 1.0, share)
        return
    other = null_space(Spectrum.of(scale * covariance), 1.0, share)
    assert torch.allclose(one @ one.T, other @ other.T, atol=1e-6)
    held = torch.trace(one.T @ covariance @ one) / torch.trace(covariance)
    assert float(held) <= share + 1e-9


def test_rows_are_columns_the_bare_ones_first(made: Editable) -> None:
    edits = counterfactuals(made.world, 2, seed=1)
    config = MEMITConfig(
        template="plain", keys="rows", layers=(0, 1), contexts=CONTEXTS[:2], clamp=2.0
    )
    spec = ModelSpec.detect(made.model)
    requests = Rewriter(spec, made.tokenizer, config).requests(edits, CONTEXTS[:2])
    rows, origins = each_row(requests)
    assert origins == [0, 1, 0, 1, 0, 1]
    assert [row.prompts for row in rows[:2]] == [request.prompts[:1] for request in requests]
    options = Options(corpus=Corpus("text", made.texts[:200]))
    patch = MEMIT(config).compute(made.model, made.tokenizer, edits, options=options)
    for change in patch.changes.values():
        assert change.own_keys().shape[1] == 6  # type: ignore[union-attr]
        assert sorted(change.edit_norms()) == [0, 1]


def test_rome_adds_one_vector_to_the_output_of_every_row(made: Editable, tmp_path: Path) -> None:
    edits = counterfactuals(made.world, 1, seed=1)
    config = ROMEConfig(
        template="plain", keys="rows", layers=(1,), contexts=CONTEXTS[:2], clamp=3.0
    )
    spec = ModelSpec.detect(made.model)
    rows: list[Request] = each_row(
        Rewriter(spec, made.tokenizer, config).requests(edits, CONTEXTS[:2])
    )[0]
    before = read_outputs(spec, 1, "ffn", rows)
    options = Options(corpus=Corpus("text", made.texts[:200]), cache=tmp_path)
    patch = ROME(config).compute(made.model, made.tokenizer, edits, options=options)
    with applied(made.model, patch):
        added = read_outputs(spec, 1, "ffn", rows) - before
    assert float(added.norm(dim=0).min()) > 0.1
    assert float((added - added.mean(1, keepdim=True)).norm() / added.norm()) < 0.05


def test_a_value_that_is_not_reached_gets_a_longer_limit(
    editable: Callable[[Family], Editable], tmp_path: Path
) -> None:
    made = editable("llama")
    edits = counterfactuals(made.world, 2, seed=1)
    options = Options(corpus=Corpus("text", made.texts[:200]), cache=tmp_path)
    found = []
    for widen in (0, 4):
        config = MEMITConfig(
            template="plain", layers=(0, 1), contexts=(), clamp=0.1, lr=0.1, widen=widen
        )
        patch = MEMIT(config).compute(made.model, made.tokenizer, edits, options=options)
        found.append([edit.probability or 0.0 for edit in patch.header.editing.edits])
    (reached, short), (same, longer) = found
    assert short < 0.5 < reached
    assert same == reached  # only the one that was not reached is tried again
    assert longer > short + 0.05
