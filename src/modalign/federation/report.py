"""The report of a federation: report.json, its schema, report.md and report.html."""

from __future__ import annotations

from modalign.federation.privacy import NO_SECURE_AGGREGATION
from modalign.federation.results import CENTRALISED, LOCAL, UNTRAINED, Federation, Row
from modalign.numbers import words
from modalign.numbers.pairs import Difference
from modalign.pages.figures import Axis, Chart, Point, Series
from modalign.pages.parts import (
    Cell,
    Figure,
    Part,
    Quantity,
    Section,
    Table,
    Words,
    tabulate,
    text_rows,
)
from modalign.pages.report import Report

REFERENCES = (UNTRAINED, LOCAL, CENTRALISED)
ACCURACY = Quantity(
    "Accuracy", "accuracy", meaning="share of evaluation questions answered exactly", drawn=True
)
_ACCURACY = (
    "Greedy answers that equal the reference, teacher-forced, with 95 % intervals over questions and seeds. "
    "local-only: every client trains alone with the same budget; the mean over clients. centralised: one "
    "training on all records with all clients' budgets together. untrained: the model that all start from."
)


def report_of(result: Federation) -> Report:
    """Return the report with all sections that have something to show."""
    c = result.config
    sections = [
        Section(
            "found", "What was found", "", [Words("found", "", "/rows", findings(result), "list")]
        ),
        Section("accuracy", "Accuracy", _ACCURACY, [accuracy_table(result)]),
        Section(
            "pairs",
            "Differences",
            "Federated minus reference, paired over seeds and questions; p-values are corrected for the number of "
            "pairs (Holm). “No difference found” does not mean “equal”.",
            _pairs(result),
        ),
        Section(
            "clients",
            "Clients",
            "On each client's own held-out records: the common model, and the client's own, trained alone.",
            [*_clients(result)],
        ),
        Section("privacy", "Privacy", _privacy_words(result), _privacy(result)),
        Section(
            "traffic",
            "What travels",
            f"{result.parameters:,} numbers per client and direction before LoRA is cut to a client's rank. Bytes "
            "are the sizes of the files, all clients of a round together.",
            [_traffic(result)],
        ),
        Section("again", "To run it again", "", _setting(result)),
    ]
    return Report(
        "Federation",
        f"{len(result.clients)} clients, {c.rounds} rounds, {c.seeds} seeds; {result.finished}",
        [section for section in sections if section.parts],
        "Every figure is in report.json.",
        result,
    )


def federated(result: Federation, scenario: str | None = None) -> list[Row]:
    """Return the rows that a server aggregated."""
    return [r for r in result.rows if r.rule not in REFERENCES and scenario in (None, r.scenario)]


def findings(result: Federation) -> list[str]:
    """Return a sentence per scenario, and the warnings."""
    found = []
    for scenario in result.config.scenarios:
        best = max(federated(result, scenario), key=lambda row: row.accuracy.value)
        theirs = {
            rule: next(r for r in result.rows if r.scenario == scenario and r.rule == rule)
            for rule in (LOCAL, CENTRALISED)
        }
        said = [
            f"{rule} {words.value(row.accuracy)} ({_verdict(result, best, rule)})"
            for rule, row in theirs.items()
        ]
        worst = f"; the worst client is {best.worst}" if best.worst else ""
        found.append(
            f"{scenario}: {best.name} {words.interval(best.accuracy)}; {', '.join(said)}{worst}."
        )
    lost = sum(row.lost for row in result.rows)
    left = sum(row.left_out for row in result.rows)
    if lost:
        found.append(
            f"{lost} times a client did not answer; its round went on without it (report.json names it)."
        )
    if left:
        found.append(f"{left} times a client sent numbers that are not finite and was left out.")
    return found


def _verdict(result: Federation, row: Row, reference: str) -> str:
    pairs = next(p.differences for p in result.pairs if p.scenario == row.scenario)
    pair = next(d for d in pairs if d.first == row.name and d.second == reference)
    said = {"first": "federated is better", "second": f"{reference} is better"}
    return said.get(pair.verdict, pair.verdict)


def accuracy_table(result: Federation) -> Table:
    """Return scenarios x rules x strategies with the references."""
    columns = [
        Quantity("Scenario", "scenario"),
        Quantity("Rule", "rule"),
        Quantity("Strategy", "strategy"),
        Quantity("Noise", "noise"),
        ACCURACY,
        Quantity("Each seed", lambda row: ", ".join(f"{100 * value:.1f}" for value in row.seeds)),
        Quantity("Worst client", "worst"),
    ]
    own = ("accuracy-table", "Accuracy on the evaluation records", "/rows")
    table = tabulate(
        own,
        columns,
        result.rows,
        tone=lambda row: "reference" if row.rule in REFERENCES else "",
        sortable=True,
    )
    return table


def _pairs(result: Federation) -> list[Part]:
    columns = [
        Quantity("Federated", "first"),
        Quantity("Reference", "second"),
        Quantity("Difference", "difference"),
        Quantity("p (Holm)", lambda pair: Cell(words.p_value(pair.p_holm), key=pair.p_holm)),
        Quantity("Verdict", _said),
    ]
    return [
        tabulate((f"pairs-{number}", each.scenario, f"/pairs/{number}"), columns, each.differences)
        for number, each in enumerate(result.pairs)
    ]


def _said(pair: Difference) -> str:
    better = {"first": pair.first, "second": pair.second}.get(pair.verdict)
    return f"{better} is better" if better else pair.verdict


def _clients(result: Federation) -> list[Part]:
    heads = ["Client", "Records", "Held out", result.config.clients.label.capitalize()]
    rows = [
        [
            client.name,
            str(client.records),
            str(client.held),
            ", ".join(f"{label} {count}" for label, count in client.labels.items()),
        ]
        for client in result.clients
    ]
    parts: list[Part] = [
        Table("client-records", "Records of the first seed", "/clients", heads, text_rows(rows))
    ]
    kinds = [
        [client.name, scenario, ", ".join(f"{name} {n}" for name, n in held.items())]
        for client in result.clients
        for scenario, held in client.modalities.items()
    ]
    parts.append(
        Table(
            "client-modalities",
            "Records with each modality",
            "/clients",
            ["Client", "Scenario", "Records with"],
            text_rows(kinds),
            folded=True,
        )
    )
    columns = [
        Quantity("Client", "client"),
        Quantity("Common model", "together", drawn=True),
        Quantity("Alone", "alone", drawn=True),
    ]
    for number, row in enumerate(result.rows):
        if row.own:
            caption = f"{row.scenario}, {row.name}: worst first"
            table = tabulate(
                (f"own-{number}", caption, f"/rows/{number}/own"),
                columns,
                row.own,
                folded=True,
            )
            parts.append(table)
    return parts


def _privacy_words(result: Federation) -> str:
    if result.config.privacy is None:
        return f"{NO_SECURE_AGGREGATION} No differential privacy: privacy.clip and privacy.noise turn it on."
    return (
        f"{NO_SECURE_AGGREGATION} Epsilon is of whole clients, by dp-accounting's privacy loss distributions, at "
        f"delta {result.delta:.2g} after {result.config.rounds} rounds."
    )


def _privacy(result: Federation) -> list[Part]:
    rows = [row for row in federated(result) if row.noise is not None]
    if not rows:
        return [Words("privacy-none", "", "/notes", [NO_SECURE_AGGREGATION], "note")]
    columns = [
        Quantity("Scenario", "scenario"),
        Quantity("Row", "name"),
        Quantity("Noise multiplier", "noise"),
        Quantity("Epsilon", lambda r: "no guarantee" if r.epsilon is None else f"{r.epsilon:.3g}"),
        ACCURACY,
    ]
    table = tabulate(("privacy-table", "Accuracy against epsilon", "/rows"), columns, rows)
    finite = [row for row in rows if row.epsilon]
    if len(finite) < 2:
        return [table]
    kinds = [f"{r.scenario}, {r.rule}, {r.strategy}" for r in finite]
    series = [Series(name, number) for number, name in enumerate(dict.fromkeys(kinds))]
    points = [
        Point(r.epsilon or 0.0, r.accuracy.value, r.accuracy.low, r.accuracy.high, series=kind)
        for r, kind in zip(finite, kinds, strict=True)
    ]
    chart = Chart(
        "lines",
        "Accuracy against epsilon",
        "Accuracy of the federated model against epsilon; smaller epsilon is more private.",
        points,
        series,
        Axis("epsilon", log=True),
        Axis("accuracy", "share"),
    )
    return [Figure("privacy-curve", "Accuracy against epsilon", "/rows", [chart], table)]


def _traffic(result: Federation) -> Table:
    columns = [
        Quantity("Scenario", "scenario"),
        Quantity("Row", "name"),
        Quantity("Up, per round", "up", "bytes"),
        Quantity("Down, per round", "down", "bytes"),
        Quantity(
            "Error of LoRA's products, first and last round",
            lambda r: f"{r.lora_error[0]:.2g}, {r.lora_error[1]:.2g}" if _lora(result) else None,
            meaning="relative to the exact mean, Frobenius norm",
        ),
        Quantity("Lost", "lost", "whole"),
        Quantity("Left out", "left_out", "whole"),
    ]
    return tabulate(("traffic-table", "Bytes and errors", "/rows"), columns, federated(result))


def _lora(result: Federation) -> bool:
    return result.config.train != "connector"


def _setting(result: Federation) -> list[Part]:
    parts: list[Part] = [Words("command", "Command", "/command", [result.command], "command")]
    parts.append(Words("notes", "Notes", "/notes", result.notes, "list"))
    return parts
