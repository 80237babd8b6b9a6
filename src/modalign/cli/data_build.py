"""``modalign data build``: instruction records from annotations."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from modalign.cli import options
from modalign.errors import UsageError

if TYPE_CHECKING:
    from modalign.data.synthesis import Card


def build(
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="Annotated data: any supported format, or COCO.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON Lines file to write.")],
    kind: Annotated[
        Literal["captions", "boxes", "structure"],
        typer.Option("--from", help="Kind of annotations to read."),
    ],
    templates: Annotated[
        list[str] | None,
        typer.Option(
            "--templates", help="YAML file added to the built-in templates, or nlvr; repeatable."
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint", help="OpenAI-compatible address of a chat model to use instead."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="The chat model's name.")] = None,
    prompt: Annotated[
        Path | None, typer.Option("--prompt", help="Jinja file that replaces the built-in prompt.")
    ] = None,
    per_record: Annotated[
        int, typer.Option("--per-record", min=1, help="Maximum records per row.")
    ] = 4,
    seed: Annotated[int, typer.Option(help="Seed; another one gives other questions.")] = 0,
    send_images: Annotated[
        bool, typer.Option("--send-images", help="Send the images with the annotations' text.")
    ] = False,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="For the chat model; default: its server's.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum reply of the chat model.")] = 1024,
    per_minute: Annotated[
        float | None, typer.Option("--per-minute", min=0.01, help="Maximum requests per minute.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Concurrent requests.")] = 4,
    key_variable: Annotated[
        str | None,
        typer.Option("--key-variable", help="Environment variable with the endpoint's key."),
    ] = None,
    media_root: Annotated[
        str | None,
        typer.Option("--media-root", help="Base folder of relative media paths."),
    ] = None,
    box_scale: Annotated[
        float | None,
        typer.Option(
            "--box-scale",
            min=1e-6,
            help="The image's width and height in box units: 1 for shares, 1000; default: pixels.",
        ),
    ] = None,
    columns: options.Columns = None,
    skip_broken: Annotated[
        str, typer.Option("--skip-broken", help="Share of unusable rows to skip, e.g. 1%.")
    ] = "0%",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue with -o; no request is repeated.")
    ] = False,
    overwrite: options.Replace = False,
    json_output: options.Json = False,
) -> None:
    """Build instruction records from captions, boxes or structured annotations.

    Uses templates, unless `--endpoint` names a chat model. Writes OUT.jsonl, a card of the records
    (OUT.card.json) and what could not be used (OUT.rejected.jsonl).

    **Examples**

    - `modalign data build captions.jsonl -o train.jsonl --from captions`

    - `modalign data build instances.json -o train.jsonl --from boxes --media-root images`

    - `modalign data build nlvr.json -o train.jsonl --from structure --templates nlvr`

    - `modalign data build captions.jsonl -o train.jsonl --from captions
      --endpoint http://localhost:8000/v1 --model qwen --per-record 3`
    """
    from modalign.cli.console import bars, print_json
    from modalign.data.readers.columns import parse_columns
    from modalign.data.synthesis import Outputs, build_by_model, build_by_templates

    if (endpoint is None) != (model is None):
        raise UsageError("--endpoint and --model go together")
    if box_scale is not None and kind != "boxes":
        raise UsageError(f"--box-scale is for --from boxes, not for --from {kind}")
    _refuse_foreign(endpoint is not None, templates=templates, prompt=prompt, images=send_images)
    outputs = Outputs(out)
    outputs.check_free(resume=resume, overwrite=overwrite)
    common: dict[str, Any] = {
        "per_record": per_record,
        "seed": seed,
        "media_root": media_root,
        "box_scale": box_scale,
        "columns": parse_columns(columns),
        "skip_broken": skip_broken,
    }
    with bars(not json_output) as progress:
        if endpoint is None or model is None:
            card = build_by_templates(
                source, out, kind, templates=templates or (), progress=progress, **common
            )  # fmt: skip
        else:
            from modalign.endpoints import ChatEndpoint, Pace

            out.parent.mkdir(parents=True, exist_ok=True)
            if overwrite:
                outputs.replies.unlink(missing_ok=True)
            client = ChatEndpoint(
                endpoint,
                model,
                _key(key_variable),
                cache=outputs.replies,
                pace=Pace(per_minute, concurrency),
            )
            settings: dict[str, Any] = {"max_tokens": max_tokens}
            if temperature is not None:
                settings["temperature"] = temperature
            card = build_by_model(
                source,
                out,
                kind,
                client,
                prompt=prompt,
                settings=settings,
                send_images=send_images,
                progress=progress,
                **common,
            )
    if json_output:
        print_json(card.model_dump_json(indent=2))
    else:
        _show(card, out)


def _refuse_foreign(by_model: bool, *, templates: Any, prompt: Any, images: bool) -> None:
    """Refuse options that would be silently ignored."""
    if by_model and templates:
        raise UsageError("--templates are not used if --endpoint names a chat model")
    if not by_model and (prompt or images):
        raise UsageError("--prompt and --send-images need --endpoint and --model")


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise UsageError(f"--key-variable: the environment variable {variable} is not set")
    return os.environ[variable]


def _show(card: Card, out: Path) -> None:
    from rich.table import Table

    from modalign.cli.console import stderr, stdout

    table = Table(title=f"{card.records:,} records of {card.groups:,} groups")
    for header in ("template" if card.maker == "templates" else "skill", "skill", "records"):
        table.add_column(header)
    table.add_column("most frequent answer", justify="right")
    for name, made in card.made.items():
        table.add_row(name, made.skill or "", f"{made.records:,}", f"{made.majority:.1%}")
    stdout.print(table)
    for warning in card.warnings:
        stderr.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)
    for title, counts in (("unusable rows", card.unusable), ("rejected", card.rejected)):
        if counts:
            listed = ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
            stderr.print(f"{title}: {listed}", highlight=False, markup=False)
    stderr.print(f"Records: {out}", highlight=False, soft_wrap=True)
