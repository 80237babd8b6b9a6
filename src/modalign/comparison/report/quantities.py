"""The reported figures of a method: name, field, unit and meaning.

Shared by tables, charts, Markdown and the terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modalign.comparison.results import Comparison, MethodResult, ReferenceRow
from modalign.numbers.estimate import Estimate
from modalign.numbers.words import MISSING
from modalign.pages.figures import Series
from modalign.pages.parts import Cell, Quantity

FAMILIES = {
    name: Series(name, number)
    for number, name in enumerate(("converter", "perceiver", "tool", "data"))
}
DIFFERENCE = "difference of shares"


def ranked(methods: Sequence[MethodResult]) -> list[MethodResult]:
    """Best validation rank first, failures last."""
    return sorted(methods, key=lambda m: (m.rank is None, m.rank or 0, m.name))


def places(comparison: Comparison) -> dict[str, str]:
    """Return displayed ranks: ``=2`` for methods that are indistinguishable on validation data.

    These are the best method with those as good as it, and methods with equal validation accuracy.
    """
    methods = [m for m in ranked(comparison.methods) if m.rank is not None]
    found = comparison.recommendation
    best = [m for m in methods if found and m.name in found.indistinguishable]
    shown = {}
    for method in methods:
        equal = [m for m in methods if m.val_accuracy == method.val_accuracy]
        tied = best if method in best and len(best) > len(equal) else equal
        shown[method.name] = f"{'=' if len(tied) > 1 else ''}{tied[0].rank}"
    return shown


def rank_of(comparison: Comparison) -> Quantity:
    """The rank, with ties shown as ties."""
    shown = places(comparison)
    return Quantity(
        "Rank",
        lambda row: Cell(shown.get(row.name, MISSING), key=getattr(row, "rank", None)),
        meaning="by validation accuracy; = marks methods that validation cannot tell from each other",
    )


def method_of(comparison: Comparison) -> Quantity:
    """The name with its family's mark, and its status."""
    chosen = comparison.recommendation.method if comparison.recommendation else None

    def cell(row: MethodResult | ReferenceRow) -> Cell:
        if isinstance(row, ReferenceRow):
            return Cell(row.name, key=row.name)
        note = "recommended" if row.name == chosen else ""
        return Cell(row.name, note, row.name, mark=FAMILIES[row.family], hint=row.family)

    return Quantity("Method", cell)


def _accuracy(row: MethodResult | ReferenceRow) -> Estimate | None:
    return row.accuracy if isinstance(row, ReferenceRow) else row.accuracy_interval


def _reach(row: MethodResult | ReferenceRow, part: str) -> Cell | None:
    found = _accuracy(row)
    reach = getattr(found, part) if found else None
    return None if reach is None else Cell(f"±{reach * 100:.1f}", key=reach)


def _serving(row: Any) -> Cell | None:
    """The export rung, and programs that can serve the method."""
    if isinstance(row, ReferenceRow):
        return None
    return Cell(row.serving, ", ".join(row.served_by), key=row.serving)


NAME = Quantity("Method", "name")
ACCURACY = Quantity(
    "Accuracy (95 %)", _accuracy, "share", "on evaluation data, with its 95 % interval", drawn=True
)
TRAINED = Quantity(
    "Trainings",
    lambda row: len(row.seeds) if getattr(row, "seeds", None) else None,
    "count",
    "how often this method was trained; trained once, its spread is that of the others",
)
REACHES = (
    Quantity(
        "By questions",
        lambda row: _reach(row, "by_questions"),
        meaning="points that the interval would reach on each side if only questions were drawn again",
    ),
    Quantity(
        "By trainings",
        lambda row: _reach(row, "by_trainings"),
        meaning="the same for trainings; a dash where no method was trained twice, and nothing is known of it",
    ),
)
VALIDATION = Quantity(
    "Validation",
    "val_accuracy",
    "share",
    "accuracy on validation data, which the rank and the recommendation come from",
)
BLANK = Quantity(
    "Gain over blank",
    "image_gain_blank",
    DIFFERENCE,
    "points lost when the medium is replaced by a blank one: does the model look at all?",
    bare=True,
)
TRAINABLE = Quantity("Trainable", "trainable_parameters", "count", "trainable parameters")
TOKENS = Quantity(
    "Tokens", "tokens", "count", "positions that one item takes in the language model's input"
)
FLOPS = Quantity("Training compute", "flops", "flops", "FLOPs of training, all stages, one seed")
INFERENCE = Quantity("Compute per answer", "inference_flops", "flops", "FLOPs of one item, forward")
SECONDS = Quantity("Training time", "seconds", "seconds", "one seed, learning-rate trials included")
ANSWER = Quantity(
    "First answer",
    "time_to_first_answer",
    "seconds",
    "time to the first answer to one item, encoder included",
)
SERVING = Quantity(
    "Serving",
    _serving,
    meaning="the form it is saved in (native: a class of transformers; remote-code: with its own few "
    "files; tools: beside a language model), and what can serve it",
)

RANKING = (ACCURACY, TRAINED, VALIDATION, BLANK, TRAINABLE, TOKENS, INFERENCE, SECONDS, ANSWER)
QUALITY = (
    Quantity("Family", "family"),
    TRAINED,
    *REACHES,
    VALIDATION,
    Quantity(
        "Untrained",
        "untrained_accuracy",
        "share",
        "accuracy of the same model before its first step",
        bare=True,
    ),
    Quantity("Transfer", "transfer", "share", "accuracy on the skill nobody trained on", bare=True),
    BLANK,
    Quantity(
        "Gain over shuffled",
        "image_gain_shuffled",
        DIFFERENCE,
        "points lost when the medium is another question's",
        bare=True,
    ),
    Quantity(
        "Hallucination F1",
        "hallucination.f1",
        "share",
        "F1 on questions of yes and no, as POPE counts; all measures stand under Hallucination",
        bare=True,
    ),
    Quantity(
        "Says yes",
        "hallucination.yes_rate",
        "share",
        "share of yes on questions of yes and no",
        bare=True,
    ),
    Quantity(
        "MIR",
        "mir",
        meaning="modality integration rate (arXiv 2410.07167): lower is a smaller gap; prefix methods only",
    ),
)
COSTS = (TRAINABLE, TOKENS, FLOPS, INFERENCE, SECONDS, ANSWER)
ALL_COSTS = (
    *COSTS,
    Quantity("Peak memory", "peak_memory", "bytes", "highest memory while training"),
    SERVING,
)
YES_NO = (
    Quantity("Accuracy", "accuracy"),
    Quantity("Precision", "precision", meaning="of the answers yes, the share that is right"),
    Quantity(
        "Recall", "recall", meaning="of the questions whose answer is yes, the share answered so"
    ),
    Quantity("F1", "f1", meaning="harmonic mean of precision and recall"),
    Quantity("Says yes", "yes_rate", meaning="share of questions answered yes"),
)
FORETOLD = (
    Quantity("Method", "method"),
    Quantity("Accuracy there (95 %)", "accuracy", "share", "on validation questions", drawn=True),
    Quantity("Best there", "best", "share", "probability that it is the best"),
    Quantity("Rate", "rate", "score", "of the fall of log losses, from the trial to the end"),
    Quantity(
        "Loss foretold by the trial",
        "past",
        meaning="for the end of training, from its trial and the rates of the other methods",
    ),
    Quantity("Loss that happened", "happened"),
)
CROSSINGS = (
    Quantity("Leads now", "leader"),
    Quantity("Is behind now", "behind"),
    Quantity("Level at", "budget", "count", "in the unit of the budget"),
    Quantity("Turned by then", "probability", "share", "probability at the larger budget"),
)
TRAININGS = (
    Quantity("Method", "method.name"),
    Quantity("Seed", "run.seed", "count"),
    Quantity("Samples", "run.samples", "count"),
    Quantity("Validation loss", "run.val_loss", "score"),
    Quantity("Validation", "run.val_accuracy", "share"),
    Quantity("Accuracy", "run.accuracy", "share"),
    Quantity("Learning rate", "method.learning_rate", "learning rate"),
)
