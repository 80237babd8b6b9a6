"""The report of a merge: report.json, its schema, report.md and report.html."""

from __future__ import annotations

from modalign.merging.results import Compared, MergeResult, Plan, Row
from modalign.numbers import words
from modalign.numbers.pairs import NO_DIFFERENCE, Difference
from modalign.pages.parts import Part, Quantity, Section, Table, Tone, Words, tabulate, text_rows
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
    return [*warned, *([rows_table(found)] if found.rows else [])]


def rows_table(found: MergeResult) -> Table:
    """Return the table of all models on all domains."""

    def loss(domain: str) -> Quantity:
        return Quantity(domain, lambda row: row.losses.get(domain), drawn=True)

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
        *([Quantity("mean", "mean", drawn=True)] if len(found.domains) > 1 else []),
        *map(accuracy, answered),
        Quantity("validation", "validation", "nats", meaning="mean loss that merges are chosen by"),
    ]
    counts = ", ".join(f"{n:,} records of {d}" for d, n in found.domains.items())
    return tabulate(("rows", f"on {counts}", "/rows"), columns, found.rows, tone=_tone)


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
