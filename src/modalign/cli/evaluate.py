"""``modalign eval``: a saved model on a data file, or on a file of edits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modalign.cli import options

if TYPE_CHECKING:
    from modalign.evaluation.evaluate import Evaluation


def evaluate(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    data: Annotated[
        str | None, typer.Argument(help="Data file with expected answers; not with --task.")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="Score edits instead: counterfact, zsre or mmedit.")
    ] = None,
    edits: Annotated[
        Path | None,
        typer.Option("--edits", help="With --task: the edits, as .json, .jsonl or .csv."),
    ] = None,
    patch: options.Patches = None,
    text: Annotated[
        Path | None,
        typer.Option("--text", help="With --task: held-out text for perplexity and drift."),
    ] = None,
    no_generate: Annotated[
        bool, typer.Option("--no-generate", help="With --task: teacher-forced numbers only.")
    ] = False,
    seed: Annotated[int, typer.Option(help="With --task: of texts and intervals.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write every record's prompts, outputs and scores here."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered together.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 32,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first records.")] = None,
    skip_broken: options.SkipBroken = None,
    device: options.Device = None,
    json_output: options.Json = False,
) -> None:
    """Answer every question greedily and score exact matches, per skill and overall.

    The same questions are asked with blank and with shuffled media: what is left of the accuracy then
    does not come from them. Questions about several modalities are also asked with each alone. Chance
    and majority rows stand beside it.

    With --task the model is scored on edits of its facts instead, as in the papers; with --patch the
    model without it stands beside it.

    **Examples**

    - `modalign eval runs/compare/best test.jsonl`

    - `modalign eval runs/compare/best test.jsonl --out answers.jsonl --json`

    - `modalign eval my-model --task counterfact --edits edits.json --patch fix.safetensors --text held-out.txt`
    """
    from modalign.cli.evaluate_edits import check_options, evaluate_edits

    check_options(task, data, edits, skip_broken, {"--text"} if text else set())
    if task is not None and edits is not None:
        evaluate_edits(
            model,
            task,
            edits,
            patches=patch or [],
            text=text,
            out=out,
            limit=limit,
            generate=not no_generate,
            seed=seed,
            device=device,
            json_output=json_output,
        )
        return
    assert data is not None
    _evaluate_data(
        model,
        data,
        out=out,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        limit=limit,
        skip_broken=skip_broken,
        patches=patch or [],
        device=device,
        json_output=json_output,
    )


def _evaluate_data(
    model: Path,
    data: str,
    *,
    out: Path | None,
    batch_size: int,
    max_new_tokens: int,
    limit: int | None,
    skip_broken: str | None,
    patches: list[Path],
    device: str | None,
    json_output: bool,
) -> None:
    """Answer a data file's questions and print the table."""
    from modalign.cli.console import bars, print_json, quiet_libraries, stdout
    from modalign.evaluation.evaluate import evaluate_model

    quiet_libraries()
    with bars(not json_output) as progress:
        result = evaluate_model(
            model,
            data,
            out=out,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            limit=limit,
            skip_broken=skip_broken or "0%",
            device=device or "auto",
            patches=patches,
            progress=progress,
        )
    if json_output:
        print_json(result.model_dump_json(indent=2))
        return
    stdout.print(_table(result))
    if result.available:
        stdout.print(_available(result))


def _available(result: Evaluation) -> object:
    """Accuracy of records of several modalities, by what was left in them."""
    from rich.table import Table

    table = Table(title="records of several modalities, by what was left in them")
    for header in ("modalities", "n", "accuracy", "interval"):
        table.add_column(header, justify="left" if header == "modalities" else "right")
    for name, found in result.available.items():
        interval = f"{found.low:.1%} to {found.high:.1%}"
        table.add_row(name, str(found.n), f"{found.value:.1%}", interval)
    return table


def _table(result: object) -> object:
    from rich.table import Table

    from modalign.evaluation.evaluate import Evaluation

    assert isinstance(result, Evaluation)
    table = Table(title=f"{result.data}: exact match of greedy answers, 95 % intervals")
    for header in (
        "skill",
        "n",
        "accuracy",
        "interval",
        "blank media",
        "shuffled media",
        "chance",
        "majority",
    ):
        table.add_column(header, justify="left" if header == "skill" else "right")
    for row in [*result.skills, result.overall]:
        table.add_row(
            row.skill,
            str(row.accuracy.n),
            f"{row.accuracy.value:.1%}",
            f"{row.accuracy.low:.1%} to {row.accuracy.high:.1%}",
            f"{row.blank:.1%}" if row.blank is not None else "-",
            f"{row.shuffled:.1%}" if row.shuffled is not None else "-",
            f"{row.chance:.1%}",
            f"{row.majority:.1%}",
        )
    return table
