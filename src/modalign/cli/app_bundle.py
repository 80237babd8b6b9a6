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
Relations = Annotated[
    Path | None,
    typer.Option(
        "--relations", help="relations.npy of 'relations', for a model that takes vectors."
    ),
]
Folder = Annotated[
    Path, typer.Argument(help="With item_titles.csv, bundle_item.csv, session_bundle.csv.")
]


@app.command(epilog=options.EXIT_CODES)
def train(
    folder: Folder,
    llm: Annotated[str, typer.Option("--llm", help="The language model to start from.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run.")],
    relations: Relations = None,
    letters: Annotated[
        bool,
        typer.Option(
            "--letters/--options",
            help="Learn the letter of the right item, or the likelihood of its title among the ten (choice).",
        ),
    ] = True,
    separator: Annotated[
        bool,
        typer.Option(
            "--separator", help="Between an item's title and its vector, a token that learns."
        ),
    ] = False,
    budget: Annotated[str, typer.Option("--budget", help="20000samples, 90s, ...")] = "2000samples",
    factor: app_output.Factor = 1.0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: options.Overwrite = False,
    seed: app_output.Seed = 0,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Train a model to choose the hidden item by its title, on the sessions that eval does not use.

    **Examples**

    - `modalign app bundle train shop --llm my-llm --budget 2000samples -o runs/bundle`

    - `modalign app bundle train shop --llm aligned/model --relations related/relations.npy --options -o two`
    """
    from modalign.applications.bundles.completing import record_of
    from modalign.applications.bundles.data import questions, read_catalogue, split
    from modalign.applications.rows import Relations as Vectors
    from modalign.applications.tuned import CHOICE, OFFERED, lettered, offered, tune
    from modalign.cli.console import bars, quiet_libraries, stdout
    from modalign.errors import UsageError
    from modalign.models.prompts import Prompt

    if separator and relations is None:
        raise UsageError(
            "--separator stands between titles and vectors: give them with --relations"
        )
    quiet_libraries()
    catalogue = read_catalogue(folder)
    known, _ = split(catalogue.bundles, lambda bundle: bundle.session, seed)
    asked = questions(known, len(catalogue.ids), seed + 1)
    vectors = Vectors(relations, len(catalogue.ids)) if relations else None
    made = [record_of(each, catalogue, n, vectors, separator) for n, each in enumerate(asked)]
    records = [record for record in made if record is not None]
    with bars() as progress:
        samples = tune(
            lettered(records, seed) if letters else offered(records), llm, out, CHOICE if letters else OFFERED,
            prompt=Prompt(separator=separator), budget=budget, factor=factor, seed=seed, resume=resume,
            overwrite=overwrite, device=device or "auto", progress=progress,
        )  # fmt: skip
    said = f"{out / 'model'}: trained on {samples} samples of {len(records)} bundles"
    stdout.print(said, markup=False, highlight=False, soft_wrap=True)


@app.command("relations", epilog=options.EXIT_CODES)
def relate(
    folder: Folder,
    out: Annotated[Path, typer.Option("-o", "--out", help="New folder.")],
    overwrite: options.Replace = False,
    seed: app_output.Seed = 0,
) -> None:
    """Write relation vectors of all items from the sessions that eval does not use, and rows to align them by.

    `relations.npy` has a row for each item; `rows.jsonl` asks for the title of each item by its vector.

    **Example**: `modalign app bundle relations shop -o related`
    """
    import json

    import numpy as np

    from modalign.applications.bundles.data import read_catalogue, split
    from modalign.cli.console import stdout
    from modalign.files import check_free, new_folder
    from modalign.index.relations import relation_vectors

    check_free(out, overwrite=overwrite, folders=True)
    catalogue = read_catalogue(folder)
    known, _ = split(catalogue.bundles, lambda bundle: bundle.session, seed)
    vectors = relation_vectors([bundle.items for bundle in known], len(catalogue.ids))
    there = np.flatnonzero(np.abs(vectors).sum(1))
    rows = [
        {
            "vectors": f"relations.npy#{n}",
            "question": "Which product?",
            "answer": catalogue.titles[n],
        }
        for n in there.tolist()
    ]
    with new_folder(out) as new:
        np.save(new / "relations.npy", vectors)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (new / "rows.jsonl").write_text(text, encoding="utf-8")
    said = f"{out}: vectors of {len(there)} of {len(vectors)} items, from {len(known)} bundles"
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
    relations: Relations = None,
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
    from modalign.applications.rows import Relations as Vectors
    from modalign.cli.console import bars
    from modalign.models.prompts import load_prompt

    app_output.check_report(out, overwrite)
    prompt = load_prompt(llm) if llm else None
    catalogue = read_catalogue(folder)
    vectors = Vectors(relations, len(catalogue.ids)) if relations else None
    opened = app_output.opened(llm, device)
    with bars(not json_output) as progress:
        found = judge(
            catalogue,
            opened=opened,
            relations=vectors,
            separated=prompt is not None and prompt.separator,
            limit=limit,
            seed=seed,
            data=[str(folder)],
            progress=progress,
        )
    app_output.show(found, out, json_output)
