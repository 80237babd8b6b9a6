"""Instructions for ``modalign app transform``: requests with and without the usual words, and no requests.

    python -m bench.instructions DIR

It writes ``train.jsonl`` and ``test.jsonl``; each wording is in only one of them. Paraphrases contain none of the
words draw, play and plot.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "black", "pink", "brown", "grey")
SHAPES = ("circle", "square", "triangle", "star")
NOTES = ("A4", "C4", "E4", "G4", "D4", "F4", "B4", "C5")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# {s}: a coloured shape, {d}: a digit, {n}: a note, {h}: hertz, {v}: numbers
ASKED = {
    "picture": [
        "Draw {s}.",
        "Please draw {s} for me.",
        "Make a picture of {s}.",
        "I want an image of {s}.",
        "Sketch {s}.",
        "Can you paint {s}?",
        "Give me a drawing of {s}.",
        "A picture of the digit {d}, please.",
        "Draw the digit {d}.",
        "Could you sketch the digit {d}?",
        "An illustration of {s} would help.",
        "Create an image with {s} in it.",
    ],
    "sound": [
        "Play {n}.",
        "Play a tone of {h} Hz.",
        "Let me hear {n}.",
        "Make a sound of {h} Hz.",
        "I need a beep at {h} Hz.",
        "Play me the note {n}.",
        "Give me a tone: {n}.",
        "Could you play {n}?",
        "A sound at {h} Hz, please.",
        "Produce audio of {n}.",
        "Play {n} and after it {n}.",
        "I would like to hear {h} Hz.",
    ],
    "plot": [
        "Plot {v}.",
        "Make a bar chart of {v}.",
        "Draw up a chart: {v}.",
        "Give me a graph of {v}.",
        "Chart these numbers: {v}.",
        "Please plot the values {v}.",
        "I need a diagram of {v}.",
        "A histogram of {v}, please.",
        "Graph {v} for me.",
        "Can you chart {v}?",
        "Plot the sales {v}.",
        "Show a graph with {v}.",
    ],
}
HIDDEN = {
    "picture": [
        "Show me {s}.",
        "I would love to look at {s}.",
        "What does {s} look like?",
        "Put {s} on the screen.",
        "Let me see {s}.",
        "Visualise {s}.",
        "Render {s}.",
        "I have to see the digit {d}.",
        "Display {s}.",
        "Give me {s} to look at.",
        "How does the digit {d} look?",
        "Bring up {s}.",
        "Show the digit {d}.",
        "I'd like {s} on a page.",
        "Fill a canvas with {s}.",
        "Depict {s}.",
    ],
    "sound": [
        "Sing {n}.",
        "What is {n} like for the ear?",
        "Ring at {h} Hz.",
        "Let {n} ring out.",
        "I want to listen to {n}.",
        "Hum {n}.",
        "Give my ears {h} Hz.",
        "Sound out {n}.",
        "Whistle {n}.",
        "Strike {n}.",
        "Ring {n} for me.",
        "Let me listen to {h} Hz.",
        "Intone {n}.",
        "Buzz at {h} Hz.",
        "Fill the room with {n}.",
        "Chime {n}.",
    ],
    "plot": [
        "Compare {v} as columns.",
        "Show how {v} develop.",
        "Visualise the values {v}.",
        "Put {v} on axes.",
        "How do {v} compare at a glance?",
        "Turn {v} into columns.",
        "Show the trend of {v}.",
        "Lay out {v} against time.",
        "I want to see how {v} rise and fall.",
        "Set {v} side by side as columns.",
        "Give me a curve through {v}.",
        "Trace {v} on axes.",
        "Make the values {v} visible.",
        "Let me see the trend in {v}.",
        "Show {v} as columns.",
        "Picture the course of {v}.",
    ],
}
NOTHING = [
    ("What is the capital of France?", "Paris."),
    ("Say hello.", "Hello."),
    ("How much is {x} plus {y}?", "{z}"),
    ("Who wrote Hamlet?", "Shakespeare."),
    ("What does the word draw mean?", "To make lines."),
    ("Did they play well?", "I do not know."),
    ("The plot of the book was thin.", "I see."),
    ("Name a colour.", "Red."),
    ("Is a picture worth a thousand words?", "Some say so."),
    ("Thank you.", "You are welcome."),
    ("Spell sound.", "s, o, u, n, d"),
    ("Is {x} a prime number?", "Let me think."),
    ("Who won the draw?", "I do not know."),
    ("I heard a noise last night.", "I see."),
    ("Translate circle.", "Kreis."),
    ("That chart was wrong.", "I am sorry."),
    ("Name a shape with three sides.", "A triangle."),
    ("What is a graph in mathematics?", "Points and edges."),
    ("Which is larger, {x} or {y}?", "The larger one."),
    ("Good morning.", "Good morning."),
    ("How are you?", "Well, thank you."),
    ("What is red and round?", "An apple."),
    ("Tell me a fact.", "Water is wet."),
    ("Why is the sky blue?", "Light scatters."),
    ("Sound advice is rare.", "True."),
    ("Repeat the word image.", "image"),
    ("They play football.", "I see."),
    ("What does A4 mean for paper?", "A size."),
    ("How many is a dozen?", "Twelve."),
    ("The star of the film was good.", "I see."),
    ("Is blue a colour?", "Yes."),
    ("What note did she leave?", "I do not know."),
]
JOINED = ("{a} And {b}", "{a} Then {b}", "{a} Also, {b}", "First: {a} Second: {b}")


def filled(form: str, generator: str, draw: random.Random) -> tuple[str, str]:
    """Return a wording with its slots filled, and the prompt for the generator."""
    shape = f"a {draw.choice(COLOURS)} {draw.choice(SHAPES)}"
    shape = shape.replace("a orange", "an orange")
    note, other = draw.sample(NOTES, 2)
    hertz = str(draw.randrange(200, 1000, 10))
    digit = draw.choice(DIGITS)
    values = ", ".join(str(draw.randrange(1, 20)) for _ in range(draw.randrange(3, 6)))
    text, prompt = form, ""
    for slot, value, said in (
        ("{s}", shape, shape),
        ("{d}", digit, f"the digit {digit}"),
        ("{h}", hertz, f"{hertz} Hz"),
        ("{v}", values, values),
    ):
        if slot in text:
            text, prompt = text.replace(slot, value), said
    if "{n}" in text:
        prompt = note
        text = text.replace("{n}", note, 1)
        if "{n}" in text:
            text, prompt = text.replace("{n}", other), f"{note}, {other}"
    return text, prompt


def rows(test: bool, count: int, draw: random.Random) -> list[dict[str, object]]:
    """Return instructions: a quarter asks for nothing, a tenth for two things, the rest for one."""

    def part(forms: list) -> list:
        return forms[1::2] if test else forms[::2]

    made: list[dict[str, object]] = []
    while len(made) < count:
        share = draw.random()
        if share < 0.25:
            question, answer = draw.choice(part(NOTHING))
            x, y = draw.randrange(1, 20), draw.randrange(1, 20)
            said = [each.format(x=x, y=y, z=x + y) for each in (question, answer)]
            made.append({"instruction": said[0], "calls": [], "answer": said[1], "kind": "nothing"})
            continue
        hidden = draw.random() < 0.5
        forms, kind = (HIDDEN, "paraphrase") if hidden else (ASKED, "usual words")
        names = draw.sample(sorted(forms), 2 if share < 0.35 else 1)
        pairs = [(name, *filled(draw.choice(part(forms[name])), name, draw)) for name in names]
        text = pairs[0][1]
        if len(pairs) == 2:
            text = draw.choice(JOINED).format(a=text, b=pairs[1][1])
        calls = [{"name": name, "prompt": prompt} for name, _, prompt in pairs]
        made.append({"instruction": text, "calls": calls, "kind": kind})
    return made


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=6000)
    parser.add_argument("--test", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, test, count in (("train", False, given.train), ("test", True, given.test)):
        made = rows(test, count, random.Random(f"{given.seed} {name}"))
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
        (given.folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{given.folder / name}.jsonl: {count} instructions")


if __name__ == "__main__":
    main()
