"""``modalign edit suggest``: which layers of a model can be edited."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modalign.cli import options


def suggest(
    model: Annotated[str, typer.Argument(help="Model folder or hub name.")],
    probes: Annotated[
        Path,
        typer.Argument(help="Facts (subject, prompt or template, attribute), or a file of edits."),
    ],
    facts: Annotated[
        int, typer.Option("--facts", min=1, help="Known facts to use, sampled at random.")
    ] = 24,
    samples: Annotated[int, typer.Option(min=1, help="Noise samples per fact.")] = 10,
    noise: Annotated[
        float, typer.Option(min=0.0, help="Noise, in standard deviations of the embeddings.")
    ] = 3.0,
    rows: Annotated[int, typer.Option(min=1, help="Batch size of the trace.")] = 256,
    seed: Annotated[
        int, typer.Option(help="Seed of the sample, the noise and the other answers.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write a page with figures (.html) or .json here.")
    ] = None,
    overwrite: options.Replace = False,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    dtype: options.WeightsDtype = None,
    json_output: options.Json = False,
) -> None:
    """Propose the layers to edit, from measurements on facts the model knows.

    Two signals must agree: a causal trace (does the state at the subject's last token
    carry the fact?), and vectors added there at every layer (do they make the model give another
    answer?). If no layer works, it says so and why; that is a result, so the exit code is 0 and
    `layers` is empty in `--json`.

    PROBES are facts (`subject`, a `prompt` or a `template` with `{}`, `attribute`) or a file of
    edits, whose truths are the facts. Facts that the model does not know are left out and counted.

    **Examples**

    - `modalign edit suggest MODEL edits.json`

    - `modalign edit suggest MODEL known_1000.json --facts 100 --out layers.html`

    - `modalign edit suggest MODEL facts.jsonl --device auto --dtype bfloat16 --json`
    """
    from modalign.cli.console import bars, print_json, quiet_libraries, stderr, stdout
    from modalign.cli.edit_analyze import check_page, opened
    from modalign.editing.layers.facts import read_facts
    from modalign.editing.layers.pages import findings_table, suggestion_report
    from modalign.editing.layers.proposal import suggest as run
    from modalign.editing.layers.tracing import TraceSettings
    from modalign.pages.terminal import terminal

    check_page(out, overwrite)
    quiet_libraries()
    read = read_facts(probes)
    loaded, tokenizer = opened(model, device, dtype)
    settings = TraceSettings(noise=noise, samples=samples, rows=rows, seed=seed)
    with bars(not json_output) as progress:
        found = run(
            loaded, tokenizer, read, probes=facts, seed=seed, tracing=settings, progress=progress
        )
    if out is not None:
        suggestion_report(found).write_as(out)
    if json_output:
        print_json(found.model_dump_json(indent=2))
        return
    stdout.print(terminal(findings_table(found)))
    for sentence in found.sentences:
        stdout.print(sentence, markup=False, highlight=False)
    if out is not None:
        stderr.print(f"\nPage: {out}", markup=False, highlight=False, soft_wrap=True)
