"""``modalign app documents``: typed values from documents, each with its exact quote."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from modalign.cli import app_output, options

app = typer.Typer(
    help="Extract values from long documents with tables: number, unit, scale, place and exact quote.",
    no_args_is_help=True,
)
Documents = Annotated[
    str, typer.Argument(help="PDF, HTML or text; or JSON rows of table and paragraphs.")
]


@app.command(epilog=options.EXIT_CODES)
def run(
    documents: Documents,
    field: Annotated[
        list[str] | None, typer.Option("--field", help="What to extract, in words; repeatable.")
    ] = None,
    llm: app_output.Llm = None,
    examples: Annotated[
        Path | None, typer.Option("--examples", help="Text of examples to show the model first.")
    ] = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
) -> None:
    """Extract fields: from tables by the words of their headers, or with --llm by a model.

    A model's answer whose exact words are not in the document is dropped and counted.

    **Example**: `modalign app documents run report.pdf --field "total sales 2019" --field "net debt 2019"`
    """
    from modalign.applications.documents.extracting import by_headers, by_model
    from modalign.applications.documents.reading import read_documents
    from modalign.applications.rows import read_text
    from modalign.cli.console import print_json, stdout
    from modalign.errors import UsageError

    if not field:
        raise UsageError("nothing to extract: name it with --field")
    shown = read_text(examples) if examples else ""
    given, opened = read_documents(documents), app_output.opened(llm, device)
    values, dropped = [], 0
    for document in given:
        if opened is None:
            found = [by_headers(document, name) for name in field]
            values += [value for value in found if value is not None]
            dropped += found.count(None)
            continue
        kept, missing = by_model(document, field, opened, shown)
        values, dropped = values + kept, dropped + missing
    if json_output:
        print_json({"values": [asdict(value) for value in values], "without a quote": dropped})
        return
    for value in values:
        where = f"page {value.page}, " if value.page else ""
        place = (
            f"row {value.row}, column {value.column}"
            if value.row is not None
            else f"characters {value.start} to {value.end}"
        )
        number = (
            "" if value.value is None else f" = {value.value:g} {value.scale} {value.unit}".rstrip()
        )
        said = f"{value.document}: {value.field}: {value.quote!r}{number} ({where}piece {value.piece}, {place})"
        stdout.print(said, markup=False, highlight=False, soft_wrap=True)
    stdout.print(f"{len(values)} values; {dropped} not found or without a quote", markup=False)


@app.command("eval", epilog=options.EXIT_CODES)
def evaluate(
    documents: Documents,
    llm: app_output.Llm = None,
    limit: app_output.Limit = 200,
    out: app_output.Out = None,
    overwrite: options.Replace = False,
    seed: app_output.Seed = 0,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
) -> None:
    """Score extraction on documents with questions (as TAT-QA writes them): retrieval, numbers, quotes.

    **Example**: `modalign app documents eval tatqa_dataset_dev.json --out runs/documents`
    """
    from modalign.applications.documents.judging import judge
    from modalign.applications.documents.reading import read_documents

    app_output.check_report(out, overwrite)
    given, opened = read_documents(documents), app_output.opened(llm, device)
    found = judge(given, opened=opened, limit=limit, seed=seed, data=[documents])
    app_output.show(found, out, json_output)
