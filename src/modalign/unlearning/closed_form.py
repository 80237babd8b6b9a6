"""``edit``: turn facts to forget into edits to a refusal, or to another object of their relation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modalign.data.records import Record
from modalign.data.reformatting import facts_of
from modalign.editing.methods import DEFAULT_METHOD
from modalign.editing.run import RunRequest, run_edit
from modalign.errors import DataError, UsageError, grouped
from modalign.files import write_atomically
from modalign.patches.patch import Patch
from modalign.progress import Progress

OBJECT = "object"


def edit_away(
    model: Path,
    forget: Sequence[Record],
    retain: Sequence[Record],
    work: Path,
    *,
    to: str = OBJECT,
    settings: dict[str, Any],
    seed: int = 0,
    resume: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
    said: Callable[[str], None] = lambda message: None,
) -> Patch:
    """Edit every fact to another answer, in closed form.

    Args:
        model: folder.
        forget: records, each with a field ``subject``.
        retain: records whose answers also serve as other objects.
        work: folder of the edits.
        to: ``object`` (another answer of the relation, drawn by the seed), or the text of a refusal.
        settings: of the editing method; ``method`` names it.
        seed: of the objects.
        resume: reuse values that were found.

    Raises:
        DataError: a record has no subject or no other object, or it has a picture.
    """
    method = settings.pop("method", DEFAULT_METHOD)
    if not isinstance(method, str):
        raise UsageError(f"method={method!r}: name an editing method, such as pmet")
    file, out = work / "edits.jsonl", work / "edit.safetensors"
    work.mkdir(parents=True, exist_ok=True)
    rows = as_edits(forget, retain, to, seed)
    write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    request = RunRequest(
        str(model), file, out, method, settings, resume=resume, overwrite=True, device=device
    )
    return run_edit(request, progress, said).patch


def as_edits(
    forget: Sequence[Record], retain: Sequence[Record], to: str, seed: int
) -> list[dict[str, Any]]:
    """Return rows of a file of edits.

    Raises:
        DataError: some records cannot be edits; the message gives their rows.
    """
    problems: list[tuple[str, str]] = []
    rows: list[dict[str, Any]] = []
    for fact in facts_of(forget, retain):
        where = str(fact.record.source)
        if not fact.subject:
            problems.append((where, "the method edit needs the field subject"))
        elif any(True for _ in fact.record.media()):
            problems.append((where, "the method edit takes text; give pictures to modalign edit"))
        elif to == OBJECT and not fact.others:
            problems.append((where, "its relation has no other answer; give --to TEXT"))
        else:
            rng = np.random.default_rng([seed, len(rows)])
            target = fact.others[int(rng.integers(len(fact.others)))] if to == OBJECT else to
            rows.append(
                {
                    "id": fact.record.id,
                    "subject": fact.subject,
                    "prompt": fact.question,
                    "target": target,
                    "truth": fact.answer,
                }
            )
    if problems:
        raise DataError(
            "\n  ".join([f"{len(problems)} records cannot be edited:", *grouped(problems)])
        )
    return rows
