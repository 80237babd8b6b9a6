"""``modalign eval --corrupt``: the same questions about noisy, blurred, compressed and turned media."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.io import wavfile

from modalign.data.audio import native_audio
from modalign.data.images import open_image
from modalign.data.records import Media, Record
from modalign.errors import DataError, UsageError
from modalign.evaluation.conditions.asked import Run, Way, changed, check_task, judge
from modalign.evaluation.conditions.corruptions import SEVERITIES, Signal, Sound, corruption
from modalign.evaluation.conditions.results import Conditions
from modalign.evaluation.opened import Opened
from modalign.evaluation.passes import BLANK, blanked, with_other_media
from modalign.evaluation.tasks.base import Task
from modalign.named import Entry
from modalign.progress import Progress

CLEAN = "as they are"


@dataclass(frozen=True)
class Corrupt:
    """Which corruptions.

    Attributes:
        names: of corruptions, with options where they have some.
        severities: 1 to 5.
        seed: of noise and of the side to turn to.
    """

    names: tuple[str, ...]
    severities: tuple[int, ...] = (1, 3, 5)
    seed: int = 0

    def entries(self) -> list[Entry]:
        """Return the functions, with their options.

        Raises:
            UsageError: an unknown corruption, or a severity that is none.
        """
        wrong = [str(level) for level in self.severities if level not in SEVERITIES]
        if wrong or not self.severities:
            raise UsageError(f"--severity {', '.join(wrong) or 'nothing'}: severities are 1 to 5")
        return [corruption.entry(name) for name in self.names]


def evaluate_corrupted(
    opened: Opened,
    task: Task,
    corrupt: Corrupt,
    *,
    run: Run,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Conditions:
    """Ask about the media as they are, under every corruption and severity, and about blank ones.

    Args:
        opened: model and records.
        task: scores the answers.
        corrupt: which corruptions.
        run: where answers are kept.
        max_new_tokens: longest answer.
        batch_size: questions answered together.
        progress: told how far each condition is.

    Raises:
        UsageError: a task that cannot be compared question by question.
        DataError: a corruption changes no medium of the records.
    """
    check_task(task, "--corrupt")
    how = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    ways = [
        Way(CLEAN, {}, changed(opened, task, lambda record: record, **how)),
        Way(BLANK, {"corruption": BLANK}, changed(opened, task, lambda record: blanked([record])[0], **how)),
    ]  # fmt: skip
    pairs, notes = [(CLEAN, BLANK)], []
    for name, entry in zip(corrupt.names, corrupt.entries(), strict=True):
        kinds: Sequence[str] = entry.facts["modalities"]
        touched = [any(m.modality in kinds for m in record.media()) for record in opened.records]
        if not any(touched):
            there = sorted({m.modality for record in opened.records for m in record.media()})
            raise DataError(
                f"{opened.data}: {name} changes {' and '.join(kinds)}, of which the records hold none (they hold "
                f"{', '.join(there) or 'text only'})"
            )
        if not all(touched):
            notes.append(
                f"{name} changes {' and '.join(kinds)}: {touched.count(False)} of {len(touched)} records stay."
            )
        for level in corrupt.severities:
            called = f"{name} {level}"
            change = corrupter(entry, level, corrupt.seed)
            ways.append(
                Way(
                    called,
                    {"corruption": name, "severity": level},
                    changed(opened, task, change, **how),
                )
            )
            pairs.append((called, CLEAN))
    settings = {
        "corruptions": list(corrupt.names), "severities": list(corrupt.severities), "seed": corrupt.seed, **how
    }  # fmt: skip
    return judge("corruption", opened, task, ways, pairs, run, settings, notes, progress)


def corrupter(entry: Entry, severity: int, seed: int) -> Callable[[Record], Record]:
    """Return what corrupts a record's media; equal media are corrupted equally."""

    def change(record: Record) -> Record:
        return with_other_media(
            record, [corrupted(medium, entry, severity, seed) for medium in record.media()]
        )

    return change


def corrupted(medium: Media, entry: Entry, severity: int, seed: int) -> Media:
    """Return a corrupted copy of a medium, or the medium itself if the corruption is not of its modality."""
    if medium.modality not in entry.facts["modalities"]:
        return medium
    digest = hashlib.sha256(f"{seed}:{entry.name}:{medium.content_hash()}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    signal: Signal = (
        open_image(medium) if medium.modality == "image" else Sound(*native_audio(medium))
    )  # fmt: skip
    changed_signal: Signal = entry.function(signal, severity, rng)
    return Media(
        medium.modality, data=_encoded(changed_signal), annotations=medium.annotations, source=medium.source
    )  # fmt: skip


def _encoded(signal: Signal) -> bytes:
    buffer = io.BytesIO()
    if isinstance(signal, Image.Image):
        signal.save(buffer, "PNG", compress_level=1)
    else:
        wavfile.write(buffer, signal.rate, np.asarray(signal.samples, dtype=np.float32))
    return buffer.getvalue()
