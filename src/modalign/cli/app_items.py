"""``modalign app items``: products by their pictures and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from modalign.cli import app_output, options

app = typer.Typer(
    help="Find items by photographs of them, and related items in an index.", no_args_is_help=True
)


Items = Annotated[str, typer.Argument(help="Rows of id, text, image, where known kind.")]
Photos = Annotated[
    str, typer.Argument(help="Rows of image, item, split (train or test), where given text.")
]
Model = Annotated[str, typer.Option("--llm", help="Folder of a model that takes pictures.")]


@app.command(epilog=options.EXIT_CODES)
def train(
    items: Items,
    photos: Photos,
    llm: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run.")],
    budget: Annotated[str, typer.Option("--budget", help="20000samples, 90s, ...")] = "2000samples",
    learn_temperature: Annotated[
        bool, typer.Option("--learn-temperature", help="Learn the temperature of info_nce, too.")
    ] = False,
    notes: Annotated[
        bool, typer.Option("--notes", help="Picture first, a soft separator, then the text (mICL).")
    ] = False,
    fusion: Annotated[
        bool, typer.Option("--fusion", help="Fuse vectors with what the encoder saw.")
    ] = False,
    factor: app_output.Factor = 1.0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: options.Overwrite = False,
    seed: app_output.Seed = 0,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Train a model's vectors: photographs find their items among those of the batch, and back (info_nce).

    **Example**: `modalign app items train items.json photos.json --llm runs/compare/best -o runs/items`
    """
    from modalign.applications.item_embeddings.data import read_items, read_photos
    from modalign.applications.item_embeddings.training import pairs, stage
    from modalign.applications.tuned import tune
    from modalign.cli.console import bars, quiet_libraries, stdout
    from modalign.models.prompts import Prompt

    quiet_libraries()
    given = read_items(items)
    records = pairs(given, read_photos(photos, given))
    with bars() as progress:
        samples = tune(
            records, llm, out, stage(learn_temperature, notes, fusion), prompt=Prompt(notes), budget=budget,
            factor=factor, seed=seed, resume=resume, overwrite=overwrite, device=device or "auto",
            progress=progress,
        )  # fmt: skip
    said = f"{out / 'model'}: trained on {samples} samples of {len(records)} photographs and items"
    stdout.print(said, markup=False, highlight=False, soft_wrap=True)


@app.command(epilog=options.EXIT_CODES)
def compare(
    items: Items,
    photos: Photos,
    llm: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the report and the runs.")],
    budget: Annotated[str, typer.Option("--budget", help="Of each training.")] = "2000samples",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Trainings of each form.")] = 3,
    full: Annotated[bool, typer.Option("--full", help="All weights instead of a LoRA.")] = False,
    factor: app_output.Factor = 1.0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue interrupted runs.")] = False,
    overwrite: options.Replace = False,
    seed: app_output.Seed = 0,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
) -> None:
    """Train vectors of texts alone, of pictures alone, of both, with mICL, with late fusion and with both devices.

    Every item and every photograph needs a picture and a text.

    **Example**: `modalign app items compare items.jsonl photos.jsonl --llm runs/compare/best -o runs/forms`
    """
    from modalign.applications.item_embeddings.comparing import compare
    from modalign.applications.item_embeddings.data import read_items, read_photos
    from modalign.cli.console import bars, quiet_libraries

    quiet_libraries()
    app_output.check_report(out, overwrite or resume)
    given = read_items(items)
    asked = read_photos(photos, given)
    with bars(not json_output) as progress:
        found = compare(
            given, asked, llm, out, budget=budget, factor=factor, llm_mode="full" if full else "lora", seeds=seeds,
            seed=seed, resume=resume, device=device or "auto", data=[items, photos], progress=progress,
        )  # fmt: skip
    app_output.show(found, out, json_output)


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
    items: Items,
    photos: Photos,
    llm: app_output.Llm = None,
    pooling: Annotated[
        Literal["last", "mean", "word", "saved"] | None,
        typer.Option("--pooling", help="As of modalign embed."),
    ] = None,
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
    from modalign.index.embedding import reading

    app_output.check_report(out, overwrite)
    given = read_items(items)
    asked, opened = read_photos(photos, given), app_output.opened(llm, device)
    way = reading(llm, pooling) if llm else "last"
    found = judge(given, asked, opened=opened, pooling=way, seed=seed, data=[items, photos])
    app_output.show(found, out, json_output)
