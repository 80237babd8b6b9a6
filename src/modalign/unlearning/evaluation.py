"""``modalign eval --task unlearning``: is a fact gone, or only one wording of it?

The same questions in several forms (``modalign data reformat``) are asked of four models: the one that knew, one
that never knew, one that was retrained without the facts, and the unlearned one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from modalign.data.records import Record
from modalign.data.reformatting import read_questions, with_invented_subjects
from modalign.errors import DataError, UsageError, choose
from modalign.evaluation.generation import answer_records
from modalign.evaluation.likelihood import score_options
from modalign.evaluation.tasks.base import OptionScore
from modalign.models.asking import modalities_of, tokenizer_of
from modalign.models.open import open_model
from modalign.models.quiet import quietly
from modalign.numbers.bootstrap import estimate_of_sums, ratio
from modalign.numbers.estimate import Estimate
from modalign.patches import apply_patch, check_tokenizer, load_patch
from modalign.progress import Progress, within
from modalign.unlearning.attacks import ATTACKS, RELEARNED, WEIGHT_ATTACKS, attacked, relearned
from modalign.unlearning.measures import (
    forget_quality,
    membership,
    recovery,
    rouge_recall,
    truth_ratios,
    utility,
)
from modalign.version import __version__

KNEW, NEVER, WITHOUT, UNLEARNED = "knew", "never knew", "retrained without", "unlearned"
INVENTED = "invented"
FREE, CLOZE, PARAPHRASE = "free", "cloze", "paraphrase"
RELEARN_SHARE = 0.25  # of the facts that the relearning attack may see


class FormRow(BaseModel):
    """One form of the questions.

    Attributes:
        form: as ``data reformat`` calls it.
        n: questions.
        chance: score of a guess; None if there are no options.
        rows: row -> score: the share answered rightly, for cloze the answer's probability per token.
        recovery: (unlearned - never knew) / (knew - never knew); None if invalid.
        valid: whether the form tells knowing from never knowing.
        attacks: attack -> recovery after it.
    """

    form: str
    n: int
    chance: float | None
    rows: dict[str, Estimate]
    recovery: Estimate | None
    valid: bool
    attacks: dict[str, Estimate] = {}


class Forgetting(BaseModel):
    """The results.

    Attributes:
        model, knew, never_knew, retrained: folders, or how the row was made.
        data, retain: files.
        forms: one row per form.
        forget_quality: TOFU's p-value against the retrained row, by truth ratios; None without that row.
        utility: TOFU's utility on the retained questions, per row; empty without them.
        membership: AUC of the loss on forgotten facts against invented ones, per row.
        notes: what the numbers do not show.
        harness, seed, patches: how it was measured.
    """

    model: str
    knew: str
    never_knew: str
    retrained: str | None
    data: str
    retain: str | None
    forms: list[FormRow]
    forget_quality: float | None = None
    utility: dict[str, float] = {}
    membership: dict[str, Estimate] = {}
    notes: list[str] = []
    harness: str = f"modalign {__version__}"
    seed: int = 0
    patches: list[str] = []


def row_names(found: Forgetting) -> list[str]:
    """Return the names of the rows present, in reading order."""
    known = {name for row in found.forms for name in row.rows}
    return [name for name in (KNEW, NEVER, WITHOUT, UNLEARNED) if name in known]


@dataclass(frozen=True)
class Rows:
    """The models that are compared, and how.

    Attributes:
        model: the unlearned folder.
        knew: the folder before.
        patches: applied to ``model``.
        never_knew: a folder, or ``invented`` for the model before, asked about invented subjects.
        retrained: folder of a model trained without the facts.
        retain: file of questions to keep.
        attacks: names of ``ATTACKS``.
    """

    model: Path
    knew: Path
    patches: tuple[Path, ...] = ()
    never_knew: str = INVENTED
    retrained: Path | None = None
    retain: str | None = None
    attacks: tuple[str, ...] = ATTACKS


@dataclass
class _Answers:
    """A model's answers: scores of all records, and the log-likelihoods of options where there are some."""

    scores: np.ndarray
    options: dict[int, tuple[OptionScore, ...]] = field(default_factory=dict)


@quietly()
def evaluate_forgetting(
    rows: Rows,
    data: str,
    *,
    seed: int = 0,
    device: str = "auto",
    max_new_tokens: int = 16,
    progress: Progress | None = None,
) -> Forgetting:
    """Ask all rows the same questions, then attack the unlearned one.

    Args:
        rows: the models.
        data: questions from ``modalign data reformat``; ``skill`` is the form.
        seed: of intervals, invented names and relearning.
        device: to compute on.
        max_new_tokens: of a free answer.
        progress: told how far each row is.

    Raises:
        DataError: the questions are not reformatted, or the models cannot take them.
        UsageError: an unknown attack.
    """
    for name in rows.attacks:
        if name not in ATTACKS:
            raise UsageError(f"no attack {name!r}: {choose(name, ATTACKS)}")
    model, reader, names = _opened(rows, device)
    taken = modalities_of(reader) or ["image"]
    records = _questions(data, taken)
    retain = read_questions(rows.retain, modalities=taken) if rows.retain else []

    def ask(name: str, of: Any, asks: Any, given: Sequence[Record] = records) -> _Answers:
        return _answers(of, asks, given, max_new_tokens, within(name, progress))

    knew, knew_reader = open_model(rows.knew, device=device)
    found = {UNLEARNED: ask(UNLEARNED, model, reader), KNEW: ask(KNEW, knew, knew_reader)}
    models = {KNEW: (knew, knew_reader), UNLEARNED: (model, reader)}
    invented = None
    if all(isinstance(r.extra.get("subject"), str) for r in records):
        invented = with_invented_subjects(records, seed)
    if rows.never_knew == INVENTED:
        given = invented if invented is not None else with_invented_subjects(records, seed)
        found[NEVER] = ask(NEVER, knew, knew_reader, given)
    else:
        found[NEVER] = ask(NEVER, *open_model(rows.never_knew, device=device))
    if rows.retrained is not None:
        models[WITHOUT] = open_model(rows.retrained, device=device)
        found[WITHOUT] = ask(WITHOUT, *models[WITHOUT])
    after, kept = _attacks(rows, model, reader, records, ask, seed)
    forms = _forms(records, found, after, kept, seed)
    result = Forgetting(
        model=str(rows.model),
        knew=str(rows.knew),
        never_knew=rows.never_knew,
        retrained=None if rows.retrained is None else str(rows.retrained),
        data=data,
        retain=rows.retain,
        forms=forms,
        seed=seed,
        patches=names,
        notes=_notes(forms, found, after),
    )
    if WITHOUT in found:
        result.forget_quality = _quality(records, found)
    cloze = [i for i, record in enumerate(records) if record.skill == CLOZE]
    if invented is not None and cloze:
        outside = [invented[i] for i in cloze]
        for name, (of, asks) in models.items():
            own, other = found[name], ask(f"{name}, invented", of, asks, outside)
            losses = [_right_loss(own, i, records[i]) for i in cloze]
            theirs = [_right_loss(other, n, each) for n, each in enumerate(outside)]
            result.membership[name] = membership(losses, theirs, seed)
    if retain:
        for name, (of, asks) in models.items():
            result.utility[name] = _utility(of, asks, retain, max_new_tokens, progress)
    return result


def _opened(rows: Rows, device: str) -> tuple[Any, Any, list[str]]:
    """Open the unlearned model with its patches; also return their names."""
    model, reader = open_model(rows.model, device=device)
    names = []
    for file in rows.patches:
        patch = load_patch(file)
        check_tokenizer(patch, tokenizer_of(reader))
        apply_patch(model, patch)
        names.append(patch.header.name)
    return model, reader, names


def _questions(data: str, taken: Sequence[str]) -> list[Record]:
    records = read_questions(data, modalities=taken)
    if lacking := [str(r.source) for r in records if not r.extra.get("fact")]:
        raise DataError(
            f"{lacking[0]}: was not made by modalign data reformat ({len(lacking)} of {len(records)} records "
            "have no field fact)"
        )
    return records


def _answers(
    model: Any, reader: Any, records: Sequence[Record], longest: int, tell: Any
) -> _Answers:
    """Score every record: by generation if it has no options, else by the likelihood of each."""
    found = _Answers(np.zeros(len(records)))
    free = [i for i, record in enumerate(records) if not record.options]
    closed = [i for i, record in enumerate(records) if record.options]
    if free:
        asked = [records[i] for i in free]
        said = answer_records(model, reader, asked, longest, progress=tell)
        for place, text, record in zip(free, said, asked, strict=True):
            wanted = {
                " ".join(each.casefold().split()) for each in (record.answer, *record.answers)
            }
            spoken = " ".join(text.casefold().split())
            found.scores[place] = float(any(spoken.startswith(each) for each in wanted))
    chosen = [records[i] for i in closed]
    options = score_options(model, reader, chosen, [r.options for r in chosen], tell)
    for place, record, scored in zip(closed, chosen, options, strict=True):
        found.options[place] = scored
        found.scores[place] = _score(record, scored)
    return found


def _score(record: Record, options: Sequence[OptionScore]) -> float:
    """Return 1 if the answer is likelier than every other option; for a cloze, its probability per token."""
    right = next(each for each in options if each.text == record.answer)
    if record.skill == CLOZE:
        return float(np.exp(right.loglikelihood / right.tokens))
    others = [each.loglikelihood for each in options if each is not right]
    return float(right.loglikelihood > max(others))


def _attacks(
    rows: Rows, model: Any, reader: Any, records: Sequence[Record], ask: Any, seed: int
) -> tuple[dict[str, _Answers], dict[str, np.ndarray]]:
    """Return the answers after each attack, and the records it is judged by."""
    after, kept = {}, {}
    for name in rows.attacks:
        if name in WEIGHT_ATTACKS:
            with attacked(model, WEIGHT_ATTACKS[name]):
                after[name] = ask(name, model, reader)
            kept[name] = np.ones(len(records), dtype=bool)
    if RELEARNED in rows.attacks:
        facts = sorted({str(r.extra["fact"]) for r in records if r.skill in (CLOZE, FREE)})
        order = np.random.default_rng([seed, 20]).permutation(len(facts))
        seen = {facts[i] for i in order[: max(int(len(facts) * RELEARN_SHARE), 1)]}
        lessons = {
            r.extra["fact"]: r
            for r in records
            if r.skill in (CLOZE, FREE) and r.extra["fact"] in seen
        }
        if lessons and len(seen) < len(facts):
            after[RELEARNED] = ask(
                RELEARNED, *relearned(model, reader, list(lessons.values()), seed=seed)
            )
            kept[RELEARNED] = np.array([r.extra["fact"] not in seen for r in records])
    return after, kept


def _forms(
    records: Sequence[Record],
    found: Mapping[str, _Answers],
    after: Mapping[str, _Answers],
    kept: Mapping[str, np.ndarray],
    seed: int,
) -> list[FormRow]:
    made = []
    for form in dict.fromkeys(str(record.skill) for record in records):
        own = np.array([record.skill == form for record in records])

        def of(answers: _Answers, where: np.ndarray) -> np.ndarray:
            return np.asarray(answers.scores[where])

        def groups(where: np.ndarray) -> list[str | None]:
            return [records[i].group for i in np.flatnonzero(where).tolist()]

        first = [records[i] for i in np.flatnonzero(own).tolist()]
        chances = [1 / len(r.options) for r in first if r.options and form != CLOZE]
        chance = float(np.mean(chances)) if chances else None

        def recovered(
            answers: _Answers, where: np.ndarray, chance: float | None = chance
        ) -> tuple[Estimate | None, bool]:
            knew, never, after = (of(each, where) for each in (found[KNEW], found[NEVER], answers))
            return recovery(knew, never, after, groups(where), seed, chance)

        share, valid = recovered(found[UNLEARNED], own)
        attacks = {}
        for name, answers in after.items():
            where = own & kept[name]
            again = recovered(answers, where)[0] if valid and where.any() else None
            if again is not None:
                attacks[name] = again
        made.append(
            FormRow(
                form=form,
                n=len(first),
                chance=chance,
                rows={
                    name: _mean(of(each, own), groups(own), seed) for name, each in found.items()
                },
                recovery=share,
                valid=valid,
                attacks=attacks,
            )
        )
    return made


def _mean(values: np.ndarray, groups: Sequence[str | None], seed: int) -> Estimate:
    table = np.stack([values, np.ones(len(values))], axis=1)
    found = estimate_of_sums(table, ratio, groups=groups, seed=seed, over="questions")
    assert found is not None
    return found


def _right_loss(answers: _Answers, place: int, record: Record) -> float:
    right = next(each for each in answers.options[place] if each.text == record.answer)
    return -right.loglikelihood / right.tokens


def _ratios(records: Sequence[Record], answers: _Answers, form: str) -> np.ndarray:
    places = [i for i, r in enumerate(records) if r.skill == form and i in answers.options]
    right = [_right_loss(answers, i, records[i]) for i in places]
    wrong = [
        [-o.loglikelihood / o.tokens for o in answers.options[i] if o.text != records[i].answer]
        for i in places
    ]
    return truth_ratios(right, wrong)


def _quality(records: Sequence[Record], found: Mapping[str, _Answers]) -> float | None:
    forms = {record.skill for record in records}
    form = PARAPHRASE if PARAPHRASE in forms else CLOZE if CLOZE in forms else None
    if form is None:
        return None
    first, second = (_ratios(records, found[name], form) for name in (UNLEARNED, WITHOUT))
    return forget_quality(first, second)


def _utility(
    model: Any, reader: Any, retain: Sequence[Record], longest: int, progress: Progress | None
) -> float:
    from modalign.data.reformatting import reformat

    asked = reformat(retain, [CLOZE]).records
    scored = _answers(model, reader, asked, longest, within("retained", progress))
    said = answer_records(model, reader, retain, longest)
    recalls = [rouge_recall(text, record.answer) for text, record in zip(said, retain, strict=True)]
    return utility(scored.scores, recalls, _ratios(asked, scored, CLOZE))


def _notes(
    forms: Sequence[FormRow], found: Mapping[str, _Answers], after: Mapping[str, _Answers]
) -> list[str]:
    notes = [
        f"{row.form} is INVALID here: it does not tell the model that knew from one that never knew or guesses"
        for row in forms
        if not row.valid
    ]
    for name, answers in after.items():
        if name != RELEARNED and np.allclose(answers.scores, found[UNLEARNED].scores, atol=0.01):
            notes.append(
                f"{name} changes no answer: the attack is not informative here, which is not robustness"
            )
    return notes
