"""Write a composed model as a Hugging Face folder, atomically, and read it back."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForMultimodalLM,
    AutoProcessor,
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from modalign.connectors.base import Connector
from modalign.encoders.image import ImportedEncoder
from modalign.errors import ModalignError, UsageError
from modalign.files import new_folder
from modalign.models.bridges import Bridges
from modalign.models.configuration import ModalignConfig
from modalign.models.export.card import model_card
from modalign.models.export.native import Native, NotNativeError, build_native, save_native
from modalign.models.export.remote_code import (
    AUTO_MAP,
    PROCESSOR_AUTO_MAP,
    write_code,
    write_processor,
)
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.pretrained import check_vocabulary, read_pretrained
from modalign.models.processing import ModalignProcessor
from modalign.models.processing_idefics import ModalignIdeficsProcessor
from modalign.models.processing_voxtral import ModalignVoxtralProcessor
from modalign.models.quiet import quietly
from modalign.strict_json import read_object

PROCESSORS = (ModalignProcessor, ModalignIdeficsProcessor, ModalignVoxtralProcessor)

TRAINING_ANSWERS = "training_answers.json"  # what a blind guesser knows of the training
PROCESSOR_CODE = (
    "The class's own processor would give prompts that differ from training, so the folder has "
    "another, as Python files: load the processor with trust_remote_code=True, the model without."
)

Kind = str  # "remote-code", or "native:" and the class: "native:Llava"


@dataclass(frozen=True)
class SavedModel:
    """A model on disk.

    Attributes:
        kind: ``native:Llava`` (or another class) loads in plain transformers; ``remote-code`` with
            ``trust_remote_code=True``.
        folder: where it is.
        notes: why it has this kind, and further notes for users.
    """

    kind: Kind
    folder: Path
    notes: tuple[str, ...] = ()


@quietly()
def save_model(
    model: ModalignForConditionalGeneration,
    processor: ModalignProcessor,
    folder: Path,
    *,
    card: str | None = None,
    target: str | None = None,
    dtype: torch.dtype | None = None,
) -> SavedModel:
    """Write the model so that it loads without modalign; an existing one is replaced at the end.

    Args:
        model: with LoRA merged, if any.
        processor: the composed model's.
        folder: new, empty, or a model folder to replace.
        card: text for the model card, such as the measured comparison.
        target: a key of ``native.TARGETS`` or ``remote-code``, without alternative; None for
            the native class if it computes the same, otherwise remote code.
        dtype: of the saved weights, to which the model's own are rounded; None: theirs.

    Raises:
        UsageError: the folder contains something that is not a model.
        ModalignError: the model cannot be written, or not as ``target``; nothing was changed on
            disk.
    """
    folder = Path(folder)
    check_folder(folder)
    if hasattr(model.language_model, "merge_and_unload"):
        raise ModalignError("the language model still carries LoRA adapters; merge them first")
    with new_folder(folder) as temporary:
        native, notes = _native(model, processor, target)
        with stored_as(dtype, model, *([native.model] if native else [])) as stored:
            if native is None:
                kind = "remote-code"
                notes += _save_remote(model, processor, temporary)
            else:
                kind = f"native:{native.target}"
                native.model.generation_config = savable(native.model.generation_config)
                save_native(native, temporary)
                notes += _save_processor_code(native.processor, temporary)
        for file in temporary.glob("*config.json"):
            forget_places(file)
        (temporary / "README.md").write_text(
            model_card(
                model.config,
                kind,
                notes,
                card,
                dtype=stored,
                processor_code=native is not None
                and isinstance(native.processor, ModalignProcessor),
            ),
            encoding="utf-8",
        )
    return SavedModel(kind, folder, tuple(notes))


@contextmanager
def stored_as(dtype: torch.dtype | None, *models: nn.Module) -> Iterator[torch.dtype]:
    """Models in the dtype that is saved; afterwards in the former one, rounded to what was saved."""
    before = widest_dtype(models[0])
    if dtype is None or dtype == before:
        yield before
        return
    _cast(models, dtype)
    try:
        yield dtype
    finally:
        _cast(models, before)


def _cast(models: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """What is saved of models; what is not (frequencies of rotary positions) keeps its precision."""
    for model in models:
        for tensor in model.state_dict(keep_vars=True).values():
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)


def save_parts(
    model: ModalignForConditionalGeneration, processor: ModalignProcessor, folder: Path
) -> None:
    """Write all of a model but its weights into an empty folder, and read it back: a rehearsal of saving."""
    model.config.save_pretrained(folder)
    savable(model.generation_config).save_pretrained(folder)
    processor.save_pretrained(folder)
    load_processor(folder)
    model_card(model.config, "remote-code", [], None, dtype=model.dtype)


def _native(
    model: ModalignForConditionalGeneration, processor: ModalignProcessor, target: str | None
) -> tuple[Native | None, list[str]]:
    """The native form, or None for remote code, and why."""
    if target == "remote-code":
        return None, ["Saved with its own code, as requested."]
    try:
        return build_native(model, processor, target), []
    except NotNativeError as reason:
        if target is not None:
            raise ModalignError(f"the model cannot be saved: {reason}") from reason
        return None, [f"Saved with its own code: {reason}."]


def check_folder(folder: Path) -> None:
    """Refuse a path that contains something other than a model.

    Raises:
        UsageError: it does.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder} is not a folder; name a new one")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise UsageError(f"{folder} contains something that is not a model; name a new folder")


def _save_remote(
    model: ModalignForConditionalGeneration, processor: ModalignProcessor, folder: Path
) -> list[str]:
    write_code(folder, connector_classes(model), list(model.encoders))
    kept = model.generation_config
    model.generation_config = savable(kept)
    try:
        model.save_pretrained(folder)
    finally:
        model.generation_config = kept
    processor.save_pretrained(folder)
    dtype = widest_dtype(model)
    with edited_json(folder / "config.json") as config:
        config["auto_map"] = AUTO_MAP
        config["dtype"] = config["text_config"]["dtype"] = str(dtype).removeprefix("torch.")
    with edited_json(folder / "processor_config.json") as config:
        config["auto_map"] = PROCESSOR_AUTO_MAP
    return own_code(model)


def _save_processor_code(processor: ProcessorMixin, folder: Path) -> list[str]:
    """Save the code of a native model's processor, if it is not one of transformers' own."""
    if not isinstance(processor, ModalignProcessor):
        return []
    name = write_processor(folder, type(processor), list(processor.signals))
    with edited_json(folder / "processor_config.json") as config:
        config["auto_map"] = {"AutoProcessor": name}
    return [PROCESSOR_CODE]


def connector_classes(model: Bridges) -> list[type[Connector]]:
    """Return every connector class in a model, once."""
    return list(dict.fromkeys(type(each) for each in model.connectors.values()))  # type: ignore[misc]


def own_code(model: Bridges) -> list[str]:
    """Return notes on encoders whose code cannot be exported."""
    return [
        f"The {name} encoder is the user's own class `{encoder.path}`: the module must be "
        "importable wherever this model is loaded."
        for name, encoder in model.encoders.items()
        if isinstance(encoder, ImportedEncoder)
    ]


def forget_places(file: Path) -> None:
    """Remove the paths that parts were loaded from: they are local to this machine and not used."""
    values = read_object(file)
    kept = _without_places(values)
    if kept != values:
        text = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
        file.write_text(text, encoding="utf-8")


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        named = ("_name_or_path", "name_or_path")
        return {key: _without_places(item) for key, item in value.items() if key not in named}
    return [_without_places(item) for item in value] if isinstance(value, list) else value


@contextmanager
def edited_json(path: Path) -> Iterator[dict[str, Any]]:
    """Edit a JSON file: its values are written back if the block succeeds."""
    values = read_object(path)
    yield values
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def savable(generation: GenerationConfig) -> GenerationConfig:
    """Return a copy that transformers accepts for saving.

    Many models on the hub set a temperature without sampling, which transformers refuses to save.
    """
    generation = copy.deepcopy(generation)
    try:
        generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True
    return generation


def widest_dtype(model: nn.Module) -> torch.dtype:
    """Return the floating type that represents every parameter exactly."""
    found = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    dtype = found.pop()
    for other in found:
        dtype = torch.promote_types(dtype, other)
    return dtype


@quietly()
def load_model(folder: Path | str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a saved model with its processor, in evaluation mode.

    Models of modalign's class run modalign's own code, never the copy in the folder.

    Raises:
        UsageError: there is no model, or it needs code that modalign does not have.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} contains no model: it has no config.json")
    values = read_object(folder / "config.json")
    own = values.get("model_type") == ModalignConfig.model_type
    kind = ModalignForConditionalGeneration if own else AutoModelForMultimodalLM
    model = read_pretrained(kind, folder, use_safetensors=True)
    processor = load_processor(folder)
    check_vocabulary(folder, model, processor.tokenizer)
    return model.eval(), processor


def load_processor(folder: Path) -> ProcessorMixin:
    """Load a saved model's processor: one of modalign's, or one of transformers'."""
    file = folder / "processor_config.json"
    values = read_object(file) if file.is_file() else {}
    own = next(
        (each for each in PROCESSORS if each.__name__ == values.get("processor_class")), None
    )
    found: ProcessorMixin = read_pretrained(own or AutoProcessor, folder, "processor of the model")
    return found
