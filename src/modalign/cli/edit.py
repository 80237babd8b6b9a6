"""``modalign edit``: compute patches that correct facts, and look where a model can be edited."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modalign.cli import edit_analyze, edit_compare, edit_suggest, options

app = typer.Typer(
    help="Correct a model's facts: compute patches, take key statistics, find the layers.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Model = Annotated[str, typer.Argument(help="Model folder or hub name.")]
Text = Annotated[
    Path | None,
    typer.Option(
        "--text", help="Text for the key statistics; without it, what the model itself writes."
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option("--cache", help="Folder of statistics and values (or MODALIGN_CACHE)."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="A field of the method's settings: layers=[3,4,5], lr=0.2."),
]


@app.command(epilog=options.EXIT_CODES)
def run(
    model: Model,
    edits: Annotated[Path, typer.Argument(help="Edits: JSON, JSON Lines or CSV.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The patch file to write.")],
    method: Annotated[
        str, typer.Option("--method", help="pmet, memit, rome, alphaedit, ft or ft-l.")
    ] = "pmet",
    text: Text = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            "--pictures", help="Data file with images, for the key statistics of pictures."
        ),
    ] = None,
    lookup: Annotated[
        str | None,
        typer.Option(
            "--lookup", help="Token an edit is written at: auto, subject, last or visual."
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option("--template", help="How the model is asked: auto, chat or plain."),
    ] = None,
    settings: Settings = None,
    on: Annotated[
        list[Path] | None,
        typer.Option("--on", help="A patch below the new one; repeat it, lowest first."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Take up the values of an interrupted run.")
    ] = False,
    overwrite: options.Replace = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Write nothing if any edit carries a warning.")
    ] = False,
    skip_known: Annotated[
        bool, typer.Option("--skip-known", help="Leave out edits the model says already.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first edits.")] = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    dtype: options.WeightsDtype = None,
    cache: Cache = None,
    json_output: options.Json = False,
) -> None:
    """Compute a patch that makes a model say new targets; the model stays bit for bit as it was.

    EDITS holds CounterFact, MEND-style CounterFact or zsRE records, or plain ones: `subject`,
    `prompt` (with the subject, or `{}` in its place), `target`, and where known `truth`,
    `paraphrases`, `neighbours`, `image`. An edit with an `image` is written for its text and for its
    picture; `--lookup last` writes at the prompt's last token instead of the subject's.

    **Examples**

    - `modalign edit run MODEL edits.json -o fix.safetensors`

    - `modalign edit run MODEL edits.csv -o fix.safetensors --method memit --text wiki.txt --resume`

    - `modalign edit run MODEL more.json -o second.safetensors --on fix.safetensors --method alphaedit`

    - `modalign edit run MODEL edits.json -o fix.safetensors --set layers=[0,1,2] --set clamp=4`
    """
    from modalign.cli.console import bars, print_json, quiet_libraries, stderr, stdout
    from modalign.configuration import assigned
    from modalign.editing.run import RunRequest, run_edit

    quiet_libraries()
    request = RunRequest(
        model=model,
        edits=edits,
        out=out,
        method=method,
        settings=assigned(settings) | given(lookup=lookup, template=template),
        text=text,
        pictures=pictures,
        on=tuple(on or ()),
        resume=resume,
        overwrite=overwrite,
        strict=strict,
        skip_known=skip_known,
        limit=limit,
        device=device,
        dtype=dtype,
        cache=cache,
    )

    def said(message: str) -> None:
        stderr.print(message, style="yellow", markup=False, highlight=False)

    with bars(not json_output) as progress:
        result = run_edit(request, progress, said)
    if json_output:
        header = result.patch.header.model_dump(mode="json")
        print_json(
            {"out": str(result.out), "sha256": result.sha256, "seconds": result.seconds} | header
        )
        return
    _show(result, stdout)


def given(**options: str | None) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _show(result: Any, stdout: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    header = result.patch.header
    warned = [edit for edit in header.editing.edits if edit.warnings]
    table = Table(
        title=f"{header.method}: {len(header.editing.edits)} edits, {result.seconds:.1f} s"
    )
    forms = {"p(chat)": "written", "p(plain)": "plain"}
    if header.settings.get("template") != "chat":
        forms = {"p(patched)": "written"}
    for name in ("id", "subject", "target", "p(value)", *forms, "steps"):
        table.add_column(name, justify="right" if name.startswith(("p(", "steps")) else "left")
    shown = header.editing.edits[:20]
    for edit in shown:
        table.add_row(
            escape(edit.id),
            escape(edit.subject) or "-",
            escape(edit.target),
            *(
                "-" if value is None else f"{value:.2f}"
                for value in (edit.probability, *(getattr(edit, each) for each in forms.values()))
            ),
            "-" if edit.steps is None else str(edit.steps),
        )
    stdout.print(table)
    if len(header.editing.edits) > len(shown):
        stdout.print(f"... and {len(header.editing.edits) - len(shown)} more")
    for edit in warned[:20]:
        for warning in edit.warnings:
            stdout.print(f"edit {edit.id}: {warning}", markup=False, highlight=False)
    if len(warned) > 20:
        stdout.print(f"... and {len(warned) - 20} more edits with warnings")
    stdout.print(f"\nPatch: {result.out}", markup=False, highlight=False)


@app.command(epilog=options.EXIT_CODES)
def stats(
    model: Model,
    text: Text = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="E.g. 3,4,5; else those PMET would write.")
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", min=16, help="How many tokens at most.")
    ] = 131_072,
    seed: Annotated[int, typer.Option(help="Of the order of the text.")] = 0,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    dtype: options.WeightsDtype = None,
    cache: Cache = None,
    json_output: options.Json = False,
) -> None:
    """Take the key statistics C0 of all layers in one pass, and keep them.

    They are kept under a hash of the weights they depend on, the text and the number of tokens;
    `edit run` with the same model, text, layers, tokens and seed finds them. An interrupted run goes
    on where it was.

    **Examples**

    - `modalign edit stats MODEL --text wiki.txt`

    - `modalign edit stats MODEL --text corpus.jsonl --layers 3,4,5,6,7,8 --tokens 500000`
    """
    from dataclasses import asdict

    from modalign.cli.console import bars, print_json, quiet_libraries, stdout
    from modalign.editing.covariance_report import take_statistics

    quiet_libraries()
    with bars(not json_output) as progress:
        result = take_statistics(
            model,
            text=text,
            layers=layers,
            tokens=tokens,
            seed=seed,
            device=device,
            dtype=dtype,
            cache=cache,
            progress=progress,
        )
    if json_output:
        print_json(asdict(result))
        return
    stdout.print(result.table())


app.command(epilog=options.EXIT_CODES)(edit_compare.compare)
app.command(epilog=options.EXIT_CODES)(edit_suggest.suggest)
app.command(epilog=options.EXIT_CODES)(edit_analyze.analyze)
