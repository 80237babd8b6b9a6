"""Causal tracing: which hidden states carry a fact (ROME, arXiv 2202.05262, section 2).

The subject's embeddings are corrupted with Gaussian noise, so that the model no longer answers; then
one state is put back to what it was without noise, and the answer's probability is measured again.
What returns is that state's indirect effect. States put back: a layer's output at one token, and the
outputs of attention or FFN at one token over a window of layers around one (single ones do little).

For every probe all runs (noise sample x kind x place x layer) are rows of a few batches. Three places
are traced, the ones a fact passes: the subject's first and last token and the prompt's last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from modalign.editing.benchmarks.calling import judging, logits_at
from modalign.editing.engine.spec import ModelSpec, Site, hidden_of
from modalign.editing.engine.tokens import Rows
from modalign.editing.layers.facts import KnownFact
from modalign.numbers.bootstrap import Floats
from modalign.progress import Progress

Place = Literal["first", "subject", "last"]
PLACES: tuple[Place, ...] = ("first", "subject", "last")
KINDS: tuple[Site, ...] = ("block", "attention", "ffn")


@dataclass(frozen=True)
class TraceSettings:
    """How facts are traced.

    Attributes:
        noise: standard deviation of the noise in standard deviations of the embeddings (ROME: 3).
        samples: S, noise samples per fact (ROME: 10).
        window: layers whose attention or FFN is put back together, as a share of depth (ROME: 10
            of GPT-2 XL's 48).
        rows: largest batch.
        seed: of the noise.
    """

    noise: float = 3.0
    samples: int = 10
    window: float = 10 / 48
    rows: int = 256
    seed: int = 0

    def layers(self, centre: int, depth: int) -> range:
        """The window around a layer."""
        width = max(1, round(self.window * depth))
        return range(max(0, centre - width // 2), min(depth, centre + (width + 1) // 2))


@dataclass(frozen=True)
class Trace:
    """Probabilities of the attributes of n facts; means over noise samples.

    Attributes:
        clean: without noise, (n,).
        corrupted: with noise, (n,).
        restored: per kind and place with noise and one state put back, (n, layers).
        window: layers put back together for attention and FFN.
    """

    clean: Floats
    corrupted: Floats
    restored: dict[tuple[Site, Place], Floats]
    window: int

    def effects(self, kind: Site, place: Place) -> Floats:
        """Indirect effects: restored minus corrupted, (n, layers)."""
        return self.restored[kind, place] - self.corrupted[:, None]


@dataclass(frozen=True)
class _Run:
    """One row: noise sample ``sample``, and what is put back in it (None: nothing)."""

    sample: int
    kind: Site | None = None
    place: Place = "last"
    layer: int = 0


def trace(
    spec: ModelSpec,
    probes: Sequence[KnownFact],
    settings: TraceSettings | None = None,
    progress: Progress = lambda name, done, total: None,
) -> Trace:
    """Trace facts the model knows.

    Args:
        spec: the model.
        probes: n of them.
        settings: see :class:`TraceSettings`.
        progress: told after each fact.
    """
    how = settings or TraceSettings()
    deviation = how.noise * embedding_deviation(spec, probes)
    runs = [
        *(_Run(sample) for sample in range(how.samples)),
        *(
            _Run(sample, kind, place, layer)
            for kind in KINDS
            for place in PLACES
            for layer in range(spec.depth)
            for sample in range(how.samples)
        ),
    ]
    clean, found = [], []
    for number, probe in enumerate(probes):
        progress("tracing facts", number, len(probes))
        tracer = _Tracer(spec, probe, how)
        clean.append(tracer.clean_probability)
        noise = subject_noise(probe, how, number, spec.width) * deviation
        found.append(tracer.probabilities(noise.to(spec.device), runs))
    progress("tracing facts", len(probes), len(probes))
    return _trace(np.array(clean), np.stack(found), spec.depth, how)


def _trace(clean: Floats, found: Floats, depth: int, how: TraceSettings) -> Trace:
    """Means over noise samples; ``found`` is (n, runs) in the order of the runs."""
    n = len(clean)
    corrupted = found[:, : how.samples].mean(1)
    grid = found[:, how.samples :].reshape(n, len(KINDS), len(PLACES), depth, how.samples).mean(-1)
    restored = {
        (kind, place): grid[:, i, j]
        for i, kind in enumerate(KINDS)
        for j, place in enumerate(PLACES)
    }
    return Trace(clean, corrupted, restored, max(1, round(how.window * depth)))


def embedding_deviation(spec: ModelSpec, probes: Sequence[KnownFact]) -> float:
    """Standard deviation of the embedding matrix's entries, as the model receives them.

    Some embeddings are scaled on their way (Gemma 3); the factor is read off the probes' tokens.
    """
    embed: Any = spec.language.get_input_embeddings()
    ids = torch.tensor(
        sorted({token for probe in probes for token in probe.ids}), device=spec.device
    )
    with torch.no_grad():
        weight = embed.weight
        factor = embed(ids).float().norm() / weight[ids].float().norm().clamp(min=1e-12)
        return float(weight.float().std() * factor)


def subject_noise(probe: KnownFact, how: TraceSettings, number: int, width: int) -> Tensor:
    """Unit noise for the subject's tokens, (S, tokens, D); the same for any batch size and device."""
    generator = torch.Generator().manual_seed(how.seed * 1_000_003 + number)
    return torch.randn(how.samples, probe.last - probe.first + 1, width, generator=generator)


class _Tracer:
    """One fact: its states without noise, and runs with noise."""

    def __init__(self, spec: ModelSpec, probe: KnownFact, how: TraceSettings) -> None:
        self.spec, self.probe, self.how = spec, probe, how
        self.at: dict[Place, int] = {
            "first": probe.first,
            "subject": probe.last,
            "last": len(probe.ids) - 1,
        }
        row = probe.row
        embed: Any = spec.language.get_input_embeddings()
        with torch.no_grad():
            self.embeds: Tensor = embed(torch.tensor([row.ids], device=spec.device))  # (1, T, D)
        self.states: dict[tuple[Site, int], Tensor] = {}  # (T, D) each
        with ExitStack() as stack:
            for kind in KINDS:
                for layer in range(spec.depth):
                    self._hook(stack, kind, layer, self._keeping(kind, layer))
            self.clean_probability = float(self._run(self.embeds)[0])

    def probabilities(self, noise: Tensor, runs: Sequence[_Run]) -> Floats:
        """The attribute's probability in every run, (runs,)."""
        parts = []
        for start in range(0, len(runs), self.how.rows):
            batch = runs[start : start + self.how.rows]
            samples = torch.tensor([each.sample for each in batch], device=self.embeds.device)
            embeds = self.embeds.repeat(len(batch), 1, 1)
            embeds[:, self.probe.first : self.probe.last + 1] += noise[samples].to(embeds.dtype)
            with ExitStack() as stack:
                self._restore(stack, batch)
                parts.append(self._run(embeds))
        return np.concatenate(parts)

    def _restore(self, stack: ExitStack, batch: Sequence[_Run]) -> None:
        """Put states back by hooks, each in the rows that ask for it."""
        wanted: dict[tuple[Site, int], list[int]] = {}
        for row, each in enumerate(batch):
            if each.kind is None:
                continue
            window = self.how.layers(each.layer, self.spec.depth)
            for layer in [each.layer] if each.kind == "block" else window:
                wanted.setdefault((each.kind, layer), []).append(row)
        for (kind, layer), rows in wanted.items():
            places = [self.at[batch[row].place] for row in rows]
            self._hook(stack, kind, layer, self._putting_back(kind, layer, rows, places))

    def _hook(self, stack: ExitStack, kind: Site, layer: int, hook: Any) -> None:
        module: nn.Module = self.spec.module(layer, kind)
        stack.enter_context(module.register_forward_hook(hook))

    def _keeping(self, kind: Site, layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            hidden = hidden_of(output).detach()
            self.states[kind, layer] = hidden.reshape(-1, hidden.shape[-1])

        return hook

    def _putting_back(self, kind: Site, layer: int, rows: list[int], places: list[int]) -> Any:
        state = self.states[kind, layer][places]  # (rows, D)

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = hidden_of(output)
            changed = hidden.clone()
            # Some layers' projections see (B * T, D).
            changed.view(-1, self.embeds.shape[1], hidden.shape[-1])[rows, places] = state
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    def _run(self, embeds: Tensor) -> Floats:
        """The whole attribute's probability in every row, (B,)."""
        predicting = self.probe.predicting
        count = len(predicting)
        rows = torch.arange(len(embeds), device=embeds.device).repeat_interleave(count)
        positions = torch.tensor(list(predicting) * len(embeds), device=embeds.device)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        given = {"input_ids": None, "inputs_embeds": embeds}
        language = self.spec.language
        with judging(language):
            logits, _ = logits_at(language, Rows(mask, mask), (rows, positions), given)
        answer = torch.tensor(self.probe.answer * len(embeds), device=logits.device)
        chosen = logits.to(self.spec.exact).log_softmax(-1).gather(1, answer[:, None])
        joint = chosen.view(-1, count).sum(1).exp()
        return np.asarray(joint.cpu().numpy(), dtype=np.float64)
