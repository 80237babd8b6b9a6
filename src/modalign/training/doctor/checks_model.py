"""Check one method's model on this data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from modalign.connectors.base import ConnectorError, InLayerConnector
from modalign.data.supervision import Sample
from modalign.errors import DataError, ModalignError
from modalign.models.bridges import PlaceholderError
from modalign.models.collation import Batch
from modalign.models.parts import PartNotFoundError
from modalign.training.doctor.checks_saving import rehearse_saving
from modalign.training.learners import Composed, ModelLearner, captions
from modalign.training.methods import Method
from modalign.training.objectives import Objective
from modalign.training.references import readings
from modalign.training.settings import Stage

TRIED = 4  # records for trying a stage's terms
REFUSALS = (ModalignError, ConnectorError, PartNotFoundError, PlaceholderError)


def refusal(method: Method, error: Exception) -> ModalignError:
    """Convert a refusal to an error that names the method."""
    return error if isinstance(error, ModalignError) else ModalignError(f"{method.name}: {error}")


def no_media(samples: Sequence[Sample]) -> list[str]:
    """Return a warning if no record contains a medium."""
    if any(sample.media for sample in samples):
        return []
    return ["no training record contains a medium, so connectors have nothing to learn from"]


def lengths(subject: Composed, samples: Sequence[Sample]) -> list[int]:
    """Return the positions of every sample, each checked for one placeholder per medium."""
    return [subject.collator.length(sample) for sample in samples]


def try_out(subject: Composed, samples: Sequence[Sample], whole: bool = True) -> int | None:
    """Check all samples against the model's limits, and run it on real ones.

    Args:
        subject: a session or a stand-in.
        samples: all its samples.
        whole: also run the language model.

    Returns:
        The connector's tokens per medium (for in-layer methods: those that its layers read).
        None if no sample contains a medium.

    Raises:
        DataError: samples are too long, a stage one has no pairs, or placeholders and features
            differ in number.
    """
    _refuse_too_long(subject, samples)
    _refuse_without_pairs(subject)
    given = _features_given(subject, whole)
    rehearse_saving(subject)
    for stage in subject.method.stages:
        if stage.runs == "model":
            _compute_objective(subject, stage)
    return given


def _refuse_too_long(subject: Composed, samples: Sequence[Sample]) -> None:
    limit, sizes = subject.collator.max_length, lengths(subject, samples)
    over = sum(size > limit for size in sizes) if limit is not None else 0
    if not over:
        return
    longest = max(range(len(sizes)), key=sizes.__getitem__)
    raise DataError(
        f"{subject.method.name}: {over} of {len(samples)} samples are longer than the {limit} tokens "
        f"that the language model reads, {samples[longest].record.source} with {sizes[longest]} the "
        "longest; shorten them, or choose a method with fewer than "
        f"{subject.collator.tokens_per_medium} tokens per medium"
    )


def _refuse_without_pairs(subject: Composed) -> None:
    first = any(stage.runs == "stage_one" for stage in subject.method.stages)
    if (
        first
        and subject.method.facts.stage_one_needs_text
        and len(captions(subject.train_samples)) < 2
    ):
        raise DataError(
            f"{subject.method.name}: its stage one needs at least two images that have a text of "
            "their own; add such rows, or use the method without its stage one"
        )


def _features_given(subject: Composed, whole: bool) -> int | None:
    """Run the collator and the connector on real samples; compare placeholders with features."""
    chosen = sorted((s for s in subject.train_samples if s.media), key=lambda s: len(s.ids))[:2]
    chosen += _others(subject, chosen)
    if not chosen:
        return None
    model, method = subject.model, subject.method
    if method.tools:  # text only: nothing can disagree
        return None
    device = next(model.parameters()).device
    with torch.no_grad(), torch.random.fork_rng():
        batch = subject.collator(chosen).to(device)
        given = _connect(model, batch)
        if whole:
            try:
                model(**batch.model_inputs(), use_cache=False)
            except PlaceholderError as error:
                raise DataError(f"{method.name}: {error}") from error
    for modality, tokens in given.items():
        connector = model.connector(modality)
        placeholder = subject.collator.entries[modality].token_id
        places = int((batch.input_ids == placeholder).sum())
        media = sum(m.modality == modality for sample in chosen for m in sample.media)
        expected = media if isinstance(connector, InLayerConnector) else sum(tokens)
        if places != expected or len(tokens) != media:
            raise DataError(
                f"{method.name}: {places} placeholders for {media} {modality} media, but the connector "
                f"gave {expected} tokens; its num_tokens() and its forward() disagree, or the encoder's "
                "grid differs from its declaration"
            )
    return max(max(tokens) for tokens in given.values()) if given else None


@torch.no_grad()
def _compute_objective(subject: Composed, stage: Stage) -> None:
    """Compute a stage's terms on a few of its records: so that mismatches appear before step 0."""
    objective = Objective.of(stage)
    if not (stage.roles or objective.references or objective.needs - {"logits", "codes"}):
        return
    references = subject.references.of(stage, subject.model)
    learner = ModelLearner(subject, stage)
    group = learner.roles.largest_group() if learner.roles and stage.matched == "all" else 0
    size = min(subject.settings.batch_size, max(TRIED, len(stage.roles), group))
    device = next(subject.model.parameters()).device
    with torch.random.fork_rng():
        batch = learner.collate(learner.order(size, subject.seed).batch(0)).to(device)
        outputs = learner.outputs(subject.model, batch)
        objective.value(outputs, batch, readings(references, objective, batch))


def _others(subject: Composed, chosen: Sequence[Sample]) -> list[Sample]:
    """Return a sample for each modality missing from the chosen ones."""
    known = {medium.modality for sample in chosen for medium in sample.media}
    found = []
    for sample in subject.train_samples:
        new = {medium.modality for medium in sample.media} - known
        if new:
            found.append(sample)
            known |= new
    return found


def _connect(model: Any, batch: Batch) -> dict[str, list[int]]:
    """Return the tokens per medium of each modality's connector."""
    given = {}
    for modality, features in model.encoded(batch.features, **batch.signals).items():
        connector = model.connector(modality)
        enter = connector.encode if isinstance(connector, InLayerConnector) else connector
        weight = next(connector.parameters(), features.values)
        mask = enter(features.values.to(weight.dtype), features.mask, features.grid)[1]
        given[modality] = [int(count) for count in mask.sum(dim=1)]
    return given
