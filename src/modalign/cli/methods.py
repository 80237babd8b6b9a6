"""``modalign methods``: the taxonomy as a table."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from modalign.cli import options

WIDTH = 100  # columns of the table


def methods(
    name: Annotated[str | None, typer.Argument(help="One method; default: all.")] = None,
    json_output: options.Json = False,
) -> None:
    """List the methods: family, where they enter, cost, source.

    **Examples**

    - `modalign methods`

    - `modalign methods qformer`

    - `modalign methods --json`
    """
    from rich.table import Table

    from modalign.cli.console import print_json, stdout

    rows = [row for row in listed() if name in (None, row["name"])] or [_resolved(name)]
    if json_output:
        print_json(rows[0] if name is not None else rows)
        return
    if name is not None:
        _print_one(rows[0])
        return
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    for header in ("method", "family", "enters", "tokens", "saved as"):
        table.add_column(header, no_wrap=True)
    table.add_column("source", overflow="fold")
    for row in rows:
        shown = (row[key] for key in ("name", "family", "enters", "tokens", "rung"))
        table.add_row(*shown, row["papers"][0])
    stdout.print(table, width=min(WIDTH, stdout.width))
    stdout.print(
        "\nN features of an image, M tokens, P prefix tokens, s shuffle factor.\n"
        "saved as: native, a class of transformers; remote-code, with its own few files; tools, beside a "
        "language model\n(for images; 'modalign export' tells more).\n"
        "'modalign methods NAME' tells more; NAME:published trains the published size.",
        highlight=False,
    )


def listed() -> Iterator[dict[str, Any]]:
    """Yield the methods with their own line, without loading them or torch."""
    from modalign.connectors.catalogue import catalogue
    from modalign.tools.registry import BUILT_IN
    from modalign.training.settings import STAGE_ONE, WITHOUT_STAGE_ONE, Stage
    from modalign.training.tool_methods import parse_tool_method, tool_names

    last = Stage().name
    for entry in catalogue():
        kind = (entry.family, entry.group)
        yield _row(entry.name, *kind, [STAGE_ONE, last] if entry.stage_one else [last], entry)
        if entry.stage_one:
            yield _row(entry.name + WITHOUT_STAGE_ONE, *kind, [last], entry)
    for name in tool_names(list(BUILT_IN)):
        tools = parse_tool_method(name)
        assert tools is not None
        yield _row(name, tools.family, tools.group, [last], tools, tools=True)


def _resolved(name: str | None) -> dict[str, Any]:
    """Resolve a method with options, another size or a recipe; an unknown one is refused."""
    from modalign.training.methods import resolve_method

    method = resolve_method(str(name))
    stages = [stage.name for stage in method.stages]
    tools = method.tools is not None
    return _row(method.name, method.family, method.group, stages, method.facts, tools=tools)


def _row(
    name: str, family: str, group: str, stages: Sequence[str], facts: Any, *, tools: bool = False
) -> dict[str, Any]:
    """Return a method's line.

    Args:
        name, family, group, stages: of the method.
        facts: its connector's class or entry in the catalogue, or its tools.
        tools: whether it is a tool method.
    """
    from modalign.connectors.rungs import standing_of

    sees, hears = (
        standing_of([] if tools else [(modality, facts, None)]) for modality in ("image", "audio")
    )
    about = getattr(facts, "about", None) or (sys.modules[facts.__module__].__doc__ or "").strip()
    return {
        "name": name,
        "family": family,
        "group": group,
        "enters": facts.enters,
        "tokens": facts.token_formula,
        "parameters": facts.parameter_text,
        "stages": list(stages),
        "rung": sees.rung,
        "rung_for_audio": hears.rung,
        "gateway": sees.gateway,
        "served_by": list(sees.served_by),
        "papers": list(facts.papers),
        "about": about,
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
