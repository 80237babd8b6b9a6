"""From logits to the next token: the model's own processors, then the greedy choice or a draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
)

from modalign.chat_templates import end_ids
from modalign.serving.requests import Alternative, Sampling
from modalign.serving.text import Spelling


@dataclass
class Settled:
    """What a model's generation configuration asks of every answer.

    Attributes:
        suppressed: ids that are never said.
        ends: ids that end an answer.
        generation: the configuration.
    """

    suppressed: Tensor | None
    ends: frozenset[int]
    generation: GenerationConfig

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> Settled:
        """Read a model's configuration, and where its tokenizer ends an answer."""
        generation = model.generation_config
        never = generation.suppress_tokens
        return cls(
            torch.tensor(never, device=model.device) if never else None,
            frozenset(end_ids(tokenizer, generation)),
            generation,
        )

    def processors(self, prompt_length: int, device: torch.device) -> LogitsProcessorList:
        """Processors that look at a row's own ids, as ``generate`` would apply them.

        None where the length is negative.
        """
        if prompt_length < 0:
            return LogitsProcessorList()
        asked = self.generation
        found: list[LogitsProcessor] = []
        if asked.repetition_penalty not in (None, 1.0):
            found.append(RepetitionPenaltyLogitsProcessor(asked.repetition_penalty))
        if asked.no_repeat_ngram_size:
            found.append(NoRepeatNGramLogitsProcessor(asked.no_repeat_ngram_size))
        if asked.bad_words_ids:
            found.append(NoBadWordsLogitsProcessor(asked.bad_words_ids, list(self.ends) or None))
        if asked.min_new_tokens and self.ends:
            least, ends = asked.min_new_tokens, list(self.ends)
            found.append(
                MinNewTokensLengthLogitsProcessor(prompt_length, least, ends, device=str(device))
            )
        if asked.begin_suppress_tokens:
            found.append(
                SuppressTokensAtBeginLogitsProcessor(
                    asked.begin_suppress_tokens, prompt_length, device=str(device)
                )
            )
        return LogitsProcessorList(found)


def generator_of(sampling: Sampling, device: torch.device) -> torch.Generator | None:
    """A request's own generator: its draws do not depend on who else is in the batch."""
    if sampling.temperature <= 0:
        return None
    generator = torch.Generator(device)
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed % 2**63)
    return generator


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """A token from the nucleus of softmax(logits / temperature), (V,) float32.

    The nucleus is the smallest set of the most likely tokens whose probability reaches ``top_p``
    (Holtzman et al., arXiv 1904.09751).
    """
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        before = ordered.cumsum(-1) - ordered
        ordered = ordered.masked_fill(before >= max(sampling.top_p, 1e-9), 0.0)
        return int(order[torch.multinomial(ordered, 1, generator=generator)])
    return int(torch.multinomial(probabilities, 1, generator=generator))


def alternatives(
    spelling: Spelling, logprobs: Tensor, count: int, first: bool
) -> tuple[Alternative, ...]:
    """The most likely tokens at a place.

    Args:
        spelling: of the tokenizer.
        logprobs: (V,) of all tokens.
        count: how many.
        first: whether no text stands before the place.
    """
    if not count:
        return ()
    values, ids = logprobs.topk(min(count, logprobs.shape[-1]))
    return tuple(
        Alternative(*spelling.named(token, first), value)
        for token, value in zip(ids.tolist(), values.tolist(), strict=True)
    )
