"""``modalign data``: make and curate data sets."""

from __future__ import annotations

import typer

from modalign.cli import (
    data_build,
    data_curate,
    data_mix,
    data_probe,
    data_reformat,
    data_tables,
    options,
)

app = typer.Typer(
    help="Build instruction data, curate or reformat existing data, and find out what is worth training on.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    epilog=options.EXIT_CODES,
)


@app.callback()
def _data() -> None:
    """Keep the verbs a group, however many there are."""


app.command(epilog=options.EXIT_CODES)(data_build.build)
app.command(epilog=options.EXIT_CODES)(data_curate.curate)
app.command(epilog=options.EXIT_CODES)(data_probe.probe)
app.command(epilog=options.EXIT_CODES)(data_mix.mix)
app.command(epilog=options.EXIT_CODES)(data_tables.tables)
app.command(epilog=options.EXIT_CODES)(data_reformat.reformat)
