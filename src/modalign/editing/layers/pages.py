"""The pages of ``edit suggest`` and ``edit analyze``: words, drawings, and every number in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modalign import __version__
from modalign.editing.layers.analysis import Analysis
from modalign.editing.layers.proposal import CARRIED, REACHED_SHARE, Suggestion
from modalign.numbers.estimate import Estimate
from modalign.numbers.words import number
from modalign.pages import charts, page

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


_NOTHING = {"undecided": "Undecided"}


def suggestion_page(found: Suggestion) -> str:
    """The proposal as one self-contained HTML page."""
    name = (f"Layers {found.layers[0]} to {found.layers[-1]}" if len(found.layers) > 1 else "") or (
        f"Layer {found.layers[0]}" if found.layers else "No layer"
    )
    sections = [
        page.Section("Proposal", "", page.advice(name, found.sentences)),
        page.Section(
            "Both signals at the subject's last token",
            f"A layer works where the lower end of its interval is at least {100 * CARRIED:.0f} % for "
            f"the state carried and {100 * REACHED_SHARE:.0f} % of facts for the vectors. The band "
            "marks the layers proposed.",
            page.figure("Carried by the state, and reached by a vector put there", _both(found))
            + page.table(_HEADERS, _rows(found), found.layers),
        ),
        page.Section("Causal trace", _trace_lead(found), _traces(found)),
    ]
    return page.page("Where this model can be edited", found.model, sections, _foot(found.known))


def analysis_page(found: Analysis) -> str:
    """The analysis as one self-contained HTML page."""
    drawings = [
        (
            "Cosine similarity of input and output",
            "cosine",
            {c: [row.cosine[c] for row in found.rows] for c in ("attention", "ffn")},
        ),
        (
            f"Jaccard similarity of the {found.top} tokens that input and output say most",
            "Jaccard",
            {c: [row.jaccard[c] for row in found.rows] for c in ("attention", "ffn")},
        ),
        (
            "Probability of the attribute's first token",
            "percent",
            {
                r: [row.probability[r] for row in found.rows]
                for r in ("attention", "ffn", "residual")
            },
        ),
    ]
    body = "".join(
        page.figure(title, _lines(title, axis, lines)) for title, axis, lines in drawings
    )
    lens = (
        "through the model's own final norm and head"
        if found.projection == "lens"
        else "by the input embeddings, without the final norm"
    )
    sections = [
        page.Section("What it says for this model", "", page.bullets(found.sentences)),
        page.Section(
            "Attention and FFN, layer by layer",
            f"At the last token of the prompt, means over {found.known} facts the model knows, with "
            "95 % intervals. Input: what a component receives, behind its norm. Output: what it adds "
            f"to the residual stream. Vectors became tokens for the Jaccard similarity {lens}; "
            "probabilities are always read through final norm and head.",
            body + page.table(_ANALYSIS_HEADERS, _analysis_rows(found)),
        ),
    ]
    return page.page("Attention and FFN of a fact", found.model, sections, _foot(found.known))


def _foot(known: int) -> str:
    return f"modalign {__version__}; {known} facts; intervals are 95 %, bootstrap over facts."


_HEADERS = ("layer", "carried by its output", "reached by a vector", "probability", "works")
_ANALYSIS_HEADERS = (
    "layer",
    "cosine, attention",
    "cosine, FFN",
    "Jaccard, attention",
    "Jaccard, FFN",
    "attribute, attention",
    "attribute, FFN",
    "attribute, residual",
)


def _rows(found: Suggestion) -> list[list[str]]:
    return [
        [
            str(each.layer),
            _cell(each.carried),
            _cell(each.reached),
            _cell(each.probability),
            "yes" if each.works else "no",
        ]
        for each in found.findings
    ]


def _analysis_rows(found: Analysis) -> list[list[str]]:
    return [
        [
            str(row.layer),
            *(number(row.cosine[c].value) for c in ("attention", "ffn")),
            *(number(row.jaccard[c].value) for c in ("attention", "ffn")),
            *(f"{row.probability[r].value:.1f} %" for r in ("attention", "ffn", "residual")),
        ]
        for row in found.rows
    ]


def _cell(value: Estimate) -> str:
    return f"{value.value:.1f} % ({value.low:.1f} to {value.high:.1f})"


def _both(found: Suggestion) -> str:
    lines = {
        "carried": [each.carried for each in found.findings],
        "reached": [each.reached for each in found.findings],
    }
    return _lines("Carried and reached", "percent", lines, found.layers)


def _trace_lead(found: Suggestion) -> str:
    window = "one layer" if found.window == 1 else f"{found.window} layers"
    return (
        f"Noise on the subject takes the answer's probability from {found.clean.value:.1f} % to "
        f"{found.corrupted.value:.1f} %. Shown is what returns when one state is put back; attention "
        f"and FFN outputs are put back over a window of {window}."
    )


def _traces(found: Suggestion) -> str:
    parts = []
    for kind, words in KIND_NAMES.items():
        lines = {place: found.effects[f"{kind}/{key}"] for key, place in PLACE_NAMES.items()}
        title = f"Returned by {words}, in percentage points"
        parts.append(page.figure(title, _lines(title, "points", lines, found.layers)))
    return "".join(parts)


def _lines(
    title: str, axis: str, lines: Mapping[str, Sequence[Estimate]], chosen: Sequence[int] = ()
) -> str:
    series = [
        charts.Series(
            "FFN" if name == "ffn" else name,
            [charts.Point(each.value, each.low, each.high) for each in values],
        )
        for name, values in lines.items()
    ]
    fine = axis in ("cosine", "Jaccard")
    return charts.layer_lines(
        series,
        title=title,
        axis=axis,
        show=lambda value: number(value, 2 if fine else 0),
        chosen=chosen,
        bounds=(0.0, 1.0) if axis == "Jaccard" else (0.0, 0.0) if fine else (0.0, 100.0),
    )
