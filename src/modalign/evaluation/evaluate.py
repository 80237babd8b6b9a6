"""Evaluate a saved model, ours or any transformers image-text-to-text folder, by generating answers."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel
from scipy.stats import binomtest

import modalign
from modalign.data.media import blank_like
from modalign.data.readers import read_records
from modalign.data.records import Media, Message, Record
from modalign.data.validation import validate
from modalign.errors import DataError
from modalign.evaluation.generation import answer_records, modalities_of
from modalign.evaluation.scoring import exchanged
from modalign.files import write_atomically
from modalign.models.open import open_model, tokenizer_of
from modalign.patches import patches_of, with_patches
from modalign.progress import Progress

RIGHT, BLANK, SHUFFLED = "right media", "blank media", "shuffled media"  # passes over the data


class Share(BaseModel):
    """A share of n with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    n: int


class SkillRow(BaseModel):
    """One line of the evaluation table."""

    skill: str
    accuracy: Share
    blank: float | None
    shuffled: float | None
    chance: float
    majority: float


class Evaluation(BaseModel):
    """What an evaluation found, with all that is needed to repeat it."""

    model: str
    data: str
    harness: str
    generation: dict[str, Any]
    patches: list[str] = []  # on top of the model, by name and hash
    skills: list[SkillRow]
    overall: SkillRow
    available: dict[str, Share] = {}  # modalities left in -> accuracy, where records hold several


def share(right: Sequence[bool] | np.ndarray) -> Share:
    """A share with its Wilson score interval."""
    n, k = len(right), int(np.sum(right))
    found = binomtest(k, n).proportion_ci(method="wilson")
    return Share(value=k / n, low=float(found.low), high=float(found.high), n=n)


def is_right(text: str, record: Record) -> bool:
    """Exact match after trimming and letter case, against every accepted answer."""
    accepted = {answer.strip().casefold() for answer in (record.answer, *record.answers)}
    return text.strip().casefold() in accepted


def evaluate_model(
    folder: Path,
    data: str,
    *,
    out: Path | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 32,
    limit: int | None = None,
    skip_broken: str = "0%",
    device: str = "auto",
    patches: Sequence[Path] = (),
    progress: Progress | None = None,
) -> Evaluation:
    """Answer a data file's questions with the right, with blank and with somebody else's media.

    Questions about several modalities are also asked with each of them alone.

    Args:
        folder: model folder.
        data: data file; the last assistant turn is the expected answer.
        out: JSON Lines of every record's prompt, output and score, where given.
        batch_size: questions answered together.
        max_new_tokens: longest answer.
        limit: only the first records.
        skip_broken: share of broken records to drop.
        device: to answer on.
        patches: patch files put on top of the model, its weights untouched.
        progress: told how far each of the three passes is.

    Raises:
        DataError: broken data, or none.
    """
    loaded, processor = open_model(folder, device=device)
    model = with_patches(loaded, tokenizer_of(processor), patches)
    taken = modalities_of(processor)
    records, _ = validate(read_records(data, modalities=taken), skip_broken=skip_broken)
    records = records[:limit]
    if not records:
        raise DataError(f"{data} holds no record to evaluate on")
    right: dict[str, np.ndarray] = {}
    outputs: list[str] = []
    has_media = any(True for record in records for _ in record.media())
    passes = {RIGHT: records}
    if has_media:
        passes |= {BLANK: _blanked(records), SHUFFLED: _shuffled(records)}
    passes |= {f"{m} only": kept for m in taken if (kept := _only(m, records))}
    for name, asked in passes.items():
        tell = (lambda done, total, name=name: progress(name, done, total)) if progress else None
        texts = answer_records(model, processor, asked, max_new_tokens, batch_size, tell)
        right[name] = np.array([is_right(t, r) for t, r in zip(texts, asked, strict=True)])
        outputs = outputs or texts
    settings = {"do_sample": False, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    if out is not None:
        _write_outputs(out, records, outputs, right[RIGHT], settings)
    found = _tabulate(str(folder), data, records, right, settings)
    found.available = _available(right, records)
    found.patches = [f"{each.patch.header.name} ({each.sha256})" for each in patches_of(model)]
    return found


def _tabulate(
    model: str,
    data: str,
    records: list[Record],
    right: dict[str, np.ndarray],
    settings: dict[str, Any],
) -> Evaluation:
    places: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        places[record.skill or "(no skill)"].append(index)
    rows = [_row(skill, found, records, right) for skill, found in sorted(places.items())]
    overall = _row("overall", list(range(len(records))), records, right)
    # Chance and majority are per skill; overall they are the mean over questions.
    n = len(records)
    overall.chance = sum(row.chance * row.accuracy.n for row in rows) / n
    overall.majority = sum(row.majority * row.accuracy.n for row in rows) / n
    return Evaluation(
        model=model,
        data=data,
        harness=f"modalign {modalign.__version__}",
        generation=settings,
        skills=rows,
        overall=overall,
    )


def _row(
    skill: str, places: list[int], records: list[Record], right: dict[str, np.ndarray]
) -> SkillRow:
    answers = Counter(records[index].answer for index in places)
    options = [len(records[index].options) or len(answers) for index in places]
    blank, shuffled = right.get(BLANK), right.get(SHUFFLED)
    return SkillRow(
        skill=skill,
        accuracy=share(right[RIGHT][places]),
        blank=None if blank is None else float(blank[places].mean()),
        shuffled=None if shuffled is None else float(shuffled[places].mean()),
        chance=float(np.mean([1 / count for count in options])),
        majority=answers.most_common(1)[0][1] / len(places),
    )


def _only(modality: str, records: list[Record]) -> list[Record]:
    """Records that hold this modality and others, without the others."""
    return [_without_others(modality, record) for record in records if _is_mixed(record, modality)]


def _is_mixed(record: Record, modality: str) -> bool:
    kinds = {medium.modality for medium in record.media()}
    return modality in kinds and len(kinds) > 1


def _without_others(modality: str, record: Record) -> Record:
    messages = tuple(
        Message(
            m.role,
            tuple(p for p in m.parts if not isinstance(p, Media) or p.modality == modality),
        )
        for m in record.messages
    )
    return replace(record, messages=messages)


def _available(right: dict[str, np.ndarray], records: list[Record]) -> dict[str, Share]:
    """Accuracy of mixed records by what was left in them."""
    alone = {name: share(found) for name, found in right.items() if name.endswith(" only")}
    if not alone:
        return {}
    mixed = [len({medium.modality for medium in record.media()}) > 1 for record in records]
    return {"all": share(right[RIGHT][np.array(mixed)]), **alone}


def _with_media(record: Record, media: Sequence[Media]) -> Record:
    queue = list(media)
    messages = tuple(
        Message(m.role, tuple(queue.pop(0) if isinstance(p, Media) else p for p in m.parts))
        for m in record.messages
    )
    return replace(record, messages=messages)


def _blanked(records: list[Record]) -> list[Record]:
    return [
        _with_media(record, [blank_like(medium) for medium in record.media()]) for record in records
    ]


def _shuffled(records: list[Record]) -> list[Record]:
    """Every record with somebody else's media."""
    given = exchanged([tuple(record.media()) for record in records])
    return [_with_media(record, media) for record, media in zip(records, given, strict=True)]


def _write_outputs(
    out: Path,
    records: list[Record],
    outputs: list[str],
    right: np.ndarray,
    settings: dict[str, Any],
) -> None:
    lines = [
        json.dumps(
            {
                "id": record.id,
                "source": str(record.source),
                "skill": record.skill,
                "prompt": [[m.role, m.text] for m in record.messages[:-1]],
                "expected": record.answer,
                "output": output,
                "correct": bool(correct),
                "generation": settings,
                "harness": f"modalign {modalign.__version__}",
            },
            ensure_ascii=False,
        )
        for record, output, correct in zip(records, outputs, right, strict=True)
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, "\n".join(lines) + "\n")
