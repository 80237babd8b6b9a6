"""Edits of a model that reads pictures: reliability, generality and locality, with and without a picture.

The measures are MMEdit's (Cheng et al. 2023, arXiv 2310.08475), taken where they mean something: at the
positions that predict the answer. The locality numbers as the EasyEdit toolkit computes them (over every
position of the sequence, visual ones included; with pictures over ten ranks, each compared with the same
rank) are also given and labelled as such: they compare with published tables and with nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from modalign.chat_templates import end_ids, pad_id
from modalign.data.images import open_image
from modalign.data.records import Media
from modalign.editing.benchmarks.calling import device_of, judging
from modalign.editing.benchmarks.evaluate import EditEvaluation
from modalign.editing.benchmarks.results import (
    FREE,
    TEACHER_FORCED,
    count_known,
    means_of_records,
    metric,
)
from modalign.editing.benchmarks.rows import Answer, EditRow, Kind, PromptRow
from modalign.editing.edits import Edit
from modalign.editing.engine.asking import Asked, Asking, Template
from modalign.errors import UsageError
from modalign.numbers.bootstrap import RESAMPLES, redrawn_means
from modalign.numbers.estimate import Estimate
from modalign.progress import Progress

TOP = 10
LONGEST = 8  # tokens of the model's own answer, taken where a neighbour has no known one
COMPATIBLE = "teacher-forced, every position (EasyEdit-compatible)"

Measure = Literal[
    "reliability",
    "text_reliability",
    "text_generality",
    "image_generality",
    "text_locality",
    "image_locality",
]
KINDS: dict[Measure, Kind] = {
    "reliability": "rewrite",
    "text_reliability": "rewrite",
    "text_generality": "paraphrase",
    "image_generality": "paraphrase",
    "text_locality": "neighbour",
    "image_locality": "neighbour",
}


@dataclass(frozen=True)
class MultimodalQuestion:
    """One question of one edit.

    Attributes:
        edit: the edit's place in the list.
        measure: the measure it counts towards.
        prompt: the question.
        answer: what should be said; None for whatever the model said before the edit.
        image: the picture it is asked about.
    """

    edit: int
    measure: Measure
    prompt: str
    answer: str | None
    image: str | None = None


@dataclass(frozen=True)
class Reply:
    """How a model answered one question, compared with its base. Shares are 0 to 1, means over answer tokens.

    Attributes:
        accuracy: share of answer tokens that were the most likely.
        agreement: share of positions whose most likely token is the base's.
        overlap: share of the ten most likely tokens that are among the base's ten.
        divergence: KL(edited || base), nats.
        compatible: EasyEdit's number, see the module; NaN except for localities.
        target: probability per answer token (geometric mean).
        first: the most likely token at the answer's first position.
        says: the most likely tokens, as text.
        said: the greedy answer, if one was generated.
    """

    accuracy: float
    agreement: float
    overlap: float
    divergence: float
    compatible: float
    target: float
    first: int
    says: str
    said: str | None = None


def probes_of(edits: Sequence[Edit]) -> list[MultimodalQuestion]:
    """Return every question of every edit.

    Where only the picture shows an edit's subject, its paraphrases are asked about the picture; where the
    text names the subject, they are asked as text.
    """
    return [probe for number, edit in enumerate(edits) for probe in _probes(number, edit)]


def _probes(number: int, edit: Edit) -> Iterator[MultimodalQuestion]:
    if edit.image is not None:
        yield MultimodalQuestion(
            number, "reliability", edit.asked_of_image, edit.target, edit.image
        )
    if edit.subject:
        yield MultimodalQuestion(number, "text_reliability", edit.prompt, edit.target)
    shown = None if edit.subject else edit.image
    for prompt in edit.paraphrases:
        yield MultimodalQuestion(number, "text_generality", prompt, edit.target, shown)
    for image in edit.other_images:
        yield MultimodalQuestion(
            number, "image_generality", edit.asked_of_image, edit.target, image
        )
    for neighbour in edit.neighbours:
        measure: Measure = "text_locality" if neighbour.image is None else "image_locality"
        yield MultimodalQuestion(
            number, measure, neighbour.prompt, neighbour.answer, neighbour.image
        )


def evaluate_multimodal(
    model: Any,
    reader: Any,
    edits: Sequence[Edit],
    *,
    base: Any = None,
    template: Template = "auto",
    generate: bool = True,
    seed: int = 0,
    resamples: int = RESAMPLES,
    progress: Progress | None = None,
) -> EditEvaluation:
    """Measure edits on a model, which is not changed.

    Args:
        model: edited or unedited; called like a transformers image-text model.
        reader: its processor.
        edits: what should have changed, and what should not.
        base: the model before the edits; without it, localities compare the model with itself.
        template: the form in which it is asked, see :class:`Asking`.
        generate: also let the model answer freely.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        progress: told how many questions are done.

    Raises:
        UsageError: no edits.
    """
    if not edits:
        raise UsageError("there are no edits to evaluate")
    asking = Asking(reader, template)
    probes = probes_of(edits)
    judge = _Judge(asking, model, model if base is None else base, generate)
    after: list[Reply] = []
    before: list[Reply] = []
    with judging(model), judging(judge.base):
        for number, probe in enumerate(probes, start=1):
            now, then = judge(probe)
            after.append(now)
            before.append(then)
            if progress:
                progress("questions", number, len(probes))
    drawing: dict[str, Any] = {"seed": seed, "resamples": resamples}
    same = _metrics(probes, before, before, len(edits), drawing)
    return EditEvaluation(
        form=asking.template,
        task="mmedit",
        n=len(edits),
        metrics=_metrics(probes, after, before, len(edits), drawing) if base is not None else same,
        before=same if base is not None else None,
        chance=_chance(probes, before, asking, edits),
        notes=_notes(edits, probes, base is not None, asking),
        seed=seed,
        resamples=resamples,
        rows=_rows(edits, probes, after, before if base is not None else None),
    )


class _Judge:
    """Runs two models on the same inputs."""

    def __init__(self, asking: Asking, model: Any, base: Any, generate: bool) -> None:
        self.asking, self.model, self.base, self.generate = asking, model, base, generate

    def __call__(self, probe: MultimodalQuestion) -> tuple[Reply, Reply]:
        """Return the reply of the edited model and that of the base."""
        asked = self._asked(probe)
        length = len(asked.ids)
        said = self._greedy(self.base, asked) if self.generate or probe.answer is None else []
        if probe.answer is not None:
            answer = list(self.asking.target(probe.answer, probe.prompt))
        else:
            answer = said or self._likeliest(asked)
        inputs = self._inputs(asked, answer[:-1])
        then = self.base(**inputs, use_cache=False).logits[0].float()
        now = (
            then
            if self.model is self.base
            else self.model(**inputs, use_cache=False).logits[0].float()
        )
        now_said = said if self.model is self.base or not self.generate else None
        if now_said is None:
            now_said = self._greedy(self.model, asked)
        where = slice(length - 1, length - 1 + len(answer))
        pictured = probe.measure == "image_locality"
        return (
            self._outcome(now, then, where, answer, now_said, pictured),
            self._outcome(then, then, where, answer, said, pictured),
        )

    def _asked(self, probe: MultimodalQuestion) -> Asked:
        if probe.image is None:
            return self.asking.text(probe.prompt)
        return self.asking.picture(probe.prompt, open_image(Media("image", path=probe.image)))

    def _inputs(self, asked: Asked, more: Sequence[int] = ()) -> dict[str, Any]:
        """Return a prompt and the first answer tokens as one row for the whole model."""
        given = asked.inputs or {"input_ids": torch.tensor([asked.ids])}
        given = {"attention_mask": torch.ones_like(given["input_ids"])} | given
        weight = next(p for p in self.base.parameters() if p.is_floating_point())
        device = device_of(self.base)
        found: dict[str, Any] = {}
        for name, value in given.items():
            if not isinstance(value, Tensor):
                continue
            if value.shape == (1, len(asked.ids)) and more:
                filling = torch.tensor([list(more)]).to(value)
                if name != "input_ids":  # a mask, or kinds of tokens: an answer is text
                    filling = torch.full_like(filling, int(name == "attention_mask"))
                value = torch.cat([value, filling], dim=1)
            found[name] = value.to(device, weight.dtype if value.is_floating_point() else None)
        return found

    def _likeliest(self, asked: Asked) -> list[int]:
        logits = self.base(**self._inputs(asked), use_cache=False).logits
        return [int(logits[0, -1].argmax())]

    def _greedy(self, model: Any, asked: Asked) -> list[int]:
        """Return the model's own answer, without its end mark."""
        inputs = self._inputs(asked)
        tokenizer = self.asking.tokenizer
        made = model.generate(
            **inputs,
            max_new_tokens=LONGEST,
            do_sample=False,
            eos_token_id=end_ids(tokenizer, model.generation_config) or None,
            pad_token_id=pad_id(tokenizer),
        )
        special = set(tokenizer.all_special_ids)
        return [token for token in made[0, len(asked.ids) :].tolist() if token not in special]

    def _outcome(
        self,
        now: Tensor,
        then: Tensor,
        where: slice,
        answer: Sequence[int],
        said: Sequence[int],
        pictured: bool,
    ) -> Reply:
        mine, base = now[where].log_softmax(-1), then[where].log_softmax(-1)
        wanted = torch.tensor(answer, device=now.device)
        top, base_top = mine.topk(TOP).indices, base.topk(TOP).indices
        shared = (top[:, :, None] == base_top[:, None, :]).any(-1)
        ranks = TOP if pictured else 1
        every = now.topk(ranks).indices == then.topk(ranks).indices
        text = self.asking.tokenizer.decode(list(said)).strip() if self.generate else None
        return Reply(
            accuracy=float((top[:, 0] == wanted).float().mean()),
            agreement=float((top[:, 0] == base_top[:, 0]).float().mean()),
            overlap=float(shared.float().mean()),
            divergence=float((mine.exp() * (mine - base)).sum(-1).mean()),
            compatible=float(every.float().mean()),
            target=float(mine.gather(1, wanted[:, None]).mean().exp()),
            first=int(top[0, 0]),
            says=self.asking.tokenizer.decode(top[:, 0].tolist()).strip(),
            said=text,
        )


def _metrics(
    probes: Sequence[MultimodalQuestion],
    after: Sequence[Reply],
    before: Sequence[Reply],
    edits: int,
    drawing: dict[str, Any],
) -> dict[str, Estimate]:
    """Estimate every measure: questions are averaged within each edit first, then over edits."""
    kinds: dict[str, tuple[str, str, float]] = {}  # protocol, unit, scale
    values: list[tuple[int, str, float]] = []

    def note(
        name: str, value: float, protocol: str, unit: str = "percent", scale: float = 100
    ) -> None:
        kinds[name] = (protocol, unit, scale)
        values.append((probe.edit, name, value))

    for probe, now, then in zip(probes, after, before, strict=True):
        name = str(probe.measure)
        if KINDS[probe.measure] != "neighbour":
            note(name, now.accuracy, TEACHER_FORCED)
            if now.said is not None:
                note(f"{name}_said", float(now.said == probe.answer), FREE)
            continue
        note(name, now.agreement, TEACHER_FORCED)
        note(f"{name}_top{TOP}", now.overlap, TEACHER_FORCED)
        note(f"{name}_kl", now.divergence, TEACHER_FORCED, "nats", 1)
        if now.said is not None:
            note(f"{name}_said", float(now.said == then.said), FREE)
        note(f"{name}_easyedit", now.compatible, COMPATIBLE)
    if not values:
        return {}
    columns = means_of_records(values, edits, list(kinds))
    drawn = redrawn_means(columns, **drawing)
    return {
        name: metric(drawn[name], count_known(columns[name]), *kinds[name])
        for name in sorted(columns, key=_order)
    }


def _order(name: str) -> tuple[int, int]:
    """Return the sort key: by measure, each measure's headline first."""
    for place, measure in enumerate(KINDS):
        if name == measure or name.startswith(f"{measure}_"):
            return place, len(name) - len(measure)
    return len(KINDS), 0


def _chance(
    probes: Sequence[MultimodalQuestion],
    before: Sequence[Reply],
    asking: Asking,
    edits: Sequence[Edit],
) -> dict[str, float]:
    """Return what answers to other questions would score, per headline measure, in percent.

    For targets, this is how often the base answers the neighbours' questions with the target's first token;
    for localities, how often it gives the same first token to two different questions of the same kind.
    """
    kinds = [KINDS[probe.measure] for probe in probes]
    others = [o.first for o, kind in zip(before, kinds, strict=True) if kind == "neighbour"]
    found: dict[str, float] = {}
    for measure, kind in KINDS.items():
        mine = [(p, o) for p, o in zip(probes, before, strict=True) if p.measure == measure]
        if kind == "neighbour" and len(mine) > 1:
            _, counts = np.unique([o.first for _, o in mine], return_counts=True)
            found[measure] = 100 * float(
                (counts * (counts - 1)).sum() / len(mine) / (len(mine) - 1)
            )
        elif kind != "neighbour" and mine and others:
            firsts = [asking.target(edits[p.edit].target, p.prompt)[0] for p, _ in mine]
            found[measure] = 100 * float(np.mean([[f == o for o in others] for f in firsts]))
    return found


def _notes(
    edits: Sequence[Edit], probes: Sequence[MultimodalQuestion], compared: bool, asking: Asking
) -> list[str]:
    notes = [f"asked in the {asking.template} form"]
    asked = {probe.measure for probe in probes}
    notes += [
        f"no {measure}: no edit has such questions" for measure in KINDS if measure not in asked
    ]
    if not compared:
        notes.append("without a patch, localities compare the model with itself")
    if len(edits) < 30:
        notes.append(f"{len(edits)} edits only: intervals by bootstrap are too narrow")
    return notes


def _rows(
    edits: Sequence[Edit],
    probes: Sequence[MultimodalQuestion],
    after: Sequence[Reply],
    before: Sequence[Reply] | None,
) -> list[EditRow]:
    rows = [EditRow.model_validate(edit, from_attributes=True) for edit in edits]

    def answer(outcome: Reply) -> Answer:
        return Answer(
            target=outcome.target,
            accuracy=outcome.accuracy,
            says=outcome.says,
            generated=outcome.said,
        )

    for number, probe in enumerate(probes):
        rows[probe.edit].prompts.append(
            PromptRow(
                kind=KINDS[probe.measure],
                prompt=probe.prompt,
                wanted=probe.answer or "",
                after=answer(after[number]),
                before=answer(before[number]) if before is not None else None,
                image=probe.image,
            )
        )
    return rows
