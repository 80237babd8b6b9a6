"""A linear head over a model's pooled states, kept in its folder: it names a record's class without generation.

The state is the one where the answer would begin, after the final norm (``pooled`` with ``last``). The model's
own files are as they were, so it loads without its heads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from modalign.data.records import Record
from modalign.errors import DataError, UsageError, choose, first_line
from modalign.files import write_atomically
from modalign.models.pooled import pooled
from modalign.strict_json import loads

HEADS = "heads"  # folder within the model's
NAME = re.compile(r"^[A-Za-z0-9_-]+$")


@dataclass(frozen=True, eq=False)
class Head:
    """A linear head.

    Attributes:
        classes: their names, in order.
        weight: (C, D).
        bias: (C,).
    """

    classes: tuple[str, ...]
    weight: Tensor
    bias: Tensor

    def probabilities(self, states: Tensor) -> Tensor:
        """Return (n, C) probabilities of the classes from (n, D) pooled states.

        Raises:
            UsageError: the states have another width.
        """
        if states.shape[1] != self.weight.shape[1]:
            raise UsageError(
                f"the head reads states of width {self.weight.shape[1]}, the model's have width {states.shape[1]}"
            )
        return (states.float() @ self.weight.T + self.bias).softmax(-1)

    def save(self, model: Path, name: str) -> Path:
        """Write it into a model's folder."""
        (model / HEADS).mkdir(exist_ok=True)
        file = model / HEADS / f"{name}.safetensors"
        said = {"classes": json.dumps(self.classes)}
        write_atomically(file, save({"weight": self.weight, "bias": self.bias}, said))
        return file


def heads_of(model: Path) -> list[str]:
    """Return the names of the heads in a model's folder."""
    return sorted(file.stem for file in (model / HEADS).glob("*.safetensors"))


def load_head(model: Path, name: str) -> Head:
    """Load a head from a model's folder.

    Raises:
        UsageError: there is none of this name.
        DataError: the file is no head.
    """
    there = heads_of(model)
    if name not in there:
        raise UsageError(
            f"{model} has no head {name!r}; {choose(name, there) if there else 'it has none'}"
        )
    file = model / HEADS / f"{name}.safetensors"
    try:
        with safe_open(file, "pt") as opened:
            classes = tuple(loads((opened.metadata() or {})["classes"]))
            head = Head(classes, opened.get_tensor("weight"), opened.get_tensor("bias"))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"{file} is not a head ({first_line(error)})") from error
    if head.weight.dim() != 2 or not len(classes) == len(head.weight) == len(head.bias):
        raise DataError(
            f"{file}: {len(classes)} classes, but a weight of shape {tuple(head.weight.shape)}"
        )
    return head


@torch.inference_mode()
def classified(model: Any, reader: Any, head: Head, records: Sequence[Record]) -> Tensor:
    """Return (n, C) probabilities of the head's classes; answers of the records are not read."""
    return head.probabilities(pooled(model, reader, records, "last"))
