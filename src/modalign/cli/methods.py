"""``modalign methods``: the taxonomy as a table."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from modalign.cli import options

WIDTH = 100  # columns of the table


def methods(
    name: Annotated[str | None, typer.Argument(help="One method; without it, all.")] = None,
    json_output: options.Json = False,
) -> None:
    """List the methods: family, where they enter, what they cost, where they come from.

    **Examples**

    - `modalign methods`

    - `modalign methods qformer`

    - `modalign methods --json`
    """
    from rich.table import Table

    from modalign.cli.console import print_json, stdout
    from modalign.tools.registry import BUILT_IN
    from modalign.training.methods import method_names, resolve_method
    from modalign.training.tool_methods import tool_names

    names = [name] if name is not None else [*method_names(), *tool_names(list(BUILT_IN))]
    rows = [_row(resolve_method(each)) for each in names]
    if json_output:
        print_json(rows[0] if name is not None else rows)
        return
    if name is not None:
        _print_one(rows[0])
        return
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    for header in ("method", "family", "enters", "tokens", "rung"):
        table.add_column(header, no_wrap=True)
    table.add_column("source", overflow="fold")
    for row in rows:
        shown = (row[key] for key in ("name", "family", "enters", "tokens", "rung"))
        table.add_row(*shown, row["papers"][0])
    stdout.print(table, width=min(WIDTH, stdout.width))
    stdout.print(
        "\nN features of an image, M tokens, P prefix tokens, s shuffle factor.\n"
        "rung: how 'modalign export' can write it, for images.\n"
        "'modalign methods NAME' tells more; NAME:published trains the published size.",
        highlight=False,
    )


def _row(method: Any) -> dict[str, Any]:
    from modalign.models.export.rungs import standing_of

    facts = method.facts
    sees, hears = (
        standing_of([] if method.tools else [(modality, facts, None)])
        for modality in ("image", "audio")
    )
    return {
        "name": method.name,
        "family": method.family,
        "group": method.group,
        "enters": facts.enters,
        "tokens": facts.token_formula,
        "parameters": facts.parameter_text,
        "stages": [stage.name for stage in method.stages],
        "rung": sees.rung,
        "rung_for_audio": hears.rung,
        "gateway": sees.gateway,
        "served_by": list(sees.served_by),
        "papers": list(facts.papers),
        "about": (sys.modules[facts.__module__].__doc__ or "").strip(),
    }


def _print_one(row: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from modalign.cli.console import stdout

    table = Table(show_header=False, box=None)
    for key, value in row.items():
        if key != "about":
            text = ", ".join(value) if isinstance(value, list) else str(value)
            table.add_row(f"[bold]{key}", escape(text))
    stdout.print(table)
    stdout.print()
    stdout.print(row["about"], markup=False, highlight=False)
