"""Orderings other people measured, and whether ours agree.

A small comparison that contradicts several large ones has more likely found a bad learning rate, a
bad initial scale or a bug than news. Each :class:`Claim` is one published ordering with the
conditions under which it was measured; :func:`check` looks it up in our own paired differences and
says *agrees*, *contradicts*, *no difference found*, or *not comparable* and why.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from modalign.comparison.results import Contradiction, MethodResult
from modalign.numbers import words as fmt
from modalign.numbers.pairs import Difference

Mode = Literal["frozen", "lora", "full"]
Outcome = Literal["agrees", "contradicts", "no difference found", "not comparable"]

ADVICE = "suspect learning rate, initial scale or a bug before claiming news"
SPATIAL = ("spatial", "relation", "position")
READING = ("text", "ocr", "digit")
TOKEN_TOLERANCE = 0.1  # token counts within a tenth count as equal

HONEYBEE = "Honeybee (arXiv 2312.06742), Vicuna-7B and CLIP-L/14, short schedule"
MIR = "MIR paper (arXiv 2410.07167), LLaVA-1.5 recipe"
ACFORMER = "AcFormer, LLaVA-1.5 data and Vicuna-7B"
IDEFICS2 = "Idefics2 (arXiv 2405.02246), mean of four benchmarks, 4-shot"
EXPECTED = "expectation from several papers, not one measurement"


@dataclass(frozen=True)
class Claim:
    """One published ordering.

    Attributes:
        text: what was found, with its numbers.
        source: who found it.
        pairs: (better, worse) method names, without variant.
        modes: how the language model was trained there; ours must be one of these.
        equal_tokens: both methods must cost our language model the same tokens.
        skills: the claim is about skills whose name contains one of these; empty: about accuracy.
        ties_agree: the published gap is small, so "no difference found" supports the claim.
    """

    text: str
    source: str
    pairs: tuple[tuple[str, str], ...]
    modes: frozenset[Mode] = frozenset({"frozen", "lora", "full"})
    equal_tokens: bool = False
    skills: tuple[str, ...] = ()
    ties_agree: bool = False


_MODE_WORDS: dict[Mode, str] = {
    "frozen": "frozen",
    "lora": "tuned by LoRA",
    "full": "tuned in full",
}
_TUNED: frozenset[Mode] = frozenset({"lora", "full"})
_FROZEN: frozenset[Mode] = frozenset({"frozen"})
_LORA: frozenset[Mode] = frozenset({"lora"})

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "at 256 tokens a resampler (67.2) is below a linear map (70.0) and an MLP (70.2)",
        HONEYBEE,
        (("linear", "resampler"), ("mlp", "resampler")),
        _TUNED,
        equal_tokens=True,
    ),
    Claim(
        "at equal tokens the C-Abstractor (71.6 at 256, 70.6 at 144) is above the resampler "
        "(67.2, 64.2)",
        HONEYBEE,
        (("c_abstractor", "resampler"),),
        _TUNED,
        equal_tokens=True,
    ),
    Claim(
        "at 144 tokens the D-Abstractor (69.7) is above the resampler (64.2)",
        HONEYBEE,
        (("d_abstractor", "resampler"),),
        _TUNED,
        equal_tokens=True,
    ),
    Claim(
        "at 256 tokens the C-Abstractor (71.6) is above linear (70.0) and MLP (70.2)",
        HONEYBEE,
        (("c_abstractor", "linear"), ("c_abstractor", "mlp")),
        _TUNED,
        equal_tokens=True,
        ties_agree=True,
    ),
    Claim(
        "on spatial tasks at 256 tokens: C-Abstractor 56.3, linear 52.6, resampler 45.6",
        HONEYBEE,
        (("c_abstractor", "resampler"), ("linear", "resampler")),
        _TUNED,
        equal_tokens=True,
        skills=SPATIAL,
    ),
    Claim(
        "an MLP of two layers (63.9) is no worse than a linear map (63.6)",
        MIR,
        (("mlp", "linear"),),
        _TUNED,
        ties_agree=True,
    ),
    Claim(
        "a Q-Former without its stage 1 (53.7) is far below linear (63.6) and MLP (63.9)",
        MIR,
        (("linear", "qformer_no_stage_one"), ("mlp", "qformer_no_stage_one")),
        _TUNED,
    ),
    Claim(
        "average pooling is above the resampler at 65 tokens (GQA 59.8 against 56.1) and at 145 "
        "(60.9 against 56.4)",
        ACFORMER,
        (("avgpool_mlp", "resampler"),),
        _TUNED,
        equal_tokens=True,
    ),
    Claim(
        "the C-Abstractor is above the resampler at 65, 145 and 257 tokens (GQA 59.0, 60.2, 60.8 "
        "against 56.1, 56.4, 56.8)",
        ACFORMER,
        (("c_abstractor", "resampler"),),
        _TUNED,
        equal_tokens=True,
    ),
    Claim(
        "average pooling is no worse than the C-Abstractor on GQA at 65 tokens (59.8, 59.0) and "
        "at 145 (60.9, 60.2)",
        ACFORMER,
        (("avgpool_mlp", "c_abstractor"),),
        _TUNED,
        equal_tokens=True,
        ties_agree=True,
    ),
    Claim(
        "with frozen backbones cross-attention (66.7) is above a resampled prefix (60.3) and a "
        "bare prefix (51.8)",
        IDEFICS2,
        (
            ("gated_cross_attention", "resampler"),
            ("gated_cross_attention", "linear"),
            ("gated_cross_attention", "mlp"),
        ),
        _FROZEN,
    ),
    Claim(
        "with frozen backbones a resampled prefix (60.3) is above a bare prefix (51.8)",
        IDEFICS2,
        (("resampler", "linear"), ("resampler", "mlp")),
        _FROZEN,
    ),
    Claim(
        "with LoRA the resampled prefix (69.5) overtakes cross-attention (67.3)",
        IDEFICS2,
        (("resampler", "gated_cross_attention"),),
        _LORA,
    ),
    Claim(
        "small data, tuned LLM: learnt queries without a stage 1 stay below linear, MLP, pooling "
        "and the D- and C-Abstractor",
        "Honeybee, MIR paper and AcFormer together",
        (
            ("linear", "qformer_no_stage_one"),
            ("avgpool_mlp", "qformer_no_stage_one"),
            ("d_abstractor", "qformer_no_stage_one"),
            ("c_abstractor", "qformer_no_stage_one"),
        ),
        _TUNED,
        equal_tokens=True,
    ),
    Claim(
        "more tokens help with falling returns: the full grid is no worse than the same map after "
        "pooling or folding",
        "Honeybee and AcFormer together",
        (("mlp", "avgpool_mlp"), ("mlp", "pixel_shuffle_mlp"), ("linear", "pixel_shuffle_linear")),
        ties_agree=True,
    ),
    Claim("a Q-Former needs its stage 1", EXPECTED, (("qformer", "qformer_no_stage_one"),)),
    Claim(
        "even with its stage 1 a Q-Former is weaker than an MLP on spatial questions",
        EXPECTED,
        (("mlp", "qformer"),),
        skills=SPATIAL,
    ),
    Claim(
        "even with its stage 1 a Q-Former is weaker than an MLP on reading text",
        EXPECTED,
        (("mlp", "qformer"),),
        skills=READING,
    ),
    Claim(
        "adapters of a million parameters come last at small budgets",
        EXPECTED,
        tuple(
            (better, "llama_adapter")
            for better in ("linear", "mlp", "avgpool_mlp", "c_abstractor", "resampler")
        ),
    ),
    Claim(
        "discrete codes learnt from scratch come last at small budgets",
        EXPECTED,
        tuple(
            (better, codes)
            for codes in ("vq_codes", "vocabulary_codes")
            for better in ("linear", "mlp", "avgpool_mlp", "c_abstractor", "resampler")
        ),
    ),
)


def check(
    methods: Sequence[MethodResult], differences: Sequence[Difference], llm_mode: str
) -> list[Contradiction]:
    """Look every claim up in our results; contradictions first.

    Args:
        methods: our methods; "resampler:published" speaks for the claims about "resampler".
        differences: our paired differences with Holm-corrected verdicts.
        llm_mode: how our language model was trained: "frozen", "lora" or anything else for full.
    """
    mode = training_mode(llm_mode)
    known = {(d.first, d.second): d for d in differences}
    rows = [row for claim in CLAIMS for row in _check_claim(claim, methods, known, mode)]
    order = ("contradicts", "agrees", "no difference found", "not comparable")
    return sorted(rows, key=lambda row: order.index(row.outcome))


def training_mode(llm_mode: str) -> Mode:
    """Frozen, lora or full, from the setting's word for it."""
    word = llm_mode.lower()
    if "lora" in word:
        return "lora"
    return "frozen" if word in ("frozen", "freeze", "none", "0") else "full"


def base_name(method: str) -> str:
    """A method's name without its variant; one with a recipe keeps it, since no claim is about those."""
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
    """Skills have no corrected p-values: only intervals that do not touch count as a difference."""
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
