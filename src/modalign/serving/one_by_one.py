"""Models that cannot be batched here: transformers' own ``generate``, one request after the other.

The row chooses every token; a logits processor leaves ``generate`` only that one.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria

if TYPE_CHECKING:
    from modalign.serving.rows import Row
    from modalign.serving.runners import Runner


class _Forced(LogitsProcessor):
    """Allows only the row's choice."""

    def __init__(self, row: Row, suppressed: Tensor | None) -> None:
        self.row, self.suppressed = row, suppressed

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Set all scores (1, V) but the chosen token's to minus infinity."""
        if self.suppressed is not None:
            scores[:, self.suppressed] = -torch.inf
        token = self.row.choose(scores[0])
        self.row.take(token)
        forced = torch.full_like(scores, -torch.inf)
        forced[0, token] = 0.0
        return forced


class _Done(StoppingCriteria):
    def __init__(self, row: Row) -> None:
        self.row = row

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Whether the row has finished or is cancelled, (1,) bool."""
        done = self.row.finished or self.row.cancelled
        return torch.full((len(input_ids),), done, device=input_ids.device)


def answer_alone(runner: Runner, row: Row) -> None:
    """Answer one request, with the same events as in a batch."""
    model, device = runner.model, runner.device
    ids = torch.tensor([row.prompt.ids], device=device)
    inputs = runner.whole_inputs(row.prompt)
    if row.sampling.prompt_logprobs:
        row.start(row.prompt_scores(model(input_ids=ids, **inputs).logits[0]), 0)
    else:
        row.start((), 0)
    if row.most == 0:
        row.finish("length")
        return
    generation = copy.deepcopy(row.settled.generation)
    generation.eos_token_id = [-1]  # the row decides where it ends (see ignore_end)
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_config=generation,
        max_new_tokens=row.most,
        do_sample=False,
        logits_processor=LogitsProcessorList([_Forced(row, row.settled.suppressed)]),
        stopping_criteria=[_Done(row)],
        **inputs,
    )
