"""``modalign federate``: one model from the records of many owners."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modalign.cli import options


@options.configures
def federate(
    *,
    config: options.Config = None,
    changes: dict[str, Any],
    ray: Annotated[
        str | None,
        typer.Option("--ray", help="Train clients on Ray: local, or a cluster's address."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")] = Path("runs/federate"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    overwrite: options.Overwrite = False,
    json_output: options.Json = False,
) -> None:
    """Train one model with the records of many clients, without pooling them.

    Compares scenarios, server rules and client strategies with local-only and centralised training; writes
    `report.html`, `report.md`, `report.json` and the model of the first combination in `OUT/model`. The budget
    is of one client in one round. There is no secure aggregation.

    **Examples**

    - `modalign federate`

    - `modalign federate federation.yaml --out runs/hospitals`

    - `modalign federate federation.yaml --set rules=[fedavg,median] --set "scenarios=['aligned','missing:0.3']"`

    - `modalign federate federation.yaml --ray local --out runs/hospitals --resume`
    """
    from modalign.cli.console import bars, print_json, quiet_libraries, stderr, stdout
    from modalign.federation.config import load_federation
    from modalign.federation.report import accuracy_table, findings
    from modalign.federation.run import federate as run
    from modalign.pages.terminal import terminal

    quiet_libraries()
    with bars(not json_output) as progress:
        resolved = load_federation(config, changes, progress)
        result = run(resolved, out, ray=ray, resume=resume, overwrite=overwrite, progress=progress)
    if json_output:
        print_json(result.model_dump_json(indent=2))
        return
    stdout.print(terminal(accuracy_table(result)))
    for said in [*findings(result), *result.notes]:
        stdout.print(said, markup=False, highlight=False, soft_wrap=True)
    stderr.print(
        f"\nReport: {out / 'report.html'}; model: {out / 'model'}", highlight=False, soft_wrap=True
    )
