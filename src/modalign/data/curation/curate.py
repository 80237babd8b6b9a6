"""Curate a data set, and replay a curation from its card."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from modalign.data.curation.card import (
    Card,
    CardBroken,
    CardExample,
    CardInput,
    CardMedia,
    CardOperator,
    CardOutput,
    CardReference,
    card_json,
    card_markdown,
    load_card,
)
from modalign.data.curation.config import Request, located, operator_of
from modalign.data.curation.inputs import Input
from modalign.data.curation.libraries import version_of
from modalign.data.curation.operators import Operator
from modalign.data.curation.pipeline import Pipeline
from modalign.data.curation.store import BROKEN
from modalign.data.curation.writing import Written, write_kept
from modalign.errors import DataError, ModalignError, UsageError
from modalign.files import write_atomically
from modalign.progress import Progress
from modalign.version import __version__


@dataclass(frozen=True)
class Curated:
    """The result of a curation: the card, and the paths of the files."""

    card: Card
    out: Path
    card_path: Path


def curate(
    request: Request,
    progress: Progress = lambda name, done, total: None,
    *,
    expected: Card | None = None,
) -> Curated:
    """Apply operators to data sets; write the kept rows and a card.

    The output and the card appear complete or not at all. An interrupted run leaves its working file
    beside the output; `resume` continues from it, and a run without it starts again.

    Args:
        request: what to curate, and how.
        progress: called with the progress.
        expected: a card whose outcome this run must reproduce; otherwise nothing is written.

    Raises:
        UsageError: invalid settings, a missing library, or an interrupted run of another request.
        DataError: more rows are broken than allowed, none is left, or an input cannot be read.
        ModalignError: the working file cannot be written.
    """
    if not request.operators:
        raise UsageError("no operators: name at least one")
    try:
        with closing(Pipeline(request, progress)) as pipeline:
            try:
                pipeline.run()
                written = write_kept(pipeline, partial(_check_outcome, pipeline, expected))
            except (DataError, UsageError):
                pipeline.finished = True  # another run would find the same
                raise
            card = _card(pipeline, written)
            write_atomically(request.card_path, card_json(card))
            write_atomically(request.card_path.with_suffix(".md"), card_markdown(card))
            pipeline.finished = True
    except sqlite3.Error as error:
        raise ModalignError(
            f"{request.out}: its working file cannot be used ({error}): is another "
            "run writing it, or the disk full? If it is damaged, run again without resuming."
        ) from None
    return Curated(card, request.out, request.card_path)


def replay(
    card_path: Path,
    out: Path | None = None,
    progress: Progress = lambda name, done, total: None,
    *,
    resume: bool = False,
) -> Curated:
    """Repeat a curation from its card: the same rows, byte for byte.

    Args:
        card_path: the card.
        out: where to write (default: the card's own output).
        progress: called with the progress.
        resume: continue an interrupted replay.

    Raises:
        DataError: an input, the evaluation data or an encoder differs from the card (the message names it),
            or the same inputs gave other rows (it names libraries with other versions). Nothing is
            written then.
    """
    card = load_card(card_path)
    folder = card_path.parent
    own = folder / card.output.path
    target = own if out is None else out
    same = target.resolve() == own.resolve()
    operators = []
    for done in card.operators:
        operator = operator_of(done.name, done.settings, str(card_path))
        operators.append(located(operator, partial(_from_card, folder)))
    root = None if card.media_root is None else Path(_from_card(folder, card.media_root))
    request = Request(
        inputs=tuple(_from_card(folder, item.path) for item in card.inputs),
        out=Path(os.path.normpath(target)),
        operators=tuple(operators),
        card=card_path if same else None,
        media_root=root,
        modalities=tuple(card.modalities),
        columns=card.columns,
        skip_broken=card.broken.allowed,
        examples=card.examples_per_operator,
        resume=resume,
    )
    _check_inputs(card, folder)
    return curate(request, progress, expected=card)


# --- checks of a replay -------------------------------------------------------------------------


def _check_inputs(card: Card, folder: Path) -> None:
    for item in card.inputs:
        _check_hash(_from_card(folder, item.path), item.sha256)
    for operator in card.operators:
        for reference in operator.references:
            _check_hash(_from_card(folder, reference.path), reference.sha256)


def _check_hash(path: str, expected: str) -> None:
    found = Input(path, 0).fingerprint
    if found != expected:
        raise DataError(
            f"{path}: changed since the card was written (sha256 {found[:12]}..., the card says "
            f"{expected[:12]}...): restore the old content, or curate again"
        )


def _check_outcome(pipeline: Pipeline, expected: Card | None, written: Written) -> None:
    if expected is None:
        return
    request = pipeline.request
    if _media(pipeline) != expected.media:
        raise DataError(
            "the media files of the inputs differ from those of the card: restore "
            "the old files, or curate again"
        )
    versions = {o.name: o.versions for o in expected.operators}
    now = {o.name: _versions(o) for o in request.operators}
    changed = [
        f"{library} {version} (now {now[name].get(library)})"
        for name, libraries in versions.items()
        for library, version in libraries.items()
        if now[name].get(library) != version
    ]
    why = f"; other versions: {', '.join(changed)}" if changed else ""
    if written.selection != expected.output.selection:
        raise DataError(
            f"{written.rows} rows are kept, but the card's run kept {expected.output.rows}, or "
            f"others{why}. Nothing was written."
        )
    replaced = request.card is not None
    if replaced and written.sha256 != expected.output.sha256:
        raise DataError(f"the same rows give other bytes than in the card{why}")


# --- the card -----------------------------------------------------------------------------------


def _card(pipeline: Pipeline, written: Written) -> Card:
    request = pipeline.request
    folder = request.card_path.parent
    broken = pipeline.broken_report()
    rows = broken.kept
    operators = []
    for index, operator in enumerate(request.operators):
        dropped = pipeline.store.count_dropped(index)
        operators.append(
            CardOperator(
                name=operator.name,
                settings=located(operator, partial(_to_card, folder)).model_dump(mode="json"),
                versions=_versions(operator),
                references=[
                    CardReference(path=_to_card(folder, path), sha256=sha256)
                    for path, sha256 in pipeline.references[index].items()
                ],
                rows_in=rows,
                dropped=dropped,
                rows_out=rows - dropped,
                examples=_examples(pipeline, written, index),
            )
        )
        rows -= dropped
    return Card(
        modalign=__version__,
        inputs=[
            CardInput(
                path=_to_card(folder, item.path),
                sha256=item.fingerprint,
                rows=pipeline.rows_of(item),
            )
            for item in pipeline.inputs
        ],
        media_root=_to_card(folder, str(request.media_root)) if request.media_root else None,
        modalities=list(request.modalities),
        columns=dict(request.columns),
        examples_per_operator=request.examples,
        rows=pipeline.rows,
        broken=CardBroken(
            rows=broken.dropped,
            allowed=pipeline.allowed,
            kinds=broken.kinds,
            examples=_examples(pipeline, written, BROKEN),
        ),
        operators=operators,
        media=_media(pipeline),
        distributions=written.distributions,
        output=CardOutput(
            path=_to_card(folder, str(request.out)),
            sha256=written.sha256,
            rows=written.rows,
            selection=written.selection,
        ),
    )


def _examples(pipeline: Pipeline, written: Written, operator: int) -> list[CardExample]:
    found = []
    for position, reason in pipeline.store.first_dropped(operator, pipeline.request.examples):
        source = pipeline.source_of(position)
        text = written.texts.get(position, "")
        found.append(CardExample(file=source.file, row=source.row, reason=reason, text=text))
    return found


def _media(pipeline: Pipeline) -> CardMedia | None:
    if all(operator.needs is None for operator in pipeline.request.operators):
        return None
    files, sha256 = pipeline.media.digest()
    return CardMedia(files=files, sha256=sha256)


def _versions(operator: Operator) -> dict[str, str]:
    return {library: version_of(library) for library in operator.libraries}


def _to_card(folder: Path, path: str) -> str:
    """Return a path relative to the card's folder; a hub name stays as it is."""
    exists = os.path.exists(path) or os.path.exists(path.rpartition(":")[0])
    return Path(os.path.relpath(path, folder)).as_posix() if exists else path


def _from_card(folder: Path, path: str) -> str:
    """Return a card's path relative to the current folder."""
    joined = os.path.normpath(folder / path)
    exists = os.path.exists(joined) or os.path.exists(joined.rpartition(":")[0])
    return joined if exists else path
