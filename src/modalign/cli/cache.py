"""``modalign cache``: what is kept for the next time, and what may go."""

from __future__ import annotations

from typing import Annotated

import typer

from modalign.cli import options

app = typer.Typer(help="What is kept for the next time: list it, clear it.", no_args_is_help=True)


@app.command("list", epilog=options.EXIT_CODES)
def list_entries(json_output: options.Json = False) -> None:
    """Show what the cache holds: kind, size, last use, and whether a process is using it.

    **Examples**

    - `modalign cache list`

    - `MODALIGN_CACHE=/shared/cache modalign cache list --json`
    """
    from modalign.cache import cache_directory
    from modalign.cache_entries import KINDS, cache_entries
    from modalign.cli.console import print_json, stdout
    from modalign.numbers.words import size

    found = cache_entries()
    if json_output:
        kinds = {kind: sum(e.size for e in found if e.kind == kind) for kind in KINDS}
        total = {"bytes": sum(kinds.values()), "kinds": kinds}
        entries = [entry.as_json() for entry in found]
        print_json({"cache": str(cache_directory()), **total, "entries": entries})
        return
    stdout.print(_table([entry.as_json() for entry in found]))
    said = f"{len(found)} entries, {size(sum(e.size for e in found))}, in {cache_directory()}"
    stdout.print(said, markup=False, highlight=False, soft_wrap=True)


@app.command("clear", epilog=options.EXIT_CODES)
def clear_entries(
    kinds: Annotated[
        list[str] | None, typer.Argument(help="Kinds, as `list` shows them.", metavar="[KIND]...")
    ] = None,
    unused: Annotated[
        str | None, typer.Option("--unused", help="Only what was not used for 12h, 30d, 4w.")
    ] = None,
    down_to: Annotated[
        str | None,
        typer.Option(help="Only until 500MB, 20GB are left; the longest unused goes first."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All kinds.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go.")] = False,
    json_output: options.Json = False,
) -> None:
    """Delete what can be computed again; never what a running process is using.

    Give kinds, `--unused`, `--down-to` or `--all`; together they narrow each other.

    **Examples**

    - `modalign cache clear features --unused 30d`

    - `modalign cache clear --down-to 20GB --dry-run`

    - `modalign cache clear --all`
    """
    from modalign.cache_entries import cache_entries, clear, seconds_of, to_clear
    from modalign.cli.console import print_json, stdout
    from modalign.errors import UsageError
    from modalign.memory import bytes_of
    from modalign.numbers.words import size

    if not (kinds or unused or down_to or everything):
        raise UsageError("say what is to go: kinds, --unused 30d, --down-to 20GB, or --all")
    entries = cache_entries()
    chosen = to_clear(
        entries,
        kinds=kinds or (),
        unused=None if unused is None else seconds_of(unused),
        down_to=None if down_to is None else bytes_of(down_to, "--down-to"),
    )
    gone = chosen if dry_run else [entry for entry in chosen if clear(entry)]
    within = [entry for entry in entries if not kinds or entry.kind in kinds]
    busy = [entry for entry in within if entry.busy or (entry in chosen and entry not in gone)]
    freed = sum(entry.size for entry in gone)
    if json_output:
        lists = {"cleared": [e.as_json() for e in gone], "busy": [e.as_json() for e in busy]}
        print_json({"dry_run": dry_run, "bytes": freed, **lists})
        return
    if gone:
        stdout.print(_table([entry.as_json() for entry in gone]))
    said = f"{'would clear' if dry_run else 'cleared'} {len(gone)} entries, {size(freed)}"
    kept = f"; {len(busy)} in use stay" if busy else ""
    stdout.print(f"{said}{kept}", markup=False, highlight=False)


def _table(rows: list[dict[str, object]]) -> object:
    from rich.table import Table

    from modalign.numbers.words import size

    table = Table()
    for name in ("kind", "entry", "size", "last use", "in use"):
        table.add_column(name, justify="right" if name == "size" else "left", overflow="fold")
    for row in rows:
        name, used = str(row["path"]).rsplit("/", 1)[-1], str(row["used"])[:16].replace("T", " ")
        held = size(int(str(row["bytes"])))
        table.add_row(str(row["kind"]), name, held, used, "yes" if row["busy"] else "")
    return table
