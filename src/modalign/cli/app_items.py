"""``modalign app items``: products by their pictures and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from modalign.cli import app_output, options

app = typer.Typer(
    help="Find items by photographs of them, and related items in an index.", no_args_is_help=True
)


@app.command(epilog=options.EXIT_CODES)
def run(
    index: Annotated[Path, typer.Argument(help="Folder of 'modalign embed'.")],
    item: Annotated[str, typer.Argument(help="An item's id.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many related items.")] = 5,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every vector.")] = False,
    json_output: options.Json = False,
) -> None:
    """Print the items nearest to one of an index.

    **Example**: `modalign app items run vectors apple -k 3`
    """
    from modalign.cli.console import print_json, stdout
    from modalign.errors import DataError, choose
    from modalign.index.vectors import Index

    found = Index.load(index)
    if item not in found.ids:
        raise DataError(f"{index}: no item {item!r}; {choose(item, found.ids[:20])}")
    own = found.vectors[found.ids.index(item)]
    hits = found.search(own[None], k + 1, exact=exact or None)[0]
    related = [hit for hit in hits if hit.id != item][:k]
    if json_output:
        print_json([hit._asdict() for hit in related])
        return
    for hit in related:
        stdout.print(f"{hit.id}: {hit.score:.3f}", markup=False, highlight=False, soft_wrap=True)


@app.command("eval", epilog=options.EXIT_CODES)
def evaluate(
    items: Annotated[str, typer.Argument(help="Rows of id, text, image, where known kind.")],
    photos: Annotated[str, typer.Argument(help="Rows of image, item, split (train or test).")],
    llm: app_output.Llm = None,
    pooling: Annotated[
        Literal["last", "mean", "word"], typer.Option("--pooling", help="As of modalign embed.")
    ] = "last",
    out: app_output.Out = None,
    overwrite: options.Replace = False,
    seed: app_output.Seed = 0,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
) -> None:
    """Score the search for the item on a photograph: colours as the rule, a model's vectors with --llm.

    **Example**: `modalign app items eval items.json photos.json --llm runs/compare/best --out runs/items`
    """
    from modalign.applications.item_embeddings.data import read_items, read_photos
    from modalign.applications.item_embeddings.judging import judge

    app_output.check_report(out, overwrite)
    given = read_items(items)
    asked, opened = read_photos(photos, given), app_output.opened(llm, device)
    found = judge(given, asked, opened=opened, pooling=pooling, seed=seed, data=[items, photos])
    app_output.show(found, out, json_output)
