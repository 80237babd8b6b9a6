"""Find what went wrong with single edits; it is reported with the patch, and refused under ``--strict``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modalign.editing.computation import Computation, Solution
from modalign.editing.engine.asking import Asking
from modalign.editing.engine.forward import Row, logits_at
from modalign.editing.engine.requests import Request
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.readers.rows import shown
from modalign.errors import ModalignError
from modalign.models.projections import evaluating
from modalign.patches.changes import Change
from modalign.patches.header import EditRecord
from modalign.patches.patch import Patch

NEAR = 0.95  # cosine of two keys above which one weight can hardly give them two answers
ABSURD = 10.0  # |Delta of one edit| / |W|; on tiny models one to three is ordinary


NOT_WRITTEN = "not written: "  # how the warning begins for an edit that the model does not say


class StrictError(ModalignError):
    """An edit has warnings, and ``--strict`` was given."""


def refuse_warnings(patch: Patch) -> None:
    """Raise if any edit of a patch carries a warning.

    Raises:
        StrictError: some edit does; the message lists every warning.
    """
    lines = [
        f"edit {edit.id} ({edit.subject or edit.prompt}): {warning}"
        for edit in patch.header.editing.edits
        for warning in edit.warnings
    ]
    lines += [note for note in patch.header.history if "ill-conditioned" in note]
    if lines:
        raise StrictError("refused by --strict:\n  " + "\n  ".join(lines))


def refuse_unwritten(patch: Patch) -> None:
    """Raise if a patch writes none of its edits.

    Raises:
        ModalignError: none was written; the message says what is wrong with the first ones and what may help.
    """
    lines = []
    for edit in patch.header.editing.edits:
        why = next((warning for warning in edit.warnings if NOT_WRITTEN in warning), None)
        if why is None:
            return
        lines.append(f"  edit {edit.id} ({edit.subject or edit.prompt}): {why}")
    raise ModalignError("\n".join(["no edit was written, so no patch was saved:", *shown(lines)]))


HELPS = {  # setting -> the change of it that may help an edit that was not written
    "covariance_weight": "a smaller covariance_weight",
    "clamp": "a larger clamp",
    "steps": "more steps",
    "epochs": "more epochs",
    "layers": "other layers",
}


def edit_records(
    computation: Computation, solution: Solution, settings: Collection[str]
) -> tuple[EditRecord, ...]:
    """Record how each edit went, with its warnings; the changed weights must still be in the model.

    Args:
        computation: the model and its edits.
        solution: what was written.
        settings: names of the method's settings, so that advice names only those.
    """
    helps = ", ".join(words for name, words in HELPS.items() if name in settings)
    requests = computation.plan.requests
    written = _probabilities(computation.spec, requests)
    plain = _plain_probabilities(computation)
    near = _near_keys(requests, solution)
    large = _absurd_norms(computation, solution)
    parts = []
    for number, request in enumerate(requests):
        value = solution.values[number] if solution.values is not None else None
        warnings = []
        if value is not None and not value.reached:
            warnings.append(
                f"not reached: the value gives the target a probability of {value.probability:.2f} "
                f"after {value.steps} steps; what may help (--set): {helps}"
            )
        if not written[number].first:
            warnings.append(
                f"{NOT_WRITTEN}with the patch, the target is not the first choice at every token "
                f"(probability per token {written[number].probability:.2f}); what may help (--set): {helps}"
            )
        edit = request.edit
        parts.append(
            EditRecord(
                id=edit.id,
                subject=edit.subject,
                prompt=edit.prompt,
                target=edit.target,
                truth=edit.truth,
                image=edit.image,
                lookup=request.lookup,
                steps=value.steps if value else None,
                probability=value.probability if value else None,
                written=written[number].probability,
                plain=plain.get(number),
                value_norm=value.relative_norm if value else None,
                warnings=(*warnings, *near.get(number, ())),
            )
        )
    return tuple(
        _one_record([parts[number] for number in numbers], large.get(edit, []))
        for edit, numbers in _by_edit(computation.plan.owners).items()
    )


def _by_edit(owners: Sequence[int]) -> dict[int, list[int]]:
    """Return each edit's requests, by number."""
    found: dict[int, list[int]] = {}
    for number, edit in enumerate(owners):
        found.setdefault(edit, []).append(number)
    return found


def _one_record(parts: Sequence[EditRecord], more: Sequence[str]) -> EditRecord:
    """Merge the records of an edit whose text and picture were written separately: the worse value of each."""
    warnings = [
        f"{part.lookup}: {warning}" if len(parts) > 1 else warning
        for part in parts
        for warning in part.warnings
    ]

    def least(name: str) -> float | None:
        return min((v for part in parts if (v := getattr(part, name)) is not None), default=None)

    def most(name: str) -> float | None:
        return max((v for part in parts if (v := getattr(part, name)) is not None), default=None)

    update = {
        "lookup": "; ".join(str(part.lookup) for part in parts),
        "probability": least("probability"),
        "written": least("written"),
        "plain": least("plain"),
        "steps": most("steps"),
        "value_norm": most("value_norm"),
        "warnings": (*warnings, *more),
    }
    return parts[0].model_copy(update=update)


@dataclass(frozen=True)
class _Written:
    probability: float
    first: bool  # the target is the first choice at every position


def _probabilities(spec: ModelSpec, requests: Sequence[Request]) -> list[_Written]:
    """Measure the targets after the bare prompts, with the weights as they are now."""
    found = []
    for start in range(0, len(requests), 64):
        part = requests[start : start + 64]
        with torch.no_grad(), evaluating(spec.language):
            rows = [request.continued for request in part]
            logits = logits_at(spec, rows, [request.predicting for request in part])
        for request, mine in zip(part, logits, strict=True):
            mine = mine.log_softmax(-1)
            target = torch.tensor(request.target, device=mine.device)
            chosen = mine.gather(1, target[:, None]).mean()
            hit = bool((mine.argmax(-1) == target).all())
            found.append(_Written(float(chosen.exp()), hit))
    return found


def _plain_probabilities(computation: Computation) -> dict[int, float]:
    """Return the targets' probabilities in the plain form, by number, for requests written in the chat form."""
    rewriter = computation.plan.rewriter
    if not rewriter.asking.chat:
        return {}
    asking = Asking(rewriter.asking.tokenizer, "plain")
    asked = {
        number: replace(
            request,
            prompts=(Row(asking.text(request.edit.prompt).ids, 0),),
            target=asking.target(request.edit.target, request.edit.prompt),
        )
        for number, request in enumerate(computation.plan.requests)
        if not request.lookup.startswith("image")
    }
    found = _probabilities(computation.spec, list(asked.values()))
    return {number: one.probability for number, one in zip(asked, found, strict=True)}


def _near_keys(requests: Sequence[Request], solution: Solution) -> dict[int, list[str]]:
    """Warn of edits whose keys are nearly the same but whose targets differ."""
    keys = _keys(solution.changes, len(requests))
    if keys is None:
        return {}
    unit = keys / keys.norm(dim=0).clamp(min=1e-300)
    close = ((unit.T @ unit).triu(1) > NEAR).nonzero().tolist()
    found: dict[int, list[str]] = {}
    for first, second in close:
        a, b = requests[first].edit, requests[second].edit
        if a is b or a.target == b.target:
            continue
        for mine, other in ((first, b), (second, a)):
            found.setdefault(mine, []).append(
                f"near-duplicate key: almost that of edit {other.id} ({other.subject!r} -> "
                f"{other.target!r}); one of the two will give way"
            )
    return found


def _keys(changes: Mapping[str, Change], count: int) -> Tensor | None:
    """Return the keys at the last layer written, one column per edit."""
    keys = list(changes.values())[-1].own_keys() if changes else None
    return None if keys is None else keys[:, :count]


def _absurd_norms(computation: Computation, solution: Solution) -> dict[int, list[str]]:
    """Warn of edits whose own part of a change is many times larger than the weight itself."""
    found: dict[int, list[str]] = {}
    for name, change in solution.changes.items():
        scale = float(computation.weights.original(name).double().norm())
        for number, norm in change.edit_norms().items():
            if norm > ABSURD * scale:
                found.setdefault(number, []).append(
                    f"absurd update: |Delta| is {norm / scale:.1f} times |W| of {name}"
                )
    return found
