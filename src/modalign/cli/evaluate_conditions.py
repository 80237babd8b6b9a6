"""``modalign eval`` with ``--shots``, ``--corrupt`` or ``--rationale``: one model under several conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modalign.errors import UsageError


def kind_of(
    shots: str | None,
    shots_from: str | None,
    corrupt: str | None,
    severity: str | None,
    rationale: str | None,
) -> str | None:
    """Return which kind of conditions is asked for, if any.

    Raises:
        UsageError: options that do not go together.
    """
    given = {"--shots": shots, "--corrupt": corrupt, "--rationale": rationale}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)}: choose one, each compares conditions of its own")
    for option, value, owner in (
        ("--shots-from", shots_from, "--shots"),
        ("--severity", severity, "--corrupt"),
    ):
        if value is not None and given[owner] is None:
            raise UsageError(f"{option} is for {owner}")
    if shots is not None and shots_from is None:
        raise UsageError(
            "--shots needs --shots-from, a file of examples that is not the evaluated one"
        )
    return chosen[0] if chosen else None


def evaluate_conditions(
    model: Path,
    data: str,
    kind: str,
    *,
    task: dict[str, Any],
    opening: dict[str, Any],
    run: dict[str, Any],
    shots: str | None,
    shots_from: str | None,
    corrupt: str | None,
    severity: str | None,
    rationale: str | None,
    max_rationale_tokens: int,
    json_output: bool,
    **how: Any,
) -> None:
    """Evaluate, write the report into the run's folder, and print the tables."""
    from modalign.cli.console import bars, print_json, quiet_libraries, stderr, stdout
    from modalign.data.readers.columns import parse_columns
    from modalign.evaluation.conditions.asked import Run, check_task
    from modalign.evaluation.conditions.corrupted import Corrupt, evaluate_corrupted
    from modalign.evaluation.conditions.rationale import (
        Rationale,
        check_rationale,
        evaluate_rationale,
    )
    from modalign.evaluation.conditions.report import (
        conditions_report,
        conditions_table,
        findings,
        pairs_table,
    )
    from modalign.evaluation.conditions.shots import Shots, check_files, evaluate_shots
    from modalign.evaluation.opened import open_for
    from modalign.evaluation.tasks import make_task
    from modalign.pages.report import files_of
    from modalign.pages.terminal import terminal

    made, seed = make_task(**task), task["seed"]
    check_task(made, kind)
    asked: Any
    if kind == "--shots":
        asked = Shots(tuple(_numbers("--shots", shots)), str(shots_from), seed)
        check_files(data, asked)
        evaluate: Any = evaluate_shots
    elif kind == "--corrupt":
        asked = Corrupt(
            tuple(_names(corrupt)), tuple(_numbers("--severity", severity or "1,3,5")), seed
        )
        asked.entries()  # a wrong name is said before the model is loaded
        evaluate = evaluate_corrupted
    else:
        asked = Rationale(str(rationale), max_rationale_tokens, seed)
        check_rationale(made, asked)
        evaluate = evaluate_rationale
    quiet_libraries()
    settled = Run(**run)
    with bars(not json_output) as progress:
        opened = open_for(
            model, data, made, **opening | {"columns": parse_columns(opening["columns"])}
        )
        found = evaluate(opened, made, asked, run=settled, progress=progress, **how)
    if settled.out is not None:
        conditions_report(found).write(settled.out)
    if json_output:
        print_json(found.model_dump_json(indent=2))
        return
    stdout.print(terminal(conditions_table(found)))
    stdout.print(terminal(pairs_table(found)))
    for said in [*findings(found), *(f"note: {note}" for note in found.notes)]:
        stdout.print(said, markup=False, highlight=False, soft_wrap=True)
    if settled.out is not None:
        place = files_of(settled.out)[-1]
        stderr.print(f"Report: {place}", markup=False, highlight=False, soft_wrap=True)


def _names(text: str | None) -> list[str]:
    return list(dict.fromkeys(filter(None, (name.strip() for name in (text or "").split(",")))))


def _numbers(name: str, text: str | None) -> list[int]:
    """Read whole numbers separated by commas."""
    found = _names(text)
    if not found or not all(each.isdecimal() for each in found):
        raise UsageError(f"{name} {text!r}: give whole numbers, such as {name} 1,2,4")
    return [int(each) for each in found]
