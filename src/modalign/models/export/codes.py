"""Discrete codes as token ids: a plain causal language model, and the tokenizer of the signal.

Once trained, the embedding of a code is a constant row. So the composed model is a plain language model
whose vocabulary has these rows in addition (``vq_codes``) or already (``vocabulary_codes``): any server of
text models runs it from token ids. Encoder and codebook, which turn a signal into ids, are in a separate
subfolder (``signal``) that runs where the signal is and needs only torch and transformers.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import PreTrainedModel

from modalign.connectors.codes import DiscreteConnector
from modalign.connectors.frames import PerFrame
from modalign.connectors.perceivers.vq_codes import VqCodes
from modalign.models.export.folder import forget_places, savable
from modalign.models.export.media import embedding_rows, save_media
from modalign.models.export.native import NotNativeError
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.parts import embedding
from modalign.models.processing import ModalignProcessor

TARGET = "CausalLM"
SIGNAL = "signal"  # subfolder of the part that turns media into ids

CARD = """\
# A language model that reads codes of {modalities}

A plain `{architecture}`: any server of text models runs it. It reads {modalities} as token ids, which
the folder `signal` computes. That folder needs only torch and transformers and contains a few Python
files; read them before trusting them.

```python
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor

signal = AutoModel.from_pretrained("this folder/signal", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("this folder/signal", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("this folder")
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
ids = signal.code_ids(**inputs)
answer = model.generate(ids, attention_mask=inputs["attention_mask"], max_new_tokens=64)
print(processor.decode(answer[0, ids.shape[1]:], skip_special_tokens=True))
```

The licences of the language model and of the encoder still apply.

{notes}
"""


def code_token(modality: str, number: int) -> str:
    """Return the text of a code's token: ``<image:17>``."""
    return f"<{modality}:{number}>"


def check_codes(model: ModalignForConditionalGeneration) -> None:
    """Check that every medium enters as discrete codes.

    Raises:
        NotNativeError: one does not.
    """
    if not model.connectors:
        raise NotNativeError("the model reads text only: it has no codes")
    for modality, connector in model.connectors.items():
        if not isinstance(connector, DiscreteConnector):
            raise NotNativeError(
                f"the tokens of the {modality} connector {connector.name!r} are not discrete codes, "
                "so they cannot be token ids"
            )
        if isinstance(connector, PerFrame):
            raise NotNativeError(f"{connector.name!r} frame by frame gives no codes for a clip")


def save_codes(
    model: ModalignForConditionalGeneration, processor: ModalignProcessor, folder: Path
) -> list[str]:
    """Write the plain language model into an empty folder; return notes for users.

    Raises:
        NotNativeError: a medium does not enter as discrete codes.
    """
    check_codes(model)
    plain, rows, offsets = _with_codes(model)
    tokenizer = copy.deepcopy(processor.tokenizer)
    size = embedding(model).weight.shape[0]
    if rows:
        _fill(tokenizer, size)
        for modality, given in rows.items():
            tokenizer.add_tokens(
                [AddedToken(code_token(modality, k), normalized=False) for k in range(len(given))]
            )
            first = tokenizer.convert_tokens_to_ids(code_token(modality, 0))
            if first != offsets[modality]:
                raise NotNativeError(
                    f"the tokenizer has the codes of {modality} at {first}, but their rows are at "
                    f"{offsets[modality]}"
                )
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    words = any(modality not in rows for modality in model.connectors)
    (folder / SIGNAL).mkdir()
    notes = save_media(
        model,
        processor,
        folder / SIGNAL,
        rows=embedding_rows(model) if words else None,
        code_offsets=offsets,
    )
    count = sum(map(len, rows.values()))
    notes.insert(0, f"`{SIGNAL}` turns media into token ids for the model.")
    if count:
        notes.append(
            f"{count:,} token ids, from {size:,} on, are codes of media. Generation suppresses them "
            "(suppress_tokens); leave them out of likelihoods too."
        )
    card = CARD.format(
        modalities=" and ".join(model.connectors),
        architecture=type(plain).__name__,
        notes="\n".join(f"- {note}" for note in notes),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    for file in folder.glob("*config.json"):
        forget_places(file)
    return notes


@torch.no_grad()
def _with_codes(
    model: ModalignForConditionalGeneration,
) -> tuple[PreTrainedModel, dict[str, Tensor], dict[str, int]]:
    """Copy the language model with a row for every new id; return it, the rows, and where codes begin."""
    plain = copy.deepcopy(model.language_model)
    size = embedding(model).weight.shape[0]
    rows: dict[str, Tensor] = {}
    offsets: dict[str, int] = {}
    for modality, connector in model.connectors.items():
        new = isinstance(connector, VqCodes)
        offsets[modality] = size + sum(map(len, rows.values())) if new else 0
        if isinstance(connector, VqCodes):
            rows[modality] = connector.vocabulary_rows()
    settings = copy.deepcopy(savable(model.generation_config))
    if rows:
        added = torch.cat(list(rows.values()))
        plain.resize_token_embeddings(size + len(added), mean_resizing=False)
        table = embedding(plain)
        table.weight[size:] = (added / _factor(model)).to(table.weight)
        head = plain.get_output_embeddings()
        if isinstance(head, nn.Linear) and head.weight is not table.weight:
            head.weight[size:] = 0  # they are untrained
            if head.bias is not None:
                head.bias[size:] = 0
        suppressed = list(settings.suppress_tokens or [])
        settings.suppress_tokens = suppressed + list(range(size, size + len(added)))
    plain.generation_config = settings
    return plain, rows, offsets


def _factor(model: ModalignForConditionalGeneration) -> Tensor:
    """Return the factor of the embedding's rows (Gemma's)."""
    module = embedding(model)
    some = torch.arange(min(8, module.weight.shape[0]), device=module.weight.device)
    return (module(some).norm() / module.weight[some].norm()).detach()


def _fill(tokenizer: Any, size: int) -> None:
    spare = [f"<unused:{number}>" for number in range(len(tokenizer), size)]
    if spare:
        tokenizer.add_tokens([AddedToken(name, normalized=False) for name in spare])
