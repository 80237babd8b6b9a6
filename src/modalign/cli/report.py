"""``modalign report``: two comparisons side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modalign.cli import options


def report(
    first: Annotated[Path, typer.Argument(metavar="A", help="Folder of a finished comparison.")],
    second: Annotated[
        Path, typer.Argument(metavar="B", help="Another: differences are B minus A.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Write report.html, .md and .json here.")
    ] = None,
    overwrite: options.Replace = False,
    json_output: options.Json = False,
) -> None:
    """Put two comparisons side by side: what was changed, every method's accuracy in both, the difference.

    A difference is stated where the same questions were asked; its interval is that of two estimates that
    know nothing of each other.

    **Examples**

    - `modalign report runs/small runs/large`

    - `modalign report runs/frozen runs/lora --out runs/frozen-and-lora`
    """
    from modalign.cli.console import print_json, stderr, stdout
    from modalign.comparison.side_by_side import (
        methods_table,
        sentences,
        side_by_side,
        side_by_side_report,
    )
    from modalign.files import check_free
    from modalign.pages.report import files_of
    from modalign.pages.terminal import terminal

    if out is not None:
        check_free(*files_of(out), overwrite=overwrite)
    found = side_by_side(first, second)
    if out is not None:
        side_by_side_report(found).write(out)
    if json_output:
        print_json(found.model_dump_json(indent=2))
        return
    stdout.print(terminal(methods_table(found)))
    for sentence in sentences(found):
        stdout.print(f"- {sentence}", markup=False, highlight=False)
    if out is not None:
        page = out / "report.html"
        stderr.print(f"\nPage: {page}", markup=False, highlight=False, soft_wrap=True)
