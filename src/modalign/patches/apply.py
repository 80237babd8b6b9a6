"""Patches on a model in memory: in its weights, with exact originals kept, or as a separate view of it.

``apply_patch`` writes W0 + the sum of all changes, computed in float64 and rounded once, so the order of
patches does not matter and removing one gives exactly the weights without it. ``view`` never changes
a weight: it is a second tree of modules around the same parameters, whose changed linear layers add
``left (right^T x)`` to their output, in float32 if the weights are in half precision.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from modalign.errors import DataError, ModalignError, UsageError
from modalign.patches.changes import Change, changed
from modalign.patches.fit import check_order, check_removable, chosen, locate
from modalign.patches.header import BaseTensor, PatchContent, patch_hash

_STATE = "_modalign_patches"


@dataclass(frozen=True)
class Carried:
    """A patch that a model carries.

    Attributes:
        patch: the patch.
        sha256: its content hash.
        names: tensor of the patch -> parameter of the model.
    """

    patch: PatchContent
    sha256: str
    names: Mapping[str, str]


@dataclass(frozen=True)
class _PatchState:
    """The patches that a model carries, lowest first, and its original weights. Never changed in place."""

    carried: tuple[Carried, ...] = ()
    originals: Mapping[str, Tensor] = field(default_factory=dict)
    is_view: bool = False

    def __deepcopy__(self, memo: dict[int, Any]) -> _PatchState:
        return self


def _state(model: nn.Module) -> _PatchState:
    found: _PatchState = model.__dict__.get(_STATE) or _PatchState()
    return found


def patches_of(model: nn.Module) -> tuple[Carried, ...]:
    """Return the patches that a model or a view carries, lowest first."""
    return _state(model).carried


def fit(model: nn.Module, patch: PatchContent) -> Carried:
    """Check that a patch fits on top of the patches a model carries, and find its parameters.

    Args:
        model: any module.
        patch: the patch to put on top.

    Raises:
        DataError: it was made for other weights, or other patches must be applied first.
    """
    state, where = _state(model), f"this {type(model).__name__}"
    if patch.cuts:
        raise UsageError(
            f"the structure {patch.header.name!r} changes shapes; apply it to a model folder "
            "(modalign patch apply) and load that"
        )
    sha256 = patch_hash(patch)
    check_order(patch, sha256, [(c.patch.header.name, c.sha256) for c in state.carried], where)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    unpatched = {**parameters, **state.originals}
    names = locate(patch.header, shapes, unpatched.__getitem__, where)
    for name, found in names.items():
        _check_parameter(model, parameters, found, patch.header.base[name])
    return Carried(patch, sha256, names)


def _check_parameter(
    model: nn.Module, parameters: dict[str, nn.Parameter], name: str, base: BaseTensor
) -> None:
    value = parameters[name]
    others = [key for key, other in parameters.items() if other is value and key != name]
    if base.tied and not others:
        raise UsageError(
            f"the patch takes {name} to be both input embedding and output projection; in this "
            "model they are two tensors"
        )
    if others and not base.tied:
        raise UsageError(
            f"{name} is the same tensor as {others[0]} (tied weights): a patch of one would change "
            "the other; untie them first, or edit another layer"
        )
    owner = model.get_submodule(name.rpartition(".")[0])
    if base.transposed != stores_transposed(owner) and value.dim() == 2:
        stored = "transposed" if base.transposed else "not transposed"
        raise DataError(
            f"the patch expects {name} to be {stored}, but its module is a {type(owner).__name__}"
        )


def apply_patch(model: nn.Module, patch: PatchContent) -> None:
    """Apply a patch to a model's own weights, on top of earlier patches; originals are kept.

    Raises:
        DataError: it does not fit, see :func:`fit`; the model is unchanged.
        UsageError: the model is a view, whose weights belong to another model.
    """
    state = _writable(model)
    new = fit(model, patch)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    originals = dict(state.originals)
    for name in new.names.values():
        if name not in originals:
            originals[name] = parameters[name].detach().to("cpu", copy=True)
    _write(model, _PatchState((*state.carried, new), originals), set(new.names.values()))


def remove_patch(model: nn.Module, patch: PatchContent | str) -> None:
    """Remove a patch from a model's weights; they are then exactly as if it had never been applied.

    Args:
        model: one that :func:`apply_patch` changed.
        patch: the patch, its name or the beginning of its hash.

    Raises:
        UsageError: the model does not carry it.
        DataError: another patch was computed on top of it.
    """
    state = _writable(model)
    where = f"this {type(model).__name__}"
    names = [(each.patch.header.name, each.sha256) for each in state.carried]
    gone = state.carried[chosen(patch, names, where)]
    present = [(each.patch, each.sha256) for each in state.carried]
    check_removable([gone.sha256], present, where)
    kept = tuple(each for each in state.carried if each is not gone)
    _write(model, _PatchState(kept, state.originals), set(gone.names.values()))


def _writable(model: nn.Module) -> _PatchState:
    state = _state(model)
    if state.is_view:
        raise UsageError(
            "this model is a view: its weights are another model's. Use `view + patch`, or apply "
            "the patches to the model itself"
        )
    return state


@torch.no_grad()
def _write(model: nn.Module, state: _PatchState, touched: set[str]) -> None:
    """Set the touched parameters to the values of a state; all are computed before any is written."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    values = {}
    for name in touched:
        changes: list[Change] = []
        transposed = False
        for each in state.carried:
            for own, found in each.names.items():
                if found == name:
                    changes.append(each.patch.changes[own])
                    transposed = each.patch.header.base[own].transposed
        base = state.originals[name].to(parameters[name].device)
        values[name] = changed(base, changes, transposed) if changes else base
    for name, value in values.items():
        parameters[name].copy_(value)
    used = {found for each in state.carried for found in each.names.values()}
    kept = {name: value for name, value in state.originals.items() if name in used}
    model.__dict__[_STATE] = _PatchState(state.carried, kept)


@contextmanager
def applied(model: nn.Module, patch: PatchContent) -> Iterator[None]:
    """Apply a patch to a model's weights for the duration of the block, then restore them exactly."""
    apply_patch(model, patch)
    try:
        yield
    finally:
        remove_patch(model, patch)


def view(model: nn.Module, patch: PatchContent) -> nn.Module:
    """Return the model with a patch on top, as a second model around the same parameters.

    The view generates, takes further patches and trains like the model itself; ``patches_of(view)``
    lists what it carries. The parameters are shared: moving or changing the model moves or changes
    the view. A view cannot be saved; ``modalign patch apply`` writes a patched folder.

    Raises:
        DataError: the patch does not fit, see :func:`fit`.
    """
    state = _state(model)
    new = fit(model, patch)
    tree = _second_tree(model)
    originals = dict(state.originals)
    for name, change in patch.changes.items():
        replaced = _attach(tree, new.names[name], change, patch.header.base[name])
        if replaced is not None:
            originals.setdefault(new.names[name], replaced)
    tree.__dict__[_STATE] = _PatchState((*state.carried, new), originals, is_view=True)
    tree.__dict__["save_pretrained"] = _refuse_to_save
    return tree


def _second_tree(model: nn.Module) -> nn.Module:
    """Copy the modules, around the same parameters and buffers.

    It is a deep copy that is told beforehand that tensors are their own copies; bound methods and hooks
    then refer to the new modules, as they must.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                memo[id(tensor)] = tensor
    return copy.deepcopy(model, memo)


def _attach(tree: nn.Module, name: str, change: Change, base: BaseTensor) -> Tensor | None:
    """Put one change into a view; return the parameter if the view got its own instead."""
    path, _, attribute = name.rpartition(".")
    owner = tree.get_submodule(path)
    weight = owner._parameters[attribute]
    assert weight is not None
    linear = isinstance(owner, nn.Linear) or stores_transposed(owner)
    if attribute == "weight" and linear and not base.tied:
        branch = Branch.of(change, torch.promote_types(weight.dtype, torch.float32))
        if branch is not None:
            owner.register_forward_hook(branch, with_kwargs=True)
        return None
    # Norms, biases and embeddings have no product to add a branch to, so the view gets its own tensor.
    own = nn.Parameter(changed(weight, [change], base.transposed), weight.requires_grad)
    for module in tree.modules():  # a tied weight has several owners
        for key, parameter in module._parameters.items():
            if parameter is weight:
                module._parameters[key] = own
    return weight.detach()


class Branch:
    """A forward hook on a linear layer that adds ``x Delta^T`` to its output, leaving W untouched.

    It uses factors if they are fewer numbers than Delta, else Delta itself.
    """

    def __init__(self, *matrices: Tensor) -> None:
        self.matrices = matrices  # x is multiplied by these one after another

    @classmethod
    def of(cls, change: Change, dtype: torch.dtype) -> Branch | None:
        """Make the branch of a change, computed in ``dtype``; None for a change that is zero."""
        factors = change.small_factors()
        if factors is None:
            delta = change.delta()
            return cls(_contiguous(delta.T, dtype)) if bool(delta.any()) else None
        left, right = factors
        return cls(_contiguous(right, dtype), _contiguous(left.T, dtype)) if left.any() else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Branch:
        return self

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        """Return the layer's output (..., d_out) with the change's part added."""
        given: Tensor = args[0] if args else next(iter(kwargs.values()))
        if self.matrices[0].device != given.device:
            self.matrices = tuple(matrix.to(given.device) for matrix in self.matrices)
        with torch.autocast(given.device.type, enabled=False):
            part = given.to(self.matrices[0].dtype)
            for matrix in self.matrices:
                part = part @ matrix
            return (output.to(part.dtype) + part).to(output.dtype)


def stores_transposed(module: nn.Module) -> bool:
    """Return whether a module stores its weight as (d_in, d_out), as GPT-2's layers do."""
    from transformers.pytorch_utils import Conv1D  # here: reading a patch needs no transformers

    return isinstance(module, Conv1D)


def _contiguous(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    return matrix.to(dtype, memory_format=torch.contiguous_format)


def _refuse_to_save(*args: object, **kwargs: object) -> None:
    raise ModalignError(
        "a view does not hold its patches in its weights, so saving it would lose them; "
        "`modalign patch apply MODEL PATCH -o FOLDER` writes a patched model"
    )
