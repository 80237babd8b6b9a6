"""Read what goes into the edited weights and what comes out: keys and outputs at the lookup tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from modalign.editing.engine.forward import Row, Side, read
from modalign.editing.engine.requests import Request
from modalign.editing.engine.spec import ModelSpec, Site

ROWS_AT_ONCE = 256
Wanted = tuple[int, Site, Side]


def read_keys(
    spec: ModelSpec, layer: int, requests: Sequence[Request], *, grouped: bool = True
) -> Tensor:
    """Read the keys of all edits at a layer with the weights as they are, (d_in, n) in float64.

    A key is the input of the FFN's output projection at the lookup token, averaged within each group
    of prompts and then over the groups (MEMIT, PMET), or over all prompts alike (ROME).
    """
    states = _read(spec, _prompts(requests), {0: (layer, "ffn", "input")})
    return _averaged(states[0], requests, grouped)


def read_keys_and_outputs(
    spec: ModelSpec, layer: int, last: int, site: Site, requests: Sequence[Request]
) -> tuple[Tensor, Tensor]:
    """Read the keys at a layer and another layer's output at the bare prompts, in one pass.

    Returns:
        The results of :func:`read_keys` for ``layer`` and of :func:`read_outputs` for ``last``.
    """
    wanted: dict[int, Wanted] = {0: (layer, "ffn", "input"), 1: (last, site, "output")}
    states = _read(spec, _prompts(requests), wanted)
    starts = torch.tensor([0, *(len(request.prompts) for request in requests[:-1])]).cumsum(0)
    return _averaged(states[0], requests, True), states[1][starts].T


def read_outputs(spec: ModelSpec, layer: int, site: Site, requests: Sequence[Request]) -> Tensor:
    """Read what a site puts out now at the bare prompts' lookup tokens, (D, n) in float64."""
    return _read(spec, [request.prompts[0] for request in requests], {0: (layer, site, "output")})[
        0
    ].T


def read_bare_keys(spec: ModelSpec, layer: int, requests: Sequence[Request]) -> Tensor:
    """Read the keys of the bare prompts only, (d_in, n) in float64 (ROME's released form mixes both)."""
    rows = [request.prompts[0] for request in requests]
    return _read(spec, rows, {0: (layer, "ffn", "input")})[0].T


def _prompts(requests: Sequence[Request]) -> list[Row]:
    return [row for request in requests for row in request.prompts]


def _averaged(states: Tensor, requests: Sequence[Request], grouped: bool) -> Tensor:
    """Average the keys of each request's prompts into one, (d_in, n)."""
    keys, start = [], 0
    for request in requests:
        mine = states[start : start + len(request.prompts)]
        start += len(request.prompts)
        groups = torch.tensor(request.groups) if grouped else torch.zeros(len(mine))
        means = [mine[groups == group].mean(0) for group in groups.unique()]
        keys.append(torch.stack(means).mean(0))
    return torch.stack(keys, dim=1)


def _read(spec: ModelSpec, rows: Sequence[Row], wanted: Mapping[int, Wanted]) -> dict[int, Tensor]:
    """Read each wanted state as (rows, d) in float64 on the CPU, in batches of rows of similar length."""
    order = sorted(range(len(rows)), key=lambda i: rows[i].lookup)
    modules = {key: (spec.module(layer, site), side) for key, (layer, site, side) in wanted.items()}
    parts: dict[int, list[Tensor]] = {key: [] for key in wanted}
    for start in range(0, len(order), ROWS_AT_ONCE):
        part = order[start : start + ROWS_AT_ONCE]
        for key, states in read(spec, [rows[i] for i in part], modules).items():
            parts[key].append(states.cpu().double())
    back = torch.tensor(order).argsort()
    return {key: torch.cat(found)[back] for key, found in parts.items()}
