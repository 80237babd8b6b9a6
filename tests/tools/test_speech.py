"""Writing down speech with pocketsphinx, on real recordings where they are."""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy as np
import pytest

import tiny
from modalign.data.records import Media
from modalign.errors import UsageError
from modalign.tools.build import build_tool
from modalign.tools.guard import call_safely
from modalign.tools.spec import SpeechSpec

pytest.importorskip("pocketsphinx")
pytest.importorskip("soundfile")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def wav(samples: Any, rate: int = 16_000) -> Media:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.asarray(samples) * 32767).astype("<i2").tobytes())
    return Media("audio", data=buffer.getvalue())


def test_of_ten_words_most_spoken_digits_are_heard() -> None:
    folder = tiny.SHARED / "data/spoken_digits"
    if not folder.exists():
        pytest.skip("../shared/data/spoken_digits is not there")
    tool = build_tool(SpeechSpec(words=WORDS))
    files = [folder / f"{digit}_jackson_{index}.wav" for digit in range(10) for index in (3, 4)]
    heard = [call_safely(tool, Media("audio", path=str(file))) for file in files]
    assert all(outcome.problem is None for outcome in heard)
    assert all(outcome.text in {*WORDS, ""} for outcome in heard)
    right = [one.text == WORDS[int(file.name[0])] for one, file in zip(heard, files, strict=True)]
    assert sum(right) >= 12


def test_noise_and_silence_are_no_failure() -> None:
    tool = build_tool(SpeechSpec())
    rng = np.random.default_rng(0)
    for samples in (np.zeros(8000), rng.uniform(-0.3, 0.3, 16000), np.zeros(1)):
        outcome = call_safely(tool, wav(samples))
        assert outcome.problem is None
        assert all(0 <= line.score <= 1 for line in outcome.lines)


def test_what_is_no_recording_is_an_outcome() -> None:
    outcome = call_safely(build_tool(SpeechSpec(words=WORDS)), Media("audio", data=b"no sound"))
    assert outcome.problem == "raised"


def test_free_speech_is_charged_for_its_language_model() -> None:
    few, free = build_tool(SpeechSpec(words=WORDS)), build_tool(SpeechSpec())
    assert (few.parameters, free.parameters) == (2_388_216, 2_388_216 + 5_917_813)
    assert few.fingerprint(str) != free.fingerprint(str)


@pytest.mark.parametrize("word", ["xyzzyq", "<s>", "two | three"])
def test_words_that_it_does_not_know_are_refused(word: str) -> None:
    with pytest.raises(UsageError, match="does not know the word"):
        build_tool(SpeechSpec(words=("one", word)))
