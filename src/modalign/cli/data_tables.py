"""``modalign data tables``: tables as a whole become text or pictures of a data file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modalign.cli import options


def tables(
    source: Annotated[str, typer.Argument(metavar="DATA", help="Data whose rows hold tables.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON Lines file to write.")],
    form: Annotated[
        str, typer.Option("--as", help="markdown, csv, json, sentences or picture.")
    ] = "markdown",
    columns: options.Columns = None,
    skip_broken: options.SkipBroken = None,
    overwrite: options.Replace = False,
    json_output: options.Json = False,
) -> None:
    """Write the tables of a data file as text in the questions, or draw them as pictures.

    The column `table` holds a file (CSV, TSV, Parquet, JSON), a list of rows whose first is the header, a
    list of mappings, or one row. What is written is read by every other verb: with `--as picture` rows hold
    images, otherwise text only.

    **Examples**

    - `modalign data tables questions.jsonl -o as-text.jsonl`

    - `modalign data tables questions.jsonl -o drawn.jsonl --as picture`
    """
    from modalign.cli.console import print_json, stderr
    from modalign.data.modalities import modality_names
    from modalign.data.readers import read_records, write_records
    from modalign.data.readers.columns import parse_columns
    from modalign.data.validation import validate
    from modalign.data.whole_tables import check_whole, with_tables_as
    from modalign.errors import DataError
    from modalign.files import check_free

    check_free(out, overwrite=overwrite)
    found = read_records(source, modalities=modality_names(), columns=parse_columns(columns))
    records, report = validate(found, skip_broken=skip_broken or "0%", check=check_whole)
    tables = sum(medium.modality == "table" for record in records for medium in record.media())
    if not tables:
        raise DataError(
            f"{source}: none of the {len(records):,} rows has a table: put it in a column 'table', or name "
            "its column with --columns table=COLUMN"
        )
    write_records([with_tables_as(record, form) for record in records], out)
    result = {"out": str(out), "records": len(records), "tables": tables, "dropped": report.dropped}
    if json_output:
        print_json({**result, "as": form})
        return
    stderr.print(f"{tables:,} tables of {len(records):,} records: {out}", highlight=False)
