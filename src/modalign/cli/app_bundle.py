"""``modalign app bundle``: complete bundles of items."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modalign.cli import app_output, options

app = typer.Typer(
    help="Complete a bundle of items by their titles and by what was bought together.",
    no_args_is_help=True,
)
Folder = Annotated[
    Path, typer.Argument(help="With item_titles.csv, bundle_item.csv, session_bundle.csv.")
]


@app.command(epilog=options.EXIT_CODES)
def train(
    folder: Folder,
    llm: Annotated[str, typer.Option("--llm", help="The language model to start from.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run.")],
    budget: Annotated[str, typer.Option("--budget", help="20000samples, 90s, ...")] = "2000samples",
    factor: app_output.Factor = 1.0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: options.Overwrite = False,
    seed: app_output.Seed = 0,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Train a model to choose the hidden item by its title, on the sessions that eval does not use.

    **Example**: `modalign app bundle train shop --llm my-llm --budget 2000samples -o runs/bundle`
    """
    from modalign.applications.bundles.completing import record_of
    from modalign.applications.bundles.data import questions, read_catalogue, split
    from modalign.applications.tuned import lettered, tune
    from modalign.cli.console import bars, quiet_libraries, stdout

    quiet_libraries()
    catalogue = read_catalogue(folder)
    known, _ = split(catalogue.bundles, lambda bundle: bundle.session, seed)
    asked = questions(known, len(catalogue.ids), seed + 1)
    records = [
        r for n, each in enumerate(asked) if (r := record_of(each, catalogue, n)) is not None
    ]
    with bars() as progress:
        samples = tune(
            lettered(records, seed), llm, out,
            budget=budget, factor=factor, seed=seed, resume=resume, overwrite=overwrite,
            device=device or "auto", progress=progress,
        )  # fmt: skip
    said = f"{out / 'model'}: trained on {samples} samples of {len(records)} bundles"
    stdout.print(said, markup=False, highlight=False, soft_wrap=True)


@app.command(epilog=options.EXIT_CODES)
def run(
    folder: Folder,
    item: Annotated[
        list[str] | None, typer.Option("--item", help="An item's id in the bundle; repeatable.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many items to propose.")] = 5,
    json_output: options.Json = False,
) -> None:
    """Propose items for a bundle, by titles and by the bundles that are known.

    **Example**: `modalign app bundle run shop --item 17 --item 42`
    """
    from modalign.applications.bundles.completing import Completer
    from modalign.applications.bundles.data import read_catalogue
    from modalign.cli.console import print_json, stdout
    from modalign.errors import UsageError

    if not item:
        raise UsageError("a bundle needs an item to start from: --item ID")
    catalogue = read_catalogue(folder)
    found = Completer(catalogue, catalogue.bundles).best(catalogue.places(item), k)
    proposed = [
        {"id": catalogue.ids[at], "title": catalogue.titles[at], "score": round(score, 4)}
        for at, score in found
    ]
    if json_output:
        print_json(proposed)
        return
    for each in proposed:
        said = f"{each['id']}: {each['title']} ({each['score']})"
        stdout.print(said, markup=False, highlight=False, soft_wrap=True)


@app.command("eval", epilog=options.EXIT_CODES)
def evaluate(
    folder: Folder,
    llm: app_output.Llm = None,
    limit: app_output.Limit = 200,
    out: app_output.Out = None,
    overwrite: options.Replace = False,
    seed: app_output.Seed = 0,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
) -> None:
    """Score completion, one of ten, split by shopping session; a split by bundle stands beside as leakage.

    **Example**: `modalign app bundle eval shop --llm runs/bundle/model --out runs/bundle-report`
    """
    from modalign.applications.bundles.data import read_catalogue
    from modalign.applications.bundles.judging import judge
    from modalign.cli.console import bars

    app_output.check_report(out, overwrite)
    catalogue, opened = read_catalogue(folder), app_output.opened(llm, device)
    with bars(not json_output) as progress:
        found = judge(
            catalogue, opened=opened, limit=limit, seed=seed, data=[str(folder)], progress=progress
        )
    app_output.show(found, out, json_output)
