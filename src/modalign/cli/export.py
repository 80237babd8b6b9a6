"""``modalign export``: a saved model in another form, checked where modalign is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modalign.cli import options

if TYPE_CHECKING:
    from modalign.models.export.ladder import Exported


def export(
    model: options.Model,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="New folder, or one to replace (--overwrite).")
    ],
    to: Annotated[
        str | None,
        typer.Option("--to", help="native, remote-code or gateway; default: the highest possible."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="Native class: Llava, ..., CausalLM for discrete codes."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Records to compare on; default: those of the model's run."),
    ] = None,
    records: Annotated[int, typer.Option(min=1, help="How many of them.")] = 4,
    columns: options.Columns = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0, help="Maximum difference of logits; default: 1e-5, in half precision 2e-2."
        ),
    ] = None,
    language_model: Annotated[
        Path | None,
        typer.Option(
            "--language-model", help="With --to gateway: also write the plain language model here."
        ),
    ] = None,
    overwrite: options.Replace = False,
    json_output: options.Json = False,
) -> None:
    """Write a model so that others can load or serve it, and check that it gives the same answers.

    Rungs: **native** is a class of transformers' own; **remote-code** carries its few Python files;
    a **gateway** holds encoder and connector only, the language model runs elsewhere. What was
    written is loaded in a clean process without modalign; ids, logits and greedy answers are
    compared on real records. If they differ nothing is left on disk. A form that the model does not
    reach is refused (exit code 2), with the reason.

    **Examples**

    - `modalign export runs/compare/best -o exported`

    - `modalign export runs/compare/best --to remote-code -o exported --data test.jsonl`

    - `modalign export runs/train/model --to gateway -o gateway --language-model plain-llm`

    - `modalign export runs/codes/best --to native --target CausalLM -o codes`
    """
    from modalign.cli.console import bars, print_json, quiet_libraries, stdout
    from modalign.data.readers.columns import parse_columns
    from modalign.files import check_free
    from modalign.models.export.ladder import export_model

    folders = (out,) if language_model is None else (out, language_model)
    check_free(*folders, overwrite=overwrite, folders=True)
    quiet_libraries()
    with bars(not json_output) as progress:
        exported = export_model(
            model,
            out,
            to=to,  # type: ignore[arg-type]
            target=target,
            data=data,
            records=records,
            columns=parse_columns(columns),
            tolerance=tolerance,
            language_model=language_model,
            progress=progress,
        )
    if json_output:
        print_json(exported.as_json())
        return
    stdout.print(_table(exported))
    for note in exported.notes:
        stdout.print(f"- {note}", markup=False, highlight=False)


def _table(exported: Exported) -> object:
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    rows = {
        "folder": str(exported.folder),
        "exported as": exported.rung,
        "class": exported.loads_as,
        "records": f"{exported.records} of {exported.compared_on}",
        "max difference": f"{exported.difference:.1e}",
        "tolerance": f"{exported.tolerance:.0e}",
        "greedy equal": "yes" if exported.greedy_equal else "no",
    }
    if exported.language_model is not None:
        rows["language model"] = str(exported.language_model)
    for name, value in rows.items():
        table.add_row(f"[bold]{name}", value)
    return table
