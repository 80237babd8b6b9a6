"""Edit facts about digits in a model that reads pictures: where can it be edited, and what transfers?

    modalign train --method pixel_shuffle_mlp --budget 40000samples --factor 1 --out runs/psm
    python -m bench.multimodal runs/psm/model --out runs/edits

There are ten edits, one per digit: its parity is reversed ("is seven even or odd?" is to be answered
"even"), each as a separate patch on the unedited model. Only pictures of the evaluation scans are used
to measure; the edited picture is of a validation scan.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from modalign.data.corpus import Corpus
from modalign.editing.benchmarks.multimodal import evaluate_multimodal
from modalign.editing.computation import Options
from modalign.editing.edits import Edit
from modalign.editing.methods import method_named
from modalign.editing.multimodal.pictures import Pictures, read_pictures
from modalign.editing.readers import read_edits
from modalign.models.open import open_model
from modalign.numbers.bootstrap import redrawn_means
from modalign.patches import view
from modalign.starter import language
from modalign.starter.build import starter
from modalign.starter.scenes import CELLS, WORDS, Scene, Split, render, scans, split_scans

SETTINGS: dict[str, Any] = {
    "lookup": "last",
    "layers": [2],
    "clamp": 2.0,
    "lr": 0.2,
    "steps": 40,
    "contexts": [],
    "tokens": 30_000,
}
RIDGE = {"covariance_weight": 20.0}
PLACES = (("text", "subject"), ("text", "last"), ("image", "visual"), ("image", "last"))
MEASURES = (
    "reliability",
    "image_generality",
    "text_reliability",
    "text_generality",
    "image_locality",
    "text_locality",
    "image_locality_kl",
    "image_locality_easyedit",
    "text_locality_easyedit",
)
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "text rows only": ("memit", {**RIDGE, "rewrite": "text"}),
    "picture rows only": ("memit", {**RIDGE, "rewrite": "image"}),
    "both, a key each": ("memit", RIDGE),
    "both, a key each, no C_image": ("memit", {**RIDGE, "image_weight": 0.0}),
    "both, one joint key": ("memit", {**RIDGE, "image_keys": "joint"}),
    "both, no variants": ("memit", {**RIDGE, "variants": 0}),
    "subject and last, layer 1": ("memit", {**RIDGE, "lookup": "auto", "layers": [1]}),
    "last, layer 1": ("memit", {**RIDGE, "layers": [1]}),
    "PMET": ("pmet", RIDGE),
    "PMET, clamp 8, layers 1 and 2": ("pmet", {**RIDGE, "clamp": 8.0, "layers": [1, 2]}),
    "PMET without the attention's vector": ("pmet", {**RIDGE, "attention_vector": False}),
    "ROME": ("rome", {}),
    "AlphaEdit": ("alphaedit", {"l2": 0.1}),
    "FT": ("ft", {"lr": 5e-3}),
}


def single(digit: int, split: Split, rng: np.random.Generator) -> Any:
    """Make a scene of one digit, a (48, 48) picture."""
    rows = [int(row) for row in split_scans(split) if scans()[1][row] == digit]
    cells: list[int | None] = [None] * 4
    cells[int(rng.integers(4))] = digit
    a, b, c, d = cells
    return render(Scene((a, b, c, d), (int(rng.choice(rows)),)), rng)


def write_edits(folder: Path, seed: int = 11) -> Path:
    """Write the ten edits with their pictures; return the file."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)

    def picture(digit: int, split: Split, name: str) -> str:
        single(digit, split, rng).save(images / f"{name}.png")
        return f"images/{name}.png"

    rows = []
    for digit in range(10):
        word, others = WORDS[digit], [other for other in range(10) if other != digit]
        rows.append(
            {
                "id": word,
                "subject": word,
                "prompt": "is {} even or odd?",
                "target": parity(digit + 1),
                "truth": parity(digit),
                "paraphrases": [f"{cell} {word} is the digit even or odd?" for cell in CELLS],
                "image": picture(digit, "val", word),
                "image_prompt": "is the digit even or odd?",
                "other_images": [picture(digit, "eval", f"{word}-{k}") for k in range(12)],
                "neighbours": [
                    *_text_neighbours(word, others),
                    *(
                        {
                            "prompt": "is the digit even or odd?",
                            "answer": parity(other),
                            "image": picture(other, "eval", f"{word}-other-{k}"),
                        }
                        for k, other in enumerate(others)
                    ),
                    *(
                        {"prompt": asked, "image": picture(digit, "eval", f"{word}-same-{k}")}
                        for k, asked in enumerate(
                            ["which digit is this?", "which number comes next?"] * 4
                        )
                    ),
                ],
            }
        )
    file = folder / "edits.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def parity(number: int) -> str:
    """Return a number's parity in words."""
    return "odd" if number % 2 else "even"


def _text_neighbours(word: str, others: list[int]) -> Iterator[dict[str, str]]:
    for other in others:
        yield {"prompt": f"is {WORDS[other]} even or odd?", "answer": parity(other)}
        scene = f"{CELLS[other % 4]} {WORDS[other]}"
        yield {"prompt": f"{scene} is the digit even or odd?", "answer": parity(other)}
        total = WORDS[other + WORDS.index(word)]
        yield {"prompt": f"what is {word} plus {WORDS[other]}?", "answer": total}


class Bench:
    """One model, its edits and the data of its key statistics."""

    def __init__(self, model: Path, out: Path) -> None:
        self.model, self.reader = open_model(model)
        self.edits = read_edits(write_edits(out))
        self.text = Corpus("the starter's text", list(islice(language.corpus(123), 1500)))
        self.pictures: Pictures = read_pictures(starter().train, limit=1500)
        self.cache = out / "cache"

    def patches(self, method: str, settings: dict[str, Any], edits: list[list[Edit]]) -> list[Any]:
        """Compute one patch per group of edits."""
        kind = method_named(method)
        fields = kind.config_class.model_fields
        chosen = {key: value for key, value in SETTINGS.items() if key in fields} | settings
        config = kind.config_class.model_validate(chosen)
        options = Options(corpus=self.text, pictures=self.pictures, cache=self.cache)
        return [
            kind(config).compute(self.model, self.reader, group, options=options) for group in edits
        ]

    def where(self) -> None:
        """Print the targets' mean probability with a vector added, by layer and lookup token."""
        print("| layer | text: subject | text: last | picture: last visual | picture: last |")
        print("|---|---|---|---|---|")
        for layer in range(4):
            cells = []
            for rows, lookup in PLACES:
                chosen = {**RIDGE, "layers": [layer], "rewrite": rows, "lookup": lookup}
                [patch] = self.patches("memit", chosen, [self.edits])
                found = [edit.probability for edit in patch.header.editing.edits]
                cells.append(f"{np.mean(found):.2f}")
            print(f"| {layer} | " + " | ".join(cells) + " |", flush=True)

    def run(self, method: str, settings: dict[str, Any]) -> None:
        """Write each edit separately; print the means over edits with their intervals."""
        rows: list[dict[str, float]] = []
        patches = self.patches(method, settings, [[edit] for edit in self.edits])
        for edit, patch in zip(self.edits, patches, strict=True):
            found = evaluate_multimodal(
                view(self.model, patch),
                self.reader,
                [edit],
                base=self.model,
                generate=False,
                resamples=10,
            )
            rows.append({name: found.metrics[name].value for name in MEASURES})
        cells = [_cell([row[name] for row in rows], name) for name in MEASURES]
        print(" | ".join(cells), "|", flush=True)

    def before(self) -> None:
        """Print the unedited model's row."""
        found = evaluate_multimodal(self.model, self.reader, self.edits, generate=False)
        print("| chance |", " | ".join(_share(found.chance.get(n)) for n in MEASURES), "|")
        print("| before |", " | ".join(_number(found.metrics[n].value, n) for n in MEASURES), "|")


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _number(value: float, name: str) -> str:
    return f"{value:.3f}" if name.endswith("_kl") else f"{value:.0f}"


def _cell(values: list[float], name: str) -> str:
    drawn = redrawn_means({"v": np.array(values)}, 2000, 0)["v"]
    low, high = np.percentile(drawn[1:], [2.5, 97.5])
    return f"{_number(drawn[0], name)} ({_number(low, name)} to {_number(high, name)})"


def main() -> None:
    """Print both tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="Names of runs.")
    given = parser.parse_args()
    bench = Bench(given.model, given.out)
    if not given.only:
        bench.where()
    print("\n| rewriting |", " | ".join(MEASURES), "|")
    print("|---" * (len(MEASURES) + 1) + "|")
    bench.before()
    for name, (method, settings) in RUNS.items():
        if not given.only or name in given.only:
            print(f"| {name} | ", end="")
            bench.run(method, settings)


if __name__ == "__main__":
    main()
