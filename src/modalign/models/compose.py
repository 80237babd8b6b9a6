"""Join a language model, an encoder and a connector into one model with its processor.

Any Hugging Face causal language model by hub name or folder; any Hugging Face vision model, a
user's module (``package.module:Class``), or ``none`` (raw patches).
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipImageProcessorPil,
)

from modalign.connectors.base import Variant, Widths
from modalign.connectors.registry import connector_class
from modalign.encoders.image import EncoderError, ImageEncoder, build_image_encoder
from modalign.errors import UsageError
from modalign.models.configuration import ModalignConfig
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.parts import decoder_layers, hidden_size
from modalign.models.processing import ModalignProcessor
from modalign.models.templates import (
    adds_tokens,
    end_ids,
    let_template_add_tokens,
    multimodal_template,
)

IMAGE_TOKEN = "<image>"

# For tokenizers without a chat template (base models). It is saved with the model. The space before
# an answer belongs to the answer: no prompt ends in a token that training never saw there.
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
    """A causal language model with its tokenizer and where it came from."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@dataclass
class Encoder:
    """An encoder, the JSON-able description it can be rebuilt from, and its processor."""

    name: str
    spec: dict[str, Any]
    module: ImageEncoder
    processor: Any
    options: dict[str, Any] = field(default_factory=dict)


def load_language_model(
    name: str, dtype: torch.dtype = torch.float32, *, allow_pickle: bool = False
) -> LanguageModel:
    """Load a causal language model and its tokenizer by hub name or folder.

    Args:
        name: hub name or folder.
        dtype: of its weights.
        allow_pickle: also read weights that are a pickle, with ``weights_only=True``.

    Raises:
        UsageError: it cannot be loaded; the message says why.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, use_safetensors=_safetensors(allow_pickle)
        )
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"the language model {name!r} cannot be loaded: {_first_line(error)}{_pickle_hint(error)}"
        ) from error
    prepare_tokenizer(tokenizer)
    return LanguageModel(name, model, tokenizer)


def _safetensors(allow_pickle: bool) -> bool | None:
    """What transformers is told: safetensors only, or whatever there is (pickles as weights only)."""
    return None if allow_pickle else True


def _pickle_hint(error: BaseException) -> str:
    if "safetensors" not in str(error):
        return ""
    return (
        ". Weights that are a pickle are not read: save them as safetensors, or give --allow-pickle "
        "(they are then read with weights_only=True)"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make sure of a placeholder token, a padding token and a chat template that adds all marks."""
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens(
            {"extra_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        begins = tokenizer.bos_token is not None and adds_tokens(tokenizer)
        tokenizer.chat_template = "{{ bos_token }}" * begins + DEFAULT_CHAT_TEMPLATE
    let_template_add_tokens(tokenizer)
    tokenizer.image_token = IMAGE_TOKEN


def load_image_encoder(
    name: str | None,
    *,
    layer: int = -2,
    image_size: int = 48,
    patch_size: int = 8,
    options: dict[str, Any] | None = None,
    allow_pickle: bool = False,
) -> Encoder:
    """Load an image encoder.

    Args:
        name: hub name or folder of a vision model, ``package.module:Class``, or None/"none" for
            raw patches of ``patch_size`` pixels of an image of ``image_size``.
        layer: hidden layer read (LLaVA reads -2).
        image_size: side in pixels, for raw patches and imported modules.
        patch_size: side of a raw patch.
        options: keyword arguments of an imported module.
        allow_pickle: also read weights that are a pickle, with ``weights_only=True``.

    Raises:
        UsageError: it cannot be loaded.
    """
    try:
        if name is None or name == "none":
            spec = {
                "kind": "patches",
                "patch_size": patch_size,
                "image_size": [image_size, image_size],
            }
            return Encoder("none", spec, build_image_encoder(spec), _plain_processor(image_size))
        if ":" in name and not Path(name).exists():
            spec = {
                "kind": "module",
                "path": name,
                "arguments": options or {},
                "image_size": [image_size, image_size],
            }
            return Encoder(name, spec, build_image_encoder(spec), _plain_processor(image_size))
        return _load_tower(name, layer, allow_pickle)
    except (OSError, EncoderError, KeyError, IndexError, ValueError) as error:
        raise UsageError(
            f"the image encoder {name!r} cannot be loaded: {_first_line(error)}{_pickle_hint(error)}"
        ) from error


def _plain_processor(image_size: int) -> SiglipImageProcessorPil:
    size = {"height": image_size, "width": image_size}
    return SiglipImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def _load_tower(name: str, layer: int, allow_pickle: bool) -> Encoder:
    config = AutoConfig.from_pretrained(name)
    vision: PreTrainedConfig = getattr(config, "vision_config", None) or config
    processor = AutoImageProcessor.from_pretrained(name, backend="pil")
    pixels = processor(images=[Image.new("RGB", (512, 512))], return_tensors="pt")["pixel_values"]
    spec = {
        "kind": "tower",
        "config": _plain(vision),
        "layer": layer,
        "image_size": list(pixels.shape[-2:]),  # a tower may be made for larger ones
    }
    module = build_image_encoder(spec)
    empty: Any = module.tower
    tower, info = type(empty).from_pretrained(
        name,
        config=vision,
        output_loading_info=True,
        use_safetensors=_safetensors(allow_pickle),
    )
    if info["missing_keys"]:
        raise EncoderError(f"its weights lack {sorted(info['missing_keys'])[0]}")
    empty.load_state_dict(tower.state_dict())
    return Encoder(name, spec, module.eval(), processor)


def _plain(config: PreTrainedConfig) -> dict[str, Any]:
    """A configuration as a dictionary that JSON can hold and AutoConfig can read."""
    values = config.to_diff_dict()
    values["model_type"] = config.model_type
    for key in ("architectures", "transformers_version", "_name_or_path", "dtype"):
        values.pop(key, None)
    return values


def widths_of(llm: LanguageModel, encoder: Encoder) -> Widths:
    """The sizes a connector between these two must know."""
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
    encoder: Encoder,
    connector: str,
    variant: Variant = "matched",
    options: dict[str, Any] | None = None,
) -> tuple[ModalignForConditionalGeneration, ModalignProcessor]:
    """Build the joined model. The connector is new (torch's global seed); the parts keep their weights.

    Args:
        llm: consumed: the composed model owns its module afterwards.
        encoder: likewise.
        connector: a registered name.
        variant: the size to take options from.
        options: options that replace the variant's.

    Returns:
        The model and its processor.
    """
    cls = connector_class(connector)
    tokenizer = llm.tokenizer
    token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if len(tokenizer) > llm.model.get_input_embeddings().weight.shape[0]:
        _grow_vocabulary(llm.model, len(tokenizer))
    chosen = {**cls.options_for(variant, widths_of(llm, encoder)), **(options or {})}
    config = ModalignConfig(
        text_config=copy.deepcopy(llm.model.config),
        bridges={
            "image": {
                "encoder": encoder.spec,
                "connector": {"name": connector, "options": chosen},
                "token": IMAGE_TOKEN,
                "token_id": token_id,
            }
        },
    )
    model = ModalignForConditionalGeneration(
        config, language_model=llm.model, encoders={"image": encoder.module}
    )
    model.connector("image").attach_tokenizer(tokenizer)
    model.generation_config = copy.deepcopy(llm.model.generation_config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.suppress_tokens = [token_id]  # it stands for media, never for words
    ends = end_ids(tokenizer, model.generation_config.eos_token_id)
    if ends:
        model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    tokens = model.connector("image").num_tokens(encoder.module.num_features)
    processor = ModalignProcessor(
        image_processor=encoder.processor,
        tokenizer=tokenizer,
        num_image_tokens=max(tokens, 1),
        image_token=IMAGE_TOKEN,
        chat_template=multimodal_template(tokenizer.chat_template, IMAGE_TOKEN),
    )
    return model, processor


def _grow_vocabulary(model: PreTrainedModel, size: int) -> None:
    """Add rows for new tokens: the mean of the known rows, so that nothing is drawn at random."""
    logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)
    old = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            for rows in layer.parameters() if isinstance(layer, nn.Module) else ():
                if rows.shape[0] == size:
                    rows[old:] = rows[:old].mean(dim=0)
