"""The reports of ``edit suggest`` and ``edit analyze``: words, figures, and every number in a table."""

from __future__ import annotations

from modalign.editing.layers.analysis import Analysis
from modalign.editing.layers.proposal import Suggestion
from modalign.editing.layers.trials import Trial
from modalign.pages.drawing import line_chart
from modalign.pages.figures import Axis
from modalign.pages.parts import Advice, Figure, Quantity, Section, Table, Words, tabulate
from modalign.pages.report import Report
from modalign.version import __version__

PERCENT = Axis("", "percent", bounds=(0.0, 100.0))
LAYER = Quantity("layer", "layer", "count")
END = Quantity("last layer", lambda trial: trial.layers[-1], "count")
PARTS = tuple(Quantity(name, name) for name in ("target", "paraphrase", "neighbour", "score"))
SHOWN = ("layers", "clamp", "lr", "per_width", "null_share", "attention_vector")


def _settings_words(trial: Trial) -> str:
    named = {name: trial.settings[name] for name in SHOWN if name in trial.settings}
    return " ".join(f"{name}={value}".replace(", ", ",") for name, value in named.items())


SETTINGS = Quantity("settings", _settings_words)


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
    """Make the report of a proposal and every trial that led to it."""
    first, last = found.layers[0], found.layers[-1]
    name = f"{found.method}, " + (f"layer {last}" if first == last else f"layers {first} to {last}")
    advice = Advice("advice", "Proposed", "/settings", name=name, sentences=found.sentences)
    said = Words("command", "", "/command", [found.command], "list")
    ends = _by_end(found)
    chart = line_chart(
        "Best trial that ends at a layer", PARTS, ends, END, PERCENT, band=(first, last)
    )
    lead = (
        "Probe facts were written with each of these settings. Target and paraphrase say how far the "
        "new answer won, neighbour how far other subjects kept theirs: half of it is the answer's "
        "probability against the other one's, half whether it is said. The score is their harmonic mean."
    )
    figure = Figure("ends", chart.title, "/trials", [chart])
    sections = [
        Section("proposal", "Proposal", "", [advice, said]),
        Section("trials", "What was tried", lead, [figure, trials_table(found)]),
    ]
    foot = f"modalign {__version__}; {found.probes} probe facts."
    return Report("Settings for editing this model", found.model, sections, foot, found)


def _by_end(found: Suggestion) -> list[Trial]:
    """Return the best trial for each last layer, ascending."""
    best: dict[int, Trial] = {}
    for trial in found.trials:
        end = trial.layers[-1]
        if end not in best or best[end].score < trial.score:
            best[end] = trial
    return [best[end] for end in sorted(best)]


def trials_table(found: Suggestion) -> Table:
    """Tabulate every trial, in order."""
    return tabulate(
        ("trials-table", f"{found.method}: settings tried on probe facts", "/trials"),
        (SETTINGS, *PARTS),
        found.trials,
        tone=lambda trial: "chosen" if trial == found.best else "",
    )


def analysis_report(found: Analysis) -> Report:
    """Make the report of an analysis."""
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
    return Report(
        "What attention and FFN do with a fact", found.model, sections, _foot(found.known), found
    )


def analysis_table(found: Analysis) -> Table:
    """Tabulate what attention and FFN do in every layer."""
    caption = f"Last token of the prompt, means over {found.known} facts"
    columns = (LAYER, *SIMILARITY["cosine"], *SIMILARITY["Jaccard"], *PROBABILITY)
    return tabulate(("rows", caption, "/rows"), columns, found.rows)


def _foot(known: int) -> str:
    return f"modalign {__version__}; {known} facts; intervals are 95 %, bootstrap over facts."
