"""Free generation: what the model says unaided after a prompt, decoded greedily.

Teacher forcing shows the model the correct beginning at every token and flatters it; here it sees
only the prompt. A continuation is read in two ways:

* prefix: it starts with the wanted answer, ending at a word boundary;
* exact: in addition, a sentence mark, a line break or the end follows, not more words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modalign.chat_templates import end_ids
from modalign.editing.benchmarks.decoding import decode
from modalign.editing.benchmarks.results import FREE, count_known, means_of_records, metric
from modalign.editing.benchmarks.rows import KINDS, EditRow, PromptRow
from modalign.editing.benchmarks.scoring import Coder
from modalign.numbers.bootstrap import RESAMPLES, redrawn_means
from modalign.numbers.estimate import Estimate
from modalign.progress import Progress

SPARE = 4  # tokens beyond the answer's own, to see where it ends
MARKS = ".,;:!?\n\"')(。，、；：！？"


@dataclass(frozen=True)
class Said:
    """A greedy continuation, and whether it gives the wanted answer."""

    text: str
    prefix: bool
    exact: bool


def generate_answers(
    model: Any,
    tokenizer: Any,
    asked: Sequence[PromptRow],
    *,
    progress: Progress | None = None,
) -> list[Said]:
    """Continue every prompt greedily; equal prompts are continued only once."""
    coder = Coder(tokenizer)
    limits: dict[str, int] = {}
    for one in asked:
        wanted = len(coder.target(one.wanted, one.prompt)) + SPARE
        limits[one.prompt] = max(wanted, limits.get(one.prompt, 0))
    tokenizer = coder.tokenizer
    ends = frozenset(end_ids(tokenizer, getattr(model, "generation_config", None)))
    made = decode(
        model,
        [coder.prompt(prompt) for prompt in limits],
        list(limits.values()),
        ends=ends,
        progress=progress,
        label="generating answers",
    )
    texts = {}
    for prompt, ids in zip(limits, made, strict=True):
        text = tokenizer.decode([token for token in ids if token not in ends])
        texts[prompt] = (text.strip(" "), bool(ids) and ids[-1] in ends)
    return [judge(*texts[one.prompt], one.wanted) for one in asked]


def judge(text: str, ended: bool, wanted: str) -> Said:
    """Read a continuation.

    Args:
        text: the continuation, without its leading space.
        ended: whether the model itself ended it, rather than the limit.
        wanted: the answer.
    """
    rest = text[len(wanted) :]
    begins = text.startswith(wanted)
    prefix = begins and (not rest or not rest[0].isalnum() or not wanted[-1].isascii())
    exact = begins and (rest.strip(" ")[:1] in MARKS if rest.strip(" ") else ended)
    return Said(text, prefix, exact)


def exact_metrics(
    rows: Sequence[EditRow], said: Sequence[Said], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """Estimate ``free_rewrite_exact``, ``free_paraphrase_exact`` and ``free_neighbour_exact``.

    Args:
        rows: of the edits.
        said: the continuations of all their prompts, in order.
    """
    places = [(number, prompt.kind) for number, row in enumerate(rows) for prompt in row.prompts]
    values = [
        (number, f"free_{kind}_exact", float(found.exact))
        for (number, kind), found in zip(places, said, strict=True)
    ]
    columns = means_of_records(values, len(rows), [f"free_{kind}_exact" for kind in KINDS])
    drawn = redrawn_means(columns, resamples, seed)
    return {
        name: metric(drawn[name], known, f"{FREE}, exact")
        for name, column in columns.items()
        if (known := count_known(column))
    }
