"""``modalign data curate``: drop rows with operators, and write a card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modalign.cli import options
from modalign.errors import UsageError

if TYPE_CHECKING:
    from modalign.data.curation import Curated, Operator


def curate(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[INPUT]...", help="Data sets in any supported format, in this order."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The JSON Lines file to write.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML list of operators, in their order.")
    ] = None,
    keep_exact: Annotated[
        bool, typer.Option("--keep-exact", help="Do not drop exact duplicates.")
    ] = False,
    near_text: Annotated[
        float | None,
        typer.Option(
            "--near-text", help="Drop texts with at least this Jaccard similarity, e.g. 0.8."
        ),
    ] = None,
    near_image: Annotated[
        int | None,
        typer.Option("--near-image", help="Drop images whose hash differs in at most N bits."),
    ] = None,
    min_chars: Annotated[int | None, typer.Option(help="Shortest text.")] = None,
    max_chars: Annotated[int | None, typer.Option(help="Longest text.")] = None,
    language: Annotated[
        str | None, typer.Option("--language", help="Languages to keep, e.g. en,de.")
    ] = None,
    min_side: Annotated[int | None, typer.Option(help="Minimum shorter side of an image.")] = None,
    max_side: Annotated[int | None, typer.Option(help="Maximum longer side of an image.")] = None,
    max_aspect: Annotated[
        float | None, typer.Option(help="Maximum of longer over shorter side.")
    ] = None,
    balance: Annotated[
        float | None,
        typer.Option("--balance", help="Maximum share of one answer per skill or question type."),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="Folder of a CLIP or SigLIP-like dual encoder.")
    ] = None,
    min_similarity: Annotated[
        float | None, typer.Option(help="With --encoder: minimum cosine of image and text.")
    ] = None,
    keep_share: Annotated[
        float | None, typer.Option(help="With --encoder: share of the most similar rows to keep.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against", help="Evaluation data that kept rows must not contain; repeatable."
        ),
    ] = None,
    card: Annotated[
        Path | None, typer.Option("--card", help="The data card (default: OUT's name.card.json).")
    ] = None,
    media_root: Annotated[
        Path | None, typer.Option(help="Folder of relative media paths (default: the data's own).")
    ] = None,
    modality: Annotated[
        list[str] | None,
        typer.Option(help="Modality of the media columns (default: image); repeatable."),
    ] = None,
    columns: options.Columns = None,
    skip_broken: options.SkipBroken = None,
    examples: Annotated[
        int, typer.Option(min=0, help="Dropped rows to show in the card per operator.")
    ] = 5,
    replay: Annotated[
        Path | None,
        typer.Option("--replay", help="Repeat the curation of a card; takes no other settings."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: options.Replace = False,
    json_output: options.Json = False,
) -> None:
    """Drop rows with operators; write the others unchanged, and a data card.

    Options apply the operators in this order: exact duplicates, length,
    language, image size, contamination, near texts, near images, image-text similarity, answer
    balance. `--config` applies them with all their settings and in any order.

    The card (JSON and Markdown) lists the inputs, what each operator dropped and the output.
    `--replay` repeats it byte for byte, or names the input that changed.

    **Examples**

    - `modalign data curate train.jsonl -o clean.jsonl --near-text 0.8 --against eval.jsonl`

    - `modalign data curate a.jsonl b.parquet -o clean.jsonl --near-image 4 --min-side 64`

    - `modalign data curate train.jsonl -o clean.jsonl --config ops.yaml --skip-broken 1%`

    - `modalign data curate train.jsonl -o clean.jsonl --encoder CLIP --keep-share 0.8`

    - `modalign data curate --replay clean.card.json`
    """
    from modalign.cli.console import bars, print_json, quiet_libraries
    from modalign.data import curation
    from modalign.data.curation.config import operators_from
    from modalign.data.readers.columns import parse_columns
    from modalign.files import check_free

    chosen: dict[str, dict[str, Any]] = {
        "length": {"min_chars": min_chars, "max_chars": max_chars},
        "language": {"keep": language.split(",") if language else None},
        "image_size": {"min_side": min_side, "max_side": max_side, "max_aspect": max_aspect},
        "contamination": {"against": against},
        "near_texts": {"threshold": near_text},
        "near_images": {"distance": near_image},
        "image_text_similarity": {
            "encoder": encoder,
            "min_similarity": min_similarity,
            "keep_share": keep_share,
        },
        "answer_balance": {"max_share": balance},
    }
    operators = operators_from(chosen)
    if replay is not None and (inputs or config or card or operators or keep_exact):
        raise UsageError(
            "--replay takes all but -o, --resume, --overwrite and --json from the card"
        )
    if encoder is not None:
        quiet_libraries()
    with bars(not json_output) as progress:
        if replay is not None:
            _check_replay(replay, out, overwrite or resume)
            result = curation.replay(replay, out, progress, resume=resume)
        else:
            request = curation.Request(
                inputs=tuple(inputs or ()),
                out=_given(out, inputs),
                operators=_chosen(config, operators, keep_exact),
                card=card,
                media_root=media_root,
                modalities=tuple(modality or ("image",)),
                columns=parse_columns(columns),
                skip_broken=skip_broken or 0.0,
                examples=examples,
                resume=resume,
            )
            written = (request.out, request.card_path, request.card_path.with_suffix(".md"))
            check_free(*written, overwrite=overwrite or resume)
            result = curation.curate(request, progress)
    if json_output:
        print_json(result.card.model_dump_json(indent=2))
    else:
        _show(result)


def _check_replay(card_path: Path, out: Path | None, overwrite: bool) -> None:
    """Refuse a replay that would replace anything but its own rows."""
    from modalign.data.curation import load_card
    from modalign.files import check_free, sha256

    written = load_card(card_path).output
    target = out or card_path.parent / written.path
    same = target.is_file() and sha256(target) == written.sha256
    check_free(target, overwrite=overwrite or same)


def _given(out: Path | None, inputs: list[str] | None) -> Path:
    if not inputs:
        raise UsageError("give at least one INPUT, or --replay CARD")
    if out is None:
        raise UsageError("give the file to write: -o OUT.jsonl")
    return out


def _chosen(
    config: Path | None, operators: tuple[Operator, ...], keep_exact: bool
) -> tuple[Operator, ...]:
    from modalign.data.curation import ExactDuplicates, load_operators

    if config is None:
        return operators if keep_exact else (ExactDuplicates(), *operators)
    if operators or keep_exact:
        names = [operator.name for operator in operators] or ["exact_duplicates"]
        raise UsageError(f"--config and options for {', '.join(names)}: put them into {config}")
    return load_operators(config)


def _show(result: Curated) -> None:
    from rich.markup import escape
    from rich.table import Table

    from modalign.cli.console import stdout

    card = result.card
    table = Table(title=f"{card.rows:,} rows, {card.broken.rows:,} unreadable")
    table.add_column("operator")
    for name in ("in", "dropped", "out"):
        table.add_column(name, justify="right")
    table.add_column("first dropped")
    for done in card.operators:
        counts = [f"{n:,}" for n in (done.rows_in, done.dropped, done.rows_out)]
        first = done.examples[0] if done.examples else None
        shown = f"{Path(first.file).name}:{first.row} {first.reason}" if first else ""
        table.add_row(done.name, *counts, escape(shown))
    stdout.print(table)
    for name, path in (("Data", result.out), ("Card", result.card_path)):
        stdout.print(f"{name}: {path}", markup=False, highlight=False, soft_wrap=True)
