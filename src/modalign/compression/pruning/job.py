"""What the steps of one pruning share: options, data, folders of its models, and how they are judged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from modalign.compression.pruning.config import PruneConfig
from modalign.compression.pruning.recovery import Recovery, Scores, scores_of
from modalign.compression.pruning.texts import Texts
from modalign.files import write_atomically
from modalign.models.saved import open_composed
from modalign.progress import Progress
from modalign.runs import read_result
from modalign.training.budget import Budget
from modalign.trust import trusted

JUDGED = "judged"
PARENT, PRUNED, RECOVERED, RANDOM, SCRATCH = "parent", "pruned", "recovered", "random", "scratch"


@dataclass
class Job:
    """What the steps of one run share.

    Attributes:
        config: what was asked for.
        work: folder of everything that a resumed run needs.
        mode: of the recovery: full, lora or none.
        texts: the data.
        device: where models train and are judged.
        progress: told about every step.
    """

    config: PruneConfig
    work: Path
    mode: str
    texts: Texts
    device: torch.device
    progress: Progress

    def folder(self, name: str) -> Path:
        """Folder of a model of this run; the parent's own."""
        return Path(self.config.model) if name == PARENT else self.work / "models" / name

    @property
    def seeds(self) -> range:
        """Of the recoveries."""
        return range(self.config.seed, self.config.seed + self.config.seeds)

    def recovery(self, name: str, folder: Path, seed: int, *, scratch: bool = False) -> Recovery:
        """The recovery of a model under a seed."""
        budget = Budget.parse(self.config.recover_budget)
        title = f"{name}, seed {seed}"
        return Recovery(
            self.config, self.texts, self.mode, folder, title, seed, budget, scratch=scratch
        )

    def judged(self, name: str) -> Scores:
        """How a model is judged as it is, once for all attempts at this run."""
        file = self.work / JUDGED / f"{name}.json"
        found = read_result(file, Scores)
        if found is None:
            self.progress(f"judging {name}", 0, 1)
            with trusted():
                opened = open_composed(self.folder(name))
            opened.model.float()
            found = scores_of(opened, self.texts, self.device)
            file.parent.mkdir(exist_ok=True)
            write_atomically(file, found.model_dump_json())
            self.progress(f"judging {name}", 1, 1)
        return found
