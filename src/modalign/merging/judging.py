"""How good models are on domains: loss and right answers per record, once for all attempts at a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from modalign.data.corpus import is_corpus
from modalign.data.supervision import Sample, tokenise_all
from modalign.errors import DataError
from modalign.evaluation.scoring import score
from modalign.models.processing import ModalignProcessor
from modalign.models.saved import OpenedModel
from modalign.numbers.bootstrap import Groups
from modalign.progress import Progress
from modalign.training.tuning import read_samples


class Judged(BaseModel):
    """A model on one domain, record by record.

    Attributes:
        loss: summed over the answer's tokens (all tokens, of plain text).
        tokens: of the answer.
        correct: whether the greedy answer equals the reference.
    """

    model_config = ConfigDict(extra="forbid")

    loss: list[float]
    tokens: list[int]
    correct: list[bool]

    @property
    def nll(self) -> np.ndarray:
        """(n,) contributions whose mean is the loss per token, linearised: a long record is not a bad one.

        See :func:`modalign.numbers.trainings.estimate_ratios` (Woodruff 1971).
        """
        tokens = np.array(self.tokens, dtype=float)
        off = np.array(self.loss) - self.mean * tokens
        return np.asarray(self.mean + off / max(float(tokens.mean()), 1e-12))

    @property
    def mean(self) -> float:
        """The loss per token."""
        return float(np.sum(self.loss) / max(sum(self.tokens), 1))


@dataclass(frozen=True)
class Domain:
    """Records that models are judged on.

    Attributes:
        name: of the domain.
        samples: tokenised for the model that gives the vocabulary.
        text: whether they are windows of plain text.
    """

    name: str
    samples: Sequence[Sample]
    text: bool

    @property
    def media(self) -> bool:
        """Whether a record holds media."""
        return any(sample.media for sample in self.samples)

    @property
    def groups(self) -> Groups:
        """(n,) labels that keep records about the same media, or of one document, together."""
        keys = [(each.media or each.record.group or each.record.id) for each in self.samples]
        known: dict[object, str] = {}
        return [known.setdefault(key, str(len(known))) for key in keys]


def read_domains(
    files: Mapping[str, str],
    opened: OpenedModel,
    length: int,
    limit: int,
    progress: Progress | None = None,
) -> dict[str, Domain]:
    """Read every domain's file, a fixed draw of ``limit`` records where it holds more.

    Raises:
        DataError: a file cannot be used.
    """
    found = {}
    for name, file in files.items():
        samples = read_samples(Path(file), opened, length=length, progress=progress)
        if len(samples) > limit:
            chosen = np.random.default_rng(0).permutation(len(samples))[:limit]
            samples = [samples[i] for i in sorted(chosen)]
        if not samples:
            raise DataError(f"{file}: holds no records")
        found[name] = Domain(name, samples, is_corpus(Path(file)))
    return found


def judge(
    opened: OpenedModel, domains: Mapping[str, Domain], device: torch.device
) -> dict[str, Judged]:
    """Judge a model on every domain that it can read."""
    model = opened.model.to(device).eval()
    takes_media = isinstance(opened.reader, ModalignProcessor)
    found = {}
    for name, domain in domains.items():
        if domain.media and not takes_media:
            continue
        samples = domain.samples
        if domain.media:  # placeholders have ids of their own in every model
            samples = tokenise_all([sample.record for sample in samples], opened.tokenizer)
        scores = score(model, samples, opened.collator(), device, batch_size=16)
        if not np.isfinite(scores.loss).all():
            raise DataError(f"{opened.name}: its loss on {name} is not a number")
        found[name] = Judged(
            loss=scores.loss.tolist(),
            tokens=scores.tokens.tolist(),
            correct=scores.correct.tolist(),
        )
    return found
