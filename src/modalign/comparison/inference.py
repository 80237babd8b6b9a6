"""Ask a trained model of a comparison, and measure what its answers cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from modalign.comparison.metrics import Metric
from modalign.data.records import Media
from modalign.data.supervision import Sample
from modalign.evaluation.generation import generate_answers
from modalign.evaluation.scoring import blanked, final_turn, shuffled
from modalign.models.collation import Collator, Entry, Placeholders, RawSignals
from modalign.training.costs import CostModel
from modalign.training.session import Session

LATENCY_REPEATS = 7  # questions


def evaluate(
    metric: Metric,
    session: Session,
    samples: Sequence[Sample],
    blanks: dict[str, Media],
    seed: int,
) -> dict[str, np.ndarray]:
    """Answer with the right, blank and other records' media."""
    if not samples:
        return {}
    real = metric.judge(session, samples)
    return {
        "eval": real.correct,
        "yes": real.said_yes,
        "blank": metric.judge(session, blanked(samples, blanks)).correct,
        "shuffled": metric.judge(session, shuffled(samples, seed)).correct,
    }


def inference_flops(session: Session, samples: Sequence[Sample]) -> float | None:
    """Return the forward FLOPs of a question of median length about one image, including the encoder."""
    collator = session.collator
    lengths = [collator.length(sample) for sample in samples if len(sample.media) == 1]
    if not lengths:
        return None
    costs = CostModel.of(session.model)
    return costs.forward(1, int(statistics.median(lengths)), 1, 1, encode=True)


@torch.inference_mode()
def time_to_first_answer(session: Session, samples: Sequence[Sample]) -> float | None:
    """Return the median seconds from signal to first token, for single questions after a warm-up."""
    chosen = [sample for sample in samples if len(sample.media) == 1][:LATENCY_REPEATS]
    if not chosen:
        return None
    collator = _from_raw_signals(session)
    tools = session.chain.cost().mean_seconds if session.chain else 0.0
    seconds: list[float] = []
    for sample in [chosen[0], *chosen]:
        flags = np.zeros_like(sample.supervised)
        flags[sample.prompt_length] = True  # only the first answer token is needed
        started = time.perf_counter()
        batch = collator([replace(final_turn(sample), supervised=flags)]).to(session.device)
        session.model(**batch.model_inputs(), use_cache=True).logits.argmax(-1).cpu()
        seconds.append(time.perf_counter() - started + tools)  # tool time comes from the cache
    return statistics.median(seconds[1:])


def _from_raw_signals(session: Session) -> Collator:
    """Return the session's collator, with every encoder running in the model."""
    if session.method.tools:
        return session.collator
    entries: dict[str, Entry] = {}
    for encoder in session.encoders:
        entry = session.collator.entries[encoder.modality]
        assert isinstance(entry, Placeholders)  # without tools, an encoder's media have no other
        entries[encoder.modality] = replace(entry, source=RawSignals(encoder))
    return replace(session.collator, entries=entries)


def tokens_per_medium(session: Session) -> int:
    """Return the positions per medium: a connector's maximum, or the mean for tools."""
    if session.chain is None:
        return session.collator.tokens_per_medium
    return round(session.chain.cost().mean_tokens)


def example_answers(session: Session, samples: Sequence[Sample], count: int) -> list[str]:
    """Return the answers to some questions, for the report (:func:`chosen_examples`)."""
    samples = chosen_examples(samples, count)
    tokenizer = session.processor.tokenizer
    return generate_answers(session.model, session.collator, samples, tokenizer) if samples else []


def chosen_examples(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Choose questions about different images, cycling through skills in file order."""
    by_skill: dict[str | None, list[Sample]] = {}
    for sample in samples:
        if sample.media:
            by_skill.setdefault(sample.record.skill, []).append(sample)
    chosen: list[Sample] = []
    used: set[object] = set()
    while len(chosen) < count and any(by_skill.values()):
        for queue in by_skill.values():
            while queue:
                sample = queue.pop(0)
                if sample.media[0] not in used:
                    used.add(sample.media[0])
                    chosen.append(sample)
                    break
    return chosen[:count]
