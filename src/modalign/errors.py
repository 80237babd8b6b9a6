"""Errors a user can act on. Each says what was wrong, where, and what to do; the CLI maps them to exit codes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence


class ModalignError(Exception):
    """A failure of the work itself (exit code 1)."""

    exit_code = 1


class UsageError(ModalignError):
    """A wrong option, name or configuration (exit code 2)."""

    exit_code = 2


class DataError(ModalignError):
    """Unusable input data (exit code 3)."""

    exit_code = 3


def first_line(error: BaseException) -> str:
    """Return an error's message in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


SINGLY = 3  # complaints of one kind that are shown one by one
ROWS = 12  # of one kind that are named
_PARTICULAR = re.compile(r"'[^']*'|\S*/\S*|[\d.]+")  # what differs between complaints of one kind


def extra(name: str) -> str:
    """How a missing library is installed, by the name of the extra that brings it; as README says."""
    return f"pip install '.[{name}]' in modalign's own folder (README, Extras)"


def meant(name: object, known: Iterable[str], least: float = 0.65) -> str:
    """A question for whoever wrote a name that does not exist; empty where no known one is like it."""
    by_fold = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(str(name).casefold(), by_fold, n=3, cutoff=least)
    return f"did you mean {' or '.join(by_fold[each] for each in near)}?" if near else ""


def choose(name: object, known: Iterable[str]) -> str:
    """Suggest what to write instead of an unknown name: similar names, and all names."""
    names = list(known)
    return f"{meant(name, names)} choose from {', '.join(names)}".strip()


def grouped(complaints: Sequence[tuple[str, str]], most: int = 20) -> list[str]:
    """Complaints about rows in lines: what many rows have in common stands once, with an example.

    Args:
        complaints: where (``file:row``), and what is wrong.
        most: lines; how many complaints are left out stands in one more.
    """
    alike: dict[str, list[tuple[str, str]]] = {}
    for place, said in complaints:
        key = _PARTICULAR.sub("*", said)
        alike.setdefault(key, []).append((place, said))
    lines: list[str] = []
    shown = 0
    for group in alike.values():
        singly = group if len(group) <= SINGLY else group[:1]
        for place, said in singly[: max(most - len(lines), 0)]:
            more = ""
            if singly is not group:
                rows = [other.rpartition(":")[2] for other, _ in group[1 : ROWS + 1]]
                rest = ", ..." if len(group) > ROWS + 1 else ""
                more = f" (and {len(group) - 1} more rows like it: {', '.join(rows)}{rest})"
            lines.append(f"{place}: {said}{more}")
            shown += 1 if singly is group else len(group)
    left = len(complaints) - shown
    return [*lines, *([f"... and {left} more"] if left else [])]
