"""``modalign data mix``: which mixture of data sources to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modalign.cli import options
from modalign.cli.data_probe import DryRun, Model, show_plan


@options.configures
def mix(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG|NAME=FILE...", help="YAML file, or two or more data sources by name."
        ),
    ],
    *,
    changes: dict[str, Any],
    model: Model = None,
    checked: Annotated[
        int | None,
        typer.Option(min=1, help="Mixtures to train for real, spread over the ranking."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings of each.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run.")] = Path("runs/mix"),
    dry_run: DryRun = False,
    trust_remote_code: options.TrustRemoteCode = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    overwrite: options.Overwrite = False,
    json_output: options.Json = False,
) -> None:
    """Rank mixtures of data sources by merged experts instead of by training on each, and check the promise.

    One expert is trained per source; a mixture is judged by merging the experts with its weights. The best one is
    then trained for real, with others spread over the ranking, and compared with equal shares, shares by size and
    the best single source. Prints Spearman's correlation of the proxy and the trained figures. Writes
    `report.html`, `report.md` and `report.json` to `OUT`.

    **Examples**

    - `modalign data mix drama=drama.jsonl web=web.txt --model models/small`

    - `modalign data mix mix.yaml --out runs/mix --resume`

    - `modalign data mix photos=a.jsonl charts=b.jsonl --model runs/mine/model --val target.jsonl --dry-run`
    """
    from modalign.cli.console import bars, print_json, quiet_libraries, stderr, stdout
    from modalign.errors import UsageError
    from modalign.mixtures.config import YAML, MixConfig, load_loop
    from modalign.mixtures.mix import mix as run
    from modalign.mixtures.mix import planned
    from modalign.mixtures.mix_report import agreement_table, findings, mixtures_table
    from modalign.pages.terminal import terminal

    quiet_libraries()
    files = [text for text in sources if Path(text).suffix.lower() in YAML and "=" not in text]
    if len(files) > 1:
        raise UsageError(f"{files[1]}: give one configuration")
    given = {}
    for text in sources:
        name, sign, path = text.partition("=")
        if text in files:
            continue
        if not (sign and name and path):
            raise UsageError(
                f"{text!r} is neither a YAML file nor NAME=FILE: name the sources, as in web=web.jsonl"
            )
        if name in given:
            raise UsageError(f"the source {name!r} is named twice")
        given[name] = path
    if not files and model is None:
        raise UsageError(
            "nothing to train: --model names a saved model; a YAML file may name parts instead"
        )
    own = {"model": model, "checked": checked, "seeds": seeds, "sources": given}
    changes |= {name: value for name, value in own.items() if value}
    with bars(not json_output) as progress:
        config = load_loop(MixConfig, files[0] if files else None, changes, progress)
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
    stdout.print(terminal(mixtures_table(found)))
    stdout.print(terminal(agreement_table(found)))
    stdout.print(f"Chosen: {found.chosen}", markup=False, highlight=False)
    for said in [*findings(found), *found.notes]:
        stdout.print(said, markup=False, highlight=False, soft_wrap=True)
    stderr.print(f"\nReport: {out / 'report.html'}", highlight=False, soft_wrap=True)
