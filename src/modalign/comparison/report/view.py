"""What the report says, in words and cells; HTML, Markdown and terminal only lay it out."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from modalign.comparison.recommendation import RULES
from modalign.comparison.report.plots import ranked
from modalign.comparison.results import Comparison, Example, MethodResult, Recommendation
from modalign.numbers import words as fmt
from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import NO_DIFFERENCE

FAMILIES = ("converter", "perceiver", "tool", "data")
LONGEST_ANSWER = 240
LARGEST_IMAGE = 700_000  # base64 characters; larger pictures are left out of the page
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Column:
    """One column of the ranking: its heading, what it means, its cell and its sort key."""

    heading: str
    meaning: str
    cell: Callable[[MethodResult], str]
    key: Callable[[MethodResult], float | None]


def _value(interval: Estimate | None) -> float | None:
    return None if interval is None else interval.value


COLUMNS: tuple[Column, ...] = (
    Column(
        "Seeds",
        "trainings of this method; with one seed the interval covers questions only",
        lambda m: str(len(m.seeds)) if m.seeds else fmt.MISSING,
        lambda m: len(m.seeds),
    ),
    Column(
        "Validation",
        "accuracy on validation data, which the rank and the recommendation come from",
        lambda m: fmt.percent(m.val_accuracy),
        lambda m: m.val_accuracy,
    ),
    Column(
        "Untrained",
        "accuracy of the same model before its first step",
        lambda m: fmt.percent(_value(m.untrained_accuracy)),
        lambda m: _value(m.untrained_accuracy),
    ),
    Column(
        "Transfer",
        "accuracy on the skill nobody trained on",
        lambda m: fmt.percent(_value(m.transfer)),
        lambda m: _value(m.transfer),
    ),
    Column(
        "Gain over blank",
        "points lost when the image is replaced by a blank one: does the model look at all?",
        lambda m: fmt.points(_value(m.image_gain_blank)),
        lambda m: _value(m.image_gain_blank),
    ),
    Column(
        "Gain over shuffled",
        "points lost when the image is another question's",
        lambda m: fmt.points(_value(m.image_gain_shuffled)),
        lambda m: _value(m.image_gain_shuffled),
    ),
    Column(
        "Hallucination F1",
        "F1 on questions of yes and no, as POPE counts; all measures stand under Hallucination",
        lambda m: fmt.percent(_value(m.hallucination.f1)) if m.hallucination else fmt.MISSING,
        lambda m: _value(m.hallucination.f1) if m.hallucination else None,
    ),
    Column(
        "Says yes",
        "share of yes on questions of yes and no",
        lambda m: fmt.percent(m.hallucination.yes_rate.value) if m.hallucination else fmt.MISSING,
        lambda m: m.hallucination.yes_rate.value if m.hallucination else None,
    ),
    Column(
        "Trainable",
        "trainable parameters",
        lambda m: fmt.count(m.trainable_parameters),
        lambda m: m.trainable_parameters,
    ),
    Column(
        "Tokens",
        "positions one item takes in the language model's input",
        lambda m: fmt.count(m.tokens),
        lambda m: m.tokens,
    ),
    Column(
        "Training compute",
        "FLOPs of training, all stages, one seed",
        lambda m: fmt.flops(m.flops),
        lambda m: m.flops,
    ),
    Column(
        "Compute per answer",
        "FLOPs of one item, forward",
        lambda m: fmt.flops(m.inference_flops),
        lambda m: m.inference_flops,
    ),
    Column(
        "Training time",
        "one seed, learning-rate trials included",
        lambda m: fmt.seconds(m.seconds),
        lambda m: m.seconds,
    ),
    Column(
        "Peak memory",
        "highest memory while training",
        lambda m: fmt.size(m.peak_memory),
        lambda m: m.peak_memory,
    ),
    Column(
        "First answer",
        "time to the first answer to one image, encoder included",
        lambda m: fmt.seconds(m.time_to_first_answer),
        lambda m: m.time_to_first_answer,
    ),
    Column(
        "MIR",
        "modality integration rate (arXiv 2410.07167): lower is a smaller gap; prefix methods only",
        lambda m: fmt.number(m.mir),
        lambda m: m.mir,
    ),
)


def rule_words(recommendation: Recommendation) -> str:
    """The rule's name in a sentence."""
    return RULES.get(recommendation.rule, recommendation.rule)


def confidence_words(recommendation: Recommendation) -> str:
    """The confidence as a sentence that says what was repeated."""
    share = recommendation.confidence
    sure = next(
        word
        for least, word in (
            (0.9, "Very sure"),
            (0.7, "Fairly sure"),
            (0.5, "Leaning this way"),
            (0.0, "Undecided"),
        )
        if share >= least
    )
    return (
        f"{sure}: with seeds and validation questions drawn again, the same rule picks "
        f"{recommendation.method} in {share * 100:.0f} of 100 cases."
    )


def alternatives(recommendation: Recommendation) -> list[tuple[str, float]]:
    """Every pick of the replicates, most frequent first."""
    picks = {recommendation.method: recommendation.confidence, **recommendation.alternatives}
    return sorted(picks.items(), key=lambda pick: (-pick[1], pick[0]))


SERVING = (
    "the rung of the export ladder (native: a class of transformers; remote-code: with its own few "
    "files; tools: beside a language model), and what can serve it"
)


def serving(method: MethodResult) -> str:
    """The rung, and what can serve it, in words."""
    return ": ".join(filter(None, (method.serving, ", ".join(method.served_by))))


def recommended(comparison: Comparison) -> MethodResult | None:
    """The recommended method's own results."""
    name = comparison.recommendation.method if comparison.recommendation else None
    return next((m for m in comparison.methods if m.name == name), None)


def accuracy_range(comparison: Comparison) -> tuple[float, float]:
    """Range of every accuracy interval shown, references included."""
    shown = [m.accuracy_interval for m in comparison.methods if m.accuracy_interval]
    shown += [r.accuracy for r in comparison.references]
    if not shown:
        return 0.0, 1.0
    return min(i.low for i in shown), max(i.high for i in shown)


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix of differences: row minus column."""

    text: str
    kind: str  # better, worse, none, self, unknown
    title: str


def difference_matrix(comparison: Comparison) -> list[tuple[MethodResult, list[Cell]]]:
    """Row minus column for every pair, in ranking order; failed methods are left out."""
    known = {(d.first, d.second): d for d in comparison.differences}
    involved = {name for pair in known for name in pair}
    methods = [m for m in ranked(comparison.methods) if m.name in involved]

    def cell(row: str, column: str) -> Cell:
        if row == column:
            return Cell("", "self", row)
        found = known.get((row, column)) or known.get((column, row))
        if found is None:
            return Cell("", "unknown", f"{row} and {column} were not compared")
        sign = 1 if found.first == row else -1
        gap = fmt.points(sign * found.difference.value)
        title = f"{row} minus {column}: {gap} points, p {fmt.p_value(found.p_holm)}"
        if found.verdict == NO_DIFFERENCE:
            return Cell("·", "none", f"{title}, {NO_DIFFERENCE}")
        winner = found.first if found.verdict == "first" else found.second
        return Cell(gap, "better" if winner == row else "worse", title)

    return [(row, [cell(row.name, column.name) for column in methods]) for row in methods]


@dataclass(frozen=True)
class Finding:
    """A published ordering with those of our pairs that met it in the same way."""

    outcome: str
    claim: str
    source: str
    ours: list[str]
    advice: str | None


def literature(comparison: Comparison, comparable: bool) -> list[Finding]:
    """Published orderings that could be compared with ours, or those that could not."""
    found: dict[tuple[str, str, str], Finding] = {}
    for c in comparison.contradictions:
        if (c.outcome != "not comparable") == comparable:
            key = (c.outcome, c.claim, c.source)
            entry = found.setdefault(key, Finding(*key, [], c.advice))
            entry.ours.append(c.ours)
    return list(found.values())


@dataclass(frozen=True)
class AnswerGroup:
    """Methods that gave the same answer to an example."""

    answer: str
    right: bool
    methods: list[str]


def answer_groups(example: Example, order: Sequence[str]) -> list[AnswerGroup]:
    """Answers of one example, right ones first, then the more frequent ones."""
    groups: dict[tuple[str, bool], list[str]] = {}
    for name in sorted(example.answers, key=lambda n: order.index(n) if n in order else len(order)):
        answer = example.answers[name]
        groups.setdefault((answer, is_right(example, name)), []).append(name)
    found = [
        AnswerGroup(shorten(answer), right, names) for (answer, right), names in groups.items()
    ]
    return sorted(found, key=lambda g: (not g.right, -len(g.methods)))


def is_right(example: Example, method: str) -> bool:
    """Right by the task's metric where that was recorded, else by equality of the words."""
    if method in example.correct:
        return example.correct[method]
    return _plain(example.answers[method]) == _plain(example.expected)


def _plain(answer: str) -> str:
    return " ".join(answer.lower().split()).strip(" .")


def shorten(answer: str) -> str:
    """An answer short enough to show; empty ones say so."""
    words = " ".join(answer.split())
    if not words:
        return "(nothing)"
    return words if len(words) <= LONGEST_ANSWER else words[: LONGEST_ANSWER - 1] + "…"


def image_data(example: Example) -> str | None:
    """The picture as base64 when it is a PNG of bearable size, else None."""
    encoded = example.image_png_base64
    if not encoded or len(encoded) > LARGEST_IMAGE:
        return None
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    return encoded if decoded.startswith(_PNG) else None


def setting_rows(comparison: Comparison) -> list[tuple[str, str]]:
    """How the comparison was run, for people."""
    s = comparison.setting
    return [
        ("Budget", s.budget),
        ("Language model", f"{s.llm} ({s.llm_mode})"),
        ("Encoder", f"{s.encoder} ({s.encoder_mode})"),
        ("Seeds", f"{', '.join(map(str, s.seeds))} for {s.finalists} finalists, one for the rest"),
        ("Training records", f"{s.train_records:,}"),
        ("Validation records", f"{s.val_records:,} ({s.val_source})"),
        ("Evaluation records", f"{s.eval_records:,}"),
        ("Machine", f"{s.device}, {s.dtype}, {s.threads} threads"),
        ("Started, finished", f"{s.started}, {s.finished} ({fmt.seconds(s.seconds)})"),
        ("modalign", s.version),
    ]


def diagnostics(comparison: Comparison) -> list[tuple[str, str]]:
    """Methods whose connector reports figures of its own, and these in words."""
    return [
        (
            m.name,
            "; ".join(f"{name} {fmt.number(value, 3)}" for name, value in m.diagnostics.items()),
        )
        for m in ranked(comparison.methods)
        if m.diagnostics
    ]


@dataclass(frozen=True)
class YesNoRow:
    """One row of the table of hallucination: who, the cells, and whether nobody was trained for it."""

    name: str
    cells: list[str]
    reference: bool


YES_NO_COLUMNS = ("Accuracy", "Precision", "Recall", "F1", "Says yes")


def hallucination_rows(comparison: Comparison) -> list[YesNoRow]:
    """Every method's measures on questions of yes and no, then the reference rows."""
    if comparison.hallucination is None:
        return []
    methods = [(m.name, m.hallucination, False) for m in ranked(comparison.methods)]
    others = [(name, found, True) for name, found in comparison.hallucination.references.items()]
    return [
        YesNoRow(
            name,
            [
                fmt.interval(found.accuracy),
                fmt.interval(found.precision),
                fmt.interval(found.recall),
                fmt.interval(found.f1),
                fmt.interval(found.yes_rate),
            ],
            reference,
        )
        for name, found, reference in [*methods, *others]
        if found is not None
    ]


def hallucination_words(comparison: Comparison) -> str:
    """What was asked, and how the figures are read."""
    found = comparison.hallucination
    if found is None:
        return ""
    return (
        f"{found.n} questions of yes and no (skills: {', '.join(found.skills)}), {found.positives} of them with "
        "the answer yes; counted as POPE counts (arXiv 2305.10355), yes the positive class. A yes to what is "
        "not there lowers precision and raises the share of yes; an answer that is neither is wrong."
    )


def failures(comparison: Comparison) -> list[MethodResult]:
    """Methods that gave no result."""
    return [m for m in ranked(comparison.methods) if m.status == "failed"]
