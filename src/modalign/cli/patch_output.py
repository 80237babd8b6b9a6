"""Output of the verbs of ``modalign patch``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from modalign.errors import DataError, UsageError

if TYPE_CHECKING:
    from modalign.patches import Patch
    from modalign.patches.inspection import Inspection
    from modalign.patches.model_folders import FolderStatus

SHOWN = 12  # digits of a hash


def say(what: Any) -> None:
    """Print text, or anything that rich can show."""
    from modalign.cli.console import stdout

    if isinstance(what, str):
        stdout.print(what, markup=False, highlight=False, soft_wrap=True)
    else:
        stdout.print(what)


def plain_table(*headers: str, title: str | None = None) -> Any:
    """Build a table without lines, with numbers right-aligned."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), header_style="bold", title=title, title_justify="left")
    numbers = (
        "rank",
        "columns",
        "|Delta|",
        "|Delta|/|W|",
        "relative error",
        "probability",
        "value",
    )
    for header in headers:
        right = header in numbers
        table.add_column(header, justify="right" if right else "left", overflow="fold")
    return table


def show(status: FolderStatus, json_output: bool, **more: Any) -> None:
    """Print a folder's patches."""
    from rich.markup import escape

    from modalign.cli.console import print_json

    if json_output and (status.problems or status.interrupted):
        return  # in this case the error is the JSON
    if json_output:
        applied = [entry.model_dump() for entry in status.stack]
        print_json({"folder": str(status.folder), "applied": applied, **more})
        return
    if not status.stack:
        say(f"{status.folder} has no patches.")
        return
    table = plain_table(
        "patch", "hash", "applied", "tensors", title=f"{status.folder}, lowest first"
    )
    for entry in status.stack:
        tensors = escape(", ".join(entry.tensors.values()))
        table.add_row(escape(entry.name), entry.sha256[:SHOWN], entry.time, tensors)
    say(table)


def show_inspection(found: Inspection, shown: int) -> None:
    """Print a patch's header, its tensors and some of its edits."""
    from rich.markup import escape

    header = found.header
    facts = {
        "patch": f"{header.name} ({found.sha256})",
        "method": f"{header.method}, {header.created}".rstrip(", "),
        "model": header.model,
        "parents": ", ".join(
            f"{each.weight:g} x {each.name} ({each.sha256[:SHOWN]})" for each in header.parents
        ),
        "on top of": ", ".join(each[:SHOWN] for each in header.after),
        "statistics": (header.editing.covariance or "")[:SHOWN],
        "tokenizer": (header.tokenizer or "")[:SHOWN],
        "settings": ", ".join(f"{key} {value}" for key, value in header.settings.items()),
        "versions": ", ".join(f"{key} {value}" for key, value in header.versions.items()),
        "history": "\n".join(header.history),
    }
    summary = plain_table("", "")
    summary.show_header = False
    for key, value in facts.items():
        if value:
            summary.add_row(f"[bold]{key}", escape(value))
    say(summary)
    table = plain_table("tensor", "form", "columns", "rank", "|Delta|", "|Delta|/|W|")
    for tensor in found.tensors:
        columns = "-" if tensor.columns is None else str(tensor.columns)
        rank = "-" if tensor.rank is None else str(tensor.rank)
        norm = "-" if tensor.norm is None else f"{tensor.norm:.4g}"
        if tensor.kept is not None:
            rank = " x ".join(map(str, tensor.kept)) + " kept" if tensor.kept else "removed"
        relative = "-" if tensor.relative is None else f"{tensor.relative:.3g}"
        table.add_row(escape(tensor.name), tensor.form, columns, rank,
                      norm, relative)  # fmt: skip
    say(table)
    edits = plain_table("id", "subject", "prompt", "target", "probability", "value", "warnings")
    for edit in header.editing.edits[:shown]:
        probability = "-" if edit.probability is None else f"{edit.probability:.3f}"
        value = "-" if edit.value_norm is None else f"{edit.value_norm:.3g}"
        words = (edit.id, edit.subject, edit.prompt, edit.target)
        edits.add_row(*map(escape, words), probability, value, escape("; ".join(edit.warnings)))
    say(edits)
    if len(header.editing.edits) > shown:
        say(f"and {len(header.editing.edits) - shown} more edits (--edits 0 shows all)")


def write(patch: Patch, out: Path, json_output: bool, more: dict[str, Any] | None = None) -> None:
    """Save a patch made from others, read it back, and describe it."""
    from modalign.cli.console import print_json
    from modalign.patches import load_patch, save_patch
    from modalign.patches.header import patch_hash

    if out.exists():
        raise UsageError(f"{out} exists already; name a new file with -o")
    sha256 = save_patch(patch, out)
    if patch_hash(load_patch(out)) != sha256:
        raise DataError(f"{out} reads back differently; the disk may be failing")
    ids = [edit.id for edit in patch.header.editing.edits]
    history = patch.header.history[-1]
    if json_output:
        row = {"patch": str(out), "sha256": sha256, "edits": ids, "history": history}
        print_json(row | (more or {}))
        return
    say(f"{out}: {len(ids)} edits, {history}")
