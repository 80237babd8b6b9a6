"""Judge extraction on documents with questions: retrieval, numbers within a tolerance, quotes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modalign.applications.documents.extracting import Value, by_headers, by_model, cells_of, plain
from modalign.applications.documents.reading import Document
from modalign.applications.judged import Judged, ScoreRow, ScoreTable, decided, judged, mean
from modalign.data.quantities import Quantity, decimal_of, parse_quantity
from modalign.errors import DataError
from modalign.index.lexical import Lexical
from modalign.numbers.estimate import Estimate, exactly
from modalign.numbers.ranking import among_first

TOLERANCES = (0.0, 0.01, 0.05)
RULE = "header match"
KS = (1, 3, 5)


def judge(
    documents: Sequence[Document], *, opened: tuple[Any, Any] | None = None, limit: int = 200,
    seed: int = 0, data: Sequence[str] = (),
) -> Judged:  # fmt: skip
    """Evaluate on documents whose rows hold ``questions`` with ``answer``, as TAT-QA's and WikiTables' do.

    Raises:
        DataError: no question has one number, or a paragraph, as its answer.
    """
    asked = [
        (d, str(q.get("question")), g)
        for d in documents
        for q in _questions(d)
        if (g := _gold(d, q))
    ]
    tables = _retrieval(documents, seed)
    if not asked and not tables:
        raise DataError(
            "no document has questions whose answer is one number or stands in a marked paragraph"
        )
    if not asked:
        return judged("documents", "Values from documents", data, seed, default=RULE, tables=tables,
                      reason=f"{RULE} is the default: no question asks for a number.")  # fmt: skip
    groups = [d.name for d, _, _ in asked]
    found = {RULE: [by_headers(d, text) for d, text, _ in asked]}
    gold = [g for _, _, g in asked]
    chance = {f"RETA {t:.0%}": exactly(float(np.mean([_by_chance(d, g, t) for d, _, g in asked])), len(asked))
              for t in TOLERANCES}  # fmt: skip
    rows = [ScoreRow(name="a random numeric cell", kind="reference", figures=chance)]
    notes = ["RETA t: the number is within t of the right one, sign included; no answer is wrong."]
    chosen = np.arange(len(asked))
    if opened is not None:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(asked))[:limit])
        answers = [by_model(asked[at][0], [asked[at][1]], opened) for at in chosen]
        found["a model"] = [values[0] if values else None for values, _ in answers]
        dropped = sum(missing for _, missing in answers)
        notes.append(
            f"{dropped} of {len(chosen)} of the model's answers had no quote and were dropped."
        )
    right = {}
    for name, values in found.items():
        own = range(len(asked)) if name == RULE else chosen
        whole = [gold[at] for at in own], [groups[at] for at in own]
        kind = "rule" if name == RULE else "model"
        rows.append(ScoreRow(name=name, kind=kind, figures=_reta(values, *whole, seed)))
        given = [values[at] for at in chosen] if name == RULE else values
        right[name] = [_near(v, gold[at], 0.01) for v, at in zip(given, chosen, strict=True)]
    tables.insert(0, ScoreTable(title="Numbers from tables", rows=rows, notes=notes))
    default, reason, differences = decided(RULE, right, [groups[at] for at in chosen], seed)
    return judged("documents", "Values from documents", data, seed, default=default, reason=reason,
                  tables=tables, differences=differences)  # fmt: skip


def _questions(document: Document) -> list[dict[str, Any]]:
    given = document.extra.get("questions") or []
    return [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []


def _gold(document: Document, question: dict[str, Any]) -> Quantity | None:
    """Return the number that answers a question about the table, if a single one does."""
    answer = question.get("answer")
    if (
        not isinstance(answer, list)
        or len(answer) != 1
        or question.get("answer_type", "span") != "span"
    ):
        return None
    if question.get("answer_from", "table") != "table":
        return None
    return parse_quantity(str(answer[0]), decimal_of(document.texts()))


def _near(found: Value | None, gold: Quantity, tolerance: float) -> float:
    if found is None or found.value is None:
        return 0.0
    return float(abs(found.value - gold.value) <= tolerance * abs(gold.value) + 1e-9)


def _by_chance(document: Document, gold: Quantity, tolerance: float) -> float:
    decimal = decimal_of(document.texts())
    cells = [cell[2].value for piece in document.pieces for cell in cells_of(piece.table, decimal)]
    if not cells:
        return 0.0
    return float(
        np.mean([abs(v - gold.value) <= tolerance * abs(gold.value) + 1e-9 for v in cells])
    )


def _reta(
    values: Sequence[Value | None], gold: Sequence[Quantity], groups: list[str], seed: int
) -> dict[str, Estimate]:
    pairs = list(zip(values, gold, strict=True))
    return {
        f"RETA {t:.0%}": mean([_near(v, g, t) for v, g in pairs], groups, seed, "questions")
        for t in TOLERANCES
    }


def _retrieval(documents: Sequence[Document], seed: int) -> list[ScoreTable]:
    """Rank the marked paragraph of a question about text among its document's pieces and among all."""
    texts, owners, asked = list[str](), list[int](), list[tuple[str, int, int]]()
    for number, document in enumerate(documents):
        first = len(texts)
        places: dict[str, int] = {}
        for piece in document.pieces:
            if piece.text:
                places[str(len(places) + 1)] = len(texts)
                texts.append(piece.text)
                continue
            head = piece.table[:2]
            texts += [
                " ".join(" ".join(row) for row in (*head, row)) for row in piece.table[2:]
            ] or [plain(piece)]
        owners += [number] * (len(texts) - first)
        for question in _questions(document):
            marked = question.get("rel_paragraphs") or []
            place = places.get(str(marked[0])) if len(marked) == 1 else None
            if question.get("answer_from") == "text" and place is not None:
                asked.append((str(question.get("question")), number, place))
    if not asked:
        return []
    scores = Lexical(texts, "words").scores([text for text, _, _ in asked])
    gold, of = [place for _, _, place in asked], np.array(owners)
    own = np.where(of[None] == np.array([n for _, n, _ in asked])[:, None], scores, -1.0)
    groups = [documents[n].name for _, n, _ in asked]
    rows = []
    for name, each in (("own document", own), ("all documents", scores)):
        count = (each >= 0).sum(1).mean()
        rows.append(ScoreRow(name=f"chance, {name}", kind="reference",
                             figures={f"@{k}": exactly(min(k / count, 1.0), len(asked)) for k in KS}))  # fmt: skip
        figures = {f"@{k}": mean(among_first(each, gold, k), groups, seed, "questions") for k in KS}
        rows.append(ScoreRow(name=f"TF-IDF, {name}", kind="rule", figures=figures))
    return [ScoreTable(title="The paragraph that answers a question about text", rows=rows)]
