"""Checkpoints without pickle: tensors in safetensors, everything else in JSON, written atomically.

A checkpoint is a folder that appears atomically, by one rename. It holds what changes in training (the
trainable tensors, the optimizer's moments) and the state that determines the next step: step, ledger, curve.
It holds no random state, because the draws of a step depend only on the seed and the step's number.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modalign.errors import ModalignError
from modalign.files import write_atomically
from modalign.strict_json import loads

KEEP = 2

# ---------------------------------------------------------------------- tensors of a training


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Trainable tensors by name, on the CPU, whole (sharded ones gathered)."""
    return {
        name: _whole(parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def load_trainable(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put trainable tensors back.

    Raises:
        ModalignError: names or shapes differ from the model's.
    """
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if own.keys() != state.keys():
        odd = sorted(own.keys() ^ state.keys())[:3]
        raise ModalignError(f"the checkpoint does not fit the model: {odd} exists only on one side")
    for name, parameter in own.items():
        if parameter.shape != state[name].shape:
            raise ModalignError(f"the checkpoint's {name} has shape {tuple(state[name].shape)}")
        _copy(parameter, state[name])


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's tensors as ``key:parameter``; scalars are tensors in AdamW already."""
    return {
        f"{key}:{name}": _whole(value)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Put the optimizer's tensors back; its groups are rebuilt from the settings."""
    parameters = dict(model.named_parameters())
    for place, value in tensors.items():
        key, name = place.split(":", 1)
        parameter = parameters[name]
        if key == "step":
            optimizer.state[parameter][key] = value
        else:
            optimizer.state[parameter][key] = torch.zeros_like(parameter)
            _copy(optimizer.state[parameter][key], value)


def _whole(tensor: Tensor) -> Tensor:
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().cpu().clone().contiguous()


@torch.no_grad()
def _copy(target: Tensor, value: Tensor) -> None:
    if hasattr(target, "device_mesh"):  # a sharded tensor takes its part of the whole
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = target.device_mesh, target.placements  # type: ignore[attr-defined]
        value = distribute_tensor(value.to(target.device), mesh, placements)
    target.copy_(value)


# ---------------------------------------------------------------------- folders


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: dict[str, Tensor],
    moments: dict[str, Tensor],
    state: dict[str, Any],
) -> Path:
    """Write ``folder/step-N`` atomically, then drop all but the newest two."""
    final = folder / f"step-{step:08d}"
    if final.exists():  # the tensors of this step exist; the curve may have grown
        write_json(final / "state.json", {"step": step, **state})
        return final
    temporary = folder / f".{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(tensors, temporary / "trainable.safetensors")
    save_file(moments, temporary / "optimizer.safetensors")
    write_json(temporary / "state.json", {"step": step, **state})
    for file in temporary.glob("*.safetensors"):
        _sync(file)
    temporary.rename(final)
    _sync(folder)
    for old in checkpoints(folder)[:-KEEP]:
        old.rename(
            folder / f".{old.name}"
        )  # renamed first, so that no partial checkpoint is visible
    clean(folder)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a folder, oldest first."""
    return sorted(folder.glob("step-*"))


def clean(folder: Path) -> None:
    """Remove what a killed process left partly written or deleted."""
    for left in folder.glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint: trainable tensors, optimizer tensors, state.

    Raises:
        ModalignError: a file is missing or damaged.
    """
    try:
        return (
            load_file(path / "trainable.safetensors"),
            load_file(path / "optimizer.safetensors"),
            loads((path / "state.json").read_text(encoding="utf-8"), nan=True),
        )
    except Exception as error:
        raise ModalignError(
            f"checkpoint {path} cannot be read ({error}); delete it to use an older one"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_atomically(path, json.dumps(value, indent=1))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
