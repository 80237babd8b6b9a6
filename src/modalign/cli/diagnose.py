"""``modalign diagnose``: the gap between a modality and text inside a saved model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modalign.cli import options


def diagnose(
    model: options.Model,
    data: options.Data,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write report.html, .md and .json here.")
    ] = None,
    overwrite: options.Replace = False,
    limit: Annotated[
        int, typer.Option(min=4, help="Records per modality, sampled at random.")
    ] = 200,
    seed: Annotated[
        int, typer.Option(help="Seed of the sample, pairings, noise and intervals.")
    ] = 0,
    patch: options.Patches = None,
    train: options.TrainedOn = None,
    skip_broken: options.SkipBroken = None,
    columns: options.Columns = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
) -> None:
    """Diagnose a model: does it use its media, and how far are they from text inside it?

    Per modality: accuracy and answers without the medium, modality gap, norms at layer 0, modality
    integration rate by layer, similarity of encoder and connector with the texts, logit lens, attention
    on the modality. Every figure has its n, a 95 % interval, and the chance level if known.

    **Examples**

    - `modalign diagnose runs/train/model test.jsonl --out runs/diagnosis`

    - `modalign diagnose runs/train/model test.jsonl --limit 100 --json`

    - `modalign diagnose runs/train/model test.jsonl --patch fix.safetensors`
    """
    from modalign.cli.console import bars, print_json, quiet_libraries, stderr, stdout
    from modalign.data.readers.columns import parse_columns
    from modalign.evaluation.diagnosis.diagnose import diagnose as look
    from modalign.evaluation.diagnosis.page import diagnosis_report, figures_table, sentences
    from modalign.files import check_free
    from modalign.pages.report import files_of
    from modalign.pages.terminal import terminal
    from modalign.runs import command_line

    if out is not None:
        check_free(*files_of(out), overwrite=overwrite)
    quiet_libraries()
    with bars(not json_output) as progress:
        found = look(
            model,
            data,
            limit=limit,
            seed=seed,
            train=train,
            columns=parse_columns(columns),
            skip_broken=skip_broken or "0%",
            device=device or "auto",
            patches=patch or [],
            command=command_line(),
            progress=progress,
        )
    values = found.model_dump_json(indent=2)
    if out is not None:
        diagnosis_report(found).write(out)
    if json_output:
        print_json(values)
        return
    for each in found.modalities:
        stdout.print(f"{each.modality}: {each.encoder}, {each.connector}", markup=False)
        for diagnostic in each.diagnostics:
            stdout.print(terminal(figures_table(diagnostic)))
        for sentence in sentences(each):
            stdout.print(f"- {sentence}", markup=False, highlight=False)
    if out is not None:
        stderr.print(
            f"\nPage: {out / 'report.html'}", markup=False, highlight=False, soft_wrap=True
        )
