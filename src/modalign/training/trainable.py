"""The only module that decides what trains: freezing, LoRA, parameter groups, table and check."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft import LoraConfig, LoraModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from modalign.errors import ModalignError, UsageError
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.parts import decoder_layers
from modalign.training.settings import EncoderMode, LearningRates, LLMMode, Stage, TrainSettings

PARTS = ("connector", "llm", "encoder")
_PREFIXES = {"connectors.": "connector", "language_model.": "llm", "encoders.": "encoder"}


def parts_of(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Yield every parameter with its part and name.

    An untrained encoder belongs to the connector: they learn together.
    """
    encoders = getattr(model, "encoders", {})
    fresh = tuple(f"encoders.{name}." for name in encoders if encoders[name].fresh)
    for name, parameter in model.named_parameters():
        part = next((p for prefix, p in _PREFIXES.items() if name.startswith(prefix)), "connector")
        yield name, "connector" if name.startswith(fresh) else part, parameter


@dataclass(frozen=True)
class PartCount:
    """Parameters of one part and how many of them train."""

    part: str
    parameters: int
    trainable: int


def add_lora(model: ModalignForConditionalGeneration, settings: TrainSettings) -> LoraModel:
    """Add LoRA to every linear layer inside the decoder layers, and nowhere else.

    peft's ``all-linear`` would also reach the tower and the connector. The adapters are injected in
    place; keep the returned object to merge them.
    """
    language_model = model.language_model
    layers = decoder_layers(language_model)
    prefix = next(name for name, module in language_model.named_modules() if module is layers)
    targets = [
        f"{prefix}.{name}"
        for name, module in layers.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    ]
    if not targets:
        raise UsageError(f"{type(language_model).__name__} has no linear layers for LoRA")
    fused = any(isinstance(module, Conv1D) for module in layers.modules())
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules=targets,
        fan_in_fan_out=fused,
    )
    return LoraModel(language_model, config, "default")


def freeze(
    model: ModalignForConditionalGeneration,
    llm: LLMMode,
    encoder: EncoderMode,
    rates: LearningRates,
) -> None:
    """Set ``requires_grad`` of every parameter, and train mode of trained parts."""
    model.train()
    for name, part, parameter in parts_of(model):
        if part == "connector":
            parameter.requires_grad_(rates.connector > 0)
        elif part == "llm":
            adapter = "lora_" in name
            wanted = (llm == "full" and not adapter) or (llm == "lora" and adapter)
            parameter.requires_grad_(wanted and rates.llm > 0)
        else:
            parameter.requires_grad_(encoder == "full" and rates.encoder > 0)
    if encoder == "frozen":
        model.encoders.eval()
    for module in model.encoders.values():
        if module.fresh:
            module.train()
    if llm == "frozen":
        model.language_model.eval()


def freeze_for(
    model: ModalignForConditionalGeneration, stage: Stage, settings: TrainSettings
) -> None:
    """Set what trains in a stage, and the modes that gradient checkpointing needs."""
    llm, encoder = stage.llm or settings.llm, stage.encoder or settings.encoder
    freeze(model, llm, encoder, stage.learning_rates or settings.learning_rates)
    if settings.gradient_checkpointing and llm == "frozen":
        # transformers checkpoints layers only in training mode; submodules stay unchanged.
        # A layer with its own dropout is left unchanged.
        for layer in decoder_layers(model.language_model):
            layer.training = not getattr(layer, "dropout", 0.0)


def count_parts(model: nn.Module) -> list[PartCount]:
    """Count parameters per part, for the table of trained parts."""
    total = dict.fromkeys(PARTS, 0)
    trainable = dict.fromkeys(PARTS, 0)
    for _, part, parameter in parts_of(model):
        total[part] += parameter.numel()
        trainable[part] += parameter.numel() if parameter.requires_grad else 0
    return [PartCount(part, total[part], trainable[part]) for part in PARTS]


def parameter_groups(model: nn.Module, rates: LearningRates, weight_decay: float) -> list[dict]:
    """Return AdamW groups: a learning rate per part, no weight decay on vectors (biases, norms, gates)."""
    by_part = rates.model_dump()
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for _, part, parameter in parts_of(model):
        if parameter.requires_grad:
            groups.setdefault((part, parameter.dim() > 1), []).append(parameter)
    if not groups:
        raise UsageError("nothing trains: every part is frozen or has learning rate 0")
    return [
        {
            "params": parameters,
            "lr": by_part[part],
            "base_lr": by_part[part],
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (part, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


class FrozenCheck:
    """Fingerprints of all frozen tensors before the first step, compared after it."""

    def __init__(self, model: nn.Module) -> None:
        self.before = dict(self._fingerprints(model))

    @staticmethod
    def _fingerprints(model: nn.Module) -> Iterator[tuple[str, int]]:
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                yield name, _fingerprint(parameter)

    def verify(self, model: nn.Module) -> None:
        """Raise if a frozen tensor changed."""
        changed = [
            name
            for name, value in self._fingerprints(model)
            if self.before.get(name, value) != value
        ]
        if changed:
            raise ModalignError(
                f"{len(changed)} frozen tensors changed in the first step, {changed[0]} among "
                "them; this is a bug in the connector or in the model's own code"
            )


def _fingerprint(tensor: Tensor) -> int:
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    raw = (
        local.detach().flatten().contiguous().view(torch.uint8)
    )  # a scalar cannot be viewed as bytes
    usable = raw.numel() // 4 * 4
    words = raw[:usable].view(torch.int32)
    return (
        int(words.sum(dtype=torch.int64))
        + int((words[1::2] ^ 0x5BD1E995).sum(dtype=torch.int64))
        + int((words[::3] ^ 0x1B873593).sum(dtype=torch.int64))
        + int(raw[usable:].sum(dtype=torch.int64))
    )
