"""What the weights are asked and what they answer: keys and outputs at the lookup tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modalign.editing.engine.forward import Row, Side, read
from modalign.editing.engine.requests import Request
from modalign.editing.engine.spec import ModelSpec, Site

ROWS_AT_ONCE = 256


def read_keys(
    spec: ModelSpec, layer: int, requests: Sequence[Request], *, grouped: bool = True
) -> Tensor:
    """Keys of all edits at a layer with the weights as they are, (d_in, n) in float64.

    A key is the input of the FFN's output projection at the lookup token, averaged within each group
    of prompts and then over the groups (MEMIT, PMET), or plainly over all prompts (ROME).
    """
    rows = [row for request in requests for row in request.prompts]
    states = _read(spec, rows, layer, "ffn", "input")
    keys, start = [], 0
    for request in requests:
        mine = states[start : start + len(request.prompts)]
        start += len(request.prompts)
        groups = torch.tensor(request.groups) if grouped else torch.zeros(len(mine))
        means = [mine[groups == group].mean(0) for group in groups.unique()]
        keys.append(torch.stack(means).mean(0))
    return torch.stack(keys, dim=1)


def read_outputs(spec: ModelSpec, layer: int, site: Site, requests: Sequence[Request]) -> Tensor:
    """What a site gives at the bare prompts' lookup tokens now, (D, n) in float64."""
    return _read(spec, [request.prompts[0] for request in requests], layer, site, "output").T


def read_bare_keys(spec: ModelSpec, layer: int, requests: Sequence[Request]) -> Tensor:
    """Keys of the bare prompts only, (d_in, n) in float64 (ROME's released form mixes both)."""
    return _read(spec, [request.prompts[0] for request in requests], layer, "ffn", "input").T


def _read(spec: ModelSpec, rows: Sequence[Row], layer: int, site: Site, side: Side) -> Tensor:
    """(rows, d) in float64 on the CPU, run in batches of rows of like length."""
    order = sorted(range(len(rows)), key=lambda i: rows[i].lookup)
    found: list[Tensor | None] = [None] * len(rows)
    for start in range(0, len(order), ROWS_AT_ONCE):
        part = order[start : start + ROWS_AT_ONCE]
        wanted = {0: (spec.module(layer, site), side)}
        states = read(spec, [rows[i] for i in part], wanted)[0].cpu().double()
        for number, state in zip(part, states, strict=True):
            found[number] = state
    return torch.stack([state for state in found if state is not None])
