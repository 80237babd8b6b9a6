"""``modalign eval --task``: the scores of edits, on a model or on one with patches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from modalign.errors import UsageError, choose
from modalign.numbers import words

if TYPE_CHECKING:
    from modalign.editing.benchmarks.evaluate import EditEvaluation
    from modalign.editing.benchmarks.scores import Task

TASKS = ("counterfact", "zsre", "mmedit")
Form = Literal["auto", "plain", "chat", "both"]
HEADLINES = {"S", "score", "reliability", "text_locality", "image_locality"}


def check_options(
    task: str, data: str | None, of_data: dict[str, Any], of_edits: dict[str, Any]
) -> None:
    """Refuse options that belong to the other kind of evaluation.

    Args:
        task: ``--task``.
        data: the positional data file.
        of_data: given options that only apply to data files.
        of_edits: given options that only apply to edits.

    Raises:
        UsageError: options that do not go together; the message says what to do.
    """
    from modalign.evaluation.tasks import TASKS as OF_DATA

    if task not in (*OF_DATA, *TASKS):
        hint = choose(task, [*OF_DATA, *TASKS])
        raise UsageError(f"no task {task!r}: {hint} (for edits: {', '.join(TASKS)})")
    if task not in TASKS:
        alone = sorted(name for name, value in of_edits.items() if value)
        if alone:
            tasks = ", ".join(TASKS)
            raise UsageError(f"{', '.join(alone)} needs a --task for edits: choose from {tasks}")
        if data is None:
            raise UsageError(
                f"give a data file with expected answers, or --edits with --task {', '.join(TASKS)}"
            )
        return
    if data is not None:
        raise UsageError(f"--task {task} scores edits: give them with --edits, not as {data}")
    if not of_edits["--edits"]:
        raise UsageError(f"--task {task} needs --edits, a file of edits")
    if task == "mmedit" and of_edits["--text"]:
        raise UsageError("--text is for counterfact and zsre: mmedit measures no drift on text")
    wrong = sorted(name for name, value in of_data.items() if value)
    if wrong:
        raise UsageError(f"{', '.join(wrong)} is for data files, not for edits")


def evaluate_edits(
    model: Path,
    task: str,
    edits: Path,
    *,
    patches: list[Path],
    text: Path | None,
    out: Path | None,
    limit: int | None,
    form: Form,
    generate: bool,
    seed: int,
    control_tokens: list[str],
    device: str | None,
    json_output: bool,
) -> None:
    """Score edits and print the result; with patches, the model without them is the reference row."""
    from modalign.chat_templates import let_through
    from modalign.cli.console import bars, print_json, quiet_libraries, stdout
    from modalign.data.corpus import read_corpus
    from modalign.editing.benchmarks.evaluate import evaluate_edits as evaluate
    from modalign.editing.benchmarks.multimodal import evaluate_multimodal
    from modalign.editing.engine.asking import Asking, has_template
    from modalign.editing.readers import read_edits, validate_against_tokenizer
    from modalign.lengths import declared_length
    from modalign.models.asking import tokenizer_of
    from modalign.models.open import open_model
    from modalign.patches import check_tokenizer, load_patch, view

    quiet_libraries()
    if task == "mmedit" and form == "both":
        raise UsageError("--task mmedit asks in one form: --form chat or --form plain")
    said: list[str] = []
    read = read_edits(edits, conflicting="first", limit=limit, warn=said.append)
    documents = read_corpus(text).documents if text is not None else None
    loaded = [load_patch(path) for path in patches]
    base, reader = open_model(model, device=device or "auto")
    tokenizer = tokenizer_of(reader)
    let_through(tokenizer, control_tokens)
    validate_against_tokenizer(read, tokenizer, declared_length(base.config))
    edited: Any = base
    for patch in loaded:
        check_tokenizer(patch, tokenizer)
        edited = view(edited, patch)
    before = base if loaded else None
    with bars(not json_output) as progress:
        asked: dict[str, Any] = {"generate": generate, "seed": seed, "progress": progress}
        if task == "mmedit":
            one = cast("Any", form)
            results = [
                evaluate_multimodal(edited, reader, read, base=before, template=one, **asked)
            ]
        else:
            results = []
            for each in _forms(form, has_template(reader)):
                asking = Asking(reader, each)
                more = asked | {"base": before, "text": None if results else documents}
                results.append(evaluate(edited, asking, read, cast("Task", task), **more))
    for found in results:
        found.model, found.edits = str(model), str(edits)
        found.patches = [patch.header.name for patch in loaded]
    result = results[0]
    result.notes = said + result.notes
    if out is not None:
        _write_rows(out, results)
    if json_output:
        result.in_chat = results[1] if len(results) > 1 else None
        print_json(result.model_dump_json(indent=2))
        return
    for found in results:
        stdout.print(_table(found))
        for note in found.notes:
            stdout.print(f"note: {note}", markup=False, highlight=False)


def _write_rows(out: Path, results: list[EditEvaluation]) -> None:
    """A line per edit; the chat form's prompts beside the plain ones where both were asked."""
    from modalign.files import write_atomically

    rows = [
        json.loads(row.model_dump_json()) | {"form": results[0].form} for row in results[0].rows
    ]
    for other in results[1:]:
        for line, row in zip(rows, other.rows, strict=True):
            line["in_chat"] = json.loads(row.model_dump_json())["prompts"]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, "".join(json.dumps(row) + "\n" for row in rows))


def _forms(form: Form, template: bool) -> list[Literal["plain", "chat"]]:
    """What is asked: of a model with a chat template both, unless one is wanted."""
    if form == "both" or (form == "auto" and template):
        return ["plain", "chat"]
    return ["chat"] if form == "chat" else ["plain"]


def _table(result: EditEvaluation) -> object:
    from rich.table import Table

    what = f"{result.model} + {' + '.join(result.patches)}" if result.patches else result.model
    table = Table(
        title=f"{what}: {result.task}, {result.form} form, {result.n} edits, 95 % intervals"
    )
    table.add_column("metric")
    if result.before is not None:
        table.add_column("before", justify="right")
    if result.chance:
        table.add_column("chance", justify="right")
    for header in ("value", "interval", "n"):
        table.add_column(header, justify="right")
    table.add_column("unit")
    table.add_column("protocol")
    for name, metric in result.metrics.items():
        cells = [name]
        if result.before is not None:
            cells.append(words.value(result.before.get(name)))
        if result.chance:
            cells.append(f"{result.chance[name]:.1f}" if name in result.chance else "")
        cells += [words.value(metric), words.ends(metric), str(metric.n), metric.unit]
        style = "bold" if name in HEADLINES else None
        table.add_row(*cells, metric.protocol, style=style)
    return table
