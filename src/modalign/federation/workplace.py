"""A client's work: take the server's tensors, train with the common trainer, and answer with its own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from modalign.data.supervision import Sample
from modalign.evaluation.scoring import score
from modalign.federation import lora
from modalign.federation.config import FederateConfig
from modalign.federation.rules import Tensors
from modalign.federation.strategies import objective_of, parse
from modalign.training.budget import Budget
from modalign.training.start import start_of
from modalign.training.tuning import Tuning


@dataclass(frozen=True)
class Task:
    """One client's training, self-contained, so that it can be sent to another machine.

    Attributes:
        client: its name.
        samples: its records.
        tensors: what it starts from.
        base: additions to frozen weights.
        strategy: what it does differently.
        budget: of this training.
        factor: on the learning rates.
        rank: of its LoRA.
        seed: of its data order and draws.
        folder: of its checkpoints, removed afterwards.
    """

    client: str
    samples: Sequence[Sample]
    tensors: Tensors
    base: Tensors
    strategy: str
    budget: str
    factor: float
    rank: int
    seed: int
    folder: Path


class Workplace:
    """The model of one seed, on which clients take turns.

    Args:
        config: the federation.
        seed: of new connectors and LoRA.
        samples: of all clients, for encoders that depend on the data.

    Raises:
        UsageError: the parts cannot be loaded, or the method has no connector.
    """

    def __init__(self, config: FederateConfig, seed: int, samples: Sequence[Sample]) -> None:
        self.config, self.seed, self.samples = config, seed, samples
        media = list(dict.fromkeys(medium for sample in samples for medium in sample.media))
        opened = start_of(config.model, config.parts, config.method, media, seed)
        self.tuning = Tuning(opened, config.stages, config.settings, samples, seed=seed)
        self.stages = self.tuning.method.stages
        self.start = self.tuning.trained_state()
        self.frozen: Tensors = {}  # original weights of LoRA modules

    def set(self, tensors: Tensors, base: Tensors) -> None:
        """Put the server's tensors into the model."""
        rank = self.config.training.lora_rank
        self.tuning.load_trained(lora.padded(tensors, rank))
        with torch.no_grad():
            for path in self.frozen.keys() | base.keys():
                module = self.tuning.model.get_submodule(path)
                weight = module.base_layer.weight
                plain = self.frozen.setdefault(path, weight.detach().clone())
                more = base.get(path)
                if more is None:
                    weight.copy_(plain)
                    continue
                added = (more.T if module.fan_in_fan_out else more) * module.scaling["default"]
                weight.copy_(plain + added.to(weight))

    def train(self, task: Task) -> Tensors:
        """Train a client, and return its tensors."""
        self.set(task.tensors, task.base)
        tuning, strategy = self.tuning, parse(task.strategy)
        tuning.train_samples, tuning.seed = task.samples, task.seed
        stages = tuple(objective_of(stage, strategy, tuning.model) for stage in self.stages)
        tuning.method = replace(tuning.method, stages=stages)
        tuning.run(Budget.parse(task.budget), task.folder, task.factor)
        shutil.rmtree(task.folder, ignore_errors=True)
        return lora.cut(tuning.trained_state(), task.rank)

    def correct(self, samples: Sequence[Sample]) -> np.ndarray:
        """Return (n,) bool: which questions the model, with its present tensors, answers right."""
        self.tuning.model.eval()
        return score(self.tuning.model, samples, self.tuning.collator, self.tuning.device).correct

    @property
    def parameters(self) -> int:
        """Return the number of parameters that travel."""
        return sum(t.numel() for t in self.start.values())
