"""``modalign embed``: every record of a data file as a vector of an index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from modalign.cli import options


def embed(
    model: options.Model,
    data: options.Data,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the index to write.")],
    pooling: Annotated[
        Literal["last", "mean", "word", "saved"] | None,
        typer.Option(
            "--pooling",
            help="State of the prompt's last token, mean of its tokens, the last one after 'in one word', or the "
            "prompt saved with the model. Default: saved if there is one, else last.",
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Most positions of a batch.")] = 4096,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished index.")] = False,
    overwrite: options.Overwrite = False,
    patch: options.Patches = None,
    control_token: options.ControlTokens = None,
    skip_broken: options.SkipBroken = None,
    columns: options.Columns = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
) -> None:
    """Turn records or items into vectors: an index of ids and vectors that belongs to this model.

    Items are rows with `text`, a medium such as `image`, or both, and an `id`. Of records, answers are left
    out. All rows are checked first; vectors are written as they come, so memory does not grow with the data.

    **Examples**

    - `modalign embed runs/compare/best items.jsonl -o vectors`

    - `modalign embed my-llm titles.csv -o vectors --columns text=title --pooling mean`

    - `modalign embed my-llm million.jsonl -o vectors --resume`
    """
    from modalign.cli.console import bars, print_json, quiet_libraries, stdout
    from modalign.data.readers.columns import parse_columns
    from modalign.index.embedding import embed_data

    quiet_libraries()
    with bars(not json_output) as progress:
        found = embed_data(
            model,
            data,
            out,
            pooling=pooling,
            tokens=tokens,
            columns=parse_columns(columns),
            skip_broken=skip_broken or "0%",
            patches=patch or [],
            control_tokens=control_token or [],
            device=device or "auto",
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )
    if json_output:
        print_json(found.summary())
        return
    skipped = f", {found.skipped} broken rows left out" if found.skipped else ""
    said = f"{found.records:,} vectors of {found.size} numbers in {found.folder}{skipped}"
    stdout.print(said, markup=False, highlight=False, soft_wrap=True)
