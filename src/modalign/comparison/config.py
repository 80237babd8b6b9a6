"""The configuration of a comparison: a parent plus the changed fields, from YAML and options."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from modalign.errors import UsageError
from modalign.starter.build import Progress, starter
from modalign.training.settings import LearningRates, TrainSettings
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
    jobs: NonNegativeInt = 0
    examples: NonNegativeInt = 8

    @property
    def workers(self) -> int:
        """Processes at a time: one per core on a CPU, one on an accelerator."""
        if self.jobs:
            return self.jobs
        return max(1, min(len(os.sched_getaffinity(0)), 8)) if self.training.device != "cuda" else 1

    @property
    def threads(self) -> int:
        """Threads of one process."""
        return max(1, len(os.sched_getaffinity(0)) // self.workers)


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
        },
        "data": {"train": str(files.train), "val": str(files.val), "eval": str(files.eval)},
        "methods": DEMO_METHODS,
        "budget": "12000samples",
        "seeds": 3,
        "finalists": 4,
        "training": {
            "llm": "lora",
            "learning_rates": LearningRates(connector=2e-3, llm=1e-3, encoder=1e-4).model_dump(),
            "batch_size": 32,
        },
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
    own = _read(Path(path)) if path is not None else {}
    parent_name = own.pop("extends", "starter" if path is None else None)
    if parent_name is None:
        base: dict[str, Any] = {}
    elif parent_name == "starter":
        base = starter_config(progress)
    else:
        parent = Path(path).parent / parent_name if path else Path(parent_name)
        base = load_config(parent)[0].model_dump()
    changed = _merge(own, changes or {})
    try:
        config = CompareConfig.model_validate(_merge(base, changed))
    except ValidationError as error:
        raise UsageError(f"{path or 'the options'}: {explain(error)}") from error
    return config, {key: str(value) for key, value in _flat(changed).items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"the configuration {path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"the configuration {path} is not a mapping of fields to values")
    data = values.get("data")
    if isinstance(data, dict):
        for key in ("train", "val", "eval", "media_root"):
            if isinstance(data.get(key), str):
                data[key] = str(_beside(path, data[key]))
    return values


def _beside(path: Path, value: str) -> Path:
    candidate = path.parent / value
    return candidate if not Path(value).is_absolute() else Path(value)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def explain(error: ValidationError) -> str:
    """A validation error in one line: which field, what was wrong."""
    found = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
    return "; ".join(found)
