"""The request for a comparison of editing methods."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modalign.editing.benchmarks.scores import TASKS, Task
from modalign.editing.compare.plan import SIZES
from modalign.editing.compare.results import MODES, Mode
from modalign.editing.methods import METHODS, Method
from modalign.editing.run import BASES, Basis, configured
from modalign.errors import UsageError, choose


@dataclass(frozen=True)
class CompareRequest:
    """What the user asked for.

    Attributes:
        model: folder or hub name.
        edits: file.
        out: folder of cells, cache and report.
        methods, sizes, modes: what to compare.
        task: the benchmark whose scores to use; None for the file's own kind.
        text: for the key statistics; None for what the model itself writes.
        held_out: text for the drift; None for none.
        settings: method -> field -> value; under ``""`` fields for every method that has them.
        basis: where the other fields come from: ``published``, or ``auto``, measured on the model for each method.
        block: edits per sequential step; None for a tenth.
        draws: the most draws of each size.
        table: the size whose edits are listed one by one; None for the largest up to 100.
        generate: also generate freely.
        limit: use only this many edits, from the start of the file.
        seed: of draws, samples and bootstrap.
        resume: continue the comparison that the folder holds.
        overwrite: delete the comparison that the folder holds, and start afresh.
        device, dtype: of the model.
    """

    model: str
    edits: Path
    out: Path
    methods: tuple[str, ...] = tuple(METHODS)
    sizes: tuple[int, ...] = SIZES
    modes: tuple[Mode, ...] = MODES
    task: Task | None = None
    text: Path | None = None
    held_out: Path | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    basis: Basis = "published"
    block: int | None = None
    draws: int | None = None
    table: int | None = None
    generate: bool = True
    limit: int | None = None
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    device: str | None = None
    dtype: str | None = None

    def configuration(self) -> dict[str, Any]:
        """Return the request as plain values, without where it is written and how it is started."""
        values = {k: v for k, v in asdict(self).items() if k not in ("out", "resume", "overwrite")}
        return json.loads(json.dumps(values, default=str))

    def configured(self) -> dict[str, Method]:
        """Configure each method: settings given for all methods first, then those given for it alone.

        Raises:
            UsageError: an unknown method, field, task or mode.
        """
        if self.basis not in BASES:
            raise UsageError(f"--settings {self.basis}: {choose(self.basis, BASES)}")
        for name in self.settings:
            if name and name not in METHODS:
                raise UsageError(f"--set {name}: there is no such method; {choose(name, METHODS)}")
        shared = self.settings.get("", {})
        known = {
            name: set(METHODS[name].config_class.model_fields) if name in METHODS else set()
            for name in self.methods
        }
        for one in shared:
            if not any(one in fields for fields in known.values()):
                fields = sorted(set().union(*known.values()))
                raise UsageError(
                    f"--set {one}: none of {', '.join(self.methods)} has such a field; {choose(one, fields)}"
                )
        methods = {}
        for name in self.methods:
            mine = {key: value for key, value in shared.items() if key in known[name]}
            # The benchmarks' prompts are the beginnings of sentences, and published scores are for those.
            mine = {"template": "plain"} | mine | dict(self.settings.get(name, {}))
            methods[name] = configured(name, mine)
        if self.task is not None and self.task not in TASKS:
            raise UsageError(f"no task {self.task!r}: {choose(self.task, TASKS)}")
        if wrong := [mode for mode in self.modes if mode not in MODES]:
            raise UsageError(f"--modes {wrong[0]}: {choose(wrong[0], MODES)}")
        return methods
