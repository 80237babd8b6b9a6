"""A report: one set of results with its JSON, its schema, its page and its Markdown.

The results are a pydantic model. Its JSON is the report for programs, with a schema that is generated from
its classes; the page and the Markdown are renderings of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from modalign.files import write_atomically
from modalign.pages import html, markdown
from modalign.pages.parts import Document


@dataclass(frozen=True)
class Report(Document):
    """Results with page, Markdown and schema.

    Attributes:
        results: the results that all figures are read from.
    """

    results: BaseModel

    def json(self) -> str:
        """Return the results as JSON."""
        return self.results.model_dump_json(indent=2) + "\n"

    def schema(self) -> str:
        """Return the JSON schema of the results, generated from their classes."""
        return schema_of(type(self.results))

    def html(self) -> str:
        """Return one page without network requests."""
        return html.render(self)

    def markdown(self) -> str:
        """Return words and tables."""
        return markdown.render(self)

    def write(self, folder: Path, name: str = "report") -> None:
        """Write :func:`files_of` the folder, each atomically."""
        self.write_as(folder / f"{name}.html")

    def write_as(self, out: Path) -> None:
        """Write :func:`files_as` that name, each atomically."""
        out.parent.mkdir(parents=True, exist_ok=True)
        forms = (self.json, self.schema, self.markdown, self.html)
        for path, form in zip(files_as(out), forms, strict=False):
            write_atomically(path, form())


def files_of(folder: Path, name: str = "report") -> list[Path]:
    """Return NAME.json, NAME.schema.json, NAME.md and NAME.html in a folder."""
    return [folder / f"{name}.{form}" for form in ("json", "schema.json", "md", "html")]


def files_as(out: Path) -> list[Path]:
    """Return only the JSON for a name that ends in ``.json``, else all forms under its stem."""
    return [out] if out.suffix == ".json" else files_of(out.parent, out.stem)


def schema_of(results: type[BaseModel]) -> str:
    """Return the JSON schema of a class of results."""
    return json.dumps(results.model_json_schema(), indent=2) + "\n"
