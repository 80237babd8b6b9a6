"""Documents: every value has its quote and place, and what the document does not say is dropped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from modalign.applications.documents import extracting
from modalign.applications.documents.extracting import by_headers, by_model, grounded
from modalign.applications.documents.judging import judge
from modalign.applications.documents.reading import Document, read_documents
from modalign.data.pieces import Piece, pieces_of_html

Cli = Callable[..., tuple[int, str, str]]
SHARED = tiny.SHARED / "data" / "tatqa" / "tatqa_dataset_dev.json"
TABLE = [
    ["(in millions)", "2019", "2018"],
    ["Fixed price", "$ 1,452.4", "$ 1,146.2"],
    ["Total sales", "(7.5)", "12 %"],
]
ROW = {
    "table": TABLE,
    "paragraphs": ["Sales rose strongly.", "The café\u0301 in 北京 sold 12 teas."],
    "questions": [
        {"question": "What were total sales in 2019?", "answer": ["(7.5)"], "answer_from": "table"},
        {"question": "What of fixed price in 2018?", "answer": ["$ 1,146.2"], "answer_from": "table"},
        {"question": "How did sales do?", "answer": ["rose"], "answer_from": "text", "rel_paragraphs": ["1"]},
    ],
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tiny.write_jsonl(tmp_path / "reports.jsonl", [ROW])


def test_a_value_has_number_unit_scale_and_place(cli: Cli, file: Path) -> None:
    arguments = ("--field", "total sales 2019", "--field", "fixed price 2018", "--field", "zebra")
    code, out, err = cli("app", "documents", "run", file, *arguments, "--json")
    assert code == 0, err
    found = json.loads(out)
    first, second = found["values"]
    assert (first["quote"], first["value"], first["scale"]) == ("(7.5)", -7.5, "million")
    assert (first["row"], first["column"], first["piece"]) == (2, 1, 0)
    assert (second["quote"], second["value"], second["unit"]) == ("$ 1,146.2", 1146.2, "USD")
    assert found["without a quote"] == 1
    _, out, _ = cli("app", "documents", "run", file, *arguments)
    assert "'(7.5)' = -7.5 million (piece 0, row 2, column 1)" in out


def test_offsets_are_code_points_of_the_source() -> None:
    text = str(ROW["paragraphs"][1])
    document = Document("d", (Piece(0, text),))
    for quote in ("北京", "café\u0301", "12", "teas."):
        found = grounded(document, document.pieces, "f", quote)
        assert found is not None
        assert text[found.start : found.end] == quote == found.quote
    assert grounded(document, document.pieces, "f", "Paris") is None
    assert grounded(document, document.pieces, "f", " ") is None


def test_values_of_the_examples_never_appear(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """200 documents; the model repeats the planted value, or finds the right one."""
    (document,) = read_documents(file)
    asked: list[str] = []

    def repeats(_: Any, __: Any, records: list, ___: int) -> list[str]:
        asked.extend(record.messages[0].text for record in records)
        return ["8,888.8", "12 teas"]

    monkeypatch.setattr(extracting, "answer_records", repeats)
    kept, dropped = [], 0
    for _ in range(200):
        values, missing = by_model(document, ["total", "sold"], (None, None), "Total: 8,888.8\n\n")
        kept, dropped = kept + values, dropped + missing
    assert all("8,888.8" in text for text in asked)
    assert (len(kept), dropped) == (200, 200)
    assert {value.quote for value in kept} == {"12 teas"}


def test_merged_cells_stand_in_every_place_they_cover(tmp_path: Path) -> None:
    page = """<p>Report</p><table><tr><th rowspan=2>Item</th><th colspan=2>Sales</th></tr>
    <tr><th>2019</th><th>2018</th></tr><tr><td>Tea</td><td>1.234,5</td><td>(2,0)</td></tr></table><p>End"""
    first, table, last = pieces_of_html(page)
    assert (first.text, last.text) == ("Report", "End")
    assert table.table == (
        ("Item", "Sales", "Sales"), ("Item", "2019", "2018"), ("Tea", "1.234,5", "(2,0)")
    )  # fmt: skip
    file = tmp_path / "report.html"
    file.write_text(page)
    (document,) = read_documents(file)
    found = by_headers(document, "sales of tea in 2019")
    assert found is not None
    assert (found.value, found.row, found.column) == (1234.5, 2, 1)


def test_an_evaluation_has_chance_and_a_default(
    cli: Cli, file: Path, llm_folder: Callable[..., Path]
) -> None:
    code, out, err = cli("app", "documents", "eval", file, "--json")
    assert code == 0, err
    found = json.loads(out)
    rows = {row["name"]: row["figures"] for table in found["tables"] for row in table["rows"]}
    assert rows["header match"]["RETA 0%"]["value"] == 1
    assert rows["a random numeric cell"]["RETA 0%"]["value"] == pytest.approx(0.25)
    assert rows["TF-IDF, own document"]["@1"]["value"] == 1
    (document,) = read_documents(file)
    assert judge([document]).default == "header match"
    code, out, err = cli("app", "documents", "eval", file, "--llm", llm_folder("mistral"))
    assert (code, "positions" in err) == (3, True) or "had no quote and were dropped" in out


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data/tatqa")
def test_the_rule_has_the_published_figures() -> None:
    found = judge(read_documents(SHARED))
    rows = {row.name: row.figures for table in found.tables for row in table.rows}
    assert rows["header match"]["RETA 1%"].value == pytest.approx(0.53, abs=0.03)
    assert rows["TF-IDF, own document"]["@3"].value == pytest.approx(0.93, abs=0.01)
    assert rows["TF-IDF, all documents"]["@3"].value >= 0.70


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"table": 3}', "table is no list of rows"),
        ("a.jsonl", "{}", "no table and no paragraphs"),
        ("a.html", "<p> </p>", "has no text"),
        ("a.txt", "\n\n", "has no text"),
        ("a.html", b"\xff\xfe\x00", "cannot be read as text"),
        ("none.txt", None, "cannot be read"),
    ],
)
def test_documents_without_content_are_refused(
    name: str, content: Any, words: str, cli: Cli, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    code, _, err = cli("app", "documents", "run", tmp_path / name, "--field", "total")
    assert code == 3, err
    assert words in err
    assert cli("app", "documents", "run", tmp_path / name)[0] == 2


def test_a_pdf_gives_the_numbers_of_its_table(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("pdfplumber")
    platypus = pytest.importorskip("reportlab.platypus")
    file, grid = tmp_path / "report.pdf", [("GRID", (0, 0), (-1, -1), 1, "black")]
    table = platypus.Table(TABLE, style=platypus.TableStyle(grid))
    platypus.SimpleDocTemplate(str(file)).build([table])
    code, out, err = cli("app", "documents", "run", file, "--field", "total sales 2019", "--json")
    assert code == 0, err
    (value,) = json.loads(out)["values"]
    assert (value["value"], value["quote"], value["page"]) == (-7.5, "(7.5)", 1)


def test_scanned_and_encrypted_pdfs_are_refused(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("pdfplumber")
    canvas = pytest.importorskip("reportlab.pdfgen.canvas")
    for name, options, words in (
        ("scan", {}, "has no text; scanned pages need OCR"),
        ("secret", {"encrypt": "word"}, "encrypted"),
    ):
        page = canvas.Canvas(str(tmp_path / f"{name}.pdf"), **options)
        page.rect(9, 9, 9, 9)
        page.save()
        code, _, err = cli("app", "documents", "run", tmp_path / f"{name}.pdf", "--field", "total")
        assert (code, words in err) == (3, True), err
    (tmp_path / "no.pdf").write_bytes(b"no pdf")
    assert cli("app", "documents", "run", tmp_path / "no.pdf", "--field", "total")[0] == 3
