"""``modalign app transform``: one instruction in; text, pictures, sounds and plots out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modalign.cli import app_output, options

if TYPE_CHECKING:
    from modalign.tools.planning.generate import Transformed

app = typer.Typer(
    help="Answer one instruction with text, or with calls to generators: picture, sound, plot.",
    no_args_is_help=True,
)
Instructions = Annotated[
    str, typer.Argument(help="Rows of instruction and calls (name, prompt); no calls: text.")
]
Generators = Annotated[
    list[str] | None,
    typer.Option(
        "--generator", help="picture, sound, plot, or file.py:function; repeatable. Default: all."
    ),
]
Endpoint = Annotated[
    str | None,
    typer.Option("--endpoint", help="Address of a server instead, e.g. of modalign serve."),
]
Length = Annotated[int, typer.Option("--max-tokens", min=1, help="Of a reply.")]


@app.command(epilog=options.EXIT_CODES)
def train(
    instructions: Instructions,
    llm: Annotated[str, typer.Option("--llm", help="The language model to start from.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run.")],
    generator: Generators = None,
    budget: Annotated[str, typer.Option("--budget", help="20000samples, 90s, ...")] = "2000samples",
    full: Annotated[bool, typer.Option("--full", help="All weights instead of a LoRA.")] = False,
    factor: app_output.Factor = 1.0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: options.Overwrite = False,
    seed: app_output.Seed = 0,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Train a language model to call generators, in its chat template's own format.

    **Example**: `modalign app transform train rows.jsonl --llm my-llm --budget 5000samples -o runs/transform`
    """
    from modalign.applications.any_to_any.data import read_instructions, records_of
    from modalign.applications.tuned import tune
    from modalign.cli.console import bars, quiet_libraries, stdout
    from modalign.tools.generators import generators
    from modalign.training.settings import Stage

    quiet_libraries()
    known = generators(generator or ())
    records = records_of(read_instructions(instructions, [each.name for each in known]), known)
    stage = Stage(name="calls", llm="full" if full else "lora")
    with bars() as progress:
        samples = tune(
            records, llm, out, stage, budget=budget, factor=factor, seed=seed, resume=resume, overwrite=overwrite,
            device=device or "auto", progress=progress,
        )  # fmt: skip
    said = f"{out / 'model'}: trained on {samples} samples of {len(records)} instructions"
    stdout.print(said, markup=False, highlight=False, soft_wrap=True)


@app.command(epilog=options.EXIT_CODES)
def run(
    instruction: Annotated[str, typer.Argument(help="What to do.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="New folder for what is made.")],
    llm: app_output.Llm = None,
    endpoint: Endpoint = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The model's name at the endpoint.")
    ] = None,
    generator: Generators = None,
    valid_calls: Annotated[
        bool,
        typer.Option("--valid-calls", help="Hold the model's calls to their schema as it writes."),
    ] = False,
    max_tokens: Length = 256,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
) -> None:
    """Answer an instruction: by keyword rules, or with --llm or --endpoint by a model. Exit 1: a call failed.

    **Example**: `modalign app transform run "Draw a red circle and play A4" -o made`
    """
    from modalign.applications.any_to_any.routing import by_keywords
    from modalign.cli.console import print_json, stderr, stdout
    from modalign.errors import UsageError
    from modalign.files import check_free, new_folder
    from modalign.tools.generators import generators

    if not instruction.strip():
        raise UsageError("the instruction is empty: say what to make")
    check_free(out, overwrite=overwrite, folders=True)
    known = generators(generator or ())
    answer = _answering(known, llm, device, max_tokens, valid_calls, endpoint, model)
    found = answer(instruction) if answer else by_keywords(instruction, known)
    shown = _shown(found, out)
    if found.made:
        with new_folder(out) as folder:
            for name, made in zip(_names(found), found.made, strict=True):
                (folder / name).write_bytes(made.data)
    if json_output:
        print_json(shown)
    else:
        for line in _lines(shown):
            stdout.print(line, markup=False, highlight=False, soft_wrap=True)
    problems = [call.problem for call in found.calls if call.problem]
    for problem in problems:
        stderr.print(problem, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)


@app.command("eval", epilog=options.EXIT_CODES)
def evaluate(
    instructions: Instructions,
    llm: app_output.Llm = None,
    before: Annotated[
        str | None,
        typer.Option("--before", help="The model before training, prompted only, as a row."),
    ] = None,
    reader: Annotated[
        str | None,
        typer.Option("--reader", help="A model that takes pictures, to read drawn digits."),
    ] = None,
    generator: Generators = None,
    max_tokens: Length = 256,
    out: app_output.Out = None,
    overwrite: options.Replace = False,
    seed: app_output.Seed = 0,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
) -> None:
    """Score routing, valid and false calls, and what is made and read again; keyword rules are the rule.

    **Example**: `modalign app transform eval test.jsonl --llm runs/transform/model --out runs/transform-report`
    """
    from modalign.applications.any_to_any.data import read_instructions
    from modalign.applications.any_to_any.judging import judge
    from modalign.applications.any_to_any.reading import readers
    from modalign.cli.console import bars
    from modalign.tools.generators import generators

    app_output.check_report(out, overwrite)
    known = generators(generator or ())
    asked = read_instructions(instructions, [each.name for each in known])
    models = {}
    for name, folder in (("a model before training", before), ("a model", llm)):
        for held in (False, True):
            answer = _answering(known, folder, device, max_tokens, held) if folder else None
            if answer is not None:
                models[f"{name}, held to valid calls" if held else name] = answer
    read = readers(app_output.opened(reader, device))
    with bars(not json_output) as progress:
        found = judge(
            asked, known, models, readers=read, seed=seed, data=[instructions], progress=progress
        )
    app_output.show(found, out, json_output)


@app.command(epilog=options.EXIT_CODES)
def serve(
    llm: Annotated[Path, typer.Argument(help="Folder of a model, e.g. of train.")],
    generator: Generators = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port; 0 chooses a free one.")
    ] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", help="File with the key that clients must send."),
    ] = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Serve a model behind the OpenAI API, with /v1/transform beside it, to this machine.

    **Example**: `modalign app transform serve runs/transform/model --port 8000`
    """
    from modalign.cli.console import quiet_libraries, stderr, stdout
    from modalign.errors import UsageError
    from modalign.serving.engine import open_engine
    from modalign.serving.http.generating import PATH
    from modalign.serving.http.log import logging_to_stderr
    from modalign.serving.http.server import accepted_hosts, address_of, listening
    from modalign.serving.http.server import serve as served
    from modalign.serving.http.settings import Settings, read_key
    from modalign.tools.generators import generators

    known, host = tuple(generators(generator or ())), "127.0.0.1"
    key = read_key(api_key_file) if api_key_file else None
    listener = listening(host, port)
    quiet_libraries()
    with listener, logging_to_stderr():
        stderr.print(f"loading {llm}", markup=False, highlight=False, soft_wrap=True)
        engine = open_engine(llm, device=device or "auto")
        if not engine.takes_tools:
            engine.close()
            raise UsageError(
                f"{llm}: its chat template renders no tools; 'modalign app transform train' gives it one that does"
            )
        settings = Settings(
            llm.resolve().name, api_key=key, hosts=accepted_hosts(host), generators=known
        )

        def ready() -> None:
            said = f"{settings.name} is served at {address_of(listener, host)}{PATH}"
            stdout.print(said, highlight=False, soft_wrap=True)
            stdout.file.flush()

        code = served(engine, settings, listener, ready=ready)
    raise typer.Exit(code)


def _answering(
    known: Any,
    llm: str | None,
    device: str | None,
    length: int,
    held: bool,
    endpoint: str | None = None,
    model: str | None = None,
) -> Any:
    """Return how a model answers an instruction, if one is given."""
    from modalign.cli.console import quiet_libraries
    from modalign.cli.tools import chat_of
    from modalign.errors import UsageError
    from modalign.tools.planning.generate import Generating

    if held and llm is None:
        raise UsageError("--valid-calls is about a model of this machine: give it with --llm")
    if llm is None and endpoint is None:
        return None
    quiet_libraries()
    chat = chat_of(llm, endpoint, model, None, device)
    settings = {"max_tokens": length, "temperature": 0} | ({"valid_calls": True} if held else {})
    return Generating(known, chat, settings=settings).answer


def _names(found: Transformed) -> list[str]:
    return [f"{n + 1}-{made.modality}{made.suffix}" for n, made in enumerate(found.made)]


def _shown(found: Transformed, out: Path) -> dict[str, Any]:
    files = iter(_names(found))
    calls = [
        {
            "name": call.name,
            "arguments": call.arguments,
            "file": str(out / next(files)) if call.made else None,
            "shows": call.made.shows if call.made else None,
            "problem": call.problem or None,
        }
        for call in found.calls
    ]
    return {"text": found.text, "calls": calls, "repaired": found.repaired}


def _lines(shown: dict[str, Any]) -> list[str]:
    made = [f"{call['file']}: {call['shows']}" for call in shown["calls"] if call["file"]]
    return [line for line in (shown["text"], *made) if line]
