"""Settings measured on the user's own model: what ``edit suggest`` prints and ``edit run`` uses.

A search (``search``) tries settings by writing probe edits (``probes``) with the method itself
(``trials``). The result is kept under a hash of the model, the method, the settings that the user chose
and the kind of edits; the next run with that model takes it from there.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from modalign.cache import cache_directory
from modalign.configuration import validated
from modalign.editing.computation import KeyStatistics, Notes, Options, Plan
from modalign.editing.config import ValueConfig
from modalign.editing.edits import Edit
from modalign.editing.engine.asking import Asking
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.engine.store import weights_hash
from modalign.editing.layers.probes import Candidate, make_probes
from modalign.editing.layers.search import FEW, SHALLOW, USELESS, candidate_layers, find
from modalign.editing.layers.trials import Bench, Trial
from modalign.editing.methods.base import Method, ValueMethod
from modalign.files import write_atomically
from modalign.hashing import tokenizer_hash
from modalign.models.asking import tokenizer_of
from modalign.patches.apply import applied
from modalign.patches.header import patch_hash
from modalign.version import __version__

MANY = 32  # probes at most; at least ``FEW``, and between the two as many as there are edits
RULE = 7  # raised when the search changes, so that settings found by an older rule are searched for again
# Rewriting prompts unless the user says otherwise: bare, after a word or two, and after whole sentences,
# with a key for each row. A mean of keys fits no wording that starts differently.
# A limit that suits most edits is too tight for some; only those get a wider one.
REWRITING: dict[str, Any] = {
    "keys": "rows",
    "context_tokens": [1, 2, 4, 7, 10],
    "widen": 2,
    "patience": 4,
}

CONTEXTS_DEEP = [1, 4, 10]  # in a deep model every row of a value is expensive

Verdict = Literal["works", "weak"]


class Suggestion(BaseModel):
    """The settings proposed for one method, and what they rest on.

    Attributes:
        model: a description of its parts.
        method: its name.
        verdict: ``works``, or ``weak`` if nothing that was tried changed the model's answers reliably.
        settings: fields of the method's configuration, for ``--set``.
        layers: those written, ascending.
        z_layer: the last of them, where the value is added.
        probes: number of facts that were written.
        own: how many of these are things the model says of its own accord.
        best: what the proposed settings did to the probes.
        trials: everything that was tried, in order.
        sentences: the proposal in words.
        command: one that uses the settings; empty until the model and the edits are named.
    """

    model: str
    method: str
    verdict: Verdict
    settings: dict[str, Any]
    layers: list[int]
    z_layer: int
    probes: int
    own: int
    best: Trial
    trials: list[Trial]
    sentences: list[str]
    command: str = ""

    def for_files(self, model: str, edits: str) -> Suggestion:
        """Add the command for a model and a file of edits."""
        words = ["modalign", "edit", "run", model, edits, "-o", "fix.safetensors"]
        words += ["--method", self.method, "--settings", "published"]
        for name, value in self.settings.items():
            words += ["--set", f"{name}={json.dumps(value, separators=(',', ':'))}"]
        return self.model_copy(update={"command": shlex.join(words)})


def measured(
    spec: ModelSpec,
    reader: Any,
    kind: type[Method],
    candidates: Sequence[Candidate],
    edits: Sequence[Edit],
    *,
    fixed: dict[str, Any] | None = None,
    options: Options | None = None,
    seed: int = 0,
    again: bool = False,
) -> Suggestion:
    """Return settings for a method on a model: found before, or searched for now.

    Args:
        spec: the model, unedited; it is left bit for bit unchanged.
        reader: its tokenizer or processor.
        kind: the method, one that optimises values.
        candidates: facts that the model may know.
        edits: what is to be written; their number decides the number of probes.
        fixed: settings that the user chose.
        options: text for statistics, patches below, cache, progress.
        seed: of the probes.
        again: search even if settings were found before.

    Raises:
        DataError: there is nothing to probe with.
        UsageError: a setting does not exist.
    """
    options, fixed = options or Options(), dict(fixed or {})
    assert issubclass(kind, ValueMethod)
    fixed["template"] = Asking(reader, fixed.get("template", "auto")).template
    count = min(MANY, max(FEW, len(edits)))
    file = _file(spec, reader, kind, fixed, count, options, seed)
    if not again and (kept := _kept(file)) is not None:
        return kept
    options.said(
        f"measuring settings of {kind.name} on this model with {count} probe facts; the next run finds "
        "them again"
    )
    bench = _bench(spec, reader, kind, candidates, edits, fixed, options, count, seed)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as values:
        for patch in options.below:
            stack.enter_context(applied(spec.model, patch))
        bench.plan = replace(
            bench.plan, options=replace(bench.plan.options, cache=Path(values), resume=True)
        )
        best = find(bench, options.progress or (lambda name, done, total: None))
    found = _suggestion(spec, kind.name, bench, best)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, found.model_dump_json(indent=1).encode())
    return found


def _bench(
    spec: ModelSpec,
    reader: Any,
    kind: type[ValueMethod],
    candidates: Sequence[Candidate],
    edits: Sequence[Edit],
    fixed: dict[str, Any],
    options: Options,
    count: int,
    seed: int,
) -> Bench:
    base = dict(REWRITING)
    if spec.depth > SHALLOW:
        base["context_tokens"] = CONTEXTS_DEEP
    if "contexts" in fixed:
        del base["context_tokens"]
    method = kind(validated(kind.config_class, base | fixed, kind.name))
    config: ValueConfig = method.config
    asking = Asking(reader, config.template)
    probes = make_probes(spec, asking, candidates, edits, wanted=count, seed=seed)
    layers = candidate_layers(spec, fixed.get("layers"))
    plan = Plan.make(
        spec, reader, probes.edits, config, options, layers=layers, contexts=method.contexts()
    )
    statistics = KeyStatistics.collect(plan, config.tokens, config.image_weight)
    quiet = replace(plan, options=Options(below=options.below), notes=Notes(lambda message: None))
    return Bench(spec, kind, base, fixed, quiet, replace(statistics, notes=quiet.notes), probes)


def _file(
    spec: ModelSpec,
    reader: Any,
    kind: type[Method],
    fixed: dict[str, Any],
    count: int,
    options: Options,
    seed: int,
) -> Path:
    """Return the file where settings for this model are kept."""
    what = [
        RULE,
        weights_hash(spec),
        tokenizer_hash(tokenizer_of(reader)),
        kind.name,
        fixed,
        count > 2 * FEW,
        options.corpus.sha256 if options.corpus else None,
        [patch_hash(patch) for patch in options.below],
        seed,
        __version__,
    ]
    name = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()
    return (options.cache or cache_directory()) / "edit-settings" / f"{name}.json"


def _kept(file: Path) -> Suggestion | None:
    try:
        return Suggestion.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _suggestion(spec: ModelSpec, method: str, bench: Bench, best: Trial) -> Suggestion:
    found = Suggestion(
        model=spec.describe(),
        method=method,
        verdict="works" if best.score >= USELESS else "weak",
        settings=best.settings,
        layers=best.layers,
        z_layer=best.layers[-1],
        probes=len(bench.probes.edits),
        own=bench.probes.own,
        best=best,
        trials=bench.done,
        sentences=[],
    )
    found.sentences = _words(found)
    return found


def _words(found: Suggestion) -> list[str]:
    best, first, last = found.best, found.layers[0], found.layers[-1]
    named = f"layer {last}" if first == last else f"layers {first} to {last}"
    own = (
        f" {found.own} of them are things that the model says of its own accord, since it knows too few of "
        "the facts given."
        if found.own
        else ""
    )
    said = (
        f"Of {len(found.trials)} settings tried on {found.probes} probe facts, {found.method} does best "
        f"at {named}: the new answer wins by {best.target:.0f} %, after other wordings by "
        f"{best.paraphrase:.0f} %, and other subjects keep theirs by {best.neighbour:.0f} %.{own}"
    )
    if found.verdict == "works":
        return [said]
    return [
        f"Nothing that was tried edits this model reliably with {found.method}: closed-form editing at "
        "the subject may score 0 or little; it may recall its facts at the prompt's last token "
        "(--lookup last).",
        said,
    ]
