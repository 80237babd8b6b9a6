"""MinHash of texts, a batch at a time (Broder 1997; banding: Leskovec et al., Mining of Massive Datasets,
chapter 3).

A text is the set of its character n-grams after `normalise`. Each of P hash functions keeps its smallest
value over the set; the probability that two texts agree in one is their Jaccard similarity. Rows are
compared if all r values of at least one of b bands agree: a share of 1 - (1 - s^r)^b of pairs with similarity s.

datasketch does the same one text at a time: on texts of 70 characters with 78 functions this code
took 22 microseconds per text, its `MinHash.bulk` 376, and its index is held in memory.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
PAD = "\0"  # pads texts shorter than one n-gram
MAX_BANDS = 16
MAX_ROWS = 16
CHARACTERS = 1 << 20  # hashed at a time, to bound the memory for long texts


def normalise(text: str) -> str:
    """Unify compatibility forms, fold case and collapse white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def shingles(text: str, n: int) -> frozenset[str]:
    """Return the set of character n-grams of a normalised text; a shorter text is one n-gram."""
    return frozenset(text[i : i + n] for i in range(max(1, len(text) - n + 1)))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Divide the size of the intersection by that of the union."""
    common = len(first & second)
    return common / (len(first) + len(second) - common)


def choose_bands(threshold: float, recall: float) -> tuple[int, int]:
    """Choose (b, r), bands and rows per band, so that pairs at the threshold are found with this probability.

    More rows per band mean fewer pairs to verify and more bands: r is the largest that needs at most
    `MAX_BANDS` bands, or 1 if even that needs more.
    """
    if threshold == 1:
        return 1, MAX_ROWS
    needed = [
        math.ceil(math.log(1 - recall) / math.log1p(-(threshold**r)))
        for r in range(1, MAX_ROWS + 1)
    ]
    r = max((r for r, b in enumerate(needed, start=1) if b <= MAX_BANDS), default=1)
    return needed[r - 1], r


class MinHasher:
    """Band keys of texts.

    Args:
        n: characters per n-gram.
        bands: keys per text.
        rows: hash functions per band.
        seed: of the hash functions.
    """

    def __init__(self, n: int, bands: int, rows: int, seed: int) -> None:
        self.n, self.bands, self.rows = n, bands, rows
        generator = np.random.default_rng(seed)
        shape = (bands * rows,)
        # x -> a x + b modulo 2^32 with an odd a is a permutation.
        self._a = generator.integers(0, 2**32, shape, dtype=np.uint32) | np.uint32(1)
        self._b = generator.integers(0, 2**32, shape, dtype=np.uint32)

    def signatures(self, texts: Sequence[str]) -> np.ndarray:
        """Compute the smallest hash values, (texts, bands * rows) uint32, of normalised texts."""
        found = np.empty((len(texts), self.bands * self.rows), dtype=np.uint32)
        begin = 0
        while begin < len(texts):
            end, length = begin, 0
            while end < len(texts) and (end == begin or length + len(texts[end]) <= CHARACTERS):
                length += len(texts[end])
                end += 1
            found[begin:end] = self._signatures(texts[begin:end])
            begin = end
        return found

    def _signatures(self, texts: Sequence[str]) -> np.ndarray:
        padded = [text.ljust(self.n, PAD) for text in texts]
        lengths = np.fromiter(map(len, padded), dtype=np.int64, count=len(padded))
        code = "".join(padded).encode("utf-32-le", errors="surrogatepass")
        hashes = _ngram_hashes(np.frombuffer(code, dtype=np.uint32), self.n)
        # n-grams that begin within a text's last n - 1 characters reach into the next text.
        within = np.ones(len(hashes), dtype=bool)
        ends = np.cumsum(lengths)[:-1]
        for back in range(1, self.n):
            within[ends - back] = False
        values = (hashes[within] >> np.uint64(32)).astype(np.uint32)
        counts = lengths - (self.n - 1)
        starts = np.cumsum(counts) - counts
        columns = [
            np.minimum.reduceat(values * a + b, starts)
            for a, b in zip(self._a, self._b, strict=True)
        ]
        return np.stack(columns, axis=1)

    def keys(self, texts: Sequence[str], salt: np.ndarray) -> np.ndarray:
        """Compute band keys, (texts, bands) int64: equal if a band and the uint64 salt are equal."""
        signatures = self.signatures(texts).astype(np.uint64)
        by_band = signatures.reshape(len(texts), self.bands, self.rows)
        keys = mix(salt[:, None] + GOLDEN * np.arange(1, self.bands + 1, dtype=np.uint64))
        for row in range(self.rows):
            keys = mix(keys ^ by_band[:, :, row])
        return keys.view(np.int64)


def mix(x: np.ndarray) -> np.ndarray:
    """Spread 64-bit values: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _ngram_hashes(characters: np.ndarray, n: int) -> np.ndarray:
    count = len(characters) - n + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(n):
        hashes = hashes * GOLDEN + characters[offset : offset + count]
    return mix(hashes)
