"""An edit's rewriting prompts: its text, bare and in contexts; its picture and variants of the picture.

Text and picture rows of one edit either share one value and one averaged key (``joint``), or the
edit is written twice, with a separate value and key for each (``own``): the same algebra, with two
columns for one edit. A text row and a picture row have little in common at the lookup token, so the
mean of their keys fits neither; hence ``own`` is the default.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from modalign.data.images import open_image
from modalign.data.records import Media
from modalign.editing.edits import Edit
from modalign.editing.engine.asking import Asking, Template
from modalign.editing.engine.forward import Row
from modalign.editing.engine.lookups import LookupName, look_up
from modalign.editing.engine.requests import KL_PROMPT, Request
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.multimodal.eyes import Eyes
from modalign.editing.multimodal.variants import MOST, variants
from modalign.errors import UsageError
from modalign.lengths import check_length, declared_length

ImageKeys = Literal["own", "joint"]
RewrittenRows = Literal["both", "text", "image"]


class Rewriting(BaseModel):
    """Settings of the edits' rewriting prompts.

    Attributes:
        template: the form in which the model is asked: ``chat`` (its chat template), ``plain``, or
            ``auto``: chat if the model has a template, as ``modalign ask`` does.
        lookup: the token an edit is written at: ``subject`` (its last token), ``last`` (of the
            prompt), ``visual`` (the picture's last), or ``auto``: the subject if the text names
                it, else the last.
        rewrite: for an edit with a picture, rewrite ``both`` its text and its picture prompts, or only
            one of them; an edit without a picture, or without a subject in its text, has only one kind.
        variants: how many variants of an edit's picture to use, besides the picture itself.
        image_keys: text and picture each get their ``own`` key and value, or share ``joint`` ones.
        image_share: with a joint key, the weight of the picture's prompts in the loss.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: Template = "auto"
    lookup: LookupName = "auto"
    rewrite: RewrittenRows = "both"
    variants: int = Field(default=4, ge=0, le=MOST)
    image_keys: ImageKeys = "own"
    image_share: float = Field(default=0.5, gt=0, lt=1)


class Rewriter:
    """Makes the requests of edits for one model."""

    def __init__(self, spec: ModelSpec, reader: Any, settings: Rewriting) -> None:
        self.asking = Asking(reader, settings.template)
        self.settings = settings
        self.spec = spec
        self._eyes: Eyes | None = None

    @property
    def eyes(self) -> Eyes:
        """The reader of pictures, made when the first one comes."""
        if self._eyes is None:
            self._eyes = Eyes(self.spec)
        return self._eyes

    def requests(self, edits: Iterable[Edit], contexts: Sequence[str]) -> list[Request]:
        """Make one request per edit, or two where text and picture have keys of their own."""
        return [request for edit in edits for request in self.of(edit, contexts)]

    def of(self, edit: Edit, contexts: Sequence[str]) -> list[Request]:
        """Make the requests of one edit.

        Raises:
            DataError: the subject cannot be found, or the picture cannot be opened.
            UsageError: the model takes no pictures, or nothing is left to rewrite.
        """
        wanted = self.settings.rewrite
        named = bool(edit.subject) or edit.image is None
        text = named and (wanted != "image" or edit.image is None)
        picture = edit.image is not None and (wanted != "text" or not named)
        if not text and not picture:
            raise UsageError(f"{_where(edit)}: neither text nor picture to rewrite")
        parts = []
        if text:
            parts.append(self._text(edit, contexts))
        if picture:
            parts.append(self._picture(edit))
        limit = declared_length(self.spec.model.config)
        for part in parts:
            longest = max(map(len, part.prompts))
            check_length(longest, limit, _where(edit), len(part.target))
        if len(parts) == 2 and self.settings.image_keys == "joint":
            return [_joined(parts[0], parts[1], self.settings.image_share)]
        return parts

    def _text(self, edit: Edit, contexts: Sequence[str]) -> Request:
        rows, lookup = [], "subject"
        for context in ("", *contexts):
            before = f"{context}. " if context else ""
            at = None if edit.subject_at is None else edit.subject_at + len(before)
            asked = self.asking.text(before + edit.prompt, edit.subject, at)
            position, lookup = look_up(asked, self.settings.lookup, _where(edit))
            rows.append(Row(asked.ids, position))
        return Request(
            edit=edit,
            prompts=tuple(rows),
            groups=(0, *[1] * len(contexts)),
            shares=(1 / len(rows),) * len(rows),
            target=self.asking.target(edit.target, edit.prompt),
            kl=self._kl(edit) if lookup == "subject" else None,
            lookup=lookup,
        )

    def _kl(self, edit: Edit) -> Row | None:
        """Make the row on which the model must not change, if the value is added at the subject.

        At a prompt's last token the value is the answer itself, so there is nothing to preserve.
        """
        if not edit.subject:
            return None
        asked = self.asking.text(KL_PROMPT.replace("{}", edit.subject), edit.subject, 0)
        assert asked.subject is not None
        return Row(asked.ids, asked.subject)

    def _picture(self, edit: Edit) -> Request:
        assert edit.image is not None
        prompt = edit.asked_of_image
        # If the question differs from the text's prompt, we do not know where it names the subject.
        at = edit.subject_at if edit.image_prompt is None else None
        subject = edit.subject if at is not None else ""
        image = open_image(Media("image", path=edit.image))
        rows, lookup = [], "last"
        for shown in (image, *variants(image, self.settings.variants)):
            asked = self.asking.picture(prompt, shown, subject, at)
            position, lookup = look_up(asked, self.settings.lookup, _where(edit))
            rows.append(self.eyes.row(asked, position))
        return Request(
            edit=edit,
            prompts=tuple(rows),
            groups=(0, *[1] * (len(rows) - 1)),
            shares=(1 / len(rows),) * len(rows),
            target=self.asking.target(edit.target, prompt),
            kl=None,
            lookup=f"image: {lookup}",
        )


def _joined(text: Request, picture: Request, share: float) -> Request:
    """Join both kinds of rows for one value and one key."""
    groups = max(text.groups) + 1
    return Request(
        edit=text.edit,
        prompts=text.prompts + picture.prompts,
        groups=text.groups + tuple(groups + group for group in picture.groups),
        shares=tuple(s * (1 - share) for s in text.shares)
        + tuple(s * share for s in picture.shares),
        target=text.target,
        kl=text.kl,
        lookup=f"{text.lookup}; {picture.lookup}",
    )


def _where(edit: Edit) -> str:
    return edit.source or f"edit {edit.id}"
