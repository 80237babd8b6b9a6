"""``modalign tools``: list tools, and answer a question with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modalign.cli import options
from modalign.data.records import Media
from modalign.errors import UsageError

if TYPE_CHECKING:
    from modalign.endpoints import Chat
    from modalign.tools.planning.answer import AssistedAnswer

app = typer.Typer(
    help="Let a language model perceive through tools: their text, programs, or planned calls.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    epilog=options.EXIT_CODES,
)

SPEC = "A chain's name, or its YAML, TOML or JSON file."


@app.command(name="list", epilog=options.EXIT_CODES)
def list_tools(
    spec: Annotated[str | None, typer.Argument(help=SPEC)] = None,
    json_output: options.Json = False,
) -> None:
    """Show the built-in chains, or the tools of one chain with their signatures and parameters.

    **Examples**

    - `modalign tools list`

    - `modalign tools list starter_tools`

    - `modalign tools list tools.yaml --json`
    """
    from modalign.cli.console import print_json
    from modalign.tools.registry import chain_spec, chain_specs

    if spec is None:
        chains = {name: chain.model_dump(mode="json") for name, chain in chain_specs().items()}
        if json_output:
            print_json(chains)
        else:
            _show_chains(chains)
        return
    from modalign.tools.build import build_tool

    tools = [build_tool(one) for one in chain_spec(spec).tools]
    try:
        shown = [
            {
                **tool.to_schema()["function"],
                "returns": dict(tool.signature.result),
                "modalities": list(tool.modalities),
                "parameters_of_its_models": tool.parameters,
            }
            for tool in tools
        ]
    finally:
        for tool in tools:
            tool.close()
    if json_output:
        print_json({"tools": shown})
    else:
        _show_tools(shown)


@app.command(epilog=options.EXIT_CODES)
@options.takes_media
def run(
    media: list[Media],
    tools: Annotated[str, typer.Option("--tools", help=SPEC)] = "starter_tools",
    json_output: options.Json = False,
) -> None:
    """Show what the tools of a chain write about media: the text that a language model would read.

    **Examples**

    - `modalign tools run --media sign.png --tools ocr`

    - `modalign tools run --media image=a.png --media image=b.png --tools tools.yaml --json`
    """
    from modalign.cli.console import print_json, quiet_libraries, stderr, stdout
    from modalign.tools.build import build_chain
    from modalign.tools.planning.assistant import tokens_about
    from modalign.tools.registry import chain_spec

    if not media:
        raise UsageError("name what the tools shall look at: --media MODALITY=FILE")
    quiet_libraries()
    chain = build_chain(chain_spec(tools), tokens_about)
    try:
        written = [{"medium": medium.label, "text": chain.text(medium)} for medium in media]
        problems = chain.problems()
    finally:
        chain.close()
    if json_output:
        print_json({"tools": tools, "written": written, "problems": [vars(p) for p in problems]})
    else:
        for one in written:
            if len(written) > 1:
                stdout.print(f"{one['medium']}:", markup=False, highlight=False, soft_wrap=True)
            stdout.print(one["text"], markup=False, highlight=False, soft_wrap=True)
    for problem in problems:
        said = f"{problem.tool}: {problem.kind} ({problem.count} media), {problem.example}"
        stderr.print(said, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if problems and len(problems) == len(chain.uses) and not any(one["text"] for one in written):
        raise typer.Exit(1)


@app.command(epilog=options.EXIT_CODES)
@options.takes_media
def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    media: list[Media],
    tools: Annotated[str, typer.Option("--tools", help=SPEC)] = "starter_tools",
    way: Annotated[
        str,
        typer.Option("--way", help="text (read), code (write a program) or plan (call)."),
    ] = "text",
    llm: options.Llm = None,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", help="OpenAI-compatible address, up to /v1.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The model's name at the endpoint.")
    ] = None,
    key_variable: Annotated[
        str | None,
        typer.Option("--key-variable", help="Environment variable that holds the endpoint's key."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum reply in tokens; default: the model's.")
    ] = None,
    steps: Annotated[
        int, typer.Option(min=1, help="With --way plan: maximum replies with calls.")
    ] = 6,
    repairs: Annotated[int, typer.Option(min=0, help="With --way code: maximum repairs.")] = 1,
    unsafe_code: Annotated[
        bool, typer.Option("--unsafe-code", help="Run programs without a kernel fence.")
    ] = False,
    transcript: Annotated[
        Path | None, typer.Option("--transcript", help="Write every step and its cost as JSON.")
    ] = None,
    overwrite: options.Replace = False,
    device: options.Device = None,
    json_output: options.Json = False,
) -> None:
    """Answer a question about media with a language model that uses tools.

    `--way code` runs the model's program behind a kernel fence; without one it refuses, unless
    `--unsafe-code` is given.

    **Examples**

    - `modalign tools ask "what is written there?" --media sign.png --tools ocr --llm MODEL`

    - `modalign tools ask "how many are black?" --media image=0.png --tools tools.yaml --way code
      --endpoint http://localhost:8000/v1 --model qwen`

    - `modalign tools ask "who speaks first?" --media talk.wav --tools asr --way plan --llm MODEL
      --transcript steps.json`
    """
    import json

    from modalign.cli.console import print_json, quiet_libraries
    from modalign.files import check_free, write_atomically
    from modalign.tools.planning.assistant import assistant
    from modalign.tools.registry import chain_spec

    if transcript is not None:
        check_free(transcript, overwrite=overwrite)
    spec = chain_spec(tools)
    quiet_libraries()
    chat = chat_of(llm, endpoint, model, key_variable, device)
    helper, chain = assistant(
        way,
        spec,
        chat,
        unsafe=unsafe_code,
        steps=steps,
        repairs=repairs,
        settings={} if max_tokens is None else {"max_tokens": max_tokens},
    )
    try:
        answer = helper.answer(question, media)
    finally:
        chain.close()
    result = {"question": question, "way": way, "model": chat.model, **answer.as_json()}
    if transcript is not None:
        transcript.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(transcript, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    if json_output:
        print_json(result)
    else:
        _show_answer(answer)
    if answer.text is None:
        raise typer.Exit(1)


def chat_of(
    llm: str | None,
    endpoint: str | None,
    model: str | None,
    key_variable: str | None,
    device: str | None,
) -> Chat:
    """Open the chat model of the options: a folder's, or one at an address."""
    if (llm is None) == (endpoint is None):
        raise UsageError("give one language model: --llm FOLDER, or --endpoint URL --model NAME")
    if endpoint is None:
        from modalign.models.chat import open_chat

        assert llm is not None
        return open_chat(llm, device or "auto")
    if model is None:
        raise UsageError("--endpoint needs --model NAME")
    if key_variable is not None and not os.environ.get(key_variable):
        raise UsageError(f"--key-variable: the environment variable {key_variable} is not set")
    from modalign.endpoints import ChatEndpoint, Retries

    key = os.environ[key_variable] if key_variable else None
    return ChatEndpoint(endpoint, model, key, retries=Retries(attempts=3))  # somebody is waiting


def _show_answer(answer: AssistedAnswer) -> None:
    from modalign.cli.console import stderr, stdout

    if answer.text is not None:
        stdout.print(answer.text, markup=False, highlight=False, soft_wrap=True)
    else:
        stderr.print("no answer", style="yellow")
    cost = answer.cost
    said = (
        f"replies: {cost.replies}, tokens: {cost.prompt_tokens:,} + {cost.completion_tokens:,}, "
        f"tool calls: {cost.calls} in {cost.tool_seconds:.1f} s, {cost.seconds:.1f} s in all"
    )
    if answer.failures:
        counted = ", ".join(f"{kind} {count}" for kind, count in answer.failures.items())
        said += f"; failed: {counted}"
    stderr.print(said, markup=False, highlight=False, soft_wrap=True)
    for step in answer.steps:
        if message := step.content.get("message"):
            stderr.print(f"  {message}", markup=False, highlight=False)


def _show_chains(chains: dict[str, Any]) -> None:
    from rich.table import Table

    from modalign.cli.console import stdout

    table = Table(title="tool chains")
    for header in ("chain", "tools", "budget (tokens)"):
        table.add_column(header)
    for name, chain in chains.items():
        kinds = ", ".join(tool["kind"] for tool in chain["tools"])
        table.add_row(name, kinds, f"{chain['budget']:,}")
    stdout.print(table)


def _show_tools(tools: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from modalign.cli.console import stdout

    table = Table(title="tools")
    for header in ("tool", "takes", "arguments", "what it does"):
        table.add_column(header)
    table.add_column("parameters", justify="right")
    for tool in tools:
        counted = tool["parameters_of_its_models"]
        arguments = ", ".join(
            f"{name}: {schema.get('type', 'any')}"
            for name, schema in tool["parameters"]["properties"].items()
        )
        table.add_row(
            tool["name"],
            ", ".join(tool["modalities"]),
            escape(arguments) or "-",
            escape(tool["description"]),
            "not stated" if counted is None else f"{counted:,}",
        )
    stdout.print(table)
