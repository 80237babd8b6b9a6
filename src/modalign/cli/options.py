"""Options shared by several verbs, and their conversion to changes of a configuration."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from modalign.data.modalities import DEFAULT, medium_from, modality_names
from modalign.data.readers import locate
from modalign.data.records import Media
from modalign.errors import UsageError
from modalign.files import leads_nowhere
from modalign.trust import trust_remote_code

EXIT_CODES = (
    "Exit codes: 0 done, 1 the work failed, 2 wrong usage or configuration, 3 unusable data."
)

MEDIA = (
    "MODALITY=FILE, or FILE if its ending is known; FILE#PART is part of a file, such as people.csv#3 or "
    "features.npy#12. Repeatable."
)


def _model_there(name: str) -> str:
    """Refuse a path to no model before anything is imported; a name may be the hub's."""
    if leads_nowhere(name):
        raise UsageError(f"{name} contains no model: there is no such folder or GGUF file")
    return name


def _model_path(name: str) -> Path:
    return Path(_model_there(name))  # looked at as it was written: a path drops the ./ of ./name


def _data_there(name: str | None) -> str | None:
    """Refuse a data file that is not there before anything is imported."""
    if name is not None:
        locate(name)
    return name


STARTER = "starter:"  # names of the starter's parts begin so
MODEL_HELP = "Folder, GGUF file, or name of the hub."
Model = Annotated[Path, typer.Argument(parser=_model_path, help=MODEL_HELP, metavar="MODEL")]
ModelName = Annotated[str, typer.Argument(parser=_model_there, help=MODEL_HELP, metavar="MODEL")]
Data = Annotated[
    str, typer.Argument(callback=_data_there, help="Data file.", metavar="DATA", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Config = Annotated[str | None, typer.Argument(help="YAML file; default: the built-in starter.")]
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
    str | None,
    typer.Option("--val", help="Validation data; default: a tenth of the training data."),
]
Eval = Annotated[str | None, typer.Option("--eval", help="Evaluation data file.")]
Budget = Annotated[
    str | None, typer.Option("--budget", help="Per method: 20000samples, 90s, 10m or 3e14flops.")
]
LlmMode = Annotated[
    str | None, typer.Option("--train-llm", help="How the LLM trains: frozen, lora or full.")
]
EncoderMode = Annotated[
    str | None, typer.Option("--train-encoder", help="How the encoder trains: frozen or full.")
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, ...")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32 or bfloat16 (autocast).")]
ControlTokens = Annotated[
    list[str] | None,
    typer.Option(
        "--control-token",
        help="A special token that is one where a text holds it, too; repeat it. Otherwise texts are only text.",
    ),
]
SaveDtype = Annotated[
    str | None,
    typer.Option("--save-dtype", help="Of the saved model: given (as the LLM is), float32, ..."),
]
WeightsDtype = Annotated[
    str | None, typer.Option("--dtype", help="Load the weights as float32, bfloat16, ...")
]
AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Also read weights that are a pickle (as weights only)."),
]


def _trust(context: typer.Context, allowed: bool) -> bool:
    trust_remote_code(allowed)
    context.call_on_close(lambda: trust_remote_code(None))
    return allowed


TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        callback=_trust,
        help="Run Python code that the model's folder brings along: only where you have read it.",
    ),
]
Patches = Annotated[
    list[Path] | None,
    typer.Option(
        "--patch",
        help="Patch file to apply to the model; repeatable, lowest first.",
    ),
]
TrainedOn = Annotated[
    str | None,
    typer.Option("--train", help="Training data, for chance; default: from the model folder."),
]
SkipBroken = Annotated[
    str | None, typer.Option("--skip-broken", help="Share of broken records to drop, e.g. 1%.")
]
Columns = Annotated[
    str | None,
    typer.Option(
        "--columns", help="Columns by your names: question=prompt,answer=response,image=file."
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Delete an earlier run and start again.")
]
Replace = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any field of the configuration: training.batch_size=64."),
]


V = TypeVar("V", bound=Callable[..., Any])
CONFIGURATION = {  # parameter -> its option and configuration field
    "llm": (Llm, "parts.llm"),
    "encoder": (Encoder, "parts.encoder"),
    "train_file": (Train, "data.train"),
    "val": (Val, "data.val"),
    "evaluation": (Eval, "data.eval"),
    "budget": (Budget, "budget"),
    "llm_mode": (LlmMode, "training.llm"),
    "encoder_mode": (EncoderMode, "training.encoder"),
    "device": (Device, "training.device"),
    "dtype": (Dtype, "training.dtype"),
    "save_dtype": (SaveDtype, "training.save_dtype"),
    "control_tokens": (ControlTokens, "parts.control_tokens"),
    "skip_broken": (SkipBroken, "data.skip_broken"),
    "columns": (Columns, "data.columns"),
    "allow_pickle": (AllowPickle, "parts.allow_pickle"),
    "assignments": (Set, None),
}


def takes_media(verb: V) -> V:
    """Give a verb ``--media MODALITY=FILE``, and the short form ``--MODALITY FILE`` of every modality.

    Args:
        verb: with a parameter ``media``, which gets all media, those of ``--media`` first.
    """
    taken = inspect.signature(verb).parameters
    short = [name for name in modality_names() if name not in taken]

    def gathered(media: list[str] | None, **given: list[str] | None) -> list[Media]:
        found = [medium_from(text) for text in media or []]
        return found + [Media(name, path=path) for name in short for path in given[name] or []]

    added = {"media": typer.Option("--media", help=MEDIA)}
    added |= {name: typer.Option(f"--{name}", help=f"--media {name}=FILE.") for name in short}
    options = {name: Annotated[list[str] | None, option] for name, option in added.items()}
    return _with_options(verb, "media", options, gathered)


def configures(verb: V) -> V:
    """Give a verb the options that change a configuration.

    Args:
        verb: with a parameter ``changes``, which gets the nested changes.
    """

    def gathered(assignments: list[str] | None, **given: Any) -> dict[str, Any]:
        from modalign.configuration import assign, assigned

        changes: dict[str, Any] = {}
        if given["llm"] is not None and not given["llm"].startswith(STARTER):
            _model_there(given["llm"])
        for name in (
            () if assignments else ("train_file", "val", "evaluation")
        ):  # fields are checked first
            if given[name] is not None and not given[name].startswith(STARTER):
                _data_there(given[name])
        for name, value in given.items():
            if value is not None and value is not False:
                path = str(CONFIGURATION[name][1])
                assign(changes, path, _pairs(value) if name == "encoder" else value)
        return assigned(assignments, changes)

    options = {name: option for name, (option, _) in CONFIGURATION.items()}
    return _with_options(verb, "changes", options, gathered)


def _with_options(
    verb: V, parameter: str, options: Mapping[str, Any], gathered: Callable[..., Any]
) -> V:
    """Replace a verb's parameter by options; it gets the value gathered from them."""

    @functools.wraps(verb)
    def extended(**given: Any) -> Any:
        found = gathered(**{name: given.pop(name) for name in options})
        return verb(**given, **{parameter: found})

    signature = inspect.signature(verb, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for own in signature.parameters.values():
        added = options.items() if own.name == parameter else ()
        parameters += [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=False if option == AllowPickle else None,
                annotation=option,
            )
            for name, option in added
        ] or [own.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
    extended.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return extended  # type: ignore[return-value]


def _pairs(items: list[str]) -> dict[str, str]:
    pairs = {}
    for item in items:
        modality, found, name = item.partition("=")
        if not found:
            modality, name = DEFAULT[0], item
        pairs[modality] = name
    return pairs


def parts_table(parts: list[Any]) -> Any:
    """Build the table of trained parts: part, parameters, trainable."""
    from rich.table import Table

    table = Table(title="what trains")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    table.add_column("trainable", justify="right")
    for count in parts:
        table.add_row(count.part, f"{count.parameters:,}", f"{count.trainable:,}")
    return table
