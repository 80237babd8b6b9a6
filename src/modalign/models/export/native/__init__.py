"""Export to native transformers classes, if one computes what the composed model computes."""

from __future__ import annotations

from collections.abc import Callable

from modalign.connectors.rungs import AUDIO
from modalign.errors import choose
from modalign.models.export.native import (
    blip2,
    idefics,
    idefics2,
    idefics3,
    llava,
    qwen2_audio,
    voxtral,
)
from modalign.models.export.native.base import Native, NotNativeError, save_native
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.processing import ModalignProcessor

Build = Callable[[ModalignForConditionalGeneration, ModalignProcessor], Native]

# The names in a connector's `export_target` or `rungs.AUDIO`, and their builders.
TARGETS: dict[str, Build] = {
    "Llava": llava.build,
    "Blip2": blip2.build,  # only on request: it cannot answer without an image
    "Idefics": idefics.build,
    "Idefics2": idefics2.build,
    "Idefics3": idefics3.build,
    "Qwen2Audio": qwen2_audio.build,
    "Voxtral": voxtral.build,
}

# For connectors without a class: what a user can do, or why there is none.
_INSTEAD = {
    "avgpool_mlp": "Idefics3 holds it with the options depth 1 and bias false, where the blocks "
    "that are pooled tile the grid",
    "gated_cross_attention": "the blocks of Idefics have RMSNorm and SwiGLU: idefics_cross_attention",
    "mlp": "Llava's has two affine maps: depth 2",
    "pool_linear": "Qwen2Audio averages before its encoder's last norm: linear, behind a Whisper "
    "encoder with the option form=qwen2_audio",
    "pixel_shuffle_mlp": "InternVL joins it to a tower of its own",
    "qformer": "Blip2 takes no prompt without an image; request it by name if that is enough",
    "resampler": "Idefics2's is in another form: swiglu_resampler",
}


def build_native(
    model: ModalignForConditionalGeneration,
    processor: ModalignProcessor,
    target: str | None = None,
) -> Native:
    """Build a native model around the composed model's modules, and compare the two.

    Args:
        model: with LoRA merged, if any.
        processor: the composed model's.
        target: a key of ``TARGETS``; None for the connector's.

    Raises:
        NotNativeError: there is no such class, or it would not compute the same; the message says
            why.
    """
    if target is None:
        target = _named(model)
    if target not in TARGETS:
        raise NotNativeError(no_such_target(target))
    try:
        return TARGETS[target](model, processor)
    except NotNativeError as error:
        raise NotNativeError(f"not as {target}: {error}") from error


def no_such_target(target: str, *others: str) -> str:
    """What stands against a class, or what to choose instead: ``TARGETS`` and ``others``."""
    return f"there is no export to {target!r}; {choose(target, [*TARGETS, *others])}"


def _named(model: ModalignForConditionalGeneration) -> str:
    if len(model.connectors) != 1:
        found = " and ".join(model.connectors) or "no modality besides text"
        raise NotNativeError(f"no transformers class supports {found}")
    ((modality, connector),) = model.connectors.items()
    name = str(connector.name)
    target = AUDIO.get(name) if modality == "audio" else str(connector.export_target)
    if target is None or target == "remote-code":
        instead = f": {_INSTEAD[name]}" if name in _INSTEAD else ""
        raise NotNativeError(
            f"no transformers class computes the same as {name!r} for every prompt with "
            f"{modality}{instead}"
        )
    return target


__all__ = [
    "TARGETS",
    "Native",
    "NotNativeError",
    "build_native",
    "no_such_target",
    "save_native",
]
