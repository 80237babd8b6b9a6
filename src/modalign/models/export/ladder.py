"""Export to a rung of the ladder, with a check before anything is left on disk.

native class -> remote code -> gateway (prompt embeddings) -> modalign's own server. The requested
rung is written, or refused with the reason, but never replaced by another.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import LlavaForConditionalGeneration

from modalign.errors import ModalignError, UsageError, choose
from modalign.files import check_room, new_folder
from modalign.models.asking import conversation_of
from modalign.models.export.codes import SIGNAL, TARGET, check_codes, save_codes
from modalign.models.export.folder import (
    TRAINING_ANSWERS,
    SavedModel,
    check_folder,
    load_model,
    save_model,
    stored_as,
    widest_dtype,
)
from modalign.models.export.from_llava import composed_from_llava
from modalign.models.export.gateway import REFERENCE, save_gateway, save_language_model
from modalign.models.export.native import TARGETS, NotNativeError, no_such_target
from modalign.models.export.records import records_for
from modalign.models.export.verify import (
    NEW_TOKENS,
    Expected,
    check_trained_ids,
    tolerance_of,
    verify_in_clean_process,
)
from modalign.models.local import is_gguf, model_folder
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.open import takes_media
from modalign.models.probe import Conversation, observe
from modalign.models.quiet import quietly
from modalign.models.tool_text import TOOLS
from modalign.progress import Progress
from modalign.strict_json import read_object

Rung = Literal["native", "remote-code", "gateway"]
RECORDS = 4  # compared by default


@dataclass(frozen=True)
class Exported:
    """A written and checked export.

    Attributes:
        folder: where it is.
        rung: ``native``, ``remote-code`` or ``gateway``.
        loads_as: the class that loads it.
        records: conversations that were compared.
        compared_on: their origin.
        difference: the largest difference of logits.
        tolerance: the allowed difference, relative to the largest logit where that is above 1.
        greedy_equal: whether the greedy answers are the same; always true if the folder exists.
        notes: notes for users.
        language_model: folder of the plain language model, if written.
    """

    folder: Path
    rung: Rung
    loads_as: str
    records: int
    compared_on: str
    difference: float
    tolerance: float
    greedy_equal: bool
    notes: tuple[str, ...]
    language_model: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return json.loads(json.dumps(asdict(self), default=str))


@dataclass
class _Source:
    """The model to export, and its answers to the conversations used for comparison.

    It computes in float32, so that rounding does not differ, and is written in ``stored``.
    """

    folder: Path
    model: Any
    processor: Any
    conversations: list[Conversation]
    seen: dict[str, Any]
    stored: torch.dtype

    @property
    def composed(self) -> bool:
        return isinstance(self.model, ModalignForConditionalGeneration)


@quietly()
def export_model(
    source: Path | str,
    out: Path | str,
    *,
    to: Rung | None = None,
    target: str | None = None,
    data: str | None = None,
    records: int = RECORDS,
    columns: Mapping[str, str] | None = None,
    tolerance: float | None = None,
    language_model: Path | str | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write a saved model in another form, load that without modalign, and compare the two.

    Args:
        source: a folder that modalign saved.
        out: new, empty, or a model folder to replace.
        to: the rung; None for the highest possible.
        target: the native class, from ``TARGETS`` or ``CausalLM``; None: the connector's.
        data: records to compare on; None for those of the run that made the model, then, if the
            model takes images, the starter's.
        records: number of records.
        columns: column that is read -> its name in the data.
        tolerance: for logits, relative to the largest where that is above 1; None: by number format.
        language_model: with a gateway, the folder for the plain language model.
        progress: called with the progress.

    Raises:
        UsageError: no such model, rung or class, or not possible for this model; the message says
            why.
        DataError: there are no records to compare on.
        ModalignError: the export gives different answers; it is removed again.
    """
    out = Path(out)
    _check_form(to, target, language_model)
    if is_gguf(source):
        raise UsageError(
            f"{source} is a plain language model: 'modalign import {source} -o {out}' writes it as a folder that "
            "transformers and every server of text models load"
        )
    folder = model_folder(source)
    _check_request(folder, out, language_model)
    tell = progress or (lambda *_: None)
    tell("exporting (loading)", 0, 3)
    model, processor = load_model(folder)
    stored = widest_dtype(model)
    values = sum(parameter.numel() for parameter in model.parameters())
    check_room(out, values * stored.itemsize, "the exported model takes")
    model = model.float()
    chosen, origin = records_for(folder, processor, data, records, columns)
    conversations = [conversation_of(record, processor) for record in chosen]
    if isinstance(model, ModalignForConditionalGeneration):
        for conversation in conversations:
            check_trained_ids(processor, conversation)
    seen = observe(model, processor, conversations, NEW_TOKENS)
    if to in ("gateway", "remote-code") and isinstance(model, LlavaForConditionalGeneration):
        model, processor = composed_from_llava(model, processor)
    given = _Source(folder, model, processor, conversations, seen, stored)
    limit = tolerance_of(model) if tolerance is None else tolerance
    tell("exporting (writing)", 1, 3)
    with ExitStack() as stack:
        temporary = stack.enter_context(new_folder(out))
        rung, loads_as, notes = _write(given, temporary, to, target)
        if (folder / TRAINING_ANSWERS).is_file():
            shutil.copy(folder / TRAINING_ANSWERS, temporary)
        plain = None
        if rung == "gateway":
            beside = new_folder(Path(language_model)) if language_model else _passing()
            plain = stack.enter_context(beside)
            with stored_as(stored, model):
                save_language_model(model, processor, plain)
        tell("exporting (comparing in a clean process)", 2, 3)
        difference = _check(given, temporary, plain, limit, out)
    tell("exporting", 3, 3)
    return Exported(
        folder=out,
        rung=rung,
        loads_as=loads_as,
        records=len(conversations),
        compared_on=origin,
        difference=difference,
        tolerance=limit,
        greedy_equal=True,
        notes=tuple(notes),
        language_model=None if language_model is None else Path(language_model),
    )


def _check_form(to: str | None, target: str | None, language: Path | str | None) -> None:
    """Refuse a form that no export has, before anything is looked for."""
    if to is not None and to not in get_args(Rung):
        raise UsageError(f"there is no form {to!r} to export to; {choose(to, get_args(Rung))}")
    if target is not None and target not in (*TARGETS, TARGET):
        raise UsageError(no_such_target(target, TARGET))
    if target is not None and to not in (None, "native"):
        raise UsageError(f"--target names a native class; it does not go with --to {to}")
    if language is not None and to != "gateway":
        raise UsageError("--language-model goes with --to gateway only")


def _check_request(folder: Path, out: Path, language: Path | str | None) -> None:
    """Refuse what cannot be exported, or not to there, before anything is loaded."""
    if (folder / TOOLS).is_file():
        raise UsageError(
            f"{folder} contains a language model that reads the text of tools; an export cannot contain the "
            "tools, so only 'modalign serve' can serve it"
        )
    if (folder / REFERENCE).is_file():
        raise UsageError(f"{folder} is already a gateway: it contains no language model to export")
    if not takes_media(folder):
        raise UsageError(
            f"{folder} contains a plain language model: transformers and every server of text models "
            "load it as it is"
        )
    if out.resolve() == folder.resolve():
        raise UsageError(f"{out} is the model itself; name another folder")
    check_folder(out)
    if language is not None:
        check_folder(Path(language))


# --- rungs --------------------------------------------------------------------------------------


def _write(
    source: _Source, folder: Path, to: Rung | None, target: str | None
) -> tuple[Rung, str, list[str]]:
    """Write the requested or the highest rung; return what loads it, and notes."""
    if not source.composed:
        return _copied(source, folder, to, target)
    if to == "gateway":
        with stored_as(source.stored, source.model):
            notes = save_gateway(source.model, source.processor, folder)
        return "gateway", "ModalignMedia", notes
    if to == "remote-code":
        saved = _save(source, folder, "remote-code")
        return "remote-code", type(source.model).__name__, list(saved.notes)
    try:
        return _native(source, folder, target)
    except NotNativeError as reason:
        if to == "native" or target is not None:
            raise UsageError(
                f"{source.folder} cannot be a native model: {reason}. It can be remote-code"
            ) from reason
        saved = _save(source, folder, "remote-code")
        notes = [f"It cannot be a native model: {reason}.", *saved.notes[1:]]
        return "remote-code", type(source.model).__name__, notes


def _save(source: _Source, folder: Path, target: str | None) -> SavedModel:
    return save_model(source.model, source.processor, folder, target=target, dtype=source.stored)


def _native(source: _Source, folder: Path, target: str | None) -> tuple[Rung, str, list[str]]:
    if target is None:
        target = _codes_or_none(source.model)
    if target == TARGET:
        with stored_as(source.stored, source.model):
            notes = save_codes(source.model, source.processor, folder)
        return "native", type(source.model.language_model).__name__, notes
    try:
        saved = _save(source, folder, target)
    except ModalignError as error:
        if isinstance(error.__cause__, NotNativeError):
            raise error.__cause__ from error
        raise
    if saved.kind == "remote-code":
        raise NotNativeError(saved.notes[0].removeprefix("Saved with its own code: ").rstrip("."))
    config = read_object(folder / "config.json")
    return "native", config["architectures"][0], list(saved.notes)


def _codes_or_none(model: ModalignForConditionalGeneration) -> str | None:
    try:
        check_codes(model)
    except NotNativeError:
        return None
    return TARGET


def _copied(
    source: _Source, folder: Path, to: Rung | None, target: str | None
) -> tuple[Rung, str, list[str]]:
    """Copy a native model unchanged."""
    name = type(source.model).__name__
    if to not in (None, "native"):
        raise UsageError(
            f"{source.folder} is already a {name}: servers of transformers models load it as it is, "
            f"and of the native classes only Llava can be converted for {to}"
        )
    if target is not None and not name.startswith(f"{target}For"):
        raise UsageError(f"{source.folder} is a {name}; it cannot become {target}")
    shutil.copytree(source.folder, folder, dirs_exist_ok=True)
    return "native", name, []


# --- the check ----------------------------------------------------------------------------------


def _check(
    source: _Source, folder: Path, language_model: Path | None, limit: float, shown: Path
) -> float:
    """Load the export where modalign cannot be imported; raise ModalignError if it differs."""
    form: Literal["whole", "gateway", "codes"] = "whole"
    media = None
    if language_model is not None:
        form = "gateway"
    elif (folder / SIGNAL).is_dir():
        form, media = "codes", folder / SIGNAL
    expected = Expected(
        folder=folder,
        conversations=source.conversations,
        seen=source.seen,
        tolerance=limit,
        form=form,
        media=media,
        language_model=language_model,
        dtype=widest_dtype(source.model),
    )
    try:
        return verify_in_clean_process([expected])[0]
    except ModalignError as error:
        said = str(error).replace(str(folder), str(shown))
        raise ModalignError(f"{said}. Nothing was written") from error


@contextmanager
def _passing() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
