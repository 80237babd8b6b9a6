"""``modalign edit run``: from a model folder and a file of edits to a patch file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import PreTrainedModel

from modalign.chat_templates import let_through
from modalign.configuration import validated
from modalign.data.corpus import read_corpus
from modalign.editing.benchmarks.scoring import already_known
from modalign.editing.checks import refuse_unwritten, refuse_warnings
from modalign.editing.computation import Options
from modalign.editing.edits import Edit
from modalign.editing.engine.asking import Asking
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.layers.probes import of_edits
from modalign.editing.layers.proposal import measured
from modalign.editing.methods import DEFAULT_METHOD, Method, method_named
from modalign.editing.methods.base import ValueMethod
from modalign.editing.multimodal.pictures import read_pictures
from modalign.editing.readers import read_edits, validate_against_tokenizer
from modalign.editing.readers.rows import shown
from modalign.errors import DataError, UsageError, choose
from modalign.files import check_free
from modalign.lengths import declared_length
from modalign.models.asking import tokenizer_of
from modalign.models.open import open_model
from modalign.models.quiet import quietly
from modalign.patches import applied, check_tokenizer, load_patch, save_patch
from modalign.patches.patch import Patch
from modalign.progress import Progress

Basis = Literal["auto", "published"]
BASES: tuple[Basis, ...] = get_args(Basis)


@dataclass(frozen=True)
class RunRequest:
    """What the user asked for.

    Attributes:
        model: folder or hub name.
        edits: file.
        out: the patch file.
        method: name.
        settings: fields of the method's configuration, as text or values.
        basis: where the other fields come from: ``auto``, measured on the model, or ``published``.
        text: file of text for the key statistics.
        pictures: data file of prompts about pictures for the key statistics.
        columns: of that file, column that is read -> its name there.
        on: patches below the new one, lowest first.
        resume: continue an interrupted run.
        overwrite: replace the patch file if it exists.
        strict: refuse a patch with warnings.
        skip_known: leave out edits whose target the model says already, instead of refusing.
        limit: use only this many edits, from the start of the file.
        control_tokens: special tokens that keep their function in texts, too.
        device, dtype: of the model.
        cache: folder of statistics and values.
    """

    model: str
    edits: Path
    out: Path
    method: str = DEFAULT_METHOD
    settings: dict[str, Any] = field(default_factory=dict)
    basis: Basis = "auto"
    text: Path | None = None
    pictures: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    on: tuple[Path, ...] = ()
    resume: bool = False
    overwrite: bool = False
    strict: bool = False
    skip_known: bool = False
    limit: int | None = None
    control_tokens: tuple[str, ...] = ()
    device: str | None = None
    dtype: str | None = None
    cache: Path | None = None


@dataclass(frozen=True)
class RunResult:
    """The patch, where it is, and what computing it took."""

    patch: Patch
    out: Path
    sha256: str
    seconds: float


@quietly()
def run_edit(
    request: RunRequest,
    progress: Progress | None = None,
    said: Callable[[str], None] = lambda message: None,
) -> RunResult:
    """Compute a patch and write it.

    Raises:
        DataError: the edits cannot be used; the message lists every problem with its line.
        UsageError: an unknown method or setting, a model that cannot be edited, or a patch file that exists
            already or cannot be written.
        ModalignError: the computation failed, no edit was written, or ``--strict`` refused the result.
    """
    if request.out.suffix != ".safetensors":
        raise UsageError(f"{request.out}: the name of a patch file must end in .safetensors")
    check_free(request.out, overwrite=request.overwrite)
    if request.basis not in BASES:
        raise UsageError(f"--settings {request.basis}: {choose(request.basis, BASES)}")
    if request.columns and not request.pictures:
        raise UsageError("--columns names columns of the --pictures file: give --pictures as well")
    method = configured(request.method, request.settings)
    edits = read_edits(request.edits, limit=request.limit, warn=said)
    corpus = read_corpus(request.text) if request.text else None
    pictures = (
        read_pictures(request.pictures, columns=request.columns, seed=method.config.seed, said=said)
        if request.pictures
        else None
    )
    below = tuple(load_patch(path) for path in request.on)
    model, reader = open_model(request.model, dtype_named(request.dtype), request.device)
    tokenizer = tokenizer_of(reader)
    let_through(tokenizer, request.control_tokens)
    for patch in below:
        check_tokenizer(patch, tokenizer)
    validate_against_tokenizer(edits, tokenizer, declared_length(model.config))
    asking = Asking(reader, method.config.template)
    edits = _unknown(model, asking, edits, below, request.skip_known, progress, said)
    options = Options(
        corpus=corpus,
        pictures=pictures,
        below=below,
        cache=request.cache,
        resume=request.resume,
        progress=progress,
        said=said,
    )
    began = time.monotonic()
    if request.basis == "auto":
        method = tuned(model, reader, method, edits, request.settings, options)
    patch = method.compute(model, reader, edits, options=options, name=request.out.stem)
    if request.strict:
        refuse_warnings(patch)
    refuse_unwritten(patch)
    sha256 = save_patch(patch, request.out)
    return RunResult(patch, request.out, sha256, time.monotonic() - began)


def tuned(
    model: PreTrainedModel,
    reader: Any,
    method: Method,
    edits: Sequence[Edit],
    settings: dict[str, Any],
    options: Options,
) -> Method:
    """Return the method with settings measured on the model; given ones take precedence.

    Fine-tuning keeps its published settings, and so do edits of pictures or at a token other than the subject's.
    """
    if not isinstance(method, ValueMethod) or method.config.lookup not in ("auto", "subject"):
        return method
    if any(edit.image is not None or edit.subject_at is None for edit in edits):
        options.said(
            "using the published settings, since edits of pictures or without a subject are not probed"
        )
        return method
    found = measured(
        ModelSpec.detect(model),
        reader,
        type(method),
        of_edits(edits),
        edits,
        fixed=settings,
        options=options,
        seed=method.config.seed,
    )
    for sentence in found.sentences:
        options.said(sentence)
    return configured(method.name, found.settings)


def configured(name: str, settings: dict[str, Any]) -> Method:
    """Return a method with settings given by name.

    Raises:
        UsageError: there is no such method or setting, or a value is out of range.
    """
    kind = method_named(name)
    return kind(validated(kind.config_class, settings, name))


def dtype_named(name: str | None) -> torch.dtype | None:
    """Return a floating-point type by its name.

    Raises:
        UsageError: torch has none with that name.
    """
    if name is None:
        return None
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UsageError(f"there is no dtype {name!r}: float32, bfloat16, float16 or float64")
    return found


def _unknown(
    model: Any,
    asking: Asking,
    edits: list[Edit],
    below: Sequence[Patch],
    skip: bool,
    progress: Progress | None,
    said: Callable[[str], None],
) -> list[Edit]:
    """Refuse, or leave out, edits whose target the model says already.

    Raises:
        DataError: there are such edits (the message gives their lines), or none is left.
    """
    textual = [edit for edit in edits if edit.image is None]
    with ExitStack() as stack:
        for patch in below:
            stack.enter_context(applied(model, patch))
        known = already_known(model, asking, textual, progress=progress) if textual else []
    same = [edit for edit, found in zip(textual, known, strict=True) if found]
    if not same:
        return edits
    if not skip:
        lines = [f"  {e.source or e.id}: the model says {e.target!r} already" for e in same]
        hint = "leave them out with --skip-known, or take them out of the file"
        raise DataError("\n".join([f"{len(same)} edits change nothing:", *shown(lines), hint]))
    said(f"{len(same)} edits left out: the model says their targets already")
    gone = {id(edit) for edit in same}
    left = [edit for edit in edits if id(edit) not in gone]
    if not left:
        raise DataError("no edit is left: the model says every target already")
    return left
