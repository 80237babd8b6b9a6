"""Origins and licences of a model's parts, from their model cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from modalign.configuration import read_yaml
from modalign.models.local import is_gguf, unpacked

CARD = "README.md"


def origin(name: str | None) -> dict[str, str]:
    """Return a part's name (the last component of a folder) and its licence, if its card states one.

    Args:
        name: hub name or folder; None or "none": the part has no origin.
    """
    if name is None or name == "none":
        return {}
    folder = Path(unpacked(name)) if is_gguf(name) else Path(name)
    card: Path | None
    if folder.is_dir():
        card, shown = folder / CARD, folder.resolve().name
    else:
        card, shown = _cached(name), name
    licence = _stated(card) if card else None
    return {"name": shown} | ({"licence": licence} if licence else {})


def _cached(name: str) -> Path | None:
    try:
        found = try_to_load_from_cache(name, CARD)
    except HFValidationError:  # for example a user's own class: not a hub name
        return None
    return Path(found) if isinstance(found, str) else None


def _stated(card: Path) -> str | None:
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if not text.startswith("---"):
        return None
    try:
        front: Any = read_yaml(text.split("---", 2)[1])
    except ValueError:
        return None
    stated = front.get("license") if isinstance(front, dict) else None
    if stated == "other":
        stated = front.get("license_name") or "other"
    if isinstance(stated, list):
        stated = ", ".join(map(str, stated))
    return str(stated) if stated else None
