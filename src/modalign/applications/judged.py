"""What every application reports: estimates for chance, the simple rule and models, and a default.

An application ships the simple rule unless a model is found to be better on the same questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict

from modalign.numbers import words
from modalign.numbers.bootstrap import Groups, estimate_of_sums, ratio
from modalign.numbers.estimate import Estimate, exactly
from modalign.numbers.pairs import Difference, compare_with, difference_estimate
from modalign.numbers.ranking import auroc
from modalign.numbers.shares import share
from modalign.numbers.trainings import estimate_means, hierarchical_bootstrap
from modalign.pages.parts import Part, Quantity, Section, Table, Tone, Words, tabulate
from modalign.pages.report import Report
from modalign.runs import command_line
from modalign.version import __version__


class ScoreRow(BaseModel):
    """One way of doing the task, with its estimates.

    Attributes:
        name: of the row.
        kind: ``reference`` (chance and what leaks), ``rule`` (no training of a model) or ``model``.
        figures: column -> estimate.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    kind: str
    figures: dict[str, Estimate]


class ScoreTable(BaseModel):
    """Rows under a title, and what the figures mean."""

    title: str
    rows: list[ScoreRow]
    notes: list[str] = []


class Judged(BaseModel):
    """The evaluation of an application.

    Attributes:
        application: its name on the command line.
        data: what it was evaluated on.
        seed: of everything drawn.
        default: the row that it ships.
        reason: why it ships that row.
        tables: the results.
        differences: of models from the simple rule, on the headline's questions.
    """

    application: str
    title: str
    data: str
    seed: int
    default: str
    reason: str
    tables: list[ScoreTable]
    differences: list[Difference] = []
    command: str = ""
    version: str = __version__


def mean(
    values: ArrayLike, groups: Groups | None = None, seed: int = 0, over: str = "records"
) -> Estimate:
    """Estimate the mean of scores from 0 to 1: of right and wrong by Wilson, else by the bootstrap."""
    array = np.asarray(values, dtype=np.float64)
    if np.isin(array, (0, 1)).all():
        return share(array, groups, over=over)
    columns = np.stack([array, np.ones(len(array))], axis=1)
    found = estimate_of_sums(columns, ratio, groups=groups, seed=seed, over=over)
    assert found is not None
    return found


def decided(
    rule: str, scores: Mapping[str, ArrayLike], groups: Groups | None = None, seed: int = 0
) -> tuple[str, str, list[Difference]]:
    """Return the row to ship, the reason, and the differences of models from the rule.

    Args:
        rule: the simple rule's row.
        scores: row -> (n,) scores of the same questions, the rule's among them; (S, n) of S trainings.
        groups: (n,) labels of questions that belong together.
        seed: of the bootstrap.
    """
    given = {name: np.asarray(values, dtype=float) for name, values in scores.items()}
    models = {name: np.atleast_2d(values) for name, values in given.items() if name != rule}
    if not models:
        return rule, f"{rule} is the default: no model was given.", []
    found = compare_with(rule, given[rule], models, groups=groups, seed=seed,
                         fixed=[name for name in models if given[name].ndim == 1])  # fmt: skip
    better = [each for each in found if each.verdict == "first"]
    if not better:
        return (
            rule,
            f"{rule} is the default: no model was found to be better on the same questions.",
            found,
        )
    best = max(better, key=lambda each: each.difference.value).first
    return best, f"{best} is the default: it was found to be better than {rule}.", found


def score_table(table: ScoreTable, place: int = 0, default: str = "") -> Table:
    """Build the table of a report or a terminal; the shipped row is marked."""
    columns = list(dict.fromkeys(name for row in table.rows for name in row.figures))
    quantities = [
        Quantity("", "name"),
        *(Quantity(name, partial(_figure, name)) for name in columns),
        Quantity("n", lambda row: str(max((f.n for f in row.figures.values()), default=0))),
    ]
    tones: dict[str, Tone] = {"reference": "reference"}
    return tabulate(
        (f"table-{place}", table.title, f"/tables/{place}/rows"),
        quantities,
        table.rows,
        tone=lambda row: "chosen" if row.name == default else tones.get(row.kind, ""),
    )


def _figure(name: str, row: ScoreRow) -> Estimate | None:
    return row.figures.get(name)


def separation(
    title: str,
    scores: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]],
    notes: Sequence[str] = (),
    seed: int = 0,
) -> ScoreTable:
    """Return the table of how well scores tell two kinds of records apart, with chance.

    Args:
        title: of the table.
        scores: row -> name -> scores of the records that should score high, and of the others.
        notes: about it.
        seed: of the intervals.
    """
    rows = [
        ScoreRow(
            name=way,
            kind="rule",
            figures={f"AUROC by {n}": auroc(*pair, seed=seed) for n, pair in own.items()},
        )
        for way, own in scores.items()
    ]
    figures = {
        name: exactly(0.5, found.n, "score") for row in rows for name, found in row.figures.items()
    }
    chance = ScoreRow(name="chance", kind="reference", figures=figures)
    return ScoreTable(title=title, rows=[chance, *rows], notes=list(notes))


def nearest(kinds: Sequence[str], ways: Mapping[str, ArrayLike], seed: int = 0) -> list[ScoreTable]:
    """Return the table of whether the nearest other item is of the same kind; none where no two are.

    Args:
        kinds: (n,) of the items; empty: of none.
        ways: row -> (n, n) similarities.
        seed: of the intervals.
    """
    known, itself = np.array(kinds), np.eye(len(kinds), dtype=bool)
    same = (known[:, None] == known[None]) & (known != "")[:, None] & ~itself
    having = np.flatnonzero(same.any(1))
    if not len(having):
        return []
    chance = float(np.mean(same[having].sum(1) / (len(kinds) - 1)))
    figures = {"same kind": exactly(chance, len(having), over="items")}
    rows = [ScoreRow(name="chance", kind="reference", figures=figures)]
    for name, scores in ways.items():
        own = np.where(itself, -np.inf, np.asarray(scores))[having]
        top = own == own.max(1, keepdims=True)
        hits = (top & same[having]).sum(1) / top.sum(1)
        figures = {"same kind": mean(hits, over="items", seed=seed)}
        rows.append(ScoreRow(name=name, kind="rule", figures=figures))
    return [ScoreTable(title="The nearest other item", rows=rows)]


def of_trainings(
    title: str,
    columns: Mapping[str, Mapping[str, ArrayLike]],
    fixed: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    groups: Groups,
    chance: Mapping[str, Estimate],
    notes: Sequence[str] = (),
) -> ScoreTable:
    """Return a table of means over trainings and questions, and pairs' differences in the first column as notes.

    Args:
        title: of the table.
        columns: column -> row -> (S, n) values of S trainings; the first one has every row.
        fixed: rows without training.
        pairs: of rows to tell apart.
        groups: (n,) labels of questions that belong together.
        chance: column -> what chance gives.
        notes: about it.
    """
    head, main = next(iter(columns.items()))
    found = {
        name: estimate_means(own, groups=groups, fixed=[row for row in fixed if row in own],
                             unit="share" if name.startswith("top-") else "difference of shares")
        for name, own in columns.items()
    }  # fmt: skip
    rows = [ScoreRow(name="chance", kind="reference", figures=dict(chance))]
    rows += [
        ScoreRow(name=row, kind="rule" if row in fixed else "model",
                 figures={name: own[row] for name, own in found.items() if row in own})
        for row in main
    ]  # fmt: skip
    drawn, said = hierarchical_bootstrap(main, groups=groups, fixed=fixed), list(notes)
    for first, second in pairs:
        gap = difference_estimate(drawn, first, second)
        said.append(f"{head}, {first} against {second}: {words.interval(gap)}.")
    return ScoreTable(title=title, rows=rows, notes=said)


def judged_report(found: Judged) -> Report:
    """Build the page of an evaluation."""
    said = Words("default", "", "/reason", [found.reason])
    sections = [Section("answer", "What it ships", "", [said])]
    for place, table in enumerate(found.tables):
        parts: list[Part] = [score_table(table, place, found.default)]
        if table.notes:
            parts.append(Words(f"notes-{place}", "", f"/tables/{place}/notes", table.notes, "list"))
        sections.append(Section(f"scores-{place}", table.title, "", parts))
    if found.differences:
        quantities = [
            Quantity("model", "first"),
            Quantity("rule", "second"),
            Quantity("difference", "difference"),
            Quantity("p (Holm)", lambda each: f"{each.p_holm:.3f}"),
            Quantity("found", "verdict"),
        ]
        name = ("differences", "Models against the simple rule, same questions", "/differences")
        made = tabulate(name, quantities, found.differences)
        sections.append(Section("differences", "Is a model better?", "", [made]))
    foot = f"modalign {found.version}; {found.command}; seed {found.seed}. Intervals are 95 %."
    return Report(found.title, f"{found.application} on {found.data}", sections, foot, found)


def judged(application: str, title: str, data: Sequence[str], seed: int, **rest: Any) -> Judged:
    """Return an evaluation with the command that made it."""
    return Judged(
        application=application,
        title=title,
        data=", ".join(data),
        seed=seed,
        command=command_line(),
        **rest,
    )
