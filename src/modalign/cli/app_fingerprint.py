"""``modalign app fingerprint``: which model wrote it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from modalign.cli import app_output, options

app = typer.Typer(
    help="Tell which of several sources wrote texts, or that it cannot be told.",
    no_args_is_help=True,
)
Texts = Annotated[
    list[str], typer.Argument(help="Rows of text and source, or human, machine, model.")
]


@app.command(epilog=options.EXIT_CODES)
def train(
    texts: Texts,
    out: app_output.Saved,
    overwrite: options.Replace = False,
    seed: app_output.Seed = 0,
) -> None:
    """Learn the sources' fingerprints, and whether they, and unknown sources, can be told at all.

    **Example**: `modalign app fingerprint train news.jsonl stories.jsonl -o fingerprints.json`
    """
    from modalign.applications.fingerprints.data import read_texts
    from modalign.applications.fingerprints.fingerprinting import checked
    from modalign.cli.console import stdout
    from modalign.files import check_free, write_atomically

    check_free(out, overwrite=overwrite)
    found = checked(read_texts(texts), seed)
    write_atomically(out, found.model_dump_json() + "\n")
    told = "are told apart" if found.identifiable else "are not identifiable: no better than chance"
    unknown = "are told from them" if found.threshold is not None else "cannot be told from them"
    said = f"{out}: {', '.join(found.sources)} {told}; unknown sources {unknown}"
    stdout.print(said, markup=False, highlight=False, soft_wrap=True)


@app.command(epilog=options.EXIT_CODES)
def run(
    fingerprints: Annotated[Path, typer.Argument(help="From train.")],
    files: Annotated[list[Path], typer.Argument(help="Text files of one origin, judged together.")],
    json_output: options.Json = False,
) -> None:
    """Judge texts of one origin together; texts of fewer than 100 words are refused.

    **Example**: `modalign app fingerprint run fingerprints.json answer-1.txt answer-2.txt`
    """
    from modalign.applications.fingerprints.fingerprinting import Fingerprints, identify
    from modalign.applications.rows import load_saved, read_text
    from modalign.cli.console import print_json, stdout
    from modalign.numbers import words

    made = load_saved(fingerprints, Fingerprints, "fingerprint train")
    found = identify(made, [read_text(file) for file in files])
    if json_output:
        print_json(asdict(found))
        return
    shares = ", ".join(f"{name} {words.percent(share)}" for name, share in found.shares.items())
    refused = f"; {found.refused} too short to be judged" if found.refused else ""
    said = f"{found.source or 'not identifiable'} ({found.texts} texts{refused}): {shares}"
    stdout.print(said, markup=False, highlight=False, soft_wrap=True)


@app.command("eval", epilog=options.EXIT_CODES)
def evaluate(
    texts: Texts,
    out: app_output.Out = None,
    overwrite: options.Replace = False,
    seed: app_output.Seed = 0,
    json_output: options.Json = False,
) -> None:
    """Score fingerprints with length alone beside them, in another domain, on unknown sources, under attack.

    **Example**: `modalign app fingerprint eval news.jsonl stories.jsonl --out runs/fingerprint`
    """
    from modalign.applications.fingerprints.data import read_texts
    from modalign.applications.fingerprints.judging import judge

    app_output.check_report(out, overwrite)
    given = read_texts(texts)
    found = judge(given, seed=seed, data=texts)
    app_output.show(found, out, json_output)
