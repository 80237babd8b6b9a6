"""Writing down speech with pocketsphinx, whose US English model lies in its wheel.

It is small, old and fast: a telephone-bandwidth recording or an accent costs it much. With ``words`` it only
chooses between them, which it does far better than free speech. For more, use a pipeline (Whisper).
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np

from modalign.data.audio import open_audio
from modalign.data.records import Media
from modalign.errors import UsageError, extra
from modalign.tools.base import LINES, HashFile, Json, Signature, Tool

RATE = 16_000  # Hz, that the model was trained on
# Of the model in pocketsphinx 5's wheel, from its files' headers: means and variances (42 codebooks, 3
# streams, 128 densities of 13), mixture weights (5,126 senones), transitions; and of the language model
# the probabilities of 1-, 2- and 3-grams with the back-off weights of the first two.
ACOUSTIC_PARAMETERS = 2 * 42 * 3 * 128 * 13 + 5_126 * 3 * 128 + 42 * 3 * 4
LANGUAGE_PARAMETERS = 2 * (72_547 + 2_051_547) + 1_669_625

_WORD = re.compile(r"[a-z][a-z'.-]*")


class SpeechTool(Tool):
    """What is said in a recording, as one line with its posterior probability.

    Args:
        words: the only words that can be said, in any order and number; none: free speech.
        **settings: of :class:`~modalign.tools.base.Tool`.

    Raises:
        UsageError: pocketsphinx is not installed, or does not know a word.
    """

    def __init__(self, words: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(**settings, signature=Signature(result=LINES))
        self._words = tuple(word.lower() for word in words)
        self._lock = threading.Lock()  # one decoder, one recording at a time
        _check(self._words)

    @property
    def parameters(self) -> int:
        """Of the acoustic model and, for free speech, the language model."""
        return ACOUSTIC_PARAMETERS + (0 if self._words else LANGUAGE_PARAMETERS)

    def load(self) -> None:
        """Load the model."""
        _ = self._decoder

    def run(self, medium: Media, **arguments: Any) -> list[dict[str, Any]]:
        """Write down a recording."""
        samples = open_audio(medium, RATE)
        pcm = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
        with self._lock:
            self._decoder.start_utt()
            self._decoder.process_raw(pcm, no_search=False, full_utt=True)
            self._decoder.end_utt()
            heard = self._decoder.hyp()
            if heard is None or not heard.hypstr:
                return []
            return [{"text": heard.hypstr, "score": round(_probability(heard.prob), 4)}]

    def identity(self, hash_file: HashFile) -> Json:
        """Return the library's version (its model comes with it) and the words."""
        return ["pocketsphinx", version("pocketsphinx"), list(self._words)]

    @cached_property
    def _decoder(self) -> Any:
        from pocketsphinx import Decoder

        if not self._words:
            return Decoder(samprate=RATE, loglevel="FATAL")
        decoder = Decoder(samprate=RATE, loglevel="FATAL", lm=None)
        decoder.add_jsgf_string("words", _grammar(self._words))
        decoder.activate_search("words")
        return decoder


def _check(words: Sequence[str]) -> None:
    try:
        from pocketsphinx import Decoder
    except ImportError as error:
        raise UsageError(
            f"writing down speech needs pocketsphinx ({error}): {extra('tools')}"
        ) from None
    if not words:
        return
    decoder = Decoder(samprate=RATE, loglevel="FATAL", lm=None)
    for word in words:
        if not _WORD.fullmatch(word) or decoder.lookup_word(word) is None:
            raise UsageError(f"pocketsphinx does not know the word {word!r}: choose another")


def _grammar(words: Sequence[str]) -> str:
    return f"#JSGF V1.0; grammar words; public <words> = ( {' | '.join(words)} );"


def _probability(value: float) -> float:
    return min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0
