"""What the editing tests share: small models whose facts can be edited, trained once and kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from bench.editable import Editable, Family

from tiny_editable import editable as make_editable


@pytest.fixture(scope="session")
def editable(request: pytest.FixtureRequest) -> Callable[[Family], Editable]:
    """Family name -> a fresh copy of its small editable model, with tokenizer, world and texts."""
    cache = request.config.cache
    assert cache is not None
    folder = cache.mkdir("editable")
    return lambda family: make_editable(family, folder)
