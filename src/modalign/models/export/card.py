"""The model card: what the model is, how it is loaded, and what was measured."""

from __future__ import annotations

from typing import Any

from modalign.data.modalities import modality_of
from modalign.models.configuration import ModalignConfig

_LOADING = """\
```python
from transformers import {auto}, AutoProcessor

model = {auto}.from_pretrained("{folder}"{trust})
processor = AutoProcessor.from_pretrained("{folder}"{processor_trust})
{note}messages = [{{"role": "user", "content": [
    {part},
    {{"type": "text", "text": "What is this?"}},
]}}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
answer = model.generate(**inputs, max_new_tokens=64)
print(processor.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```"""


_TRUST = ", trust_remote_code=True"
LICENCES = "The licences of the language model and of the encoder still apply."


def model_card(
    config: ModalignConfig,
    kind: str,
    notes: list[str],
    text: str | None,
    *,
    dtype: Any,
    processor_code: bool = False,
) -> str:
    """Write the README.md of a saved model.

    Args:
        config: the composed model's.
        kind: ``remote-code``, or ``native:`` and the class.
        notes: what users must know.
        text: measurements.
        dtype: of the weights.
        processor_code: whether a native model's processor is Python files in the folder.
    """
    remote = kind == "remote-code"
    modalities = list(config.bridges or {})
    first = modality_of(modalities[0]) if modalities else None
    note = f"{first.chat_note}\n" if first is not None and first.chat_note else ""
    lines = [
        "---",
        *_licence(config),
        "library_name: transformers",
        f"pipeline_tag: {'image-text-to-text' if 'image' in modalities else 'any-to-any'}",
        "tags:",
        "- modalign",
        *(["- custom_code"] if remote or processor_code else []),
        "---",
        "",
        f"# {first.title if first else 'A language model'}",
        "",
        "| part | what | from | its licence |",
        "|---|---|---|---|",
        _row(config, "language model", getattr(config.text_config, "model_type", "unknown")),
    ]
    for modality, bridge in (config.bridges or {}).items():
        lines += [
            _row(config, f"{modality} encoder", _encoder(bridge["encoder"])),
            f"| {modality} connector | {bridge['connector']['name']} | trained here | |",
        ]
    lines += [
        "",
        f"The weights are {str(dtype).removeprefix('torch.')}.",
        "",
        "## Loading",
        "",
        _LOADING.format(
            folder="this folder",
            auto="AutoModelForImageTextToText"
            if "image" in modalities
            else "AutoModelForMultimodalLM",
            trust=_TRUST if remote else "",
            processor_trust=_TRUST if remote or processor_code else "",
            part=first.chat_part if first else '{"type": "text", "text": "Hello."}',
            note=f"# {note}" if note else "",
        ),
        "",
        _code(kind, processor_code),
        "",
        LICENCES,
        "",
    ]
    if notes:
        lines += ["## Notes", "", *(f"- {note}" for note in notes), ""]
    if text:
        lines += ["## Measured", "", text.strip(), ""]
    return "\n".join(lines)


def _code(kind: str, processor_code: bool) -> str:
    if kind == "remote-code":
        return (
            "The folder contains the few Python files of this model; read them before trusting them. "
            "They need only torch and transformers."
        )
    what = f"It is transformers' own {kind.partition(':')[2]} class"
    if not processor_code:
        return f"{what}: no further code is needed."
    return (
        f"{what}; its processor is the few Python files of the folder. Read them before trusting them. "
        "They need only torch and transformers."
    )


def _row(config: ModalignConfig, part: str, what: str) -> str:
    known = (config.origins or {}).get(part, {})
    licence = known.get("licence", "not stated at its source" if known else "")
    return f"| {part} | {what} | {known.get('name', '')} | {licence} |"


def _licence(config: ModalignConfig) -> list[str]:
    """Return the card's field: the licence that all parts share, or "other", the hub's word for several."""
    origins = (config.origins or {}).values()
    stated = {known.get("licence") for known in origins}
    if not stated or None in stated:
        return []
    return [f"license: {stated.pop() if len(stated) == 1 else 'other'}"]


def _encoder(spec: dict) -> str:
    if "config" in spec:
        read = spec.get("layer")
        layer = (
            ", its output"
            if isinstance(read, str)
            else ""
            if read is None
            else f", hidden layer {read}"
        )
        return f"{spec['config']['model_type']}{layer}"
    if "path" in spec:
        return f"`{spec['path']}`"
    if spec["kind"] == "patches" and "patch_size" in spec:
        return f"none: raw patches of {spec['patch_size']} pixels"
    return str(spec["kind"])
