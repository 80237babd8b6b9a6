"""The value optimiser: find vectors that make the model say the new target when added at the lookup token.

One optimiser serves every method: a method names its sites (where vectors are added), its clamp and
its weights. Edits are optimised in batches. Adam works element by element, so each edit gets the result
it would get alone; edits that are done leave the batch.

Loss per edit (MEMIT, arXiv 2210.07229, eq. 16; PMET, arXiv 2308.08742, eq. 14, as released):

    phi * NLL + mu * KL(edited || original) + decay * sum over sites |delta| / |initial|^2
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modalign.editing.engine.forward import PartialForward, Row
from modalign.editing.engine.parts import Parts
from modalign.editing.engine.requests import Request
from modalign.editing.engine.spec import ModelSpec, Site
from modalign.errors import ModalignError
from modalign.models.projections import evaluating

ADAM = (0.9, 0.999, 1e-8)
REACHED = 0.5  # a target less probable than this was not reached
RELAXED_PHI = 0.1  # the target's weight once it is the first choice everywhere (PMET)
SMALL_KL = 0.01  # the KL term below which PMET then stops
GAIN = 0.2  # share by which the loss must fall over ``patience`` evaluations once the target is certain
# A round has stalled if, over so many evaluations (first), the loss fell by less than this share (second).
STALLED = (5, 0.1)


class ValueNotFiniteError(ModalignError):
    """An edit's loss became NaN or infinite."""


@dataclass(frozen=True)
class ValueSettings:
    """How values are optimised.

    Attributes:
        steps: evaluations; the last one takes no step.
        lr: Adam's learning rate.
        clamp: the longest vector allowed, as a multiple of the site's initial output's length.
        kl: mu, the weight of the KL term.
        decay: the weight of the decay term.
        relax: PMET's schedule: once the target is the first choice everywhere, its weight falls to a
            tenth, and the optimisation ends when the KL term is small.
        stop: the loss below which an edit is done.
        widen: how often an edit whose target is not reached continues with the clamp and the learning
            rate doubled: after ``steps``, or as soon as it stops getting closer.
        patience: an edit whose target is certain (NLL below ``stop``) is done unless its loss fell by a
            fifth over this many evaluations; 0 to wait for the whole loss, as published.
    """

    steps: int
    lr: float
    clamp: float
    kl: float
    decay: float
    relax: bool = False
    stop: float = 0.05
    widen: int = 0
    patience: int = 0


@dataclass(frozen=True)
class Value:
    """The value found for one edit. Vectors are float32 or float64, on the CPU.

    Attributes:
        deltas: per site, the vector to be added, (D,).
        initial: per site, the output before it is added, (D,).
        steps: evaluations used.
        probability: of the target over the rewriting prompts (mean of exp(-NLL)) at the end.
        kl: the KL divergence at the end, unweighted.
    """

    deltas: dict[Site, Tensor]
    initial: dict[Site, Tensor]
    steps: int
    probability: float
    kl: float

    @property
    def reached(self) -> bool:
        """Whether the target became likely."""
        return self.probability >= REACHED

    def wanted(self, site: Site) -> Tensor:
        """Return the output that the edit wants at a site, (D,)."""
        return self.initial[site] + self.deltas[site]

    @property
    def relative_norm(self) -> float:
        """Largest |delta| / |initial| over the sites."""
        return max(
            float(delta.norm() / self.initial[site].norm().clamp(min=1e-12))
            for site, delta in self.deltas.items()
        )


Done = Callable[[int, Value], None]


def optimise(
    spec: ModelSpec,
    layer: int,
    sites: Sequence[Site],
    settings: ValueSettings,
    requests: Sequence[Request],
    *,
    batch_size: int,
    done: Done,
    said: Callable[[str], None] = lambda message: None,
) -> None:
    """Optimise the values of all edits; each is passed to ``done`` as soon as it is found.

    Args:
        spec: the model.
        layer: L, where the vectors are added.
        sites: the outputs of the layer at which they are added.
        settings: see :class:`ValueSettings`.
        requests: the edits.
        batch_size: edits optimised together; halved, with a message, when memory runs out.
        done: called with an edit's number and its value.
        said: told what the user should know.

    Raises:
        ValueNotFiniteError: the loss of an edit is not a number.
        torch.OutOfMemoryError: memory runs out with a single edit.
    """
    forward = PartialForward(spec, layer, sites)
    waiting = sorted(range(len(requests)), key=lambda i: requests[i].reach)
    with frozen(spec.model), evaluating(spec.language):
        while waiting:
            numbers = waiting[:batch_size]
            try:
                _Batch(forward, settings, numbers, [requests[i] for i in numbers]).run(done)
            except torch.OutOfMemoryError:
                if len(numbers) == 1:
                    raise
                batch_size = max(1, len(numbers) // 2)
                said(f"out of memory with {len(numbers)} edits at once; going on with {batch_size}")
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            waiting = waiting[len(numbers) :]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Turn gradients off for all parameters, and back on afterwards for those that had them."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class _Layout:
    """The places where a batch's losses are read. Rows are numbered within the batch.

    Attributes:
        rows, positions: (N,) for the N logits that predict target tokens, positions counted from the
            lookup token; then the E' KL rows at position 0.
        labels: (N,) target ids.
        weights: (N,) each token's weight in its prompt's loss: one over the target's length.
        token_edits: (N,) number of the edit in the batch.
        token_prompts: (N,) number of the prompt in the batch, for its own probability.
        prompt_edits, prompt_shares: (P,) each prompt's edit, and its weight in that edit's loss.
        kl_edits: (E',) number of the edit of each KL row.
        edit_of_row: (B,) number of each row's edit.
    """

    rows: Tensor
    positions: Tensor
    labels: Tensor
    weights: Tensor
    token_edits: Tensor
    token_prompts: Tensor
    prompt_edits: Tensor
    prompt_shares: Tensor
    kl_edits: Tensor
    edit_of_row: Tensor


def _rows_of(request: Request) -> list[Row]:
    """Return the rewriting prompts, each followed by the target without its last token, and the KL prompt."""
    rows = [row.followed_by(request.target[:-1]) for row in request.prompts]
    return [*rows, request.kl.up_to_lookup()] if request.kl is not None else rows


def _layout(requests: Sequence[Request], spec: ModelSpec) -> _Layout:
    tokens: list[tuple[int, int, int, float, int, int]] = []
    prompts: list[tuple[int, float]] = []
    kl_rows: list[tuple[int, int]] = []
    edit_of_row: list[int] = []
    for number, request in enumerate(requests):
        for prompt, share in zip(request.prompts, request.shares, strict=True):
            row, first = len(edit_of_row), len(prompt) - 1 - prompt.lookup
            weight = 1 / len(request.target)
            for step, label in enumerate(request.target):
                tokens.append((row, first + step, label, weight, number, len(prompts)))
            prompts.append((number, share))
            edit_of_row.append(number)
        if request.kl is not None:
            kl_rows.append((len(edit_of_row), number))
            edit_of_row.append(number)

    def tensor(values: Iterable[float], dtype: torch.dtype = torch.long) -> Tensor:
        return torch.tensor(list(values), dtype=dtype, device=spec.device)

    rows, positions, labels, weights, token_edits, token_prompts = zip(*tokens, strict=True)
    prompt_edits, shares = zip(*prompts, strict=True)
    return _Layout(
        rows=tensor([*rows, *(row for row, _ in kl_rows)]),
        positions=tensor([*positions, *(0 for _ in kl_rows)]),
        labels=tensor(labels),
        weights=tensor(weights, spec.exact),
        token_edits=tensor(token_edits),
        token_prompts=tensor(token_prompts),
        prompt_edits=tensor(prompt_edits),
        prompt_shares=tensor(shares, spec.exact),
        kl_edits=tensor(edit for _, edit in kl_rows),
        edit_of_row=tensor(edit_of_row),
    )


@dataclass
class _Losses:
    """Losses and what goes with them, one entry per edit of the batch, (E,)."""

    nll: Tensor
    kl: Tensor
    probability: Tensor
    first_choice: Tensor  # bool: the target is the most likely token at every position


class _Batch:
    """Edits optimised together, with their Adam state."""

    def __init__(
        self,
        forward: PartialForward,
        settings: ValueSettings,
        numbers: Sequence[int],
        requests: Sequence[Request],
    ) -> None:
        self.forward = forward
        self.spec = forward.spec
        self.settings = settings
        self.numbers = list(numbers)
        self.requests = list(requests)
        rows = [row for request in requests for row in _rows_of(request)]
        self.base = Parts.of(forward, [row.with_target(self.spec) for row in rows])
        self.layout = _layout(self.requests, self.spec)
        first = self._first_rows()
        self.initial = {site: value[first] for site, value in self.base.initial.items()}
        self.vectors = {site: torch.zeros_like(value) for site, value in self.initial.items()}
        self.moments = {site: (v.clone(), v.clone()) for site, v in self.vectors.items()}
        self.phi = torch.ones(len(requests), dtype=self.spec.exact, device=self.spec.device)
        self.original: Tensor | None = None  # log-probabilities of the KL rows before any change
        self.rounds = torch.zeros(len(requests), dtype=torch.long, device=self.spec.device)
        self.steps = torch.zeros_like(self.rounds)  # evaluations of this round, and in all
        self.evaluated = 0
        self.totals: list[Tensor] = []  # of each evaluation, (E,)

    def _first_rows(self) -> Tensor:
        """Return each edit's first row, its bare prompt, where the initial outputs are read."""
        edits = self.layout.edit_of_row
        starts = torch.ones_like(edits, dtype=torch.bool)
        starts[1:] = edits[1:] != edits[:-1]
        return starts.nonzero().squeeze(1)

    def run(self, done: Done) -> None:
        while self.requests:
            self.evaluated += 1
            self.steps += 1
            vectors = {site: v.detach().requires_grad_() for site, v in self.vectors.items()}
            losses = self._losses(vectors)
            total = self.phi * losses.nll + self.settings.kl * losses.kl + self._decay(vectors)
            self._check(total)
            self.totals.append(total.detach())
            ended = self._ended(losses, total)
            for index in ended.nonzero().squeeze(1).tolist():
                done(self.numbers[index], self._value(index, losses, self.evaluated))
            if ended.all():
                return
            gradients = torch.autograd.grad(total.sum(), list(vectors.values()))
            self._adam(dict(zip(vectors, gradients, strict=True)))
            self._project()
            if ended.any():
                self._keep((~ended).nonzero().squeeze(1))

    def _losses(self, vectors: dict[Site, Tensor]) -> _Losses:
        layout = self.layout
        by_row = {site: vector[layout.edit_of_row] for site, vector in vectors.items()}
        logits = self.base.logits(by_row, (layout.rows, layout.positions))
        log_probs = logits.log_softmax(-1)
        tokens = len(layout.labels)
        chosen = log_probs[:tokens].gather(1, layout.labels[:, None]).squeeze(1)
        prompts = len(layout.prompt_edits)
        prompt_nll = chosen.new_zeros(prompts).index_add(
            0, layout.token_prompts, -chosen * layout.weights
        )
        nll = self._per_edit(prompt_nll * layout.prompt_shares, layout.prompt_edits)
        probability = self._per_edit(
            prompt_nll.detach().neg().exp() * layout.prompt_shares, layout.prompt_edits
        )
        wrong = (log_probs[:tokens].detach().argmax(-1) != layout.labels).to(nll.dtype)
        return _Losses(
            nll=nll,
            kl=self._kl(log_probs[tokens:]),
            probability=probability,
            first_choice=self._per_edit(wrong, layout.token_edits) == 0,
        )

    def _kl(self, edited: Tensor) -> Tensor:
        """Compute KL(edited || original) at the KL rows, in the direction of the released codes."""
        if self.original is None:
            self.original = edited.detach().clone()
        per_row = (edited.exp() * (edited - self.original)).sum(-1)
        return self._per_edit(per_row, self.layout.kl_edits)

    def _per_edit(self, values: Tensor, edits: Tensor) -> Tensor:
        return values.new_zeros(len(self.requests)).index_add(0, edits, values)

    def _decay(self, vectors: dict[Site, Tensor]) -> Tensor:
        parts = [
            vector.norm(dim=1) / self.initial[site].norm(dim=1).square()
            for site, vector in vectors.items()
        ]
        return self.settings.decay * torch.stack(parts).sum(0)

    def _check(self, total: Tensor) -> None:
        bad = (~total.isfinite()).nonzero().squeeze(1).tolist()
        if bad:
            edit = self.requests[bad[0]].edit
            raise ValueNotFiniteError(
                f"edit {edit.id} ({edit.source or edit.prompt!r}): the loss is not a number; try a "
                "lower learning rate or float32 weights"
            )

    def _ended(self, losses: _Losses, total: Tensor) -> Tensor:
        """Return which edits are done, (E,) bool; also set phi and the round for the others' next step."""
        settings = self.settings
        ended = total.detach() < settings.stop
        if settings.relax:
            calm = settings.kl * losses.kl.detach() <= SMALL_KL
            ended = ended | (losses.first_choice & calm)
            # The coming step still uses the loss as evaluated; the new phi applies from the next one.
            self.phi = torch.where(losses.first_choice, RELAXED_PHI, 1.0).to(self.phi)
        if settings.patience:
            certain = losses.nll.detach() < settings.stop
            ended = ended | (certain & (self._gain(settings.patience) < GAIN))
        over = self.steps >= settings.steps
        wider = (losses.probability < REACHED) & (self.rounds < settings.widen)
        ended = ended | (over & ~wider)
        if settings.widen:
            stalled = self._gain(STALLED[0]) < STALLED[1]
            self._widen(~ended & wider & (over | stalled))
        return ended

    def _gain(self, evaluations: int) -> Tensor:
        """Return the share by which the loss fell over this round's last evaluations, (E,); 1 if too few."""
        now = self.totals[-1]
        if len(self.totals) <= evaluations:
            return torch.ones_like(now)
        won = 1 - now / self.totals[-1 - evaluations].clamp(min=1e-12)
        return torch.where(self.steps > evaluations, won, torch.ones_like(won))

    def _widen(self, which: Tensor) -> None:
        """Begin a round with the limit and the rate doubled, from where the last one ended."""
        self.rounds = self.rounds + which.long()
        self.steps = torch.where(which, 1, self.steps)  # this evaluation is its first
        for moments in self.moments.values():
            for moment in moments:
                moment[which] = 0.0

    def _wider(self, value: float) -> Tensor:
        """Return a setting that doubles with every round, (E, 1)."""
        return value * 2.0 ** self.rounds[:, None].to(self.spec.exact)

    def _adam(self, gradients: dict[Site, Tensor]) -> None:
        beta1, beta2, epsilon = ADAM
        step = self.steps[:, None].double()
        first, second = ((1 - beta**step).to(self.spec.exact) for beta in (beta1, beta2))
        for site, gradient in gradients.items():
            mean, square = self.moments[site]
            mean.mul_(beta1).add_(gradient, alpha=1 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            denominator = (square / second).sqrt().add_(epsilon)
            self.vectors[site] = (
                self.vectors[site].detach()
                - self._wider(self.settings.lr) * (mean / first) / denominator
            )

    def _project(self) -> None:
        for site, vector in self.vectors.items():
            longest = self._wider(self.settings.clamp) * self.initial[site].norm(
                dim=1, keepdim=True
            )
            norm = vector.norm(dim=1, keepdim=True)
            self.vectors[site] = torch.where(norm > longest, vector * (longest / norm), vector)

    def _value(self, index: int, losses: _Losses, step: int) -> Value:
        return Value(
            deltas={site: v[index].detach().cpu() for site, v in self.vectors.items()},
            initial={site: v[index].cpu() for site, v in self.initial.items()},
            steps=step,
            probability=float(losses.probability[index]),
            kl=float(losses.kl[index].detach()),
        )

    def _keep(self, edits: Tensor) -> None:
        """Continue with these edits only."""
        kept = set(edits.tolist())
        row_edits = self.layout.edit_of_row.tolist()
        rows = [row for row, edit in enumerate(row_edits) if edit in kept]
        kl_rows = [i for i, edit in enumerate(self.layout.kl_edits.tolist()) if edit in kept]
        self.base = self.base.select(torch.tensor(rows, device=self.spec.device))
        if self.original is not None:
            self.original = self.original[
                torch.tensor(kl_rows, dtype=torch.long, device=self.spec.device)
            ]
        self.numbers = [self.numbers[i] for i in sorted(kept)]
        self.requests = [self.requests[i] for i in sorted(kept)]
        self.initial = {site: v[edits] for site, v in self.initial.items()}
        self.vectors = {site: v[edits] for site, v in self.vectors.items()}
        self.moments = {site: (m[edits], s[edits]) for site, (m, s) in self.moments.items()}
        self.phi, self.rounds, self.steps = self.phi[edits], self.rounds[edits], self.steps[edits]
        self.totals = [total[edits] for total in self.totals]
        self.layout = _layout(self.requests, self.spec)
