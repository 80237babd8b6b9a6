"""The server: its weights, and one round's step from the clients' answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from modalign.errors import ModalignError, UsageError
from modalign.federation import lora, seeds
from modalign.federation.lora import PRODUCT, Aggregation
from modalign.federation.privacy import noisy_mean
from modalign.federation.rules import Tensors, Update, server_rule


@dataclass
class Server:
    """The server's state between rounds.

    Attributes:
        tensors: what clients train, in the model's dtype.
        base: path -> what was added to the frozen weight of a LoRA module, before its scaling.
        moments: the rule's state.
        sent: tensors that clients download besides ``tensors``.
    """

    tensors: Tensors
    base: Tensors = field(default_factory=dict)
    moments: Tensors = field(default_factory=dict)
    sent: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class Noise:
    """A round's privacy: see :mod:`modalign.federation.privacy`."""

    clip: float
    multiplier: float
    expected: float


@dataclass(frozen=True)
class Trained:
    """A client's answer: its trained tensors and its number of records."""

    client: str
    tensors: Tensors
    records: int


@dataclass(frozen=True)
class Outcome:
    """A step: the server after it, the relative error of its LoRA products, and clients left out."""

    server: Server
    lora_error: float
    left_out: list[str]


def step(
    server: Server,
    answers: Sequence[Trained],
    rule: str,
    aggregation: Aggregation,
    rank: int,
    seed: int,
    noise: Noise | None = None,
) -> Outcome:
    """Take a round's step.

    Args:
        server: before the step; not changed.
        answers: of the clients, in their order.
        rule: its name and options.
        aggregation: of LoRA.
        rank: of the server's LoRA.
        seed: of noise and of new pairs.
        noise: for differential privacy.

    Raises:
        ModalignError: a client sent a number that is not finite, and the rule is not robust.
    """
    found = server_rule.entry(rule)
    answers, left_out = _finite(answers, bool(found.facts.get("robust")), rule)
    naive = aggregation == "naive"
    before = (
        {n: t.double() for n, t in server.tensors.items()}
        if naive
        else lora.as_products(server.tensors)
    )
    afters = [
        {n: t.double() for n, t in each.tensors.items()}
        if naive
        else lora.as_products(each.tensors)
        for each in answers
    ]
    updates = [
        Update(each.client, {name: after[name] - before[name] for name in before}, each.records)
        for each, after in zip(answers, afters, strict=True)
    ]
    if noise is not None:
        updates = [noisy_mean(updates, before, noise.clip, noise.multiplier, noise.expected, seed)]
    change, moments = found.function(updates, server.moments)
    new = {name: before[name] + change[name] for name in before}
    if naive:
        tensors = {n: new[n].to(t.dtype) for n, t in server.tensors.items()}
        return Outcome(Server(tensors, server.base, moments), _naive_error(answers), left_out)
    shares = [each.records if found.options.get("weighted") else 1 for each in answers]
    sent = {}
    if aggregation == "stack":
        weights = [share / sum(shares) for share in shares]
        sent = lora.stacked([each.tensors for each in answers], weights)
    after, missed = _as_pairs(server, new, moments, aggregation, rank, sent, seed)
    return Outcome(after, missed, left_out)


def _finite(answers: Sequence[Trained], robust: bool, rule: str) -> tuple[list[Trained], list[str]]:
    """Leave out clients whose numbers are not finite, or refuse them."""
    odd = {
        each.client: name
        for each in answers
        for name, t in each.tensors.items()
        if not bool(torch.isfinite(t).all())
    }
    if odd and (not robust or len(odd) == len(answers)):
        client, name = next(iter(odd.items()))
        raise ModalignError(
            f"client {client!r} sent {name} with numbers that are not finite; {rule} would spread them to "
            "everyone: lower its learning rate or look at its records, or take a robust rule (median, "
            "trimmed_mean, krum), which leaves it out"
        )
    return [each for each in answers if each.client not in odd], list(odd)


def _as_pairs(
    server: Server,
    new: Tensors,
    moments: Tensors,
    aggregation: Aggregation,
    rank: int,
    sent: Tensors,
    seed: int,
) -> tuple[Server, float]:
    """Return the server with products turned back into pairs, and their relative error."""
    dtypes = {name: t.dtype for name, t in server.tensors.items()}
    tensors = {name: t.to(dtypes[name]) for name, t in new.items() if not name.endswith(PRODUCT)}
    base, reached = dict(server.base), {}
    for path in lora.pairs_of(list(server.tensors)):
        exact, a, b = new[path + PRODUCT], path + lora.A, path + lora.B
        if aggregation == "stack":
            tensors[a], tensors[b] = lora.fresh(
                exact.shape[0], exact.shape[1], rank, seeds.generator(seed, path)
            )
            rest = lora.product(sent, path)
        else:
            pair = lora.factors(exact, rank)
            tensors[a], tensors[b] = (t.to(dtypes[n]) for t, n in zip(pair, (a, b), strict=True))
            rest = exact - lora.product(tensors, path)
        reached[path + PRODUCT] = lora.product(tensors, path)
        if aggregation != "svd":
            base[path] = (base[path].double() + rest if path in base else rest).float()
            reached[path + PRODUCT] += rest.float().double()
    ordered = {name: tensors[name].contiguous() for name in server.tensors}
    return Server(ordered, base, moments, sent), lora.error(reached, new)


def _naive_error(answers: Sequence[Trained]) -> float:
    """Return the relative error of averaging A and B separately, compared with the mean of their products."""
    total = sum(each.records for each in answers)
    weights = [each.records / total for each in answers]
    exact: Tensors = {}
    apart: Tensors = {}
    for each, weight in zip(answers, weights, strict=True):
        for name, t in lora.as_products(each.tensors).items():
            exact[name] = exact.get(name, 0) + weight * t
        for name, t in each.tensors.items():
            apart[name] = apart.get(name, 0) + weight * t.double()
    return lora.error(lora.as_products(apart), exact)


def check_choice(rule: str, aggregation: Aggregation, private: bool) -> None:
    """Refuse combinations that cannot be computed, before anything trains.

    Raises:
        UsageError: the combination cannot be computed; the message says what to choose instead.
    """
    facts = server_rule.entry(rule).facts
    if private and facts.get("robust"):
        raise UsageError(
            f"{rule} looks at single updates, so noise on their mean would not protect them: take fedavg, "
            "fedavgm, fedadam, fedyogi or fedadagrad with privacy"
        )
    if aggregation == "stack" and (private or not facts.get("linear")):
        raise UsageError(
            f"lora: stack holds the clients' matrices as they are, which {'noise' if private else rule} would "
            "change: take svd or into_base, or fedavg without privacy"
        )
