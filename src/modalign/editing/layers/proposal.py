"""Which layers to edit: a proposal from a causal trace and from vectors that were really tried.

The two answer different questions, and both must say yes:

* the trace: does the state at the subject's last token carry the fact at this layer? A model that
  recalls at the prompt's last token has its facts nowhere there.
* the vectors: does something put there make the model say another answer?

A layer works if the lower end of the 95 % interval (bootstrap over facts) is at least ``CARRIED`` of
the noise's effect for the first, and ``REACHED_SHARE`` of the facts for the second. The value is put
at the last working layer whose vectors are not clearly worse than the best layer's (paired
difference of probabilities, lower end below ``CLEARLY``): the later it is, the more layers can share
the writing. The layers written are the working ones up to it, at most ``LONGEST`` (MEMIT and PMET
write 5 or 6).

Where no layer works but one would by its means alone, the verdict is ``undecided``: more facts are
needed, and nothing is said of how the model recalls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel
from transformers import PreTrainedModel

from modalign.editing.benchmarks.results import metric
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.layers.facts import AskedFacts, Fact, Known, known_facts
from modalign.editing.layers.steering import Reach, other_answers, reach
from modalign.editing.layers.tracing import KINDS, PLACES, Trace, TraceSettings, trace
from modalign.numbers.bootstrap import RESAMPLES, Floats, redrawn_means
from modalign.numbers.estimate import Estimate
from modalign.numbers.words import interval
from modalign.progress import Progress

CARRIED = 0.2
REACHED_SHARE = 0.25
CLEARLY = 0.05
LONGEST = 6
FEW = 8  # facts; with fewer the intervals say little
TRACED = "causal trace"
WRITTEN = "optimised vector"

Verdict = Literal["layers", "undecided", "last token", "no vector", "subject not used"]


class LayerFinding(BaseModel):
    """One layer at the subject's last token.

    Attributes:
        layer: its number.
        carried: what putting its output back returns, in percent of the noise's effect.
        reached: percent of facts to which a vector gave another answer (probability of 0.5 or more).
        probability: of the other answer with the vector, mean, percent.
        behind: best layer's probability minus this one's, paired, in percentage points.
        works: by the rule of this module.
    """

    layer: int
    carried: Estimate
    reached: Estimate
    probability: Estimate
    behind: Estimate
    works: bool


class Suggestion(AskedFacts):
    """The proposal and everything it rests on.

    Attributes:
        model: as described by its parts.
        verdict: ``layers``, or why there are none.
        layers: to be written, ascending; empty where no layer works.
        z_layer: the last of them, where the value is put.
        clean, corrupted: probability of the answer without and with noise, percent.
        effect: their difference, percentage points.
        findings: per layer.
        effects: ``kind/place`` -> per layer the indirect effect, percentage points.
        window: layers put back together for attention and FFN.
        sentences: the proposal in words, with how sure it is.
    """

    model: str
    verdict: Verdict
    layers: list[int]
    z_layer: int | None
    clean: Estimate
    corrupted: Estimate
    effect: Estimate
    findings: list[LayerFinding]
    effects: dict[str, list[Estimate]]
    window: int
    sentences: list[str]


def suggest(
    model: PreTrainedModel,
    tokenizer: Any,
    facts: Sequence[Fact],
    *,
    probes: int = 24,
    seed: int = 0,
    tracing: TraceSettings | None = None,
    progress: Progress = lambda name, done, total: None,
) -> Suggestion:
    """Trace facts, try vectors at every layer, propose.

    Args:
        model: a causal LM, or a multimodal model whose language part is meant; unchanged.
        tokenizer: the model's.
        facts: what to ask; those the model does not know are left out and counted.
        probes: known facts to use, drawn at random.
        seed: of the draw, the noise and the other answers.
        tracing: of the trace.
        progress: told how far each step is.

    Raises:
        NoneKnownError: the model knows none of the facts.
        SpecError: the model cannot be edited.
    """
    spec = ModelSpec.detect(model)
    known = known_facts(spec, tokenizer, facts, wanted=probes, seed=seed, progress=progress)
    others = other_answers(tokenizer, known.probes, facts, seed)
    vectors = reach(spec, tokenizer, known.probes, others, progress=progress)
    traced = trace(spec, known.probes, tracing or TraceSettings(seed=seed), progress)
    return propose(spec.describe(), known, traced, vectors, seed)


def propose(model: str, known: Known, traced: Trace, vectors: Reach, seed: int = 0) -> Suggestion:
    """Apply the rule of this module to what was measured."""
    depth = vectors.probability.shape[1]
    n = len(known.probes)
    drawn = redrawn_means(_columns(traced, vectors), RESAMPLES, seed)
    findings = _findings(drawn, depth, n)
    effect = metric(drawn["effect"], n, TRACED, "percentage points")
    layers = _layers(findings)
    suggestion = Suggestion(
        model=model,
        verdict=_verdict(findings, effect, layers),
        layers=layers if effect.low > 0 else [],
        z_layer=layers[-1] if layers and effect.low > 0 else None,
        **known.counts,
        clean=metric(drawn["clean"], n, TRACED),
        corrupted=metric(drawn["corrupted"], n, TRACED),
        effect=effect,
        findings=findings,
        effects={
            f"{kind}/{place}": [
                metric(drawn[f"{kind}/{place}/{layer}"], n, TRACED, "percentage points")
                for layer in range(depth)
            ]
            for kind in KINDS
            for place in PLACES
        },
        window=traced.window,
        sentences=[],
    )
    suggestion.sentences = [*_words(suggestion), known.describe() + "."]
    return suggestion


def _columns(traced: Trace, vectors: Reach) -> dict[str, Floats]:
    """Everything measured, by name, one number per fact: means are redrawn together."""
    columns = {
        "clean": traced.clean,
        "corrupted": traced.corrupted,
        "effect": traced.clean - traced.corrupted,
    }
    for layer in range(vectors.probability.shape[1]):
        columns[f"probability/{layer}"] = vectors.probability[:, layer]
        columns[f"reached/{layer}"] = vectors.reached[:, layer]
        for kind in KINDS:
            for place in PLACES:
                columns[f"{kind}/{place}/{layer}"] = traced.effects(kind, place)[:, layer]
    return columns


def _findings(drawn: Mapping[str, Floats], depth: int, n: int) -> list[LayerFinding]:
    best = max(range(depth), key=lambda layer: float(drawn[f"probability/{layer}"][0]))
    found = []
    for layer in range(depth):
        with np.errstate(invalid="ignore", divide="ignore"):
            share = drawn[f"block/subject/{layer}"] / drawn["effect"]
        carried = metric(np.where(np.isfinite(share), share, np.nan), n, TRACED)
        reached = metric(drawn[f"reached/{layer}"], n, WRITTEN)
        behind = drawn[f"probability/{best}"] - drawn[f"probability/{layer}"]
        found.append(
            LayerFinding(
                layer=layer,
                carried=carried,
                reached=reached,
                probability=metric(drawn[f"probability/{layer}"], n, WRITTEN),
                behind=metric(behind, n, WRITTEN, "percentage points"),
                works=carried.low >= 100 * CARRIED and reached.low >= 100 * REACHED_SHARE,
            )
        )
    return found


def _layers(findings: Sequence[LayerFinding]) -> list[int]:
    """The layers to write: contiguous, working, ending where the value is put."""
    last = [each.layer for each in findings if each.works and each.behind.low < 100 * CLEARLY]
    if not last:
        return []
    first = last[-1]
    while first > 0 and findings[first - 1].works and last[-1] - first + 1 < LONGEST:
        first -= 1
    return list(range(first, last[-1] + 1))


def _verdict(findings: Sequence[LayerFinding], effect: Estimate, layers: Sequence[int]) -> Verdict:
    if effect.low <= 0:
        return "subject not used"
    if layers:
        return "layers"
    if any(_by_means(each) for each in findings):
        return "undecided"
    reaching = any(each.reached.low >= 100 * REACHED_SHARE for each in findings)
    return "last token" if reaching or not _carries(findings) else "no vector"


def _by_means(finding: LayerFinding) -> bool:
    """Whether the means are high enough, whatever their intervals."""
    carried, reached = finding.carried.value, finding.reached.value
    return carried >= 100 * CARRIED and reached >= 100 * REACHED_SHARE


def _carries(findings: Sequence[LayerFinding]) -> bool:
    return any(each.carried.low >= 100 * CARRIED for each in findings)


def _words(found: Suggestion) -> list[str]:
    noise = (
        f"Noise on the subject takes the answer's probability from {found.clean.value:.1f} % to "
        f"{found.corrupted.value:.1f} %"
    )
    reaching = max(found.findings, key=lambda each: each.probability.value)
    carrying = max(found.findings, key=lambda each: each.carried.value)
    vector = (
        f"At layer {reaching.layer}, the best one, a vector at the subject's last token made the "
        f"model give another answer to {interval(reaching.reached)} of the facts."
    )
    carried = (
        f"{noise}; putting back layer {carrying.layer}'s output at the subject's last token, the "
        f"most that any layer returns, gives back {interval(carrying.carried)} of that."
    )
    if found.verdict == "layers":
        words = _words_of_layers(found, noise, reaching)
    elif found.verdict == "undecided":
        words = _words_of_doubt(found)
    elif found.verdict == "last token":
        words = [
            "No layer works: this model recalls at its last token; closed-form editing at the "
            "subject will score 0 or little.",
            carried,
            f"{vector} Such a vector replaces the subject before it is read: more than that share "
            "cannot be reached by forcing this layer.",
        ]
    elif found.verdict == "no vector":
        words = [
            "No layer works: the subject's last token carries the facts, but no vector put there "
            "makes this model say something else; closed-form editing will score 0.",
            vector,
            carried,
        ]
    else:
        words = [
            "No layer can be named: noise on the subject does not change this model's answers "
            f"(by {interval(found.effect)} points), so it does not use the subject.",
        ]
    few = (
        f"Only {found.known} facts: the intervals say little; give more."
        if found.known < FEW
        else ""
    )
    return [*words, few] if few else words


def _words_of_doubt(found: Suggestion) -> list[str]:
    close = [each for each in found.findings if _by_means(each)]
    best = max(close, key=lambda each: (each.reached.value, each.carried.value))
    named = ", ".join(str(each.layer) for each in close)
    return [
        f"Undecided: by their means layers {named} would work, but the intervals are too wide to say "
        "so; give more facts that the model knows.",
        f"At layer {best.layer} a vector at the subject's last token made the model give another answer "
        f"to {interval(best.reached)} of {found.known} facts, and its output carries "
        f"{interval(best.carried)} of what noise on the subject takes away.",
    ]


def _words_of_layers(found: Suggestion, noise: str, best: LayerFinding) -> list[str]:
    chosen = next(each for each in found.findings if each.layer == found.z_layer)
    first, last = found.layers[0], found.layers[-1]
    named = f"layer {first}" if first == last else f"layers {first} to {last}"
    numbers = ",".join(str(layer) for layer in found.layers)
    compared = (
        "No layer did better."
        if best.layer == chosen.layer
        else f"The best, layer {best.layer}: {interval(best.reached)}."
    )
    return [
        f"Write to {named}, with the value at layer {last}: --set layers=[{numbers}]",
        f"At layer {last} a vector at the subject's last token made the model give another answer "
        f"to {interval(chosen.reached)} of {found.known} facts. {compared}",
        f"{noise}; putting back layer {last}'s output at the subject's last token returns "
        f"{interval(chosen.carried)} of that.",
    ]
