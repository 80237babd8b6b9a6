"""A sound by numpy: tones of given notes or frequencies, as a WAV file."""

from __future__ import annotations

import io
import re
import wave

import numpy as np

from modalign.tools.generators import GeneratorError, Made, generator

RATE = 16_000  # samples a second
SECONDS = 0.5  # of a tone
MOST = 16  # tones
LOWEST, HIGHEST = 20.0, 7_000.0  # hertz
NOTES = {
    "c": -9,
    "d": -7,
    "e": -5,
    "f": -4,
    "g": -2,
    "a": 0,
    "b": 2,
}  # semitones from the A of the octave
_TONE = re.compile(
    r"(?P<hertz>\d+(?:\.\d+)?)\s*(?i:hz|hertz)\b"
    r"|\b(?P<note>[A-G])(?P<sharp>#|\s?sharp\b|\s?flat\b)?(?P<octave>[0-8])?(?![\w'’])"
)
_WORD = re.compile(r"\b(beep|tone|note|bell|alarm|siren|buzz)s?\b", re.IGNORECASE)


def frequencies(prompt: str) -> list[float]:
    """Return the frequencies that a prompt names, in hertz: "440 Hz", "A4", "C sharp"; 440 for a bare beep."""
    found = []
    for match in _TONE.finditer(prompt):
        if match["hertz"]:
            found.append(float(match["hertz"]))
            continue
        if (
            match["note"] == "A"
            and not (match["sharp"] or match["octave"])
            and _article(prompt, match)
        ):
            continue
        turn = {"": 0, "#": 1, "sharp": 1, "flat": -1}[(match["sharp"] or "").strip()]
        octave = int(match["octave"] or 4) - 4
        found.append(440.0 * 2 ** ((NOTES[match["note"].lower()] + turn) / 12 + octave))
    return found or [440.0] * bool(_WORD.search(prompt))


def _article(prompt: str, match: re.Match[str]) -> bool:
    """Whether an A is the article at the beginning of a sentence, before a word in lower case."""
    return re.match(r"\s+[a-z]", prompt[match.end() :]) is not None and (
        match.start() == 0 or prompt[: match.start()].rstrip()[-1:] in ".!?:;\"'"
    )


@generator("sound")
def sound(prompt: str) -> Made:
    """Play tones: notes by name (A4, C sharp) or frequencies in Hz, one after the other."""
    tones = frequencies(prompt)
    if not tones:
        raise GeneratorError(
            "sound plays notes (A4, C sharp) and frequencies (440 Hz), and found none"
        )
    if odd := next((tone for tone in tones if not LOWEST <= tone <= HIGHEST), None):
        raise GeneratorError(f"{odd:g} Hz is outside {LOWEST:g} to {HIGHEST:g} Hz")
    time = np.arange(int(RATE * SECONDS)) / RATE
    fade = np.minimum(1, np.minimum(time, SECONDS - time) / 0.01)  # 10 ms, so that nothing clicks
    waves = [0.5 * fade * np.sin(2 * np.pi * tone * time) for tone in tones[:MOST]]
    samples = (np.concatenate(waves) * 32767).astype("<i2")
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    shows = ", ".join(f"{tone:.0f} Hz" for tone in tones[:MOST])
    return Made("audio", ".wav", stream.getvalue(), shows)
