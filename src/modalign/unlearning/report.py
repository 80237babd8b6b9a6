"""The report of ``eval --task unlearning``: rows by form, recovery, attacks, TOFU's numbers, membership."""

from __future__ import annotations

from collections.abc import Callable

from modalign.numbers import words
from modalign.numbers.estimate import Estimate
from modalign.pages.parts import Part, Quantity, Section, Table, Words, tabulate, text_rows
from modalign.pages.report import Report
from modalign.unlearning.attacks import ATTACKS
from modalign.unlearning.evaluation import Forgetting, FormRow, row_names
from modalign.unlearning.final import WHY

INVALID = "INVALID"


def forms_table(found: Forgetting) -> Table:
    """Return scores of all rows, and recovery, by form."""
    columns = [
        Quantity("form", "form"),
        Quantity("n", lambda row: str(row.n)),
        Quantity(
            "chance", lambda row: None if row.chance is None else words.number(row.chance)
        ),
        *(Quantity(name, _of("rows", name))
          for name in row_names(found)),
        Quantity(
            "recovery",
            lambda row: _short(row.recovery) if row.valid else INVALID,
            meaning="(unlearned - never knew) / (knew - never knew); INVALID where these two are not told apart",
        ),
    ]  # fmt: skip
    return tabulate(("forms", "Scores and recovery by form", "/forms"), columns, found.forms)


def attacks_table(found: Forgetting) -> Table:
    """Return recovery after each attack, by form."""
    names = [name for name in ATTACKS if any(name in row.attacks for row in found.forms)]
    columns = [
        Quantity("form", "form"),
        Quantity("no attack", lambda row: _short(row.recovery)),
        *(Quantity(name, _of("attacks", name)) for name in names),
    ]
    valid: list[FormRow] = [row for row in found.forms if row.valid]
    return tabulate(("attacks", "Recovery after attacks", "/forms"), columns, valid)


def numbers_table(found: Forgetting) -> Table:
    """Return TOFU's numbers and the membership test."""
    rows = []
    if found.forget_quality is not None:
        rows.append(("forget quality (p against retrained without)", f"{found.forget_quality:.3g}"))
    rows += [(f"utility on retained, {name}", words.number(v)) for name, v in found.utility.items()]
    rows += [
        (f"membership (AUC of losses), {name}", _short(value))
        for name, value in found.membership.items()
    ]
    return Table(
        "numbers", "TOFU's numbers and membership", "", ["number", "value"], text_rows(rows)
    )


def _of(table: str, name: str) -> Callable[[FormRow], str]:
    """Return a function that reads one figure of a row."""
    return lambda row: _short(getattr(row, table).get(name))


def _short(found: Estimate | None) -> str:
    """Write an estimate as ``0.24 (0.12 to 0.38)``."""
    if found is None:
        return words.MISSING
    ends = f" ({words.number(found.low)} to {words.number(found.high)})" if found.bounded else ""
    return words.number(found.value) + ends


def forgetting_report(found: Forgetting) -> Report:
    """Build the report."""
    patched = f" with {', '.join(found.patches)}" if found.patches else ""
    notes: list[Part] = [Words("notes", "", "/notes", [*found.notes, WHY], "list")]
    sections = [
        Section("forms", "What is still known", "", [forms_table(found)]),
        Section("attacks", "What comes back", "", [attacks_table(found)]),
        Section("numbers", "Forget quality, utility, membership", "", [numbers_table(found)]),
        Section("notes", "Notes", "", notes),
    ]
    lead = f"{found.model}{patched}, before: {found.knew}; never knew: {found.never_knew}; questions: {found.data}"
    foot = f"{found.harness}; seed {found.seed}. Intervals are 95 %, over questions, by subject."
    return Report("Is it forgotten?", lead, sections, foot, found)
