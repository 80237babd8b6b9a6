"""The report of a comparison: report.json, report.md and report.html.

The JSON file is the report; the other two are renderings of it. The HTML page is one file that asks
the network for nothing: pictures and drawings are inside, its policy forbids everything else, and
the only script (sorting the ranking) is allowed by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from markupsafe import Markup

from modalign.comparison.report import markdown, plots, view
from modalign.comparison.report.schema import schema_text
from modalign.comparison.results import Comparison
from modalign.files import write_atomically
from modalign.numbers import words as fmt
from modalign.pages.page import resource, template

__all__ = ["render_html", "render_json", "render_markdown", "schema_text", "write_report"]


def write_report(comparison: Comparison, out: Path) -> None:
    """Write report.json, report.md and report.html into ``out``; each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "report.json", render_json(comparison))
    write_atomically(out / "report.md", render_markdown(comparison))
    write_atomically(out / "report.html", render_html(comparison))


def render_json(comparison: Comparison) -> str:
    """The comparison itself."""
    return comparison.model_dump_json(indent=2) + "\n"


def render_markdown(comparison: Comparison) -> str:
    """Tables only."""
    return markdown.render(comparison)


def render_html(comparison: Comparison) -> str:
    """One self-contained page."""
    methods = plots.ranked(comparison.methods)
    script = resource(__name__, "report.js.jinja").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    span = view.accuracy_range(comparison)
    return template(__name__, "report.html.jinja").render(
        comparison=comparison,
        methods=methods,
        order=[m.name for m in methods],
        recommended=view.recommended(comparison),
        charts=[
            (cost.title, Markup(drawing))
            for cost in plots.COSTS
            if (drawing := plots.quality_against_cost(comparison, cost))
        ],
        skills=Markup(plots.skills(comparison) or ""),
        skill_names=sorted({skill for m in methods for skill in m.skills}),
        curves=Markup(plots.learning_curves(comparison) or ""),
        matrix=view.difference_matrix(comparison),
        interval_cell=lambda i, family: Markup(plots.small_interval(i, family, span)),
        family_mark=lambda family: Markup(plots.family_mark(family)),
        families=[f for f in view.FAMILIES if any(m.family == f for m in methods)],
        view=view,
        fmt=fmt,
        script=Markup(script),
        script_hash=digest,
    )
