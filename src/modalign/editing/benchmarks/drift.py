"""Drift: how much edits changed the model on unrelated text that the user names.

The text is read window by window, so memory does not grow with it:

* ``drift_kl``: KL(edited || base) of the next token, nats, mean over tokens;
* ``drift_agreement``: share of tokens where both have the same most likely next token, times 100;
* ``perplexity`` and ``perplexity_before``: exp of the mean negative log-likelihood of the next token.

Intervals come from resampling windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional

from modalign.editing.benchmarks.calling import call, device_of, judging, vocabulary_of
from modalign.editing.benchmarks.results import TEACHER_FORCED, metric
from modalign.editing.benchmarks.scoring import LOGITS
from modalign.editing.engine.tokens import pad
from modalign.errors import DataError
from modalign.lengths import declared_length
from modalign.numbers.bootstrap import RESAMPLES, Floats, redrawn_means
from modalign.numbers.estimate import Estimate
from modalign.progress import Progress

WINDOW = 256
TOKENS = 16_384


def drift(
    edited: Any,
    tokenizer: Any,
    texts: Iterable[str],
    *,
    base: Any = None,
    window: int = WINDOW,
    tokens: int = TOKENS,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Estimate]:
    """Compare two models on text, or measure one's perplexity.

    Args:
        edited: the model to be judged; it may be a view that shares the base's weights.
        tokenizer: of both models.
        texts: documents, each read in windows of its own.
        base: the model before the edits; None for the perplexity alone.
        window: ids read together; no more than the model reads.
        tokens: the most ids to read.
        resamples: bootstrap resamples of the windows, for the intervals.
        seed: of the resampling.
        progress: told how many windows are done.

    Raises:
        DataError: the text gives no window of at least two tokens.
    """
    window = min(window, declared_length(getattr(edited, "config", None)) or window)
    windows = list(_windows(tokenizer, texts, window, tokens))
    if not windows:
        raise DataError("the held-out text has fewer than two tokens: give a longer one")
    rows: list[dict[str, float]] = []
    size = max(1, LOGITS // (2 * window * vocabulary_of(edited)))
    for start in range(0, len(windows), size):
        rows += _compare(edited, base, windows[start : start + size])
        if progress:
            progress("reading held-out text", len(rows), len(windows))
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    drawn = redrawn_means(columns, resamples, seed)
    return _metrics(drawn, len(rows), base is not None)


def _metrics(drawn: dict[str, Floats], n: int, compared: bool) -> dict[str, Estimate]:
    """Estimate ratios of sums, so that every token counts the same in long windows and short ones."""
    protocol = f"{TEACHER_FORCED}, held-out text"
    per_token = {name: values / drawn["tokens"] for name, values in drawn.items()}
    result = {}
    if compared:
        result["drift_kl"] = metric(per_token["kl"], n, protocol, "nats per token", 1.0)
        result["drift_agreement"] = metric(per_token["same"], n, protocol)
        before = np.exp(per_token["nll_before"])
        result["perplexity_before"] = metric(before, n, protocol, "perplexity", 1.0)
    now = np.exp(per_token["nll"])
    return result | {"perplexity": metric(now, n, protocol, "perplexity", 1.0)}


def _windows(
    tokenizer: Any, texts: Iterable[str], window: int, tokens: int
) -> Iterator[tuple[int, ...]]:
    used = 0
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        for start in range(0, len(ids), window):
            part = tuple(ids[start : start + window])[: tokens - used]
            if len(part) > 1:
                yield part
            used += len(part)
            if used >= tokens:
                return


def _compare(edited: Any, base: Any, windows: Sequence[tuple[int, ...]]) -> list[dict[str, float]]:
    """Return for each window the sums over its tokens."""
    rows = pad(windows, device_of(edited))
    following = rows.ids[:, 1:]
    real = rows.mask[:, 1:].bool()
    with judging(edited):
        now = call(edited, rows).logits[:, :-1].float().log_softmax(-1)
        sums = {"tokens": real.sum(1).double(), "nll": _nll(now, following, real)}
        if base is not None:
            with judging(base):
                then = call(base, rows).logits[:, :-1].float().log_softmax(-1)
            kl = functional.kl_div(then, now, log_target=True, reduction="none").sum(-1)
            same = now.argmax(-1) == then.argmax(-1)
            sums["kl"] = (kl * real).sum(1).double()
            sums["same"] = (same & real).sum(1).double()
            sums["nll_before"] = _nll(then, following, real)
    columns = {name: values.tolist() for name, values in sums.items()}
    return [{name: values[row] for name, values in columns.items()} for row in range(len(windows))]


def _nll(log_probabilities: Tensor, following: Tensor, real: Tensor) -> Tensor:
    chosen = log_probabilities.gather(-1, following[..., None])[..., 0].double()
    return -(chosen * real).sum(1)
