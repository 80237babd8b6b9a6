"""The page of ``diagnose``: what each figure says, its drawing, and every number in a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from modalign.evaluation.diagnosis.results import Diagnosis, Diagnostic, ModalityDiagnosis
from modalign.numbers.estimate import Estimate
from modalign.numbers.words import MISSING, ends, in_unit, p_value, percent, points, seconds
from modalign.pages import charts, dots, page

LEADS = {
    "image_gain": "The same questions with the right medium, a blank one, somebody else's, and noise. What "
    "accuracy and the answer's distribution lose without the medium is what it is used for. The greedy answer "
    "is judged token by token against the reference.",
    "modality_gap": "Distance of the centroids of L2-normalised connector tokens and token embeddings "
    "(0 to 2). Chance is the distance of two random halves of the texts. A small distance of clouds that are "
    "not alike inside says little: read it with the mean cosines.",
    "norm_ratio": "How long the connector's tokens are where they enter the language model, against the "
    "text's. A ratio far above 1 drowns text in the residual stream and calls for a lower learning rate at "
    "the start; training does not have to bring it to 1.",
    "mir": "log10 of the Frechet distances between hidden states at modality and at text positions, lengths "
    "divided by the mean text length, summed over layers. Lower is closer. It tells stages of one training "
    "and models of one design apart; it is no quality by itself.",
    "encoder_similarity": "Are media that the encoder finds alike media of which alike things are said? "
    "Encoder features, pooled per medium, against the language model's states of the texts, layer by layer. "
    "Chance is random pairing of media and texts.",
    "connector_similarity": "The same for what the connector gives, pooled per medium: what of the encoder's "
    "neighbourhoods it keeps, and whether it moves them towards the text's.",
    "logit_lens": "Hidden states at modality positions, read through the final norm and head. The share of "
    "positions that say a word of the record's own answer, against other records' answers; entropy over the "
    "vocabulary, at most its logarithm.",
    "attention_mass": "Share of the attention, at the positions that predict the answer, that goes to the "
    "modality's positions; layers are the decoder's, counted from 0. Chance is equal attention to every position. "
    "Attention shows what is read, not what it does to the answer.",
}
_AXES = {
    "share": "percent",
    "difference of shares": "percentage points",
    "nats": "nats",
    "": "",
}


def diagnosis_page(found: Diagnosis) -> str:
    """The whole diagnosis as one self-contained HTML page."""
    sections = []
    for each in found.modalities:
        several = len(found.modalities) > 1
        sections.append(page.Section(_about(each), "", page.bullets(sentences(each))))
        for diagnostic in each.diagnostics:
            title = f"{diagnostic.title}: {each.modality}" if several else diagnostic.title
            sections.append(page.Section(title, LEADS[diagnostic.name], _body(title, diagnostic)))
    foot = (
        f"modalign {found.version}; {found.command}; seed {found.seed}; {found.device}, {found.dtype}; "
        f"{seconds(found.seconds)}. Intervals are 95 %, over records."
    )
    patched = f", patched by {', '.join(found.patches)}" if found.patches else ""
    lead = f"{found.model}{patched} on {found.records} of {found.available} records of {found.data}"
    return page.page("The modality gap of a model", lead, sections, foot)


def _about(found: ModalityDiagnosis) -> str:
    return f"{found.modality.capitalize()}: {found.encoder}, {found.connector} ({found.enters})"


def sentences(found: ModalityDiagnosis) -> list[str]:
    """The answer in a few sentences that the figures bear; a number and its sign stay on one line."""
    looking = found.diagnostic("image_gain")
    right = next(iter(looking.figures.values()))
    said = [
        f"{found.records} records about {found.media} media; {percent(right.value)} answered rightly."
    ]
    for name in ("blank", "shuffled"):
        gain = looking.figures.get(f"gain over {name}")
        if gain is None or not gain.bounded:
            continue
        verdict = "it uses the medium" if gain.sign > 0 else "no use of the medium is shown"
        said.append(
            f"With {name} media accuracy changes by {points(-gain.value)} points "
            f"(95 % {points(-gain.high)} to {points(-gain.low)}): {verdict}."
        )
    for name, what in (
        ("encoder_similarity", "The encoder"),
        ("connector_similarity", "The connector"),
    ):
        best = next(iter(found.diagnostic(name).figures.values()), None)
        if best is not None and best.p is not None:
            than = "more than" if best.p < 0.05 else "no more than"
            said.append(
                f"{what}'s neighbourhoods agree with the text's {than} random pairing does: "
                f"{percent(best.value)} of neighbours against {percent(best.chance)} (p {p_value(best.p)})."
            )
    missing = [each.title for each in found.diagnostics if each.undefined]
    if missing:
        said.append(f"Not defined here: {', '.join(missing)}.")
    return [sentence.replace(" %", "\u00a0%") for sentence in said]


def chance(figure: Estimate) -> str:
    """Chance, and what it reaches in 97.5 % of cases where that is known."""
    if figure.chance is None:
        return MISSING
    words = in_unit(figure.chance, figure.unit)
    high = figure.chance_high
    return words if high is None else f"{words} (up to {in_unit(high, figure.unit)})"


def table_rows(found: Diagnostic) -> list[list[str]]:
    """Every figure: name, value, interval, chance, p, n."""
    return [
        [
            name,
            in_unit(f.value, f.unit) + (" nats" if f.unit == "nats" else ""),
            ends(f),
            chance(f),
            p_value(f.p),
            str(f.n),
        ]
        for name, f in found.figures.items()
    ]


HEADINGS = ("figure", "value", "95 % interval", "chance", "p", "n")


def _body(title: str, found: Diagnostic) -> str:
    if found.undefined:
        return page.bullets([f"Not defined: {found.undefined}."])
    drawings = "".join(
        page.figure(f"{caption}{_of(title, found)}", drawing) for caption, drawing in drawn(found)
    )
    tables = _known_columns(HEADINGS, table_rows(found), f"{title}, figures")
    if found.curves:
        tables += _known_columns(*_layers(found), f"{title}, layer by layer")
    if found.words:
        tables += page.table(*_words(found), label=f"{title}, words")
    notes = "".join(f'<p class="note">{escape(_sentence(note))}</p>' for note in found.notes)
    return drawings + tables + notes


def _of(title: str, found: Diagnostic) -> str:
    """What tells captions of two diagnostics apart that draw the same."""
    return (
        f" ({title.lower()})" if found.name.endswith("_similarity") or title != found.title else ""
    )


def _known_columns(headings: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> str:
    """A table without the columns that hold nothing."""
    known = [n for n in range(len(headings)) if any(row[n] != MISSING for row in rows)]
    kept = [[row[n] for n in known] for row in rows]
    return page.table([headings[n] for n in known], kept, label=label)


def _sentence(note: str) -> str:
    return note[0].upper() + note[1:].rstrip(".") + "."


def drawn(found: Diagnostic) -> list[tuple[str, str]]:
    """Caption and drawing of each part of a diagnostic."""
    if found.name == "image_gain":
        return [
            _rows(found, "accuracy", "Accuracy by medium", (0.0, 1.0)),
            _rows(found, "KL", "Divergence of the answer's distribution", (0.0, 0.0)),
        ]
    if found.name == "modality_gap":
        caption = "Normalised tokens on their two directions of largest spread"
        axes = "first and second principal component, equal scales"
        return [(caption, dots.plane(found.points, title=caption, axes=axes))]
    if found.name == "norm_ratio":
        return [_rows(found, "length", "Mean length at layer 0", (0.0, 0.0))]
    return [_curve(name, curve, found.name == "mir") for name, curve in found.curves.items()]


def _rows(
    found: Diagnostic, prefix: str, caption: str, bounds: tuple[float, float]
) -> tuple[str, str]:
    chosen = {name: f for name, f in found.figures.items() if name.startswith(prefix)}
    unit = next(iter(chosen.values())).unit
    given = [
        dots.Row(name.removeprefix(f"{prefix}, ").removeprefix(f"{prefix} "), _point(figure))
        for name, figure in chosen.items()
    ]
    drawing = dots.rows(given, title=caption, axis=_AXES[unit], show=_tick(unit), bounds=bounds)
    return caption, drawing


def _tick(unit: str) -> Callable[[float], str]:
    return lambda value: f"{100 * value:.0f} %" if unit == "share" else f"{value:.4g}"


def _curve(name: str, curve: Sequence[Estimate], logarithmic: bool) -> tuple[str, str]:
    """A curve over layers with its chance beside it."""
    unit = curve[0].unit
    points = [_point(figure) for figure in curve]
    lines = [charts.Series(name, [_logarithm(p) for p in points] if logarithmic else points)]
    if all(figure.chance is not None for figure in curve):
        top = [figure.chance_high for figure in curve]
        reference = [
            charts.Point(f.chance, f.chance, f.chance if high is None else high)  # type: ignore[arg-type]
            for f, high in zip(curve, top, strict=True)
        ]
        lines.append(charts.Series("chance", reference))
    caption = f"{name[0].upper()}{name[1:]} by layer" + (", logarithmic" if logarithmic else "")
    show = (lambda v: f"{10**v:.3g}") if logarithmic else _tick(unit)
    drawing = charts.layer_lines(
        lines,
        title=caption,
        axis=_AXES[unit] or name,
        show=show,
        bounds=None if logarithmic else (0.0, 0.0),
    )
    return caption, drawing


def _point(figure: Estimate) -> charts.Point:
    if not figure.bounded:
        return charts.Point(figure.value, figure.value, figure.value)
    return charts.Point(figure.value, figure.low, figure.high)


def _logarithm(point: charts.Point) -> charts.Point:
    """Its log10; an interval that reaches below zero is cut off a decade below the value."""
    value, high = (math.log10(max(v, 1e-6)) for v in (point.value, point.high))
    low = math.log10(point.low) if point.low > 0 else value - 1
    return charts.Point(value, max(low, value - 1), high)


def _layers(found: Diagnostic) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the curves."""
    headers = ["layer"]
    for name in found.curves:
        headers += [name, "95 % interval", "chance"]
    count = max(map(len, found.curves.values()))
    rows = []
    for layer in range(count):
        row = [str(layer)]
        for curve in found.curves.values():
            figure = curve[layer]
            row += [in_unit(figure.value, figure.unit), ends(figure), chance(figure)]
        rows.append(row)
    return headers, rows


def _words(found: Diagnostic) -> tuple[list[str], list[list[str]]]:
    """The likeliest tokens of each layer with their share of positions."""
    most = max(map(len, found.words))
    rows = []
    for layer, words in enumerate(found.words):
        cells = [f"{word.token!r} {word.share:.0%}" for word in words]
        rows.append([str(layer), *cells, *[""] * (most - len(cells))])
    ranks = ["likeliest token", *[f"{place}." for place in range(2, most + 1)]]
    return ["layer", *ranks], rows
