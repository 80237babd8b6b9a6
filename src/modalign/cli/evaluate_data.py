"""``modalign eval MODEL DATA``: a task's measures on a data file, with the reference rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from modalign.numbers import words

if TYPE_CHECKING:
    from rich.table import Table

    from modalign.evaluation.evaluate import Evaluation

SHOWN_REFERENCES = (
    "blank media",
    "shuffled media",
    "chance",
    "most frequent answer here",
    "always yes",
)


def evaluate_data(
    model: Path, data: str, *, task: dict[str, Any], json_output: bool, **settings: Any
) -> None:
    """Evaluate on a data file and print the tables."""
    from modalign.cli.console import bars, print_json, quiet_libraries, stdout
    from modalign.data.readers.columns import parse_columns
    from modalign.evaluation.tasks import make_task

    settings["columns"] = parse_columns(settings["columns"])
    made = make_task(**task)  # a wrong name or a missing library is said before torch is loaded
    from modalign.evaluation.evaluate import evaluate_model

    quiet_libraries()
    with bars(not json_output) as progress:
        result = evaluate_model(model, data, task=made, progress=progress, **settings)
    if json_output:
        print_json(result.model_dump_json(indent=2))
        return
    stdout.print(_table(result))
    if result.available:
        stdout.print(_available(result))
    for note in result.notes:
        stdout.print(f"note: {note}", markup=False, highlight=False)


def _table(result: Evaluation) -> Table:
    """Build the table of every measure of every skill, with its reference rows."""
    from rich.table import Table

    several = len(result.overall.measures) > 1
    shown = [row for row in SHOWN_REFERENCES if row in result.overall.references]
    # Narrow, without wrapping names: ten columns must fit on a terminal of 80.
    table = Table(title=_title(result), box=None, padding=(0, 1, 0, 0), pad_edge=False)
    left = ("skill", "measure") if several else ("skill",)
    for header in left:
        table.add_column(header, no_wrap=True)
    for header in ("n", "value" if several else result.headline, "interval", *shown):
        table.add_column(header, justify="right")
    for row in [*(result.skills if len(result.skills) > 1 else ()), result.overall]:
        for place, name in enumerate(result.overall.measures):
            found = row.measures.get(name)
            cells = [row.skill if place == 0 else "", *([name] if several else [])]
            cells += [
                str(found.n) if found else words.MISSING,
                words.value(found),
                words.ends(found),
            ]
            cells += [words.value(row.references.get(other, {}).get(name)) for other in shown]
            table.add_row(*cells, style="bold" if several and name == result.headline else None)
        if several:
            table.add_section()
    return table


def _title(result: Evaluation) -> str:
    if result.task == "exact":
        return f"{result.data}: exact match of greedy answers, 95 % intervals"
    lower = f", lower {result.headline} is better" if result.lower_is_better else ""
    return f"{result.data}: {result.task} (version {result.task_version}){lower}, 95 % intervals"


def _available(result: Evaluation) -> Table:
    """Build the table of the headline on multimodal records, by the modalities kept."""
    from rich.table import Table

    table = Table(title="records of several modalities, by the modalities kept")
    for header in ("modalities", "n", result.headline, "interval"):
        table.add_column(header, justify="left" if header == "modalities" else "right")
    for name, found in result.available.items():
        table.add_row(name, str(found.n), words.value(found), words.ends(found))
    return table
