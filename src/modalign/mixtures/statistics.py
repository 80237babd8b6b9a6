"""What data is ranked by: a number per record, by name and options, one small function each.

``length[of=answer;unit=words]``, ``agreement[model=runs/mine/model]``. Those named like operators of ``data
curate`` compute what these operators decide by. A record for which a statistic means nothing has NaN. Third
parties add theirs by entry points in the group ``modalign.data_statistics``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from modalign.data.curation.inputs import Of, said
from modalign.data.curation.minhash import MinHasher, choose_bands, jaccard, normalise, shingles
from modalign.data.curation.operators.language import identifier
from modalign.data.curation.operators.similarity import DualEncoder, images_of
from modalign.data.images import stored_size
from modalign.data.supervision import Sample, tokenise_all
from modalign.errors import DataError, UsageError
from modalign.evaluation.scoring import Scores, score, shuffled
from modalign.models.collation import Collator
from modalign.named import Named
from modalign.numbers.bootstrap import Floats
from modalign.progress import Progress

NAN = float("nan")
AT_A_TIME = 512  # records scored between two reports of progress
MOST_ALIKE = 64  # records with one band key that are compared with each other


@dataclass(frozen=True)
class Scorer:
    """A model that statistics ask.

    Attributes:
        model, collator, tokenizer, device: it, how it reads, and where it runs.
        same: it has the tokenizer of the model that is trained.
    """

    model: Any
    collator: Collator
    tokenizer: Any
    device: torch.device
    same: bool = False

    def own(self, samples: Sequence[Sample]) -> list[Sample]:
        """Return the samples as this model reads them.

        Args:
            samples: tokenised by the model that is trained, which may be another.
        """
        if self.same:
            return list(samples)
        return tokenise_all([sample.record for sample in samples], self.tokenizer)


@dataclass(frozen=True)
class Place:
    """What a statistic may use.

    Attributes:
        scorer: folder -> the model in it; None -> the one that the run trains.
        device: for models that it loads itself.
        progress: called as it goes.
    """

    scorer: Callable[[str | None], Scorer]
    device: str = "auto"
    progress: Progress | None = None


Statistic = Callable[..., Floats]
statistic = Named("data statistic", "modalign.data_statistics", "modalign.mixtures.statistics")


def computed(name: str, samples: Sequence[Sample], place: Place) -> Floats:
    """Return (n,) values of a statistic; NaN where it has none.

    Raises:
        UsageError: an unknown statistic or option.
        DataError: it has a value for no record.
    """
    found: Floats = np.asarray(statistic.entry(name).function(samples, place), dtype=np.float64)
    if not np.isfinite(found).any():
        raise DataError(
            f"operator {name}: none of the {len(samples)} records has a value; leave it out"
        )
    return found


def asks_model(name: str) -> bool:
    """Whether a statistic asks the model that the run trains.

    Raises:
        UsageError: an unknown statistic or option.
    """
    return statistic.entry(name).options.get("model", "") is None


def loads_model(name: str) -> bool:
    """Whether a statistic needs a model of any kind, which takes time."""
    return bool({"model", "encoder"} & statistic.entry(name).options.keys())


@statistic("length")
def length(
    samples: Sequence[Sample],
    place: Place,
    *,
    of: Of = "text",
    unit: Literal["characters", "words"] = "characters",
) -> Floats:
    """Characters or words."""
    texts = [said(sample.record, of) for sample in samples]
    return np.array([len(t.split()) if unit == "words" else len(t) for t in texts], dtype=float)


@statistic("language")
def language(
    samples: Sequence[Sample], place: Place, *, code: str = "en", of: Of = "text"
) -> Floats:
    """py3langid's probability that the text is in this language (ISO 639)."""
    known = identifier([code])
    texts = [said(sample.record, of) for sample in samples]
    return np.array([dict(known.rank(text))[code] if text else NAN for text in texts])


@statistic("image_size")
def image_size(samples: Sequence[Sample], place: Place) -> Floats:
    """Pixels of the shorter side, of the smallest image."""
    sides = [[min(stored_size(image)) for image in images_of(sample.record)] for sample in samples]
    return np.array([float(min(found)) if found else NAN for found in sides])


@statistic("image_text_similarity")
def image_text_similarity(
    samples: Sequence[Sample],
    place: Place,
    *,
    encoder: str,
    of: Of = "text",
    batch_size: Annotated[int, Field(ge=1)] = 32,
) -> Floats:
    """Cosine of a dual encoder's embeddings of image and text (CLIP, SigLIP)."""
    dual = DualEncoder(encoder, place.device, batch_size)
    records = [sample.record for sample in samples]
    found = np.full(len(records), NAN)
    scored = [n for n, each in enumerate(records) if said(each, of) and any(images_of(each))]
    for start in range(0, len(scored), AT_A_TIME):
        chosen = scored[start : start + AT_A_TIME]
        pictures = [images_of(records[n]) for n in chosen]
        found[chosen] = dual.cosines(pictures, [said(records[n], of) for n in chosen])
        _tell(place, "image_text_similarity", start + len(chosen), len(scored))
    return found


@statistic("near_texts")
def near_texts(
    samples: Sequence[Sample],
    place: Place,
    *,
    of: Of = "text",
    characters: Annotated[int, Field(ge=1, le=32)] = 5,
    threshold: Annotated[float, Field(ge=0.1, le=1)] = 0.5,
) -> Floats:
    """Jaccard similarity with the most similar other record; 0 where none is found above the threshold."""
    texts = [normalise(said(sample.record, of)) for sample in samples]
    hasher = MinHasher(characters, *choose_bands(threshold, 0.98), 0)
    keys = hasher.keys(texts, np.zeros(len(texts), dtype=np.uint64))
    sets = [shingles(text, characters) for text in texts]
    found = np.zeros(len(texts))
    seen: set[tuple[int, int]] = set()
    for band in keys.T:
        order = np.argsort(band, kind="stable")
        for run in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            for pair in combinations(run[:MOST_ALIKE].tolist(), 2):
                if pair not in seen:
                    seen.add(pair)
                    alike = jaccard(sets[pair[0]], sets[pair[1]])
                    found[list(pair)] = np.maximum(found[list(pair)], alike)
    found[found < threshold] = 0
    return found


@statistic("answer_balance")
def answer_balance(samples: Sequence[Sample], place: Place) -> Floats:
    """Share of records with the same answer."""
    answers = [normalise(sample.record.answer) for sample in samples]
    counts: Mapping[str, int] = Counter(answers)
    return np.array([counts[answer] / len(answers) for answer in answers])


@statistic("column")
def column(samples: Sequence[Sample], place: Place, *, name: str) -> Floats:
    """A number that the rows carry themselves, in this column."""
    found = np.full(len(samples), NAN)
    for n, sample in enumerate(samples):
        value = sample.record.extra.get(name)
        if value is None:
            continue
        try:
            found[n] = float(value)
        except (TypeError, ValueError):
            raise DataError(
                f"{sample.record.source}: the column {name!r} holds {value!r}, which is no number"
            ) from None
    return found


@statistic("chance")
def chance(
    samples: Sequence[Sample], place: Place, *, seed: Annotated[int, Field(ge=0)] = 0
) -> Floats:
    """A random number: a control that no honest probe may find good."""
    return np.random.default_rng((seed, 11)).random(len(samples))


@statistic("loss")
def loss(samples: Sequence[Sample], place: Place, *, model: str | None = None) -> Floats:
    """A model's loss on the answers, in nats per token."""
    scorer = place.scorer(model)
    found = _scored(scorer, scorer.own(samples), place, "loss")
    return np.divide(
        found.loss, found.tokens, out=np.full(len(samples), NAN), where=found.tokens > 0
    )


@statistic("agreement")
def agreement(
    samples: Sequence[Sample],
    place: Place,
    *,
    model: str | None = None,
    others: Annotated[int, Field(ge=1)] = 8,
) -> Floats:
    """How much the record's own media help an aligned model to its answers, in nats per token.

    The pointwise mutual information of media and answers, per token: the log likelihood of the answers with
    their own media, minus the log of their mean likelihood with other records' media, over ``others``
    exchanges. Few others leave much noise: a wrong caption is told by how it compares with many pictures.

    Raises:
        UsageError: the model takes no media of these records.
    """
    scorer = place.scorer(model)
    with_media = [n for n, sample in enumerate(samples) if sample.media]
    if not with_media:
        raise UsageError(
            "operator agreement: no record has a medium; for texts, loss ranks by the model's loss"
        )
    asked = scorer.own([samples[n] for n in with_media])
    own = _scored(scorer, asked, place, "agreement: own media")
    apart = [
        -_scored(scorer, shuffled(asked, seed), place, f"agreement: other media {seed + 1}").loss
        for seed in range(others)
    ]
    found = np.full(len(samples), NAN)
    found[with_media] = information(-own.loss, np.array(apart)) / np.maximum(own.tokens, 1)
    return found


def information(own: Floats, apart: Floats) -> Floats:
    """Pointwise mutual information in nats: ``own`` minus the log of the mean of ``exp(apart)``.

    Args:
        own: (n,) log likelihoods of answers given their own media.
        apart: (k, n) log likelihoods given media drawn from the rest.
    """
    found: Floats = own - (np.logaddexp.reduce(apart, axis=0) - np.log(len(apart)))
    return found


def _scored(scorer: Scorer, samples: Sequence[Sample], place: Place, name: str) -> Scores:
    """Score all answers of the samples."""
    parts = []
    scorer.model.eval()
    for start in range(0, len(samples), AT_A_TIME):
        chosen = samples[start : start + AT_A_TIME]
        parts.append(score(scorer.model, chosen, scorer.collator, scorer.device, every_turn=True))
        _tell(place, name, start + len(chosen), len(samples))
    return Scores(
        *(
            np.concatenate([getattr(part, field) for part in parts])
            for field in ("correct", "loss", "tokens", "said_yes")
        )
    )


def _tell(place: Place, name: str, done: int, total: int) -> None:
    if place.progress:
        place.progress(name, done, total)
