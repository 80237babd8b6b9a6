"""``modalign edit suggest``: measure settings on a model folder with a file of edits or of facts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modalign.data.corpus import read_corpus
from modalign.editing.computation import Options
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.layers.facts import holds_facts, read_facts
from modalign.editing.layers.probes import of_edits, of_facts
from modalign.editing.layers.proposal import Suggestion, measured
from modalign.editing.methods import DEFAULT_METHOD, method_named
from modalign.editing.methods.base import ValueMethod
from modalign.editing.readers import read_edits
from modalign.editing.run import configured, dtype_named
from modalign.errors import UsageError
from modalign.models.open import open_model
from modalign.models.quiet import quietly
from modalign.progress import Progress


@dataclass(frozen=True)
class SuggestRequest:
    """What the user asked for.

    Attributes:
        model: folder or hub name.
        probes: a file of edits, or of facts.
        method: name.
        settings: fields that are fixed.
        text: for the key statistics; None for what the model writes.
        seed: of the probes.
        device, dtype: of the model.
        cache: folder of statistics and settings.
    """

    model: str
    probes: Path
    method: str = DEFAULT_METHOD
    settings: dict[str, Any] = field(default_factory=dict)
    text: Path | None = None
    seed: int = 0
    device: str | None = None
    dtype: str | None = None
    cache: Path | None = None


@quietly()
def suggest_settings(
    request: SuggestRequest,
    progress: Progress | None = None,
    said: Callable[[str], None] = lambda message: None,
) -> Suggestion:
    """Measure settings; ``edit run`` uses them too from then on.

    Raises:
        DataError: the file cannot be read, or holds nothing to probe with.
        UsageError: a method without settings to measure, an unknown setting, or a model that cannot be edited.
    """
    kind = method_named(request.method)
    if not issubclass(kind, ValueMethod):
        raise UsageError(
            f"{request.method} has no settings that are measured: give memit, pmet, rome or alphaedit"
        )
    configured(request.method, request.settings)
    facts = read_facts(request.probes) if holds_facts(request.probes) else []
    edits = [] if facts else read_edits(request.probes, conflicting="first", warn=said)
    corpus = read_corpus(request.text) if request.text else None
    model, reader = open_model(request.model, dtype_named(request.dtype), request.device)
    found = measured(
        ModelSpec.detect(model),
        reader,
        kind,
        of_facts(facts) if facts else of_edits(edits),
        edits or [fact.edit(fact.other or "") for fact in facts],
        fixed=request.settings,
        options=Options(corpus=corpus, cache=request.cache, progress=progress, said=said),
        seed=request.seed,
        again=True,
    )
    return found.for_files(request.model, "EDITS" if facts else str(request.probes))
