"""``modalign merge`` of LoRA folders: one adapter from several, and a report of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from modalign.errors import UsageError
from modalign.files import sha256
from modalign.merging.adapters import (
    EXACT,
    PEFT,
    check_alike,
    check_method,
    is_adapter,
    merge_adapters,
    open_adapter,
)
from modalign.merging.coefficients import Coefficients
from modalign.merging.config import MergeConfig
from modalign.models.quiet import quietly
from modalign.pages.parts import Quantity, Section, Words, tabulate
from modalign.pages.report import Report
from modalign.patches.peft_export import WEIGHTS
from modalign.progress import Progress
from modalign.runs import command_line, run_folder
from modalign.version import __version__

ADAPTER = "adapter"


class AdapterParent(BaseModel):
    """An adapter that was merged: name, folder, hash of its weights' file, weight, largest rank."""

    model_config = ConfigDict(extra="forbid")

    name: str
    folder: str
    sha256: str
    weight: float
    rank: int


class AdapterResult(BaseModel):
    """What a merge of adapters wrote.

    Attributes:
        parents: in order.
        method, options: as given.
        exact: whether it adds exactly the weighted sum of what the parents add.
        ranks: layer -> rank of the merged adapter.
        model: its folder.
        seconds, command, version: how it was made.
    """

    model_config = ConfigDict(extra="forbid")

    parents: list[AdapterParent]
    method: str
    options: dict[str, Any]
    exact: bool
    ranks: dict[str, int]
    model: str
    seconds: float
    command: str
    version: str


def are_adapters(config: MergeConfig) -> bool:
    """Whether the parents are adapters.

    Raises:
        UsageError: some are, and some are not.
    """
    found = {name: is_adapter(folder) for name, folder in config.parents.items()}
    if len(set(found.values())) > 1:
        one = next(name for name, adapter in found.items() if adapter)
        raise UsageError(
            f"{one} is an adapter, and not all parents are: apply it to its model first, or merge adapters alone"
        )
    return all(found.values())


@quietly()
def merge_adapter_folders(
    config: MergeConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda name, done, total: None,
) -> AdapterResult:
    """Merge LoRA folders into ``out/adapter`` and report beside it.

    Raises:
        UsageError: adapters that do not fit each other, or options that are only for models.
        DataError: a file cannot be read; the layer is named where its values are not finite.
    """
    began = time.monotonic()
    unfit = {
        "--search": config.search,
        "--eval": config.evaluation,
        "--val": config.val,
        "--joint": config.joint,
        "--as patch": config.form == "patch",
        "--assign": config.assign,
        "--like": config.like,
    }
    for option, given in unfit.items():
        if given:
            raise UsageError(f"{option} is for models, and these are adapters; merge them first")
    adapters = [open_adapter(name, folder) for name, folder in config.parents.items()]
    check_method(config.method)
    check_alike(adapters)
    default = 1.0 if config.method == "task_arithmetic" else 1 / len(adapters)
    coefficients = Coefficients.read(config.weight, list(config.parents), default)
    layers = [path for each in adapters for path in each.factors]
    if unused := coefficients.unused(layers):
        raise UsageError(
            f"--weight {unused[0]}=...: no layer matches this pattern, such as {layers[0]}"
        )
    values = config.model_dump(mode="json")
    with run_folder(out, values, resume=resume, overwrite=overwrite) as folder:
        folder.begin()
        progress("layers", 0, 1)
        ranks = merge_adapters(
            adapters, coefficients, config.method, config.options, config.base, out / ADAPTER
        )
        progress("layers", 1, 1)
        weights = coefficients.of("")
        found = AdapterResult(
            parents=[
                AdapterParent(
                    name=each.name,
                    folder=str(each.folder),
                    sha256=sha256(each.folder / WEIGHTS),
                    weight=weights[each.name],
                    rank=max(right.shape[1] for _, right in each.factors.values()),
                )
                for each in adapters
            ],
            method=config.method,
            options=config.options,
            exact=not config.method.startswith(PEFT),
            ranks=ranks,
            model=str(out / ADAPTER),
            seconds=time.monotonic() - began,
            command=command_line(),
            version=__version__,
        )
        report_of(found).write(out)
    return found


def report_of(found: AdapterResult) -> Report:
    """Return the report of a merge of adapters."""
    columns = (
        Quantity("adapter", "name"),
        Quantity("weight", lambda row: f"{row.weight:g}"),
        Quantity("rank", "rank", "whole"),
        Quantity("folder", "folder"),
        Quantity("SHA-256", lambda row: row.sha256[:16], meaning="of its weights' file"),
    )
    parts = [
        Words("what", "", "/exact", [words_of(found)]),
        tabulate(("parents", "parents", "/parents"), columns, found.parents),
    ]
    names = " + ".join(each.name for each in found.parents)
    return Report(
        "Merge of adapters",
        f"{names} by {found.method}; {found.model}",
        [Section("how", "How it was made", "", parts)],
        f"modalign {found.version}; {found.command}",
        found,
    )


def words_of(found: AdapterResult) -> str:
    """Return what the merged adapter is, in a sentence."""
    most = max(found.ranks.values())
    if found.exact:
        return (
            f"{len(found.ranks)} layers of rank {most} at most: it adds exactly the weighted sum of what the "
            "parents add, which the files were checked for."
        )
    return (
        f"{len(found.ranks)} layers of rank {most} at most, by peft's {found.method.removeprefix(PEFT)}: this "
        f"is not the weighted sum of what the parents add ({' and '.join(EXACT)} are)."
    )
