"""How Sphinx builds the site from the README, the docs and the examples: ``make docs``."""

from __future__ import annotations

from importlib.metadata import version as installed

from sphinx.application import Sphinx
from sphinx.highlighting import lexers

project = "modalign"
version = release = installed("modalign")
root_doc = "docs/index"
extensions = ["myst_parser"]
include_patterns = ["README.md", "CHANGELOG.md", "docs/**", "examples/**"]
exclude_patterns = ["**/build", "**/runs"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

# Headings get the anchors that a forge gives them, so that one link serves both.
myst_heading_anchors = 4
html_theme = "furo"
html_title = "modalign"
html_extra_path = ["site"]  # the first page leads to docs/index.html
html_show_sphinx = False
html_copy_source = False


def setup(app: Sphinx) -> None:
    """Colour JSON Lines as JSON; data in a block may stop in the middle, so errors are not told."""
    from pygments.lexers.data import JsonLexer

    lexers["jsonl"] = JsonLexer()


suppress_warnings = ["misc.highlighting_failure"]
