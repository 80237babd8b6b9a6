"""Options that several verbs take, and how they become changes of a configuration."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from modalign.data.modalities import DEFAULT, medium_from, modality_names
from modalign.data.records import Media

EXIT_CODES = (
    "Exit codes: 0 done, 1 the work failed, 2 wrong usage or configuration, 3 unusable data."
)

MEDIA = (
    "MODALITY=FILE, or FILE where its ending tells; FILE#PART is part of a file, such as people.csv#3 or "
    "features.npy#12. Repeat it for several."
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


V = TypeVar("V", bound=Callable[..., Any])


def takes_media(verb: V) -> V:
    """Give a verb ``--media MODALITY=FILE``, and the short form ``--MODALITY FILE`` of every modality.

    Args:
        verb: with a parameter ``media``, which is then given all media, those of ``--media`` first.
    """
    signature = inspect.signature(verb, eval_str=True)
    short = [name for name in modality_names() if name not in signature.parameters]

    @functools.wraps(verb)
    def with_media(media: list[str] | None = None, **given: Any) -> Any:
        found = [medium_from(text) for text in media or []]
        for name in short:
            found += [Media(name, path=path) for path in given.pop(name) or []]
        return verb(media=found, **given)

    options = {"media": typer.Option("--media", help=MEDIA)}
    options |= {name: typer.Option(f"--{name}", help=f"--media {name}=FILE.") for name in short}
    parameters = dict(signature.parameters)
    for name, option in options.items():
        parameters[name] = inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[list[str] | None, option],
        )
    ordered = sorted(parameters.values(), key=lambda each: each.kind)
    with_media.__signature__ = signature.replace(parameters=ordered)  # type: ignore[attr-defined]
    return with_media  # type: ignore[return-value]


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
            modality, name = DEFAULT[0], item
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
