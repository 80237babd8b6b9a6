"""Turn the fields of one record into an :class:`Edit`, whichever file it came from.

Five layouts, told apart by their fields:

* CounterFact as published (``requested_rewrite``; Meng et al. 2022, arXiv 2202.05262): a template
  with ``{}``, two paraphrases, ten neighbourhood prompts whose answer is the true target;
* CounterFact in MEND's records (``target_new``, ``rephrase_prompt``, ``locality_prompt``): full
  prompts, one paraphrase and one neighbour;
* zsRE in MEND's records (``src``, ``alt``, ``rephrase``, ``loc``; Mitchell et al. 2022, arXiv
  2110.11309): questions, one paraphrase and one unrelated question;
* MMEdit's records (``src``, ``alt`` and ``image``; Cheng et al. 2023, arXiv 2310.08475): a question
  about a picture, a paraphrase, another picture, a text-only and a picture question to be left alone;
* plain: ``subject``, ``prompt``, ``target`` and whatever else is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from modalign.data.images import check_image
from modalign.data.records import Media
from modalign.data.signals import SignalError
from modalign.editing.edits import Edit, Neighbour
from modalign.editing.readers.fields import Fields
from modalign.editing.readers.placing import fill, place_subject


def build(
    values: dict[str, Any], *, cells: bool, folder: Path, source: str
) -> tuple[Edit | None, str | None, list[str]]:
    """Build an edit from one record.

    Args:
        values: the record's fields.
        cells: whether they come from a table.
        folder: the folder that relative image paths start from.
        source: ``file:line``.

    Returns:
        The edit (its id empty if the record gives none) and the problems; None instead of the edit if
        there are any.
    """
    fields = Fields(values, cells)
    edit, inner = _layout(values)(fields)
    problems = fields.close(*inner)
    opened = replace(
        edit,
        source=source,
        image=_image(edit.image, folder, problems),
        other_images=tuple(str(_image(path, folder, problems)) for path in edit.other_images),
        neighbours=tuple(
            replace(neighbour, image=_image(neighbour.image, folder, problems))
            for neighbour in edit.neighbours
        ),
    )
    placed = _place(opened, problems)
    if edit.target and edit.target == edit.truth:
        problems.append(f"the target {edit.target!r} equals the truth: there is nothing to edit")
    return None if problems else placed, edit.id or None, problems


def _layout(values: dict[str, Any]) -> Callable[[Fields], tuple[Edit, list[Fields]]]:
    if "requested_rewrite" in values:
        return _counterfact
    if "image" in values and ("src" in values or "m_loc" in values):
        return _mmedit
    if "src" in values or "alt" in values:
        return _zsre
    if "target_new" in values or "rephrase_prompt" in values:
        return _mend
    return _plain


def _counterfact(fields: Fields) -> tuple[Edit, list[Fields]]:
    rewrite = fields.inner("requested_rewrite")
    new, true = rewrite.inner("target_new"), rewrite.inner("target_true")
    for target in (new, true):
        target.ignore("id")
    rewrite.ignore("relation_id")
    fields.ignore("pararel_idx", "attribute_prompts")
    truth = _joined(true.text("str"))
    edit = Edit(
        id=fields.identifier("case_id") or "",
        subject=rewrite.text("subject").strip(),
        prompt=_trimmed(rewrite.text("prompt")),
        subject_at=None,
        target=_joined(new.text("str")),
        truth=truth,
        protocol="counterfact",
        paraphrases=fields.texts("paraphrase_prompts"),
        neighbours=tuple(Neighbour(p, truth) for p in fields.texts("neighborhood_prompts")),
        generation_prompts=fields.texts("generation_prompts"),
        reference_texts=fields.texts("reference_texts"),
    )
    return edit, [rewrite, new, true]


def _mend(fields: Fields) -> tuple[Edit, list[Fields]]:
    fields.ignore("portability", "relation_id")
    truth = fields.optional_text("ground_truth")
    paraphrase = fields.optional_text("rephrase_prompt")
    neighbour = fields.optional_text("locality_prompt")
    answer = fields.optional_text("locality_ground_truth")
    edit = Edit(
        id=fields.identifier("case_id") or "",
        subject=fields.text("subject").strip(),
        prompt=_trimmed(fields.text("prompt")),
        subject_at=None,
        target=_joined(fields.text("target_new")),
        truth=_joined(truth) or None,
        protocol="counterfact",
        paraphrases=(paraphrase,) if paraphrase else (),
        neighbours=(Neighbour(neighbour, _joined(answer) or None),) if neighbour else (),
    )
    return edit, []


def _zsre(fields: Fields) -> tuple[Edit, list[Fields]]:
    """Teach ``alt``; without it the first right answer, as ROME and MEMIT do.

    If ``alt`` is itself a right answer, the edit corrects the model, so no truth is recorded that it
    would replace. ``pred`` is another model's answer and is used only if there are no ``answers``.
    """
    fields.ignore("cond", "portability", "relation_id")
    number = fields.identifier("case_id") or fields.identifier("id")
    answers = tuple(_joined(answer) for answer in fields.texts("answers"))
    pred = _joined(fields.optional_text("pred"))
    alt = _joined(fields.optional_text("alt"))
    known = answers or ((pred,) if pred else ())
    target = alt or (answers[0] if answers else "")
    if not target:
        fields.problems.append("no target: alt is empty, and so is answers")
    paraphrase, question = fields.optional_text("rephrase"), fields.optional_text("loc")
    answer = fields.optional_text("loc_ans")
    if question:
        question = question.strip() + ("" if question.strip().endswith("?") else "?")
    edit = Edit(
        id=number or "",
        subject=fields.text("subject").strip(),
        prompt=_trimmed(fields.text("src")),
        subject_at=None,
        target=target,
        truth=None if target in known or not known else known[0],
        protocol="zsre",
        paraphrases=(paraphrase,) if paraphrase else (),
        neighbours=(Neighbour(question, _joined(answer) or None),) if question else (),
    )
    return edit, []


def _mmedit(fields: Fields) -> tuple[Edit, list[Fields]]:
    """Build an edit without a named subject, which is in the picture. ``pred`` is another model's answer."""
    fields.ignore("pred", "textual_edit", "portability_prompt", "portability_ground_truth")
    paraphrase = fields.optional_text("rephrase")
    other = fields.optional_text("image_rephrase")
    neighbours = []
    for prompt, answer, image in (("loc", "loc_ans", None), ("m_loc_q", "m_loc_a", "m_loc")):
        question, said = fields.optional_text(prompt), _joined(fields.optional_text(answer))
        shown = fields.optional_text(image) if image is not None else None
        if question:
            neighbours.append(Neighbour(_trimmed(question), said or None, shown))
    edit = Edit(
        id=fields.identifier("case_id") or fields.identifier("id") or "",
        subject="",
        prompt=_trimmed(fields.text("src")),
        subject_at=None,
        target=_joined(fields.text("alt")),
        truth=None,
        protocol="plain",
        paraphrases=(paraphrase,) if paraphrase else (),
        neighbours=tuple(neighbours),
        image=fields.text("image"),
        other_images=(other,) if other else (),
    )
    return edit, []


def _plain(fields: Fields) -> tuple[Edit, list[Fields]]:
    inner: list[Fields] = []
    neighbours = []
    for place, item in enumerate(fields.items("neighbours"), start=1):
        if isinstance(item, str):
            item = {"prompt": item}
        if not isinstance(item, dict):
            fields.problems.append(f"neighbours, item {place}, must be a text or an object")
            continue
        part = Fields(item, inside=f"neighbours[{place}].")
        prompt, answer = part.text("prompt"), _joined(part.optional_text("answer"))
        shown = part.optional_text("image")
        neighbours.append(Neighbour(_trimmed(prompt), answer or None, shown))
        inner.append(part)
    edit = Edit(
        id=fields.identifier("id") or "",
        subject=(fields.optional_text("subject") or "").strip(),
        prompt=_trimmed(fields.text("prompt")),
        subject_at=None,
        target=_joined(fields.text("target")),
        truth=_joined(fields.optional_text("truth")) or None,
        protocol="plain",
        paraphrases=fields.texts("paraphrases"),
        neighbours=tuple(neighbours),
        generation_prompts=fields.texts("generation_prompts"),
        reference_texts=fields.texts("reference_texts"),
        image=fields.optional_text("image"),
        image_prompt=_trimmed(fields.optional_text("image_prompt") or "") or None,
        other_images=fields.texts("other_images"),
    )
    if edit.image is None and (edit.image_prompt or edit.other_images):
        fields.problems.append("image_prompt and other_images need an image")
    if not edit.subject and not edit.image:
        fields.problems.append("subject is missing: only an edit with an image may do without one")
    return edit, inner


def _trimmed(prompt: str) -> str:
    """Strip surrounding spaces, since the joining space belongs to the answer; line breaks stay."""
    return prompt.strip(" ")


def _joined(answer: str | None) -> str:
    return (answer or "").strip()


def _place(edit: Edit, problems: list[str]) -> Edit | None:
    """Give an edit its full prompts; None if it has none or a problem was noted."""
    if not edit.prompt or (not edit.subject and not edit.image):
        return None
    try:
        prompt, at = (
            place_subject(edit.prompt, edit.subject)
            if edit.subject
            else (fill(edit.prompt, ""), None)
        )
        return replace(
            edit,
            prompt=prompt,
            subject_at=at,
            paraphrases=_filled(edit.paraphrases, edit.subject),
            generation_prompts=_filled(edit.generation_prompts, edit.subject),
        )
    except ValueError as error:
        problems.append(str(error))
        return None


def _filled(prompts: Sequence[str], subject: str) -> tuple[str, ...]:
    return tuple(fill(_trimmed(text), subject) for text in prompts)


def _image(image: str | None, folder: Path, problems: list[str]) -> str | None:
    if image is None:
        return None
    path = str(folder / image)
    try:
        check_image(Media("image", path=path))
    except SignalError as error:
        problems.append(f"the image {image}: {error.reason}")
    return path
