"""The log-likelihood of whole texts, in windows that follow one another without overlapping targets.

As lm-evaluation-harness's ``loglikelihood_rolling``: the first token is predicted from the model's begin token
(its end token if it has none), every other one from as many tokens before it as its window holds. Windows are as
long as the model reads; the last one begins earlier, so that its tokens are predicted from a full window too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from modalign.chat_templates import ids_of
from modalign.errors import DataError
from modalign.evaluation.likelihood import log_likelihoods
from modalign.lengths import declared_length

WINDOW = 2048  # tokens, where a model does not limit them


@torch.inference_mode()
def read_texts(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    window: int = WINDOW,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[float, int]]:
    """Return each text's summed log-likelihood in nats, and its tokens.

    Args:
        model, tokenizer: of one language model; a model with media reads text as its language model does.
        texts: to read, each from its beginning.
        window: tokens read together, at most as many as the model reads.
        progress: told how many texts are read.

    Raises:
        DataError: the tokenizer has neither a begin nor an end token, or a text has no tokens.
    """
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise DataError("the tokenizer has neither a begin nor an end token to read a text from")
    window = min(window, declared_length(model.config) or window)
    found = []
    for number, text in enumerate(texts):
        ids = ids_of(tokenizer, text)
        if not ids:
            raise DataError(f"text {number + 1} has no tokens: {text[:40]!r}")
        total = sum(_window(model, *each) for each in windows(ids, first, window))
        found.append((total, len(ids)))
        if progress:
            progress(number + 1, len(texts))
    return found


def windows(ids: Sequence[int], first: int, window: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (what is given, what is predicted); together at most ``window`` + 1 tokens, the last not read.

    Args:
        ids: of the text.
        first: the token before it.
        window: tokens read together.
    """
    line = [first, *ids]
    done = 1
    while done < len(line):
        stop = min(done + window, len(line))
        start = 0 if done == 1 else max(stop - 1 - window, 0)
        yield line[start:done], line[done:stop]
        done = stop


def _window(model: Any, given: list[int], predicted: list[int]) -> float:
    prompt = torch.tensor([given])
    inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    return log_likelihoods(model, inputs, [predicted])[0]
