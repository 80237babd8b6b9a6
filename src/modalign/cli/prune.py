"""``modalign prune``: a smaller model from a trained one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modalign.cli import options


def prune(
    model: options.ModelName,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the pruned model.")],
    keep: Annotated[
        float | None,
        typer.Option(help="Share of the layers' parameters that may stay; default: 0.75."),
    ] = None,
    latency: Annotated[
        float | None,
        typer.Option(help="Instead: share of the measured time for the next token, such as 0.8."),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Instead: size of the weights as stored, such as 2GiB.")
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            help="uniform, depth, per_layer, mask, or auto (tried, and judged after a short recovery)."
        ),
    ] = "uniform",
    score: Annotated[
        str | None,
        typer.Option(
            help="What ranks units or layers; default: fluctuation, for depth block_influence."
        ),
    ] = None,
    units: Annotated[
        str | None,
        typer.Option(help="What may be cut: mlp, heads or mlp,heads; default: all that can be."),
    ] = None,
    part: Annotated[
        str, typer.Option(help="language, or vision (the tower of a model with media).")
    ] = "language",
    compensate: Annotated[
        bool | None,
        typer.Option(
            "--compensate/--no-compensate",
            help="Biases for what removed inputs gave; default: for fluctuation without recovery.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Records or plain text to calibrate, recover and judge on; default: samples of the model.",
        ),
    ] = None,
    evaluation: Annotated[
        str | None, typer.Option("--eval", help="Records of a task that every model is scored on.")
    ] = None,
    recover: Annotated[
        str | None,
        typer.Option(help="full, lora or none; default: full, above 500 M parameters lora."),
    ] = None,
    recover_by: Annotated[
        str, typer.Option(help="kl (the parent's predictions) or cross_entropy.")
    ] = "kl",
    recover_budget: Annotated[
        str | None,
        typer.Option(help="Of every recovery: 1000samples (default), 90s, 10m or 3e14flops."),
    ] = None,
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Also train the pruned shape from random weights.")
    ] = False,
    patch: Annotated[
        Path | None,
        typer.Option(
            "--patch", help="Also write patches that can be taken off again: P, and P.recovery."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Recoveries of every model.")] = 1,
    seed: Annotated[
        int, typer.Option(help="Of the first one, of samples, the split and chance.")
    ] = 0,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="training.learning_rates.llm=1e-3, rounds=0 (no times), length=64."
        ),
    ] = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run of the same options.")
    ] = False,
    overwrite: options.Replace = False,
    json_output: options.Json = False,
) -> None:
    """Remove MLP units, key/value groups or layers, train what is left, and measure what that costs and saves.

    Writes a model folder that plain transformers loads, with `report.html`, `report.md` and `report.json`: loss
    before, pruned and recovered, beside the parent with the same recovery and a model pruned by chance;
    parameters, bytes, and milliseconds for the first and the next token.

    **Examples**

    - `modalign prune MODEL -o small --keep 0.75 --data texts.txt`

    - `modalign prune MODEL -o small --latency 0.8 --form auto --data texts.txt`

    - `modalign prune MODEL -o small --form depth --recover lora --recover-budget 10m --patch small.safetensors`

    - `modalign prune MODEL -o small --part vision --units mlp --data records.jsonl --eval test.jsonl`
    """
    from modalign.cli.console import bars, print_json, quiet_libraries, stderr, stdout
    from modalign.compression.pruning.config import PruneConfig
    from modalign.compression.pruning.report import (
        candidates_table,
        differences_table,
        rows_table,
        times_table,
    )
    from modalign.compression.pruning.run import prune as run
    from modalign.configuration import assign, assigned, merged, validated
    from modalign.pages.terminal import terminal

    quiet_libraries()
    given: dict[str, Any] = {
        "model": model,
        "keep": keep,
        "latency": latency,
        "memory": memory,
        "form": form,
        "score": score,
        "units": None if units is None else [name.strip() for name in units.split(",")],
        "part": part,
        "compensate": compensate,
        "data": data,
        "evaluation": evaluation,
        "recover": recover,
        "recover_by": recover_by,
        "recover_budget": recover_budget,
        "scratch": scratch,
        "seeds": seeds,
        "seed": seed,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    assign(fields, "training.batch_size", 8)
    if device is not None:
        assign(fields, "training.device", device)
    config = validated(PruneConfig, merged(fields, assigned(assignments)), "the options")

    def said(message: str) -> None:
        stderr.print(f"note: {message}", style="yellow", markup=False, highlight=False)

    with bars(not json_output) as progress:
        found = run(
            config,
            out,
            patch=patch,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            said=said,
        )
    if json_output:
        print_json(found.model_dump_json(indent=2))
        return
    tables = [rows_table(found), differences_table(found), times_table(found)]
    if found.cutting.candidates:
        tables.insert(0, candidates_table(found.cutting.candidates))
    for table in tables:
        if table.rows:
            stdout.print(terminal(table))
    stdout.print(
        f"{found.cutting.removed}; saved as {found.cutting.saved_as}; logits in a clean process differ by "
        f"{found.clean_process_difference:.1e}",
        highlight=False,
        soft_wrap=True,
    )
    for message in found.warnings:
        said(message)
    places = [f"Model: {out}", *(f"Patch: {path}" for path in found.patches)]
    stderr.print(
        "\n".join([*places, f"Report: {out / 'report.html'}"]), highlight=False, soft_wrap=True
    )
