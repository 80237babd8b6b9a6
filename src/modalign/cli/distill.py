"""``modalign distill``: a student learns from a teacher, by schedules that are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modalign.cli import options

app = typer.Typer(
    help="Distil a teacher into a smaller model, and judge the way it was done.",
    invoke_without_command=True,
    rich_markup_mode="markdown",
)


@app.callback(epilog=options.EXIT_CODES)
def distill(
    context: typer.Context,
    teacher: Annotated[str | None, typer.Option("--teacher", help="Model folder.")] = None,
    student: Annotated[
        str | None,
        typer.Option("--student", help="Model folder; default: made from the teacher."),
    ] = None,
    student_layers: Annotated[
        int | None, typer.Option(min=1, help="Decoder layers that the student keeps.")
    ] = None,
    layers_by: Annotated[
        str, typer.Option(help="Which: influence, first or every_other.")
    ] = "influence",
    student_connector: Annotated[
        str | None,
        typer.Option(help="A new connector from the encoder, such as mlp ('modalign methods')."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Records, or plain text, to train on.")
    ] = None,
    evaluation: Annotated[
        str | None,
        typer.Option("--eval", help="Evaluation data; default: a tenth of the training data."),
    ] = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder of trainings, model and report.")
    ] = Path("runs/distill"),
    schedule: Annotated[
        str | None,
        typer.Option(
            help="llava_kd, throughout, dpt_sft, after_pruning, cross_entropy, or a YAML file with stages."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Others to compare: llava_kd, throughout-relation (without a term), ce (cross-entropy with the "
            "same wall time)."
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Per training: 20000samples, 90s, 10m or 3e14flops.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of every schedule.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the first training.")] = 0,
    llm_mode: options.LlmMode = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="training.batch_size=8, terms.kl_answer.temperature=2, length=128."
        ),
    ] = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue in --out; finished trainings are kept.")
    ] = False,
    overwrite: options.Overwrite = False,
    json_output: options.Json = False,
) -> None:
    """Distil a teacher into a student, and compare schedules and terms under one budget.

    The student is a folder, or is made from the teacher with fewer layers or another connector. Writes
    `report.html`, `report.md`, `report.json`, and the first schedule's model in `OUT/model`.

    **Examples**

    - `modalign distill --teacher BIG --student SMALL --data train.jsonl -o runs/kd`

    - `modalign distill --teacher BIG --student-layers 12 --data train.jsonl --schedule llava_kd
      --against throughout,ce --seeds 3 -o runs/kd`

    - `modalign distill --teacher PARENT --student PRUNED --schedule after_pruning --data texts.txt -o runs/kd`

    - `modalign distill --teacher BIG --student LLM --student-connector mlp --data train.jsonl
      --set terms.kl_answer.temperature=2 -o runs/kd --resume`
    """
    if context.invoked_subcommand is not None:
        return
    from modalign.cli.console import bars, print_json, quiet_libraries, stderr, stdout
    from modalign.compression.distillation.config import DistillConfig
    from modalign.compression.distillation.distill import distill as run
    from modalign.compression.distillation.report import differences_table, rows_table
    from modalign.configuration import assign, assigned, merged, validated
    from modalign.errors import UsageError
    from modalign.pages.terminal import terminal

    quiet_libraries()
    for name, value in (("--teacher", teacher), ("--data", data)):
        if value is None:
            raise UsageError(f"{name} is missing; modalign distill --help has examples")
    given = {
        "teacher": teacher,
        "student": student,
        "student_layers": student_layers,
        "layers_by": layers_by,
        "student_connector": student_connector,
        "data": data,
        "evaluation": evaluation,
        "schedule": schedule,
        "against": against and [name.strip() for name in against.split(",") if name.strip()],
        "budget": budget,
        "seeds": seeds,
        "seed": seed,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    assign(fields, "training.llm", llm_mode or "full")
    if device is not None:
        assign(fields, "training.device", device)
    config = validated(DistillConfig, merged(fields, assigned(assignments)), "the options")

    def said(message: str) -> None:
        stderr.print(f"note: {message}", style="yellow", markup=False, highlight=False)

    with bars(not json_output) as progress:
        found = run(config, out, resume=resume, overwrite=overwrite, progress=progress, said=said)
    if json_output:
        print_json(found.model_dump_json(indent=2))
        return
    stdout.print(terminal(rows_table(found)))
    stdout.print(terminal(differences_table(found)))
    stderr.print(
        f"\nModel: {found.model}\nReport: {out / 'report.html'}", highlight=False, soft_wrap=True
    )


@app.command(epilog=options.EXIT_CODES)
def store(
    teacher: options.ModelName,
    data: Annotated[str, typer.Argument(help="Records, or plain text, that students train on.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the store.")],
    top: Annotated[int, typer.Option(min=1, help="Words kept of every position.")] = 64,
    at: Annotated[
        str, typer.Option(help="Positions: answers, media or answers,media.")
    ] = "answers",
    temperature: Annotated[float, typer.Option(help="Of the log-probabilities.")] = 1.0,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a window of plain text.")] = 256,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted store.")
    ] = False,
    overwrite: options.Overwrite = False,
    json_output: options.Json = False,
) -> None:
    """Store a teacher: run it over the data once, and keep its most likely words on disk.

    The store is bound to the teacher's weights, the data and the tokenizer. `--teacher STORE` reads it in place
    of the teacher, which then never enters memory.

    **Examples**

    - `modalign distill store BIG train.jsonl -o runs/big-64`

    - `modalign distill store BIG train.jsonl -o runs/big-64 --at answers,media --resume`

    - `modalign distill --teacher runs/big-64 --student SMALL --data train.jsonl
      --schedule throughout-relation-kl_visual -o runs/kd`
    """
    from modalign.cli.console import bars, print_json, quiet_libraries, stdout
    from modalign.compression.distillation.store import StoreRequest
    from modalign.compression.distillation.store import store as run
    from modalign.numbers.words import size

    quiet_libraries()
    places: Any = tuple(name.strip() for name in at.split(",") if name.strip())
    request = StoreRequest(teacher, data, out, top, places, temperature, length, device or "auto")
    with bars(not json_output) as progress:
        found = run(request, resume=resume, overwrite=overwrite, progress=progress)
    if json_output:
        print_json(found.summary())
        return
    each = found.summary()["bytes_per_1000_records"]
    stdout.print(
        f"{found.header.records:,} records, {found.positions:,} positions, {found.header.top} words each: "
        f"{size(found.bytes)} ({size(each)} per 1,000 records) in {out}",
        highlight=False,
        soft_wrap=True,
    )
