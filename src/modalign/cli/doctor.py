"""``modalign doctor``: find problems before step 0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from modalign.cli import options

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from modalign.training.doctor.diagnosis import Check, Diagnosis, MethodFacts

MARKS = {
    "ok": ("✓", "ok", "green"),
    "warning": ("!", "warning", "yellow"),
    "error": ("✗", "error", "bold red"),
}
SECTIONS = {
    "data": "Data",
    "text": "Text and template",
    "encoder": "Encoder",
    "methods": "Methods",
    "machine": "Machine",
}


@options.configures
def doctor(
    *,
    config: options.Config = None,
    changes: dict[str, Any],
    method: Annotated[str | None, typer.Option("--method", help="Check only this method.")] = None,
    methods: Annotated[
        str | None, typer.Option("--methods", help="Names, converters, perceivers or all.")
    ] = None,
    json_output: options.Json = False,
) -> None:
    """Find problems before anything trains.

    Opens every file, shows one decoded sample with its supervised tokens marked, builds every method's
    model and runs it on real samples, and estimates steps and memory. Takes the options of `compare`.

    **Examples**

    - `modalign doctor`

    - `modalign doctor experiment.yaml --method mlp`

    - `modalign doctor --llm Qwen/Qwen2.5-0.5B --train train.jsonl --train-llm lora --json`
    """
    from modalign.cache import cache_directory
    from modalign.cli.console import bars, print_json, quiet_libraries
    from modalign.comparison.config import load_config
    from modalign.training.budget import Budget
    from modalign.training.doctor.examine import examine
    from modalign.training.methods import resolve_methods

    quiet_libraries()
    chosen = method or methods
    if chosen is not None:
        changes["methods"] = chosen.split(",")
    with bars(not json_output) as progress:
        resolved, _ = load_config(config, changes, progress)
        found = examine(
            resolved.parts,
            resolved.data,
            resolved.training,
            resolve_methods(resolved.methods, resolved.stages),
            cache=cache_directory(),
            budget=Budget.parse(resolved.budget),
            processes=1 if method else resolved.workers,
            progress=progress,
        )
    if json_output:
        print_json(found.model_dump_json(indent=2))
    else:
        show(found)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def show(found: Diagnosis) -> None:
    """Print a diagnosis for people, section by section."""
    from rich.text import Text

    from modalign.cli.console import stdout

    for section, title in SECTIONS.items():
        checks = [check for check in found.checks if check.section == section]
        if not checks:
            continue
        stdout.print(Text(f"\n{title}", style="bold"))
        for check in checks:
            if section != "methods" or check.status != "ok" or len(checks) == 1:
                stdout.print(_line(check), soft_wrap=True)
        if section == "text" and found.sample:
            _show_sample(found)
        if section == "methods" and any(facts.longest for facts in found.methods):
            stdout.print(_table(found.methods))
    errors, warnings = len(found.of("error")), len(found.of("warning"))
    verdict = "nothing would stop a training" if not errors else "a training would fail"
    stdout.print(f"\n{_many(errors, 'error')}, {_many(warnings, 'warning')}: {verdict}.")


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _line(check: Check) -> Text:
    from rich.text import Text

    mark, word, style = MARKS[check.status]
    text = Text("  ").append(f"{mark} {word:<8}", style=style).append(check.name, style="bold")
    text.append(": ").append(check.detail.replace("\n", "\n      "))
    if check.advice:
        text.append("\n      what to do: ", style="italic").append(check.advice)
    return text


def _show_sample(found: Diagnosis) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from modalign.cli.console import stdout

    text = Text()
    for segment in found.sample:
        if segment.supervised:
            text.append(f"[[{segment.text}]]", style="bold green")
        else:
            text.append(segment.text, style="dim")
    stdout.print(f"  A sample ({found.sample_source}); supervised text in [[ ]]:", markup=False)
    stdout.print(Padding(text, (0, 0, 0, 6)))


def _table(methods: list[MethodFacts]) -> Table:
    from rich.table import Table

    from modalign.memory import readable

    table = Table(caption="trains: connector + language model + encoder parameters")
    headers = ("method", "tokens", "longest", "trains", "padding", "steps", "memory")
    table.add_column(headers[0], no_wrap=True)  # names are never wrapped
    for header in headers[1:]:
        table.add_column(header, justify="right")
    for facts in methods:
        if not facts.parts:
            continue
        limit = f" of {facts.limit}" if facts.limit else ""
        steps = " + ".join(f"{count:,}" for count in facts.steps.values()) if facts.steps else "-"
        table.add_row(
            facts.name,
            f"{facts.tokens}",
            f"{facts.longest}{limit}",
            " + ".join(f"{part.trainable:,}" for part in facts.parts),
            f"{facts.padding:.0%}",
            steps,
            readable(facts.memory.total) if facts.memory else "-",
        )
    return table
