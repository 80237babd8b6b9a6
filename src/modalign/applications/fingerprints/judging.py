"""Judge fingerprints against length alone, on another domain, in an open set, under attacks, by false alarms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from sklearn.linear_model import LogisticRegression

from modalign.applications.fingerprints.data import ATTACKS, CUT, HUMAN, Text, cut, halves
from modalign.applications.fingerprints.fingerprinting import Floats, enrolled, left_out, trained
from modalign.applications.judged import Judged, ScoreRow, ScoreTable, judged, mean, separation
from modalign.errors import DataError
from modalign.numbers.classes import macro_f1
from modalign.numbers.estimate import Estimate, exactly
from modalign.numbers.ranking import auroc

SIZES = (1, 5, 10)  # texts of one source judged together
DRAWN = 300  # groups of texts drawn
RATE = 0.05  # share of human texts taken for a machine's, in the domain that was trained on
RULE, FAR, LENGTH = "n-grams", "n-grams, another domain", "length only"


def judge(texts: Sequence[Text], *, seed: int = 0, data: Sequence[str] = ()) -> Judged:
    """Evaluate on every domain, after training on one half of its documents, and on the other domains.

    Raises:
        DataError: fewer than two sources, or documents, in a domain.
    """
    tables, notes = list[ScoreTable](), list[str]()
    for domain in sorted({each.domain for each in texts}):
        own = [each for each in texts if each.domain == domain]
        inside, outside = halves(own, seed)
        sources = {each.source for each in inside}
        if len(sources) < 2 or sources != {each.source for each in outside}:
            raise DataError(
                f"domain {domain!r}: halves of its documents must hold the same two sources or more; give more "
                "documents of each"
            )
        others = [each for each in texts if each.domain != domain]
        tables.append(_which(domain, inside, outside, others, seed, notes))
        tables += _open_set(domain, inside, outside, seed)
        tables += _false_alarms(domain, inside, outside, others)
    far = any(row.name == FAR for table in tables for row in table.rows)
    reason = (
        f"{RULE} is what it ships. {'The row of another domain is what to expect elsewhere.' if far else ''} "
        f"{' '.join(notes) or 'All sources are told apart better than by chance.'}"
    )
    return judged("fingerprint", "Which model wrote it", data, seed, default=FAR if far else RULE,
                  reason=reason, tables=tables)  # fmt: skip


def _which(
    domain: str,
    inside: Sequence[Text],
    outside: Sequence[Text],
    others: Sequence[Text],
    seed: int,
    notes: list[str],
) -> ScoreTable:
    sources = sorted({each.source for each in outside})
    chance = exactly(1 / len(sources), len(outside), "score", "texts")
    rows = [ScoreRow(name="chance", kind="reference", figures={f"n = {n}": chance for n in SIZES})]
    for most, name in ((None, f"{LENGTH}, whole texts"), (CUT, LENGTH)):
        shares = _by_length(inside, outside, most)
        rows.append(
            ScoreRow(name=name, kind="reference", figures=_scores(shares, outside, sources, seed))
        )
    here, whole = trained(inside), trained(inside, None)
    asked = [each.text for each in outside]
    rows.append(_row("n-grams, whole texts", whole.log_shares(asked), outside, sources, seed))
    rows.append(_row(RULE, here.log_shares(asked), outside, sources, seed))
    away = [each for each in others if each.source in sources]
    if {each.source for each in away} == set(sources):
        rows.append(_row(FAR, trained(away).log_shares(asked), outside, sources, seed))
    for name, change in ATTACKS.items():
        changed = here.log_shares([change(cut(text)) for text in asked])
        rows.append(_row(f"{RULE}, {name}", changed, outside, sources, seed))
    judged_by = next((row for row in rows if row.name == FAR), rows[4])
    if judged_by.figures["n = 1"].low <= chance.value:
        notes.append(f"{domain}: not identifiable, no better than chance ({judged_by.name}).")
    title = f"Which of {len(sources)} sources: {domain}, macro-F1"
    return ScoreTable(
        title=title,
        rows=rows,
        notes=[
            f"Texts are cut to {CUT} characters with white space made alike, but for 'whole texts', where length "
            "and line breaks give sources away.",
            f"n texts of one source are judged together, {DRAWN} groups drawn; a text is in several groups, so "
            "their intervals are too narrow.",
        ],
    )


def _row(
    name: str, shares: Floats, outside: Sequence[Text], sources: Sequence[str], seed: int
) -> ScoreRow:
    return ScoreRow(name=name, kind="rule", figures=_scores(shares, outside, sources, seed))


def _by_length(inside: Sequence[Text], outside: Sequence[Text], most: int | None) -> Floats:
    def facts(texts: Sequence[Text]) -> Floats:
        whole = [cut(each.text, most) for each in texts]
        return np.array([[len(text), text.count("\n")] for text in whole]) / 100

    fit = LogisticRegression(max_iter=1000).fit(facts(inside), [each.source for each in inside])
    found: Floats = fit.predict_log_proba(facts(outside))
    return found


def _scores(
    shares: Floats, texts: Sequence[Text], sources: Sequence[str], seed: int
) -> dict[str, Estimate]:
    """Return macro-F1 of single texts and of groups of texts of one source."""
    gold = np.array([sources.index(each.source) for each in texts])
    documents = [each.document for each in texts]
    figures = {
        "n = 1": macro_f1(
            shares.argmax(1), gold, len(sources), groups=documents, seed=seed, over="texts"
        )
    }
    rng = np.random.default_rng(seed)
    for size in SIZES[1:]:
        right = np.arange(DRAWN) % len(sources)
        groups = [rng.choice(np.flatnonzero(gold == own), size) for own in right]
        guessed = np.array([shares[group].mean(0).argmax() for group in groups])
        figures[f"n = {size}"] = macro_f1(
            guessed, right, len(sources), seed=seed, over="groups of texts"
        )
    return figures


def _open_set(
    domain: str, inside: Sequence[Text], outside: Sequence[Text], seed: int
) -> list[ScoreTable]:
    known, unknown = left_out(inside, outside)
    if not len(unknown):
        return []
    found = separation(f"None of these: {domain}, each source unknown in turn",
                       {RULE: {"best log-probability": (known, unknown)}}, seed=seed)  # fmt: skip
    most = min(Counter(each.source for each in inside).values())
    for few in (few for few in (5, 20) if few <= most):  # a row says how many texts it had
        figures = {"found again": mean(enrolled(inside, outside, few), over="texts")}
        found.rows.append(ScoreRow(name=f"enrolled from {few} texts", kind="rule", figures=figures))
    chance = 1 / len({each.source for each in inside})
    found.rows[0].figures["found again"] = exactly(chance, len(outside), over="texts")
    found.notes.append(
        "A new source is enrolled by the mean of its texts; the nearest mean is guessed."
    )
    return [found]


def _false_alarms(
    domain: str, inside: Sequence[Text], outside: Sequence[Text], others: Sequence[Text]
) -> list[ScoreTable]:
    """Tell human from machine texts, with the threshold set on the training domain and tried on this one."""
    rows = []
    for name, train in ((RULE, inside), (FAR, others)):
        two = [each if each.source == HUMAN else replace(each, source="machine") for each in train]
        if {each.source for each in two} != {HUMAN, "machine"}:
            continue
        first, second = halves(two, 1)
        made = trained(first, balanced=True)
        machine = made.sources.index("machine")
        scores = [made.log_shares([e.text for e in each])[:, machine] for each in (second, outside)]
        human = [np.array([e.source == HUMAN for e in each]) for each in (second, outside)]
        limit = np.quantile(scores[0][human[0]], 1 - RATE)
        figures = {
            "human taken for machine": mean(scores[1][human[1]] > limit, over="texts"),
            "machine found": mean(scores[1][~human[1]] > limit, over="texts"),
            "AUROC": auroc(scores[1][~human[1]], scores[1][human[1]]),
        }
        rows.append(ScoreRow(name=name, kind="rule", figures=figures))
    if not rows:
        return []
    note = f"The threshold takes {RATE:.0%} of the human texts it was set on for a machine's."
    return [ScoreTable(title=f"Human or machine: {domain}", rows=rows, notes=[note])]
