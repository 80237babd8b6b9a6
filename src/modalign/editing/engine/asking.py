"""How an edited model is asked: a prompt as it stands, or as the user's message in its chat template.

An edit must hold where the model is used. A model that ``modalign ask`` addresses through its chat
template sees a prompt between the template's marks and answers where the template says so. The prompt
is therefore tokenised, the subject found and the target begun within the template. Special tokens come
from the template or from the tokenizer, never from both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL.Image import Image

from modalign.chat_templates import as_text, ids_and_offsets, rendered
from modalign.editing.engine.tokens import encode_prompt, encode_target, end_of
from modalign.errors import DataError, UsageError
from modalign.models.asking import tokenizer_of
from modalign.models.probe import prepare

Template = Literal["auto", "chat", "plain"]


@dataclass(frozen=True)
class Asked:
    """A prompt as the model reads it.

    Attributes:
        ids: token ids, including a picture's placeholders; they end where the answer begins.
        subject: position of the subject's last token; None where the text does not name it.
        picture: position of the last placeholder; None without a picture.
        inputs: with a picture, the keyword arguments for the whole model.
    """

    ids: tuple[int, ...]
    subject: int | None
    picture: int | None = None
    inputs: dict[str, Any] | None = None


def has_template(reader: Any) -> bool:
    """Return whether a tokenizer or a processor has a chat template."""
    return any(getattr(part, "chat_template", None) for part in (reader, tokenizer_of(reader)))


class Asking:
    """The form in which one model is asked.

    Args:
        reader: the model's tokenizer, or its processor where it takes pictures.
        template: ``chat`` for its chat template, ``plain`` for prompts as they stand, ``auto`` for its
            chat template if it has one, as ``modalign ask`` does.

    Raises:
        UsageError: ``chat`` without a chat template.
    """

    def __init__(self, reader: Any, template: Template = "auto") -> None:
        self.reader = reader
        self.tokenizer: Any = tokenizer_of(reader)
        self.takes_pictures = self.tokenizer is not reader
        if template == "chat" and not has_template(reader):
            raise UsageError(f"{type(reader).__name__} has no chat template: ask in the plain form")
        self.chat = template != "plain" and has_template(reader)

    @classmethod
    def of(cls, reader: Any) -> Asking:
        """Make the plain form from a tokenizer; an :class:`Asking` is returned as it is."""
        return reader if isinstance(reader, Asking) else cls(reader, "plain")

    @property
    def template(self) -> Literal["chat", "plain"]:
        """``chat`` or ``plain``."""
        return "chat" if self.chat else "plain"

    def text(self, prompt: str, subject: str = "", subject_at: int | None = None) -> Asked:
        """Render and tokenise a prompt without a picture.

        Raises:
            DataError: the subject is not where it should be, or the template does not hold the prompt.
        """
        if not self.chat:
            plain = encode_prompt(self.tokenizer, prompt, subject, subject_at)
            return Asked(plain.ids, plain.lookup if subject else None)
        text = self._rendered(prompt, pictures=0)
        at = self._place(text, prompt, subject, subject_at)
        ids, found = self._encoded(text, subject, at)
        return Asked(ids, found)

    def picture(
        self, prompt: str, image: Image, subject: str = "", subject_at: int | None = None
    ) -> Asked:
        """Render and tokenise a prompt about one picture, which is put before it.

        Raises:
            UsageError: the model takes no pictures.
            DataError: as for :meth:`text`.
        """
        if not self.takes_pictures:
            raise UsageError(
                f"{type(self.reader).__name__} reads no pictures; give the processor of a model that "
                "does, or leave the edits' images out"
            )
        text = self._rendered(prompt, pictures=1)
        inputs = self._with_picture(prompt, text, image)
        ids = tuple(inputs["input_ids"][0].tolist())
        place = self._placeholder()
        places = [position for position, token in enumerate(ids) if token == place]
        if not places:
            raise DataError(
                f"{type(self.reader).__name__} put no placeholder into {text!r}; the template "
                "does not say where the picture stands"
            )
        found = None
        if subject:
            at = self._place(text, prompt, subject, subject_at)
            short, position = self._encoded(text, subject, at)
            assert position is not None
            found = _expanded(short, ids, position, prompt)
        return Asked(ids, found, places[-1], inputs)

    def target(self, target: str, prompt: str) -> tuple[int, ...]:
        """Return the ids of an answer placed where the model's own answers begin."""
        if not self.chat:
            return encode_target(self.tokenizer, target, prompt)
        before = self._rendered(prompt, pictures=0)
        whole = self._rendered(prompt, pictures=0, answer=target)
        rest = whole[len(before) :] if whole.startswith(before) else target
        # Text that the template puts between its mark and the answer belongs to the answer.
        joint = rest[: rest.find(target)] if target in rest else ""
        return encode_target(self.tokenizer, target, prompt, joint)

    def _rendered(self, prompt: str, pictures: int, answer: str | None = None) -> str:
        if not self.chat:
            mark = getattr(self.reader, "image_token", "<image>")
            return f"{mark}\n" * pictures + prompt
        if as_text(self.tokenizer, prompt) != prompt:
            raise DataError(
                f"the prompt {prompt!r} holds a control token of the model: leave it out"
            )
        messages = [self._message("user", prompt, [{"type": "image"}] * pictures)]
        if answer is not None:
            messages.append(self._message("assistant", answer, []))
        whose = self.reader if getattr(self.reader, "chat_template", None) else self.tokenizer
        return rendered(whose, messages, answered=answer is not None)

    def _message(self, role: str, text: str, before: Sequence[dict[str, Any]]) -> dict[str, Any]:
        if not self.takes_pictures:
            return {"role": role, "content": text}
        return {"role": role, "content": [*before, {"type": "text", "text": text}]}

    def _place(self, text: str, prompt: str, subject: str, subject_at: int | None) -> int | None:
        """Return the subject's offset in the rendered text."""
        start = text.rfind(prompt)
        if start < 0:
            raise DataError(f"the chat template does not keep the prompt {prompt!r} unchanged")
        if not subject:
            return None
        if subject_at is None or prompt[subject_at : subject_at + len(subject)] != subject:
            raise DataError(f"the subject {subject!r} is not at offset {subject_at} of {prompt!r}")
        return start + subject_at

    def _encoded(
        self, text: str, subject: str, at: int | None
    ) -> tuple[tuple[int, ...], int | None]:
        """Return the ids of a rendered text, and the position of the subject's last token."""
        wanted = self._adds_specials(text)
        if at is None:
            return tuple(self.tokenizer(text, add_special_tokens=wanted)["input_ids"]), None
        ids, offsets = ids_and_offsets(self.tokenizer, text, add_special_tokens=wanted)
        return tuple(ids), end_of(subject, at, offsets, text)

    def _adds_specials(self, text: str) -> bool:
        """Return whether to add special tokens: as in transformers, not if the text begins with one already."""
        if self.chat and not self.takes_pictures:
            return False
        bos = getattr(self.tokenizer, "bos_token", None)
        return not (bos and text.startswith(bos))

    def _with_picture(self, prompt: str, text: str, image: Image) -> dict[str, Any]:
        if not self.chat:
            return dict(self.reader(text=[text], images=[image], return_tensors="pt"))
        message = self._message("user", prompt, [{"type": "image", "image": image}])
        return prepare(self.reader, [[message]])

    def _placeholder(self) -> int:
        found = getattr(self.reader, "image_token_id", None)
        if found is None:
            mark = getattr(self.reader, "image_token", "<image>")
            found = self.tokenizer.convert_tokens_to_ids(mark)
        return int(found)


def _expanded(short: tuple[int, ...], ids: tuple[int, ...], position: int, prompt: str) -> int:
    """Return where a token stands once the picture's one mark has become its placeholders."""
    after = len(short) - position
    if ids[-after:] == short[position:]:
        return len(ids) - after
    if ids[: position + 1] == short[: position + 1]:
        return position
    raise DataError(f"the subject of {prompt!r} cannot be found beside the picture's placeholders")
