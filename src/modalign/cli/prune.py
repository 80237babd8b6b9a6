"""``modalign prune``: a smaller model from a trained one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modalign.cli import options


def prune(
    model: Annotated[str, typer.Argument(help="Folder of a causal language model.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the pruned model.")],
    keep: Annotated[
        float, typer.Option(help="Share of the layers' parameters that stays, above 0 and below 1.")
    ] = 0.75,
    form: Annotated[str, typer.Option(help="uniform, depth, per_layer or mask.")] = "uniform",
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
    text: Annotated[
        Path | None,
        typer.Option(help="Plain text to calibrate and judge on; default: samples of the model."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the model's samples, the split and chance.")] = 0,
    trust_remote_code: options.TrustRemoteCode = False,
    overwrite: options.Replace = False,
    json_output: options.Json = False,
) -> None:
    """Remove MLP units, key/value groups or layers, and measure what that costs and saves.

    Writes a model folder that plain transformers loads, with `result.json`: the loss per token on held-out windows
    of the parent, of the pruned model, and of one pruned at random to the same size.

    **Examples**

    - `modalign prune MODEL -o small --keep 0.75 --text texts.txt`

    - `modalign prune MODEL -o small --keep 0.8 --form depth --score leave_one_out`

    - `modalign prune MODEL -o small --units mlp --score taylor`

    - `modalign prune MODEL -o small --keep 0.75 --form mask --score wanda --json`
    """
    from modalign.cli.console import bars, print_json, quiet_libraries, stderr, stdout
    from modalign.compression.pruning.run import prune_model

    quiet_libraries()
    with bars(not json_output) as progress:
        found = prune_model(
            model,
            out,
            keep=keep,
            form=form,
            score=score,
            units=None if units is None else [name.strip() for name in units.split(",")],
            text=text,
            seed=seed,
            overwrite=overwrite,
            progress=progress,
        )
    if json_output:
        print_json(found.model_dump_json(indent=2))
        return
    for name in ("parent", "pruned", "random"):
        row = getattr(found, name)
        loss = row.loss
        size = "not written" if row.bytes is None else f"{row.bytes:,} bytes of weights"
        stdout.print(
            f"{name}: loss per token {loss.value:.3f} ({loss.low:.3f} to {loss.high:.3f}), {row.parameters:,} "
            f"parameters, {size}",
            highlight=False,
            soft_wrap=True,
        )
    stdout.print(
        f"{found.removed}; saved as {found.saved_as}; logits in a clean process differ by "
        f"{found.clean_process_difference:.1e}",
        highlight=False,
        soft_wrap=True,
    )
    stderr.print(f"Model: {out}", highlight=False, soft_wrap=True)
