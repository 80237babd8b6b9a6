"""Train every form of the vectors under several seeds, and score all beside words and frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from modalign.applications.item_embeddings.data import Item, Photo, Shown, asked
from modalign.applications.item_embeddings.judging import turned
from modalign.applications.item_embeddings.training import pairs, stage
from modalign.applications.judged import Judged, decided, judged, of_trainings
from modalign.applications.tuned import tune
from modalign.data.records import Record
from modalign.errors import DataError
from modalign.index.embedding import reading, vectors_or_none
from modalign.index.lexical import Lexical, Scores
from modalign.models.open import open_model
from modalign.models.pooled import Pooling, frozen
from modalign.models.prompts import Prompt
from modalign.numbers.estimate import exactly
from modalign.numbers.ranking import among_first
from modalign.progress import Progress
from modalign.training.settings import LLMMode

KS = (1, 10)
TEXTS, FROZEN, UNTRAINED = "TF-IDF of the texts", "frozen features, concatenated", "untrained"
DROP = "drop with another's picture"


class Form(NamedTuple):
    """What is shown, and the two devices."""

    shown: Shown = "picture + text"
    notes: bool = False
    fusion: bool = False


FORMS = {
    "text only": Form("text"), "picture only": Form("picture"), "base": Form(), "+ mICL": Form(notes=True),
    "+ late fusion": Form(fusion=True), "both": Form(notes=True, fusion=True),
}  # fmt: skip
BOTH, DEVICES = "both", ("+ mICL", "+ late fusion", "both")


def compare(
    items: Sequence[Item], photos: Sequence[Photo], llm: str, out: Path, *, budget: str, factor: float = 1.0,
    llm_mode: LLMMode = "lora", seeds: int = 3, seed: int = 0, resume: bool = False, device: str = "auto",
    data: Sequence[str] = (), progress: Progress | None = None,
) -> Judged:  # fmt: skip
    """Train each form of :data:`FORMS` ``seeds`` times under one budget; ``out`` keeps the runs.

    Raises:
        DataError: an item or a photograph has no picture or no text: then one of them is not needed.
    """
    everything: list[Item | Photo] = [*items, *photos]
    if lacking := [each for each in everything if not each.text or each.picture is None]:
        raise DataError(f"{lacking[0].source}: has no picture or no text; compare needs both")
    tests, place = [p for p in photos if p.test], {item.id: n for n, item in enumerate(items)}
    gold, groups = np.array([place[p.item] for p in tests]), [p.item for p in tests]
    opened = open_model(llm, device=device)
    lexical = Lexical([i.text for i in items], "words").scores([p.text for p in tests])
    queries, own = (
        frozen(*opened, [record for record in _records(each, Form().shown) if record]).numpy()
        for each in (tests, items)
    )
    swapped: dict[str, list[Scores]] = {}
    found = {TEXTS: [lexical], FROZEN: [np.asarray(queries @ own.T, dtype=np.float64).round(9)]}
    found[UNTRAINED] = [_scores(items, tests, opened, "last", Form())]
    for name, form in FORMS.items():
        records = pairs(items, photos, form.shown)
        made = stage(False, form.notes, form.fusion, llm_mode)
        for number in range(seeds):
            run = out / "runs" / f"{name.replace('+ ', '').replace(' ', '-')}-{number}"
            if progress:
                progress(f"{name}, training {number + 1} of {seeds}", number, seeds)
            tune(records, llm, run, made, prompt=Prompt(form.notes), budget=budget, factor=factor,
                 seed=seed + number, resume=resume, device=device)  # fmt: skip
            trained = open_model(run / "model", device=device), reading(run / "model", None), form
            found.setdefault(name, []).append(_scores(items, tests, *trained))
            if "picture" in form.shown:
                swapped.setdefault(name, []).append(_scores(turned(items), tests, *trained))
    hits = {k: {name: _hits(own, gold, k) for name, own in found.items()} for k in KS}
    columns = {f"top-{k}": own for k, own in hits.items()}
    columns[DROP] = {name: hits[1][name] - _hits(own, gold, 1) for name, own in swapped.items()}
    notes = [f"{len(tests)} photographs, {len(items)} items; {seeds} trainings of {budget} each."]
    told = [(BOTH, "text only"), (BOTH, "picture only"), *((name, "base") for name in DEVICES)]
    chance = {f"top-{k}": exactly(k / len(items), len(tests)) for k in KS}
    table = of_trainings(
        "The item on a photograph", columns, (TEXTS, FROZEN, UNTRAINED), told, groups, chance, notes
    )
    scores = {name: own if name in FORMS else own[0] for name, own in hits[1].items()}
    default, reason, differences = decided(TEXTS, scores, groups, seed)
    return judged("items", "Items by pictures and texts: forms of the vectors", data, seed, default=default,
                  reason=reason, tables=[table], differences=differences)  # fmt: skip


def _records(given: Sequence[Item | Photo], shown: Shown) -> list[Record | None]:
    return [asked(each.picture, each.text, shown, each.source) for each in given]


def _hits(trainings: Sequence[Scores], gold: np.ndarray, k: int) -> np.ndarray:
    return np.stack([among_first(scores, gold, k) for scores in trainings])


def _scores(
    items: Sequence[Item], tests: Sequence[Photo], opened: Any, way: Pooling | Prompt, form: Form
) -> Scores:
    """Return (photographs, items) cosines."""
    queries, own = (
        vectors_or_none(_records(each, form.shown), opened, way) for each in (tests, items)
    )
    return np.asarray((queries @ own.T).round(9))
