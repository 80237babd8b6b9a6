"""Prune a saved causal language model: cut it, check the folder, and judge it beside its parent and chance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from modalign.compression.pruning.candidate import (
    CHECKED,
    check_logits,
    logits_on,
    silenced,
    write_candidate,
)
from modalign.compression.pruning.evidence import Evidence, gather
from modalign.compression.pruning.plans import FORMS, Form, Plan, plan
from modalign.compression.pruning.scores import rate, score_named
from modalign.compression.pruning.shapes import WIDTHS, FileNames, find_shape
from modalign.compression.pruning.structure import KINDS, Kind, Stack, find_stack
from modalign.data.corpus import read_corpus, windows
from modalign.data.records import Message, Record, Source
from modalign.data.supervision import Sample
from modalign.errors import DataError, UsageError, choose
from modalign.evaluation.scoring import score as loss_of
from modalign.files import check_free, new_folder, write_atomically
from modalign.lengths import declared_length
from modalign.models.collation import Collator
from modalign.models.export.verify import Expected, tolerance_of, verify_in_clean_process
from modalign.models.open import open_model
from modalign.models.probe import observe
from modalign.models.projections import evaluating
from modalign.models.sampling import own_samples
from modalign.models.saved import OpenedModel, open_composed
from modalign.numbers.bootstrap import estimate_of_sums, ratio
from modalign.numbers.estimate import Estimate
from modalign.patches.folder_weights import FolderWeights
from modalign.progress import Progress
from modalign.trust import trusted

LENGTH = 128  # tokens of a window
OWN = 64  # samples of the model, where no text is given
MOST = 512  # windows of a text that are read
HELD_OUT = 4  # one window of so many
RESULT = "result.json"


class Row(BaseModel):
    """A model's figures.

    Attributes:
        loss: nats per token of held-out windows.
        parameters: that are there and were not set to zero.
        bytes: of the weights' files; of the random plan, which is not written, None.
    """

    model_config = ConfigDict(extra="forbid")

    loss: Estimate
    parameters: int
    bytes: int | None = None


class PruneResult(BaseModel):
    """What :func:`prune_model` found; also ``result.json``.

    Attributes:
        form, score, keep, seed: as given.
        parent, pruned, random: figures; ``random`` is pruned by chance to the same size.
        removed: what was kept of what, in words.
        saved_as: class of the folder.
        silenced_difference: largest difference of logits from the parent with these units silenced.
        clean_process_difference: largest difference of logits of the folder loaded by plain transformers.
    """

    model_config = ConfigDict(extra="forbid")

    form: str
    score: str
    keep: float
    seed: int
    parent: Row
    pruned: Row
    random: Row
    removed: str
    saved_as: str
    silenced_difference: float
    clean_process_difference: float


@dataclass(frozen=True)
class _Texts:
    calibration: list[Sample]
    held_out: list[Sample]


def prune_model(
    model: Path | str,
    out: Path,
    *,
    keep: float = 0.75,
    form: str = "uniform",
    score: str | None = None,
    units: Sequence[str] | None = None,
    text: Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = lambda name, done, total: None,
) -> PruneResult:
    """Prune a causal language model and write it as a folder.

    Args:
        model: its folder.
        out: the pruned model's folder, with ``result.json``.
        keep: share of the layers' parameters that may stay.
        form: uniform, depth, per_layer or mask.
        score: a registered score; None: block_influence for depth, else fluctuation.
        units: kinds that may be cut, mlp and heads; None: all that the model has.
        text: plain text to calibrate and judge on; None: samples of the model.
        seed: of those samples, of the split and of chance.
        overwrite: replace a model folder that is there.
        progress: told after each batch.

    Raises:
        UsageError: an option is wrong, the target is out of reach, or the model cannot be pruned.
        DataError: the text or the weights are unusable.
        ModalignError: the folder does not compute what it must.
    """
    source = Path(model)
    ranked = score_named(score or ("block_influence" if form == "depth" else "fluctuation"))
    _check_options(source, out, keep, form, overwrite)
    kinds = _kinds(units, form)
    shaped = cast(Form, form)
    configuration = _configuration(source)
    opened = open_composed(source)
    _check_model(opened)
    opened.model.float()
    stack = find_stack(opened.model)
    names = _names(opened, stack, source)
    texts = _texts(opened, text, seed)
    collator = opened.collator()
    evidence = Evidence()
    size = int(keep * stack.size)
    by_chance = rate(stack, score_named("random"), evidence, seed)
    # What the size and the form forbid is refused before any pass over the samples.
    plan(stack, shaped, by_chance, size, kinds)
    if ranked.needs:
        evidence = gather(stack, texts.calibration, collator, ranked.needs, progress)
    chosen = plan(stack, shaped, rate(stack, ranked, evidence, seed), size, kinds)
    chance = plan(stack, shaped, by_chance, chosen.size(stack), kinds)
    shape = find_shape(stack, chosen, configuration, names)
    whole = sum(parameter.numel() for parameter in opened.model.parameters())

    def row(loss: Estimate, cut: Plan | None, folder: Path | None) -> Row:
        gone = stack.size - cut.size(stack) if cut else 0
        return Row(loss=loss, parameters=whole - gone, bytes=folder and _bytes(folder))

    with new_folder(out) as new:
        write_candidate(source, stack, chosen, names, shape, new)
        parent = row(_loss(opened.model, texts.held_out, collator), None, source)
        with silenced(stack, chance):
            random = row(_loss(opened.model, texts.held_out, collator), chance, None)
        with silenced(stack, chosen):
            wanted = logits_on(opened.model, collator, texts.calibration[:CHECKED])
        with trusted():
            again = open_composed(new)
            again.model.float()
            got = logits_on(again.model, again.collator(), texts.calibration[:CHECKED])
            difference = check_logits(wanted, got, str(out))
            pruned = row(_loss(again.model, texts.held_out, again.collator()), chosen, new)
            progress("loading in a clean process", 0, 1)
            clean = _check_clean(new, texts.calibration)
            progress("loading in a clean process", 1, 1)
        found = PruneResult(
            form=form,
            score=ranked.name,
            keep=keep,
            seed=seed,
            parent=parent,
            pruned=pruned,
            random=random,
            removed=chosen.words(stack),
            saved_as=shape.carrier,
            silenced_difference=difference,
            clean_process_difference=clean,
        )
        write_atomically(new / RESULT, found.model_dump_json(indent=2) + "\n")
    return found


def _check_options(source: Path, out: Path, keep: float, form: str, overwrite: bool) -> None:
    if not 0 < keep < 1:
        raise UsageError(f"--keep is {keep}: give a share above 0 and below 1")
    if form not in FORMS:
        raise UsageError(f"no form is called {form!r}; {choose(form, FORMS)}")
    if source.resolve() in (out.resolve(), *out.resolve().parents):
        raise UsageError(f"{out} is the model's folder or inside it: choose another one")
    if out.resolve() in source.resolve().parents:
        raise UsageError(f"{out} contains the model's folder: choose another one")
    check_free(out, overwrite=overwrite, folders=True)
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise UsageError(f"{out} holds something that is not a model: choose another folder")


def _kinds(units: Sequence[str] | None, form: str) -> list[Kind] | None:
    if units is None:
        return None
    for name in units:
        if name not in KINDS:
            raise UsageError(f"no units are called {name!r}; {choose(name, KINDS)}")
    if form == "depth":
        raise UsageError("the form depth removes layers: leave --units out")
    return [kind for kind in KINDS if kind in units]


def _configuration(source: Path) -> dict[str, Any]:
    path = source / "config.json"
    if not path.is_file():
        raise UsageError(f"{source}: is not a model folder (it has no config.json)")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: is not a JSON object")
    if found.get("quantization_config"):
        raise UsageError(f"{source}: is quantised; prune the model it was made from")
    if WIDTHS in found:
        raise UsageError(
            f"{source}: its layers differ in width already; prune the model it was made from"
        )
    return found


def _check_model(opened: OpenedModel) -> None:
    if not opened.plain:
        raise UsageError(
            f"{opened.name}: has media; prune cuts causal language models only (docs/prune.md)"
        )
    for name, parameter in opened.model.language_model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise DataError(f"{opened.name}: the tensor {name} has values that are not finite")


def _names(opened: OpenedModel, stack: Stack, source: Path) -> FileNames:
    """The tensors' names in the files; found by values, so for a moment in the dtype in which they are stored."""
    parameters = list(opened.model.parameters())
    try:
        for parameter in parameters:
            parameter.data = parameter.data.to(opened.stored)
        return FileNames.of(stack, source)
    finally:
        for parameter in parameters:
            parameter.data = parameter.data.float()


def _texts(opened: OpenedModel, text: Path | None, seed: int) -> _Texts:
    """Windows to calibrate and to judge on; those of one document stay together if there are several."""
    length = min(LENGTH, declared_length(opened.model.language_model.config) or LENGTH)
    corpus = None if text is None else read_corpus(text)
    samples = windows(corpus, opened.tokenizer, length) if corpus else _own(opened, length, seed)
    groups = [sample.record.group or sample.record.id for sample in samples]
    if len(set(groups)) == 1:
        groups = [sample.record.id for sample in samples]
    order = np.random.default_rng(seed).permutation(list(dict.fromkeys(groups)))
    if len(order) < 2:
        raise DataError(
            f"{text}: holds one window of text; calibrating and judging need two or more"
        )
    apart = set(order[: max(1, len(order) // HELD_OUT)])
    pairs = list(zip(samples, groups, strict=True))
    return _Texts(
        [sample for sample, group in pairs if group not in apart][:MOST],
        [sample for sample, group in pairs if group in apart][:MOST],
    )


def _own(opened: OpenedModel, length: int, seed: int) -> list[Sample]:
    """What the model writes, drawn from all of its distribution."""
    rows = own_samples(
        opened.model.language_model,
        opened.tokenizer,
        OWN * length,
        seed=seed,
        length=length,
        top=None,
    )
    return [
        Sample(
            Record(
                id=f"own:{number}",
                messages=(Message("assistant", (opened.tokenizer.decode(row),)),),
                source=Source("own", number),
            ),
            np.asarray(row, dtype=np.int64),
            np.ones(len(row), dtype=bool),
        )
        for number, row in enumerate(rows, 1)
    ]


def _loss(model: Any, samples: Sequence[Sample], collator: Collator) -> Estimate:
    with evaluating(model), torch.no_grad():
        found = loss_of(model, samples, collator, model.device, batch_size=16)
    table = np.stack([found.loss, found.tokens], axis=1)
    groups = [sample.record.group or sample.record.id for sample in samples]
    loss = estimate_of_sums(table, ratio, groups=groups, unit="nats", over="windows of text")
    if loss is None:
        raise DataError("the loss on the held-out windows is not a number")
    return loss


def _bytes(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in FolderWeights(folder).files)


def _check_clean(folder: Path, samples: Sequence[Sample]) -> float:
    """Load the folder where modalign cannot be imported; the largest difference of logits."""
    longest = sorted(samples, key=lambda sample: -len(sample.ids))[:3]
    length = min(24, *(len(sample.ids) for sample in longest), 24)
    rows: list[Any] = [sample.ids[:length].tolist() for sample in longest]
    model, _ = open_model(folder)
    seen = observe(model, None, rows, 8)
    expected = Expected(
        folder, rows, seen, tolerance=tolerance_of(model), max_new_tokens=8, form="text"
    )
    return verify_in_clean_process([expected])[0]
