"""The report of mixing: report.json, its schema, report.md and report.html."""

from __future__ import annotations

from modalign.mixtures.mix_results import OBJECTIVE, Mixing, Mixture
from modalign.mixtures.probe_report import PAIRS, said_verdict
from modalign.numbers import words
from modalign.pages.figures import Axis, Chart, Point, Series
from modalign.pages.parts import (
    Advice,
    Figure,
    Part,
    Quantity,
    Section,
    Table,
    Words,
    tabulate,
)
from modalign.pages.report import Report

_PROXY = (
    "One expert is trained per source; a mixture's proxy is the merge of the experts by its weights, which costs "
    "no training. Trained: a model trained on the mixture under the same budget. Intervals are 95 %, over records "
    "and trainings."
)


def report_of(found: Mixing) -> Report:
    """Return the report with all sections that have something to show."""
    sections = [
        Section("answer", "The mixture", "", _answer(found)),
        Section("mixtures", "Mixtures, the proxy's best first", _PROXY, [_figure(found)]),
        Section(
            "promise",
            "Did the proxy keep its promise?",
            "Spearman's correlation of proxy and trained figures over the mixtures of several sources that were "
            "trained: 1 is the same order. For few mixtures the interval is wide.",
            [agreement_table(found), *_planes(found)],
        ),
        Section(
            "differences",
            "Is it better than what needs no proxy?",
            "The chosen mixture, trained, against equal shares, shares by size and the best single source; "
            "paired, positive is better. “No difference found” does not mean “equal”.",
            _pairs(found),
        ),
        Section("targets", "On every target", "", [_targets(found)]),
        Section("sources", "Sources", "", [_sources(found)]),
        Section("again", "To run it again", "", _setting(found)),
    ]
    return Report(
        "Data mix",
        f"{len(found.mixtures)} mixtures of {len(found.sources)} sources, seeds: {found.config.seeds}; "
        f"{found.finished}",
        [section for section in sections if section.parts],
        "Every figure is in report.json.",
        found,
    )


def findings(found: Mixing) -> list[str]:
    """Return what was found, in sentences."""
    best, said = found.best, []
    said.append(
        f"The proxy promised {words.interval(best.proxy[OBJECTIVE])} for {best.name}; trained, it has "
        f"{words.interval(best.trained[OBJECTIVE])}. Trained against promised (positive: better): "
        f"{words.interval(found.promise.difference)}, {said_verdict(found.promise)}."
    )
    if sum(map(bool, best.weights.values())) == 1:
        said.append("It is a single source, whose expert was trained on it: nothing was merged.")
    agreed = found.agreement[OBJECTIVE]
    if agreed is None:
        said.append(
            "Too few mixtures of several sources were trained to compare the proxy's ranking (four are needed)."
        )
    else:
        said.append(
            f"Spearman's correlation of proxy and trained: {words.interval(agreed)} over {agreed.n} mixtures."
        )
    ahead = max(found.checked, key=lambda m: _goodness(found, m))
    if ahead.name != best.name:
        said.append(
            f"Of those trained, {ahead.name} has the best figure: {words.interval(ahead.trained[OBJECTIVE])}."
        )
    for pair in found.differences:
        said.append(
            f"Against {pair.second}: {words.interval(pair.difference)} ({said_verdict(pair)})."
        )
    said.append(
        f"{found.trainings} trainings; ranking all mixtures by training them would have taken {found.without}."
    )
    return said


def _goodness(found: Mixing, mixture: Mixture) -> float:
    value = mixture.trained[OBJECTIVE].value
    return -value if found.config.metric == "loss" else value


def _unit(found: Mixing) -> str:
    return "nats per token" if found.config.metric == "loss" else "exact answers"


def _answer(found: Mixing) -> list[Part]:
    best = found.best
    tiles = [
        ("Trained on it", words.value(best.trained[OBJECTIVE]), _unit(found)),
        ("Promised", words.value(best.proxy[OBJECTIVE]), "by merged experts"),
        ("Before", words.value(found.untrained[OBJECTIVE]), "untrained"),
    ]
    return [Advice("advice", "", "/chosen", found.chosen, "", findings(found), "", (), tiles)]


def mixtures_table(found: Mixing) -> Table:
    """Return all mixtures with proxy and trained figures."""
    columns = [
        Quantity("Mixture", "name", meaning="percent of the samples"),
        Quantity("Proxy", f"proxy.{OBJECTIVE}", meaning="of merged experts", drawn=True),
        Quantity("Trained", lambda row: row.trained.get(OBJECTIVE), drawn=True),
        Quantity("On the evaluation data", "test"),
        Quantity("", lambda row: ", ".join(row.roles)),
    ]
    return tabulate(
        ("mixtures-table", "The objective of every mixture", "/mixtures"),
        columns,
        found.mixtures,
        tone=lambda row: "chosen" if row.name == found.chosen else "",
        sortable=True,
    )


def _figure(found: Mixing) -> Figure:
    series = [Series("proxy", 0), Series("trained", 2)]
    points = [
        Point(m.name, e.value, e.low, e.high, name, f"{m.name}, {name}: {words.interval(e)}")
        for m in found.mixtures
        for name, e in (("proxy", m.proxy[OBJECTIVE]), ("trained", m.trained.get(OBJECTIVE)))
        if e is not None
    ]
    chart = Chart(
        "rows",
        "Every mixture",
        "The objective of every mixture by its proxy and, where it was trained, by training.",
        points,
        series,
        Axis("mixture"),
        _axis(found, _unit(found)),
    )
    return Figure("mixtures-figure", "Mixtures", "/mixtures", [chart], mixtures_table(found))


def _figure_unit(found: Mixing) -> str:
    return found.best.proxy[OBJECTIVE].unit


def _axis(found: Mixing, title: str) -> Axis:
    return Axis(title, "share" if found.config.metric == "accuracy" else "")


def agreement_table(found: Mixing) -> Table:
    """Return Spearman's correlation per target."""
    columns = [
        Quantity("Target", lambda row: row[0]),
        Quantity("Spearman", lambda row: row[1], drawn=True),
        Quantity("Mixtures", lambda row: row[1].n if row[1] else None, "whole"),
        Quantity(
            "Chance of so much",
            lambda row: words.p_value(row[1].p) if row[1] else "too few to say",
            meaning="share of random orders that agree at least so much",
        ),
    ]
    part = ("agreement-table", "Proxy and trained, in the same order?", "/agreement")
    return tabulate(part, columns, list(found.agreement.items()))


def _planes(found: Mixing) -> list[Part]:
    """Draw trained figures against proxies, for the objective."""
    points = [
        Point(
            m.proxy[OBJECTIVE].value,
            m.trained[OBJECTIVE].value,
            m.trained[OBJECTIVE].low,
            m.trained[OBJECTIVE].high,
            "mixtures",
            f"{m.name}: promised {words.value(m.proxy[OBJECTIVE])}, "
            f"trained {words.interval(m.trained[OBJECTIVE])}",
            m.name,
        )
        for m in found.checked
        if sum(map(bool, m.weights.values())) > 1
    ]
    if len(points) < 2:
        return []
    chart = Chart(
        "scatter",
        "Promised and trained",
        "The trained figure of each mixture against its proxy.",
        points,
        [Series("mixtures", 2)],
        _axis(found, f"proxy, {_unit(found)}"),
        _axis(found, f"trained, {_unit(found)}"),
    )
    return [Figure("promise-figure", "Promised and trained", "/mixtures", [chart])]


def _pairs(found: Mixing) -> list[Part]:
    own = ("differences-table", "On the objective", "/differences")
    parts: list[Part] = [tabulate(own, PAIRS, found.differences)]
    if found.test:
        judged = ("test-table", "On the evaluation data, which chose nothing", "/test")
        parts.append(tabulate(judged, PAIRS, found.test))
    return parts


def _targets(found: Mixing) -> Table:
    columns = [Quantity("Mixture", "name")]
    for target in found.targets[1:]:
        columns += [
            Quantity(f"{target}, proxy", f"proxy.{target}", bare=True, unit=_figure_unit(found)),
            Quantity(f"{target}, trained", lambda row, t=target: row.trained.get(t)),  # type: ignore[misc]
        ]
    return tabulate(("targets-table", "Held-out figures", "/mixtures"), columns, found.mixtures)


def _sources(found: Mixing) -> Table:
    columns = [
        Quantity("Source", "name"),
        Quantity("Records", "records", "whole"),
        Quantity("Held out", "held", "whole"),
        Quantity("Also in another source", "elsewhere", "whole"),
    ]
    return tabulate(("sources-table", "Sources", "/sources"), columns, found.sources)


def _setting(found: Mixing) -> list[Part]:
    parts: list[Part] = [Words("command", "Command", "/command", [found.command], "command")]
    if found.notes:
        parts.append(Words("notes", "Notes", "/notes", found.notes, "list"))
    return parts
