"""The teacher-forced scorer: how likely each of several answers is after a prompt.

Inputs are built from token ids: the prompt's, then the answer's without its last. The prompt is
never tokenised together with the answer, so nothing merges across the boundary, whatever the
tokenizer's padding side, BOS or treatment of leading spaces.

Because attention is causal, a row that is the beginning of another needs no run of its own: a prompt
with two one-token answers is run once, and so is a prompt that several records ask. Rows of similar
length share a batch, and the output head is computed only where an answer's token is predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from modalign.editing.benchmarks.calling import device_of, judging, logits_at, vocabulary_of
from modalign.editing.edits import Edit
from modalign.editing.engine.asking import Asking
from modalign.editing.engine.prefix import attends_to_all, repeated, shared
from modalign.editing.engine.tokens import Rows, pad
from modalign.lengths import check_length, declared_length
from modalign.models.caches import CACHE
from modalign.progress import Progress

BATCH_TOKENS = 8192
LOGITS = 1 << 26  # the most logits held at a time


@dataclass(frozen=True)
class Question:
    """A prompt, and the answers whose likelihoods are wanted."""

    prompt: str
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """How likely a model finds one answer to one prompt.

    Attributes:
        log_probability: summed over the answer's tokens, natural logarithm.
        hits: per token, whether it was the most likely one after the tokens before it.
        likeliest: per token, the id of the most likely one.
    """

    log_probability: float
    hits: tuple[bool, ...]
    likeliest: tuple[int, ...]

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood per token: CounterFact's length-normalised score."""
        return -self.log_probability / len(self.hits)

    @property
    def accuracy(self) -> float:
        """Share of tokens that were the most likely."""
        return sum(self.hits) / len(self.hits)

    @property
    def right(self) -> bool:
        """Whether greedy decoding would give the answer."""
        return all(self.hits)


Ids = tuple[int, ...]  # what one run sees


@dataclass
class _Asked:
    """One answer to one prompt, as ids."""

    ids: Ids
    first: int  # position that predicts the answer's first token
    target: Ids


def score(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
    label: str = "scoring",
) -> list[list[Score]]:
    """Score every answer of every question; one list per question, in order.

    Args:
        model: anything called like a transformers causal LM; not changed.
        tokenizer: the model's, or an :class:`Asking` for the form in which it is asked.
        questions: prompts with their answers.
        batch_tokens: ids run at a time, padding included.
        progress: told how many rows are done.
        label: what ``progress`` calls this step.

    Raises:
        DataError: an answer or a prompt has no tokens.
    """
    coder = Coder(tokenizer)
    asked = [[coder.asked(q, target) for target in q.targets] for q in questions]
    flat = [one for row in asked for one in row]
    limit = declared_length(getattr(model, "config", None))
    for question, row in zip(questions, asked, strict=True):
        for one in row:
            check_length(one.first + 1, limit, f"the prompt {question.prompt!r}", len(one.target))
    owner = _sharing({one.ids for one in flat})
    rows: dict[Ids, list[int]] = {}
    for number, one in enumerate(flat):
        rows.setdefault(owner[one.ids], []).append(number)
    scores: dict[int, Score] = {}
    done = 0
    with judging(model):
        for batch in _batches(rows, flat, batch_tokens, LOGITS // vocabulary_of(model)):
            scores.update(_run(model, batch, [rows[ids] for ids in batch], flat))
            done += len(batch)
            if progress:
                progress(label, done, len(rows))
    given = (scores[number] for number in range(len(flat)))
    return [[next(given) for _ in row] for row in asked]


class Coder:
    """Prompts and answers as ids, each tokenised once.

    Args:
        reader: an :class:`Asking`, or a tokenizer if prompts are asked as they stand.
    """

    def __init__(self, reader: Any) -> None:
        self.asking = Asking.of(reader)
        self.tokenizer = self.asking.tokenizer
        self._prompts: dict[str, Ids] = {}
        self._targets: dict[tuple[str, str], Ids] = {}

    def prompt(self, text: str) -> Ids:
        """Return a prompt's ids."""
        if text not in self._prompts:
            self._prompts[text] = self.asking.text(text).ids
        return self._prompts[text]

    def target(self, target: str, prompt: str) -> Ids:
        """Return an answer's ids; only the last character of the prompt matters."""
        key = (target, prompt[-1:])
        if key not in self._targets:
            self._targets[key] = self.asking.target(target, prompt)
        return self._targets[key]

    def asked(self, question: Question, target: str) -> _Asked:
        """Return one answer to one question, as ids."""
        prompt = self.prompt(question.prompt)
        answer = self.target(target, question.prompt)
        return _Asked(prompt + answer[:-1], len(prompt) - 1, answer)


def _sharing(rows: set[Ids]) -> dict[Ids, Ids]:
    """Return for every row the row that is run in its place: itself, or one that continues it.

    In lexicographic order, a row that any other row continues is continued by the next one.
    """
    owner: dict[Ids, Ids] = {}
    after: Ids | None = None
    for ids in sorted(rows, reverse=True):
        shared = after is not None and after[: len(ids)] == ids
        owner[ids] = owner[after] if shared and after is not None else ids
        after = ids
    return owner


def _batches(
    rows: Mapping[Ids, list[int]], flat: Sequence[_Asked], tokens: int, places: int
) -> Iterator[list[Ids]]:
    """Group rows of similar length, limiting the ids and the places that need logits in each batch."""
    batch: list[Ids] = []
    used = 0
    for ids in sorted(rows, key=lambda ids: (len(ids), ids)):
        needed = sum(len(flat[number].target) for number in rows[ids])
        if batch and ((len(batch) + 1) * len(ids) > tokens or used + needed > places):
            yield batch
            batch, used = [], 0
        batch.append(ids)
        used += needed
    if batch:
        yield batch


def _run(
    model: Any, batch: Sequence[Ids], members: Sequence[Sequence[int]], flat: Sequence[_Asked]
) -> Iterator[tuple[int, Score]]:
    """Yield (number, score) of every answer that these rows hold."""
    device = device_of(model)
    order = [(row, number) for row, own in enumerate(members) for number in own]
    places: dict[tuple[int, int], int] = {}  # (row, position) -> index into the logits
    picks = [
        [
            places.setdefault((row, flat[n].first + i), len(places))
            for i in range(len(flat[n].target))
        ]
        for row, n in order
    ]
    where = torch.tensor(list(places), device=device).T
    logits = _logits(model, batch, where)
    logits = logits.float()
    likeliest = logits.argmax(-1).tolist()
    flat_picks = torch.tensor([place for own in picks for place in own], device=device)
    wanted = torch.tensor([t for _, n in order for t in flat[n].target], device=device)
    chosen = iter(_log_probabilities(logits, flat_picks, wanted).tolist())
    for (_, number), own in zip(order, picks, strict=True):
        said = tuple(likeliest[place] for place in own)
        hits = tuple(a == b for a, b in zip(said, flat[number].target, strict=True))
        yield number, Score(sum(next(chosen) for _ in own), hits, said)


def _logits(model: Any, batch: Sequence[Ids], where: Tensor) -> Tensor:
    """Return logits at (row, position) places, (P, V); the beginning that all rows share is run once."""
    rows = pad(batch, where.device)
    length = rows.ids.shape[1]
    first = int(where[1].min())
    begin = shared(batch, first) if attends_to_all(getattr(model, "config", None), length) else 0
    if begin:
        cache = DynamicCache()
        alone = pad([batch[0][:begin]], where.device)
        end = torch.tensor([begin - 1], device=where.device)
        logits_at(model, alone, (end - end, end), use_cache=True, **{CACHE: cache})
        held = repeated(cache, len(batch))
        if held is not None:
            rest = Rows(rows.ids, rows.mask, begin)
            settings = {"use_cache": True, CACHE: held}
            return logits_at(model, rest, (where[0], where[1] - begin), **settings)[0]
    return logits_at(model, rows, (where[0], where[1]))[0]


def _log_probabilities(logits: Tensor, places: Tensor, wanted: Tensor) -> Tensor:
    """Return the log-probability of each wanted id at its place, (K,), in float64."""
    norms = torch.logsumexp(logits, -1)
    return (logits[places, wanted] - norms[places]).double()


def already_known(
    model: Any, tokenizer: Any, edits: Sequence[Edit], *, progress: Progress | None = None
) -> list[bool]:
    """Return for each edit whether the model says its target already, that is, under greedy decoding."""
    questions = [Question(edit.prompt, (edit.target,)) for edit in edits]
    scores = score(model, tokenizer, questions, progress=progress, label="what is known already")
    return [found.right for (found,) in scores]
