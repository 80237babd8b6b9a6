"""LoRA adapters merged by their products: exactly, at the sum of the ranks; peft's ways only by name.

A mean of A and a mean of B is not the mean of the products B A. Here the factors stand side by side, so that the
merged adapter adds exactly the weighted sum of what the parents add. peft's own combinations that act on A and B
apart (``linear``, ``ties``, ``dare_*``, ``magnitude_prune``), or cut products by a singular value decomposition
(``svd``, ``*_svd``), are called ``peft_linear``, ``peft_ties_svd`` and so on.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.utils.other import get_pattern_key
from torch import Tensor

from modalign.errors import DataError, ModalignError, UsageError, choose, first_line
from modalign.files import check_room, new_folder
from modalign.merging.coefficients import Coefficients
from modalign.models.open import open_model
from modalign.patches.folder_weights import opened
from modalign.patches.peft_export import PREFIX, WEIGHTS, write_lora
from modalign.strict_json import read_object

CONFIG = "adapter_config.json"
EXACT = ("linear", "task_arithmetic")
PEFT = "peft_"
PEFT_WAYS = (
    "svd", "linear", "cat", "ties", "ties_svd", "dare_ties", "dare_linear", "dare_ties_svd", "dare_linear_svd",
    "magnitude_prune", "magnitude_prune_svd",
)  # fmt: skip
Factors = dict[str, tuple[Tensor, Tensor]]
ROUNDING = 1e-5  # relative, of float32 factors
_REPEATED = re.compile(r"\)\s*[*+{]")  # groups that repeat: a few letters of them match for ever


@dataclass(frozen=True)
class Adapter:
    """A LoRA folder.

    Attributes:
        name: what the user calls it.
        folder: of the adapter.
        config: peft's.
        factors: layer -> left (d_out, r), right (d_in, r): it adds left right^T.
    """

    name: str
    folder: Path
    config: LoraConfig
    factors: Factors


def is_adapter(folder: Path | str) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (Path(folder) / CONFIG).is_file() and not (Path(folder) / "config.json").is_file()


def open_adapter(name: str, folder: Path | str) -> Adapter:
    """Read a LoRA folder.

    Raises:
        UsageError: it is another kind of adapter.
        DataError: it cannot be read, or holds values that are not finite.
    """
    folder = Path(folder)
    config = _config(folder / CONFIG)
    odd = [
        said
        for said, found in (
            (f"is {getattr(config, 'peft_type', 'unknown')}, not LoRA", not isinstance(config, LoraConfig)),
            ("is DoRA, whose magnitudes cannot be added up", getattr(config, "use_dora", False)),
            ("trains biases", getattr(config, "bias", "none") != "none"),
            ("trains whole modules (modules_to_save)", getattr(config, "modules_to_save", None)),
        )
        if found
    ]  # fmt: skip
    if odd:
        raise UsageError(
            f"the adapter {name} {odd[0]}: apply it to its model, and merge the models"
        )
    with opened(folder / WEIGHTS) as file:
        held = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    factors: Factors = {}
    for key, right in held.items():
        if not key.endswith(".lora_A.weight"):
            if not key.endswith(".lora_B.weight"):
                raise UsageError(
                    f"the adapter {name} holds {key}, which is no part of a linear layer's LoRA"
                )
            continue
        path = key.removesuffix(".lora_A.weight")
        left = held.get(f"{path}.lora_B.weight")
        if left is None or left.shape[1] != right.shape[0]:
            raise DataError(f"{folder / WEIGHTS}: {path} has no lora_B of its rank")
        if not bool(torch.isfinite(left).all() and torch.isfinite(right).all()):
            raise DataError(
                f"{path} of {name} holds values that are not finite; merge another checkpoint"
            )
        own = path.removeprefix(PREFIX)
        rank = _of(config.rank_pattern, own, config.r)
        if rank != right.shape[0]:
            raise DataError(
                f"{folder / CONFIG}: the rank of {own} is {rank}, and its factors have {right.shape[0]}: take "
                "another copy"
            )
        factors[own] = (left.double() * _scaling(config, own), right.double().T)
    return Adapter(name, folder, config, factors)


def _config(file: Path) -> Any:
    """Read an adapter's configuration, and check what is computed with."""
    fields = read_object(file)
    try:
        config: Any = PeftConfig.from_pretrained(str(file.parent))
    except Exception as error:  # peft checks little of a file, and raises anything
        raise DataError(f"{file} cannot be read: {first_line(error)}") from error
    if not isinstance(config, LoraConfig):
        return config
    ranks, alphas = fields.get("rank_pattern") or {}, fields.get("alpha_pattern") or {}
    for name, patterns in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        if not isinstance(patterns, dict) or any(_REPEATED.search(key) for key in patterns):
            raise DataError(f"{file}: {name} is no object of layers' names: take another copy")
    for name, value in (("r", config.r), *((f"rank_pattern of {k}", v) for k, v in ranks.items())):
        if type(value) is not int or value < 1:
            raise DataError(f"{file}: {name} is {value!r:.40}, not a rank: take another copy")
    scales = (
        ("lora_alpha", config.lora_alpha),
        *((f"alpha_pattern of {k}", v) for k, v in alphas.items()),
    )
    for name, value in scales:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise DataError(f"{file}: {name} is {value!r:.40}, not a number: take another copy")
    return config


def _of(patterns: Mapping[str, Any] | None, path: str, otherwise: Any) -> Any:
    """What a layer's pattern says, as peft looks it up."""
    found = patterns or {}
    return found.get(get_pattern_key(found.keys(), path), otherwise)


def _scaling(config: LoraConfig, path: str) -> float:
    """What peft multiplies a layer's product with."""
    rank = _of(config.rank_pattern, path, config.r)
    alpha = _of(config.alpha_pattern, path, config.lora_alpha)
    return float(alpha / (rank**0.5 if config.use_rslora else rank))


def merge_adapters(
    adapters: Sequence[Adapter],
    coefficients: Coefficients,
    method: str,
    options: Mapping[str, Any],
    base: str | None,
    out: Path,
) -> dict[str, int]:
    """Write the merged adapter into a new folder.

    Args:
        adapters: of one base model.
        coefficients: the adapters' weights, by layer; ``linear`` divides them by their sum.
        method: ``linear``, ``task_arithmetic``, or ``peft_`` and one of peft's combinations.
        options: of the method.
        base: folder of the base model; None: the one that the adapters name.
        out: new.

    Returns:
        Layer -> rank.

    Raises:
        UsageError: adapters that do not fit each other, or an unknown method.
        ModalignError: what was written does not add the weighted sum of the products.
    """
    check_method(method)
    check_alike(adapters)
    pairs = (pair for each in adapters for pair in each.factors.values())
    needed = sum(4 * factor.numel() for pair in pairs for factor in pair)
    check_room(out, needed, "the merged adapter takes")
    named = base or str(adapters[0].config.base_model_name_or_path)
    if method.startswith(PEFT):
        weights = coefficients.of("")
        return _by_peft(adapters, weights, method.removeprefix(PEFT), options, named, out)
    scale = float(options.get("scale", 1.0))
    factors: Factors = {}
    for path in dict.fromkeys(path for each in adapters for path in each.factors):
        weights = coefficients.of(path)
        whole = sum(weights.values()) if method == "linear" else 1.0
        own = [
            (scale * weights[each.name] / whole, *each.factors[path])
            for each in adapters
            if path in each.factors
        ]
        left = torch.cat([weight * left for weight, left, _ in own], 1)
        factors[path] = (left, torch.cat([right for _, _, right in own], 1))
    with new_folder(out) as new:
        single = {path: (left.float(), right.float()) for path, (left, right) in factors.items()}
        write_lora(new, single, named, bool(adapters[0].config.fan_in_fan_out))
        again = open_adapter("the merged adapter", new)
        for path, (left, right) in factors.items():
            wanted = left @ right.T
            found = again.factors[path][0] @ again.factors[path][1].T
            if float((found - wanted).norm()) > ROUNDING * max(float(wanted.norm()), 1e-30):
                raise ModalignError(
                    f"the merged adapter: {path} does not add the sum of the products"
                )
    return {path: right.shape[1] for path, (_, right) in factors.items()}


def check_method(method: str) -> None:
    """Refuse a method that is not for adapters.

    Raises:
        UsageError: the message lists those that are.
    """
    known = (*EXACT, *(PEFT + way for way in PEFT_WAYS))
    if method not in known:
        raise UsageError(f"adapters are not merged by {method!r}; {choose(method, known)}")


def check_alike(adapters: Sequence[Adapter]) -> None:
    """Refuse adapters of other bases or widths.

    Raises:
        UsageError: the message names the layer, or the bases.
    """
    first, *others = adapters
    for other in others:
        bases = [str(each.config.base_model_name_or_path) for each in (first, other)]
        if Path(bases[0]).name != Path(bases[1]).name:
            raise UsageError(
                f"{first.name} is an adapter of {bases[0]}, {other.name} of {bases[1]}: merge adapters of "
                "one model"
            )
        if first.config.fan_in_fan_out != other.config.fan_in_fan_out:
            raise UsageError(
                f"{first.name} and {other.name} are for layers that store their weights differently"
            )
        for path in first.factors.keys() & other.factors.keys():
            shapes = [(len(e.factors[path][0]), len(e.factors[path][1])) for e in (first, other)]
            if shapes[0] != shapes[1]:
                raise UsageError(
                    f"{path} has the shape {shapes[0]} for {first.name} and {shapes[1]} for {other.name}: merge "
                    "adapters of one model"
                )


def _by_peft(
    adapters: Sequence[Adapter],
    weights: Mapping[str, float],
    way: str,
    options: Mapping[str, Any],
    base: str,
    out: Path,
) -> dict[str, int]:
    if not Path(base).is_dir():
        raise UsageError(
            f"peft combines adapters on their model, and {base} is not a folder: --base FOLDER"
        )
    model, _ = open_model(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, *others = adapters
        wrapped = PeftModel.from_pretrained(model, str(first.folder), adapter_name=first.name)
        for each in others:
            wrapped.load_adapter(str(each.folder), adapter_name=each.name)
        try:
            wrapped.base_model.add_weighted_adapter(
                [each.name for each in adapters], [weights[each.name] for each in adapters],
                adapter_name="merged", combination_type=way, **options,
            )  # fmt: skip
        except (ValueError, TypeError) as error:
            raise UsageError(f"peft: {first_line(error)}") from error
        with new_folder(out) as new:
            work = new / "peft"
            wrapped.save_pretrained(str(work), selected_adapters=["merged"])
            for file in (work / "merged").iterdir():
                file.rename(new / file.name)
            (work / "merged").rmdir()
            for left in work.iterdir():
                left.unlink()
            work.rmdir()
            found = open_adapter("the merged adapter", new)
    return {path: right.shape[1] for path, (_, right) in found.factors.items()}
