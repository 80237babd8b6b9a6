"""The report of a merge: report.json, its schema, report.md and report.html."""

from __future__ import annotations

import re

from modalign.merging.results import Compared, MergeResult, Plan, Row
from modalign.numbers import words
from modalign.numbers.pairs import NO_DIFFERENCE, Difference
from modalign.pages.drawing import line_chart, row_chart
from modalign.pages.figures import Axis
from modalign.pages.parts import (
    Figure,
    Part,
    Quantity,
    Section,
    Table,
    Tone,
    Words,
    tabulate,
    text_rows,
)
from modalign.pages.report import Report

PARENTS = (
    Quantity("model", "name"),
    Quantity(
        "role",
        lambda row: f"{row.role}, gives configuration and vocabulary" if row.like else row.role,
    ),
    Quantity("folder", "folder"),
    Quantity("tensors", "tensors", "whole"),
    Quantity("SHA-256", lambda row: row.sha256[:16], meaning="over the tensors that were merged"),
)
MOST = 60  # coefficients shown


def report_of(found: MergeResult) -> Report:
    """Return the report with all sections that have something to show."""
    sections = [
        Section("models", "The models", _LEAD if found.rows else "", _models(found)),
        Section(
            "differences",
            "Is the merge better?",
            "Loss of the other minus that of the saved merge, paired by record. A difference is found if its "
            "corrected p-value is below 5 % and its interval excludes zero.",
            [difference_table(each, number) for number, each in enumerate(found.differences)],
        ),
        Section("how", "How it was made", "", _how(found)),
    ]
    foot = (
        f"modalign {found.version}; {found.command}; {words.seconds(found.seconds)}, of it "
        f"{words.seconds(found.merging_seconds)} merging. Intervals are 95 %, over records; models are fixed."
    )
    names = " + ".join(row.name for row in found.plan.parents if row.role == "parent")
    return Report(
        "Merge",
        f"{names} by {found.chosen}; {found.tensors:,} tensors in {found.model}",
        [section for section in sections if section.parts],
        foot,
        found,
    )


_LEAD = "Nats per token on the evaluation data of every domain; lower is better. The saved merge is marked."


def _models(found: MergeResult) -> list[Part]:
    warned: list[Part] = (
        [Words("warnings", "warnings", "/warnings", found.warnings, "list")]
        if found.warnings
        else []
    )
    if not found.rows:
        return warned
    return [*warned, rows_table(found), *_figures(found)]


def _figures(found: MergeResult) -> list[Part]:
    """Return charts: all models side by side, and what a search tried."""
    name = Quantity("model", "name")
    if len(found.domains) > 1:
        shown = Quantity("mean loss", "mean")
    elif found.domains:
        only = next(iter(found.domains))
        shown = Quantity(f"loss on {only}", lambda row: row.losses.get(only))
    else:
        return []
    rows = [row for row in found.rows if shown.of(row) is not None]
    chart = row_chart(shown.name, shown, rows, name, Axis("nats per token"))
    parts: list[Part] = [Figure("all", "all models", "/rows", charts=[chart])]
    tried = [row for row in found.rows if row.tried is not None]
    if tried:
        lines = [
            Quantity(domain, lambda row, d=domain: row.losses.get(d))  # type: ignore[misc]
            for domain in found.domains
        ]
        at = Quantity("value tried", "tried")
        curve = line_chart(
            "each domain over what was tried", lines, tried, at, Axis("nats per token")
        )
        parts.append(Figure("tried", "what the search tried", "/rows", charts=[curve]))
    return parts


def rows_table(found: MergeResult) -> Table:
    """Return the table of all models on all domains."""

    def loss(domain: str) -> Quantity:
        return Quantity(domain, lambda row: row.losses.get(domain))

    def accuracy(domain: str) -> Quantity:
        return Quantity(
            f"right on {domain}",
            lambda row: row.accuracies.get(domain),
            meaning="share of greedy answers that equal the reference",
        )

    answered = [d for d in found.domains if any(d in row.accuracies for row in found.rows)]
    columns = [
        Quantity("model", "name"),
        Quantity("kind", "kind"),
        *map(loss, found.domains),
        *([Quantity("mean", "mean")] if len(found.domains) > 1 else []),
        *map(accuracy, answered),
        Quantity(
            "validation",
            lambda row: None if row.validation is None else f"{row.validation:.4f}",
            meaning="mean loss on the validation data, by which merges are chosen",
        ),
    ]
    counts = ", ".join(f"{n:,} records of {d}" for d, n in found.domains.items())
    caption = f"on {counts}" if counts else "merges on the validation data"
    return tabulate(("rows", caption, "/rows"), columns, found.rows, tone=_tone)


def _tone(row: Row) -> Tone:
    return "chosen" if row.chosen else "" if row.kind == "merge" else "reference"


def difference_table(found: Compared, number: int) -> Table:
    """Return the table of paired differences on one domain."""
    columns = (
        Quantity("against", "second"),
        Quantity("better by, in nats per token", "difference"),
        Quantity(
            "p", lambda pair: words.p_value(pair.p_holm), meaning="corrected for the number of rows"
        ),
        Quantity("verdict", _verdict),
    )
    own = (f"differences-{number}", found.domain, f"/differences/{number}/differences")
    return tabulate(own, columns, found.differences)


def _verdict(found: Difference) -> str:
    better = {"first": found.first, "second": found.second}.get(found.verdict)
    return NO_DIFFERENCE if better is None else f"{better} is better"


def _how(found: MergeResult) -> list[Part]:
    plan = found.plan
    rules = list(found.coefficients.items())
    shown = [
        (pattern, ", ".join(f"{name} {weight:.4g}" for name, weight in weights.items()))
        for pattern, weights in rules[:MOST]
    ]
    parts: list[Part] = [
        tabulate(("parents", "parents", "/plan/parents"), PARENTS, plan.parents),
        Words("what", "", "/plan", plan_words(plan), "list"),
        *_learned(rules),
        Table(
            "coefficients",
            "coefficients"
            if len(rules) <= MOST
            else f"the first {MOST} of {len(rules)} coefficients",
            "/coefficients",
            headings=("tensors", "weights"),
            rows=text_rows(shown),
            folded=len(rules) > 8,
        ),
    ]
    if notes := [*plan.notes, *found.notes]:
        parts.append(Words("notes", "notes", "/notes", notes, "note"))
    return parts


def plan_words(plan: Plan) -> list[str]:
    """Return what is done with which tensors, in sentences."""
    options = ", ".join(f"{name} {value:g}" for name, value in plan.options.items())
    found = [
        f"Method {plan.method}{f' ({options})' if options else ''}; weights: {plan.weights}.",
        f"{plan.merged:,} tensors are merged.",
    ]
    for name, count in plan.assigned.items():
        found.append(f"{count:,} tensors are those of {name}.")
    if plan.candidates:
        found.append(f"Tried on the validation data: {', '.join(plan.candidates)}.")
    found.append(f"{words.size(plan.bytes)} of weights.")
    return found


def _learned(rules: list[tuple[str, dict[str, float]]]) -> list[Part]:
    """Return a chart of the second parent's coefficients over the layers, if every linear map has its own."""
    layers: dict[int, dict[str, float]] = {}
    for pattern, weights in rules:
        place = re.fullmatch(r"[^*?\[]*?(\d+)\.(.+?)(?:\.weight)?", pattern)
        if place is not None and len(weights) == 2:
            layers.setdefault(int(place[1]), {})[place[2]] = list(weights.values())[1]
    kinds = list(dict.fromkeys(kind for found in layers.values() for kind in found))
    if len(layers) < 2:
        return []
    second = list(rules[0][1])[1]
    lines = [
        Quantity(kind, lambda row, k=kind: row[1].get(k))  # type: ignore[misc]
        for kind in kinds
    ]
    at = Quantity("layer", lambda row: row[0])
    chart = line_chart(
        f"share of {second}", lines, sorted(layers.items()), at, Axis(f"share of {second}")
    )
    return [Figure("learned", "coefficients of the linear maps", "/coefficients", charts=[chart])]
