"""Properties every connector must have, written once; each check takes (class, widths, options).

In-layer connectors are checked on ``encode``, the part of their work done once per item; what their
hooks do is theirs to test.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import torch
from formulas import FORMULAS
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from modalign.connectors.base import Connector, InLayerConnector, PrefixConnector, Widths

Options = dict[str, Any]
M = TypeVar("M", bound=nn.Module)
Check = Callable[[type[Connector], Widths, Options], None]

#: The model pairs of the reference parameter table: encoder -> language model.
CLIP_L_TO_7B = Widths(1024, 4096, 576, (24, 24), num_layers=32, num_heads=32)
SIGLIP_B_TO_HALF_B = Widths(768, 896, 196, (14, 14), num_layers=24, num_heads=14)
SIGLIP_B_TO_135M = Widths(768, 576, 196, (14, 14), num_layers=30, num_heads=9)
TABLE_PAIRS = (CLIP_L_TO_7B, SIGLIP_B_TO_HALF_B, SIGLIP_B_TO_135M)

#: The size of the demo: runs in milliseconds.
TINY = Widths(64, 96, 36, (6, 6), num_layers=4, num_heads=4)
#: Rows of the language model's embedding that every connector is shown.
VOCABULARY = 50
#: A grid that is not square, with an even number of rows and columns.
TINY_OBLONG = Widths(32, 48, 24, (4, 6), num_layers=4, num_heads=4)


def build(cls: type[Connector], widths: Widths, options: Options, seed: int = 0) -> Connector:
    """The connector in evaluation mode, initialised under ``seed``, before a language model."""
    torch.manual_seed(seed)
    connector = cls(widths, **options).eval()
    connector.attach_embeddings(embedding(widths))
    return connector


def embedding(widths: Widths, rows: int = VOCABULARY) -> nn.Embedding:
    """A language model's input embedding, always the same, of rows of unequal length."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(rows, widths.hidden_size, generator=generator)
    return nn.Embedding.from_pretrained(weight * torch.linspace(0.5, 2, rows)[:, None])


def perturbed(connector: M, scale: float = 0.1) -> M:
    """The module as if trained a little: biases and gates that start at zero hide leaks."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return connector


def random_features(widths: Widths, batch: int, seed: int = 1) -> Tensor:
    """(batch, N, d) standard normal features."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, widths.num_features, widths.feature_size, generator=generator)


def all_true(features: Tensor) -> Tensor:
    """(B, N) mask of full items."""
    return torch.ones(features.shape[:2], dtype=torch.bool)


def run(
    connector: Connector, features: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Tokens (or memory) and mask; the grid is the widths' own when the number of features fits."""
    mask = all_true(features) if mask is None else mask
    widths = connector.widths
    grid = widths.grid if features.shape[1] == widths.num_features else None
    if isinstance(connector, InLayerConnector):
        return connector.encode(features, mask, grid)
    assert isinstance(connector, PrefixConnector)
    return connector(features, mask, grid)


def check_shapes_and_masks(cls: type[Connector], widths: Widths, options: Options) -> None:
    connector = build(cls, widths, options)
    tokens, mask = run(connector, random_features(widths, 3))
    assert tokens.ndim == 3
    assert tokens.shape[0] == 3
    assert mask.shape == tokens.shape[:2]
    assert mask.dtype == torch.bool
    assert mask.all(), "full items give tokens that are all real"
    assert tokens.isfinite().all()
    if isinstance(connector, PrefixConnector):
        assert tokens.shape[2] == widths.hidden_size


def check_num_tokens(cls: type[Connector], widths: Widths, options: Options) -> None:
    connector = build(cls, widths, options)
    announced = connector.num_tokens(widths.num_features)
    if isinstance(connector, InLayerConnector):
        assert announced == 0
    else:
        assert run(connector, random_features(widths, 1))[0].shape[1] == announced


def check_gradients(cls: type[Connector], widths: Widths, options: Options) -> None:
    """Every parameter gets a gradient (prefix connectors; in-layer ones need their layers)."""
    connector = build(cls, widths, options)
    if isinstance(connector, InLayerConnector):
        return
    tokens, _ = run(connector.train(), random_features(widths, 3))
    # Random weights: a plain sum is constant after a layer norm and would hide its gradient.
    weights = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(2))
    (tokens * weights).sum().backward()
    without = [
        name
        for name, parameter in connector.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert not without, f"no gradient reaches {without}"


def check_parameter_count(cls: type[Connector], widths: Widths, options: Options) -> None:
    """What is counted is what the description's formula says; counting draws no random number."""
    state = torch.get_rng_state()
    counted = cls.parameter_count(widths, **options)
    assert counted == FORMULAS[cls.name](widths, asdict(cls.options_type(**options)))
    assert torch.equal(torch.get_rng_state(), state)


def check_flops(cls: type[Connector], widths: Widths, options: Options) -> None:
    """The formula agrees within 2 % with the matrix products, convolutions and attentions run."""
    connector = build(cls, widths, options)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(connector, random_features(widths, 1))
    counted = counter.get_total_flops()
    formula = connector.flops(widths.num_features)
    assert abs(formula - counted) <= 0.02 * counted, (formula, counted)


def check_batch_of_one(cls: type[Connector], widths: Widths, options: Options) -> None:
    """An item alone gives what it gives among batch mates."""
    connector = build(cls, widths, options)
    features = random_features(widths, 3)
    with torch.no_grad():
        together, _ = run(connector, features)
        for item in range(3):
            alone, _ = run(connector, features[item : item + 1])
            torch.testing.assert_close(alone[0], together[item], atol=1e-5, rtol=1e-4)


def check_ragged_batch(cls: type[Connector], widths: Widths, options: Options) -> None:
    """Padding never leaks: not its values (NaN here), not its length, not the batch mates."""
    connector = perturbed(build(cls, widths, options))
    features = random_features(widths, 4)
    N = widths.num_features
    lengths = (N, max(1, N // 2), 1, 0)  # the last item has no feature at all
    mask = torch.arange(N) < torch.tensor(lengths).unsqueeze(1)
    poisoned = features.masked_fill(~mask.unsqueeze(-1), float("nan"))
    with torch.no_grad():
        tokens, token_mask = run(connector, poisoned, mask)
        assert tokens.isfinite().all(), "padding must not poison even the masked tokens"
        for item, length in enumerate(lengths[:3]):
            own, own_mask = run(connector, features[item : item + 1], mask[item : item + 1])
            assert torch.equal(own_mask[0], token_mask[item])
            assert own_mask.any(), "an item with a feature gives a token"
            kept = own_mask[0]
            torch.testing.assert_close(tokens[item, kept], own[0, kept], atol=1e-5, rtol=1e-4)
            if not cls.needs_grid:
                trimmed, trimmed_mask = run(connector, features[item : item + 1, :length])
                torch.testing.assert_close(
                    tokens[item, kept], trimmed[0, trimmed_mask[0]], atol=1e-5, rtol=1e-4
                )


def check_determinism(cls: type[Connector], widths: Widths, options: Options) -> None:
    first, second = build(cls, widths, options, seed=7), build(cls, widths, options, seed=7)
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    features = random_features(widths, 2)
    with torch.no_grad():
        assert torch.equal(run(first, features)[0], run(second, features)[0])


def check_state_round_trip(cls: type[Connector], widths: Widths, options: Options) -> None:
    """What is not a parameter or a persistent buffer does not change the output."""
    first, second = build(cls, widths, options, seed=1), build(cls, widths, options, seed=2)
    second.load_state_dict(first.state_dict())
    features = random_features(widths, 2)
    with torch.no_grad():
        assert torch.equal(run(first, features)[0], run(second, features)[0])


def check_declarations(cls: type[Connector], widths: Widths, options: Options) -> None:
    """Options survive JSON; the class says about itself what comparisons print."""
    assert json.loads(json.dumps(options)) == options
    for attribute in ("name", "family", "group", "enters", "token_formula", "parameter_text"):
        assert getattr(cls, attribute), attribute
    assert cls.papers
    assert cls.__doc__
    assert cls.__module__.rsplit(".", 1)[-1] == cls.name.replace("-", "_")


CHECKS: tuple[Check, ...] = (
    check_shapes_and_masks,
    check_num_tokens,
    check_gradients,
    check_parameter_count,
    check_flops,
    check_batch_of_one,
    check_ragged_batch,
    check_determinism,
    check_state_round_trip,
    check_declarations,
)
