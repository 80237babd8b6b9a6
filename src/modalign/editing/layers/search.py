"""The search that every default comes from: settings are tried on probe edits, and the best are taken.

1. Layers. A few probes are written to stretches of layers that end at different depths: in a shallow model at
   every layer, in a deep one climbing from the latest. At the two best, shorter stretches are tried as well.
2. Reach. How long a vector may be, as a multiple of the layer's output, since a site's own output may be
   many times shorter. The learning rate follows from it (a value reaches its limit in a few steps), and so
   does the decay (at the limit it costs less than the loss at which the optimisation stops).
3. Strength. Lambda, or for AlphaEdit its null space and L2, by factors of ten, then by half decades.

Steps 2 and 3 climb: they continue as long as the score rises. The more edits are to be written, the more
probes are used, since what fits ten edits may be too short, or too weak, for a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from modalign.editing.engine.memory import statistics_fit
from modalign.editing.engine.spec import ModelSpec, Site
from modalign.editing.layers.trials import Bench, Trial
from modalign.progress import Progress

# Fractions of the depth, in models too deep to try every layer.
PLACES = (0.0, 0.08, 0.17, 0.27, 0.37, 0.5)
SHALLOW = 8  # up to this many layers, every one is tried
FEW, FEW_DEEP = 8, 4  # probes on which stretches are tried; in a deep model each is expensive
LONGEST = 6  # the most layers written together: 6 of 28 in GPT-J (MEMIT, PMET)
REACHES = (0.75, 1.5, 3.0)  # multiples of the layer's output; 0.75 is MEMIT's
RISE = 4  # steps in which a value can reach its limit
DECAY = 0.02  # what the decay costs at the limit; the optimisation stops at a loss of 0.05
FINER = 10**0.5  # from one strength to the next around the best one
LARGEST = {"null_share": 0.5}  # strengths that are shares; others go up to a thousand
BETTER = 0.5  # points by which the score must rise for a change to count
USELESS = 20.0  # below this score, settings do not really edit
STRENGTHS: dict[str, tuple[dict[str, float], ...]] = {
    "memit": tuple({"per_width": x} for x in (1.0, 0.1, 0.01)),
    "pmet": tuple({"per_width": x} for x in (1.0, 0.1, 0.01)),
    "alphaedit": tuple(
        {"null_share": s, "l2_share": weight} for s in (0.001, 0.01, 0.1) for weight in (0.1,)
    ),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "pmet": {"attention_vector": False},
    "rome": {"keys": "mean"},
}
SITES: dict[str, Site] = {
    "pmet": "ffn",
    "rome": "ffn",
}  # the other methods add their vector to the block's output


def places(depth: int) -> list[int]:
    """Return the last layers of the stretches that are tried first."""
    if depth <= SHALLOW:
        return list(range(depth))
    return sorted({round(place * (depth - 1)) for place in PLACES})


def longest(spec: ModelSpec) -> int:
    """Return the most layers that are written together."""
    return max(3, min(LONGEST, round(spec.depth * LONGEST / 28)))


def stretch(spec: ModelSpec, last: int, length: int | None = None) -> list[int]:
    """Return the stretch of layers that ends at ``last``, by default the longest."""
    return list(range(max(0, last - (length or longest(spec)) + 1), last + 1))


def candidate_layers(spec: ModelSpec, given: Sequence[int] | None) -> tuple[int, ...]:
    """Return every layer that a trial may write, if its key statistics fit in memory."""
    if given is not None:
        return tuple(given)
    found: set[int] = set()
    for last in places(spec.depth):
        more = found | set(stretch(spec, last))
        if found and not statistics_fit(spec, sorted(more)):
            break
        found = more
    return tuple(sorted(found))


def find(bench: Bench, progress: Progress = lambda name, done, total: None) -> Trial:
    """Search for the best settings; every trial is kept in ``bench.done``.

    Args:
        bench: the model, the method and the probes.
        progress: told after each trial.
    """
    return _Search(bench, progress).run()


class _Search:
    def __init__(self, bench: Bench, progress: Progress) -> None:
        self.bench, self.progress = bench, progress
        self.few = FEW_DEEP if bench.spec.depth > SHALLOW else FEW
        self.name = bench.kind.name
        self.site: Site = SITES.get(self.name, "block")
        self.strengths = STRENGTHS.get(self.name, ({},))
        self.tried = 0

    def run(self) -> Trial:
        stretches = self._stretches()
        middle = self.strengths[len(self.strengths) // 2]
        best = [self._climb_reach(layers, middle) for layers in stretches]
        top = max(best, key=lambda trial: trial.score)
        top = self._climb_strength(top)
        return self._variants(top)

    def _trial(self, settings: dict[str, Any], probes: int | None = None) -> Trial:
        found = self.bench.run(settings, probes)
        self.tried += 1
        self.progress(
            f"trying {self.name} on probe facts", self.tried, max(self.expected, self.tried)
        )
        return found

    @property
    def expected(self) -> int:
        """About how many trials there will be."""
        return len(places(self.bench.spec.depth)) + 12

    def _stretches(self) -> list[list[int]]:
        """Find the best two stretches of layers."""
        given = self.bench.fixed.get("layers")
        if given is not None:
            return [list(given)]
        spec = self.bench.spec
        most = 1 if self.name == "rome" else longest(spec)
        middle = self.strengths[len(self.strengths) // 2]

        def tried(last: int, length: int) -> Trial:
            settings = self._settings(stretch(spec, last, length), REACHES[0], middle)
            return self._trial(settings, self.few)

        held = self.bench.statistics.covariance.matrices
        lasts = [last for last in places(spec.depth) if last in held]
        if spec.depth <= SHALLOW:
            ends = [tried(last, most) for last in lasts]
        else:
            ends = _uphill(lasts, lambda last: tried(last, most))
        ends.sort(key=_score, reverse=True)
        found = list(ends)
        for end in ends[:2]:
            found += [tried(end.layers[-1], length) for length in {1, (most + 1) // 2}]
        found.sort(key=_score, reverse=True)
        once: list[list[int]] = []
        for trial in found:
            if trial.layers not in once:
                once.append(trial.layers)
        return once[: 1 if spec.depth > SHALLOW else 2]

    def _settings(
        self, layers: Sequence[int], reach: float, strength: dict[str, Any]
    ) -> dict[str, Any]:
        """Derive all settings from a stretch, a reach and a strength."""
        bench, last = self.bench, layers[-1]
        own = bench.length(last, self.site)
        limit = reach * bench.length(last, "block")
        return {
            "layers": list(layers),
            "clamp": _rounded(limit / own),
            "lr": _rounded(limit / RISE / math.sqrt(bench.spec.width)),
            "decay": _rounded(min(0.5, DECAY * own**2 / limit)),
            **strength,
        }

    def _climb_reach(self, layers: Sequence[int], strength: dict[str, Any]) -> Trial:
        return self._climb(REACHES, lambda reach: self._settings(layers, reach, strength))

    def _climb_strength(self, top: Trial) -> Trial:
        tried = [self._trial(top.settings | each) for each in self.strengths]
        top = max([top, *tried], key=lambda t: t.score + (BETTER if t is top else 0.0))
        for name in self.strengths[0]:
            if name not in self.bench.fixed:
                top = self._refine(top, name)
        return top

    def _refine(self, top: Trial, name: str) -> Trial:
        """Make a strength larger, or else smaller, as long as the score rises."""
        best, largest = top, LARGEST.get(name, 1e3)
        for factor in (FINER, 1 / FINER):
            while (value := best.settings[name] * factor) <= largest:
                found = self._trial(best.settings | {name: _rounded(value)})
                if found.score <= best.score + BETTER:
                    break
                best = found
            if best is not top:
                break
        return best

    def _climb(self, values: Sequence[float], made: Callable[[float], dict[str, Any]]) -> Trial:
        """Find the first value after which the score stops rising; in a deep model, on only a few probes."""
        best = self._trial(made(values[0]))
        for before, value in pairwise(values):
            if self.few < FEW:
                few = [self._trial(made(each), self.few).score for each in (before, value)]
                if few[1] <= few[0] + BETTER:
                    break
            found = self._trial(made(value))
            if found.score <= best.score + BETTER:
                break
            best = found
        return best

    def _variants(self, top: Trial) -> Trial:
        """Try PMET with only the FFN's vector, and ROME with one averaged key; keep it if it is better."""
        change = VARIANTS.get(self.name)
        if change is None:
            return top
        found = self._trial(top.settings | change)
        return found if found.score > top.score + BETTER else top


def _uphill(lasts: Sequence[int], tried: Callable[[int], Trial]) -> list[Trial]:
    """Try the last place and the one two before it (later is cheaper), then climb from the better one."""
    found = {at: tried(lasts[at]) for at in range(len(lasts) - 1, -1, -2)[:2]}
    while True:
        best = max(found, key=lambda at: found[at].score)
        near = [at for at in (best + 1, best - 1) if 0 <= at < len(lasts) and at not in found]
        if not near:
            return list(found.values())
        found |= {at: tried(lasts[at]) for at in near}


def _score(trial: Trial) -> float:
    return trial.score


def _rounded(value: float) -> float:
    """Round to three digits, so that what is printed is what was tried."""
    return float(f"{value:.3g}")
