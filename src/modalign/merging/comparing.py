"""Models beside each other on every domain: means, and paired differences of the saved merge from all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from modalign.merging.judging import Domain, Judged
from modalign.merging.results import Compared, Row
from modalign.numbers.bootstrap import Floats, Groups
from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import differences, resamples_for
from modalign.numbers.trainings import estimate_means, hierarchical_bootstrap

NATS = "nats per token"
MEAN = "mean"
Kind = Literal["base", "parent", "merge", "joint"]


@dataclass(frozen=True)
class Model:
    """A model that was judged.

    Attributes:
        name, kind: of its row.
        judged: by domain; those that it cannot read are missing.
        validation: mean loss on the validation data, of a candidate.
        tried: value that a search tried.
    """

    name: str
    kind: Kind
    judged: Mapping[str, Judged] = field(default_factory=dict)
    validation: float | None = None
    tried: float | None = None


def compare(
    models: Sequence[Model], domains: Mapping[str, Domain], chosen: str
) -> tuple[list[Row], list[Compared]]:
    """Return a row per model, and the differences of the chosen one, per domain and on the mean of all.

    Args:
        models: in order; all are fixed, so intervals are over records alone.
        domains: that they were judged on.
        chosen: name of the saved merge.
    """
    losses, right = _losses(models, domains), _right(models, domains)
    rows = [
        Row(
            name=model.name,
            kind=model.kind,
            chosen=model.name == chosen,
            validation=model.validation,
            tried=model.tried,
            losses={d: found[model.name] for d, found in losses.items() if model.name in found},
            accuracies={d: found[model.name] for d, found in right.items() if model.name in found},
        )
        for model in models
    ]
    compared = []
    for domain, (values, groups) in _tables(models, domains).items():
        if domain == MEAN:
            means = _means(values, groups)
            for row in rows:
                row.mean = means.get(row.name)
        if chosen in values and len(values) > 1:
            gains = {name: -value for name, value in values.items()}
            drawn = hierarchical_bootstrap(
                gains, groups=groups, resamples=resamples_for(len(gains)), fixed=tuple(gains)
            )
            pairs = [(chosen, name) for name in gains if name != chosen]
            compared.append(
                Compared(
                    domain=domain,
                    differences=differences(drawn, pairs, over="records", unit=NATS),
                )
            )
    return rows, compared


def _tables(
    models: Sequence[Model], domains: Mapping[str, Domain]
) -> dict[str, tuple[dict[str, Floats], Groups]]:
    """Return domain -> model -> (1, n) contributions to the loss, with groups; ``mean`` of all is last."""
    found: dict[str, tuple[dict[str, Floats], Groups]] = {}
    for name, domain in domains.items():
        values = {m.name: m.judged[name].nll[None] for m in models if name in m.judged}
        found[name] = (values, domain.groups)
    if len(domains) > 1:
        whole = sum(len(domain.samples) for domain in domains.values())
        scale = {n: whole / (len(domains) * len(d.samples)) for n, d in domains.items()}
        everywhere = [m for m in models if all(name in m.judged for name in domains)]
        joined = {
            m.name: np.concatenate([m.judged[n].nll * scale[n] for n in domains])[None]
            for m in everywhere
        }
        groups = [f"{n}:{group}" for n, d in domains.items() for group in d.groups or ()]
        found[MEAN] = (joined, groups)
    return found


def _losses(
    models: Sequence[Model], domains: Mapping[str, Domain]
) -> dict[str, dict[str, Estimate]]:
    tables = _tables(models, domains)
    return {name: _means(*tables[name]) for name in domains}


def _means(values: Mapping[str, Floats], groups: Groups) -> dict[str, Estimate]:
    return estimate_means(values, groups=groups, fixed=tuple(values), unit=NATS)


def _right(
    models: Sequence[Model], domains: Mapping[str, Domain]
) -> dict[str, dict[str, Estimate]]:
    """Return the share of right answers, of records."""
    found = {}
    for name, domain in domains.items():
        if not domain.text:
            values = {
                m.name: np.array(m.judged[name].correct, dtype=float)[None]
                for m in models
                if name in m.judged
            }
            found[name] = estimate_means(values, groups=domain.groups, fixed=tuple(values))
    return found
