"""``modalign edit analyze``: what attention and FFN contribute to facts that a model knows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modalign.cli import options


def analyze(
    model: options.ModelName,
    facts: Annotated[
        Path,
        typer.Argument(help="Facts (subject, prompt or template, attribute), or a file of edits."),
    ],
    number: Annotated[
        int, typer.Option("--facts", min=1, help="Known facts to use, sampled at random.")
    ] = 200,
    projection: Annotated[
        str,
        typer.Option(
            help="How vectors become tokens for the Jaccard similarity: lens (final norm and head) "
            "or embedding (as in the paper's notebook)."
        ),
    ] = "lens",
    seed: Annotated[int, typer.Option(help="Seed of the sample and the bootstrap.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write a page with figures (.html) or .json here.")
    ] = None,
    overwrite: options.Replace = False,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    dtype: options.WeightsDtype = None,
    json_output: options.Json = False,
) -> None:
    """Compare input and output of attention and FFN, layer by layer: PMET's analysis.

    At the last token of the prompt, averaged over facts the model knows: cosine similarity of input
    and output, Jaccard similarity of their 50 highest-scoring tokens, and the attribute's probability
    read from each. The conclusions follow from the numbers by fixed rules.

    **Examples**

    - `modalign edit analyze MODEL facts.jsonl --out components.html`

    - `modalign edit analyze MODEL known_1000.json --facts 500 --projection embedding --json`
    """
    from modalign.cli.console import bars, print_json, quiet_libraries, stderr, stdout
    from modalign.editing.layers.analysis import analyse
    from modalign.editing.layers.facts import read_facts
    from modalign.editing.layers.pages import analysis_report, analysis_table
    from modalign.errors import UsageError
    from modalign.pages.terminal import terminal

    check_page(out, overwrite)
    quiet_libraries()
    if projection not in ("lens", "embedding"):
        raise UsageError(f"--projection {projection}: choose lens or embedding")
    read = read_facts(facts)
    loaded, tokenizer = opened(model, device, dtype)
    with bars(not json_output) as progress:
        found = analyse(
            loaded,
            tokenizer,
            read,
            wanted=number,
            projection="lens" if projection == "lens" else "embedding",
            seed=seed,
            progress=progress,
        )
    if out is not None:
        analysis_report(found).write_as(out)
    if json_output:
        print_json(found.model_dump_json(indent=2))
        return
    stdout.print(terminal(analysis_table(found)))
    for sentence in found.sentences:
        stdout.print(f"- {sentence}", markup=False, highlight=False)
    if out is not None:
        stderr.print(f"\nPage: {out}", markup=False, highlight=False, soft_wrap=True)


def opened(model: str, device: str | None, dtype: str | None) -> tuple[Any, Any]:
    """Open the model and its tokenizer.

    Raises:
        UsageError: there is no model, or an unknown dtype.
    """
    from modalign.editing.run import dtype_named
    from modalign.models.asking import tokenizer_of
    from modalign.models.open import open_model

    loaded, reader = open_model(model, dtype_named(dtype), device)
    return loaded, tokenizer_of(reader)


def check_page(out: Path | None, overwrite: bool) -> None:
    """Refuse a report that exists or cannot be written."""
    from modalign.files import check_free
    from modalign.pages.report import files_as

    if out is not None:
        check_free(*files_as(out), overwrite=overwrite)
