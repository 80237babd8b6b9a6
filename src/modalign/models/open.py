"""Open any language model in a folder: a causal LM, a transformers multimodal model, or ours.

Weights are read from safetensors only, never from a pickle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from modalign.chat_templates import one_template
from modalign.devices import device_named
from modalign.errors import DataError, UsageError
from modalign.models.asking import Reader, tokenizer_of
from modalign.models.configuration import ModalignConfig
from modalign.models.export.folder import load_model
from modalign.models.local import model_folder, unpacked
from modalign.models.pretrained import check_vocabulary, read_pretrained
from modalign.models.quiet import quietly
from modalign.models.tool_text import ToolReader, saved_tools
from modalign.strict_json import read_object


@quietly()
def open_model(
    name: Path | str, dtype: torch.dtype | None = None, device: str | None = None
) -> tuple[PreTrainedModel, Reader]:
    """Load a model in evaluation mode, with its reader for text and media.

    Args:
        name: a folder with a ``config.json``, a GGUF file, or a name of the hub.
        dtype: of the weights; None: as stored.
        device: device; ``auto`` is CUDA if available; None is the CPU.

    Returns:
        The model, and its tokenizer (for a causal language model), processor (for a model with media), or
        both with the tools whose text it reads.

    Raises:
        UsageError: there is no model, or it cannot be loaded; the message says why.
    """
    target = device_named(device or "cpu")
    name = unpacked(name)
    if takes_media(name):
        model, reader = load_model(model_folder(name))
        model = model if dtype is None else model.to(dtype)
    else:
        model, reader = _open_causal(str(name), dtype)
    tools = saved_tools(Path(name)) if isinstance(reader, PreTrainedTokenizerBase) else None
    if tools is not None:
        reader = ToolReader(tokenizer_of(reader), *tools)
    return model.to(target).eval(), reader


def takes_media(name: Path | str) -> bool:
    """Whether a folder or a name of the hub is a model with media (ours or transformers'), not a causal LM.

    If a type is in both of transformers' lists, the saved architecture decides.

    Raises:
        UsageError: there is no model, or transformers has neither kind for its type.
    """
    if _model_type(name) == ModalignConfig.model_type:
        return True
    config = _configuration(name)
    causal, with_media = (
        type(config) in auto._model_mapping
        for auto in (AutoModelForCausalLM, AutoModelForMultimodalLM)
    )
    if not causal and not with_media:
        raise UsageError(
            f"the model in {name} is a {config.model_type}: neither a causal language model nor one "
            "that answers in text about media"
        )
    if causal and with_media:
        wanted = AutoModelForMultimodalLM._model_mapping[type(config)]
        names = {each.__name__ for each in (wanted if isinstance(wanted, tuple) else (wanted,))}
        return bool(names & set(config.architectures or ()))
    return with_media


def _model_type(name: Path | str) -> str | None:
    folder = Path(name)
    if not folder.is_dir():
        if folder.suffix == ".safetensors" and folder.is_file():
            raise UsageError(
                f"{name} is a file of weights or a patch, no model folder: 'modalign patch inspect {name}' shows "
                "a patch, and --patch puts one on a model"
            )
        if folder.exists():
            raise UsageError(f"{name} contains no model: it is a file, neither a folder nor GGUF")
        return None  # read_pretrained asks the hub for what can be a name of it
    if not (folder / "config.json").is_file():
        raise UsageError(f"{name} contains no model: it has no config.json")
    try:
        found = read_object(folder / "config.json").get("model_type")
    except DataError as error:
        raise UsageError(str(error)) from error
    return found if isinstance(found, str) else None


def _configuration(name: Path | str) -> PreTrainedConfig:
    found: PreTrainedConfig = read_pretrained(AutoConfig, name)
    return found


def _open_causal(
    name: str, dtype: torch.dtype | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    wanted: Any = dtype or "auto"
    kind, what = AutoModelForCausalLM, "language model"
    model = read_pretrained(kind, name, what, dtype=wanted, use_safetensors=True)
    tokenizer = read_pretrained(AutoTokenizer, name, what)
    tokenizer.chat_template = one_template(tokenizer.chat_template)
    check_vocabulary(name, model, tokenizer)
    return model, tokenizer
