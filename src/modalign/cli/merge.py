"""``modalign merge``: one model from several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modalign.cli import options


def merge(
    parents: Annotated[
        list[str],
        typer.Argument(help="Two or more model (or LoRA) folders: FOLDER or NAME=FOLDER."),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder of the merged model and the report.")
    ],
    method: Annotated[
        str,
        typer.Option(
            help="linear, slerp, task_arithmetic, ties, dare_linear, dare_ties, della, breadcrumbs, sce, "
            "model_stock or learned; of adapters linear, task_arithmetic or peft_svd, peft_ties, ..."
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
    form: Annotated[
        str,
        typer.Option(
            "--as",
            help="folder, or patch: OUT/soup.safetensors for the base (without one: for the first parent).",
        ),
    ] = "folder",
    search: Annotated[
        str | None,
        typer.Option(
            help="Try values, and keep the best on --val: weight=0.3,0.5,0.7, or an option, scale=0.5,1."
        ),
    ] = None,
    train: Annotated[
        list[str] | None,
        typer.Option("--train", help="NAME=FILE of a domain for --joint. Repeatable."),
    ] = None,
    val: Annotated[
        list[str] | None,
        typer.Option("--val", help="NAME=FILE of a domain to choose and learn by. Repeatable."),
    ] = None,
    evaluation: Annotated[
        list[str] | None,
        typer.Option("--eval", help="NAME=FILE of a domain to judge all models on. Repeatable."),
    ] = None,
    joint: Annotated[
        str | None,
        typer.Option(
            help="Also train the base on --train with this budget, as a row of the report: 2000samples, 90s."
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="An option of the method (density=0.3; of learned: steps=100, pull=1), or length, limit, "
            "training.batch_size=8.",
        ),
    ] = None,
    device: options.Device = None,
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

    - `modalign merge A B -o runs/merged --search weight=0.3,0.5,0.7 --val a=a-val.txt --val b=b-val.txt
      --eval a=a-test.txt --eval b=b-test.txt`

    - `modalign merge A B -o runs/merged --method learned --val a=a-val.txt --val b=b-val.txt --set pull=1`

    - `modalign merge A B -o runs/merged --as patch`

    - `modalign merge A B -o runs/merged --weight 'layers.[01].*=1,0' --dry-run`
    """
    from modalign.cli.console import bars, print_json, quiet_libraries, stderr, stdout
    from modalign.configuration import assign as assign_field
    from modalign.configuration import assigned, validated
    from modalign.errors import UsageError
    from modalign.merging.adapter_run import are_adapters, merge_adapter_folders, words_of
    from modalign.merging.config import LEARNED, MergeConfig, named_files, named_folders
    from modalign.merging.planning import Merge
    from modalign.merging.report import plan_words, rows_table
    from modalign.merging.run import merge_models
    from modalign.pages.terminal import terminal

    quiet_libraries()
    if len(parents) < 2:
        raise UsageError(f"give two or more models to merge, not {parents[0]} alone")
    settings = assigned(assignments)
    general: dict[str, Any] = {
        n: settings.pop(n) for n in ("length", "limit", "training") if n in settings
    }
    if device is not None:
        assign_field(general, "training.device", device)
    given: dict[str, Any] = {
        **general,
        "parents": named_folders(parents),
        "base": base,
        "method": method,
        "learning" if method == LEARNED else "options": settings,
        "form": form,
        "search": search,
        "train": named_files(train, "--train"),
        "val": named_files(val, "--val"),
        "evaluation": named_files(evaluation, "--eval"),
        "joint": joint,
        "weight": weight or [],
        "assign": assign or [],
        "like": like,
        "tokens": tokens,
        "seed": seed,
    }
    config = validated(MergeConfig, given, "the options")
    if are_adapters(config):
        if dry_run:
            raise UsageError("--dry-run is for models, and these are adapters")
        with bars(not json_output) as progress:
            adapter = merge_adapter_folders(
                config, out, resume=resume, overwrite=overwrite, progress=progress
            )
        if json_output:
            print_json(adapter.model_dump_json(indent=2))
            return
        stdout.print(words_of(adapter), markup=False, highlight=False, soft_wrap=True)
        stderr.print(
            f"\nAdapter: {adapter.model}\nReport: {out / 'report.html'}",
            highlight=False,
            soft_wrap=True,
        )
        return
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
    if found.rows:
        stdout.print(terminal(rows_table(found)))
    stderr.print(
        f"\nModel: {found.model}\nReport: {out / 'report.html'}", highlight=False, soft_wrap=True
    )
