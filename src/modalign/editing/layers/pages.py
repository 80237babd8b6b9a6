"""The reports of ``edit suggest`` and ``edit analyze``: words, figures, and every number in a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modalign.editing.layers.analysis import Analysis
from modalign.editing.layers.proposal import CARRIED, REACHED_SHARE, Suggestion
from modalign.numbers.estimate import Estimate
from modalign.pages.drawing import line_chart
from modalign.pages.figures import Axis
from modalign.pages.parts import Advice, Figure, Quantity, Section, Table, Words, tabulate
from modalign.pages.report import Report
from modalign.version import __version__

PLACE_NAMES = {
    "first": "subject's first token",
    "subject": "subject's last token",
    "last": "prompt's last token",
}
KIND_NAMES = {
    "block": "the layer's output",
    "attention": "attention's outputs",
    "ffn": "the FFN's outputs",
}
PERCENT = Axis("", "percent", bounds=(0.0, 100.0))
LAYER = Quantity("layer", "layer", "count")
FINDINGS = (
    Quantity("carried", "carried", "share of the noise's effect that the state returns"),
    Quantity("reached", "reached", "facts to which a vector gave another answer"),
)
WORKS = (
    Quantity("probability", "probability", "of the other answer, with the vector"),
    Quantity("works", lambda finding: "yes" if finding.works else "no"),
)


def _component(name: str) -> str:
    return "FFN" if name == "ffn" else name


SIMILARITY = {
    kind: [
        Quantity(f"{_component(part)}, {kind}", f"{field}.{part}") for part in ("attention", "ffn")
    ]
    for kind, field in (("cosine", "cosine"), ("Jaccard", "jaccard"))
}
PROBABILITY = [
    Quantity(f"{_component(part)}, attribute", f"probability.{part}")
    for part in ("attention", "ffn", "residual")
]


def suggestion_report(found: Suggestion) -> Report:
    """The proposal."""
    name = (f"Layers {found.layers[0]} to {found.layers[-1]}" if len(found.layers) > 1 else "") or (
        f"Layer {found.layers[0]}" if found.layers else "No layer"
    )
    band = (min(found.layers), max(found.layers)) if found.layers else None
    both = line_chart(
        "Carried by the state, and reached by a vector put there",
        FINDINGS,
        found.findings,
        LAYER,
        PERCENT,
        band=band,
    )
    lead = (
        f"A layer works where the lower end of its interval is at least {100 * CARRIED:.0f} % for the "
        f"state carried and {100 * REACHED_SHARE:.0f} % of facts for the vectors. The band marks the "
        "layers proposed."
    )
    advice = Advice("advice", "Proposed", "/layers", name=name, sentences=found.sentences)
    sections = [
        Section("proposal", "Proposal", "", [advice]),
        Section(
            "signals",
            "Both signals at the subject's last token",
            lead,
            [Figure("findings", both.title, "/findings", [both]), findings_table(found)],
        ),
        Section("trace", "Causal trace", _trace_lead(found), _traces(found, band)),
    ]
    return Report(
        "Where this model can be edited", found.model, sections, _foot(found.known), found
    )


def findings_table(found: Suggestion) -> Table:
    """Both signals of every layer."""
    return tabulate(
        ("findings-table", "At the subject's last token, 95 % intervals", "/findings"),
        (LAYER, *FINDINGS, *WORKS),
        found.findings,
        tone=lambda finding: "chosen" if finding.layer in found.layers else "",
    )


def analysis_report(found: Analysis) -> Report:
    """The analysis."""
    charts = [
        line_chart(title, quantities, found.rows, LAYER, axis)
        for title, quantities, axis in (
            (
                "Cosine similarity of input and output",
                SIMILARITY["cosine"],
                Axis("cosine", bounds=(0.0, 0.0)),
            ),
            (
                f"Jaccard similarity of the {found.top} tokens that input and output say most",
                SIMILARITY["Jaccard"],
                Axis("Jaccard", bounds=(0.0, 1.0)),
            ),
            ("Probability of the attribute's first token", PROBABILITY, PERCENT),
        )
    ]
    figures = [
        Figure(f"analysis-{number}", chart.title, "/rows", [chart])
        for number, chart in enumerate(charts)
    ]
    lens = (
        "through the model's own final norm and head"
        if found.projection == "lens"
        else "by the input embeddings, without the final norm"
    )
    lead = (
        f"At the last token of the prompt, means over {found.known} facts the model knows, with 95 % "
        "intervals. Input: what a component receives, after its norm. Output: what it adds to the "
        f"residual stream. Vectors became tokens for the Jaccard similarity {lens}; probabilities are "
        "always read through final norm and head."
    )
    said = Words("sentences", "", "/sentences", found.sentences, "list")
    sections = [
        Section("says", "What it says for this model", "", [said]),
        Section(
            "layers", "Attention and FFN, layer by layer", lead, [*figures, analysis_table(found)]
        ),
    ]
    return Report("Attention and FFN of a fact", found.model, sections, _foot(found.known), found)


def analysis_table(found: Analysis) -> Table:
    """What attention and FFN do in every layer."""
    caption = f"Last token of the prompt, means over {found.known} facts"
    columns = (LAYER, *SIMILARITY["cosine"], *SIMILARITY["Jaccard"], *PROBABILITY)
    return tabulate(("rows", caption, "/rows"), columns, found.rows)


def _foot(known: int) -> str:
    return f"modalign {__version__}; {known} facts; intervals are 95 %, bootstrap over facts."


def _trace_lead(found: Suggestion) -> str:
    window = "one layer" if found.window == 1 else f"{found.window} layers"
    return (
        f"Noise on the subject takes the answer's probability from {found.clean.value:.1f} % to "
        f"{found.corrupted.value:.1f} %. Shown is what returns when one state is put back; attention "
        f"and FFN outputs are put back over a window of {window}."
    )


def _traces(found: Suggestion, band: tuple[float, float] | None) -> list[Figure]:
    figures = []
    for kind, words in KIND_NAMES.items():
        rows = _by_layer({key: found.effects[f"{kind}/{key}"] for key in PLACE_NAMES})
        places = [Quantity(name, key) for key, name in PLACE_NAMES.items()]
        title = f"Returned by {words}, in percentage points"
        axis = Axis("percentage points", "percentage points", bounds=(0.0, None))
        chart = line_chart(title, places, rows, LAYER, axis, band=band)
        numbers = tabulate(
            (f"trace-{kind}-table", title, "/effects"), (LAYER, *places), rows, folded=True
        )
        figures.append(Figure(f"trace-{kind}", title, "/effects", [chart], numbers))
    return figures


def _by_layer(lines: dict[str, list[Estimate]]) -> Sequence[dict[str, Any]]:
    """Lists over layers as one row per layer."""
    values = zip(*lines.values(), strict=True)
    return [
        {"layer": layer, **dict(zip(lines, row, strict=True))} for layer, row in enumerate(values)
    ]
