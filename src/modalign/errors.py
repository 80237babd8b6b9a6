"""Errors a user can act on. Each says what was wrong, where, and what to do; the CLI maps them to exit codes."""

from __future__ import annotations


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
