"""Instruction records from templates: deterministic given the seed, with balanced answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modalign.data.modalities import modality_names
from modalign.data.readers.rows import mark
from modalign.data.records import Message, Record
from modalign.data.synthesis.annotations import From, Item
from modalign.data.synthesis.balance import Balance
from modalign.data.synthesis.templates import Renderer, Template, TemplateSet
from modalign.data.synthesis.views import Views
from modalign.progress import Progress


@dataclass(frozen=True)
class Candidate:
    """A possible question.

    Attributes:
        question: in the template's first wording; equal texts are the same question.
        values: the view's variables.
    """

    template: Template
    question: str
    answer: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Dropped:
    """A rejected candidate: the reason, and its content."""

    item: Item
    reason: str
    content: dict[str, Any]


def make_by_templates(
    items: Sequence[Item],
    kind: From,
    templates: TemplateSet,
    per_record: int,
    seed: int,
    progress: Progress | None = None,
) -> tuple[list[Record], list[Dropped], Balance]:
    """Ask up to ``per_record`` questions about every item.

    Items are visited in a seeded order; each next question comes from the template that has asked
    least. The records are in the order of the items.

    Raises:
        UsageError: a template cannot be rendered.
    """
    rng = np.random.default_rng(seed)
    views, render, balance = Views(items, kind, templates.words), Renderer(), Balance()
    made: dict[int, list[Record]] = {}
    dropped: list[Dropped] = []
    asked: Counter[str] = Counter()
    for done, place in enumerate(rng.permutation(len(items)), start=1):
        item = items[int(place)]
        candidates = _candidates(item, views, templates, render, rng, dropped)
        records = made.setdefault(int(place), [])
        while len(records) < per_record:
            chosen = _next(candidates, balance, asked, rng)
            if chosen is None:
                break
            wordings = chosen.template.question
            wording = wordings[int(rng.integers(len(wordings)))]
            question = render(wording, chosen.values, chosen.template.name)
            group = _group(item, templates, render)
            records.append(_record(item, chosen, question, group, len(records)))
            balance.add(chosen.template, chosen.question, chosen.answer)
            asked[chosen.template.name] += 1
            candidates = [c for c in candidates if c.question != chosen.question]
        if progress:
            progress("asking", done, len(items))
    return [record for place in sorted(made) for record in made[place]], dropped, balance


def _candidates(
    item: Item,
    views: Views,
    templates: TemplateSet,
    render: Renderer,
    rng: np.random.Generator,
    dropped: list[Dropped],
) -> list[Candidate]:
    found = []
    for view, values in views.of(item, rng):
        variables = {**values, "row": item.row}
        for template in templates.templates:
            if template.each != view:
                continue
            if template.when is not None:
                allowed = render(template.when, variables, template.name)
                if allowed in ("", "False"):
                    continue
            question = render(template.question[0], variables, template.name)
            answer = render(template.answer, variables, template.name)
            if not answer:
                continue
            if marked := holds_mark(question, answer):
                content = {"template": template.name, "question": question, "answer": answer}
                dropped.append(Dropped(item, f"contains the placeholder {marked}", content))
                continue
            found.append(Candidate(template, question, answer, variables))
    return found


def holds_mark(*texts: str) -> str | None:
    """Return a modality's placeholder that occurs in a text, which a reader would take for a medium."""
    marks = (mark(modality) for modality in modality_names())
    return next((m for m in marks if any(m in text for text in texts)), None)


def _next(
    candidates: Sequence[Candidate], balance: Balance, asked: Counter[str], rng: np.random.Generator
) -> Candidate | None:
    """Choose from the template that has asked least the answer that is needed most."""
    wanted = [c for c in candidates if balance.wants(c.template, c.question, c.answer)]
    if not wanted:
        return None
    order = rng.permutation(len(wanted))  # breaks ties

    def key(place: int) -> tuple[int, tuple[int, int], int]:
        one = wanted[place]
        rank = balance.rank(one.template, one.question, one.answer)
        return asked[one.template.name], rank, int(order[place])

    return wanted[min(range(len(wanted)), key=key)]


def _group(item: Item, templates: TemplateSet, render: Renderer) -> str:
    if templates.group is None:
        return item.group
    return render(templates.group, {"row": item.row}, "group") or item.group


def _record(item: Item, chosen: Candidate, question: str, group: str, number: int) -> Record:
    template = chosen.template
    made = {
        "by": "template",
        "template": template.name,
        "file": item.source.file,
        "row": item.source.row,
    }
    return Record(
        id=f"{item.id}-{number}",
        messages=(
            Message("user", (*item.media, *((question,) if question else ()))),
            Message("assistant", (chosen.answer,)),
        ),
        source=item.source,
        skill=template.skill,
        group=group,
        options=tuple(template.options),
        extra={"made": made, **({"kind": template.kind} if template.kind else {})},
    )
