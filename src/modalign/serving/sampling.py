"""From logits to the next token: the model's own processors, then the greedy choice or a draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
from modalign.serving.requests import Sampling

PLACES = 256  # whose probabilities are computed together


@dataclass
class Settled:
    """What a model's generation configuration requires of every answer.

    Attributes:
        suppressed: ids that are never generated.
        ends: ids that end an answer.
        generation: the configuration.
    """

    suppressed: Tensor | None
    ends: frozenset[int]
    generation: GenerationConfig

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> Settled:
        """Read a model's configuration, and its tokenizer's end tokens."""
        generation = model.generation_config
        never = generation.suppress_tokens
        return cls(
            torch.tensor(never, device=model.device) if never else None,
            frozenset(end_ids(tokenizer, generation)),
            generation,
        )

    def processors(self, prompt_length: int, device: torch.device) -> LogitsProcessorList:
        """Return processors of a row's ids, as ``generate`` would apply them.

        None if the length is negative.
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
    if sampling.greedy:
        return None
    generator = torch.Generator(device)
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed % 2**63)
    return generator


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw a token from the nucleus of softmax(logits / temperature), (V,) float32.

    The nucleus is the smallest set of the most likely tokens whose probability reaches ``top_p``
    (Holtzman et al., arXiv 1904.09751).
    """
    # Less the largest, which changes no probability: no quotient overflows.
    probabilities = torch.softmax((logits - logits.max()) / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        before = ordered.cumsum(-1) - ordered
        ordered = ordered.masked_fill(before >= max(sampling.top_p, 1e-9), 0.0)
        return int(order[torch.multinomial(ordered, 1, generator=generator)])
    return int(torch.multinomial(probabilities, 1, generator=generator))


class Likely(NamedTuple):
    """A token's natural-log probability, None for a prompt's first one; and the most likely tokens with theirs."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def likely(logits: Tensor, tokens: Sequence[int], count: int) -> list[Likely]:
    """How likely tokens are.

    Args:
        logits: (T, V) at the places of the tokens.
        tokens: T ids.
        count: of alternatives to each.
    """
    found: list[Likely] = []
    for begin in range(0, len(tokens), PLACES):
        known = torch.log_softmax(logits[begin : begin + PLACES].float(), dim=-1)
        here = tokens[begin : begin + PLACES]
        own = known[torch.arange(len(here)), torch.tensor(here, device=known.device)].tolist()
        values, ids = (each.tolist() for each in known.topk(min(count, known.shape[-1])))
        tops = (tuple(zip(*pair, strict=True)) for pair in zip(ids, values, strict=True))
        found += map(Likely, here, own, tops)
    return found


def checked(best: float) -> None:
    """Refuse to choose by logits whose largest is no number.

    Raises:
        ArithmeticError: it is NaN, which the largest of logits with a NaN is, or infinite.
    """
    if not math.isfinite(best):
        raise ArithmeticError(f"the model's logits are no numbers that can be compared ({best})")
