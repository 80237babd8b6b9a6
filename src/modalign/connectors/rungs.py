"""On which rung of the export ladder a method stands, and what can serve it, in one table.

Rungs, from the highest: ``native:CLASS`` (a class of transformers), ``remote-code`` (its own few
Python files), ``tools`` (a language model that reads tools' text: only modalign's server). A gateway
is not a rung: with it, a server of plain text models can serve any prefix connector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

REMOTE_CODE, TOOLS, NATIVE = "remote-code", "tools", "native:"
CAUSAL_LM = "CausalLM"  # discrete codes: any causal language model, with token ids for them

# Classes for sound; those for images are the connectors' own ``export_target``.
AUDIO = {"linear": "Qwen2Audio", "stack_mlp": "Voxtral"}
# The forms in which their encoder must have been loaded.
ENCODER_FORMS = {"Qwen2Audio": "qwen2_audio", "Voxtral": "voxtral"}
AUDIO_OPTIONS = {"Voxtral": {"stack": 4}}  # options that their connector must have been built with

TRANSFORMERS = "transformers serve"
VLLM = "vLLM"
GATEWAY = "vLLM through the gateway"
OWN = "modalign serve"
LLAMA_CPP = "llama.cpp"

# Native classes that vLLM serves according to its documentation (its own Llava takes only CLIP, SigLIP
# and Pixtral towers), and whose folders have the processor that it needs; the folders of Idefics,
# Idefics3 and Voxtral have another.
IN_VLLM = {"Llava", "Qwen2Audio", CAUSAL_LM}
# Connectors of kinds that are in llama.cpp's table of projectors; modalign writes no GGUF file.
IN_LLAMA_CPP = {"ldp", "ldpv2"}


@dataclass(frozen=True)
class Standing:
    """A method's rung on the export ladder.

    Attributes:
        rung: ``native:CLASS``, ``remote-code`` or ``tools``.
        gateway: whether encoder and connector can run before a language model that runs elsewhere.
        served_by: what can serve it, the most usual first.
    """

    rung: str
    gateway: bool
    served_by: tuple[str, ...]


def native_class(modality: str, connector: Any, encoder: Any = None) -> str | None:
    """Return the class of transformers that can hold this kind of connector for a modality.

    Whether it computes the same is checked when the model is written.

    Args:
        modality: the one it connects.
        connector: a connector, whose options may matter, its class, or its entry in the catalogue.
        encoder: the one before it, if known.
    """
    if connector.discrete:
        return CAUSAL_LM
    if modality == "audio":
        return _sound_class(connector, encoder)
    target = str(connector.export_target)
    if modality != "image" or target == REMOTE_CODE:
        return None
    # The classes for images hold a transformers tower, but neither a user's own module nor raw patches.
    return target if encoder is None or hasattr(encoder, "tower") else None


def _sound_class(connector: Any, encoder: Any) -> str | None:
    target = AUDIO.get(connector.name)
    if target is None:
        return None
    if encoder is not None and getattr(encoder, "form", None) != ENCODER_FORMS[target]:
        return None
    options = getattr(connector, "options", None)
    if options is None:
        return target
    wanted = AUDIO_OPTIONS.get(target, {})
    fits = all(getattr(options, name) == value for name, value in wanted.items())
    return target if fits else None


def standing_of(parts: Sequence[tuple[str, Any, Any]]) -> Standing:
    """Return the rung on which a model stands.

    Args:
        parts: (modality, connector or its class, encoder or None) of everything that it takes;
            empty if its media enter as the text of tools, or not at all.
    """
    if not parts:
        return Standing(TOOLS, False, (OWN,))
    classes = {native_class(*part) for part in parts}
    found = classes.pop() if len(classes) == 1 else None
    if len(parts) > 1 and found != CAUSAL_LM:
        found = None  # transformers' classes hold only one modality
    connectors = [connector for _, connector, _ in parts]
    prefix = all(connector.enters == "prefix" for connector in connectors)
    served = [TRANSFORMERS] if found is not None else []
    served += [VLLM] if found in IN_VLLM else []
    served += [GATEWAY] if prefix else []
    served.append(OWN)
    if all(connector.name in IN_LLAMA_CPP for connector in connectors):
        served.append(LLAMA_CPP)
    rung = REMOTE_CODE if found is None else NATIVE + found
    return Standing(rung, prefix, tuple(served))


def height(rung: str) -> int:
    """Return how hard a rung is to serve: 0 native, 1 remote code, 2 tools."""
    return 0 if rung.startswith(NATIVE) else {REMOTE_CODE: 1}.get(rung, 2)
