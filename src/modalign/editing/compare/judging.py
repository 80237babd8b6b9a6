"""Judge whether an edit held and, if not, where it was lost."""

from __future__ import annotations

from modalign.editing.benchmarks.rows import EditRow, Kind
from modalign.editing.benchmarks.scores import Task, succeeded
from modalign.editing.compare.results import Status
from modalign.editing.engine.values import REACHED
from modalign.patches.header import EditRecord


def judge_edit(
    row: EditRow,
    record: EditRecord,
    task: Task,
    *,
    at_step: bool | None,
    one_after_another: bool,
) -> tuple[Status, str]:
    """Return an edit's status and the reason for it.

    Args:
        row: what the edited model answered to its prompts.
        record: the edit's record in its patch.
        task: the benchmark that defines success.
        at_step: in sequential mode, whether the rewrite succeeded right after its own step.
        one_after_another: whether the method writes a patch's edits one after another.
    """
    rewrites = _successes(row, task, "rewrite")
    paraphrases = _successes(row, task, "paraphrase")
    if all(rewrites) and all(paraphrases):
        return "done", ""
    if all(rewrites):
        right = sum(paraphrases)
        return "not generalised", f"{right} of {len(paraphrases)} paraphrases follow"
    if at_step:
        return "overwritten", "held right after its own step, lost to later edits"
    return _unwritten(record, one_after_another)


def _unwritten(record: EditRecord, one_after_another: bool) -> tuple[Status, str]:
    """Say why an edit that never held does not hold."""
    written = "" if record.written is None else f"; probability {record.written:.2f} when written"
    if record.probability is not None and record.probability < REACHED:
        return (
            "not reached",
            f"the value gave the target a probability of {record.probability:.2f} "
            f"after {record.steps} evaluations",
        )
    if one_after_another:
        return "not written", f"not written, or lost to a later edit of the patch{written}"
    if record.probability is None:
        return "not written", f"training did not make the target the first choice{written}"
    return (
        "not written",
        f"the value reached {record.probability:.2f}, the weights did not{written}",
    )


def _successes(row: EditRow, task: Task, kind: Kind) -> list[bool]:
    return [succeeded(task, p.after) for p in row.prompts if p.kind == kind]
