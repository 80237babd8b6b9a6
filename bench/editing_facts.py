"""CounterFact and zsRE on a small model that was first tuned to know their true facts.

    python -m bench.editing_facts --out DIR [--limit N] [--quick] [--lambda 50 --lambda 500]

1. 1,000 conflict-free CounterFact edits (one paraphrase and one neighbour each, where the published
   file has two and ten) and all 500 zsRE edits of ``../shared/data/editing``.
2. A small Llama is trained from scratch until it knows the true facts: every edited prompt, every
   paraphrase and every neighbour with its right answer, among sentences of Wikipedia. Paraphrases are
   included because a model this small understands no language: a wording it has never seen is not a
   paraphrase to it. Nor does it know words it has never seen, and an edit cannot teach it one. So for
   every edit, the target is shown as true of an invented name, in the wording of the prompt and of its
   paraphrase ("The mother tongue of Norclazan Elquin is English"). The target is never shown as true of
   the edited subject. The masks of ``bench.editable`` make the model look facts up at the subject's
   last token; without them every edit scores 0.
3. ``modalign edit compare`` of all methods at 1,000 and at 500 edits gives S per method, and PMET
   against MEMIT with its interval. Settings are those of another small model (``SETTINGS`` below,
   AlphaEdit's two scaled to the size of the keys); none was chosen on these edits. ``--lambda``
   compares PMET and MEMIT again under other weights of the key covariance, reusing their values.

An interrupted step continues: run the same command again.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save

from bench.editable import (
    Family,
    Recipe,
    Tokens,
    attention_masks,
    build_model,
    draw_batch,
    learning_rate_share,
    masked_attention,
    tokenise,
    train_tokenizer,
)
from bench.invented import Document, Sentence, invent, join
from modalign.cli.console import bars, quiet_libraries
from modalign.editing.benchmarks.scores import Task
from modalign.editing.benchmarks.scoring import Question, score
from modalign.editing.compare.report import view
from modalign.editing.compare.request import CompareRequest
from modalign.editing.compare.results import EditComparison, Mode
from modalign.editing.compare.run import compare_edits
from modalign.editing.covariance_report import take_statistics
from modalign.editing.edits import Edit
from modalign.editing.engine.covariance import TOKENS
from modalign.editing.methods import METHODS
from modalign.editing.readers import read_edits
from modalign.files import new_folder, write_atomically
from modalign.models.parts import decoder_layers
from modalign.numbers import words as fmt

SHARED = Path(__file__).parents[2] / "shared" / "data"
EDITS = 1000
KNOWN = 0.95  # share of the true facts that the model must know
Kind = Literal["edited prompt", "paraphrase", "neighbour", "invented"]
# Those of ../shared/models/editable_gptj, whose FFN is as small relative to its residual stream as this one's.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "": {"covariance_weight": 5.0},
    "pmet": {"clamp": 4.0, "lr": 0.5},
    "ft": {"lr": 5e-3},
    "ft-l": {"layers": [0], "lr": 5e-3, "epsilon": 2e-2},
}
# AlphaEdit's threshold and L2 are not relative to the keys' size, as lambda is. On that model, whose keys
# have this mean square (the median of its layers), 0.02 and 0.1 were right.
KEY_SIZE, NULL_THRESHOLD, L2 = 0.078, 0.02, 0.1


WEIGHED = ("pmet", "memit")


@dataclass(frozen=True)
class Plan:
    """How large the model is, and how long it trains.

    Attributes:
        recipe: of the model and its training; ``steps`` follows from ``exposures``.
        exposures: how often every fact is seen on average.
        facts, names: shares of the documents' sentences that state a fact, and that only name a
            subject; the rest is other text.
    """

    recipe: Recipe
    exposures: int
    facts: float = 0.75
    names: float = 0.1


FULL = Plan(
    Recipe(
        vocabulary=6000,
        width=192,
        layers=6,
        heads=6,
        ffn=512,
        early=3,
        batch=32,
        length=64,
        lr=2e-3,
    ),
    exposures=40,
)
QUICK = Plan(
    Recipe(
        vocabulary=1500,
        width=96,
        layers=4,
        heads=4,
        ffn=320,
        early=2,
        batch=16,
        length=64,
        lr=4e-3,
    ),
    exposures=60,
)


@dataclass(frozen=True)
class Statement:
    """A true fact: a prompt, its answer, and where its subject stands, if known.

    Many of CounterFact's paraphrases begin with a sentence about something else. It would give the fact
    away without the subject, so it is trained separately: ``start`` is where the paraphrase proper begins.
    """

    kind: Kind
    prompt: str
    answer: str
    subject: tuple[int, int] | None
    start: int = 0

    @property
    def sentence(self) -> Sentence:
        """Return the sentence to train on, for a document."""
        place = self.subject and (self.subject[0] - self.start, self.subject[1] - self.start)
        return Sentence(f"{self.prompt[self.start :]} {self.answer}.", place)


# ---------------------------------------------------------------- what is true


def true_facts(edits: Sequence[Edit]) -> list[Statement]:
    """List every prompt of every edit with its true answer, and every target with an invented name."""
    templates = sorted({edit.relation for edit in edits if edit.protocol == "counterfact"})
    found: dict[str, Statement] = {}
    for edit in edits:
        if edit.truth is not None:
            at = edit.subject_at
            place = None if at is None else (at, at + len(edit.subject))
            one = Statement("edited prompt", edit.prompt, edit.truth, place)
            found.setdefault(edit.prompt, one)
            for prompt in edit.paraphrases:
                place = _find(prompt, edit.subject)
                start = _start(prompt, place[0]) if place else 0
                one = Statement("paraphrase", prompt, edit.truth, place, start)
                found.setdefault(prompt, one)
    for edit in edits:
        for neighbour in edit.neighbours:
            if neighbour.answer is not None:
                place = _subject_of(neighbour.prompt, templates)
                one = Statement("neighbour", neighbour.prompt, neighbour.answer, place)
                found.setdefault(neighbour.prompt, one)
    names = invent(len(edits), 1, 1, seed=0).subjects
    for edit, name in zip(edits, names, strict=True):
        for one in _invented(edit, name):
            found.setdefault(one.prompt, one)
    return list(found.values())


def _invented(edit: Edit, name: str) -> list[Statement]:
    """State the target of an invented name, in the wordings of the edited prompt and of a paraphrase.

    With one answer per wording, the wording alone would determine it, and the subject would not be read.
    """
    prompts = [edit.relation.replace("{}", name)]
    for prompt in edit.paraphrases:
        place = _find(prompt, edit.subject)
        if place:
            proper = prompt[_start(prompt, place[0]) :]
            prompts.append(proper.replace(edit.subject, name))
    return [Statement("invented", p, edit.target, _find(p, name)) for p in prompts]


def _start(prompt: str, subject: int) -> int:
    """Return where the sentence with the subject begins."""
    ends = [prompt.rfind(mark, 0, subject) for mark in (". ", "? ", "! ")]
    return max(ends) + 2 if max(ends) >= 0 else 0


def _find(prompt: str, subject: str) -> tuple[int, int] | None:
    at = prompt.find(subject)
    return None if at < 0 else (at, at + len(subject))


def _subject_of(prompt: str, templates: Sequence[str]) -> tuple[int, int] | None:
    """Find a neighbour's subject: what the closest known template has as ``{}``."""
    places = []
    for template in templates:
        before, _, after = template.partition("{}")
        if prompt.startswith(before) and prompt.endswith(after):
            places.append((len(before), len(prompt) - len(after)))
    return min((p for p in places if p[0] < p[1]), key=lambda p: p[1] - p[0], default=None)


def write_documents(
    facts: Sequence[Statement], edits: Sequence[Edit], others: Sequence[str], plan: Plan
) -> list[Document]:
    """Write documents of one to four sentences in which every fact is stated six times."""
    rng = random.Random(plan.recipe.seed)
    subjects = sorted({edit.subject for edit in edits})
    documents = []
    for _ in range(6):
        waiting = rng.sample(facts, len(facts))
        while waiting:
            sentences = [waiting.pop().sentence]
            while len(sentences) < 4 and rng.random() < 0.6:
                draw = rng.random()
                if draw < plan.facts and waiting:
                    sentences.append(waiting.pop().sentence)
                elif draw < plan.facts + plan.names:
                    name = rng.choice(subjects)
                    sentences.append(Sentence(f"{name} is a name.", (0, len(name))))
                else:
                    sentences.append(Sentence(rng.choice(others)))
            rng.shuffle(sentences)
            documents.append(join(sentences))
    return documents


def other_sentences(longest: int = 160) -> tuple[list[str], list[str]]:
    """Read sentences of Wikipedia to train among, and paragraphs that are never trained on."""
    text = (SHARED / "text" / "wiki_demo.txt").read_text(encoding="utf-8")
    sentences = [part.strip() + "." for part in re.split(r"\.(?=[A-Z\s])", text) if part.strip()]
    cut = len(sentences) * 9 // 10
    trained = [sentence for sentence in sentences[:cut] if 20 < len(sentence) < longest]
    held_out = [" ".join(sentences[at : at + 10]) for at in range(cut, len(sentences), 10)]
    return trained, held_out


# ---------------------------------------------------------------- the model


def train(
    model: Any, documents: Sequence[Tokens], recipe: Recipe, file: Path, progress: Any
) -> None:
    """Train language modelling with the masks on most batches, continuing from ``file``."""
    rng = random.Random(recipe.seed)
    layers = decoder_layers(model.get_decoder())
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0.01)
    first = _restore(file, model, optimiser, rng)
    model.train()
    for step in range(first + 1, recipe.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = recipe.lr * learning_rate_share(step - 1, recipe.steps)
        batch = draw_batch(documents, recipe, rng)
        with ExitStack() as stack:
            if rng.random() < recipe.masked:
                early, late = attention_masks(batch.mention, batch.last)
                masks = [early if i < recipe.early else late for i in range(len(layers))]
                stack.enter_context(masked_attention(layers, masks))
            loss = model(input_ids=batch.ids, labels=batch.ids, use_cache=False).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        progress(f"tuning the true facts in (loss {loss.item():.2f})", step, recipe.steps)
        if step % 100 == 0 and step < recipe.steps:
            _keep(file, model, optimiser, rng, step)
    model.eval()


def _keep(
    file: Path, model: Any, optimiser: torch.optim.Optimizer, rng: random.Random, step: int
) -> None:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{name}": value for name, value in state.items()}
    meta = {"step": str(step), "rng": json.dumps(rng.getstate())}
    write_atomically(file, save(tensors, metadata=meta))


def _restore(file: Path, model: Any, optimiser: torch.optim.Optimizer, rng: random.Random) -> int:
    """Restore an interrupted training; return the steps it had done."""
    if not file.exists():
        return 0
    with safe_open(file, framework="pt") as held:
        tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
        meta = held.metadata()
    weights = {n.removeprefix("model."): v for n, v in tensors.items() if n.startswith("model.")}
    model.load_state_dict(weights)
    states: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, number, part = name.split(".", 2)
            states.setdefault(int(number), {})[part] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": states, "param_groups": groups})
    version, words, gauss = json.loads(meta["rng"])
    rng.setstate((version, tuple(words), gauss))
    return int(meta["step"])


def make_model(
    folder: Path, edits: Sequence[Edit], plan: Plan, family: Family, progress: Any
) -> dict[str, float]:
    """Train the model into ``folder``, with its texts; return what it knows, by kind."""
    known = folder / "known.json"
    if known.exists():
        found: dict[str, float] = json.loads(known.read_text(encoding="utf-8"))
        return found
    facts = true_facts(edits)
    others, held_out = other_sentences()
    beginnings = sorted({fact.prompt[: fact.start].strip() for fact in facts if fact.start})
    others = [*others, *beginnings * (1 + len(others) // (2 * max(1, len(beginnings))))]
    documents = write_documents(facts, edits, others, plan)
    texts = [document.text for document in documents]
    tokenizer = train_tokenizer([*texts, *others], plan.recipe.vocabulary)
    tokens = tokenise(tokenizer, documents)
    seen = plan.exposures / 6 * sum(len(document.ids) for document in tokens)
    recipe = replace(plan.recipe, steps=round(seen / (plan.recipe.batch * plan.recipe.length)))
    torch.manual_seed(recipe.seed)
    model = build_model(family, recipe, len(tokenizer))
    checkpoint = folder.with_suffix(".training")
    began = time.perf_counter()
    train(model, tokens, recipe, checkpoint, progress)
    shares = knowledge(model, tokenizer, facts, progress)
    shares["seconds of tuning, this run"] = time.perf_counter() - began
    with new_folder(folder) as made:
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        (made / "corpus.json").write_text(json.dumps(texts[:4000]))
        (made / "held_out.json").write_text(json.dumps(held_out))
        (made / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2))
        (made / "known.json").write_text(json.dumps(shares, indent=2))
    checkpoint.unlink(missing_ok=True)
    return shares


def knowledge(
    model: Any, tokenizer: Any, facts: Sequence[Statement], progress: Any
) -> dict[str, float]:
    """Return kind -> share of facts whose answer is the first choice at every token, without masks."""
    questions = [Question(fact.prompt, (fact.answer,)) for fact in facts]
    scores = score(model, tokenizer, questions, progress=progress)
    right: dict[str, list[bool]] = {"all": []}
    for fact, (found,) in zip(facts, scores, strict=True):
        for kind in ("all", fact.kind):
            right.setdefault(kind, []).append(found.right)
    return {kind: sum(values) / len(values) for kind, values in right.items()}


# ---------------------------------------------------------------- the comparison


def compare(
    task: Task,
    edits: Sequence[Edit],
    model: Path,
    out: Path,
    plan: Plan,
    modes: tuple[Mode, ...],
    progress: Any,
    said: Callable[[str], None],
    weight: float | None = None,
) -> EditComparison:
    """Compare all methods on one file's edits; with a ``weight`` of C0, only the two that use lambda."""
    file = out / f"{task}.json"
    folder = folder_of(out, task, weight)
    if weight is not None:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "cache").exists():
            (folder / "cache").symlink_to(Path("..") / task / "cache")
    write_atomically(file, json.dumps([_plain(edit) for edit in edits], ensure_ascii=False))
    early = list(range(plan.recipe.early))
    layers = {"pmet": early, "memit": early, "alphaedit": early, "rome": early[-1:]}
    layers["ft"] = early[-1:]
    settings = {name: dict(SETTINGS.get(name, {})) for name in ("", *METHODS)}
    for name, chosen in layers.items():
        settings[name]["layers"] = chosen
    if weight is not None:
        settings[""]["covariance_weight"] = weight
    scale = key_size(model, early, out / task / "cache") / KEY_SIZE
    settings["alphaedit"] |= {"null_threshold": NULL_THRESHOLD * scale, "l2": L2 * scale}
    request = CompareRequest(
        model=str(model),
        edits=file,
        out=folder,
        methods=tuple(METHODS) if weight is None else WEIGHED,
        sizes=(len(edits),),
        modes=modes,
        task=task,
        text=model / "corpus.json",
        held_out=model / "held_out.json",
        settings=settings,
        table=len(edits) if len(edits) <= 200 else None,
        resume=True,
        command=f"python -m bench.editing_facts --out {out}",
    )
    return compare_edits(request, progress, said)


def folder_of(out: Path, task: str, weight: float | None) -> Path:
    """Return the folder that a comparison is written to."""
    return out / (task if weight is None else f"{task}-lambda-{weight:g}")


def key_size(model: Path, layers: Sequence[int], cache: Path) -> float:
    """Return the mean square of a key's entries, as the median over layers."""
    found = take_statistics(
        str(model),
        text=model / "corpus.json",
        layers=",".join(map(str, layers)),
        tokens=TOKENS,
        seed=0,
        device=None,
        dtype=None,
        cache=cache,
        progress=None,
    )
    return statistics.median(layer.trace / layer.width for layer in found.layers)


def _plain(edit: Edit) -> dict[str, Any]:
    """Write an edit as a record of the plain layout."""
    return {
        "id": edit.id,
        "subject": edit.subject,
        "prompt": edit.prompt,
        "target": edit.target,
        "truth": edit.truth,
        "paraphrases": list(edit.paraphrases),
        "neighbours": [{"prompt": n.prompt, "answer": n.answer} for n in edit.neighbours],
    }


def show(comparison: EditComparison) -> None:
    """Print the scores, and PMET against MEMIT."""
    size = comparison.sizes[-1]
    names = [comparison.headline, *comparison.parts]
    for mode in comparison.modes:
        print(f"\n{comparison.task}, {size} edits, {mode}; 95 % intervals over edits")
        print(f"  {'':10}" + "".join(f"{name:>24}" for name in names))
        for reference in comparison.references:
            if reference.size in (size, None):
                cells = [fmt.interval(reference.metrics.get(name)) for name in names]
                print(f"  {reference.name:10}" + "".join(f"{cell:>24}" for cell in cells))
        for info in comparison.methods:
            point = comparison.point(info.name, mode, size)
            cells = [fmt.interval(point.metrics.get(n)) for n in names] if point else ["no result"]
            print(f"  {info.title:10}" + "".join(f"{cell:>24}" for cell in cells))
        print(f"  {view.headline_pair(comparison, mode)}")


def check_folder(out: Path, asked: dict[str, Any]) -> None:
    """Refuse a folder whose model was made with other options."""
    file = out / "asked.json"
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != asked:
        raise SystemExit(f"{out} holds another size or family of this bench: choose another --out")
    write_atomically(file, json.dumps(asked, indent=2))


def main() -> None:
    """Tune, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="CounterFact edits; half as many of zsRE")
    parser.add_argument("--quick", action="store_true", help="60 edits, a smaller model: minutes")
    parser.add_argument("--family", choices=("llama", "gptj"), default="llama")
    parser.add_argument("--modes", default="batch")
    parser.add_argument(
        "--lambda",
        dest="weights",
        type=float,
        action="append",
        default=[],
        help="repeat for several",
    )
    parser.add_argument("--only-model", action="store_true", help="stop when the facts are in")
    arguments = parser.parse_args()
    quiet_libraries()
    plan = QUICK if arguments.quick else FULL
    count = arguments.limit or (40 if arguments.quick else EDITS)
    files = {"counterfact": count, "zsre": max(1, count // 2)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    check_folder(arguments.out, {"edits": files, "plan": asdict(plan), "family": arguments.family})
    with bars() as progress:
        edits = {
            task: read_edits(SHARED / "editing" / f"{task}.json", conflicting="first", limit=limit)
            for task, limit in files.items()
        }
        every = [edit for found in edits.values() for edit in found]
        folder = arguments.out / "model"
        known = make_model(folder, every, plan, arguments.family, progress)
    for kind, share in known.items():
        print(f"{kind}: {share:.1%}" if share <= 1 else f"{kind}: {share:.0f}")
    if known["all"] < KNOWN:
        print(f"less than {KNOWN:.0%} of the true facts are known: the scores below say less")
    print(
        "CounterFact here has one paraphrase and one neighbour per edit (published: two and ten). "
        "Edited prompts, paraphrases and neighbours were tuned in with their true answers."
    )
    if arguments.only_model:
        return
    modes: Any = tuple(arguments.modes.split(","))
    for weight in (None, *arguments.weights):
        for task in ("counterfact", "zsre"):
            said: list[str] = []
            with bars() as progress:
                found = compare(
                    task,
                    edits[task],
                    folder,
                    arguments.out,
                    plan,
                    modes,
                    progress,
                    said.append,
                    weight,
                )
            if weight is not None:
                print(f"lambda {weight:g}")
            show(found)
            print(f"  report: {folder_of(arguments.out, task, weight) / 'report.html'}")


if __name__ == "__main__":
    main()
