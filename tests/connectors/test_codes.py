"""Connectors with a code: the generic properties, choosing, straight-through, divergence, usage."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import (
    CHECKS,
    TABLE_PAIRS,
    TINY,
    TINY_OBLONG,
    VOCABULARY,
    Check,
    Options,
    build,
    check_declarations,
    check_flops,
    check_gradients,
    check_parameter_count,
    embedding,
    random_features,
)
from scipy.spatial.distance import cdist
from scipy.stats import entropy
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modalign.connectors import codes
from modalign.connectors.autoencoder import Autoencoder, Reconstruction
from modalign.connectors.base import Connector, ConnectorError, Widths
from modalign.connectors.codes import (
    CodeConnector,
    DiscreteCode,
    GaussianCode,
    dead_rate,
    nearest,
    perplexity,
    straight_through,
)
from modalign.connectors.perceivers.variational import Variational
from modalign.connectors.perceivers.vocabulary_codes import VocabularyCodes, allowed_ids, words_of
from modalign.connectors.perceivers.vq_codes import VqCodes
from modalign.training.objectives import term
from modalign.training.terms.codes import code_distance, latent_nats, rebuilding_error

ALL: tuple[type[CodeConnector], ...] = (VqCodes, VocabularyCodes, Variational)
DISCRETE = (VqCodes, VocabularyCodes)
SEQUENCE = Widths(64, 96, 36, None, num_layers=4, num_heads=4)
SMALL: Options = {"window": 5, "hidden": 24}
CORE: Options = {"num_tokens": 5, "width": 32, "layers": 1, "heads": 4, "ffn": 64}
MORE_OPTIONS: list[tuple[type[Connector], Options]] = [
    (VqCodes, SMALL | {"num_codes": 7, "code_width": 3}),
    (VocabularyCodes, SMALL | {"words": "all"}),
    (Variational, CORE | {"code_width": 3, "beta": 0.5, "free_bits": 0.1}),
]
Given = tuple[Tensor, Tensor, tuple[int, int]]


def matched(cls: type[CodeConnector], seed: int = 0) -> Any:
    return build(cls, TINY, cls.options_for("matched", TINY), seed)


def features(batch: int, seed: int = 1) -> Given:
    values = random_features(TINY, batch, seed)
    return values, torch.ones(values.shape[:2], dtype=torch.bool), (6, 6)


# ---------------------------------------------------------------------- generic properties


class VqOnGrid(VqCodes):
    """The same; on a grid, windows are squares, so that an item has no length to be trimmed to."""

    needs_grid = True


class WordsOnGrid(VocabularyCodes):
    """Likewise."""

    needs_grid = True


def applies(check: Check, cls: type[Connector]) -> bool:
    """A codebook learns from its own term alone: see below. The classes above are no modules' own."""
    learns = check is not check_gradients or not issubclass(cls, VqCodes)
    return learns and not (check is check_declarations and cls.needs_grid)


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize(
    ("cls", "widths"),
    [
        *((cls, SEQUENCE) for cls in ALL),
        *((cls, widths) for cls in (VqOnGrid, WordsOnGrid) for widths in (TINY, TINY_OBLONG)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_matched_has_the_property(check: Check, cls: type[Connector], widths: Widths) -> None:
    if applies(check, cls):
        with sdpa_kernel(SDPBackend.MATH):
            check(cls, widths, cls.options_for("matched", widths))


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize(("cls", "options"), MORE_OPTIONS)
def test_other_options_have_the_property(
    check: Check, cls: type[Connector], options: Options
) -> None:
    if applies(check, cls):
        with sdpa_kernel(SDPBackend.MATH):
            check(cls, SEQUENCE, options)


@pytest.mark.parametrize("widths", TABLE_PAIRS)
@pytest.mark.parametrize("variant", ["published", "matched"])
@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.name)
def test_formula_counts_the_module(cls: type[Connector], variant: str, widths: Widths) -> None:
    check_parameter_count(cls, widths, cls.options_for(variant, widths))  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.name)
def test_published_flops(cls: type[Connector]) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        check_flops(cls, TINY, cls.options_for("published", TINY))


def test_sizes() -> None:
    clip, siglip, _ = TABLE_PAIRS
    options = VqCodes.options_for("published", clip)
    assert options == {"window": 1, "hidden": 1024, "num_codes": 8192, "code_width": 32}
    for cls in DISCRETE:
        with torch.device("meta"):
            sizes = [
                cls(pair, **cls.options_for(variant, pair)).num_tokens(pair.num_features)  # type: ignore[arg-type]
                for variant in ("matched", "published")
                for pair in (clip, siglip, SEQUENCE)
            ]
        assert sizes == [144, 49, 9, 576, 196, 36]


@pytest.mark.parametrize("cls", DISCRETE, ids=lambda c: c.name)
def test_windows_are_squares_on_a_grid_and_runs_without_one(cls: type[CodeConnector]) -> None:
    connector = matched(cls)
    places = torch.arange(36.0).view(1, 36, 1).expand(-1, -1, 64)
    everything = torch.ones(1, 36, dtype=torch.bool)
    folded, _ = connector.encoder.fold(places, everything, (6, 6))
    assert folded[0, 0, :, 0].tolist() == [0, 1, 6, 7]
    assert folded[0, 8, :, 0].tolist() == [28, 29, 34, 35]
    folded, _ = connector.encoder.fold(places, everything, None)
    assert folded[0, 8, :, 0].tolist() == [32, 33, 34, 35]
    for window, words in ((3, "square"), (16, "divide")):
        with pytest.raises(ConnectorError, match=words):
            cls(TINY, window=window)  # type: ignore[call-arg]


@pytest.mark.parametrize("cls", DISCRETE, ids=lambda c: c.name)
def test_a_partly_padded_item_has_as_many_codes_as_announced(cls: type[CodeConnector]) -> None:
    connector = build(cls, SEQUENCE, cls.options_for("matched", SEQUENCE))
    lengths = torch.tensor([36, 17, 1, 0])
    mask = torch.arange(36) < lengths.unsqueeze(1)
    ids = connector.codes(random_features(SEQUENCE, 4), mask)
    assert [int((row >= 0).sum()) for row in ids] == [connector.num_tokens(int(n)) for n in lengths]
    assert (ids[1, :5] >= 0).all()


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.name)
def test_only_the_training_forward_leaves_a_code_and_once(cls: type[CodeConnector]) -> None:
    connector = matched(cls)
    connector(*features(2))
    assert connector.take_code() is None
    connector.train()
    with torch.no_grad():
        connector(*features(2))
    assert connector.take_code() is None
    connector(*features(2))
    copied = copy.deepcopy(connector)  # a graph under way cannot be copied, and need not be
    assert copied.take_code() is None
    assert len(connector.take_code().values) == 2
    assert connector.take_code() is None


# ---------------------------------------------------------------------- choosing


@settings(max_examples=40, deadline=None)
@given(
    K=st.integers(1, 40),
    width=st.integers(2, 6),
    chunk=st.integers(1, 41),
    seed=st.integers(0, 10_000),
)
def test_nearest_is_the_smallest_cosine_distance(K: int, width: int, chunk: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(3, 4, width, generator=generator)
    vectors = torch.randn(K, width, generator=generator)
    allowed = torch.rand(K, generator=generator) < 0.5
    allowed[seed % K] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codes, "CHUNK", chunk)
        everything, some = nearest(inputs, vectors), nearest(inputs, vectors, allowed)
    distances = cdist(inputs.flatten(0, 1).double(), vectors.double(), "cosine")
    assert everything.flatten().tolist() == distances.argmin(1).tolist()
    distances[:, ~allowed.numpy()] = 9
    assert some.flatten().tolist() == distances.argmin(1).tolist()


def test_the_lowest_of_equals_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = torch.tensor([[0.0, 1.0], [3.0, 0.0], [3.0, 0.0], [3.0, 0.0]])
    for chunk in (1, 2, 3, 4):
        monkeypatch.setattr(codes, "CHUNK", chunk)
        assert nearest(torch.tensor([[1.0, 0.1]]), vectors).tolist() == [1]


def test_half_precision_chooses_as_float32_does() -> None:
    torch.manual_seed(0)
    vectors = nn.functional.normalize(torch.randn(4096, 8), dim=-1)
    inputs = nn.functional.normalize(torch.randn(64, 8), dim=-1)
    expected = nearest(inputs, vectors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest(inputs, vectors), expected)
    # The check has teeth: likenesses in half precision choose others.
    halved = (inputs.bfloat16() @ vectors.bfloat16().T).argmax(-1)
    assert (halved != expected).any()


def test_under_autocast_codes_are_nearest_in_float32() -> None:
    """The encoder runs in half precision; what it gives is compared in float32."""
    connector = matched(VqCodes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        code = connector.encoder(*features(3))
    assert code.inputs.dtype == torch.float32
    assert torch.equal(code.ids, nearest(code.inputs, connector.encoder.codebook))


def test_straight_through_is_the_identity_to_the_gradient() -> None:
    """The gradient at the inputs is the loss's at the chosen vectors, by finite differences."""
    torch.manual_seed(0)
    inputs = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    chosen = torch.randn(3, 4, dtype=torch.float64)

    def loss(values: Tensor) -> Tensor:
        return (values.sin() * values.square()).sum()

    values = straight_through(inputs, chosen)
    assert torch.equal(values, chosen)
    loss(values).backward()
    step = 1e-6
    for place in range(chosen.numel()):
        moved = torch.zeros_like(chosen).flatten()
        moved[place] = step
        rise = loss(chosen + moved.view_as(chosen)) - loss(chosen - moved.view_as(chosen))
        assert inputs.grad is not None
        assert float(inputs.grad.flatten()[place]) == pytest.approx(
            float(rise) / (2 * step), abs=1e-6
        )


# ---------------------------------------------------------------------- usage


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=60).filter(any))
def test_perplexity_and_dead_rate(counts: list[int]) -> None:
    assert perplexity(torch.tensor(counts)) == pytest.approx(
        float(torch.tensor(entropy(counts)).exp())
    )
    assert dead_rate(torch.tensor(counts)) == pytest.approx(counts.count(0) / len(counts))


def test_perplexity_of_even_and_single_use() -> None:
    assert perplexity(torch.full((16,), 3)) == pytest.approx(16)
    assert perplexity(torch.tensor([0, 9, 0])) == pytest.approx(1)


@pytest.mark.parametrize("cls", DISCRETE, ids=lambda c: c.name)
def test_diagnosis_is_a_plain_count(cls: type[CodeConnector]) -> None:
    connector = matched(cls)
    batches = [features(3, seed=1), features(2, seed=2)]
    found = connector.diagnose(batches)
    ids = [int(i) for batch in batches for i in connector.codes(*batch).flatten()]
    there = len(connector.encoder.codebook) if cls is VqCodes else VOCABULARY
    counts = [ids.count(number) for number in range(there)]
    assert found == {
        "code perplexity": pytest.approx(float(torch.tensor(entropy(counts)).exp())),
        "dead-code rate": pytest.approx(counts.count(0) / there),
        "codes": there,
        "places counted": 5 * 9,
    }


# ---------------------------------------------------------------------- VQ codes


def test_rows_of_the_codes_are_the_tokens() -> None:
    connector = matched(VqCodes)
    with torch.no_grad():
        connector.corrections.normal_()
        tokens, _ = connector(*features(3))
    rows = connector.vocabulary_rows()
    assert rows.shape == (512, 96)
    torch.testing.assert_close(rows[connector.codes(*features(3))], tokens)


def test_every_part_but_the_codebook_learns_from_the_language_model() -> None:
    connector = matched(VqCodes).train()
    tokens, _ = connector(*features(3))
    (tokens * torch.randn(tokens.shape)).sum().backward()
    without = [n for n, p in connector.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == ["encoder.codebook"]
    used = torch.zeros(512, dtype=torch.bool)
    used[connector.codes(*features(3))] = True
    assert torch.equal(connector.corrections.grad.any(1), used)


def distance(code: DiscreteCode) -> float:
    return float((code.inputs - code.vectors).detach().square().sum(-1).mean())


def test_codebook_term_moves_codes_to_inputs() -> None:
    connector = matched(VqCodes).train()
    code = connector.encoder(*features(4))
    before, codebook = distance(code), connector.encoder.codebook
    loss = code_distance(code.inputs.detach(), code.vectors, code.mask)
    assert float(loss.detach().mean()) == pytest.approx(before, rel=1e-5)
    loss.sum().backward()
    assert [n for n, p in connector.named_parameters() if p.grad is not None] == [
        "encoder.codebook"
    ]
    used = torch.zeros(len(codebook), dtype=torch.bool)
    used[code.ids] = True
    assert torch.equal(codebook.grad.any(1), used)
    with torch.no_grad():
        codebook -= 1e-4 * codebook.grad
        after = connector.encoder(*features(4))
    assert distance(after) < before


def test_commitment_term_moves_inputs_to_codes() -> None:
    connector = matched(VqCodes).train()
    code = connector.encoder(*features(4))
    before = distance(code)
    loss = code_distance(code.inputs, code.vectors.detach(), code.mask)
    assert float(loss.detach().mean()) == pytest.approx(before, rel=1e-5)
    loss.sum().backward()
    assert connector.encoder.codebook.grad is None
    with torch.no_grad():
        for parameter in connector.encoder.parameters():
            if parameter.grad is not None:
                parameter -= 1e-4 * parameter.grad
        after = connector.encoder(*features(4))
    assert distance(after) < before


def test_weights_of_the_terms() -> None:
    terms = {"reconstruction": 1.0, "codebook": 1.0, "commitment": 0.25}
    assert VqCodes.stage_one_terms() == terms
    assert VocabularyCodes.stage_one_terms() == {"reconstruction": 1.0}
    assert VocabularyCodes.model_terms() == {}
    assert Variational.stage_one_terms(beta=0.5) == {"reconstruction": 1.0, "kl_latent": 0.5}
    assert Variational.model_terms() == {"kl_latent": 1e-3}


def alike(batch: int) -> Given:
    """Media that differ little, as an encoder's features of images do."""
    values, mask, grid = features(batch, seed=2)
    return random_features(TINY, 1) + 0.1 * values, mask, grid


@pytest.mark.parametrize("count", [3, 80])
def test_the_codebook_starts_among_the_inputs(count: int) -> None:
    connector = matched(VqCodes)
    before = connector.diagnose([alike(80)])
    torch.manual_seed(0)
    connector.build_stage_one(*alike(count))
    code = connector.encoder(*alike(count))
    inputs, codebook = code.inputs.flatten(0, 1), connector.encoder.codebook
    assert float((codebook[:, None] - inputs[None]).norm(dim=-1).min(1).values.max().detach()) < 0.1
    after = connector.diagnose([alike(80)])
    assert before["code perplexity"] < 10
    assert after["code perplexity"] > (15 if count == 3 else 300)


# ---------------------------------------------------------------------- words


def test_tokens_are_the_words_embeddings_exactly() -> None:
    connector = matched(VocabularyCodes).train()
    rows = connector.encoder.embedding
    tokens, _ = connector(*features(3))
    code = connector.take_code()
    assert torch.equal(tokens, rows(code.ids))
    # The gradient is that of the inputs at the rows' length.
    code.inputs.retain_grad()
    weights = torch.randn(tokens.shape)
    (tokens * weights).sum().backward()
    length = rows(code.ids).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(code.inputs.grad, weights * length)
    assert rows.weight.grad is None


def test_the_embedding_is_seen_not_owned() -> None:
    connector = matched(VocabularyCodes)
    assert not [n for n, _ in connector.named_parameters() if "embedding" in n or "seen" in n]
    names = [f"encoder.{part}.{kind}" for part in ("enter", "out") for kind in ("weight", "bias")]
    assert set(connector.state_dict()) == {"encoder.allowed", *names}
    with pytest.raises(ConnectorError, match="attach_embeddings"):
        VocabularyCodes(TINY, window=4)(*features(1))


def test_words_start_spread_as_the_vocabulary_is() -> None:
    connector = matched(VocabularyCodes)
    before = connector.diagnose([alike(60)])["code perplexity"]
    connector.build_stage_one(*alike(60))
    assert before < 10
    assert connector.diagnose([alike(60)])["code perplexity"] > 1.5 * before
    found = connector.encoder.read(*alike(60))[0].flatten(0, 1)
    words = nn.functional.normalize(connector.encoder.embedding.weight, dim=-1)
    torch.testing.assert_close(found.mean(0), words.mean(0), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.std(0), words.std(0), atol=1e-4, rtol=1e-3)


def test_only_allowed_words_are_chosen(tokenizer: Any) -> None:
    for words in ("all", "printable", "whole"):
        options = VocabularyCodes.options_for("matched", TINY) | {"words": words}
        torch.manual_seed(0)
        connector = VocabularyCodes(TINY, **options).eval()
        connector.attach_embeddings(embedding(TINY, len(tokenizer) + 6))  # padded
        connector.attach_tokenizer(tokenizer)
        allowed = allowed_ids(tokenizer, words, len(tokenizer) + 6)
        assert connector.choices.tolist() == allowed
        connector.build_stage_one(*features(60))
        chosen = connector.codes(*features(60))
        assert set(chosen.flatten().tolist()) <= set(allowed)
        special = {tokenizer.convert_tokens_to_ids("<image>"), *tokenizer.all_special_ids}
        assert not special & set(allowed)
        assert max(allowed) < len(tokenizer)
        texts = [word for row in words_of(chosen, tokenizer) for word in row]
        assert len(texts) == 60 * 9
        if words != "all":
            assert all(text.isprintable() and text for text in texts)
        if words == "whole":
            assert {"\u0120left", "\u0120digit"} <= set(tokenizer.convert_ids_to_tokens(allowed))
            assert {p[0] for p in tokenizer.convert_ids_to_tokens(allowed)} == {"\u0120"}
            assert all(text.isalpha() for text in texts)


def test_words_that_nothing_is_left_of_are_refused(tokenizer: Any) -> None:
    with pytest.raises(ConnectorError, match="not 'long'"):
        VocabularyCodes(TINY, words="long")  # type: ignore[arg-type]
    connector = VocabularyCodes(TINY, words="whole")
    connector.attach_embeddings(embedding(TINY, 20))
    with pytest.raises(ConnectorError, match="leaves 0 of"):
        connector.attach_tokenizer(tokenizer)


# ---------------------------------------------------------------------- the variational perceiver


@pytest.mark.parametrize("free", [0.0, 0.3])
def test_divergence_is_torchs(free: float) -> None:
    torch.manual_seed(0)
    mean, log_variance = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    everywhere = torch.ones(3, 5, dtype=torch.bool)
    normal = Normal(mean, (log_variance / 2).exp())
    nats = kl_divergence(normal, Normal(0.0, 1.0)).clamp(min=free)
    expected = nats.sum(-1).mean(-1)
    torch.testing.assert_close(latent_nats(mean, log_variance, everywhere, free), expected)


def test_draws_have_the_mean_and_variance_and_evaluation_draws_nothing() -> None:
    connector = matched(Variational).train()
    code = connector.encoder(*features(2))
    assert isinstance(code, GaussianCode)
    torch.manual_seed(0)
    draws = torch.stack([connector.encoder(*features(2)).values.detach() for _ in range(600)])
    std = (code.log_variance.detach() / 2).exp()
    errors = (draws.mean(0) - code.mean.detach()) / std * 600**0.5  # standard normal
    assert float(errors.std()) == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(draws.std(0) / std, torch.ones_like(std), atol=0.15, rtol=0)
    connector.eval()
    first, second = connector.encoder(*features(2)), connector.encoder(*features(2))
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.values, first.mean)


def test_diagnosis_of_distributions() -> None:
    connector = matched(Variational)
    batches = [features(3, seed=1), features(4, seed=2)]
    with torch.no_grad():
        found = [connector.encoder(*batch) for batch in batches]
        nats = torch.cat([latent_nats(code.mean, code.log_variance, code.mask) for code in found])
        means = torch.cat([code.mean for code in found])
    active = [bool(unit.var(correction=0) > 0.01) for unit in means.flatten(1).T]
    assert connector.diagnose(batches) == {
        "nats per token": pytest.approx(float(nats.mean()), rel=1e-5),
        "active units": pytest.approx(sum(active) / len(active)),
        "media counted": 7,
    }


# ---------------------------------------------------------------------- stage one


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.name)
def test_stage_one_trains_the_encoder_alone(cls: type[CodeConnector]) -> None:
    connector = matched(cls).train()
    stage = connector.build_stage_one(*features(4)).train()
    assert isinstance(stage, Autoencoder)
    out = stage(*features(4))
    batch = SimpleNamespace(num_media=4.0)
    values = [term(name)(out, batch, {}) for name in cls.stage_one_terms()]
    torch.stack(values).sum().backward()
    missing = [n for n, p in stage.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing
    own = {id(p) for p in stage.parameters()}
    outside = {n.split(".")[0] for n, p in connector.named_parameters() if id(p) not in own}
    assert outside <= {"project", "corrections"}


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.name)
@torch.no_grad()
def test_stage_one_does_not_see_padding(cls: type[CodeConnector]) -> None:
    connector = build(cls, SEQUENCE, cls.options_for("matched", SEQUENCE))
    stage = connector.build_stage_one(*features(4)[:2]).eval()
    values = random_features(SEQUENCE, 3)
    mask = torch.arange(36) < torch.tensor([36, 20, 0]).unsqueeze(1)
    error = []
    for filler in (float("nan"), 7.0):
        out: Reconstruction = stage(values.masked_fill(~mask.unsqueeze(-1), filler), mask)
        error.append(rebuilding_error(out.rebuilt, out.target, out.mask))
    assert torch.equal(*error)
    assert error[0][2] == 0
    cut = stage(values[1:2, :20], mask[1:2, :20])
    alone = rebuilding_error(cut.rebuilt, cut.target, cut.mask)
    torch.testing.assert_close(alone[0], error[0][1])


def test_queries_rebuild_no_more_than_they_were_made_for() -> None:
    stage = matched(Variational).build_stage_one(*features(4))
    with pytest.raises(ConnectorError, match="36 features"):
        stage(torch.zeros(1, 37, 64), torch.ones(1, 37, dtype=torch.bool))


def test_reconstruction_error_equals_a_loop() -> None:
    torch.manual_seed(0)
    rebuilt, target = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    mask = torch.tensor([[True] * 4, [True, False, True, False]])
    expected = []
    for item in range(2):
        there = [n for n in range(4) if mask[item, n]]
        squares = [
            float((rebuilt[item, n, k] - target[item, n, k]) ** 2) for n in there for k in range(3)
        ]
        expected.append(sum(squares) / len(squares))
    assert rebuilding_error(rebuilt, target, mask).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.name)
def test_stage_one_learns_to_rebuild(cls: type[CodeConnector]) -> None:
    """Signals made of a few kinds of windows are told apart by their codes."""
    torch.manual_seed(0)
    kinds = random_features(Widths(64, 96, 4, None), 6)
    chosen = torch.randint(6, (16, 9))
    values = kinds[chosen].flatten(1, 2)  # (16, 36, 64): nine windows of four features
    everything = torch.ones(16, 36, dtype=torch.bool)
    connector = build(cls, SEQUENCE, cls.options_for("matched", SEQUENCE)).train()
    stage = connector.build_stage_one(values, everything).train()
    optimizer = torch.optim.AdamW(stage.parameters(), 3e-3, weight_decay=0)
    errors = []
    for _ in range(80):
        out = stage(values, everything)
        error = rebuilding_error(out.rebuilt, out.target, out.mask).mean()
        errors.append(float(error.detach()))
        (code,) = out.codes
        if isinstance(code, DiscreteCode):
            error = error + code_distance(code.inputs.detach(), code.vectors, code.mask).mean()
            error = (
                error + 0.25 * code_distance(code.inputs, code.vectors.detach(), code.mask).mean()
            )
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    limit = 0.95 if cls is Variational else 0.3  # queries must find out first where to look
    assert errors[-1] < limit < errors[0]


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.name)
def test_flops_of_stage_one(cls: type[CodeConnector]) -> None:
    stage = matched(cls).build_stage_one(*features(4)).eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        stage(*features(1))
    choosing = 0.0
    encoder = stage.encoder
    if isinstance(encoder, nn.Module) and hasattr(encoder, "codebook"):
        choosing = 2.0 * 9 * encoder.codebook.numel()
    elif hasattr(encoder, "embedding"):
        choosing = 2.0 * 9 * encoder.embedding.weight.numel()
    counted = counter.get_total_flops()
    assert stage.flops(36) + choosing == pytest.approx(counted, rel=0.02)
