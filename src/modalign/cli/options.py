"""Options that several verbs take, and how they become changes of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

EXIT_CODES = (
    "Exit codes: 0 done, 1 the work failed, 2 wrong usage or configuration, 3 unusable data."
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Config = Annotated[
    str | None, typer.Argument(help="YAML file; without it the built-in starter is used.")
]
Llm = Annotated[
    str | None, typer.Option("--llm", help="Language model: hub name or folder of a causal LM.")
]
Encoder = Annotated[
    list[str] | None,
    typer.Option(
        "--encoder",
        help="MODALITY=NAME: hub name, folder, package.module:Class, or none (raw patches).",
    ),
]
Train = Annotated[str | None, typer.Option("--train", help="Training data file.")]
Val = Annotated[
    str | None, typer.Option("--val", help="Validation data; else a tenth of the training data.")
]
Eval = Annotated[str | None, typer.Option("--eval", help="Evaluation data file.")]
Budget = Annotated[
    str | None, typer.Option("--budget", help="Per method: 20000samples, 90s, 10m or 3e14flops.")
]
LlmMode = Annotated[
    str | None, typer.Option("--train-llm", help="What of the LLM trains: frozen, lora or full.")
]
EncoderMode = Annotated[
    str | None, typer.Option("--train-encoder", help="What of the encoder trains: frozen or full.")
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, ...")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32 or bfloat16 (autocast).")]
AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Also read weights that are a pickle (as weights only)."),
]
Patches = Annotated[
    list[Path] | None,
    typer.Option(
        "--patch",
        help="Patch file to put on top of the model; repeat it for several, lowest first.",
    ),
]
SkipBroken = Annotated[
    str | None, typer.Option("--skip-broken", help="Share of broken records to drop, e.g. 1%.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Delete what is there from an earlier run, begin anew.")
]
Replace = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any field of the configuration: training.batch_size=64."),
]


def changes_from(
    *,
    llm: str | None = None,
    encoder: list[str] | None = None,
    train: str | None = None,
    val: str | None = None,
    evaluation: str | None = None,
    budget: str | None = None,
    llm_mode: str | None = None,
    encoder_mode: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    skip_broken: str | None = None,
    allow_pickle: bool = False,
    assignments: list[str] | None = None,
) -> dict[str, Any]:
    """Options given on the command line as nested changes of a configuration."""
    from modalign.configuration import assign, assigned

    changes: dict[str, Any] = {}
    for path, value in (
        ("parts.llm", llm),
        ("parts.encoder", _pairs(encoder)),
        ("data.train", train),
        ("data.val", val),
        ("data.eval", evaluation),
        ("data.skip_broken", skip_broken),
        ("budget", budget),
        ("training.llm", llm_mode),
        ("training.encoder", encoder_mode),
        ("training.device", device),
        ("training.dtype", dtype),
        ("parts.allow_pickle", allow_pickle or None),
    ):
        if value is not None:
            assign(changes, path, value)
    return assigned(assignments, changes)


def _pairs(items: list[str] | None) -> dict[str, str] | None:
    if not items:
        return None
    pairs = {}
    for item in items:
        modality, found, name = item.partition("=")
        if not found:
            modality, name = "image", item
        pairs[modality] = name
    return pairs


def parts_table(parts: list[Any]) -> Any:
    """What trains, as a table: part, parameters, trainable."""
    from rich.table import Table

    table = Table(title="what trains")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    table.add_column("trainable", justify="right")
    for count in parts:
        table.add_row(count.part, f"{count.parameters:,}", f"{count.trainable:,}")
    return table
