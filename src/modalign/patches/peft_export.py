"""Export a patch as a LoRA folder that plain peft loads.

peft adds ``scaling * lora_B lora_A`` to a layer, with one rank for all layers unless ``rank_pattern``
says otherwise. Its scaling is alpha / rank, so every alpha is set to its layer's rank to make it 1.
Names are whole paths, anchored if they are patterns: "layers.2" must not match layers 20 to 29.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modalign.errors import DataError, ModalignError, UsageError
from modalign.files import new_folder
from modalign.patches.apply import fit, stores_transposed, view
from modalign.patches.changes import Change
from modalign.patches.header import PatchContent

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
# Below float32's resolution relative to the largest singular value, so the files could not hold it.
_RESOLUTION = 1e-8
_ROUNDING = 1e-5  # relative error allowed for float32 factors


@dataclass(frozen=True)
class LoraExport:
    """The LoRA folder that was written, and its errors.

    Attributes:
        folder: the LoRA folder.
        ranks: of every layer, by its path.
        errors: |Delta - lora_B lora_A| / |Delta| of every layer, Frobenius norms.
        logits: largest difference between peft's logits and those of ``model + patch``; None if not compared.
    """

    folder: Path
    ranks: dict[str, int]
    errors: dict[str, float]
    logits: float | None = None


def export_lora(
    patch: PatchContent,
    folder: Path,
    *,
    base: str | None = None,
    rank: int | None = None,
    max_error: float | None = None,
    model: nn.Module | None = None,
) -> LoraExport:
    """Write a patch as a LoRA folder and read it back.

    Args:
        patch: of weights of linear layers.
        folder: a new one.
        base: the model that peft should load; by default the one that the patch names.
        rank: the most singular directions of each change to keep.
        max_error: keep as few as give this relative error.
        model: the base model; if given, the folder is loaded with peft and the logits are compared
            with ``model + patch``. peft's layers are put into it and removed again.

    Raises:
        UsageError: the folder exists, or a dense change came without ``rank`` or ``max_error``.
        DataError: the patch changes what LoRA cannot, or does not fit the model.
        ModalignError: what was written does not match the patch.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists already; name a new folder")
    _check_linear(patch, model)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for name, change in patch.changes.items():
        left, right = _factors(name, change, rank, max_error)
        if left.shape[1]:
            factors[name.removesuffix(".weight")] = (left.float(), right.float())
    if not factors:
        raise DataError(
            f"the patch {patch.header.name!r} changes nothing: there is nothing to export"
        )
    transposed = any(tensor.transposed for tensor in patch.header.base.values())
    with new_folder(folder) as temporary:
        write_lora(temporary, factors, base or patch.header.model, transposed)
        errors = _read_back(temporary, patch, factors)
        difference = (
            None if model is None else _compare(temporary, patch, model, max(errors.values()))
        )
    ranks = {path: left.shape[1] for path, (left, _) in factors.items()}
    return LoraExport(folder, ranks, errors, difference)


def _check_linear(patch: PatchContent, model: nn.Module | None) -> None:
    for name, change in patch.changes.items():
        if not name.endswith(".weight") or len(change.shape) != 2:
            raise DataError(
                f"LoRA changes matrices of linear layers only, and {patch.header.name!r} changes "
                f"{name}; apply the patch to a model folder instead (modalign patch apply)"
            )
    if model is None:
        return
    for name, found in fit(model, patch).names.items():
        layer = model.get_submodule(found.removesuffix(".weight"))
        if not isinstance(layer, nn.Linear) and not stores_transposed(layer):
            raise DataError(
                f"LoRA changes linear layers only, and {name} belongs to a module of type {type(layer).__name__}"
            )
        if found != name:
            raise DataError(
                f"the patch calls a tensor {name}, this model calls it {found}: peft matches by name, "
                f"so export with the model the patch was computed on ({patch.header.model})"
            )


def _factors(
    name: str, change: Change, rank: int | None, max_error: float | None
) -> tuple[Tensor, Tensor]:
    """Return balanced factors of a change, truncated as asked."""
    left, right, values = change.balanced(_RESOLUTION)
    tail = values.flip(0).square().cumsum(0).flip(0).sqrt()  # the error of keeping i directions
    total = float(tail[0]) if len(tail) else 0.0
    kept = left.shape[1]
    if change.low_rank() is None and rank is None and max_error is None and total:
        needed = int((tail > 0.01 * total).sum())
        raise UsageError(
            f"the change of {name} is dense (rank {kept}): LoRA can hold it only with an error, so choose one: "
            f"--rank R or --max-error E (an error of 1 % needs rank {needed})"
        )
    if max_error is not None:
        kept = min(kept, int((tail > max_error * total).sum()))
    if rank is not None:
        kept = min(kept, rank)
    return left[:, :kept], right[:, :kept]


def write_lora(
    folder: Path, factors: dict[str, tuple[Tensor, Tensor]], base: str, transposed: bool
) -> None:
    """Write factors as a LoRA folder whose scaling is 1 everywhere.

    Args:
        folder: empty.
        factors: layer -> left (d_out, r), right (d_in, r); the layer gets left right^T added.
        base: the model that peft should load.
        transposed: whether its layers store (d_in, d_out).
    """
    ranks = {path: left.shape[1] for path, (left, _) in factors.items()}
    largest = max(ranks.values())
    patterns = {_pattern(path): r for path, r in ranks.items()}
    config = LoraConfig(
        base_model_name_or_path=base,
        task_type="CAUSAL_LM",
        r=largest,
        lora_alpha=largest,
        rank_pattern=patterns,
        alpha_pattern=patterns,
        target_modules=sorted(ranks),
        fan_in_fan_out=transposed,
        lora_dropout=0.0,
        bias="none",
        inference_mode=True,
    )
    config.save_pretrained(folder)
    tensors = {}
    for path, (left, right) in factors.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = right.T.contiguous()
        tensors[f"{PREFIX}{path}.lora_B.weight"] = left.contiguous()
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def _pattern(path: str) -> str:
    """Return the pattern of one layer: peft puts ``(.*\\.)?`` before it and ``$`` after it."""
    return f"^{re.escape(path)}"


def _read_back(
    folder: Path, patch: PatchContent, factors: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """Compute the relative error of every layer from the files."""
    config: Any = LoraConfig.from_pretrained(str(folder))
    held = load_file(folder / WEIGHTS)
    errors = {}
    for path, (left, right) in factors.items():
        A, B = (held[f"{PREFIX}{path}.lora_{each}.weight"].double() for each in "AB")
        pattern = _pattern(path)
        if config.rank_pattern[pattern] != len(A) or config.alpha_pattern[pattern] != len(A):
            raise ModalignError(f"the rank of {path} was not written as it should be")
        delta = patch.changes[f"{path}.weight"].delta().double()
        size = float(delta.norm())
        if float((B @ A - left.double() @ right.double().T).norm()) > _ROUNDING * size:
            raise ModalignError(f"the factors of {path} read back differently")
        errors[path] = float((delta - B @ A).norm()) / size
    return errors


@torch.no_grad()
def _compare(folder: Path, patch: PatchContent, model: Any, error: float) -> float:
    """Return the largest difference of logits between peft's model and ``model + patch``."""
    size = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(2 * 8, device=model.device).reshape(2, 8) * 7919 % size  # spread words
    plain = model(input_ids=ids).logits.float()
    expected = view(model, patch)(input_ids=ids).logits.float()
    with warnings.catch_warnings():  # about names that peft uses and transformers has renamed
        warnings.simplefilter("ignore", FutureWarning)
        loaded = PeftModel.from_pretrained(model, str(folder))
    try:
        changed = [n for n, m in loaded.get_base_model().named_modules() if hasattr(m, "lora_A")]
        wanted = [name.removesuffix(".weight") for name in patch.changes]
        if not set(changed) <= set(wanted):
            raise ModalignError(f"peft would change {sorted(set(changed) - set(wanted))[0]} too")
        found = loaded(input_ids=ids).logits.float()
    finally:
        loaded.unload()
        # peft marks models it was applied to; without the mark, the next use gives no warning
        model.__dict__.pop("peft_config", None)
    difference = float((found - expected).abs().max())
    # If truncated on purpose, logits differ, and the error says by how much; else only rounding is allowed.
    coarse = torch.finfo(model.dtype).eps * 50
    if error < _ROUNDING and difference > max(coarse, 1e-4) * max(float(plain.abs().max()), 1.0):
        raise ModalignError(
            f"peft's logits differ from those of model + patch by {difference:.2g}; nothing was written"
        )
    return difference
