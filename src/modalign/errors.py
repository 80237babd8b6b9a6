"""Errors a user can act on. Each says what was wrong, where, and what to do; the CLI maps them to exit codes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ModalignError(Exception):
    """A failure of the work itself (exit code 1)."""

    exit_code = 1


class UsageError(ModalignError):
    """A wrong option, name or configuration (exit code 2)."""

    exit_code = 2


class DataError(ModalignError):
    """Input data that cannot be used (exit code 3)."""

    exit_code = 3


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def meant(name: object, known: Iterable[str]) -> str:
    """A question for whoever wrote a name that does not exist; empty where no known one is like it."""
    by_fold = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(str(name).casefold(), by_fold, n=3, cutoff=0.65)
    return f"did you mean {' or '.join(by_fold[each] for each in near)}?" if near else ""


def choose(name: object, known: Iterable[str]) -> str:
    """What to write in place of a name that does not exist: the nearest, and all that there are."""
    names = list(known)
    return f"{meant(name, names)} choose from {', '.join(names)}".strip()
