"""Two comparisons side by side: changed settings and their effect.

Both were trained independently, so a difference is one of independent estimates. Its interval combines the
half-widths of both (the square-and-add rule: Newcombe 1998, Statistics in Medicine 17:873; Zou and
Donner 2008, ibid. 27:1693). If the questions or their number differ, no difference is computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from modalign.comparison.results import Comparison, MethodResult, Setting
from modalign.differences import differences
from modalign.errors import DataError, UsageError
from modalign.numbers.estimate import Estimate
from modalign.pages.parts import Quantity, Section, Table, Words, tabulate, text_rows
from modalign.pages.report import Report

SAME = ("train", "val", "eval")  # data that must be equal for accuracies to be comparable
NOT_COMPARED = (
    *("command", "started", "finished", "seconds", "hashes", "libraries", "changed", "threads"),
    *("train_records", "val_records", "eval_records", "val_source", "version"),
)


class Side(BaseModel):
    """One of the two comparisons.

    Attributes:
        folder: of the comparison.
        recommended: the method, or None.
        reason: why.
        setting: settings of the run.
    """

    folder: str
    recommended: str | None
    reason: str
    setting: Setting


class Pair(BaseModel):
    """One method, or reference row, in both; missing values are None.

    Attributes:
        difference: the second's accuracy minus the first's.
    """

    name: str
    first: MethodResult | None = None
    second: MethodResult | None = None
    first_accuracy: Estimate | None = None
    second_accuracy: Estimate | None = None
    difference: Estimate | None = None


class SideBySide(BaseModel):
    """Both, with everything that differs."""

    model_config = ConfigDict(extra="forbid")

    sides: tuple[Side, Side]
    changed: list[str]  # settings: "budget was 2000samples, now 8000samples"
    data: list[str]  # files whose content differs
    methods: list[Pair]
    references: list[Pair]


def read_comparison(folder: Path) -> Comparison:
    """Read the report of a comparison.

    Raises:
        UsageError: the folder contains no finished comparison.
        DataError: its report is damaged, or of another version of modalign.
    """
    path = folder / "report.json"
    if not path.is_file():
        raise UsageError(
            f"{folder} holds no report.json: give folders that 'modalign compare' has finished"
        )
    try:
        return Comparison.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise DataError(
            f"{path} is no report of a comparison by this version of modalign ({first}): run 'modalign compare "
            "--resume' on the folder to write it again"
        ) from None


def side_by_side(first: Path, second: Path) -> SideBySide:
    """Compare two comparisons.

    Args:
        first, second: folders of finished comparisons; differences are the second's minus the first's.

    Raises:
        UsageError, DataError: see :func:`read_comparison`.
    """
    folders = (first, second)
    one, two = (read_comparison(folder) for folder in folders)
    same = one.setting.hashes.get("eval") == two.setting.hashes.get("eval") and (
        one.setting.hashes.get("eval") is not None
        or one.setting.hashes.get("val", one.setting.hashes.get("train"))
        == two.setting.hashes.get("val", two.setting.hashes.get("train"))
    )
    methods = [{m.name: m for m in found.methods} for found in (one, two)]
    rows = [{r.name: r.accuracy for r in found.references} for found in (one, two)]
    return SideBySide(
        sides=(_side(first, one), _side(second, two)),
        changed=differences(_compared(one.setting), _compared(two.setting)),
        data=[
            name for name in SAME if one.setting.hashes.get(name) != two.setting.hashes.get(name)
        ],
        methods=[_pair(n, methods[0].get(n), methods[1].get(n), same) for n in _names(methods)],
        references=[
            _paired(Pair(name=n), rows[0].get(n), rows[1].get(n), same=False) for n in _names(rows)
        ],
    )


def _names(both: Sequence[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for named in both for name in named))


def _side(folder: Path, found: Comparison) -> Side:
    chosen = found.recommendation
    return Side(
        folder=str(folder),
        recommended=chosen.method if chosen else None,
        reason=chosen.reason if chosen else "No method finished.",
        setting=found.setting,
    )


def _compared(setting: Setting) -> dict[str, object]:
    return {k: v for k, v in setting.model_dump(mode="json").items() if k not in NOT_COMPARED}


def _pair(name: str, first: MethodResult | None, second: MethodResult | None, same: bool) -> Pair:
    one, two = (found.accuracy_interval if found else None for found in (first, second))
    return _paired(Pair(name=name, first=first, second=second), one, two, same)


def _paired(pair: Pair, first: Estimate | None, second: Estimate | None, same: bool) -> Pair:
    found = {"first_accuracy": first, "second_accuracy": second}
    if same and first and second and first.n == second.n:
        found["difference"] = apart(first, second)
    return pair.model_copy(update=found)


def apart(first: Estimate, second: Estimate) -> Estimate:
    """Return the second minus the first of two independent estimates."""
    value = second.value - first.value
    return Estimate(
        value=value,
        low=value - math.hypot(second.value - second.low, first.high - first.value),
        high=value + math.hypot(second.high - second.value, first.value - first.low),
        n=first.n,
        over=first.over,
        unit="difference of shares",
    )


# --- the page -----------------------------------------------------------------------------------

NAME = Quantity("Method", "name")


def _columns(first: str, second: str) -> list[Quantity]:
    return [
        NAME,
        Quantity(f"Accuracy, {first}", "first_accuracy", meaning=f"in {first}", drawn=True),
        Quantity(f"Accuracy, {second}", "second_accuracy", meaning=f"in {second}", drawn=True),
        Quantity("Difference", "difference", meaning="the second minus the first"),
        Quantity("Trainings", lambda pair: _two(pair, "seeds"), meaning="of each"),
        Quantity("Tokens", lambda pair: _two(pair, "tokens"), meaning="per item, in each"),
        Quantity("Trainable", lambda pair: _two(pair, "trainable_parameters"), meaning="in each"),
    ]


def _two(pair: Pair, name: str) -> str:
    """Format a figure of both, only once if equal."""
    values = [getattr(found, name, None) for found in (pair.first, pair.second)]
    shown = ["-" if v is None else f"{len(v) if isinstance(v, list) else v:,}" for v in values]
    return shown[0] if shown[0] == shown[1] else " / ".join(shown)


def methods_table(found: SideBySide) -> Table:
    """Return a table of every method and reference row of both."""
    first, second = short_names(found)
    rows = [*found.methods, *found.references]
    return tabulate(("methods", "Methods", "/methods"), _columns(first, second), rows)


def short_names(found: SideBySide) -> tuple[str, str]:
    """Return the folders' last components, or full paths if these are equal."""
    one, two = (Path(side.folder) for side in found.sides)
    return (one.name, two.name) if one.name != two.name else (str(one), str(two))


def sentences(found: SideBySide) -> list[str]:
    """Describe the changes and the recommendations."""
    said = [
        f"{name} recommends {side.recommended or 'no method'}. {side.reason}"
        for name, side in zip(short_names(found), found.sides, strict=True)
    ]
    said.append(
        f"Changed: {'; '.join(found.changed)}." if found.changed else "The settings are the same."
    )
    if found.data:
        said.append(f"Other data: {', '.join(found.data)}. What was asked may not be the same.")
    found_apart = [
        pair.name
        for pair in found.methods
        if pair.difference and not pair.difference.low <= 0 <= pair.difference.high
    ]
    compared = sum(pair.difference is not None for pair in found.methods)
    if compared:
        which = ", ".join(found_apart) or "none"
        said.append(
            f"Of {compared} methods in both, the interval of the difference leaves out zero for: {which} (not "
            "corrected for their number)."
        )
    else:
        said.append("No method was judged by the same questions in both.")
    return said


def side_by_side_report(found: SideBySide) -> Report:
    """Build the page of two comparisons."""
    words = Words("summary", "", "/sides", sentences(found))
    settings = Table(
        "settings",
        "What differs",
        "/changed",
        headings=["what differs"],
        rows=text_rows([[line] for line in found.changed] or [["nothing"]]),
    )
    sections = [
        Section(
            "both", "Side by side", "Intervals are 95 %.", [words, methods_table(found), settings]
        )
    ]
    title = " and ".join(short_names(found))
    return Report("Two comparisons", title, sections, "modalign report", found)
