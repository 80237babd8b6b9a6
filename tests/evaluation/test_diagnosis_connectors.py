"""Figures of connectors over a data set's media, each medium counted once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import tiny
from modalign.data.supervision import tokenise
from modalign.evaluation.diagnosis.connector_figures import connector_diagnostics

CPU = torch.device("cpu")


def test_each_medium_counts_once(compose_tiny: Callable[..., Any]) -> None:
    model, processor = compose_tiny("vq_codes")
    rows = [[0], [0, 1], [], [2], [1], [2, 0]]  # numbers of pictures
    samples = [
        tokenise(tiny.record([*map(tiny.image, row), "what is this?"], "yes"), processor.tokenizer)
        for row in rows
    ]
    collator = tiny.collator(model, processor)
    found = connector_diagnostics(model, samples, collator, CPU)
    pixels = processor.image_processor([tiny.picture(i) for i in range(3)], return_tensors="pt")
    given = model.encode("image", pixels["pixel_values"])
    connector = model.connector("image")
    # The second row brings a new medium, and with it the one of the first: 4 media, 4 windows each.
    assert found["places counted"] == 4 * 4
    first = [given.values[[0, 0, 1, 2]], given.mask[[0, 0, 1, 2]], given.grid]
    assert found == pytest.approx(connector.diagnose([tuple(first)]))
    packed = tiny.collator(model, processor, pack_length=400)
    assert connector_diagnostics(model, samples, packed, CPU) == found
    assert connector_diagnostics(model, samples[2:3], collator, CPU) == {}


def test_most_connectors_have_nothing_to_say(compose_tiny: Callable[..., Any]) -> None:
    model, processor = compose_tiny("mlp")
    sample = tokenise(tiny.record([tiny.image(0), "what?"], "yes"), processor.tokenizer)
    assert connector_diagnostics(model, [sample], tiny.collator(model, processor), CPU) == {}
