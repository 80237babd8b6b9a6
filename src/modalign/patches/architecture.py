"""What a model folder's class tells: the model without weights, whether it loads, what it stores transposed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from modalign.errors import DataError
from modalign.models.configuration import ModalignConfig
from modalign.strict_json import read_object


def loading_problem(folder: Path) -> str:
    """Load a folder's model; say why its tensors are not those of its configuration, or nothing if they are."""
    try:
        _, info = _class_of(folder).from_pretrained(
            folder, dtype="auto", use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    for what in ("missing", "unexpected", "mismatched"):
        if found := sorted(map(str, info[f"{what}_keys"])):
            return f"{found[0]} is {what}"
    return ""


def transposed_weights(folder: Path) -> set[str]:
    """Return the parameters that a folder's model stores as (d_in, d_out), by their names in the model."""
    model = skeleton(folder)
    return {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, Conv1D)}


def skeleton(folder: Path) -> PreTrainedModel:
    """Build a folder's model without weights, on the meta device.

    Raises:
        DataError: transformers does not know its class.
    """
    kind = _class_of(folder)
    config = kind.config_class.from_pretrained(folder)
    with torch.device("meta"):
        model: PreTrainedModel = kind(config)
    return model


def _class_of(folder: Path) -> Any:
    values = read_object(folder / "config.json")
    if values.get("model_type") == ModalignConfig.model_type:
        from modalign.models.modeling import ModalignForConditionalGeneration

        return ModalignForConditionalGeneration
    names = values.get("architectures") or [""]
    found = getattr(transformers, names[0], None)
    if found is None:
        raise DataError(
            f"{folder}/config.json names the class {names[0]!r}, unknown to transformers"
        )
    return found
