"""Fixtures of the training tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_session import Plan


@pytest.fixture(scope="session")
def plan(
    llm_folder: Callable[..., Path],
    tower_folder: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Plan]:
    """Keyword arguments -> a plan over tiny parts with one shared feature cache."""
    cache = tmp_path_factory.mktemp("cache")

    def make(**changes: Any) -> Plan:
        return Plan(str(llm_folder()), str(tower_folder()), str(cache), **changes)

    return make
