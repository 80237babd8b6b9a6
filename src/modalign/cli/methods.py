"""``modalign methods``: the taxonomy as a table."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from modalign.cli import options


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

    from modalign.cli.console import stdout
    from modalign.training.methods import method_names, resolve_method

    names = [name] if name is not None else method_names()
    rows = [_row(resolve_method(each)) for each in names]
    if json_output:
        stdout.print_json(json.dumps(rows[0] if name is not None else rows))
        return
    if name is not None:
        _print_one(rows[0])
        return
    table = Table(title="methods", caption="A name with :published trains the published size.")
    for header in ("method", "family", "group", "enters", "tokens", "parameters", "source"):
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(
            row["name"],
            row["family"],
            row["group"],
            row["enters"],
            row["tokens"],
            row["parameters"],
            row["papers"][0],
        )
    stdout.print(table)


def _row(method: Any) -> dict[str, Any]:
    cls = method.cls
    return {
        "name": method.name,
        "family": cls.family,
        "group": cls.group,
        "enters": cls.enters,
        "tokens": cls.token_formula,
        "parameters": cls.parameter_text,
        "stages": [stage.name for stage in method.stages],
        "export": cls.export_target,
        "papers": list(cls.papers),
        "about": (__import__("sys").modules[cls.__module__].__doc__ or "").strip(),
    }


def _print_one(row: dict[str, Any]) -> None:
    from rich.table import Table

    from modalign.cli.console import stdout

    table = Table(show_header=False, box=None)
    for key, value in row.items():
        if key != "about":
            table.add_row(
                f"[bold]{key}", ", ".join(value) if isinstance(value, list) else str(value)
            )
    stdout.print(table)
    stdout.print()
    stdout.print(row["about"], markup=False, highlight=False)
