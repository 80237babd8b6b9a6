"""One record inside a model: embeddings, hidden states, attention, logits.

Works on modalign's own models and on transformers' image-text models that mark images in the token ids
by placeholders, as Llava does. Records are read one at a time, so no figure includes padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ProcessorMixin

from modalign.connectors.base import InLayerConnector
from modalign.data.records import Media, Record
from modalign.errors import DataError, UsageError
from modalign.evaluation.diagnosis.finding import (
    ask_for_attention,
    decoder,
    encoder_of,
    enters,
    kept_features,
    placeholder,
)
from modalign.evaluation.passes import with_other_media
from modalign.lengths import check_length, declared_length
from modalign.models.asking import answer_ids, conversation_of, media_inputs, modalities_of, said
from modalign.models.probe import placed
from modalign.models.tool_text import ToolReader

MOST_ATTENTION = 2_000_000_000  # layers x heads x T x T beyond which attention weights are not kept


@dataclass(frozen=True)
class RecordInputs:
    """A record as a model's inputs, its last answer included.

    Attributes:
        inputs: arguments of the model's forward, batch of one.
        answer: (A,) the last answer's token ids, end mark included; these come last, except for
            what the chat template puts after the end mark.
        start: position of the first of them.
    """

    inputs: dict[str, Tensor]
    answer: Tensor
    start: int

    @property
    def ids(self) -> Tensor:
        """(T,) token ids."""
        return self.inputs["input_ids"][0]


@dataclass(frozen=True)
class Seen:
    """One forward pass over one record, with T positions, L layers, V words, D the LLM's width.

    Attributes:
        logits: (A, V) float32, predictions of each answer token.
        embeds: (T, D) inputs of the language model; empty if the pass was not recorded.
        states: L + 1 of (T, D), the last after the final norm.
        attentions: L of (heads, T, T), or None.
        places: modality -> positions of its connector's tokens; none for in-layer connectors.
        words: positions of text.
        features: modality -> (N, d), encoder features of the record's media, without padding.
        outputs: modality -> (M, w), connector outputs.
    """

    logits: Tensor
    embeds: Tensor = field(default_factory=lambda: torch.empty(0))
    states: Sequence[Tensor] = ()
    attentions: Sequence[Tensor] | None = None
    places: dict[str, Tensor] = field(default_factory=dict)
    words: Tensor = field(default_factory=lambda: torch.empty(0))
    features: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


class ObservedModel:
    """A model under diagnosis, with the preprocessing of its inputs.

    Attributes:
        modalities: modalities other than text.
        enters: modality -> ``prefix`` or ``in-layer``.
        no_attention: why attention weights are unavailable, or None.

    Raises:
        UsageError: the model takes no media, reads tools' text, or keeps no placeholders.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        if isinstance(processor, ToolReader):
            raise UsageError(
                "this model reads what tools say about a medium: it has neither encoder nor connector, "
                "so there is no gap to look into; modalign eval shows blank and shuffled media"
            )
        if not isinstance(processor, ProcessorMixin):
            raise UsageError(
                "this model is a language model: it takes no media, so there is no gap to look into"
            )
        self.model, self.processor = model, processor
        self.tokenizer: Any = processor.tokenizer
        self.modalities = modalities_of(processor)
        self._placeholders = {m: placeholder(model, m) for m in self.modalities}
        self.enters = {m: enters(model, m) for m in self.modalities}
        self.decoder = decoder(model)
        self.no_attention = ask_for_attention(model)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        found: torch.device = self.model.device
        return found

    def given(self, record: Record) -> RecordInputs:
        """Return the inputs of a record with its last answer.

        Raises:
            DataError: it has no answer, or its chat template renders no token for it.
        """
        if record.messages[-1].role != "assistant":
            raise DataError(f"{record.source}: has no answer; the last message must be one")
        asked = conversation_of(record, self.processor)
        try:
            answer, after = answer_ids(self.processor, asked, record.answer, fixed=False)
        except DataError as error:
            raise DataError(f"{record.source}: {error}") from error
        whole = [*asked, said(self.tokenizer, record.answer)]
        found = media_inputs(self.processor, [whole], [str(record.source)], answered=True)
        length = found["input_ids"].shape[1]
        check_length(length, declared_length(self.model.config), str(record.source), answer=0)
        start = length - after - len(answer)
        if found["input_ids"][0, start : start + len(answer)].tolist() != answer:
            raise DataError(f"{record.source}: the processor gives other tokens than its tokenizer")
        inputs = placed(found, self.model)
        return RecordInputs(inputs, torch.tensor(answer, device=self.device), start)

    def text_ids(self, text: str) -> Tensor:
        """(t,) tokens of a plain text, without the tokenizer's special tokens."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    @torch.inference_mode()
    def embedded(self, ids: Tensor) -> Tensor:
        """Embed (t,) token ids as (t, D)."""
        found: Tensor = self.model.get_input_embeddings()(ids)
        return found

    @torch.inference_mode()
    def read_text(self, ids: Tensor) -> list[Tensor]:
        """Return the hidden states of a text without media, (t,) -> L + 1 of (t, D)."""
        output = self.model(input_ids=ids[None], use_cache=False, output_hidden_states=True)
        return [state[0] for state in output.hidden_states]

    @torch.inference_mode()
    def answer_logits(self, given: RecordInputs, inputs: dict[str, Tensor] | None = None) -> Tensor:
        """Return (A, V) float32 logits that predict each answer token."""
        output = self.model(**(inputs or given.inputs), use_cache=False, **_kept(given))
        return _answering(output.logits[0], given)

    @torch.inference_mode()
    def look(self, given: RecordInputs) -> Seen:
        """Run a record and record what the diagnostics need.

        Raises:
            UsageError: the model's embeddings cannot be located.
        """
        caught: dict[str, Any] = {}
        watching = self._watch(given)
        with ExitStack() as stack:
            for name, (module, pre, note) in watching.items():
                hook = _catch(caught, name, note)
                register = module.register_forward_pre_hook if pre else module.register_forward_hook
                stack.callback(register(hook, with_kwargs=True).remove)
            output = self.model(
                **given.inputs,
                use_cache=False,
                output_hidden_states=True,
                output_attentions=self._attends(given),
                **_kept(given),
            )
        embeds = caught.get("embeds")
        if embeds is None or embeds.shape[:2] != given.inputs["input_ids"].shape:
            raise UsageError(
                f"{type(self.model).__name__} does not put its media in place of placeholders, so what "
                "stands for them cannot be told from text; Llava and its like do"
            )
        marks = list(self._placeholders.values())
        words = (~torch.isin(given.ids, torch.tensor(marks, device=self.device))).nonzero()[:, 0]
        places = {
            m: found
            for m, mark in self._placeholders.items()
            if self.enters[m] == "prefix" and len(found := (given.ids == mark).nonzero()[:, 0])
        }
        features = {m: caught[m] for m in self.modalities if m in caught}
        outputs = {m: embeds[0][found] for m, found in places.items()}
        in_layer = [m for m in features if self.enters[m] == "in-layer"]
        outputs |= {m: self._memory(m, features[m]) for m in in_layer}
        attentions = output.get("attentions")
        return Seen(
            logits=_answering(output.logits[0], given),
            embeds=embeds[0],
            states=[state[0] for state in output.hidden_states],
            attentions=[each[0] for each in attentions] if attentions else None,
            places=places,
            words=words,
            features={m: values[mask] for m, (values, mask, _) in features.items()},
            outputs=outputs,
        )

    def _watch(self, given: RecordInputs) -> dict[str, tuple[nn.Module, bool, Callable[..., Any]]]:
        """Modules whose inputs (True) or outputs to capture, by modality, and how to extract values."""
        watching: dict[str, tuple[nn.Module, bool, Callable[..., Any]]] = {
            "embeds": (self.decoder, True, lambda args, kwargs: kwargs.get("inputs_embeds"))
        }
        for modality in self.modalities:
            encoder = encoder_of(self.model, modality)
            if encoder is not None:
                keep = kept_features(self.model, modality, given.inputs)
                watching[modality] = (encoder, False, keep)
        return watching

    def _memory(self, modality: str, features: tuple[Tensor, Tensor, Any]) -> Tensor:
        """(M, w) outputs of an in-layer connector that the layers read."""
        connector: InLayerConnector = self.model.connector(modality)
        values, mask, grid = features
        values = values.to(next(connector.parameters()).dtype)
        memory, present = connector.encode(values, mask, grid)
        return memory[present]

    def _attends(self, given: RecordInputs) -> bool:
        if self.no_attention is not None:
            return False
        config = self.model.config.get_text_config()
        size = config.num_hidden_layers * config.num_attention_heads * len(given.ids) ** 2
        return bool(size <= MOST_ATTENTION)


def _catch(caught: dict[str, Any], name: str, note: Callable[..., Any]) -> Callable[..., None]:
    def hook(module: nn.Module, *call: Any) -> None:
        caught[name] = note(*call)

    return hook


def _kept(given: RecordInputs) -> dict[str, int]:
    """Request only the logits that the answer needs."""
    return {"logits_to_keep": len(given.ids) - given.start + 1}


def _answering(logits: Tensor, given: RecordInputs) -> Tensor:
    """(kept, V) -> (A, V): each token of the answer is predicted at the position before it."""
    return logits[: len(given.answer)].float()


def text_of(record: Record) -> str:
    """Return the questions and answers of a record without media and template."""
    turns = (message.text.strip() for message in record.messages if message.role != "system")
    return " ".join(turn for turn in turns if turn)


def media_of(record: Record, modality: str) -> tuple[Media, ...]:
    """Return the record's media of one modality, in reading order."""
    return tuple(medium for medium in record.media() if medium.modality == modality)


def with_media_of(record: Record, modality: str, media: Sequence[Media]) -> Record:
    """Replace the record's media of one modality."""
    queue = iter(media)
    mixed = [next(queue) if own.modality == modality else own for own in record.media()]
    return with_other_media(record, mixed)
