"""Prompts and targets as token ids: positions come from character offsets, never from re-tokenising.

Nothing here depends on a tokenizer's global padding side, its BOS or its treatment of leading spaces:
rows are padded on the right with an explicit mask, special tokens appear only at the start of a prompt
(as the tokenizer puts them there), and a target is tokenised so that it reads as the prompt's
continuation.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modalign.chat_templates import ids_and_offsets, ids_of, plain_ids
from modalign.errors import DataError


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt.

    Attributes:
        ids: with the tokenizer's own special tokens at the start, none at the end.
        lookup: position of the subject's last token, or of the prompt's last token if there is no subject.
        text: what was tokenised.
    """

    ids: tuple[int, ...]
    lookup: int
    text: str


@dataclass(frozen=True)
class Rows:
    """Right-padded rows: ``ids`` (B, T) and ``mask`` (B, T) with 1 at real tokens.

    A cache may hold the ``begin`` tokens that all rows share; these are not run again.
    """

    ids: Tensor
    mask: Tensor
    begin: int = 0

    @property
    def run(self) -> Tensor:
        """The ids that are run, (B, T - begin)."""
        return self.ids[:, self.begin :]

    @property
    def positions(self) -> Tensor:
        """Their position ids, (B, T - begin)."""
        return (self.mask.cumsum(1) - 1).clamp(min=0)[:, self.begin :]


def encode_prompt(
    tokenizer: Any, text: str, subject: str = "", subject_at: int | None = None
) -> Prompt:
    """Tokenise a prompt and find its lookup token.

    Args:
        tokenizer: a fast tokenizer (character offsets are needed for the subject).
        text: the full prompt.
        subject: the words the fact is about; empty for the prompt's last token.
        subject_at: offset of the subject in ``text``.

    Raises:
        DataError: the tokenizer cannot say where the subject is.
    """
    ids = tuple(plain_ids(tokenizer, text))
    if not subject:
        return Prompt(ids, len(ids) - 1, text)
    if subject_at is None or text[subject_at : subject_at + len(subject)] != subject:
        raise DataError(f"the subject {subject!r} is not at offset {subject_at} of {text!r}")
    _, offsets = ids_and_offsets(tokenizer, text, add_special_tokens=True)
    return Prompt(ids, end_of(subject, subject_at, offsets[: len(ids)], text), text)


def end_of(subject: str, at: int, offsets: Sequence[tuple[int, int]], text: str) -> int:
    """Return the position of a subject's last token.

    Args:
        subject: as written in the text.
        at: offset of its first character.
        offsets: per token, the offset of its first character and the offset after its last.
        text: for the message.

    Raises:
        DataError: no token covers it.
    """
    last = at + len(subject.rstrip()) - 1
    covering = [i for i, (start, end) in enumerate(offsets) if start <= last < end]
    if not covering:
        raise DataError(f"no token covers the end of {subject!r} in {text!r}")
    return covering[-1]


def encode_target(
    tokenizer: Any, target: str, prompt: str, joint: str | None = None
) -> tuple[int, ...]:
    """Tokenise an answer as the continuation of a prompt: with the joining space, without special tokens.

    Args:
        tokenizer: the model's.
        target: the answer, without leading space.
        prompt: the text it continues; a space is inserted unless the prompt already ends in one or
            its script is written without spaces (Chinese, Japanese, Thai ...).
        joint: the text to insert instead, where a chat template prescribes one.

    Raises:
        DataError: the target is empty, or no tokenisation reads back as it.
    """
    if not target.strip():
        raise DataError(f"the target of {prompt!r} is empty")
    if joint is None:
        joint = "" if _unspaced(prompt) else " "
    wanted = joint + target
    anchor = "a" if joint else "\n"
    anchored = ids_of(tokenizer, anchor + wanted)
    start = ids_of(tokenizer, anchor)
    candidates = [ids_of(tokenizer, wanted), ids_of(tokenizer, target)]
    if anchored[: len(start)] == start:
        candidates.append(anchored[len(start) :])
    before = _decode(tokenizer, start)
    for candidate in candidates:
        if candidate and _decode(tokenizer, start + candidate) == before + wanted:
            return tuple(candidate)
    # Tokenizers that normalise (lower case, accents) do not read back the same; take the plain ids.
    if candidates[0]:
        return tuple(candidates[0])
    raise DataError(f"the tokenizer has no tokens for the target {target!r}")


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _unspaced(prompt: str) -> bool:
    """Return whether a continuation of the prompt follows without a space."""
    return not prompt or prompt[-1].isspace() or _script_without_spaces(prompt[-1])


def _script_without_spaces(character: str) -> bool:
    name = unicodedata.name(character, "")
    return name.startswith(("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "FULLWIDTH"))


def pad(rows: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Rows:
    """Join rows of ids into one right-padded batch; padding is id 0, hidden by the mask."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = 1
    return Rows(ids.to(device), mask.to(device))
