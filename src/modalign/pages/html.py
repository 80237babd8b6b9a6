"""A report as one HTML page: style, figures and scripts included, without network requests.

Its policy allows the page's own scripts by their hashes and nothing else. Figures are drawn by Vega, whose
JavaScript the package ``vl-convert-python`` carries; expressions are interpreted, since the policy forbids
``eval``.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from modalign.pages.parts import Document, Figure, Table


def render(report: Document) -> str:
    """Render the page.

    Args:
        report: the report; all its text is escaped.
    """
    scripts = [_resource("page.js")]
    if any(isinstance(part, Figure) for section in report.sections for part in section.parts):
        scripts = [_library(), _resource("figures.js"), *scripts]
    return _template().render(
        report=report,
        style=Markup(_resource("page.css")),
        scripts=[Markup(script) for script in scripts],
        allowed=Markup(" ".join(_hash(script) for script in scripts)),
        kind=lambda part: type(part).__name__,
        spec=lambda chart: _data(chart.spec()),
        data=_data,
        texts=lambda w: [[[o.name, *o.sentences] for o in line] for line in w.outcomes],
        pct=lambda share: f"{100 * share:.1f}%",
        numeric=_numeric,
        unseen=lambda word: Markup(f'<span class="unseen">{word}</span>'),
    )


@cache
def _library() -> str:
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


@cache
def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8").strip()


@cache
def _template() -> Template:
    """Load the template; everything is escaped, and an undefined name is an error."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_resource("report.html.jinja"))


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _data(value: object) -> Markup:
    """Encode a value as JSON that cannot close its element."""
    return Markup(json.dumps(value, allow_nan=False).replace("<", "\\u003c"))


def _numeric(table: Table, column: int) -> bool:
    cells = [row.cells[column] for row in table.rows if len(row.cells) > column]
    return bool(cells) and any(cell.number for cell in cells)
