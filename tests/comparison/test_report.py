"""The report files: complete, self-contained, escaped, accessible, the same twice."""

import html
import io
import json
import math
import re
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from fixture import METHODS, SKILLS, make_comparison
from rich.console import Console

from modalign.comparison import recommendation
from modalign.comparison.report import charts, report_of, view, write_report
from modalign.comparison.report.quantities import COSTS, QUALITY, RANKING, SERVING, YES_NO, places
from modalign.comparison.results import Comparison, Crossing, CurvePoint, Foretold, Plan
from modalign.comparison.table import comparison_table, hallucination_table
from modalign.numbers import words as fmt
from modalign.numbers.estimate import Estimate
from modalign.pages.figures import LEAST_SHARE
from modalign.pages.markdown import escape
from modalign.training.budget import Budget
from pages.browser import in_browser, opened, overhanging, violations


@pytest.fixture(scope="module")
def comparison():
    return make_comparison()


@pytest.fixture(scope="module")
def page(comparison):
    return html_of(comparison)


@pytest.fixture(scope="module")
def written(comparison, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "deep" / "er"
    write_report(comparison, out)
    return out


def html_of(comparison):
    return report_of(comparison).html()


def markdown_of(comparison):
    return report_of(comparison).markdown()


def empty():
    return make_comparison().model_copy(
        update={
            "methods": [],
            "recommendation": None,
            "references": [],
            "differences": [],
            "hallucination": None,
            "contradictions": [],
            "examples": [],
            "notes": [],
        }
    )


def test_three_files_and_no_leftovers(written):
    assert sorted(p.name for p in written.iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
        "report.schema.json",
    ]


def test_json_is_the_comparison(written, comparison):
    text = (written / "report.json").read_text()
    assert Comparison.model_validate_json(text) == comparison
    jsonschema.validate(json.loads(text), json.loads((written / "report.schema.json").read_text()))


def test_page_is_the_same_twice(page, comparison):
    assert html_of(comparison) == page


def without_scripts(page):
    """The page without the library and the figures' specifications."""
    return re.sub(r"<script.*?</script>", "", page, flags=re.S)


def test_page_asks_the_network_for_nothing(page):
    assert len(page.encode()) < 8_000_000
    bare = without_scripts(page)
    assert not re.search(r"""(src|href|action|poster|data)\s*=\s*["']?(https?:)?//""", bare, re.I)
    assert not re.search(r"@import|url\(|<link|<iframe|<object|<base|\son\w+=", bare, re.I)
    assert "default-src 'none'" in page


def test_untrusted_text_is_escaped(comparison):
    bad = '"><img src=x onerror=alert(1)>'
    data = json.loads(comparison.model_dump_json().replace("c_abstractor", "BAD"))
    text = json.dumps(data).replace("BAD", bad.replace('"', '\\"'))
    broken = Comparison.model_validate_json(text)
    rendered = html_of(broken)
    assert bad not in rendered
    assert "<img src=x" not in rendered
    assert "<img" not in markdown_of(broken).replace("\\", "")
    assert "<script>alert" not in markdown_of(comparison)
    assert "<script>alert" not in rendered


class _Outline(HTMLParser):
    """Collects what accessibility depends on."""

    def __init__(self):
        super().__init__()
        self.levels, self.ids, self.problems, self.links, self.stack = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if re.fullmatch(r"h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag == "th" and "scope" not in attrs:
            self.problems.append("th without scope")
        if tag == "img" and not attrs.get("alt"):
            self.problems.append("img without alt")
        if tag == "html" and not attrs.get("lang"):
            self.problems.append("no lang")
        if tag == "svg" and not (attrs.get("aria-label") or attrs.get("aria-hidden") == "true"):
            self.problems.append("svg without a description")
        if tag == "a":
            self.links.append(attrs["href"])
        if tag not in ("meta", "img", "br", "link", "input"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        if not self.stack or self.stack.pop() != tag:
            self.problems.append(f"badly nested {tag}")


def test_page_is_accessible(page):
    outline = _Outline()
    outline.feed(page)
    assert outline.problems == []
    assert outline.stack == []
    assert outline.levels[0] == 1
    assert all(b - a <= 1 for a, b in zip(outline.levels, outline.levels[1:], strict=False))
    assert len(outline.ids) == len(set(outline.ids))
    assert {link.removeprefix("#") for link in outline.links} <= set(outline.ids)


def _luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one, two):
    light, dark = sorted((_luminance(one), _luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_text_has_contrast(page, theme):
    block = re.findall(r":root \{(.*?)\}", page, re.S)[theme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for ground in ("page", "surface", "sunken", "accent-soft"):
        for ink in ("ink", "muted"):
            assert _contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for ink in ("accent", "right", "wrong", "worse-ink"):
        assert _contrast(colours[ink], colours["surface"]) >= 4.5, ink
    for kind in ("better", "worse"):
        assert _contrast(colours[f"{kind}-ink"], colours[kind]) >= 4.5
    for series in range(8):
        assert _contrast(colours[f"s{series}"], colours["surface"]) >= 3, series


def test_everything_is_in_both(page, comparison):
    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", without_scripts(page))))
    md = markdown_of(comparison)
    r = comparison.recommendation
    for name, *_ in METHODS:
        assert name in text
        assert escape(name) in md
    for word in ("code perplexity", "dead-code rate", "41.700", "0.250"):
        assert word in text
    assert "| mlp | 41.700 | 0.250 |" in md
    for word in (*SKILLS, "chance", "majority answer", "text only", "loss was not finite"):
        assert word in text
        assert word in md
    assert view.confidence_words(r) in text
    assert r.reason in text
    for example in comparison.examples:
        assert example.question in text
        assert escape(example.question) in md
    for value in (comparison.setting.command, *comparison.setting.hashes.values()):
        assert value in text
        assert value in md
    assert "suspect learning rate" in text
    assert "no difference found" in text


def test_what_serves_a_method_is_in_every_form(page, comparison):
    """Rung and servers of each method that finished: beside its row, and explained."""
    costs = markdown_of(comparison).partition("### All costs")[2]
    for method in (m for m in comparison.methods if m.status == "ok"):
        row = next(line for line in costs.splitlines() if f"| {escape(method.name)} |" in line)
        assert row.rstrip(" |").endswith(f"{method.serving}: {', '.join(method.served_by)}")
        assert f"{method.serving} <small>{', '.join(method.served_by)}</small>" in page
    assert f"* **Serving**: {escape(SERVING.meaning)}." in costs
    assert html.escape(SERVING.meaning) in page


def test_every_reported_figure_is_in_every_form(page, comparison):
    """A quantity is declared once; its name and its value stand in the page and in Markdown."""
    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", without_scripts(page))))
    md = markdown_of(comparison)
    method = next(m for m in comparison.methods if m.name == "mlp")
    for quantity in (*RANKING, *QUALITY, *COSTS):
        assert quantity.name in text
        assert escape(quantity.name) in md
        value = quantity.text(method)
        assert value in text, quantity.name
        assert escape(value) in md, quantity.name


def test_ties_are_shown_as_ties(comparison):
    """Two methods that validation cannot tell apart, two methods of equal accuracy, and the rest."""
    values = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.7, "e": 0.5}
    some = [m for m in comparison.methods if m.status == "ok"][:5]
    methods = [
        m.model_copy(update={"name": name, "rank": rank, "val_accuracy": values[name]})
        for rank, (m, name) in enumerate(zip(some, values, strict=True), start=1)
    ]
    found = comparison.recommendation.model_copy(update={"indistinguishable": ["b", "e"]})
    made = comparison.model_copy(update={"methods": methods, "recommendation": found})
    assert places(made) == {"a": "1", "b": "=2", "c": "=3", "d": "=3", "e": "=2"}


def test_hallucination_is_in_every_form(page, comparison):
    md, console = (
        markdown_of(comparison),
        Console(width=100, record=True, file=io.StringIO()),
    )
    found = comparison.hallucination
    console.print(hallucination_table(comparison))
    told = console.export_text()
    assert max(map(len, told.splitlines())) <= 100
    assert "100 questions of yes and no (presence), 50 yes" in told
    assert html.escape(found.verdict) in page
    assert escape(found.verdict) in md
    assert "## Hallucination" in md
    section = page.partition('<h2 id="hallucination">')[2].partition("</section>")[0]
    measured = md.partition("## Hallucination")[2]
    for method in comparison.methods:
        shown = method.hallucination is not None
        assert (f">{method.name}</th>" in section) == shown
        assert (f"{method.name} " in told) == shown
        if shown:
            row = f"| {escape(method.name)} | " + " | ".join(
                q.text(method.hallucination) for q in YES_NO
            )
            assert row in measured
            assert f"<span>{fmt.value(method.hallucination.f1)}</span>" in section
    for name in ("always yes", "majority answer"):
        assert f">{name}</th>" in section
        assert f"*{name}*" in md
        assert name in told


def test_without_questions_of_yes_and_no_there_is_no_section(comparison):
    without = comparison.model_copy(update={"hallucination": None})
    assert 'id="hallucination"' not in html_of(without)
    assert "## Hallucination" not in markdown_of(without)
    assert hallucination_table(without) is None


def test_a_plan_is_in_both_forms(comparison):
    ends = {"low": 0.7, "high": 0.95, "n": 800}
    foretold = Foretold(
        method="mlp",
        accuracy=Estimate(value=0.87, **ends),
        best=0.41,
        rate=0.52,
        past=Estimate(value=0.38, low=0.1, high=1.3, n=800, unit="nats"),
        happened=0.253,
    )
    crossing = Crossing(leader="mlp", behind="ldp", budget=84_000, probability=0.52)
    told = "The curves cannot tell which method is best at 50,000 samples."
    plan = Plan(
        budget="50000samples", method=None, words=told, methods=[foretold], crossings=[crossing]
    )
    made = comparison.model_copy(update={"plan": plan})
    for text in (html_of(made), markdown_of(made)):
        for words in (told, "Foretold for 50,000 samples", "87.0 %", "41.0 %", "84 k", "52.0 %"):
            assert words in text
    assert "At a larger budget" not in markdown_of(comparison)


def test_empty_comparison_renders():
    bare = empty()
    assert "No method could be recommended" in html_of(bare)
    assert "No method could be recommended" in markdown_of(bare)
    assert comparison_table(bare).row_count == 0


def test_no_recommendation_is_said_first_with_what_to_change(comparison, monkeypatch):
    found = comparison.recommendation
    bars = {"chance": np.zeros(2)}
    lost = recommendation.against_bars(
        {name: np.zeros((1, 2)) for name in found.validation}, dict.fromkeys(found.validation, bars)
    )
    by_name = {method.name: method for method in comparison.methods}
    best = by_name[found.best].model_copy(update={"untrained_loss": 9.4})
    monkeypatch.setattr(
        "sys.argv",
        ["modalign", "compare", "my.yaml", "--budget=8samples", "--resume", "--out", "run"],
    )
    curve = [CurvePoint(samples=n, seconds=n, flops=n, val_loss=2.0 / n) for n in (1, 2)]
    falling = best.seeds[0].model_copy(update={"curve": curve})
    best = best.model_copy(update={"seeds": [falling]})
    setting = comparison.setting.model_copy(update={"llm_mode": "frozen", "budget": "8samples"})
    advice = recommendation.what_to_change(best, setting, Path("run"))
    assert "9.4 nats" in advice[0]
    assert advice[-1].endswith(
        ": modalign compare my.yaml --budget=32samples --out run-again --train-llm lora"
    )
    none = recommendation.checked(found, lost, advice)
    made = comparison.model_copy(update={"recommendation": none})
    page = without_scripts(html_of(made)).partition('id="ranking"')[0]
    page = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", page)))
    beginning = markdown_of(made).partition("## Ranking")[0]
    for sentence in (none.reason, *advice, f"the best so far, {none.best}; it is not"):
        assert sentence in page
        assert escape(sentence) in beginning
    assert "recommended" not in {cell.note for row in rows_of(made) for cell in row.cells}
    assert list(json.loads(report_of(made).json()))[:2] == ["schema_version", "recommendation"]
    assert "none" in str(comparison_table(made).title)


def rows_of(comparison):
    ranking = next(s for s in report_of(comparison).sections if s.id == "ranking")
    return ranking.parts[0].rows


def test_only_failures_render(comparison):
    failed = next(m for m in comparison.methods if m.status == "failed")
    bare = empty().model_copy(update={"methods": [failed]})
    assert "loss was not finite" in html_of(bare)
    assert "loss was not finite" in markdown_of(bare)


def test_markdown_tables_are_rectangular(comparison):
    for block in markdown_of(comparison).split("\n\n"):
        if block.startswith("|"):
            widths = {len(re.findall(r"(?<!\\)\|", row)) for row in block.strip().split("\n")}
            assert len(widths) == 1, block[:200]


def test_table_fits_a_hundred_columns(comparison):
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(comparison_table(comparison))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    for name, *_ in METHODS:
        assert name in text
    assert "Recommended:" in text
    assert "failed" in text


def test_pareto_front():
    points = [(1, 0.5), (2, 0.4), (2, 0.7), (3, 0.7), (4, 0.9), (1, 0.2)]
    assert charts.pareto_front(points) == [(1, 0.5), (2, 0.7), (4, 0.9)]


def test_a_loss_that_is_no_number_leaves_a_gap(comparison):
    method = comparison.methods[1]
    run = method.seeds[0]
    curve = [p.model_copy(update={"val_loss": float("nan")}) for p in run.curve[:3]] + run.curve[3:]
    broken = method.model_copy(update={"seeds": [run.model_copy(update={"curve": curve})]})
    figure = charts.curve_figure(comparison.model_copy(update={"methods": [broken]}))
    whole = charts.curve_figure(comparison.model_copy(update={"methods": [method]}))
    assert len(figure.charts[0].points) == len(whole.charts[0].points) - 3
    assert all(math.isfinite(point.value) for point in figure.charts[0].points)


def test_images_that_are_none_are_left_out(comparison):
    example = comparison.examples[0]
    assert view.image_data(example) == example.image_png_base64
    for bad in (None, "", "not base64!", b64encode(b"<svg onload=x>").decode(), "A" * 800_000):
        assert view.image_data(example.model_copy(update={"image_png_base64": bad})) is None


def test_right_and_wrong(comparison):
    example = comparison.examples[0].model_copy(
        update={"answers": {"a": " Red. ", "b": "blue", "c": ""}, "expected": "red", "correct": {}}
    )
    assert view.is_right(example, "a")
    assert not view.is_right(example, "b")
    groups = view.answer_groups(example, ["b", "a"])
    assert [(g.answer, g.right, g.methods) for g in groups] == [
        ("Red.", True, ["a"]),
        ("blue", False, ["b"]),
        ("(nothing)", False, ["c"]),
    ]


def test_the_matrix_is_antisymmetric(comparison):
    section = next(s for s in report_of(comparison).sections if s.id == "differences")
    rows = [row.cells[1:] for row in section.parts[0].rows]
    turned = {"better": "worse", "worse": "better", "same": "same"}
    for i, row in enumerate(rows):
        assert row[i].text == ""
        for j, cell in enumerate(row):
            if i != j:
                assert turned[cell.tone] == rows[j][i].tone


def test_methods_that_learn_nothing_are_drawn_near_zero(comparison):
    """All at 0 %: no axis reaches below 0 or up to 100 %."""
    nothing = Estimate(value=0.0, low=0.0, high=0.0, n=40)
    update = {"accuracy": 0.0, "accuracy_interval": nothing}
    methods = [m.model_copy(update=update) for m in comparison.methods if m.status == "ok"]
    made = comparison.model_copy(update={"methods": methods, "references": []})
    for figure in charts.cost_figures(made):
        marks = next(x for x in figure.charts[0].spec()["layer"] if x.get("name") == "points")
        assert marks["encoding"]["y"]["scale"]["domain"] == [0.0, LEAST_SHARE]


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 390])
def test_page_in_a_browser_without_a_network(written, width, scheme):
    """Nothing is cut, nothing is wrong, and the ranking's accuracy is seen without scrolling."""
    with opened(written / "report.html", width, color_scheme=scheme) as page:
        assert overhanging(page) == []
        assert violations(page) == []
        table = page.locator("#ranking-table")
        seen = table.locator("tbody tr").first.locator("td.drawn").bounding_box()
        assert seen["x"] + seen["width"] <= width
        if width == 1300:
            assert table.evaluate("t => t.parentElement.scrollWidth <= t.parentElement.clientWidth")


def test_every_field_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    schema = Comparison.model_json_schema()
    parts = {"Comparison": schema, **schema["$defs"]}
    for name, part in parts.items():
        assert f"`{name}`" in page, name
        for field in part["properties"]:
            assert f"`{field}`" in page, f"{name}.{field}"


@pytest.mark.parametrize(
    ("given", "words"),
    [("20000samples", "20,000 samples"), ("10m", "10 min"), ("3e14flops", "300 TFLOPs")],
)
def test_a_budget_is_written_for_people(given: str, words: str) -> None:
    assert Budget.parse(given).words() == words
