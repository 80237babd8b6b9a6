"""``modalign edit compare``: the editing methods side by side on the same edits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from modalign.cli import options

if TYPE_CHECKING:
    from modalign.editing.benchmarks.scores import Task
    from modalign.editing.compare.results import EditComparison, Mode


def compare(
    model: Annotated[str, typer.Argument(help="Model folder or hub name.")],
    edits: Annotated[Path, typer.Argument(help="Edits: JSON, JSON Lines or CSV.")],
    methods: Annotated[
        str, typer.Option("--methods", help="pmet, memit, rome, ft, ft-l, alphaedit, or all.")
    ] = "all",
    sizes: Annotated[
        str,
        typer.Option("--sizes", help="Numbers of edits; larger ones than the file are dropped."),
    ] = "1,10,100,1000",
    modes: Annotated[
        str, typer.Option("--modes", help="batch (one patch for all), sequential (in steps).")
    ] = "batch,sequential",
    text: Annotated[
        Path | None,
        typer.Option("--text", help="For the key statistics; else what the model itself writes."),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option("--held-out", help="Other text, on which the drift is measured."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="counterfact or zsre; else what the file's records are."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="pmet.clamp=4; without a method, for all that have the field."),
    ] = None,
    block: Annotated[
        int | None, typer.Option(min=1, help="Edits per sequential step; else a tenth.")
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(min=1, help="Draws per size at most; else 20 of 1 edit, 5 of 10, 1 of 100."),
    ] = None,
    table: Annotated[
        int | None, typer.Option(min=1, help="The size whose edits the report lists one by one.")
    ] = None,
    generate: Annotated[
        bool, typer.Option("--generate/--no-generate", help="Also let the models write freely.")
    ] = True,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first edits.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws and the bootstrap.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Folder of cells, values and report.")] = Path(
        "runs/edit-compare"
    ),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in --out; finished cells are kept.")
    ] = False,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    dtype: options.WeightsDtype = None,
    json_output: options.Json = False,
) -> None:
    """Compare editing methods at 1, 10, 100 and 1000 edits, in one batch and in steps.

    Every method gets the same draws of edits. Writes `report.html`, `report.md` and `report.json`:
    scores with intervals, paired differences, every edit before and after, failures with their
    reason, drift, time and memory. The model stays bit for bit as it was.

    **Examples**

    - `modalign edit compare MODEL edits.json --text wiki.txt --held-out other.txt`

    - `modalign edit compare MODEL edits.json --methods pmet,memit --sizes 1,10,100 --modes batch`

    - `modalign edit compare MODEL edits.json --set layers=[0,1,2] --set pmet.clamp=4 --out runs/mine`

    - `modalign edit compare MODEL edits.json --out runs/mine --resume`
    """
    from modalign.cli.console import bars, print_json, quiet_libraries, stderr, stdout
    from modalign.editing.compare.report.scores import score_table
    from modalign.editing.compare.request import CompareRequest
    from modalign.editing.compare.run import compare_edits
    from modalign.editing.methods import METHODS
    from modalign.pages.terminal import terminal

    quiet_libraries()
    request = CompareRequest(
        model=model,
        edits=edits,
        out=out,
        methods=tuple(METHODS) if methods == "all" else _names(methods),
        sizes=_numbers(sizes),
        modes=cast("tuple[Mode, ...]", _names(modes)),
        task=cast("Task | None", task),
        text=text,
        held_out=held_out,
        settings=_by_method(settings),
        block=block,
        draws=draws,
        table=table,
        generate=generate,
        limit=limit,
        seed=seed,
        resume=resume,
        overwrite=overwrite,
        device=device,
        dtype=dtype,
    )

    def said(message: str) -> None:
        stderr.print(message, style="yellow", markup=False, highlight=False)

    with bars(not json_output) as progress:
        result = compare_edits(request, progress, said)
    if json_output:
        print_json(result.model_dump_json(indent=2))
        return
    for mode in result.modes:
        stdout.print(terminal(score_table(result, mode)))
    for words in _differences(result):
        stdout.print(words, markup=False, highlight=False)
    stderr.print(f"\nReport: {out / 'report.html'}", highlight=False, soft_wrap=True)


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _numbers(text: str) -> tuple[int, ...]:
    from modalign.errors import UsageError

    try:
        return tuple(int(part) for part in _names(text))
    except ValueError as error:
        raise UsageError(f"--sizes {text}: expected numbers, as in 1,10,100") from error


def _by_method(settings: list[str] | None) -> dict[str, dict[str, Any]]:
    """``method.field=value``; under ``""`` what names no method."""
    from modalign.configuration import assigned

    given = assigned(settings)
    of_methods = {name: fields for name, fields in given.items() if isinstance(fields, dict)}
    for_all = {name: value for name, value in given.items() if name not in of_methods}
    return of_methods | ({"": for_all} if for_all else {})


def _differences(result: EditComparison) -> list[str]:
    """The first method against each other at the largest size; the report has every pair."""
    found = []
    for one in result.differences:
        if one.size != result.sizes[-1] or one.metric != result.headline:
            continue
        if one.first != result.methods[0].name:
            continue
        gap = f"{one.value:+.1f} ({one.low:+.1f} to {one.high:+.1f})"
        better = {"first": one.first, "second": one.second}.get(one.verdict)
        verdict = f"{better} is better" if better else one.verdict
        found.append(
            f"{one.metric} at {one.size}, {one.mode}: {one.first} minus {one.second} {gap}: {verdict}"
        )
    return found
