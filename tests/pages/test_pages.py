"""Reports: one source for page, Markdown, JSON and schema; figures that keys and screen readers reach."""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from modalign.numbers.estimate import Estimate
from modalign.pages.drawing import line_chart, row_chart
from modalign.pages.figures import LEAST_FACTOR, LEAST_SHARE, Axis, Chart, Point, Rule, Series
from modalign.pages.markdown import escape
from modalign.pages.parts import (
    Advice,
    Answer,
    Cell,
    Dial,
    Entries,
    Entry,
    Figure,
    Gallery,
    Item,
    Outcome,
    Quantity,
    Row,
    Section,
    Table,
    Tag,
    WhatIf,
    Words,
    tabulate,
)
from modalign.pages.report import Report
from pages.browser import in_browser, opened, overhanging, violations

BAD = '"><img src=x onerror=alert(1)></script><script>alert(2)</script>|`'


class Thing(BaseModel):
    name: str
    accuracy: Estimate | None
    later: Estimate
    cost: int


class Found(BaseModel):
    title: str
    things: list[Thing]


NAME = Quantity("Name", "name")
ACCURACY = Quantity("Accuracy", "accuracy", "share", "of the answers", drawn=True)
LATER = Quantity("Later", "later", "share")
COST = Quantity("Cost", "cost", "count")


def found(title: str = "Things") -> Found:
    made = [
        Thing(
            name=name,
            accuracy=Estimate(value=value, low=value - 0.1, high=value + 0.1, n=9)
            if value
            else None,
            later=Estimate(value=0.5, low=0.4, high=0.6, n=9),
            cost=cost,
        )
        for name, value, cost in (("one", 0.3, 1), ("two", 0.5, 2000), ("three", 0, 3_000_000))
    ]
    return Found(title=title, things=made)


def report(given: Found) -> Report:
    """A report with a part of every kind; each text is the title of what was found."""
    text, things = given.title, given.things
    bars = row_chart(text, ACCURACY, things, NAME, Axis("", "share"), rules=[Rule(0.25, text)])
    lines = line_chart(text, [ACCURACY, LATER], things, COST, Axis("", "share"), band=(1, 2000))
    numbers = tabulate(("same", f"{text} in numbers", "/things"), [NAME, ACCURACY], things)
    row = Row([Cell(text, text, hint=text, tone="right", mark=Series(text, 2))], "chosen")
    tag = Tag(text, 1, {"Method": "a"}, text)
    other = Tag("other", 2, {"Method": "b"})
    inside = Table("inside", "Inside", "/things", [text], [row])
    parts = [
        Words("words", text, "/title", [text]),
        Words("list", text, "/title", [text], "list"),
        Words("note", text, "/title", [text], "note"),
        Words("command", "Command", "/title", [text], "command"),
        Advice(
            "advice",
            text,
            "/things/0",
            text,
            text,
            [text],
            text,
            [(text, 0.7)],
            [(text, text, text)],
        ),
        tabulate(
            ("things", "All", "/things"), [NAME, ACCURACY, LATER, COST], things, sortable=True
        ),
        Figure("bars", "Bars", "/things", [bars], numbers),
        Figure("lines", "Lines", "/things", [lines]),
        Gallery("gallery", text, "/things", [Item(None, text, text, [Answer(text, True, text)])]),
        Entries(
            "entries",
            text,
            "/things",
            [
                Entry(text, text, text, {text: [tag]}, [text], [inside]),
                Entry("plain", "", "plain", {"group": [other]}),
            ],
            {"Method": ["a", "b"]},
        ),
        WhatIf(
            "what-if",
            text,
            "/things",
            (Dial(text, ["half", "all"], 1), Dial("price", ["none", text])),
            [[Outcome(f"{row}{column}", [text]) for column in "xy"] for row in "ab"],
        ),
    ]
    return Report(text, text, [Section("all", text, text, parts)], text, given)


def test_the_json_is_the_results_and_fits_its_schema() -> None:
    made = report(found())
    assert Found.model_validate_json(made.json()) == found()
    jsonschema.validate(json.loads(made.json()), json.loads(made.schema()))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"title": 3, "things": []}, json.loads(made.schema()))


def test_every_source_stands_in_the_json() -> None:
    made = report(found())
    values = json.loads(made.json())
    sources = re.findall(r'data-source="([^"]*)"', made.html())
    assert len(sources) > 8
    for source in sources:
        at: Any = values
        for step in source.split("/")[1:]:
            at = at[int(step)] if isinstance(at, list) else at[step]


def test_all_forms_are_written(tmp_path: Path) -> None:
    made = report(found())
    made.write(tmp_path / "deep", "own")
    texts = {path.name: path.read_text() for path in (tmp_path / "deep").iterdir()}
    forms = {
        "html": made.html(),
        "md": made.markdown(),
        "json": made.json(),
        "schema.json": made.schema(),
    }
    assert texts == {f"own.{suffix}": text for suffix, text in forms.items()}
    made.write_as(tmp_path / "alone" / "x.json")
    assert [path.name for path in (tmp_path / "alone").iterdir()] == ["x.json"]


def test_untrusted_text_stays_text() -> None:
    made = report(found(BAD))
    page, words = made.html(), made.markdown()
    assert "<img src=x" not in page
    assert "<script>alert" not in page
    prose = [line for line in words.splitlines() if not line.startswith("    ")]  # not the command
    assert "<img" not in "".join(prose).replace("\\", "")


def test_the_policy_knows_every_script() -> None:
    page = report(found()).html()
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1)
    hashes = [f"'sha256-{b64encode(sha256(s.encode()).digest()).decode()}'" for s in scripts]
    assert f"script-src {' '.join(hashes)};" in policy
    assert policy.startswith("default-src 'none'")
    assert "eval" not in policy
    assert not re.search(
        r'(src|href|action)="(?!#|data:)', re.sub(r"<script.*?</script>", "", page, flags=re.S)
    )
    assert len(page) < 2_000_000


def test_a_page_without_figures_is_small() -> None:
    plain = Report(
        "a", "b", [Section("s", "S", "", [Words("w", "", "/title", ["c"])])], "d", found()
    )
    assert len(plain.html()) < 40_000


def test_markdown_tables_are_rectangular() -> None:
    blocks = [b for b in report(found(BAD)).markdown().split("\n\n") if b.startswith("|")]
    assert len(blocks) == 4
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in block.strip().split("\n")}) == 1


def test_a_quantity_shows_numbers_intervals_and_gaps() -> None:
    rows = found().things
    assert [ACCURACY.text(row) for row in rows] == [
        "30.0 % (20.0 to 40.0)",
        "50.0 % (40.0 to 60.0)",
        "–",
    ]
    assert [COST.text(row) for row in rows] == ["1", "2 k", "3 M"]
    assert ACCURACY.scale(rows) == pytest.approx((0.2, 0.6))
    assert ACCURACY.cell(rows[0], (0.2, 0.6)).span == pytest.approx((0, 0.25, 0.5))
    unknown = Quantity("Gone", "accuracy.gone")
    table = tabulate(("t", "T", "/things"), [NAME, unknown, ACCURACY], rows)
    assert table.headings == ["Name", "Accuracy"]
    assert table.meanings == {"Accuracy": "of the answers"}


def test_markdown_escapes() -> None:
    assert escape("a|b\n<c>  *d*") == r"a\|b &lt;c&gt; \*d\*"


# ---------------------------------------------------------------- axes


def domain(axis: Axis, values: list[float], place: Axis | None = None) -> tuple[float, float]:
    """Of the axis of values."""
    points = [Point(float(n), value, series="s") for n, value in enumerate(values)]
    chart = Chart("lines", "t", "d", points, [Series("s", 0)], place or Axis(""), axis)
    marks = next(layer for layer in chart.spec()["layer"] if layer.get("name") == "points")
    low, high = marks["encoding"]["y"]["scale"]["domain"]
    return low, high


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_shares_stay_between_0_and_1_and_never_fill_less_than_a_tenth(values: list[float]) -> None:
    low, high = domain(Axis("", "share"), values)
    assert 0 <= low <= min(values) + 1e-9
    assert max(values) - 1e-9 <= high <= 1
    assert high - low >= LEAST_SHARE - 1e-9


@given(st.lists(st.floats(0.01, 1e12), min_size=1, max_size=8))
def test_close_costs_look_close(values: list[float]) -> None:
    low, high = domain(Axis("", "flops", log=True), values)
    assert low < min(values)
    assert max(values) < high
    assert high / low >= LEAST_FACTOR * (1 - 1e-9)


def test_zero_has_a_place_of_its_own_on_a_logarithmic_axis() -> None:
    points = [Point(at, 0.5, series="s", label=str(at)) for at in (0.0, 100.0, 1e6)]
    chart = Chart(
        "scatter", "t", "d", points, [Series("s", 0)], Axis("", "count", log=True), Axis("")
    )
    marks = next(layer for layer in chart.spec()["layer"] if layer.get("name") == "points")
    places = [row["at"] for row in marks["data"]["values"]]
    axis = marks["encoding"]["x"]["axis"]
    assert 0 < places[0] < places[1] == 100
    assert places[0] == axis["values"][0]
    assert {1e3, 1e4, 1e5, 1e6} <= set(axis["values"])
    assert f"datum.value <= {places[0] * 1.0001} ? '0'" in axis["labelExpr"]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6))
def test_every_value_is_inside_a_linear_axis(values: list[float]) -> None:
    low, high = domain(Axis("", "", bounds=(0.0, None)), values)
    assert low <= min([0.0, *values])
    assert high >= max(values)
    assert low < high
    assert math.isfinite(low)


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    report(found()).write(folder)
    return folder / "report.html"


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 390])
def test_nothing_is_cut_and_nothing_serious_is_wrong(
    page_file: Path, width: int, scheme: Any
) -> None:
    with opened(page_file, width, color_scheme=scheme) as page:
        assert overhanging(page) == []
        assert violations(page) == []


@in_browser
def test_keys_walk_zoom_and_hide(page_file: Path) -> None:
    with opened(page_file) as page:
        chart = page.locator("#lines .chart")
        chart.focus()
        page.keyboard.press("ArrowRight")
        assert (
            page.locator("#lines .said").inner_text() == "Accuracy, Cost 1: 30.0 % (20.0 to 40.0)"
        )
        page.keyboard.press("ArrowLeft")
        assert page.locator("#lines .said").inner_text() == "Later, Cost 3 M: 50.0 % (40.0 to 60.0)"
        labels = page.locator("#lines .mark-text.role-axis-label text")
        ticks = set(labels.all_text_contents())
        page.keyboard.press("+")
        page.wait_for_timeout(100)
        assert set(labels.all_text_contents()) != ticks
        page.keyboard.press("0")
        page.wait_for_timeout(100)
        assert set(labels.all_text_contents()) == ticks
        points = page.locator("#lines [aria-roledescription='point']")
        assert points.count() == 5
        page.locator("#lines").get_by_role("checkbox", name="Later").press("Space")
        page.wait_for_timeout(100)
        assert points.count() == 2


@in_browser
def test_headings_sort_and_entries_are_found(page_file: Path) -> None:
    with opened(page_file) as page:
        names = page.locator("#things tbody th")
        page.get_by_role("button", name="Cost").click()
        assert names.all_inner_texts() == ["three", "two", "one"]
        page.get_by_role("button", name="Accuracy").click()
        assert names.all_inner_texts() == ["two", "one", "three"]
        shown = page.locator("#entries > details:visible")
        page.get_by_label("Method").select_option("b")
        assert shown.all_inner_texts()[0].startswith("plain")
        page.get_by_label("Method").select_option("")
        page.get_by_label("Search").fill("PLAIN")
        assert shown.count() == 1
        assert page.locator("#entries [role=status]").inner_text() == "1 of 2"


@in_browser
def test_dials_show_the_outcome_at_their_positions(page_file: Path) -> None:
    with opened(page_file) as page:
        name = page.locator("#what-if [role=status] .name")
        assert name.inner_text() == "bx"
        for key, expected in (("ArrowLeft", "ax"), ("ArrowRight", "bx")):
            page.get_by_role("slider").first.press(key)
            assert name.inner_text() == expected
        page.get_by_role("slider", name="price").press("End")
        assert name.inner_text() == "by"
        assert page.locator("#what-if output").all_inner_texts()[0] == "all"
