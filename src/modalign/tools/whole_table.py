"""A whole table as text, for a language model that reads what its tools write."""

from __future__ import annotations

from typing import Any

from modalign.data.records import Media
from modalign.data.whole_tables import SERIALISATIONS, open_whole
from modalign.tools.base import LINES, HashFile, Json, Signature, Tool


class TableTool(Tool):
    """Every row of a table as a line (or more), after its header.

    Args:
        form: how it is written: markdown, csv, json or sentences.
    """

    def __init__(self, form: str = "markdown", **settings: Any) -> None:
        super().__init__(**settings, signature=Signature(result=LINES))
        self.form = form

    @property
    def parameters(self) -> int:
        """It has none."""
        return 0

    def run(self, medium: Media, **arguments: Any) -> list[str]:
        """Write a table."""
        return SERIALISATIONS[self.form](open_whole(medium)).splitlines()

    def identity(self, hash_file: HashFile) -> Json:
        """Its version and form."""
        return ["table", 1, self.form]
