"""The report of a pruning: tables of models, candidates, times and differences."""

from __future__ import annotations

from typing import Any

from modalign.compression.pruning.results import TITLES, Pruning, Row, Tried
from modalign.numbers import words
from modalign.numbers.pairs import NO_DIFFERENCE, Difference
from modalign.pages.parts import Part, Quantity, Section, Table, Words, tabulate
from modalign.pages.report import Report
from modalign.training.budget import Budget


def _verdict(found: Difference) -> str:
    better = {"first": found.first, "second": found.second}.get(found.verdict)
    return NO_DIFFERENCE if better is None else f"better: {TITLES[better]}"


ROWS = (
    Quantity("model", "title"),
    Quantity("parameters", "parameters", "count", "that are there and not set to zero"),
    Quantity("bytes", "bytes", "bytes", "of the weights' files"),
    Quantity("nats per token", "loss", meaning="on what was held out; lower is better", drawn=True),
    Quantity("right answers", "accuracy", meaning="the greedy answer equals the reference", drawn=True),
    Quantity("task: nats per token", "task_loss", meaning="on the evaluation records", drawn=True),
    Quantity("task: right answers", "task_accuracy", meaning="on the evaluation records", drawn=True),
    Quantity("records seen", "samples", "whole"),
    Quantity("seconds", "seconds", "seconds", "of one recovery, the parent's passes included"),
    Quantity("FLOPs", "flops", "flops", "of one recovery, the parent's passes included"),
)  # fmt: skip
CANDIDATES = (
    Quantity("form", "name"),
    Quantity("score", "score"),
    Quantity("what stays", lambda row: row.removed or f"refused: {row.refused}"),
    Quantity("class", "saved_as"),
    Quantity("parameters", "parameters", "count"),
    Quantity("nats per token, pruned", "before", meaning="on validation data"),
    Quantity("nats per token, after a short recovery", "after", meaning="on validation data", drawn=True),
    Quantity("next token, of the parent's time", "next_ratio", meaning="batch 1"),
)  # fmt: skip
TIMES = (
    Quantity("model", lambda pair: pair[0].title),
    Quantity("batch", lambda pair: pair[1].batch, "whole"),
    Quantity("first token", lambda pair: pair[1].first, drawn=True),
    Quantity("of the parent's", lambda pair: pair[1].first_ratio),
    Quantity("next token", lambda pair: pair[1].next, drawn=True),
    Quantity("of the parent's time", lambda pair: pair[1].next_ratio),
)
DIFFERENCES = (
    Quantity("against", lambda found: TITLES[found.second]),
    Quantity(
        "better by, in nats per token",
        "difference",
        meaning="loss of the other minus that of the result, paired by sample",
    ),
    Quantity("p", lambda found: words.p_value(found.p_holm), meaning="corrected for the number of rows"),
    Quantity("verdict", _verdict),
)  # fmt: skip


def report_of(found: Pruning) -> Report:
    """Return the report of a pruning."""
    parts: list[Part] = [rows_table(found)]
    if found.warnings:
        parts.insert(0, Words("warnings", "warnings", "/warnings", found.warnings, "list"))
    sections = [Section("models", "The pruned model beside its parent", _lead(found), parts)]
    if found.differences:
        text = "A difference is found if its corrected p-value is below 5 % and its interval excludes zero."
        sections.append(Section("differences", "Is it better?", text, [differences_table(found)]))
    if any(row.timings for row in found.rows):
        sections.append(_times(found))
    if found.cutting.candidates:
        text = (
            "Chosen by the loss after a short recovery, on validation data that judge nothing else."
        )
        table = candidates_table(found.cutting.candidates)
        sections.append(Section("candidates", "What was tried", text, [table]))
    notes = [*found.cutting.notes, *found.notes]
    if notes:
        part = Words("notes", "notes", "/notes", notes, "list")
        sections.append(Section("notes", "Notes", "", [part]))
    foot = (
        f"modalign {found.version}; {found.command}; {found.device}; {words.seconds(found.seconds)}. Intervals "
        "are 95 %, over samples and, with two seeds or more, over trainings and draws."
    )
    lead = f"{found.model}, {found.cutting.removed}"
    return Report("Pruning", lead, sections, foot, found)


def rows_table(found: Pruning) -> Table:
    """Return the table of all models."""
    on = f"on {found.held_out:,} held-out samples"
    on += f" and {found.evaluated:,} evaluation records" if found.evaluated else ""
    chosen = [row for row in found.rows if row.kind == "result"][-1].name
    return tabulate(
        ("rows", on, "/rows"),
        ROWS,
        found.rows,
        tone=lambda row: "chosen" if row.name == chosen else "reference" if row.kind == "reference" else "",
    )  # fmt: skip


def candidates_table(tried: list[Tried]) -> Table:
    """Return the table of what was tried."""
    part = ("candidates", "candidates of the same target", "/cutting/candidates")
    return tabulate(part, CANDIDATES, tried, tone=lambda row: "chosen" if row.chosen else "")


def differences_table(found: Pruning) -> Table:
    """Return the table of paired differences."""
    caption = f"{TITLES[found.differences[0].first]}: compared"
    return tabulate(("differences", caption, "/differences"), DIFFERENCES, found.differences)


def times_table(found: Pruning) -> Table:
    """Return the table of times."""
    pairs: list[tuple[Row, Any]] = [(row, each) for row in found.rows for each in row.timings]
    return tabulate(("times", "medians over interleaved rounds", "/rows"), TIMES, pairs)


def _times(found: Pruning) -> Section:
    first = next(row.timings[0] for row in found.rows if row.timings)
    lead = (
        f"The language model alone, in the precision in which it is stored: a prompt of {first.prompt} tokens "
        f"until the first token of the answer, and each token after it. {first.first.n} interleaved rounds."
    )
    return Section("times", "How fast it is", lead, [times_table(found)])


def _lead(found: Pruning) -> str:
    cutting = found.cutting
    again = f"{found.seeds} trainings each" if found.seeds > 1 else "one training each"
    budget = Budget.parse(found.budget).words()
    how = {"kl": "the divergence from the parent", "cross_entropy": "cross-entropy"}[
        found.recovered_by
    ]
    recovery = (
        "Nothing was trained afterwards."
        if found.recovered == "none"
        else f"Recovery ({found.recovered}) by {how}: {budget} of {found.calibrated:,} different ones, {again}."
    )
    return (
        f"Target: {found.target}; {words.percent(cutting.share)} of the layers' parameters stay "
        f"({cutting.removed}), by the score {cutting.score}, saved as {cutting.saved_as}. {recovery} "
        f"Data: {found.data}."
    )
