"""Where the parts of a model came from and under which licence: what their own model cards say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from modalign.configuration import read_yaml

CARD = "README.md"


def origin(name: str | None) -> dict[str, str]:
    """A part's name (of a folder, its last part) and, where its model card states one, its licence.

    Args:
        name: hub name or folder; None or "none": the part came with nothing.
    """
    if name is None or name == "none":
        return {}
    folder = Path(name)
    card: Path | None
    if folder.is_dir():
        card, shown = folder / CARD, folder.resolve().name
    else:
        card, shown = _cached(name), name
    licence = _stated(card) if card else None
    return {"name": shown} | ({"licence": licence} if licence else {})


def _cached(name: str) -> Path | None:
    """The hub's model card, where loading the part has left it on this machine."""
    try:
        found = try_to_load_from_cache(name, CARD)
    except HFValidationError:  # a user's own class, say: no name of the hub
        return None
    return Path(found) if isinstance(found, str) else None


def _stated(card: Path) -> str | None:
    """The licence in a model card's front matter: its identifier, or the name of another one."""
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
