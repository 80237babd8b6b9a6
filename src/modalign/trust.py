"""Whether code that comes with a model may run: only where the user said so, never by a question on the way.

A verb of the command line says yes or no for as long as it lasts. A program that opens folders by itself has said
neither: code in a folder is not run, and the tools that a folder names are the program's own business.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from modalign.errors import UsageError

_said: dict[str, bool | None] = {"trusted": None}


def trust_remote_code(allowed: bool | None) -> None:
    """Say it for this process, from here on."""
    _said["trusted"] = allowed


def remote_code_trusted() -> bool:
    """Whether a folder's own code may run."""
    return _said["trusted"] is True


@contextmanager
def trusted() -> Iterator[None]:
    """Run code of folders for as long as the block lasts: of those that modalign itself has just written."""
    before = _said["trusted"]
    trust_remote_code(True)
    try:
        yield
    finally:
        trust_remote_code(before)


def refuse_untrusted(what: str) -> None:
    """Refuse what a folder would have run, in a verb that was not told to trust it.

    Raises:
        UsageError: it was not.
    """
    if _said["trusted"] is False:
        raise UsageError(f"{what}: look at it, and give --trust-remote-code if you trust it")
