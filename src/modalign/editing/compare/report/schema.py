"""The JSON schema of report.json, shipped as schema.json beside this file.

After a change of ``results.py`` call :func:`write_schema`.
"""

from __future__ import annotations

import json
from pathlib import Path

from modalign.editing.compare.results import EditComparison

PATH = Path(__file__).with_name("schema.json")


def schema_text() -> str:
    """The schema as pydantic gives it."""
    return json.dumps(EditComparison.model_json_schema(), indent=2) + "\n"


def write_schema() -> None:
    """Renew the shipped file."""
    PATH.write_text(schema_text(), encoding="utf-8")
