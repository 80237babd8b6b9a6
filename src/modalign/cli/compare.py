"""``modalign compare``: every method under one budget, a report, a recommendation, the winner."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modalign.cli import options
from modalign.clusters import Cluster
from modalign.errors import UsageError

if TYPE_CHECKING:
    from modalign.comparison.config import CompareConfig


@options.configures
def compare(
    *,
    config: options.Config = None,
    changes: dict[str, Any],
    methods: Annotated[
        str | None, typer.Option("--methods", help="Names, converters, perceivers, tools or all.")
    ] = None,
    recipes: Annotated[
        str | None,
        typer.Option(
            "--recipes",
            help="Data recipes to combine with every connector: names or all (docs/recipes.md).",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="Trainings of every method; auto adds them where they decide."),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="Of the recommendation, at which auto adds no more.")
    ] = None,
    total: Annotated[
        str | None,
        typer.Option(help="That auto may spend on all trainings: 40trainings, 10m, 3e15flops."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Shifts everything random; two shifts are two repetitions.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="What answers are judged by: exact (match), anls, vqa, pope, wer (words right), or choice (the "
            "likeliest of the options)."
        ),
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Methods trained at the same time.")] = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", help="Train on a Ray cluster: its address, or local."),
    ] = None,
    gpus_per_job: Annotated[
        float | None,
        typer.Option(help="With --ray: of a training; default: 1 where the cluster has any."),
    ] = None,
    cpus_per_job: Annotated[
        int | None,
        typer.Option(help="With --ray: of a training, its threads; default: as without --ray."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of runs, report and winner.")] = Path(
        "runs/compare"
    ),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue in --out; finished methods are kept.")
    ] = False,
    overwrite: options.Overwrite = False,
    plan_for: Annotated[
        str | None,
        typer.Option(help="A larger budget: which method would be best there? (docs/report.md)"),
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(
            "--verify",
            help="A report.json: run one of its trainings again and say whether it gives the same bits.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Train nothing; say what it would take, from a few measured steps."
        ),
    ] = False,
    json_output: options.Json = False,
) -> None:
    """Compare ways of joining a modality to a language model, under one budget.

    Trains every method on the same data in the same order, finds each one's learning rate, measures
    quality and cost, writes `report.html`, `report.md` and `report.json`, recommends one, and saves
    it as a Hugging Face folder in `best/`.

    **Examples**

    - `modalign compare` : the built-in starter (handwriting scenes, two small models)

    - `modalign compare --methods linear,mlp,resampler --budget 2000samples --out runs/quick`

    - `modalign compare --llm Qwen/Qwen2.5-0.5B --encoder image=google/siglip-base-patch16-224
      --train train.jsonl --eval test.jsonl --train-llm lora --budget 50000samples`

    - `modalign compare --methods mlp,resampler --recipes all --out runs/recipes`

    - `modalign compare experiment.yaml --out runs/mine --resume`

    - `modalign compare --verify runs/mine/report.json` : does one training give the same bits here?
    - `modalign compare experiment.yaml --dry-run`

    - `modalign compare experiment.yaml --ray 10.0.0.5:6379 --gpus-per-job 1 --out /shared/mine`
    """
    from modalign.cli.console import LiveTable, bars, print_json, quiet_libraries, stderr, stdout
    from modalign.comparison.compare import compare as run
    from modalign.comparison.config import load_config
    from modalign.comparison.dry_run import expected_trainings
    from modalign.comparison.report.view import confidence_words
    from modalign.comparison.table import comparison_table, hallucination_table

    quiet_libraries()
    cluster = _cluster(ray, cpus_per_job, gpus_per_job)
    if cluster is not None and (dry_run or verify is not None):
        raise UsageError("--dry-run and --verify train on this machine: leave --ray out")
    if verify is not None:
        _verify(verify, json_output)
        return
    own: dict[str, Any] = {
        "seeds": seeds,
        "confidence": confidence,
        "total": total,
        "plan_for": plan_for,
        "metric": metric,
        "seed": seed,
        "jobs": jobs,
        "methods": methods and methods.split(","),
        "recipes": recipes and recipes.split(","),
    }
    changes |= {name: value for name, value in own.items() if value is not None}
    with bars() as progress:
        resolved, changed = load_config(config, changes, progress)
    if dry_run:
        _forecast(resolved, json_output)
        return
    with LiveTable(expected_trainings(resolved, len(resolved.resolved()))) as table:
        comparison = run(
            resolved,
            out=out,
            resume=resume,
            overwrite=overwrite,
            ray=cluster,
            progress=table.prepare,
            watcher=table,
            changed=changed,
        )
    if json_output:
        print_json(comparison.model_dump_json(indent=2))
        return
    found = comparison.recommendation
    if found and found.method is None:
        stdout.print(f"No method is recommended. {found.reason}", markup=False, highlight=False)
        for sentence in found.advice:
            stdout.print(f"- {sentence}", markup=False, highlight=False)
        stdout.print()
    stdout.print(comparison_table(comparison))
    if (yes_no := hallucination_table(comparison)) is not None and comparison.hallucination:
        stdout.print()
        stdout.print(yes_no)
        stdout.print(comparison.hallucination.verdict, markup=False, highlight=False)
    saved = "Winner"
    if found and found.method is not None:
        stdout.print(f"\nRecommended: {found.method} ({found.rule}). {found.reason}", markup=False)
        stdout.print(f"{found.price}\n{confidence_words(found)}", markup=False, highlight=False)
    elif found:
        saved = f"No method is recommended, see above. Best so far, {found.best}"
    if comparison.plan is not None:
        stdout.print(comparison.plan.words, markup=False, highlight=False)
    if comparison.schedule is not None:
        stdout.print(comparison.schedule.words, markup=False, highlight=False)
    stderr.print(
        f"\nReport: {out / 'report.html'}\n{saved}: {out / 'best'}",
        highlight=False,
        soft_wrap=True,
    )


def _cluster(address: str | None, cpus: int | None, gpus: float | None) -> Cluster | None:
    if address is not None:
        return Cluster(address, cpus, gpus)
    if cpus is not None or gpus is not None:
        raise UsageError("--cpus-per-job and --gpus-per-job are of trainings on Ray: add --ray")
    return None


def _verify(report: Path, json_output: bool) -> None:
    """Say whether a training gives the same bits again; exit code 1 where it does not."""
    from modalign.cli.console import bars, print_json, stdout
    from modalign.comparison.verify import verify

    with bars() as progress:
        found = verify(report, progress)
    if json_output:
        print_json(found.model_dump_json(indent=2))
    else:
        for line in (found.words, *(f"- {each}" for each in found.elsewhere)):
            stdout.print(line, markup=False, highlight=False)
    if not found.same:
        raise typer.Exit(1)


def _forecast(config: CompareConfig, json_output: bool) -> None:
    """Print what a comparison would take."""
    from rich.table import Table

    from modalign.cli.console import bars, print_json, stderr, stdout
    from modalign.comparison.dry_run import dry_run
    from modalign.memory import readable
    from modalign.numbers.words import seconds, size

    with bars() as progress:
        found = dry_run(config, progress=progress)
    if json_output:
        print_json(found.model_dump_json(indent=2))
        return
    table = Table(title="one training of each method, from a few measured steps")
    table.add_column("method", no_wrap=True)
    for header in ("time", "of it starting and scoring", "memory", "disk"):
        table.add_column(header, justify="right")
    for method in found.methods:
        times = (seconds(method.seconds), seconds(method.fixed))
        table.add_row(method.name, *times, readable(method.memory), size(method.disk))
    stdout.print(table)
    for name, why in found.failures.items():
        stderr.print(f"{name}: cannot be trained: {why}", markup=False, highlight=False)
    stdout.print(
        f"\nThe whole: at most about {seconds(found.seconds)} for {found.trainings} trainings, {found.workers} "
        f"at a time, with {readable(found.memory)} of memory and {size(found.disk)} on the disk.",
        markup=False,
        highlight=False,
    )
