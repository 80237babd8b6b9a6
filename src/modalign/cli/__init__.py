"""The command line: one file per verb; it parses, calls and prints."""

from __future__ import annotations

import json
import os
import sys

import typer

from modalign import __version__
from modalign.cli import ask, compare, evaluate, methods, starter, train
from modalign.errors import ModalignError

EPILOG = "Exit codes: 0 done, 1 the work failed, 2 wrong usage or configuration, 3 unusable data."

app = typer.Typer(
    name="modalign",
    help="Connect a language model to other modalities, and measure which way is worth its cost.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    # transformers and tokenizers write to the terminal on their own; our tables are live there.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


app.command(epilog=EPILOG)(compare.compare)
app.command(epilog=EPILOG)(train.train)
app.command(name="eval", epilog=EPILOG)(evaluate.evaluate)
app.command(epilog=EPILOG)(ask.ask)
app.command(epilog=EPILOG)(methods.methods)
# doctor
app.add_typer(starter.app, name="starter")


def main() -> None:
    """Run the command line; errors a user can act on become one message and an exit code."""
    try:
        app()
    except ModalignError as error:
        if "--json" in sys.argv:
            print(json.dumps({"error": str(error), "exit_code": error.exit_code}))
        else:
            from rich.console import Console

            Console(stderr=True).print("[bold red]error:[/] ", end="")
            print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; finished work is kept, --resume goes on", file=sys.stderr)
        sys.exit(130)
