"""Recompute a patch without some of its edits, to compare with taking them out of the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modalign.data.corpus import read_corpus
from modalign.editing.computation import Options
from modalign.editing.edits import Edit
from modalign.editing.methods import method_named
from modalign.editing.run import configured
from modalign.errors import DataError
from modalign.models.asking import tokenizer_of
from modalign.models.open import open_model
from modalign.patches import check_tokenizer
from modalign.patches.apply import fit
from modalign.patches.header import EditRecord
from modalign.patches.inspection import distance
from modalign.patches.patch import Patch
from modalign.progress import Progress


@dataclass(frozen=True)
class Distance:
    """How far a patch is from a recomputed one.

    Attributes:
        tensors: per parameter, |Delta - recomputed Delta| / |recomputed Delta|.
        same_statistics: whether both used the same C0; a different C0 by itself changes the update.
    """

    tensors: dict[str, float]
    same_statistics: bool


def distance_from_fresh(
    dropped: Patch,
    model: str,
    *,
    text: Path | None = None,
    progress: Progress | None = None,
    said: Callable[[str], None] = lambda message: None,
) -> Distance:
    """Compute the patch of the remaining edits, and compare.

    Args:
        dropped: the patch without some edits, with its settings and contexts in the header.
        model: folder of the base model.
        text: the text that the key statistics were taken from.
        progress: told how far each step is.
        said: told what the user should know.

    Raises:
        DataError: the patch is for another tokenizer, or holds edits that cannot be rebuilt from it.
    """
    header = dropped.header
    if header.after:
        raise DataError(
            f"{header.name}: was computed on top of other patches; give them to edit run"
        )
    loaded, reader = open_model(model)
    check_tokenizer(dropped, tokenizer_of(reader))
    fit(loaded, dropped)  # refuses another base by its tensors' hashes
    fields = method_named(header.method).config_class.model_fields
    settings = {name: value for name, value in header.settings.items() if name in fields}
    settings |= {"contexts": list(header.editing.contexts)} if "contexts" in fields else {}
    options = Options(
        corpus=read_corpus(text) if text else None,
        resume=True,
        progress=progress,
        said=said,
    )
    edits = [_edit(record) for record in header.editing.edits]
    fresh = configured(header.method, settings).compute(loaded, reader, edits, options=options)
    return Distance(
        tensors=distance(dropped, fresh),
        same_statistics=fresh.header.editing.covariance == header.editing.covariance,
    )


def _edit(record: EditRecord) -> Edit:
    """Rebuild an edit from its record in the patch.

    Raises:
        DataError: the edit is about a picture, whose file may have changed.
    """
    if record.image is not None:
        raise DataError(f"edit {record.id} has a picture; compute the patch again with edit run")
    at = record.prompt.find(record.subject) if record.subject else None
    return Edit(record.id, record.subject, record.prompt, at, record.target, record.truth)
