"""Fluency and consistency of what a model writes about edited subjects.

* GE (generation entropy; Zhang et al. 2018, arXiv 1809.05972, as used by Meng et al. 2022): the entropy
  in bits of each text's two-word and three-word sequences, (2/3 H2 + 4/3 H3) / 2, averaged over texts.
  It is low where an edited model repeats itself.
* RS (reference score): the cosine between the TF-IDF vector of all of an edit's texts joined and that
  of its reference texts joined. Inverse document frequencies are fitted on the reference texts of all
  edits at hand, so values depend on them (the published ones come from a file of Wikipedia texts).

Words are runs of letters and digits, single punctuation marks, and single characters of scripts written
without spaces; no downloaded tokenizer is needed. Contractions are split differently from NLTK's, which
changes GE slightly.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from modalign.editing.benchmarks.decoding import decode
from modalign.editing.benchmarks.results import FREE, count_known, mean_or_nan, metric
from modalign.editing.benchmarks.scoring import Coder
from modalign.editing.edits import Edit
from modalign.numbers.bootstrap import RESAMPLES, redrawn_means
from modalign.numbers.estimate import Estimate
from modalign.progress import Progress

TOKENS = 100  # of a text, its prompt included
TOP_K = 5
_WORDS = re.compile(
    r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u0e00-\u9fff]+|[^\w\s]"
)


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return _WORDS.findall(text)


def ngram_entropy(text: str, n: int) -> float:
    """Return the entropy in bits of a text's n-word sequences; 0 if it has none."""
    tokens = words(text)
    counts = Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
    if not counts:
        return 0.0
    shares = np.array(list(counts.values())) / counts.total()
    return float(-(shares * np.log2(shares)).sum())


def fluency(texts: Sequence[str]) -> float:
    """Return the GE of some texts, in bits."""
    return mean_or_nan(
        [(2 / 3 * ngram_entropy(t, 2) + 4 / 3 * ngram_entropy(t, 3)) / 2 for t in texts]
    )


def consistency(texts: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> list[float]:
    """Return the RS of each edit's texts, 0 to 1; NaN if it has no texts or no references."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    told = [text for row in references for text in row]
    result = [float("nan")] * len(texts)
    if not any(words(text) for text in told):
        return result
    vectoriser = TfidfVectorizer(tokenizer=words, token_pattern=None).fit(told)
    for place, (own, reference) in enumerate(zip(texts, references, strict=True)):
        if own and reference:
            pair = vectoriser.transform([" ".join(own), " ".join(reference)])
            result[place] = float((pair[0] @ pair[1].T).toarray()[0, 0])
    return result


def write_texts(
    model: Any,
    tokenizer: Any,
    edits: Sequence[Edit],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[list[str]]:
    """Sample one text per generation prompt of every edit (top 5, 100 tokens with the prompt), prompt included."""
    coder = Coder(tokenizer)
    tokenizer = coder.tokenizer
    prompts = [coder.prompt(prompt) for edit in edits for prompt in edit.generation_prompts]
    limits = [max(1, TOKENS - len(ids)) for ids in prompts]
    made = decode(
        model, prompts, limits, top_k=TOP_K, seed=seed, progress=progress, label="writing texts"
    )
    texts = iter(
        tokenizer.decode([*prompt, *new], skip_special_tokens=True).replace("\n\n", " ")
        for prompt, new in zip(prompts, made, strict=True)
    )
    return [[next(texts) for _ in edit.generation_prompts] for edit in edits]


def text_metrics(
    edits: Sequence[Edit],
    texts: Sequence[Sequence[str]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Estimate GE, and RS if reference texts are given; times 100 as in the papers."""
    columns = {
        "GE": np.array([fluency(own) for own in texts]),
        "RS": np.array(consistency(texts, [edit.reference_texts for edit in edits])),
    }
    drawn = redrawn_means(columns, resamples, seed)
    units = {"GE": "bits x 100", "RS": "cosine x 100"}
    return {
        name: metric(drawn[name], count_known(values), f"{FREE}, top-{TOP_K} sample", units[name])
        for name, values in columns.items()
        if count_known(values)
    }
