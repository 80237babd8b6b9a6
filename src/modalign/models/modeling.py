"""A composed multimodal model: encoder -> connector -> language model, as one transformers class.

Placeholders in ``input_ids`` represent media, in reading order. A prefix connector's embeddings
replace as many placeholders as it has tokens; an in-layer connector's medium is one placeholder (its
mark), which keeps the language model's own embedding. Works from token ids with explicit masks and
positions. This file imports only torch, transformers and its siblings: it is copied into exports.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

from modalign.connectors.base import InLayerConnector
from modalign.encoders.base import SignalEncoder
from modalign.models.bridges import (
    Bridges,
    Features,
    PlaceholderError,
    Sizes,
    check_given,
    placed,
)
from modalign.models.caches import CACHE
from modalign.models.configuration import ModalignConfig
from modalign.models.parts import decoder_layers, embedding, hidden_size


@dataclass
class ModalignOutput(CausalLMOutputWithPast):
    """Output of the language model, with what in-layer connectors keep for the next step."""

    media_memory: dict[str, tuple[Tensor, Tensor]] | None = None


class ModalignForConditionalGeneration(Bridges, PreTrainedModel, GenerationMixin):
    """Any causal language model joined to encoders by connectors."""

    config_class = ModalignConfig
    config: ModalignConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement: ClassVar[list[str]] = [CACHE]

    def __init__(
        self,
        config: ModalignConfig,
        language_model: PreTrainedModel | None = None,
        encoders: dict[str, SignalEncoder] | None = None,
    ) -> None:
        """Build from configuration, or around loaded parts."""
        super().__init__(config)
        self.language_model = language_model or AutoModelForCausalLM.from_config(config.text_config)
        layers = decoder_layers(self.language_model)
        sizes = Sizes(
            hidden_size=hidden_size(self.language_model),
            num_layers=len(layers),
            num_heads=getattr(self.config.text_config, "num_attention_heads", 1),
        )
        self.build_bridges(config.bridges or {}, sizes, encoders)
        for connector in self.connectors.values():
            if isinstance(connector, InLayerConnector):
                connector.attach(layers)
            connector.attach_embeddings(embedding(self.language_model))  # type: ignore[operator]
        keys = getattr(self.language_model, "_tied_weights_keys", None)
        if isinstance(keys, dict):
            self._tied_weights_keys = {
                f"language_model.{key}": f"language_model.{value}" for key, value in keys.items()
            }
        self.post_init()

    def init_weights(self) -> None:
        """Only tie weights: every part is initialised or loaded already."""
        self.tie_weights(recompute_mapping=False)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise nothing here; towers and language models handle their own buffers."""

    def get_input_embeddings(self) -> nn.Module:
        """The language model's input embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's input embedding."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The language model's output projection."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's output projection."""
        self.language_model.set_output_embeddings(value)

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> Tensor:
        """Connector output of images: (n, M, D) (the memory for in-layer connectors)."""
        features = self.encode("image", pixel_values)
        return self.connect("image", features)[0]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        pixel_values: Tensor | None = None,
        features: dict[str, Features] | None = None,
        media_memory: dict[str, tuple[Tensor, Tensor]] | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> ModalignOutput:
        """Run the model.

        Args:
            input_ids: (B, T) with placeholders for media.
            attention_mask: (B, T), or (B, 1, T, T) for packed rows.
            position_ids: (B, T); restarting at 0 for every sample of a packed row.
            inputs_embeds: (B, T, D) instead of input_ids (text only).
            labels: (B, T), -100 where unsupervised; returns ``loss``.
            pixel_values: (n, 3, H, W) images of the whole batch in reading order.
            features: precomputed encoder features per modality, instead of raw signals.
            media_memory: the media that in-layer connectors read at earlier steps of a generation.
            logits_to_keep: as in transformers.
            **kwargs: for each modality except images ``NAME_values``, the signals of the whole batch in reading
                order, (n, ...) from the modality's ``prepare``, and ``NAME_mask``, (n, T) bool, True where
                there is signal (None: everywhere). The rest, including its cache, is passed to the language
                model.
                earlier positions among it.

        Raises:
            PlaceholderError: the placeholders and the media do not match in number.
        """
        signals = {name: kwargs.pop(name, None) for name in self.signal_names if name in kwargs}
        features = self.encoded(features, pixel_values=pixel_values, **signals)
        memory = dict(media_memory or {})
        with ExitStack() as stack:
            if inputs_embeds is None:
                assert input_ids is not None
                inputs_embeds = self.get_input_embeddings()(input_ids)
                for modality in self.connectors:
                    given = features.get(modality)
                    inputs_embeds = self._enter(
                        stack, modality, given, memory, input_ids, inputs_embeds, position_ids
                    )
            output = self.language_model(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                logits_to_keep=logits_to_keep,
                **kwargs,
            )
        loss = None
        if labels is not None:
            shifted = labels[:, 1:].flatten()
            loss = nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), shifted)
        return ModalignOutput(
            loss=loss,
            logits=output.logits,
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
            media_memory=memory or None,
            **{CACHE: output.get(CACHE)},
        )

    def _enter(
        self,
        stack: ExitStack,
        modality: str,
        given: Features | None,
        memory: dict[str, tuple[Tensor, Tensor]],
        input_ids: Tensor,
        embeds: Tensor,
        position_ids: Tensor | None,
    ) -> Tensor:
        """Add one modality: new embeddings, or hooks that read its memory during this call."""
        places = input_ids == self.config.bridges[modality]["token_id"]  # type: ignore[index]
        connector = self.connector(modality)
        if given is None:
            check_given(modality, places)
            if self.training and torch.is_grad_enabled():
                return self._touch(stack, modality, input_ids, embeds)
            if isinstance(connector, InLayerConnector) and modality in memory:
                past, past_mask = memory[modality]
                visible = past_mask[:, None].expand(-1, input_ids.shape[1], -1)
                stack.enter_context(connector.reading(past, past_mask, visible))
            return embeds
        tokens, mask = self.connect(modality, given)
        if isinstance(connector, InLayerConnector):
            rows = _MediaRows.build(places, tokens, mask, position_ids, modality)
            stack.enter_context(connector.reading(rows.memory, rows.mask, rows.visible))
            memory[modality] = (rows.memory, rows.last)
            return embeds
        return placed(modality, embeds, places, tokens, mask)

    def _touch(self, stack: ExitStack, modality: str, input_ids: Tensor, embeds: Tensor) -> Tensor:
        """Run the connector on one zero feature that no position reads: all gradients are zero.

        Without it, a text-only batch would leave the connector out of the graph, and processes that
        train together would wait for each other's gradients.
        """
        encoder, connector = self.encoders[modality], self.connector(modality)
        N, d = int(encoder.num_features), int(encoder.feature_size)  # type: ignore[arg-type]
        zero = Features(embeds.new_zeros(1, N, d), input_ids.new_ones(1, N).bool(), encoder.grid)  # type: ignore[arg-type]
        tokens, mask = self.connect(modality, zero)
        if isinstance(connector, InLayerConnector):
            B, T = input_ids.shape
            mask = mask.expand(B, -1)
            unseen = mask.new_zeros(B, T, mask.shape[1])
            stack.enter_context(connector.reading(tokens.expand(B, -1, -1), mask, unseen))
        return embeds + 0 * tokens.sum().to(embeds.dtype)

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repeat every row with its own media, any number per row."""
        media = {name: model_kwargs.pop(name, None) for name in ("features", *self.signal_names)}
        if expand_size > 1 and input_ids is not None:
            features = self.encoded(**media)
            media = {"features": {}}
            for modality, given in features.items():
                order = self._repeated(modality, input_ids, given, expand_size)
                media["features"][modality] = Features(
                    given.values[order], given.mask[order], given.grid
                )
        input_ids, expanded = super()._expand_inputs_for_generation(
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **model_kwargs,
        )
        return input_ids, expanded | {k: v for k, v in media.items() if v is not None}

    def _repeated(self, modality: str, input_ids: Tensor, given: Features, times: int) -> Tensor:
        """Return the indices of the media in reading order after repeating every row."""
        places = input_ids == self.config.bridges[modality]["token_id"]  # type: ignore[index]
        connector = self.connector(modality)
        counts = given.mask.sum(dim=1).tolist()
        takes = [max(connector.num_tokens(n), 1) for n in counts]  # placeholders of each medium
        rows, media = [], list(range(len(takes)))
        for left in places.sum(dim=1).tolist():
            row = []
            while left > 0 and media:
                row.append(media.pop(0))
                left -= takes[row[-1]]
            rows += row * times
        return torch.tensor(rows, dtype=torch.long, device=input_ids.device)

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """Refuse unknown arguments of ``generate``, except the media's, which no signature lists."""
        own = set(self.signal_names)
        super()._validate_model_kwargs({k: v for k, v in model_kwargs.items() if k not in own})

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Drop the media after the first step: they are in the cache, or in the media memory."""
        first = kwargs.get("is_first_iteration", False)
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        if not first and kwargs.get("use_cache", True):
            inputs |= dict.fromkeys(("features", *self.signal_names))
        else:
            inputs["media_memory"] = None
        return inputs

    def _update_model_kwargs_for_generation(
        self, outputs: ModelOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        updated = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, **kwargs
        )
        updated["media_memory"] = outputs.get("media_memory")
        return updated


@dataclass
class _MediaRows:
    """Media of a batch concatenated per row, and which of them each position may read."""

    memory: Tensor  # (B, K, w)
    mask: Tensor  # (B, K)
    visible: Tensor  # (B, T, K)
    last: Tensor  # (B, K) the medium that positions after this call may read

    @classmethod
    def build(
        cls,
        places: Tensor,
        tokens: Tensor,
        mask: Tensor,
        position_ids: Tensor | None,
        modality: str,
    ) -> _MediaRows:
        counts = places.sum(dim=1)
        if int(counts.sum()) != len(tokens):
            raise PlaceholderError(
                f"{int(counts.sum())} {modality} placeholders for {len(tokens)} {modality}s"
            )
        B, T = places.shape
        most = max(int(counts.max()), 1)
        _, M, w = tokens.shape
        slot = torch.arange(most, device=tokens.device)[None] < counts[:, None]  # (B, most)
        memory = tokens.new_zeros(B, most, M, w)
        memory[slot] = tokens
        memory_mask = torch.zeros(B, most, M, dtype=torch.bool, device=tokens.device)
        memory_mask[slot] = mask
        seen = places.cumsum(dim=1)  # media up to and including each position
        if (
            position_ids is not None
        ):  # positions do not see media before the start of their packed sample
            starts = (position_ids == 0).expand(B, T)
            before = torch.where(starts, seen - places.long(), 0).cummax(dim=1).values
        else:
            before = torch.zeros_like(seen)
        current = torch.where(seen > before, seen - 1, -1)  # (B, T) index of the medium read
        visible = current[..., None] == torch.arange(most, device=tokens.device)  # (B, T, most)
        return cls(
            memory.flatten(1, 2),
            memory_mask.flatten(1, 2),
            visible.repeat_interleave(M, dim=2) & memory_mask.flatten(1, 2)[:, None],
            visible[:, -1].repeat_interleave(M, dim=1) & memory_mask.flatten(1, 2),
        )
