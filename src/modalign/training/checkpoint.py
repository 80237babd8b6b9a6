"""Checkpoints without pickle: tensors in safetensors, everything else in JSON, written atomically.

A checkpoint is a folder that appears whole, by one rename. It holds what changes in training (the
trainable tensors, the optimizer's moments) and the state that makes the next step the same as if
nothing had happened: step, ledger, curve, random state.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modalign.errors import ModalignError

KEEP = 2


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Trainable tensors by name, on the CPU, whole (sharded ones gathered)."""
    return {
        name: _whole(parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _whole(tensor: Tensor) -> Tensor:
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().cpu().clone().contiguous()


def load_trainable(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put trainable tensors back.

    Raises:
        ModalignError: names or shapes differ from the model's.
    """
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if own.keys() != state.keys():
        odd = sorted(own.keys() ^ state.keys())[:3]
        raise ModalignError(f"the checkpoint does not fit the model: {odd} on one side only")
    with torch.no_grad():
        for name, parameter in own.items():
            if parameter.shape != state[name].shape:
                raise ModalignError(f"the checkpoint's {name} has shape {tuple(state[name].shape)}")
            _copy(parameter, state[name])


def _copy(target: Tensor, value: Tensor) -> None:
    if hasattr(target, "device_mesh"):  # a sharded tensor takes its part of the whole
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors as ``index.key``; scalars are tensors in AdamW already."""
    return {
        f"{index}.{key}": _whole(torch.as_tensor(value))
        for index, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put the optimizer's tensors back; its groups are rebuilt from the settings."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]
        if value.shape == parameter.shape and value.dim() > 0:
            like = torch.zeros_like(parameter)
            with torch.no_grad():
                _copy(like, value)
            optimizer.state[parameter][key] = like
        else:
            optimizer.state[parameter][key] = value.clone()


def random_state() -> dict[str, str]:
    """State of torch's generators, as text."""
    state = {"cpu": _encode(torch.get_rng_state())}
    if torch.cuda.is_available():
        state["cuda"] = _encode(torch.cuda.get_rng_state())
    return state


def load_random_state(state: dict[str, str]) -> None:
    """Put the random state back."""
    torch.set_rng_state(_decode(state["cpu"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_decode(state["cuda"]))


def _encode(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: dict[str, Tensor],
    moments: dict[str, Tensor],
    state: dict[str, Any],
) -> Path:
    """Write ``folder/step-N`` whole, then drop all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_file(tensors, temporary / "trainable.safetensors")
    save_file(moments, temporary / "optimizer.safetensors")
    write_json(temporary / "state.json", {"step": step, **state})
    for file in temporary.iterdir():
        _sync(file)
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    _sync(folder)
    for old in checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").exists())


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint: trainable tensors, optimizer tensors, state.

    Raises:
        ModalignError: a file is missing or damaged.
    """
    try:
        return (
            load_file(path / "trainable.safetensors"),
            load_file(path / "optimizer.safetensors"),
            json.loads((path / "state.json").read_text()),
        )
    except Exception as error:
        raise ModalignError(
            f"checkpoint {path} cannot be read ({error}); delete it to use an older one"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.replace(path)
