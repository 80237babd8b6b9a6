"""Random patches for tiny models, and what their changes are by the formula."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from modalign.hashing import tensor_hash
from modalign.patches.changes import Change, DenseChange, LowRankChange, SolvedChange
from modalign.patches.cuts import Cut
from modalign.patches.header import BaseTensor, EditRecord, PatchHeader
from modalign.patches.patch import Patch
from modalign.patches.structure_patches import structure_patch

FFN = {
    "llama": "model.layers.{}.mlp.down_proj.weight",
    "qwen2": "model.layers.{}.mlp.down_proj.weight",
    "gpt2": "transformer.h.{}.mlp.c_proj.weight",
    "gptj": "transformer.h.{}.mlp.fc_out.weight",
    "gpt_neox": "gpt_neox.layers.{}.mlp.dense_4h_to_h.weight",
}
IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 2, 11, 3, 4]])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def covariance(d: int, seed: int = 0) -> Tensor:
    """Random symmetric positive definite lambda C0, (d, d)."""
    A = randn(1000 + seed, d, 2 * d)
    return A @ A.T / (2 * d) + 0.1 * torch.eye(d, dtype=torch.float64)


def solved(shape: tuple[int, int], edits: tuple[int, ...], seed: int, scale: float = 1.0,
           C: Tensor | None = None) -> SolvedChange:  # fmt: skip
    d_out, d_in = shape
    C = covariance(d_in) if C is None else C
    K = randn(seed, d_in, len(edits))
    R = scale * randn(seed + 1, d_out, len(edits))
    R[:, [i for i, edit in enumerate(edits) if edit == -1]] = 0
    return SolvedChange(K, torch.linalg.solve(C, K), R, edits)


def by_formula(change: SolvedChange, C: Tensor) -> Tensor:
    """R K^T (lambda C0 + K K^T)^-1, as the paper writes it."""
    K, R = change.keys, change.residuals
    return R @ K.T @ torch.linalg.inv(C + K @ K.T)


def low_rank(shape: tuple[int, int], edits: tuple[int, ...], seed: int) -> LowRankChange:
    return LowRankChange(
        0.3 * randn(seed, shape[0], len(edits)), randn(seed + 1, shape[1], len(edits)), edits
    )


def change_of(kind: str, shape: tuple[int, ...], edits: tuple[int, ...], seed: int) -> Change:
    if kind == "dense":
        return DenseChange(0.1 * randn(seed, *shape))
    assert len(shape) == 2
    return (solved if kind == "solved" else low_rank)(shape, edits, seed)


def record(number: int, tag: str = "", **fields: Any) -> EditRecord:
    given = {"id": f"{tag}{number}", "subject": f"subject {tag}{number}", "target": f"t{number}",
             "prompt": f"The colour of subject {tag}{number} is"}  # fmt: skip
    return EditRecord(**{**given, **fields})


def patch_for(model: nn.Module, names: list[str], kind: str = "solved", n: int = 3, seed: int = 0,
              tag: str = "", **fields: Any) -> Patch:  # fmt: skip
    """A random patch of n edits for parameters of a model, bound to their present values."""
    parameters = dict(model.named_parameters())
    base, changes = {}, {}
    for place, name in enumerate(names):
        value = parameters[name]
        conv = isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D)
        transposed = conv and value.dim() == 2
        base[name] = BaseTensor(
            sha256=tensor_hash(value), shape=tuple(value.shape), transposed=transposed
        )
        shape = tuple(value.shape)[::-1] if transposed else tuple(value.shape)
        changes[name] = change_of(kind, shape, tuple(range(n)), 100 * seed + 10 * place)
    given: dict[str, Any] = {
        "name": f"patch{seed}", "method": "pmet", "model": "tiny", "base": base, "covariance": "c",
        "settings": {"lambda": 1.0}, "edits": tuple(record(i, tag) for i in range(n)),
    }  # fmt: skip
    return Patch(PatchHeader(**{**given, **fields}), changes)


def written(model: nn.Module, patch: Patch) -> dict[str, Tensor]:
    """What each changed parameter must hold: W + Delta in float64, rounded once."""
    found = {}
    for name, change in patch.changes.items():
        value = dict(model.named_parameters())[name].detach()
        delta = change.delta()
        delta = delta.T if patch.header.base[name].transposed else delta
        found[name] = (value.double() + delta).to(value.dtype)
    return found


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(
        a.dtype == second[k].dtype and a.shape == second[k].shape
        and torch.equal(a.contiguous().view(torch.uint8), second[k].contiguous().view(torch.uint8))
        for k, a in first.items()
    )  # fmt: skip


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def mlp_structure(folder: Path, kept: list[int], name: str = "narrow") -> Patch:
    """A structure that keeps some MLP units of a LLaMA or GPT-2 folder in every layer."""
    config = json.loads((folder / "config.json").read_text())
    index = torch.tensor(kept)
    cuts = {}
    for file in folder.glob("*.safetensors"):
        for tensor in load_file(file):
            if tensor.endswith(("gate_proj.weight", "up_proj.weight")):
                cuts[tensor] = Cut((index, None), tensor)
            elif tensor.endswith("down_proj.weight") or tensor.endswith("mlp.c_fc.weight"):
                cuts[tensor] = Cut((None, index), tensor)
            elif tensor.endswith("mlp.c_fc.bias"):
                cuts[tensor] = Cut((index,), tensor)
            elif tensor.endswith("mlp.c_proj.weight"):
                cuts[tensor] = Cut((index, None), tensor)
    width = "n_inner" if config["model_type"] == "gpt2" else "intermediate_size"
    return structure_patch(folder, cuts, {**config, width: len(kept)}, name=name, method="chosen")


def depth_structure(folder: Path, gone: int, name: str = "shallow") -> Patch:
    """A structure that takes one of a LLaMA folder's four layers away; those above move down."""
    config = json.loads((folder / "config.json").read_text())
    cuts = {}
    for file in folder.glob("*.safetensors"):
        for tensor, value in load_file(file).items():
            found = re.match(r"(model\.layers\.)(\d+)(\..*)", tensor)
            if found and int(found[2]) >= gone:
                new = f"{found[1]}{int(found[2]) - 1}{found[3]}" if int(found[2]) > gone else None
                cuts[tensor] = Cut((None,) * value.dim(), new)
    configuration = {**config, "num_hidden_layers": 3}
    return structure_patch(folder, cuts, configuration, name=name, method="chosen")
