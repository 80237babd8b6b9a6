"""``modalign eval --suite``: a language model on local text suites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modalign.errors import UsageError


def evaluate_suite(
    model: Path,
    data: Path | None,
    *,
    against: list[Path],
    options: dict[str, Any],
    json_output: bool,
    **settings: Any,
) -> None:
    """Evaluate, write the report into the run's folder, and print the tables."""
    from modalign.cli.console import bars, print_json, quiet_libraries, stderr, stdout
    from modalign.evaluation.suites.finding import check_names
    from modalign.pages.terminal import terminal

    check_names(options["suite"], options["parts"])
    if data is None:
        raise UsageError("--suite needs --suite-data, a folder of the suite's files")
    from modalign.evaluation.suites.report import figures_table, findings, pairs_table, suite_report
    from modalign.evaluation.suites.run import SuiteOptions
    from modalign.evaluation.suites.run import evaluate_suite as run

    quiet_libraries()
    out: Path | None = settings["out"]
    with bars(not json_output) as progress:
        found = run(
            model,
            data,
            against=against,
            options=SuiteOptions(**options),
            progress=progress,
            **settings,
        )
    if out is not None:
        suite_report(found).write(out)
    if json_output:
        print_json(found.model_dump_json(indent=2))
        return
    stdout.print(terminal(figures_table(found)))
    if any(line.pairs for line in found.lines):
        stdout.print(terminal(pairs_table(found)))
    for said in [*findings(found), *(f"note: {note}" for note in found.notes)]:
        stdout.print(said, markup=False, highlight=False, soft_wrap=True)
    if out is not None:
        stderr.print(
            f"Report: {out / 'report.html'}", markup=False, highlight=False, soft_wrap=True
        )
