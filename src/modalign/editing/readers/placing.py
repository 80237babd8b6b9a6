"""Find where the subject stands in a prompt: marked by ``{}``, or written out.

``str.format`` is not used: braces are ordinary characters in subjects, prompts and answers.
"""

from __future__ import annotations

import unicodedata

MARK = "{}"


def place_subject(prompt: str, subject: str) -> tuple[str, int]:
    """Return the full prompt and the subject's offset in it.

    A ``{}`` that is part of the subject as written in the prompt is not a placeholder.

    Raises:
        ValueError: there is no place, or there are two places or two placeholders; the message says which.
    """
    found = _starts(prompt, subject)
    marks = [at for at in _starts(prompt, MARK) if not _inside(at, found, len(subject))]
    if len(marks) > 1:
        raise ValueError(f"{len(marks)} placeholders {MARK} in {prompt!r}: mark the subject once")
    if marks:
        at = marks[0]
        return prompt[:at] + subject + prompt[at + len(MARK) :], at
    if not found:
        raise ValueError(f"the subject {subject!r} is not in {prompt!r}{_hint(prompt, subject)}")
    if len(found) > 1:
        raise ValueError(
            f"the subject {subject!r} stands {len(found)} times in {prompt!r}: "
            f"write {MARK} in place of the one that counts"
        )
    return prompt, found[0]


def fill(text: str, subject: str) -> str:
    """Return a further prompt with the subject in place of ``{}``, or as it stands.

    Raises:
        ValueError: there are two placeholders, or there is one but no subject.
    """
    if subject and subject in text:
        found = _starts(text, subject)
        marks = [at for at in _starts(text, MARK) if not _inside(at, found, len(subject))]
    else:
        marks = _starts(text, MARK)
    if len(marks) > 1:
        raise ValueError(f"{len(marks)} placeholders {MARK} in {text!r}: at most one")
    if not marks or not subject:
        return text
    return text[: marks[0]] + subject + text[marks[0] + len(MARK) :]


def _starts(text: str, part: str) -> list[int]:
    """Return the offsets of every occurrence, including overlapping ones."""
    found, at = [], text.find(part) if part else -1
    while at >= 0:
        found.append(at)
        at = text.find(part, at + 1)
    return found


def _inside(at: int, starts: list[int], length: int) -> bool:
    return any(start <= at and at + len(MARK) <= start + length for start in starts)


def _hint(prompt: str, subject: str) -> str:
    """Say why the subject may seem to be there."""
    same = unicodedata.normalize("NFKC", subject)
    if same in unicodedata.normalize("NFKC", prompt):
        return " (only in another Unicode form: write both alike)"
    if same.casefold() in prompt.casefold():
        return " (only in other capitals: write both alike)"
    return f": write it there, or {MARK} in its place"
