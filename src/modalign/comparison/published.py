"""Published rankings, and whether ours agree.

A small comparison that contradicts several large ones has more likely found a bad learning rate, a
bad initial scale or a bug than a discovery. Each :class:`Claim` (``published.yaml``) is a published ranking with
its conditions; :func:`check` looks it up in our paired differences and
returns *agrees*, *contradicts*, *no difference found*, or *not comparable* with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter

from modalign.comparison.results import Contradiction, MethodResult
from modalign.numbers import words as fmt
from modalign.numbers.pairs import Difference

Mode = Literal["frozen", "lora", "full"]
Outcome = Literal["agrees", "contradicts", "no difference found", "not comparable"]

ADVICE = "suspect learning rate, initial scale or a bug before claiming news"
TOKEN_TOLERANCE = 0.1  # token counts within 10 % are treated as equal


class Claim(BaseModel):
    """A published ranking.

    Attributes:
        text: the result, with its figures.
        source: the publication.
        pairs: (better, worse) method names, without variant.
        modes: how its language model was trained; ours must match.
        equal_tokens: both methods must use equally many tokens in our language model.
        skills: skills whose names contain one of these; empty: overall accuracy.
        ties_agree: the published gap is small, so "no difference found" supports the claim.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    source: str
    pairs: tuple[tuple[str, str], ...]
    modes: tuple[Mode, ...] = ("frozen", "lora", "full")
    equal_tokens: bool = False
    skills: tuple[str, ...] = ()
    ties_agree: bool = False


CLAIMS = TypeAdapter(tuple[Claim, ...]).validate_python(
    yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
)
_MODE_WORDS: dict[Mode, str] = {
    "frozen": "frozen",
    "lora": "tuned by LoRA",
    "full": "tuned in full",
}


def check(
    methods: Sequence[MethodResult], differences: Sequence[Difference], llm_mode: str
) -> list[Contradiction]:
    """Check every claim against our results; contradictions come first.

    Args:
        methods: our methods; "resampler:published" is used for claims about "resampler".
        differences: our paired differences with Holm-corrected verdicts.
        llm_mode: how our language model was trained: "frozen", "lora" or anything else for full.
    """
    mode = training_mode(llm_mode)
    known = {(d.first, d.second): d for d in differences}
    rows = [row for claim in CLAIMS for row in _check_claim(claim, methods, known, mode)]
    order = ("contradicts", "agrees", "no difference found", "not comparable")
    return sorted(rows, key=lambda row: order.index(row.outcome))


def training_mode(llm_mode: str) -> Mode:
    """Convert the setting to frozen, lora or full."""
    word = llm_mode.lower()
    if "lora" in word:
        return "lora"
    return "frozen" if word in ("frozen", "freeze", "none", "0") else "full"


def base_name(method: str) -> str:
    """Return a method's name without its variant; recipes are kept, since no claim is about those."""
    plain, plus, recipe = method.partition("+")
    return re.split(r"[:\[]", plain, maxsplit=1)[0] + plus + recipe


def _check_claim(
    claim: Claim,
    methods: Sequence[MethodResult],
    known: Mapping[tuple[str, str], Difference],
    mode: Mode,
) -> list[Contradiction]:
    if mode not in claim.modes:
        theirs = " or ".join(words for m, words in _MODE_WORDS.items() if m in claim.modes)
        ours = f"our language model was {_MODE_WORDS[mode]}, theirs {theirs}"
        return [_row(claim, ours, "not comparable")]
    pairs = list(_our_pairs(claim, methods))
    if not pairs:
        needed = sorted({name for pair in claim.pairs for name in pair})
        return [
            _row(claim, f"not both sides were measured ({fmt.names(needed)})", "not comparable")
        ]
    return [_check_pair(claim, better, worse, known) for better, worse in pairs]


def _our_pairs(
    claim: Claim, methods: Sequence[MethodResult]
) -> Iterator[tuple[MethodResult, MethodResult]]:
    usable = [m for m in methods if m.status == "ok" and m.accuracy is not None]
    for better, worse in claim.pairs:
        for ours in usable:
            for theirs in usable:
                if (base_name(ours.name), base_name(theirs.name)) == (better, worse):
                    yield ours, theirs


def _check_pair(
    claim: Claim,
    better: MethodResult,
    worse: MethodResult,
    known: Mapping[tuple[str, str], Difference],
) -> Contradiction:
    if claim.equal_tokens and not _same_tokens(better.tokens, worse.tokens):
        ours = (
            f"{better.name} costs {_token_words(better.tokens)}, "
            f"{worse.name} {_token_words(worse.tokens)}"
        )
        return _row(claim, ours, "not comparable")
    if claim.skills:
        return _check_skill(claim, better, worse)
    difference = known.get((better.name, worse.name)) or known.get((worse.name, better.name))
    if difference is None:
        ours = f"{better.name} and {worse.name} were not compared"
        return _row(claim, ours, "not comparable")
    sign = 1 if difference.first == better.name else -1
    interval = difference.difference
    low, high = sorted((sign * interval.low, sign * interval.high))
    ours = (
        f"{better.name} minus {worse.name}: {fmt.points(sign * interval.value)} points "
        f"({fmt.points(low)} to {fmt.points(high)}; p {fmt.p_value(difference.p_holm)})"
    )
    winner = {"first": difference.first, "second": difference.second}.get(difference.verdict)
    return _row(claim, ours, _outcome(claim, winner, better.name))


def _check_skill(claim: Claim, better: MethodResult, worse: MethodResult) -> Contradiction:
    """Check a claim about skills: without corrected p-values, only disjoint intervals count."""
    shared = [s for s in better.skills if s in worse.skills]
    skill = next((s for word in claim.skills for s in shared if word in s.lower()), None)
    if skill is None:
        words = " or ".join(claim.skills)
        return _row(claim, f"no skill called {words} was measured", "not comparable")
    first, second = better.skills[skill], worse.skills[skill]
    ours = f"{skill}: {better.name} {fmt.interval(first)}, {worse.name} {fmt.interval(second)}"
    winner = None
    if first.low > second.high:
        winner = better.name
    elif second.low > first.high:
        winner = worse.name
    return _row(claim, ours, _outcome(claim, winner, better.name))


def _outcome(claim: Claim, winner: str | None, better: str) -> Outcome:
    if winner is None:
        return "agrees" if claim.ties_agree else "no difference found"
    return "agrees" if winner == better else "contradicts"


def _same_tokens(first: int | None, second: int | None) -> bool:
    if first is None or second is None:
        return False
    return abs(first - second) <= TOKEN_TOLERANCE * max(first, second)


def _token_words(tokens: int | None) -> str:
    return "an unknown number of tokens" if tokens is None else f"{fmt.count(tokens)} tokens"


def _row(claim: Claim, ours: str, outcome: Outcome) -> Contradiction:
    advice = ADVICE if outcome == "contradicts" else None
    return Contradiction(
        claim=claim.text, source=claim.source, ours=ours, outcome=outcome, advice=advice
    )
