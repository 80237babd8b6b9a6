"""The configuration of a comparison: a parent plus the changed fields, from YAML and options."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from modalign.differences import flat
from modalign.errors import UsageError
from modalign.starter.build import Progress, starter
from modalign.training.parallel import device_of
from modalign.training.settings import LearningRates, Stage, TrainSettings
from modalign.training.sources import DataFiles, Parts

# Twelve methods of both families, matched in width, that a first look needs eight minutes for.
DEMO_METHODS = [
    "linear",
    "mlp",
    "avgpool_mlp",
    "pixel_shuffle_linear",
    "pixel_shuffle_mlp",
    "ldpv2",
    "c_abstractor",
    "clipcap_lowrank",
    "resampler",
    "qformer",
    "gated_cross_attention",
    "llama_adapter",
]


# Rates for a language model of 0.4 M parameters: far too high for a large one.
STARTER_TRAINING: dict[str, Any] = {
    "llm": "frozen",
    "learning_rates": LearningRates(connector=3e-3, llm=2e-3, encoder=1e-4).model_dump(),
    "batch_size": 16,
}


class CompareConfig(BaseModel):
    """A whole comparison.

    Attributes:
        parts: language model and encoder.
        data: data files; without ``val`` a fixed tenth of the training data is set aside.
        methods: names, families or ``all``.
        budget: of one method under one seed, e.g. ``20000samples``, ``10m``, ``3e14flops``.
        seeds: trainings per finalist, each under a seed of its own.
        finalists: methods that go on to all seeds, by validation accuracy; None means all.
        training: how to train.
        stages: the recipe of every method, in place of a single stage; a connector's own stage one
            stays before it.
        recipes: named recipes that every connector is crossed with, or ``all``; those that name one
            (``mlp+captions_first``) stay as they are.
        jobs: methods trained at the same time, each in a process with its share of the cores.
        examples: evaluation questions answered by every method in the report.
    """

    model_config = ConfigDict(extra="forbid")

    parts: Parts
    data: DataFiles
    methods: list[str] = Field(default_factory=lambda: ["all"])
    budget: str = "20000samples"
    seeds: PositiveInt = 3
    finalists: PositiveInt | None = None
    training: TrainSettings = Field(default_factory=TrainSettings)
    stages: list[Stage] = Field(default_factory=lambda: [Stage()], min_length=1)
    recipes: list[str] = Field(default_factory=list)
    jobs: NonNegativeInt = 0
    examples: NonNegativeInt = 8

    @property
    def workers(self) -> int:
        """Processes at a time: one per core on a CPU, one on an accelerator."""
        if self.jobs:
            return self.jobs
        if device_of(self.training).type != "cpu":
            return 1
        return max(1, min(_cores(), 8))

    @property
    def threads(self) -> int:
        """Threads of one process."""
        return max(1, _cores() // self.workers)


def _cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def starter_config(progress: Progress | None = None) -> dict[str, Any]:
    """The embedded default: handwriting scenes with the starter's two small models."""
    files = starter(progress)
    return {
        "parts": {
            "llm": str(files.llm),
            "encoder": {"image": str(files.encoder)},
            "feature_layer": -1,
            "image_size": 48,
            "patch_size": 8,
            "tools": {"starter_tools": None},
        },
        "data": {"train": str(files.train), "val": str(files.val), "eval": str(files.eval)},
        "methods": DEMO_METHODS,
        "budget": "20000samples",
        "seeds": 3,
        "finalists": 3,
        "training": STARTER_TRAINING,
    }


def load_config(
    path: str | Path | None, changes: dict[str, Any] | None = None, progress: Progress | None = None
) -> tuple[CompareConfig, dict[str, str]]:
    """Resolve a configuration file and options against their parent.

    A file names its parent by ``extends: starter`` or ``extends: other.yaml``; without it, and
    without a file, the parent is the starter. Relative paths in a file count from its folder.

    Returns:
        the configuration, and what differs from the parent as ``field -> value``.

    Raises:
        UsageError: an unreadable file, an unknown field, a value of the wrong kind.
    """
    base, own = _resolved(Path(path) if path is not None else None, progress)
    whole = _extended(_extended(base, own), changes or {})
    try:
        config = CompareConfig.model_validate(whole)
    except ValidationError as error:
        raise UsageError(f"{path or 'the options'}: {explain(error)}") from error
    return config, {key: str(value) for key, value in flat(_merge(own, changes or {})).items()}


def _resolved(
    path: Path | None, progress: Progress | None, above: tuple[Path, ...] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parent of a file, resolved, and the file's own fields."""
    if path is None:
        return starter_config(progress), {}
    own = _read(path)
    if path.resolve() in above:
        raise UsageError(f"the configuration {path} extends itself")
    parent = own.pop("extends", None)
    if parent is None:
        return {}, own
    if parent == "starter":
        return starter_config(progress), own
    base, fields = _resolved(path.parent / str(parent), progress, (*above, path.resolve()))
    return _extended(base, fields), own


def _extended(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A configuration with some fields changed.

    With other training data go the parent's validation and evaluation data, with another encoder
    the description of the parent's, with another language model the starter's learning rates.
    """
    base = dict(base)
    if _differs(base, changes, "parts", "llm") and base.get("training") == STARTER_TRAINING:
        base["training"] = {}
    if _differs(base, changes, "data", "train"):
        base["data"] = {}
    if _differs(base, changes, "parts", "encoder"):
        base["parts"] = {"llm": base["parts"].get("llm")} if "llm" in base["parts"] else {}
    return _merge(base, changes)


def _differs(base: dict[str, Any], changes: dict[str, Any], section: str, field: str) -> bool:
    old, new = base.get(section), changes.get(section)
    if not isinstance(old, dict) or not isinstance(new, dict):
        return False
    return field in new and new[field] != old.get(field)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"the configuration {path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"the configuration {path} is not a mapping of fields to values")
    data, parts = values.get("data"), values.get("parts")
    if isinstance(data, dict):
        for key in ("train", "val", "eval", "text", "media_root"):
            if isinstance(data.get(key), str):
                data[key] = str(path.parent / data[key])
    if isinstance(parts, dict):
        for holder in (parts, parts.get("encoder")):
            if isinstance(holder, dict):
                _name_folders(holder, path.parent)
    return values


def _name_folders(names: dict[str, Any], root: Path) -> None:
    """Of names that may be the hub's, those of folders beside the file become paths."""
    for key, value in names.items():
        if isinstance(value, str) and (root / value).is_dir():
            names[key] = str(root / value)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def explain(error: ValidationError) -> str:
    """A validation error in one line: which field, what was wrong."""
    found = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
    return "; ".join(found)
