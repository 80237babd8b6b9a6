"""Shared by the applications' verbs: their options, and how an evaluation is shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from modalign.applications.judged import Judged

Llm = Annotated[
    str | None, typer.Option("--llm", help="A language model to use or to judge beside the rule.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Write report.html, .md and .json here.")]
Seed = Annotated[int, typer.Option(help="Of everything drawn, and of the intervals.")]
Limit = Annotated[int, typer.Option(min=1, help="Questions that a model is asked at most.")]
Factor = Annotated[float, typer.Option("--factor", help="On all learning rates.")]
Saved = Annotated[Path, typer.Option("-o", "--out", help="The file to write.")]


def opened(llm: str | None, device: str | None) -> tuple[Any, Any] | None:
    """Open the model, if one is given."""
    if llm is None:
        return None
    from modalign.cli.console import quiet_libraries
    from modalign.models.open import open_model

    quiet_libraries()
    return open_model(llm, device=device or "auto")


def show(found: Judged, out: Path | None, json_output: bool) -> None:
    """Print an evaluation's tables or its JSON, and write its report."""
    from modalign.applications.judged import judged_report, score_table
    from modalign.cli.console import print_json, stderr, stdout
    from modalign.pages.terminal import terminal

    if out is not None:
        judged_report(found).write(out)
    if json_output:
        print_json(found.model_dump_json(indent=2))
        return
    for place, table in enumerate(found.tables):
        stdout.print(terminal(score_table(table, place, found.default)))
        for note in table.notes:
            stdout.print(f"- {note}", markup=False, highlight=False)
    stdout.print(f"\n{found.reason}", markup=False, highlight=False)
    if out is not None:
        stderr.print(f"Page: {out / 'report.html'}", markup=False, highlight=False, soft_wrap=True)


def check_report(out: Path | None, overwrite: bool) -> None:
    """Refuse a report's folder that is taken, before the work."""
    from modalign.files import check_free
    from modalign.pages.report import files_of

    if out is not None:
        check_free(*files_of(out), overwrite=overwrite)
