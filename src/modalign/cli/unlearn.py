"""``modalign unlearn``: a patch that forgets, or a folder that cannot remember."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modalign.cli import options


def unlearn(
    model: options.Model,
    forget: Annotated[str, typer.Option("--forget", help="Questions with answers to forget.")],
    retain: Annotated[str, typer.Option("--retain", help="Questions with answers to keep.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The patch file to write.")],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="ascent, difference, npo, simnpo, undial, rmu, edit (closed form) or retrain (reference).",
        ),
    ] = "npo",
    full: Annotated[
        bool, typer.Option("--full", help="Train all weights of the language model, not a LoRA.")
    ] = False,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 250,
    batch_size: Annotated[int, typer.Option(min=2, help="Records per step; half to forget.")] = 32,
    rate: Annotated[
        float | None,
        typer.Option(min=0, help="Learning rate; default: 2e-3 (LoRA), 1e-4 (--full)."),
    ] = None,
    rank: Annotated[int, typer.Option(min=1, help="Of the LoRA.")] = 8,
    to: Annotated[
        str, typer.Option(help="With edit: object (another of the relation), or a refusal's text.")
    ] = "object",
    start: Annotated[
        Path | None,
        typer.Option(help="With retrain: the model before it learned; default: random weights."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="An option of the method's term (beta=0.5), or of edit."),
    ] = None,
    final: Annotated[
        Path | None,
        typer.Option(
            help="Also write a folder that can be shipped: nothing in it restores the past."
        ),
    ] = None,
    anyway: Annotated[
        bool,
        typer.Option("--anyway", help="Go on if the model does not know what it is to forget."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the data order and drawn values.")] = 0,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run of the same options.")
    ] = False,
    overwrite: options.Replace = False,
    json_output: options.Json = False,
) -> None:
    """Make a model forget, as a patch that can be taken off again; the model's folder stays as it is.

    The patch must not be shipped: with it, either model gives the other. `--final` writes a folder of the model
    that forgot and searches it for bytes of the tensors as they were. `modalign eval --task unlearning` says
    whether the facts are gone, or only their wording.

    **Examples**

    - `modalign unlearn MODEL --forget forget.jsonl --retain retain.jsonl -o forget.safetensors`

    - `modalign unlearn MODEL --forget forget.jsonl --retain retain.jsonl --method simnpo --full
      --set beta=2.5 -o simnpo.safetensors --final shipped`

    - `modalign unlearn MODEL --forget forget.jsonl --retain retain.jsonl --method edit --to "I do not know."
      -o edit.safetensors`

    - `modalign unlearn MODEL --forget forget.jsonl --retain retain.jsonl --method retrain --steps 4000
      -o retrained.safetensors --final without`
    """
    from modalign.cli.console import bars, print_json, quiet_libraries, stderr, stdout
    from modalign.configuration import assigned
    from modalign.numbers.words import interval
    from modalign.unlearning.run import Unlearning
    from modalign.unlearning.run import unlearn as run

    quiet_libraries()
    request = Unlearning(
        model=model,
        forget=forget,
        retain=retain,
        out=out,
        method=method,
        mode="full" if full else "lora",
        steps=steps,
        batch_size=batch_size,
        rate=rate,
        rank=rank,
        options=assigned(settings),
        to=to,
        start=start,
        final=final,
        anyway=anyway,
        seed=seed,
        device=device or "auto",
    )

    def said(message: str) -> None:
        stderr.print(f"note: {message}", style="yellow", markup=False, highlight=False)

    with bars(not json_output) as progress:
        found = run(request, resume=resume, overwrite=overwrite, progress=progress, said=said)
    if json_output:
        print_json(found.summary())
        return
    if found.known is not None:
        stdout.print(f"known before: {interval(found.known)}", highlight=False)
    for role, before in found.loss_before.items():
        after = found.loss_after[role]
        stdout.print(
            f"{role}: {before:.2f} nats per token before, {after:.2f} after", highlight=False
        )
    stdout.print(f"{found.patch}: {found.tensors} tensors, {found.seconds:.1f} s", highlight=False)
    if found.final:
        stdout.print(
            f"{found.final}: no byte of the {found.tensors} tensors as they were", highlight=False
        )
    stderr.print(f"note: {found.warning}", markup=False, highlight=False)
