"""The command line: one file per verb; it parses, calls and prints."""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import typer
from typer.exceptions import TyperException

from modalign.cli import app as applications
from modalign.cli import (
    ask,
    cache,
    choose,
    compare,
    data,
    diagnose,
    distill,
    doctor,
    edit,
    embed,
    evaluate,
    export,
    federate,
    importing,
    merge,
    methods,
    options,
    patch,
    prune,
    report,
    serve,
    starter,
    tools,
    train,
    unlearn,
)
from modalign.data.patience import SECONDS, VARIABLE
from modalign.errors import ModalignError, first_line
from modalign.version import __version__
from modalign.visible import show_controls, visible

INTERRUPTED = 130  # 128 and the number of SIGINT

app = typer.Typer(
    name="modalign",
    help="Connect a language model to other modalities, and measure which way is worth its cost.",
    epilog=options.EXIT_CODES,
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
    debug: bool = typer.Option(
        False, "--debug", help="Show the whole traceback of an unexpected error."
    ),
    decode_seconds: float | None = typer.Option(
        None,
        "--decode-seconds",
        envvar=VARIABLE,
        min=0.001,
        show_default=f"{SECONDS:g}",
        help="What decoding one recording or video may take, before it is refused with its row.",
    ),
) -> None:
    # transformers and tokenizers print to the terminal, which would disturb our live tables.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if decode_seconds is not None:
        os.environ[VARIABLE] = str(decode_seconds)  # worker processes inherit it


GROUPS: dict[str, dict[str, Any]] = {  # the groups of verbs in `modalign --help`
    "Build": {
        "compare": compare.compare,
        "train": train.train,
        "federate": federate.federate,
        "doctor": doctor.doctor,
        "methods": methods.methods,
        "starter": starter.app,
    },
    "Correct": {"edit": edit.app, "unlearn": unlearn.unlearn, "patch": patch.app},
    "Shrink": {"prune": prune.prune, "distill": distill.app, "merge": merge.merge},
    "Judge": {"eval": evaluate.evaluate, "diagnose": diagnose.diagnose, "report": report.report},
    "Use": {
        "app": applications.app,
        "ask": ask.ask,
        "choose": choose.choose,
        "embed": embed.embed,
        "serve": serve.serve,
        "import": importing.import_model,
        "export": export.export,
        "tools": tools.app,
    },
    "Data": {"data": data.app, "cache": cache.app},
}
for group, verbs in GROUPS.items():
    for name, verb in verbs.items():
        if isinstance(verb, typer.Typer):
            app.add_typer(verb, name=name, rich_help_panel=group)
        else:
            app.command(name, epilog=options.EXIT_CODES, rich_help_panel=group)(verb)


@functools.cache
def command() -> Any:
    """Return all verbs with their options; Typer takes a third of a second to make them from functions."""
    return typer.main.get_command(app)


def main() -> None:
    """Run the command line; every error becomes one message and an exit code.

    modalign's own errors say what to do, and the system's name the file. Any other error is a bug: it is shown in
    one line with its place, and in full with ``--debug``, which may be given anywhere.
    """
    show_controls()
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    try:
        code = command()(standalone_mode=False)
    except ModalignError as error:
        _tell(str(error), error.exit_code)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except TyperException as error:  # the option parser's
        _tell_usage(error)
        sys.exit(getattr(error, "exit_code", 2))
    except Exception as error:  # a user gets one line, not a traceback, whatever went wrong
        if debug:
            sys.excepthook = _tell_whole
            raise
        told = first_line(error) if _of_the_system(error) else _unexpected(error)
        _tell(told, ModalignError.exit_code)
        sys.exit(ModalignError.exit_code)
    if code == INTERRUPTED:
        kept = "; finished work is kept, --resume continues" if resumable(sys.argv[1:]) else ""
        print(f"interrupted{kept}", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _of_the_system(error: Exception) -> bool:
    """Whether it is the system's refusal, such as of a full disk, as Python says it or as safetensors does."""
    if isinstance(error, OSError):
        return bool(error.strerror)
    return type(error).__name__ == "SafetensorError" and "(os error " in str(error)


def resumable(arguments: list[str]) -> bool:
    """Whether the verb can continue after an interruption."""
    found = command()
    for word in arguments:
        found = getattr(found, "commands", {}).get(word, found)
    return any("--resume" in option.opts for option in found.params)


def _tell_whole(*error: Any) -> None:
    print(visible("".join(traceback.format_exception(*error))), end="", file=sys.stderr)


def _unexpected(error: Exception) -> str:
    """Describe an unexpected error in one line, with the last place in modalign that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    home = Path(__file__).parents[1]
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(home)]
    place = (
        f"{Path(own[-1].filename).relative_to(home)}:{own[-1].lineno}"
        if own
        else "outside modalign"
    )
    said = first_line(error) or "no message"
    return (
        f"{type(error).__name__} at {place}: {said}. This is a bug; modalign --debug VERB ... "
        "shows the whole traceback for a bug report"
    )


def _tell(message: str, exit_code: int) -> None:
    if "--json" in sys.argv:
        print(json.dumps({"error": message, "exit_code": exit_code}))
        return
    from rich.console import Console

    Console(stderr=True).print("[bold red]error:[/] ", end="")
    print(visible(message), file=sys.stderr)


def _tell_usage(error: Any) -> None:
    """Report an unknown option, a missing argument or a wrong value."""
    if "--json" in sys.argv:
        _tell(error.format_message() or "no command was given", error.exit_code)
        return
    from typer import rich_utils

    error.message = visible(error.format_message())
    rich_utils.rich_format_error(error)
