"""The report's sentences and examples."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

from modalign.comparison.results import Comparison, Example, Recommendation
from modalign.numbers import words as fmt
from modalign.training.budget import Budget

LONGEST_ANSWER = 240
LARGEST_IMAGE = 700_000  # base64 characters; larger pictures are omitted from the page
_PNG = b"\x89PNG\r\n\x1a\n"


def confidence_words(recommendation: Recommendation) -> str:
    """Describe the confidence in a sentence."""
    share = recommendation.confidence
    if share is None:
        return ""
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
    picked = f"the same rule picks {recommendation.method} in {share * 100:.0f} of 100 cases"
    if recommendation.of_questions_alone:
        return (
            f"Nothing is known of other trainings: every method was trained once. Asked other validation "
            f"questions, {picked}, but another training may overturn it: train each twice or more (--seeds)."
        )
    again = "trained and asked again, with other seeds and other validation questions"
    return f"{sure}: {again}, {picked}."


def alternatives(recommendation: Recommendation) -> list[tuple[str, float]]:
    """Return every pick of the replicates, most frequent first."""
    picks = dict(recommendation.alternatives)
    if recommendation.method is not None and recommendation.confidence is not None:
        picks[recommendation.method] = recommendation.confidence
    return sorted(picks.items(), key=lambda pick: (-pick[1], pick[0]))


@dataclass(frozen=True)
class Finding:
    """A published ranking with our pairs that have the same outcome."""

    outcome: str
    claim: str
    source: str
    ours: list[str]
    advice: str | None


def literature(comparison: Comparison, comparable: bool) -> list[Finding]:
    """Return published rankings that are comparable with ours, or those that are not."""
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
    """Group the answers to an example, right ones first, then by frequency."""
    groups: dict[tuple[str, bool], list[str]] = {}
    for name in sorted(example.answers, key=lambda n: order.index(n) if n in order else len(order)):
        answer = example.answers[name]
        groups.setdefault((answer, is_right(example, name)), []).append(name)
    found = [
        AnswerGroup(shorten(answer), right, names) for (answer, right), names in groups.items()
    ]
    return sorted(found, key=lambda g: (not g.right, -len(g.methods)))


def is_right(example: Example, method: str) -> bool:
    """Whether an answer is right by the task's recorded metric, or else by equality."""
    if method in example.correct:
        return example.correct[method]
    return _plain(example.answers[method]) == _plain(example.expected)


def _plain(answer: str) -> str:
    return " ".join(answer.lower().split()).strip(" .")


def shorten(answer: str) -> str:
    """Shorten an answer for display; mark empty ones."""
    words = " ".join(answer.split())
    if not words:
        return "(nothing)"
    return words if len(words) <= LONGEST_ANSWER else words[: LONGEST_ANSWER - 1] + "…"


def image_data(example: Example) -> str | None:
    """Return the picture as base64 if it is a PNG of moderate size, else None."""
    encoded = example.image_png_base64
    if not encoded or len(encoded) > LARGEST_IMAGE:
        return None
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    return encoded if decoded.startswith(_PNG) else None


def setting_rows(comparison: Comparison) -> list[tuple[str, str]]:
    """Return the displayed settings of the run."""
    s = comparison.setting
    return [
        ("Budget", Budget.parse(s.budget).words()),
        ("Language model", f"{s.llm} ({s.llm_mode})"),
        ("Encoder", f"{s.encoder} ({s.encoder_mode})"),
        ("Seeds", ", ".join(map(str, s.seeds))),
        ("Training records", f"{s.train_records:,}"),
        ("Validation records", f"{s.val_records:,} ({s.val_source})"),
        ("Evaluation records", f"{s.eval_records:,}"),
        ("Machine", f"{s.device}, {s.dtype}, {s.threads} threads, {s.processor}"),
        ("The same bits again?", " ".join(s.may_differ)),
        ("Started, finished", f"{s.started}, {s.finished} ({fmt.seconds(s.seconds)})"),
        ("modalign", s.version),
    ]


def hallucination_words(comparison: Comparison) -> str:
    """Describe the questions and how to read the figures."""
    found = comparison.hallucination
    if found is None:
        return ""
    skills = ", ".join(skill.strip("()") for skill in found.skills)
    return (
        f"{found.n} questions of yes and no (skills: {skills}), {found.positives} of them with "
        "the answer yes; counted as POPE counts (arXiv 2305.10355), yes the positive class. A yes to what is "
        "not there lowers precision and raises the share of yes; an answer that is neither is wrong."
    )
