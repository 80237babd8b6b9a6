"""``modalign eval --task unlearning``: four rows, all forms, and attacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modalign.errors import UsageError

TASK = "unlearning"


def evaluate_forgetting(
    model: Path,
    data: str | None,
    *,
    knew: Path | None,
    never_knew: str,
    retrained: Path | None,
    retain: str | None,
    attacks: str | None,
    out: Path | None,
    overwrite: bool,
    json_output: bool,
    patches: list[Path],
    **settings: Any,
) -> None:
    """Evaluate and print the tables; with ``out``, write the report into that folder."""
    from modalign.cli.console import bars, print_json, quiet_libraries, stderr, stdout
    from modalign.files import check_free
    from modalign.pages.report import files_of
    from modalign.pages.terminal import terminal
    from modalign.unlearning.attacks import ATTACKS
    from modalign.unlearning.evaluation import Rows
    from modalign.unlearning.evaluation import evaluate_forgetting as run
    from modalign.unlearning.report import (
        attacks_table,
        forgetting_report,
        forms_table,
        numbers_table,
    )

    if data is None:
        raise UsageError("--task unlearning needs questions from 'modalign data reformat'")
    if knew is None:
        raise UsageError("--task unlearning needs --knew, the model before it forgot")
    if out is not None:
        check_free(*files_of(out), overwrite=overwrite)
    chosen: tuple[str, ...] = ATTACKS
    if attacks is not None:
        chosen = tuple(
            name.strip() for name in attacks.split(",") if name.strip() not in ("", "none")
        )
    quiet_libraries()
    rows = Rows(model, knew, tuple(patches), never_knew, retrained, retain, chosen)
    with bars(not json_output) as progress:
        found = run(rows, data, progress=progress, **settings)
    if out is not None:
        forgetting_report(found).write(out)
    if json_output:
        print_json(found.model_dump_json(indent=2))
        return
    for table in (forms_table(found), attacks_table(found), numbers_table(found)):
        stdout.print(terminal(table))
    for note in found.notes:
        stdout.print(f"note: {note}", markup=False, highlight=False)
    if out is not None:
        stderr.print(f"Page: {out / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
