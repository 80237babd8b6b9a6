"""``modalign merge``: one model from several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modalign.cli import options


def merge(
    parents: Annotated[
        list[str], typer.Argument(help="Two or more model folders: FOLDER or NAME=FOLDER.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder of the merged model and the report.")
    ],
    method: Annotated[
        str,
        typer.Option(
            help="linear, slerp, task_arithmetic, ties, dare_linear, dare_ties, della, breadcrumbs, sce, "
            "model_stock or learned."
        ),
    ] = "linear",
    base: Annotated[
        str | None, typer.Option(help="The model that the parents came from; most methods need it.")
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            "--weight",
            help="0.3,0.7: a number per parent (one of two parents: the second's share); with a pattern for some "
            "tensors, layers.0.*=0.1,0.9. Repeatable, later ones win.",
        ),
    ] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--assign",
            help="PARENT, whose are all tensors that not every parent has, or PATTERN=PARENT. Repeatable.",
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            help="Parent that gives configuration and vocabulary; default: that with most tensors."
        ),
    ] = None,
    tokens: Annotated[
        str,
        typer.Option(
            help="same: refuse other tokenizers; map: take rows of the vocabulary by token string."
        ),
    ] = "same",
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="An option of the method: density=0.3.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what a method draws.")] = 0,
    trust_remote_code: options.TrustRemoteCode = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing; say what would be merged, and how.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run of the same options.")
    ] = False,
    overwrite: options.Overwrite = False,
    json_output: options.Json = False,
) -> None:
    """Merge models of one architecture into one, tensor by tensor, and judge it beside its parents.

    Parents are aligned by what their tensors are in the model, not by their names in files, so that a multimodal
    model can be merged with its plain language model. Writes the model to `OUT/model`, loads it in a clean
    process, and writes `report.html`, `report.md`, `report.json`.

    **Examples**

    - `modalign merge A B -o runs/merged`

    - `modalign merge A B -o runs/merged --method ties --base BASE --set density=0.3 --weight 0.4,0.6`

    - `modalign merge LLAVA LLM -o runs/merged --weight 0.2 --assign LLAVA`

    - `modalign merge A B -o runs/merged --weight 'layers.[01].*=1,0' --dry-run`
    """
    from modalign.cli.console import bars, print_json, quiet_libraries, stderr, stdout
    from modalign.configuration import assigned, validated
    from modalign.merging.config import MergeConfig, named_folders
    from modalign.merging.report import plan_words
    from modalign.merging.run import Merge, merge_models

    quiet_libraries()
    given: dict[str, Any] = {
        "parents": named_folders(parents),
        "base": base,
        "method": method,
        "options": assigned(assignments),
        "weight": weight or [],
        "assign": assign or [],
        "like": like,
        "tokens": tokens,
        "seed": seed,
    }
    config = validated(MergeConfig, given, "the options")
    if dry_run:
        plan = Merge(config).plan()
        if json_output:
            print_json(plan.model_dump_json(indent=2))
            return
        for sentence in (*plan_words(plan), *plan.notes):
            stdout.print(sentence, markup=False, highlight=False, soft_wrap=True)
        return

    def said(message: str) -> None:
        stderr.print(f"note: {message}", style="yellow", markup=False, highlight=False)

    with bars(not json_output) as progress:
        found = merge_models(
            config, out, resume=resume, overwrite=overwrite, progress=progress, said=said
        )
    if json_output:
        print_json(found.model_dump_json(indent=2))
        return
    for sentence in plan_words(found.plan):
        stdout.print(sentence, markup=False, highlight=False, soft_wrap=True)
    stderr.print(
        f"\nModel: {found.model}\nReport: {out / 'report.html'}", highlight=False, soft_wrap=True
    )
