"""Judge routing by keyword rules and by prompted and tuned models, with and without a grammar; and round trips."""

from __future__ import annotations

import io
import wave
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from modalign.applications.any_to_any.data import Instruction
from modalign.applications.any_to_any.routing import by_keywords, keyword_calls
from modalign.applications.judged import Judged, ScoreRow, ScoreTable, decided, judged, mean
from modalign.data.records import Media
from modalign.errors import ModalignError
from modalign.numbers.estimate import Estimate, exactly
from modalign.starter.scenes import WORDS, draw_scene, render, to_png
from modalign.tools.base import ToolError
from modalign.tools.generators import PROMPT, Generator
from modalign.tools.planning.generate import Transformed

RULE, MAJORITY = "keyword rules", "most frequent route"
Answer = Callable[[str], Transformed]
Read = Callable[[Media], str]  # a picture of a digit -> its name


def judge(
    instructions: Sequence[Instruction],
    generators: Sequence[Generator],
    models: Mapping[str, Answer],
    *,
    readers: Mapping[str, Read] | None = None,
    seed: int = 0,
    data: Sequence[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> Judged:
    """Evaluate how instructions are routed, whether calls are valid, and what is made.

    Args:
        instructions: with what they ask for.
        generators: that may be called.
        models: row -> how it answers.
        readers: row -> how it recognises a drawn digit.
        seed: of the intervals.
        data: names of the files.
        progress: called with what is done.
    """
    said = {RULE: [by_keywords(each.text, generators) for each in instructions]}
    for name, answer in models.items():
        said[name] = []
        for number, each in enumerate(instructions):
            said[name].append(_answered(answer, each.text))
            if progress:
                progress(name, number + 1, len(instructions))
    names = [each.name for each in generators]
    hidden = np.array([_paraphrased(each, names) for each in instructions])
    routes = [each.route for each in instructions]
    common = Counter(routes).most_common(1)[0][0]
    guesses = np.array([float(route == common) for route in routes])
    rows = [ScoreRow(name=MAJORITY, kind="reference", figures=_shares(guesses, hidden))]
    right = {}
    for name, answers in said.items():
        kind = "rule" if name == RULE else "model"
        right[name] = np.array([
            float(tuple(sorted(call.name for call in answer.first)) == route)
            for answer, route in zip(answers, routes, strict=True)
        ])  # fmt: skip
        figures = _shares(right[name], hidden) | _calls(answers, routes)
        rows.append(ScoreRow(name=name, kind=kind, figures=figures))
    asks = Counter(len(route) for route in routes)
    notes = [
        f"{len(routes)} instructions: {asks[0]} ask for nothing, {asks[1]} for one call, "
        f"{len(routes) - asks[0] - asks[1]} for more; {int(hidden.sum())} are paraphrases "
        "without the rule's words.",
        "Routing: the first reply calls the generators asked for and no others. Valid: of its calls, parsed "
        "without error. False: calls where nothing is asked for. Made: all that was asked for, after errors "
        "went back once.",
    ]
    tables = [ScoreTable(title="Instructions to generators", rows=rows, notes=notes)]
    tables += _round_trip(generators, readers or {})
    headline = np.flatnonzero(hidden) if hidden.any() else np.arange(len(routes))
    scores = {name: values[headline] for name, values in right.items()}
    default, reason, differences = decided(RULE, scores, seed=seed)
    served = {name: _served(answers, routes) for name, answers in said.items()}
    worse = [d.first for d in decided(RULE, served, seed=seed)[2] if d.verdict == "second"]
    if default in worse:
        reason = f"{RULE} is the default: {default} routes paraphrases better, but serves fewer instructions."
        default = RULE
    return judged("transform", "Instructions to media", data, seed, default=default, reason=reason, tables=tables,
                  differences=differences)  # fmt: skip


def _answered(answer: Answer, text: str) -> Transformed:
    try:
        return answer(text)
    except ModalignError as error:  # a missing reply counts as a wrong one
        return Transformed(f"no reply: {error}")


def _paraphrased(each: Instruction, names: Sequence[str]) -> bool:
    """Return whether something is asked for without the rule's words."""
    if each.kind:
        return each.kind == "paraphrase"
    return bool(set(each.route) - {name for name, _ in keyword_calls(each.text, names)})


def _shares(right: np.ndarray, hidden: np.ndarray) -> dict[str, Estimate]:
    found = {"routing": mean(right, over="instructions")}
    if hidden.any():
        found["paraphrases"] = mean(right[hidden], over="instructions")
    return found


def _calls(
    answers: Sequence[Transformed], routes: Sequence[tuple[str, ...]]
) -> dict[str, Estimate]:
    """Return the shares of valid calls, of false ones, and of instructions whose media were all made."""
    found: dict[str, Estimate] = {}
    valid = [float(call.valid) for answer in answers for call in answer.first]
    if valid:
        found["valid calls"] = mean(valid, over="calls")
    idle = [float(bool(a.first)) for a, route in zip(answers, routes, strict=True) if not route]
    if idle:
        found["false calls"] = mean(idle, over="instructions")
    made = [
        float(Counter(call.name for call in answer.calls if call.made) == Counter(route))
        for answer, route in zip(answers, routes, strict=True)
        if route
    ]
    if made:
        found["made"] = mean(made, over="instructions")
    return found


def _served(answers: Sequence[Transformed], routes: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Return 1 where everything asked for was made, and nothing else was called."""
    return np.array([
        float(tuple(sorted(call.name for call in answer.calls if call.made)) == route
              and (bool(route) or not answer.first))
        for answer, route in zip(answers, routes, strict=True)
    ])  # fmt: skip


TONES = (110, 220, 262, 330, 440, 523, 660, 784, 880, 1760)
DIGITS = (
    "{}, white on black",
    "the digit {}, yellow on black",
    "a pink {} on black",
    "a {}, grey on black",
)


def _round_trip(generators: Sequence[Generator], readers: Mapping[str, Read]) -> list[ScoreTable]:
    """Draw digits and play tones, and read them again; for digits, scans are the readers' usual input."""
    known, rows = {each.name: each for each in generators}, list[ScoreRow]()
    if "picture" in known:
        asked = [(form.format(n), WORDS[n]) for form in DIGITS for n in range(10)]
        drawn = [(_picture(known["picture"], text), word) for text, word in asked]
        rng = np.random.default_rng(0)
        scenes = [draw_scene(rng, "eval", 1) for _ in drawn]
        scans = [
            (Media("image", data=to_png(render(each, rng))), WORDS[each.digits[0]])
            for each in scenes
        ]
        chance = exactly(0.1, len(drawn), "score", "pictures")
        figures = {"generated": chance, "scanned": chance}
        rows.append(ScoreRow(name="digits, chance", kind="reference", figures=figures))
        for name, read in readers.items():
            figures = {
                which: mean([_named(read, *pair) for pair in pairs], over="pictures")
                for which, pairs in (("generated", drawn), ("scanned", scans))
            }
            rows.append(ScoreRow(name=f"digits, {name}", kind="model", figures=figures))
    if "sound" in known:
        heard = [_pitch(known["sound"], f"{tone} Hz") for tone in TONES]
        hits = [
            float(abs(own - tone) < 0.01 * tone) for own, tone in zip(heard, TONES, strict=True)
        ]
        figures = {"generated": mean(hits, over="tones")}
        rows.append(ScoreRow(name="tones, the strongest frequency", kind="rule", figures=figures))
    return [ScoreTable(title="Generated, then read", rows=rows)] if rows else []


def _named(read: Read, medium: Media | None, word: str) -> float:
    return float(medium is not None and read(medium) == word)


def _picture(generator: Generator, prompt: str) -> Media | None:
    try:
        return Media("image", data=generator.make({PROMPT: prompt}).data)
    except ToolError:
        return None


def _pitch(generator: Generator, prompt: str) -> float:
    """Return the strongest frequency of a sound, in hertz; nan without a sound."""
    try:
        data = generator.make({PROMPT: prompt}).data
        with wave.open(io.BytesIO(data)) as file:
            rate = file.getframerate()
            samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    except (ToolError, wave.Error, EOFError):
        return float("nan")
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(power.argmax() * rate / len(samples))
