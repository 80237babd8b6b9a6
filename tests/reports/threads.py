"""Where the reported faults come from: public threads, and a mark for each case that names its own.

``@reported("owner/name#7")`` says which thread reports a fault of that kind, in whatever project it was met
first; ``https://github.com/owner/name/issues/7`` is its address, for pull requests too, and ``threads.txt``
has its title. ``@tried("...")`` says that a search found no public thread, and what was tried instead.
"""

from __future__ import annotations

from pathlib import Path

import pytest

LIST = Path(__file__).parent / "threads.txt"
THREADS: dict[str, str] = dict(
    line.split("\t", 1) for line in LIST.read_text(encoding="utf-8").splitlines()
)


def reported(*threads: str) -> pytest.MarkDecorator:
    """Say which public threads report the fault that a case is the sign of."""
    unknown = sorted(set(threads) - set(THREADS))
    if unknown or not threads:
        raise ValueError(f"not in {LIST.name}: {', '.join(unknown) or 'nothing was given'}")
    return pytest.mark.reported(*threads)


def tried(what: str) -> pytest.MarkDecorator:
    """Say that no public thread was found, and how the fault was found instead."""
    return pytest.mark.tried(what)
