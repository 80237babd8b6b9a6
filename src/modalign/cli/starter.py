"""``modalign starter``: the embedded models and scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modalign.cli import options

app = typer.Typer(
    help="The built-in starter: handwriting scenes, a small language model, a small encoder.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    epilog=options.EXIT_CODES,
)


@app.command(epilog=options.EXIT_CODES)
def build(
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; the shipped weights by default.")
    ] = None,
    overwrite: options.Replace = False,
    json_output: options.Json = False,
) -> None:
    """Pretrain both starter models again, from seed (minutes; the weights are shipped).

    **Example**

    - `modalign starter build --out /tmp/starter`
    """
    from modalign.cli.console import bars, print_json, quiet_libraries, stdout
    from modalign.files import check_free
    from modalign.starter.build import WEIGHTS, build_models

    target = out or WEIGHTS
    check_free(target / "language", target / "vision", overwrite=overwrite, folders=True)
    quiet_libraries()
    with bars(not json_output) as progress:
        build_models(target, progress)
    if json_output:
        print_json({"folder": str(target)})
    else:
        stdout.print(f"Language model and encoder: {target}", highlight=False, soft_wrap=True)


@app.command(epilog=options.EXIT_CODES)
def show(json_output: options.Json = False) -> None:
    """Write the scenes to the cache if missing, and print all paths.

    **Example**

    - `modalign starter show --json`
    """
    from modalign.cli.console import bars, print_json, stdout
    from modalign.starter.build import starter

    with bars(not json_output) as progress:
        files = starter(progress)
    paths = {name: str(path) for name, path in vars(files).items()}
    if json_output:
        print_json(paths)
        return
    for name, path in paths.items():
        stdout.print(f"[bold]{name:8}[/] {path}", highlight=False, soft_wrap=True)
