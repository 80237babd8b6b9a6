"""The report files: complete, self-contained, escaped, accessible, the same twice."""

import hashlib
import html
import io
import json
import re
import shutil
import subprocess
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest
from fixture import METHODS, SKILLS, make_comparison
from rich.console import Console

from modalign.comparison import report
from modalign.comparison.report import markdown, plots, view
from modalign.comparison.report import schema as schema_module
from modalign.comparison.results import Comparison
from modalign.comparison.table import comparison_table, hallucination_table
from modalign.pages import svg
from modalign.pages.markdown import escape

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)


@pytest.fixture(scope="module")
def comparison():
    return make_comparison()


@pytest.fixture(scope="module")
def page(comparison):
    return report.render_html(comparison)


@pytest.fixture(scope="module")
def written(comparison, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "deep" / "er"
    report.write_report(comparison, out)
    return out


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
    assert sorted(p.name for p in written.iterdir()) == ["report.html", "report.json", "report.md"]


def test_json_is_the_comparison(written, comparison):
    text = (written / "report.json").read_text()
    assert Comparison.model_validate_json(text) == comparison
    jsonschema.validate(json.loads(text), json.loads(report.schema_text()))


def test_shipped_schema_is_current():
    shipped = json.loads(schema_module.PATH.read_text())
    assert shipped == Comparison.model_json_schema(), "call report.schema.write_schema()"


def test_page_is_the_same_twice(page, comparison):
    assert report.render_html(comparison) == page


def test_page_asks_the_network_for_nothing(page):
    assert len(page.encode()) < 8_000_000
    bare = page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"""(src|href|action|poster|data)\s*=\s*["']?(https?:)?//""", bare, re.I)
    assert not re.search(r"@import|url\(|<link|<iframe|<object|<base", bare, re.I)
    assert "default-src 'none'" in page


def test_the_only_script_is_the_one_the_policy_allows(page):
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, re.S)
    assert len(scripts) == 1
    digest = b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "unsafe-inline'; script" in page
    assert not re.search(r"\son\w+=", re.sub(r"<script.*?</script>", "", page, flags=re.S))


def test_untrusted_text_is_escaped(comparison):
    bad = '"><img src=x onerror=alert(1)>'
    data = json.loads(comparison.model_dump_json().replace("c_abstractor", "BAD"))
    text = json.dumps(data).replace("BAD", bad.replace('"', '\\"'))
    broken = Comparison.model_validate_json(text)
    rendered = report.render_html(broken)
    assert bad not in rendered
    assert "<img src=x" not in rendered
    assert "<img" not in report.render_markdown(broken).replace("\\", "")
    assert "<script>alert" not in report.render_markdown(comparison)
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
    for family in (*view.FAMILIES, "reference"):
        assert _contrast(colours[family], colours["surface"]) >= 3, family


def test_everything_is_in_both(page, comparison):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page))
    md = report.render_markdown(comparison)
    r = comparison.recommendation
    for name, *_ in METHODS:
        assert name in text
        assert markdown.esc(name) in md
    assert "code perplexity 41.700; dead-code rate 0.250" in text
    assert "| mlp | code perplexity 41.700; dead-code rate 0.250 |" in md
    for word in (*SKILLS, "chance", "majority answer", "text only", "loss was not finite"):
        assert word in text
        assert word in md
    assert view.confidence_words(r) in text
    assert r.reason in text
    for example in comparison.examples:
        assert example.question in text
        assert markdown.esc(example.question) in md
    for value in (comparison.setting.command, *comparison.setting.hashes.values()):
        assert value in text
        assert value in md
    assert "suspect learning rate" in text
    assert "no difference found" in text


def test_what_serves_a_method_is_in_every_form(page, comparison):
    """Rung and servers of each method: beside its row, and explained."""
    text = markdown.render(comparison)
    for method in comparison.methods:
        row = next(line for line in text.splitlines() if f"| {escape(method.name)} |" in line)
        assert row.rstrip(" |").endswith(f"{method.serving}: {', '.join(method.served_by)}")
        assert f"{method.serving} <small>{', '.join(method.served_by)}</small>" in page
    assert f"* **Serving**: {view.SERVING}." in text
    assert view.SERVING in page


def test_hallucination_is_in_every_form(page, comparison):
    md, console = (
        report.render_markdown(comparison),
        Console(width=100, record=True, file=io.StringIO()),
    )
    found = comparison.hallucination
    console.print(hallucination_table(comparison))
    told = console.export_text()
    assert max(map(len, told.splitlines())) <= 100
    assert "100 questions of yes and no (presence), 50 yes" in told
    assert html.escape(found.verdict) in page
    assert markdown.esc(found.verdict) in md
    assert "## Hallucination" in md
    assert '<h2 id="hallucination">' in page
    section = page.partition('<h2 id="hallucination">')[2].partition("</section>")[0]
    for method in comparison.methods:
        shown = method.hallucination is not None
        assert (f'<th scope="row">{method.name}</th>' in section) == shown
        assert (f"{method.name} " in told) == shown
        if shown:
            assert report.fmt.interval(method.hallucination.f1) in section
            assert report.fmt.interval(method.hallucination.precision) in md
    for name in ("always yes", "majority answer"):
        assert f"<em>{name}</em>" in section
        assert f"*{name}*" in md
        assert name in told


def test_without_questions_of_yes_and_no_there_is_no_section(comparison):
    without = comparison.model_copy(update={"hallucination": None})
    assert 'id="hallucination"' not in report.render_html(without)
    assert "## Hallucination" not in report.render_markdown(without)
    assert hallucination_table(without) is None


def test_empty_comparison_renders():
    bare = empty()
    assert "No method could be recommended" in report.render_html(bare)
    assert "No method could be recommended" in report.render_markdown(bare)
    assert comparison_table(bare).row_count == 0


def test_only_failures_render(comparison):
    failed = next(m for m in comparison.methods if m.status == "failed")
    bare = empty().model_copy(update={"methods": [failed]})
    assert "loss was not finite" in report.render_html(bare)
    assert "loss was not finite" in report.render_markdown(bare)


def test_markdown_tables_are_rectangular(comparison):
    for block in report.render_markdown(comparison).split("\n\n"):
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
    assert plots.pareto_front(points) == [(1, 0.5), (2, 0.7), (4, 0.9)]


def test_labels_do_not_overlap():
    points = [(500.0, 200.0 + 4 * i) for i in range(12)] + [(510.0, 210.0), (300.0, 100.0)]
    texts = [f"method_number_{i}" for i in range(len(points))]
    labels = svg.place_labels(points, texts, (0, 0, 1000, 400))
    boxes = []
    for label, text in zip(labels, texts, strict=True):
        width = len(text) * svg.CHARACTER
        left = label.x if label.anchor == "start" else label.x - width
        boxes.append((left, label.y - svg.LINE / 2, left + width, label.y + svg.LINE / 2))
    for i, one in enumerate(boxes):
        assert not any(svg._overlap(one, other) for other in boxes[:i])


def test_scales():
    log = svg.log_scale([0.0, 10.0, 1000.0], 0.0, 100.0)
    assert log(0) < log(10) < log(1000) <= 100
    assert log.ticks() == [10, 100, 1000]
    flat = svg.log_scale([5.0], 0.0, 100.0)
    assert flat(5.0) == pytest.approx(50)
    assert svg.linear_scale([0.0, 1.0], 0, 100, pad=0).ticks(5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_a_loss_that_is_no_number_leaves_a_gap(comparison):
    method = comparison.methods[1]
    run = method.seeds[0]
    curve = [p.model_copy(update={"val_loss": float("nan")}) for p in run.curve[:3]] + run.curve[3:]
    broken = method.model_copy(update={"seeds": [run.model_copy(update={"curve": curve})]})
    drawing = plots.learning_curves(comparison.model_copy(update={"methods": [broken]}))
    assert "nan" not in drawing


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


def test_matrix_is_antisymmetric(comparison):
    rows = view.difference_matrix(comparison)
    for i, (_, row) in enumerate(rows):
        assert row[i].kind == "self"
        for j, (_, other) in enumerate(rows):
            turned = {"better": "worse", "worse": "better"}
            assert turned.get(row[j].kind, row[j].kind) == other[i].kind


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: page not opened")
def test_page_opens_in_a_browser_without_a_network(written, tmp_path):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path}"]
    address = (written / "report.html").as_uri()
    done = subprocess.run(
        [CHROMIUM, *flags, *offline, "--dump-dom", "--enable-logging=stderr", address],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "How sure" in done.stdout
    assert "Against the literature" in done.stdout
    assert done.stdout.count("<svg") > 10
    assert "Content Security Policy" not in done.stderr
    assert "Uncaught" not in done.stderr


def test_every_field_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    schema = Comparison.model_json_schema()
    parts = {"Comparison": schema, **schema["$defs"]}
    for name, part in parts.items():
        assert f"`{name}`" in page, name
        for field in part["properties"]:
            assert f"`{field}`" in page, f"{name}.{field}"
