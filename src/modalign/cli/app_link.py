"""``modalign app link``: mentions to entities of a base."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from modalign.cli import app_output, options

app = typer.Typer(
    help="Link mentions in sentences to entities of a base, or say that they are not in it.",
    no_args_is_help=True,
)
Mentions = Annotated[str, typer.Argument(help="Rows of mention, sentence, where known entity.")]
Base = Annotated[str, typer.Argument(help="The base: rows of id, name, where given description.")]


@app.command(epilog=options.EXIT_CODES)
def train(
    mentions: Mentions,
    base: Base,
    out: app_output.Saved,
    overwrite: options.Replace = False,
    seed: app_output.Seed = 0,
) -> None:
    """Find the score below which a mention is not in the base, with a fifth of the base taken away.

    **Example**: `modalign app link train mentions.jsonl entities.jsonl -o linker.json`
    """
    from modalign.applications.entity_linking.data import read_entities, read_mentions
    from modalign.applications.entity_linking.judging import fitted
    from modalign.cli.console import stdout
    from modalign.files import check_free, write_atomically

    check_free(out, overwrite=overwrite)
    linker = fitted(read_mentions(mentions), read_entities(base), seed)
    write_atomically(out, linker.model_dump_json() + "\n")
    stdout.print(f"{out}: not in the base below a score of {linker.threshold:.3f}", markup=False)


@app.command(epilog=options.EXIT_CODES)
def run(
    mentions: Mentions,
    base: Base,
    linker: Annotated[
        Path | None,
        typer.Option("--linker", help="From train; without it, none only where nothing fits."),
    ] = None,
    llm: app_output.Llm = None,
    seed: app_output.Seed = 0,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
) -> None:
    """Link every mention; with --llm that model chooses among the five best entities.

    **Example**: `modalign app link run mentions.jsonl entities.jsonl --linker linker.json`
    """
    from modalign.applications.entity_linking.data import read_entities, read_mentions
    from modalign.applications.entity_linking.linking import Linker, link
    from modalign.applications.rows import load_saved
    from modalign.cli.console import print_json, stdout

    asked, entities = read_mentions(mentions), read_entities(base)
    how = load_saved(linker, Linker, "link train") if linker else Linker()
    found = link(asked, entities, how, opened=app_output.opened(llm, device), seed=seed)
    if json_output:
        print_json([asdict(each) for each in found])
        return
    names = {entity.id: entity.name for entity in entities}
    for mention, each in zip(asked, found, strict=True):
        to = "not in the base" if each.entity is None else f"{each.entity} ({names[each.entity]})"
        line = f"{mention.id}: {mention.mention} -> {to}, score {each.score:.2f}"
        stdout.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command("eval", epilog=options.EXIT_CODES)
def evaluate(
    mentions: Mentions,
    base: Base,
    llm: app_output.Llm = None,
    limit: app_output.Limit = 200,
    out: app_output.Out = None,
    overwrite: options.Replace = False,
    seed: app_output.Seed = 0,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
) -> None:
    """Score linking over the whole base; the headline are mentions whose words are in several names.

    **Example**: `modalign app link eval mentions.jsonl entities.jsonl --out runs/link`
    """
    from modalign.applications.entity_linking.data import read_entities, read_mentions
    from modalign.applications.entity_linking.judging import judge
    from modalign.cli.console import bars

    app_output.check_report(out, overwrite)
    asked, entities = read_mentions(mentions), read_entities(base)
    opened = app_output.opened(llm, device)
    with bars(not json_output) as progress:
        found = judge(
            asked,
            entities,
            opened=opened,
            limit=limit,
            seed=seed,
            data=[mentions, base],
            progress=progress,
        )
    app_output.show(found, out, json_output)
