"""What a closed-form edit can reach at best: a vector at the subject's last token, layer by layer.

Every method that writes into FFN weights ends in a vector added at the subject's last token at some
layer. Here that vector is optimised directly (MEMIT's value, arXiv 2210.07229, equation 16), with few
steps: where no vector makes the model say another answer, no edit will, whatever a trace says.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modalign.editing.engine.rewriting import Rewriter, Rewriting
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.engine.tokens import encode_target
from modalign.editing.engine.values import REACHED, Value, ValueSettings, optimise
from modalign.editing.layers.facts import Fact, KnownFact
from modalign.errors import DataError
from modalign.numbers.bootstrap import Floats
from modalign.progress import Progress

# MEMIT's on GPT-J, with fewer steps.
SETTINGS = ValueSettings(steps=12, lr=0.5, clamp=0.75, kl=0.0625, decay=0.5)
BATCH = 16  # facts optimised together


@dataclass(frozen=True)
class Reach:
    """How far vectors got, for n facts.

    Attributes:
        probability: of the other answer with the vector, (n, layers).
        others: the other answers.
    """

    probability: Floats
    others: tuple[str, ...]

    @property
    def reached(self) -> Floats:
        """1 where the other answer became likely, else 0, (n, layers)."""
        return (self.probability >= REACHED).astype(np.float64)


def other_answers(
    tokenizer: Any, probes: Sequence[KnownFact], facts: Sequence[Fact], seed: int = 0
) -> list[str]:
    """Another answer for each fact: the file's, else one of the same relation, else of any.

    Raises:
        DataError: all facts have one answer.
    """
    rng = random.Random(seed)
    same: dict[str, set[str]] = {}
    for fact in facts:
        same.setdefault(fact.relation, set()).add(fact.attribute)
    every = {fact.attribute for fact in facts}
    chosen = []
    for probe in probes:
        fact = probe.fact
        named = [{fact.other} if fact.other else set(), same.get(fact.relation, set()), every]
        pools = [sorted(_differing(tokenizer, probe, pool)) for pool in named]
        pool = next((each for each in pools if each), None)
        if pool is None:
            raise DataError(
                f"every fact has the answer {fact.attribute!r}: give facts with different answers, "
                "or a target for each"
            )
        chosen.append(rng.choice(pool))
    return chosen


def _differing(tokenizer: Any, probe: KnownFact, answers: set[str]) -> set[str]:
    """Answers that do not start as the right one does."""
    found = set()
    for answer in answers - {probe.fact.attribute}:
        try:
            ids = encode_target(tokenizer, answer, probe.fact.prompt)
        except DataError:
            continue
        if ids[0] != probe.answer[0]:
            found.add(answer)
    return found


def reach(
    spec: ModelSpec,
    tokenizer: Any,
    probes: Sequence[KnownFact],
    others: Sequence[str],
    progress: Progress = lambda name, done, total: None,
) -> Reach:
    """Optimise a vector for every fact at every layer.

    Args:
        spec: the model.
        tokenizer: the model's.
        probes: n facts it knows.
        others: what it should say instead.
        progress: told after each layer.
    """
    edits = [probe.fact.edit(other) for probe, other in zip(probes, others, strict=True)]
    requests = Rewriter(spec, tokenizer, Rewriting(template="plain")).requests(edits, ())
    found = np.zeros((len(probes), spec.depth))
    for layer in range(spec.depth):
        progress("writing vectors", layer, spec.depth)

        def done(number: int, value: Value, layer: int = layer) -> None:
            found[number, layer] = value.probability

        optimise(spec, layer, ["block"], SETTINGS, requests, batch_size=BATCH, done=done)
    progress("writing vectors", spec.depth, spec.depth)
    return Reach(found, tuple(others))
