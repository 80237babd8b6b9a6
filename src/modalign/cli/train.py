"""``modalign train``: one method, one or more stages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modalign.cli import options

if TYPE_CHECKING:
    from modalign.training.trainable import PartCount


@options.configures
def train(
    *,
    config: options.Config = None,
    changes: dict[str, Any],
    method: Annotated[str, typer.Option("--method", help="'modalign methods' lists them.")] = "mlp",
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="Data recipe, e.g. captions_first (docs/recipes.md)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of new weights and the data order.")] = 0,
    factor: Annotated[
        float | None,
        typer.Option(
            help="Factor on all learning rates; without it a quarter of the budget finds it, with it "
            "that quarter is left unspent."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")] = Path("runs/train"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint.")
    ] = False,
    overwrite: options.Overwrite = False,
    json_output: options.Json = False,
) -> None:
    """Train one method and save the model as a Hugging Face folder in `OUT/model`.

    Several processes: `torchrun --nproc_per_node N -m modalign train ...` with
    `--set training.processes=N`; on GPUs also `accelerate launch --multi_gpu`.

    **Examples**

    - `modalign train --method mlp --budget 8000samples`

    - `modalign train --method mlp --recipe captions_first --budget 8000samples --out runs/first`

    - `modalign train experiment.yaml --method qformer --train-llm frozen --out runs/qformer`

    - `modalign train experiment.yaml --out runs/qformer --resume`
    """
    from modalign.cli.console import bars, print_json, quiet_libraries, stderr, stdout
    from modalign.comparison.config import load_config
    from modalign.training.run import train_method

    quiet_libraries()

    def describe(parts: list[PartCount], notes: list[str]) -> None:
        stderr.print(options.parts_table(parts))
        for note in notes:
            stderr.print(f"note: {note}", highlight=False, markup=False)

    with bars() as progress:
        resolved, _ = load_config(config, changes, progress)
        result = train_method(
            f"{method}+{recipe}" if recipe else method,
            resolved.parts,
            resolved.data,
            resolved.training,
            resolved.budget,
            out,
            recipe=resolved.stages,
            seed=seed,
            factor=factor,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            described=describe,
        )
    if not result.main:
        return
    if json_output:
        print_json(result.summary())
        return
    loss = "not measured" if result.val_loss is None else f"{result.val_loss:.3f}"
    stdout.print(
        f"{result.steps} steps, {result.samples} samples, {result.seconds:.1f} s; validation loss "
        f"{loss}; learning rate x{result.factor:.3g}"
    )
    stderr.print(f"Model: {out / 'model'}, in {result.dtype}", highlight=False, soft_wrap=True)
