"""A record as one vector: pooled hidden states of a language model, for search and comparison.

The states are those after the final norm. ``last`` takes the last position of the prompt, where an answer
would begin; ``mean`` all of its positions; ``word`` the last one after an instruction to say it in one
word (PromptEOL, arXiv 2307.16645). A prompt kept with the model (:mod:`.prompts`) shows a record in its own way
and may fuse the ``last`` state with what the encoders saw. Batches hold at most so many positions, whatever
the number of records; media are decoded batch by batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import LlavaForConditionalGeneration, PreTrainedModel, ProcessorMixin

from modalign.data.records import Message, Record
from modalign.errors import DataError, UsageError
from modalign.lengths import check_length, declared_length
from modalign.models.asking import conversation_of, media_inputs, prompt_sample, text_ids
from modalign.models.export.from_llava import composed_from_llava
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.probe import placed
from modalign.models.prompts import Fusion, Prompt, seen_media
from modalign.models.tool_text import ToolReader

Pooling = Literal["last", "mean", "word"]
ONE_WORD = "\nSay this in one word."
TOKENS = 4096  # positions of a batch
MOST_MEDIA = 64  # records with media prepared at once

Inputs = tuple[dict[str, Any], Tensor]  # of the model, and (B, T) each position's record or -1


@torch.inference_mode()
def pooled(
    model: Any,
    reader: Any,
    records: Sequence[Record],
    pooling: Pooling | Prompt = "last",
    *,
    tokens: int = TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Return one vector per record, (n, D) float32 on the CPU; answers at the end are left out.

    Args:
        model, reader: as :func:`modalign.models.open.open_model` gives them.
        records: their media are decoded when their batch comes.
        pooling: see this module; or a prompt.
        tokens: most positions of a batch; a longer record forms a batch of its own.
        progress: called with the records done and their number.

    Raises:
        DataError: a record is empty, does not fit the model, or has a vector that is not finite.
        UsageError: the prompt was made for another model.
    """
    prompt = pooling if isinstance(pooling, Prompt) else Prompt()
    way = "last" if isinstance(pooling, Prompt) else pooling
    asked = [prompt.shown(_asked(record, way)) for record in records]
    if prompt.fusion and isinstance(model, LlavaForConditionalGeneration):
        model, reader = composed_from_llava(model, reader)
    fusion = _fitting(prompt.fusion, model)
    trunk, found = _trunk(model), torch.empty(0)
    done = 0
    for chosen, (inputs, segments) in _batches(model, reader, asked, tokens):
        keep = {} if "logits_to_keep" in inputs else {"logits_to_keep": 1}
        if fusion:
            signals = {name: inputs.pop(name, None) for name in model.signal_names}
            inputs["features"] = model.encoded(inputs.get("features"), **signals)
        with states_of(trunk) as states:
            model(**inputs, **keep, use_cache=False)
        vectors = pool(states[0], segments, len(chosen), way).float()
        if fusion:
            media = ((number, list(asked[at].media())) for number, at in enumerate(chosen))
            vectors = fusion(vectors, seen_media(inputs["features"], media))
        vectors = vectors.cpu()
        if not done:
            found = vectors.new_zeros(len(records), vectors.shape[1])
        found[chosen] = vectors
        done += len(chosen)
        if progress:
            progress(done, len(records))
    for record, usable in zip(records, found.isfinite().all(1).tolist(), strict=True):
        if not usable:
            raise DataError(f"{record.source}: its vector is not finite; try --dtype float32")
    return found


@torch.inference_mode()
def seen(model: Any, reader: Any, records: Sequence[Record], *, tokens: int = TOKENS) -> Tensor:
    """Return the mean of what the encoder gives for each record's media, (n, d): without the language model.

    Raises:
        UsageError: the model has not one encoder.
    """
    if isinstance(model, LlavaForConditionalGeneration):
        model, reader = composed_from_llava(model, reader)
    if len(getattr(model, "encoders", {})) != 1:
        raise UsageError("the features of one encoder are read, but this model has none or several")
    found = torch.empty(0)
    for chosen, (inputs, _) in _batches(model, reader, records, tokens):
        features = model.encoded(
            inputs.get("features"), **{n: inputs.get(n) for n in model.signal_names}
        )
        media = ((number, list(records[at].media())) for number, at in enumerate(chosen))
        for means, owners in seen_media(features, media).values():
            if not len(found):
                found = torch.zeros(len(records), means.shape[1])
            rows = torch.zeros(len(chosen), means.shape[1]).index_add(
                0, owners.cpu(), means.float().cpu()
            )
            found[chosen] = (
                rows / torch.bincount(owners.cpu(), minlength=len(chosen)).clamp(min=1)[:, None]
            )
    return found


def frozen(model: Any, reader: Any, records: Sequence[Record]) -> Tensor:
    """Return (n, d + D): a record's mean encoder features beside its texts' mean states, each of length 1.

    Raises:
        DataError: a record has no text.
        UsageError: the model has not one encoder.
    """
    texts = [
        replace(
            record,
            messages=tuple(
                replace(m, parts=tuple(part for part in m.parts if isinstance(part, str)))
                for m in record.messages
            ),
        )
        for record in records
    ]
    parts = seen(model, reader, records), pooled(model, reader, texts, "mean")
    return torch.cat([normalize(part, dim=1) for part in parts], dim=1)


def pool(states: Tensor, segments: Tensor, n: int, pooling: str) -> Tensor:
    """(B, T, D) -> (n, D): each record's last token, or the mean of its tokens.

    Args:
        states: (B, T, D).
        segments: (B, T) number of each position's record; -1 for padding.
        n: of records.
        pooling: ``mean``, else the last.
    """
    flat, numbers = states.flatten(0, 1), segments.flatten()
    tokens = (numbers >= 0).nonzero().squeeze(1)
    owner = numbers[tokens]
    if pooling == "mean":
        total = flat.new_zeros(n, flat.shape[1]).index_add(0, owner, flat[tokens])
        return total / torch.bincount(owner, minlength=n).clamp(min=1).unsqueeze(1)
    last = tokens.new_zeros(n).scatter_reduce(0, owner, tokens, "amax")
    return flat[last]


@contextmanager
def states_of(module: nn.Module, entering: bool = False) -> Iterator[list[Tensor]]:
    """Keep the first output or the input of a module during its calls."""
    found: list[Tensor] = []

    def keep(_: nn.Module, given: Any, output: Any = None) -> None:
        value = given if entering else output
        found.append(value if isinstance(value, Tensor) else value[0])

    hook: Any = module.register_forward_pre_hook if entering else module.register_forward_hook
    handle = hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def _fitting(fusion: Fusion | None, model: Any) -> Fusion | None:
    """The head on the model's device, if it reads this model's encoders."""
    if fusion is None:
        return None
    own = {name: each.feature_size for name, each in getattr(model, "encoders", {}).items()}
    reads = {name: each.in_features for name, each in fusion.enter.items()}
    if own != reads:
        raise UsageError(
            f"the prompt's fusion reads {reads}, but this model's encoders give {own or 'nothing'}: it belongs to "
            "another model; train one for this model, or name the pooling"
        )
    return fusion.to(model.device)


def _trunk(model: Any) -> nn.Module:
    """The language model without its head."""
    own = isinstance(model, ModalignForConditionalGeneration)
    language = cast("PreTrainedModel", model.language_model if own else model)
    inner = language.get_decoder()
    return cast("nn.Module", language.base_model if inner is language else inner)


def _asked(record: Record, pooling: Pooling) -> Record:
    """The record up to its answer, with the instruction where the pooling needs one."""
    before = record.messages
    if before and before[-1].role == "assistant":
        before = before[:-1]
    if not any(
        part for m in before for part in m.parts if not isinstance(part, str) or part.strip()
    ):
        raise DataError(f"{record.source}: has neither text nor a medium, so it has no vector")
    if pooling == "word":
        last = before[-1]
        before = (*before[:-1], replace(last, parts=(*last.parts, ONE_WORD)))
    return replace(record, messages=(*before, Message("assistant", ("?",))))


def _batches(
    model: Any, reader: Any, records: Sequence[Record], tokens: int
) -> Iterator[tuple[list[int], Inputs]]:
    if isinstance(reader, ToolReader):
        return _of_tools(model, reader, records, tokens)
    if isinstance(reader, ProcessorMixin):
        return _of_media(model, reader, records, tokens)
    return _of_texts(model, reader, records, tokens)


def _groups(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Numbers of records in batches of similar length, of at most so many positions with padding."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[place] * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _of_texts(
    model: Any, tokenizer: Any, records: Sequence[Record], tokens: int
) -> Iterator[tuple[list[int], Inputs]]:
    """Padded on the right, where causal attention does not see it."""
    rows, limit = [], declared_length(model.config)
    for record in records:
        try:
            ids = text_ids(tokenizer, conversation_of(record, tokenizer))
        except DataError as error:
            raise DataError(f"{record.source}: {error}") from error
        check_length(len(ids), limit, str(record.source), answer=0)
        rows.append(torch.tensor(ids))
    for chosen in _groups([len(row) for row in rows], tokens):
        own = [rows[place] for place in chosen]
        mask = pad_sequence([torch.ones_like(row) for row in own], batch_first=True)
        inputs = {"input_ids": pad_sequence(own, batch_first=True), "attention_mask": mask}
        yield chosen, _inputs(model, inputs)


def _of_media(
    model: Any, processor: Any, records: Sequence[Record], tokens: int
) -> Iterator[tuple[list[int], Inputs]]:
    """Records of equal length together, since processors pad on the left, which some models' positions mind."""
    limit, start, count = declared_length(model.config), 0, 1
    while start < len(records):
        window = list(range(start, min(start + count, len(records))))
        start += len(window)
        inputs = _prepared(processor, [records[place] for place in window])
        lengths = inputs["attention_mask"].sum(1).tolist()
        for place, length in zip(window, lengths, strict=True):
            check_length(length, limit, str(records[place].source), answer=0)
        count = max(1, min(tokens // max(lengths), MOST_MEDIA))
        if len(set(lengths)) == 1 and len(window) * lengths[0] <= max(tokens, lengths[0]):
            yield window, _inputs(model, inputs)
            continue
        for length in sorted(set(lengths)):
            same = [place for place, own in zip(window, lengths, strict=True) if own == length]
            most = max(1, tokens // length)
            for first in range(0, len(same), most):
                chosen = same[first : first + most]
                again = _prepared(processor, [records[place] for place in chosen])
                yield chosen, _inputs(model, again)


def _prepared(processor: Any, records: Sequence[Record]) -> dict[str, Tensor]:
    conversations = [conversation_of(record, processor) for record in records]
    return media_inputs(processor, conversations, [str(record.source) for record in records])


def _of_tools(
    model: Any, reader: ToolReader, records: Sequence[Record], tokens: int
) -> Iterator[tuple[list[int], Inputs]]:
    samples = [prompt_sample(record, reader.tokenizer) for record in records]
    for chosen in _groups([reader.collator.length(sample) for sample in samples], tokens):
        batch = reader.collator([samples[place] for place in chosen]).to(model.device)
        inputs = {k: v for k, v in batch.model_inputs().items() if v is not None}
        del inputs["logits_to_keep"]
        yield chosen, (inputs, batch.segments)


def _inputs(model: Any, inputs: dict[str, Tensor]) -> Inputs:
    moved = placed(inputs, model)
    rows = torch.arange(len(moved["input_ids"]), device=model.device)[:, None]
    return moved, torch.where(moved["attention_mask"].bool(), rows, -1)
