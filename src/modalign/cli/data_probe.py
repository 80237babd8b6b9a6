"""``modalign data probe``: is a filter of the data worth it?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modalign.cli import options

Model = Annotated[
    str | None,
    typer.Option("--model", help="Saved model that every training starts from, instead of parts."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Read the data, say what would be trained, train nothing.")
]


@options.configures
def probe(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONFIG|DATA]",
            help="YAML file, or training data; default: the built-in starter.",
        ),
    ] = None,
    *,
    changes: dict[str, Any],
    model: Model = None,
    operators: Annotated[
        list[str] | None,
        typer.Option(
            "--operator",
            help="Statistic that cuts the pools, as length[of=answer;unit=words] or agreement; repeat it.",
        ),
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(help="Column that says which rows are good: adds the oracle, and the AUC."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings of each row.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Training records to use, at most.")
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run.")] = Path(
        "runs/probe"
    ),
    dry_run: DryRun = False,
    trust_remote_code: options.TrustRemoteCode = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    overwrite: options.Overwrite = False,
    json_output: options.Json = False,
) -> None:
    """Find out whether a filter of the training data is worth it, by training on what it would keep.

    The low, middle and high third of every operator's statistic are trained on under one budget, with the same
    seeds, and compared on held-out records with training on everything and on a random third. What wins is
    combined, then repetition is weighed against diversity. "No filter" is recommended unless something is found
    better. Writes `report.html`, `report.md` and `report.json` to `OUT`, and `kept.jsonl` if a filter is worth it.

    Operators: `length`, `language`, `image_size`, `image_text_similarity`, `near_texts`, `answer_balance`,
    `agreement` (how much its media help an aligned model to a record's answers), `loss`, `column[name=...]`,
    and `chance`, a control.

    **Examples**

    - `modalign data probe train.jsonl --val clean.jsonl --model runs/mine/model --operator agreement`

    - `modalign data probe probe.yaml --out runs/probe --resume`

    - `modalign data probe texts.jsonl --model models/small --operator loss --dry-run`
    """
    from modalign.cli.console import bars, print_json, quiet_libraries, stderr, stdout
    from modalign.mixtures.config import STARTER, ProbeConfig, load_loop
    from modalign.mixtures.probe import planned
    from modalign.mixtures.probe import probe as run
    from modalign.mixtures.probe_report import differences_table, findings, rows_table
    from modalign.pages.terminal import terminal

    quiet_libraries()
    own = {"model": model, "operators": operators, "truth": truth, "seeds": seeds, "limit": limit}
    changes |= {name: value for name, value in own.items() if value}
    with bars(not json_output) as progress:
        config = load_loop(ProbeConfig, source, changes, progress, STARTER)
        if dry_run:
            plan = planned(config, progress)
        else:
            found = run(config, out, resume=resume, overwrite=overwrite, progress=progress)
    if dry_run:
        show_plan(plan, json_output)
        return
    if json_output:
        print_json(found.model_dump_json(indent=2))
        return
    stdout.print(terminal(rows_table(found)))
    stdout.print(terminal(differences_table(found)))
    stdout.print(f"Recommended: {found.chosen}", markup=False, highlight=False)
    for said in [*findings(found), *found.notes]:
        stdout.print(said, markup=False, highlight=False, soft_wrap=True)
    kept = f"; records kept: {out / found.kept}" if found.kept else ""
    stderr.print(f"\nReport: {out / 'report.html'}{kept}", highlight=False, soft_wrap=True)


def show_plan(plan: dict[str, Any], json_output: bool) -> None:
    """Print what would be trained."""
    from modalign.cli.console import print_json, stdout

    if json_output:
        print_json(plan)
        return
    for name, value in plan.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        if shown != "":
            stdout.print(f"{name}: {shown}", markup=False, highlight=False, soft_wrap=True)
