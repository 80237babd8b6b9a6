"""A saved model with the records of a data file that it is to answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from modalign.chat_templates import let_through
from modalign.data.readers import read_records
from modalign.data.readers.columns import unread
from modalign.data.records import Record
from modalign.data.splits import drawn_over_skills
from modalign.data.validation import validate
from modalign.errors import DataError
from modalign.evaluation.generation import answer_records
from modalign.evaluation.likelihood import score_options
from modalign.evaluation.tasks.base import Output, Task
from modalign.evaluation.tasks.exact import Exact
from modalign.models.asking import (
    conversation_of,
    media_inputs,
    modalities_of,
    prompt_sample,
    text_ids,
    tokenizer_of,
)
from modalign.models.encoders.loading import acceptance
from modalign.models.open import open_model
from modalign.models.tool_text import ToolReader
from modalign.patches import with_patches

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """A model and its records.

    Attributes:
        folder, data: where they are from.
        model, reader: as :func:`modalign.models.open.open_model` gives them, patches on top.
        records: validated, and such as the task can use.
        modalities: that the model takes.
    """

    folder: Path
    data: str
    model: Any
    reader: Any
    records: list[Record]
    modalities: list[str]


def open_for(
    folder: Path,
    data: str,
    task: Task,
    *,
    limit: int | None = None,
    skip_broken: str = "0%",
    columns: Mapping[str, str] | None = None,
    device: str = "auto",
    control_tokens: Sequence[str] = (),
    patches: Sequence[Path] = (),
) -> Opened:
    """Open a model and read the records that a task asks it.

    Args:
        folder: model folder.
        data: data file; the last assistant turn is the expected answer.
        task: refuses records before the model is loaded, where it can.
        limit: only so many records, drawn over skills by the task's seed.
        skip_broken: share of broken records to drop.
        columns: expected column -> its name in the file.
        device: device to compute on.
        control_tokens: special tokens that are such where a text holds them, too.
        patches: patch files to apply to the loaded model.

    Raises:
        DataError: broken or empty data, or records that lack what the task needs.
    """
    if not isinstance(task, Exact) and (
        known := drawn_over_skills(read_records(data, columns=columns).records, limit, task.seed)
    ):
        task.check(known)  # before the model is loaded; exact takes any record
    loaded, reader = open_model(folder, device=device)
    let_through(tokenizer_of(reader), control_tokens)
    model = with_patches(loaded, tokenizer_of(reader), patches)
    taken = modalities_of(reader) or ["image"]  # which a language model then refuses
    specs = {modality: own["spec"] for modality, own in getattr(reader, "signals", {}).items()}
    records, _ = validate(
        read_records(data, modalities=taken, columns=columns),
        modalities=taken,
        skip_broken=skip_broken,
        check=acceptance(specs),
    )
    records = drawn_over_skills(records, limit, task.seed)
    if not records:
        raise DataError(f"{data} holds no record to evaluate on")
    for text in unread(records):
        log.warning("%s", text)
    task.check(records)
    return Opened(folder, data, model, reader, records, taken)


def outputs_of(
    model: Any,
    reader: Any,
    task: Task,
    records: Sequence[Record],
    max_new_tokens: int,
    batch_size: int,
    tell: Callable[[int, int], None] | None = None,
) -> list[Output]:
    """Return what a model puts out for records, as the task asks and scores them."""
    asked = [task.asked(record) for record in records]
    if task.by_likelihood:
        offered = [task.offered(record) for record in records]
        return [
            Output(options=found) for found in score_options(model, reader, asked, offered, tell)
        ]
    texts = answer_records(model, reader, asked, max_new_tokens, batch_size, tell)
    return [Output(text) for text in texts]


def prompt_tokens(reader: Any, record: Record) -> int:
    """Return how many positions a record's prompt takes, media included."""
    if isinstance(reader, ToolReader):
        return int(reader.collator.length(prompt_sample(record, tokenizer_of(reader))))
    conversation = conversation_of(record, reader)
    if isinstance(reader, PreTrainedTokenizerBase):
        return len(text_ids(reader, conversation))
    mask = media_inputs(reader, [conversation], [str(record.source)])["attention_mask"]
    return int(mask.sum())
