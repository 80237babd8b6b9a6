"""Free generation: what the model says by itself after a prompt, always greedily.

Teacher forcing shows a model its right beginning at every token and flatters it; here nothing is
shown. Two readings of a continuation:

* prefix: it starts with the wanted answer, which ends at the end of a word;
* exact: and then comes a sentence mark, a line break or the end, not more words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modalign.chat_templates import end_ids
from modalign.editing.benchmarks.decoding import decode
from modalign.editing.benchmarks.results import FREE, count_known, mean_or_nan, metric
from modalign.editing.benchmarks.rows import KINDS, Asked
from modalign.editing.benchmarks.scoring import Coder
from modalign.numbers.bootstrap import RESAMPLES, redrawn_means
from modalign.numbers.estimate import Estimate
from modalign.progress import Progress

SPARE = 4  # tokens beyond the answer's own, to see where it ends
MARKS = ".,;:!?\n\"')(。，、；：！？"


@dataclass(frozen=True)
class Said:
    """A greedy continuation, and whether it is the wanted answer."""

    text: str
    prefix: bool
    exact: bool


def generate_answers(
    model: Any,
    tokenizer: Any,
    asked: Sequence[Asked],
    *,
    progress: Progress | None = None,
) -> list[Said | None]:
    """Continue every prompt greedily, equal prompts once; None for prompts about pictures."""
    coder = Coder(tokenizer)
    limits: dict[str, int] = {}
    for one in asked:
        if one.question.image is not None:
            continue
        prompt = one.question.prompt
        wanted = len(coder.target(one.wanted, prompt)) + SPARE
        limits[prompt] = max(wanted, limits.get(prompt, 0))
    ends = frozenset(end_ids(tokenizer, getattr(model, "generation_config", None)))
    prompts = list(limits)
    made = decode(
        model,
        [coder.prompt(prompt) for prompt in prompts],
        list(limits.values()),
        ends=ends,
        progress=progress,
        label="generating answers",
    )
    texts = {}
    for prompt, ids in zip(prompts, made, strict=True):
        text = tokenizer.decode([token for token in ids if token not in ends])
        texts[prompt] = (text.strip(" "), bool(ids) and ids[-1] in ends)
    return [
        None if one.question.image else judge(*texts[one.question.prompt], one.wanted)
        for one in asked
    ]


def judge(text: str, ended: bool, wanted: str) -> Said:
    """Read a continuation.

    Args:
        text: it, without leading space.
        ended: whether the model ended it, or only its limit.
        wanted: the answer.
    """
    rest = text[len(wanted) :]
    begins = text.startswith(wanted)
    prefix = begins and (not rest or not rest[0].isalnum() or not wanted[-1].isascii())
    exact = begins and (rest.strip(" ")[:1] in MARKS if rest.strip(" ") else ended)
    return Said(text, prefix, exact)


def generation_metrics(
    asked: Sequence[Asked],
    said: Sequence[Said | None],
    edits: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Estimate]:
    """``free_rewrite``, ``free_paraphrase``, ``free_neighbour`` and the same with ``_exact``."""
    cells: dict[str, list[list[float]]] = {}
    for kind in KINDS:
        for ending in ("", "_exact"):
            cells[f"free_{kind}{ending}"] = [[] for _ in range(edits)]
    for one, found in zip(asked, said, strict=True):
        if found is None:
            continue
        cells[f"free_{one.kind}"][one.edit].append(float(found.prefix))
        cells[f"free_{one.kind}_exact"][one.edit].append(float(found.exact))
    columns = {
        name: np.array([mean_or_nan(values) for values in rows]) for name, rows in cells.items()
    }
    drawn = redrawn_means(columns, resamples, seed)
    result = {}
    for name, values in columns.items():
        if not math.isnan(drawn[name][0]):
            reading = "exact" if name.endswith("_exact") else "prefix"
            result[name] = metric(drawn[name], count_known(values), f"{FREE}, {reading}")
    return result
