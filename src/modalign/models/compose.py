"""Join a language model with encoders, each by its connector, into one model with its processor.

Any Hugging Face causal language model by hub name or folder; encoders as
``modalign.models.encoders`` loads them.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from modalign.chat_templates import end_ids, one_template
from modalign.connectors.base import Connector, ConnectorError, Variant, Widths
from modalign.connectors.frames import fitted
from modalign.connectors.registry import connector_class
from modalign.data.records import mark
from modalign.encoders.base import SignalEncoder
from modalign.errors import UsageError
from modalign.models.configuration import ModalignConfig
from modalign.models.encoders.image import plain_processor
from modalign.models.encoders.loading import Encoder
from modalign.models.licences import origin
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.parts import decoder_layers, hidden_size
from modalign.models.pretrained import check_vocabulary, read_pretrained
from modalign.models.processing import ModalignProcessor
from modalign.models.quiet import quietly
from modalign.models.templates import (
    adds_tokens,
    let_template_add_tokens,
    multimodal_template,
)

IMAGE_TOKEN = mark("image")

# For tokenizers without a chat template (base models); saved with the model. The space before an answer
# belongs to the answer, so that no prompt ends in a token not seen there in training.
DEFAULT_CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{ ' ASSISTANT:' }}{% generation %}{{ ' ' + message['content'] }}{{ eos_token }}{% endgeneration %}
{%- elif message['role'] == 'user' -%}
{{ 'USER: ' }}{{ message['content'] }}
{%- else -%}
{{ message['content'] + ' ' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ ' ASSISTANT:' }}{%- endif -%}"""


@dataclass
class LanguageModel:
    """A causal language model with its tokenizer, origin, and the dtype its weights were stored in."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stored: torch.dtype = torch.float32


@quietly()
def load_language_model(
    name: str,
    dtype: torch.dtype = torch.float32,
    *,
    modalities: Sequence[str] = ("image",),
    allow_pickle: bool = False,
) -> LanguageModel:
    """Load a causal language model and its tokenizer by hub name or folder.

    Args:
        name: hub name or folder.
        dtype: of the weights in memory.
        modalities: modalities that get a placeholder token.
        allow_pickle: also read weights that are a pickle, with ``weights_only=True``.

    Raises:
        UsageError: it cannot be loaded; the message says why.
    """
    kind, what = AutoModelForCausalLM, "language model"
    model = read_pretrained(kind, name, what, dtype="auto", allow_pickle=allow_pickle)
    tokenizer = read_pretrained(AutoTokenizer, name, what)
    tokenizer.chat_template = one_template(tokenizer.chat_template)
    check_vocabulary(name, model, tokenizer)
    prepare_tokenizer(tokenizer, modalities)
    stored = model.dtype
    return LanguageModel(name, model.to(dtype), tokenizer, stored)


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase, modalities: Sequence[str] = ("image",)
) -> None:
    """Ensure placeholder tokens, a padding token and a chat template that adds all special tokens."""
    missing = [mark(m) for m in modalities if mark(m) not in tokenizer.get_vocab()]
    if missing:
        tokenizer.add_special_tokens(
            {"extra_special_tokens": missing}, replace_extra_special_tokens=False
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = one_template(tokenizer.chat_template)
    if tokenizer.chat_template is None:
        begins = tokenizer.bos_token is not None and adds_tokens(tokenizer)
        tokenizer.chat_template = "{{ bos_token }}" * begins + DEFAULT_CHAT_TEMPLATE
    let_template_add_tokens(tokenizer)
    tokenizer.image_token = IMAGE_TOKEN


def widths_of(llm: LanguageModel, encoder: Encoder) -> Widths:
    """Return the sizes that a connector between the two needs."""
    module = encoder.module
    return Widths(
        feature_size=module.feature_size,
        hidden_size=hidden_size(llm.model),
        num_features=module.num_features,
        grid=module.grid,
        num_layers=len(decoder_layers(llm.model)),
        num_heads=getattr(llm.model.config, "num_attention_heads", 1),
    )


def compose(
    llm: LanguageModel,
    encoders: Encoder | Sequence[Encoder],
    connector: str | Mapping[str, str],
    variant: Variant = "matched",
    options: dict[str, Any] | None = None,
) -> tuple[ModalignForConditionalGeneration, ModalignProcessor]:
    """Build the joined model. Connectors are new (torch's global seed); the parts keep their weights.

    Args:
        llm: consumed: its module becomes part of the composed model.
        encoders: likewise; one per modality, or none for a model that reads text only.
        connector: a registered name, for all modalities or by modality.
        variant: the size to take options from.
        options: options that replace the variant's, for every connector that has them.

    Returns:
        The model and its processor.

    Raises:
        UsageError: a connector cannot be built between these parts, or with these options.
    """
    given = [encoders] if isinstance(encoders, Encoder) else list(encoders)
    tokenizer = llm.tokenizer
    if len(tokenizer) > llm.model.get_input_embeddings().weight.shape[0]:
        grow_vocabulary(llm.model, len(tokenizer))
    bridges = {}
    for encoder in given:
        name = connector if isinstance(connector, str) else connector[encoder.modality]
        module = encoder.module
        cls, widths = fitted(
            connector_class(name),
            widths_of(llm, encoder),
            module.frames,
            module.frame_grid,
            module.each_frame,
        )
        chosen = cls.options_for(variant, widths)
        bridges[encoder.modality] = {
            "encoder": encoder.spec,
            "connector": {"name": name, "options": {**chosen, **(options or {})}},
            "token": mark(encoder.modality),
            "token_id": tokenizer.convert_tokens_to_ids(mark(encoder.modality)),
        }
    config = ModalignConfig(
        text_config=copy.deepcopy(llm.model.config),
        bridges=bridges,
        origins=_origins(llm, given),
    )
    modules = {encoder.modality: encoder.module for encoder in given}
    try:
        model = ModalignForConditionalGeneration(config, llm.model, modules)
    except (
        ConnectorError
    ) as error:  # connectors are exported without modalign, and so is their error
        raise UsageError(str(error)) from error
    for part in model.connectors.values():
        part.attach_tokenizer(tokenizer)  # type: ignore[operator]
    _set_generation(model, llm, [bridge["token_id"] for bridge in bridges.values()])
    return model, _processor(model, tokenizer, given)


def _origins(llm: LanguageModel, encoders: Sequence[Encoder]) -> dict[str, dict[str, str]]:
    found = {"language model": origin(llm.name)}
    found |= {f"{encoder.modality} encoder": origin(encoder.name) for encoder in encoders}
    return {part: known for part, known in found.items() if known}


def _set_generation(
    model: ModalignForConditionalGeneration, llm: LanguageModel, placeholders: list[int]
) -> None:
    """Set the language model's generation settings, with placeholders suppressed."""
    settings = model.generation_config = copy.deepcopy(llm.model.generation_config)
    settings.pad_token_id = llm.tokenizer.pad_token_id
    if placeholders:
        settings.suppress_tokens = placeholders  # they represent media, never words
    ends = end_ids(llm.tokenizer, settings)
    if ends:
        settings.eos_token_id = ends if len(ends) > 1 else ends[0]


def _processor(
    model: ModalignForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    encoders: Sequence[Encoder],
) -> ModalignProcessor:
    """Build the processor of a composed model: placeholders, and how media become tensors."""
    images = next((encoder for encoder in encoders if encoder.modality == "image"), None)
    tokens = {e.modality: token_table(model.connector(e.modality), e.module) for e in encoders}
    marks = {encoder.modality: mark(encoder.modality) for encoder in encoders}
    template = tokenizer.chat_template  # a saved language model may have none
    return ModalignProcessor(
        # A processor without an image processor cannot be reloaded; this one is never used.
        image_processor=images.processor if images else plain_processor(1),
        tokenizer=tokenizer,
        num_image_tokens=tokens["image"][-1] if images else 0,
        image_token=IMAGE_TOKEN,
        chat_template=None if template is None else multimodal_template(template, marks),
        signals={
            encoder.modality: {
                "spec": encoder.spec,
                "token": mark(encoder.modality),
                "tokens": tokens[encoder.modality],
            }
            for encoder in encoders
            if encoder.modality != "image"
        },
    )


def token_table(connector: Connector, encoder: SignalEncoder) -> list[int]:
    """Return the positions of a medium with 0, 1, ... N features: the connector's tokens, or one mark.

    Zero if undefined, because a grid of features has only one size.
    """
    N = encoder.num_features
    table = [0] * (N + 1)
    for count in [N] if encoder.grid is not None else range(1, N + 1):
        try:
            table[count] = max(connector.num_tokens(count), 1)
        except ConnectorError:
            if count == N:
                raise
    return table


def grow_vocabulary(model: PreTrainedModel, size: int) -> None:
    """Add rows for new tokens: the mean of the known rows, so that nothing is random."""
    logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)
    old = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            for rows in layer.parameters() if isinstance(layer, nn.Module) else ():
                if rows.shape[0] == size:
                    rows[old:] = rows[:old].mean(dim=0)
