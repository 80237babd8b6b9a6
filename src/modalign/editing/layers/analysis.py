"""Analyse what attention and FFN do with a fact, as PMET did (arXiv 2308.08742), for any model.

Measured at the last token of the prompt, per layer, and averaged over facts the model knows:

* the cosine similarity between a component's input (after the norm before it) and its output
  (before it is added to the residual stream), as in the authors' notebook
  ``knowledge-prob/prob_gptJ.ipynb``;
* the Jaccard similarity of the 50 tokens that input and output say most, read through the model's
  final norm and head (the logit lens). The notebook multiplies with the *input* embeddings, without
  the norm; GPT-J's two embeddings are not tied, so what it compares is not what the model would say.
  ``projection="embedding"`` gives the notebook's numbers;
* the probability of the attribute's first token, read through the lens from each component's
  output, and from the residual stream after the layer.

All intervals are 95 % bootstrap intervals over facts. The sentences follow the rules of :func:`_words`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor
from transformers import PreTrainedModel

from modalign.editing.benchmarks.results import metric
from modalign.editing.engine.forward import Row
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.layers.components import COMPONENTS, Component, Lens, find_ends, read_states
from modalign.editing.layers.facts import AskedFacts, Fact, Known, KnownFact, known_facts
from modalign.numbers.bootstrap import RESAMPLES, Floats, redrawn_means
from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import NO_DIFFERENCE
from modalign.progress import Progress

TOP = 50
BATCH = 16
PROTOCOL = "last token of the prompt"

Projection = Literal["lens", "embedding"]


class LayerRow(BaseModel):
    """One layer.

    Attributes:
        layer: its number.
        cosine: per component, -1 to 1.
        jaccard: per component, 0 to 1.
        probability: of the attribute's first token in percent, read from ``attention``, ``ffn``
            and ``residual``.
    """

    layer: int
    cosine: dict[str, Estimate]
    jaccard: dict[str, Estimate]
    probability: dict[str, Estimate]


class Analysis(AskedFacts):
    """The analysis, with its conclusions in words.

    Attributes:
        model: a description of its parts.
        parallel: whether attention and FFN of a layer see the same residual stream.
        projection: how vectors were turned into tokens for the Jaccard similarity.
        top: number of tokens compared.
        rows: per layer.
        cosine_gap, jaccard_gap: FFN's similarity minus attention's, mean over layers; above 0,
            attention changes its input more.
        first_choice: per reading, the first layer at which the attribute is its first choice (the number
            of layers if it never is), mean over facts.
        first_choice_gap: FFN's minus attention's; above 0, attention says it earlier.
        sentences: what the analysis says about this model.
    """

    model: str
    parallel: bool
    projection: Projection
    top: int
    rows: list[LayerRow]
    cosine_gap: Estimate
    jaccard_gap: Estimate
    first_choice: dict[str, Estimate]
    first_choice_gap: Estimate
    sentences: list[str]


def analyse(
    model: PreTrainedModel,
    tokenizer: Any,
    facts: Sequence[Fact],
    *,
    wanted: int = 200,
    projection: Projection = "lens",
    seed: int = 0,
    progress: Progress = lambda name, done, total: None,
) -> Analysis:
    """Analyse a model on facts it knows.

    Args:
        model: a causal LM, or a multimodal model whose language part is analysed; not changed.
        tokenizer: the model's.
        facts: those that the model does not know are left out and counted.
        wanted: how many known facts to use, drawn at random.
        projection: for the Jaccard similarity; see the module.
        seed: of the draw and the bootstrap.
        progress: told how far each step is.

    Raises:
        NoneKnownError: the model knows none of the facts.
        SpecError: the model's layers do not add up to their components.
    """
    spec = ModelSpec.detect(model)
    known = known_facts(spec, tokenizer, facts, wanted=wanted, seed=seed, progress=progress)
    columns = measure(spec, known.probes, projection, progress)
    return _analysis(spec, known, columns, projection, seed)


def measure(
    spec: ModelSpec,
    probes: Sequence[KnownFact],
    projection: Projection = "lens",
    progress: Progress = lambda name, done, total: None,
) -> dict[str, Floats]:
    """Measure everything, (n, layers) each.

    Returns:
        ``cosine/C`` and ``jaccard/C`` per component C; ``probability/R`` and ``leads/R`` (1 where
        the attribute's first token is the most likely one) per reading R, a component or the
        residual stream.
    """
    ends, lens = find_ends(spec), Lens(spec)
    parts: dict[str, list[Floats]] = {}
    for start in range(0, len(probes), BATCH):
        progress("reading layers", start, len(probes))
        batch = probes[start : start + BATCH]
        states = read_states(spec, ends, [Row(probe.ids, 0) for probe in batch])
        answers = torch.tensor([probe.answer[0] for probe in batch], device=spec.device)
        found: dict[str, Tensor] = {}
        for c in COMPONENTS:
            given, put = states.inputs[c], states.outputs[c]
            found[f"cosine/{c}"] = torch.cosine_similarity(given, put, dim=-1)
            logits = _read(lens, put)
            found |= _answer(c, logits, answers)
            if projection == "lens":
                found[f"jaccard/{c}"] = _jaccard(_read(lens, given), logits)
            else:
                found[f"jaccard/{c}"] = _jaccard(_embedded(spec, given), _embedded(spec, put))
        found |= _answer("residual", _read(lens, states.residual), answers)
        for name, value in found.items():
            parts.setdefault(name, []).append(value.double().cpu().numpy())
    progress("reading layers", len(probes), len(probes))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _read(lens: Lens, vectors: Tensor) -> Tensor:
    """Return logits (B, layers, V) of vectors (B, layers, D)."""
    return torch.stack([lens(each) for each in vectors.unbind(1)], dim=1)


def _embedded(spec: ModelSpec, vectors: Tensor) -> Tensor:
    weight: Any = spec.language.get_input_embeddings().weight.detach()
    return vectors @ weight.to(vectors.dtype).T


def _answer(name: str, logits: Tensor, answers: Tensor) -> dict[str, Tensor]:
    index = answers[:, None, None].expand(-1, logits.shape[1], 1)
    chosen = logits.softmax(-1).gather(2, index).squeeze(2)
    leads = logits.argmax(-1) == answers[:, None]
    return {f"probability/{name}": chosen, f"leads/{name}": leads}


def _jaccard(one: Tensor, other: Tensor) -> Tensor:
    """Return the Jaccard similarity (B, layers) of the top tokens of two logits (B, layers, V)."""
    count = min(TOP, one.shape[-1])
    first, second = one.topk(count).indices, other.topk(count).indices
    common = (first[..., :, None] == second[..., None, :]).sum((-1, -2)).double()
    return common / (2 * count - common)


def _analysis(
    spec: ModelSpec,
    known: Known,
    columns: Mapping[str, Floats],
    projection: Projection,
    seed: int,
) -> Analysis:
    n, depth = len(known.probes), spec.depth
    readings = [*COMPONENTS, "residual"]
    single = {f"{k}/{i}": v[:, i] for k, v in columns.items() for i in range(depth)}
    single |= {f"first/{r}": _first(columns[f"leads/{r}"]) for r in readings}
    for kind in ("cosine", "jaccard"):
        gap = columns[f"{kind}/ffn"] - columns[f"{kind}/attention"]
        single[f"gap/{kind}"] = gap.mean(1)
        single |= {f"gap/{kind}/{i}": gap[:, i] for i in range(depth)}
    single["gap/first"] = single["first/ffn"] - single["first/attention"]
    drawn = redrawn_means(single, RESAMPLES, seed)

    def one(name: str, unit: str, scale: float = 1.0) -> Estimate:
        return metric(drawn[name], n, PROTOCOL, unit, scale)

    rows = [
        LayerRow(
            layer=i,
            cosine={c: one(f"cosine/{c}/{i}", "cosine") for c in COMPONENTS},
            jaccard={c: one(f"jaccard/{c}/{i}", "Jaccard") for c in COMPONENTS},
            probability={r: one(f"probability/{r}/{i}", "percent", 100.0) for r in readings},
        )
        for i in range(depth)
    ]
    found = Analysis(
        model=spec.describe(),
        parallel=spec.parallel,
        projection=projection,
        top=TOP,
        **known.counts,
        rows=rows,
        cosine_gap=one("gap/cosine", "cosine"),
        jaccard_gap=one("gap/jaccard", "Jaccard"),
        first_choice={r: one(f"first/{r}", "layer") for r in readings},
        first_choice_gap=one("gap/first", "layers"),
        sentences=[],
    )
    layerwise = {
        kind: [one(f"gap/{kind}/{i}", kind) for i in range(depth)] for kind in ("cosine", "jaccard")
    }
    found.sentences = [*_words(found, layerwise), known.describe() + "."]
    return found


def _first(leads: Floats) -> Floats:
    """Return the first layer with a 1, or the number of layers if there is none, (n,)."""
    depth = leads.shape[1]
    return np.where(leads.any(1), leads.argmax(1), depth).astype(np.float64)


def _words(found: Analysis, layerwise: Mapping[str, Sequence[Estimate]]) -> list[str]:
    """Say what was found for this model.

    A difference between the components, overall or in a layer, is stated if the 95 % interval of the
    paired difference (over facts) excludes 0, else "no difference found". The attribute counts as
    readable from the first layer at which it is the first choice.
    """
    sentences = [
        _change("cosine similarity", found.cosine_gap, layerwise["cosine"]),
        _change(f"overlap of the top {found.top} tokens", found.jaccard_gap, layerwise["jaccard"]),
        _readable(found),
        _loudest(found),
    ]
    if found.parallel:
        sentences.append(
            "Attention and FFN of a layer run side by side here: the FFN does not see what its own "
            "layer's attention put out."
        )
    sentences.append(
        "These numbers describe the components; whether attention may stay unwritten is measured "
        "by editing: modalign edit compare."
    )
    return sentences


def _change(name: str, gap: Estimate, layers: Sequence[Estimate]) -> str:
    attention = [i for i, each in enumerate(layers) if each.low > 0]
    ffn = [i for i, each in enumerate(layers) if each.high < 0]
    counted = f"attention changes it more in {len(attention)} of {len(layers)} layers, the FFN in {len(ffn)}"
    size = f"{abs(gap.value):.3f} (95 % interval of FFN minus attention {gap.low:.3f} to {gap.high:.3f})"
    if gap.low > 0:
        verdict = f"attention changes its input more than the FFN, by {size}"
    elif gap.high < 0:
        verdict = f"the FFN changes its input more than attention, by {size}"
    else:
        verdict = f"{NO_DIFFERENCE} between attention and FFN ({gap.low:.3f} to {gap.high:.3f})"
    return f"By {name} of input and output, mean over layers: {verdict}; {counted}."


def _readable(found: Analysis) -> str:
    depth, gap = len(found.rows), found.first_choice_gap

    def at(name: str) -> str:
        value = found.first_choice[name].value
        return f"{value:.1f}" if value < depth else "no layer"

    where = (
        f"attention at layer {at('attention')}, the FFN at {at('ffn')}, the residual stream at "
        f"{at('residual')} (means over facts; {depth} stands for never)"
    )
    if gap.low > 0:
        verdict = "The attribute becomes the first choice of attention before that of the FFN"
    elif gap.high < 0:
        verdict = "The attribute becomes the first choice of the FFN before that of attention"
    else:
        verdict = f"Which component says the attribute first: {NO_DIFFERENCE}"
    return f"{verdict}: {where}."


def _loudest(found: Analysis) -> str:
    def peak(name: Component) -> str:
        row = max(found.rows, key=lambda each: each.probability[name].value)
        value = row.probability[name]
        return f"{value.value:.1f} % ({value.low:.1f} to {value.high:.1f}) at layer {row.layer}"

    return (
        f"Read alone, attention's output gives the attribute at most {peak('attention')}, the FFN's "
        f"{peak('ffn')}."
    )
