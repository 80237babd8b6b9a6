"""Editing as the papers write it: one edit, the whole model, nothing skipped. The tests' oracle.

Clarity before speed. Every function here runs complete forward passes of a Hugging Face GPT-J or
Llama and reads what it needs with hooks; the engine under test must agree with it.

Sources: PMET (arXiv 2308.08742, equations 10 to 15), MEMIT (arXiv 2210.07229, equations 14 to 16 and
20), ROME (arXiv 2202.05262, equation 4), with the order of operations of their released code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modalign.editing.edits import Edit
from modalign.editing.engine.tokens import Rows, encode_prompt, encode_target, pad

Site = Literal["block", "attention", "ffn"]
Spread = Literal["linear", "sqrt"]


# ---------------------------------------------------------------- where things are in a model


def layers_of(model: Any) -> nn.ModuleList:
    """The decoder layers, by their names."""
    return {"gptj": lambda: model.transformer.h, "llama": lambda: model.model.layers}[
        model.config.model_type
    ]()


def module_at(model: Any, layer: int, site: Site) -> nn.Module:
    """The module whose output is the given site's state, (B, T, d)."""
    block: Any = layers_of(model)[layer]
    if site == "block":
        return block
    if model.config.model_type == "gptj":
        return block.mlp.fc_out if site == "ffn" else block.attn.out_proj
    return block.mlp.down_proj if site == "ffn" else block.self_attn.o_proj


def in_double(model: Any) -> Any:
    """A copy that computes in float64 throughout.

    ``model.double()`` is not enough: transformers' GPT-J computes attention scores, and its Llama
    the norms, in float32 whatever the weights are, and rounding there hides differences below 1e-7.
    """
    model = copy.deepcopy(model).double()
    for module in model.modules():
        kind = type(module).__name__
        if kind == "GPTJAttention":
            module._attn = _double_attention(module)
        elif kind == "LlamaRMSNorm":
            module.forward = _double_norm(module)
    if model.config.model_type == "llama":
        model.set_attn_implementation("sdpa")
    return model


def _double_attention(module: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    def attend(
        query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
    ) -> Any:
        scores = query @ key.transpose(-1, -2) / module.scale_attn
        if attention_mask is not None:
            scores = scores + attention_mask
        weights = scores.softmax(-1)
        return weights @ value, weights

    return attend


def _double_norm(module: Any) -> Callable[[Tensor], Tensor]:
    def norm(x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
        return module.weight * (x * scale)

    return norm


# ---------------------------------------------------------------- hooks


@contextmanager
def adding(
    module: nn.Module, at: Sequence[int], delta: Tensor, seen: list[Tensor]
) -> Iterator[None]:
    """Add ``delta`` (d,) to a module's output at one token of every row.

    Args:
        module: its output is (B, T, d), or a tuple that starts with it.
        at: the token of each row.
        delta: what is added.
        seen: the output before the addition is appended here, detached.
    """

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        state = output[0] if isinstance(output, tuple) else output
        seen.append(state.detach())
        changed = state.clone()
        changed[torch.arange(len(at)), torch.tensor(at)] += delta
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def recording(module: nn.Module, side: Literal["input", "output"]) -> Iterator[list[Tensor]]:
    """Collect a module's inputs or outputs, (B, T, d) each."""
    seen: list[Tensor] = []

    def hook(_module: nn.Module, inputs: Any, output: Any) -> None:
        value = inputs[0] if side == "input" else output
        seen.append((value[0] if isinstance(value, tuple) else value).detach())

    handle = module.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def logits_of(model: Any, rows: Rows) -> Tensor:
    """Logits of right-padded rows, (B, T, vocabulary)."""
    logits: Tensor = model(input_ids=rows.ids, attention_mask=rows.mask, use_cache=False).logits
    return logits


# ---------------------------------------------------------------- the rows of one edit


@dataclass(frozen=True)
class EditRows:
    """The token rows of one edit.

    Attributes:
        prompts: ids of the bare prompt, then of every context + ". " + prompt.
        target: ids of the new target.
        lookups: position of the subject's last token in each prompt.
        kl: ids of "{subject} is a".
        kl_lookup: the subject's last token in it.
    """

    prompts: list[list[int]]
    target: list[int]
    lookups: list[int]
    kl: list[int]
    kl_lookup: int


def rows_of(tokenizer: Any, edit: Edit, contexts: Sequence[str]) -> EditRows:
    """Tokenise an edit: the bare prompt first, then the prompt after every context."""
    assert edit.subject_at is not None
    starts = ["", *(context + ". " for context in contexts)]
    prompts = [
        encode_prompt(tokenizer, start + edit.prompt, edit.subject, len(start) + edit.subject_at)
        for start in starts
    ]
    kl = encode_prompt(tokenizer, f"{edit.subject} is a", edit.subject, 0)
    return EditRows(
        prompts=[list(prompt.ids) for prompt in prompts],
        target=list(encode_target(tokenizer, edit.target, edit.prompt)),
        lookups=[prompt.lookup for prompt in prompts],
        kl=list(kl.ids),
        kl_lookup=kl.lookup,
    )


# ---------------------------------------------------------------- the z optimisation


@dataclass(frozen=True)
class Settings:
    """What differs between the z optimisations of ROME, MEMIT and PMET.

    Attributes:
        sites: where a vector is added at the lookup token.
        evaluations: of the loss, at most; the last one takes no step.
        lr: of Adam.
        kl: factor of the divergence term.
        decay: factor of sum over sites |delta| / |initial|^2.
        clamp: |delta| <= clamp * |initial|, per site.
        final_phi: None, or PMET's factor of the likelihood once the target leads everywhere; then it
            also stops at kl * divergence <= 0.01.
        stop: loss below which it stops.
    """

    sites: tuple[Site, ...]
    evaluations: int
    lr: float
    kl: float = 0.0625
    decay: float = 0.5
    clamp: float = 0.75
    final_phi: float | None = None
    stop: float = 0.05


# GPT-J 6B's values of the released hyper-parameter files.
MEMIT = Settings(("block",), evaluations=25, lr=0.5)
ROME = Settings(("ffn",), evaluations=20, lr=0.5, clamp=4.0)
PMET = Settings(("attention", "ffn"), evaluations=30, lr=0.2, kl=1.0, final_phi=0.1)
PMET_TINY = replace(PMET, lr=0.5, clamp=4.0)  # a tiny model's components are small: brief 6.2


@dataclass(frozen=True)
class Values:
    """The outcome of one z optimisation.

    Attributes:
        deltas: per site, what is added, (d,).
        initial: per site, the state at the bare prompt's lookup token before, (d,).
        evaluations: of the loss.
        losses: one per evaluation.
        probability: of the target at the last evaluation: mean over the rewriting prompts of
            exp(mean over target tokens of log p).
        stopped: why.
    """

    deltas: dict[Site, Tensor]
    initial: dict[Site, Tensor]
    evaluations: int
    losses: list[float]
    probability: float
    stopped: Literal["loss", "target leads", "evaluations"]

    def goal(self, site: Site) -> Tensor:
        """Initial state + delta: what the edited weights shall produce, (d,)."""
        return self.initial[site] + self.deltas[site]


@dataclass(frozen=True)
class _Evaluation:
    nll: Tensor
    kl_log_probs: Tensor
    probability: float
    leads: bool


def plain_values(
    model: Any,
    tokenizer: Any,
    edit: Edit,
    contexts: Sequence[str],
    *,
    layer: int,
    settings: Settings,
) -> Values:
    """Find the vectors that make the model say the target when added at the subject's last token.

    Minimises, by Adam from zero (PMET equation 12; MEMIT equation 16):
        phi * mean over prompts of mean over target tokens of -log p(token)
        + kl * KL(edited || original) at the subject's last token of "{subject} is a"
        + decay * sum over sites of |delta| / |initial|^2

    Args:
        model: GPT-J or Llama, in eval mode; its weights' gradients are not touched.
        tokenizer: its tokenizer.
        edit: one edit with a subject.
        contexts: sentences before the prompt, without the joining ". "; may be empty.
        layer: L, the last edited layer.
        settings: of the method.
    """
    rows = rows_of(tokenizer, edit, contexts)
    parameter = next(model.parameters())
    zero = torch.zeros(model.config.hidden_size, dtype=parameter.dtype, device=parameter.device)
    deltas: dict[Site, Tensor] = {site: zero.clone().requires_grad_() for site in settings.sites}
    optimiser = torch.optim.Adam(list(deltas.values()), lr=settings.lr)
    initial: dict[Site, Tensor] = {}
    original: Tensor | None = None
    phi, losses = 1.0, []
    while True:
        result = _evaluate(model, rows, layer, deltas, initial)
        original = result.kl_log_probs.detach() if original is None else original
        divergence = settings.kl * _divergence(result.kl_log_probs, original)
        decay = sum(deltas[site].norm() / initial[site].norm() ** 2 for site in deltas)
        loss = phi * result.nll + divergence + settings.decay * decay
        losses.append(float(loss.detach()))
        stopped = _exit(settings, result, losses, float(divergence.detach()))
        if stopped is not None:
            break
        if settings.final_phi is not None:  # from the next evaluation on
            phi = settings.final_phi if result.leads else 1.0
        gradients = torch.autograd.grad(loss, list(deltas.values()))
        for delta, gradient in zip(deltas.values(), gradients, strict=True):
            delta.grad = gradient
        optimiser.step()
        for site, delta in deltas.items():
            _clamp(delta, settings.clamp * initial[site].norm())
    return Values(
        deltas={site: delta.detach() for site, delta in deltas.items()},
        initial=initial,
        evaluations=len(losses),
        losses=losses,
        probability=result.probability,
        stopped=stopped,
    )


def _evaluate(
    model: Any,
    rows: EditRows,
    layer: int,
    deltas: Mapping[Site, Tensor],
    initial: dict[Site, Tensor],
) -> _Evaluation:
    """One forward pass of all rows; fills ``initial`` the first time."""
    batch = pad(
        [*(prompt + rows.target[:-1] for prompt in rows.prompts), rows.kl],
        next(model.parameters()).device,
    )
    lookups = [*rows.lookups, rows.kl_lookup]
    seen: dict[Site, list[Tensor]] = {site: [] for site in deltas}
    with ExitStack() as stack:
        for site, delta in deltas.items():
            module = module_at(model, layer, site)
            stack.enter_context(adding(module, lookups, delta, seen[site]))
        log_probs = logits_of(model, batch).log_softmax(-1)
    for site in deltas:
        initial.setdefault(site, seen[site][0][0, lookups[0]].clone())
    target = torch.tensor(rows.target, device=batch.ids.device)
    spoken = []  # (n_target, vocabulary) per rewriting prompt
    for i, prompt in enumerate(rows.prompts):
        start = len(prompt) - 1  # the position that predicts the first target token
        spoken.append(log_probs[i, start : start + len(target)])
    each = torch.stack([row.gather(1, target[:, None]).mean() for row in spoken])
    leads = all(bool((row.argmax(-1) == target).all()) for row in spoken)
    return _Evaluation(
        nll=-each.mean(),
        kl_log_probs=log_probs[-1, rows.kl_lookup],
        probability=float(each.detach().exp().mean()),
        leads=leads,
    )


def _divergence(edited: Tensor, original: Tensor) -> Tensor:
    """KL(edited || original) of two rows of log-probabilities."""
    return (edited.exp() * (edited - original)).sum()


def _exit(
    settings: Settings, result: _Evaluation, losses: Sequence[float], divergence: float
) -> Literal["loss", "target leads", "evaluations"] | None:
    if losses[-1] < settings.stop:
        return "loss"
    if settings.final_phi is not None and result.leads and divergence <= 0.01:
        return "target leads"
    if len(losses) == settings.evaluations:
        return "evaluations"
    return None


def _clamp(delta: Tensor, radius: Tensor) -> None:
    """Project onto the ball of the given radius, in place."""
    with torch.no_grad():
        norm = delta.norm()
        if norm > radius:
            delta.mul_(radius / norm)


# ---------------------------------------------------------------- statistics, keys, states


@torch.no_grad()
def plain_covariances(
    model: Any, tokenizer: Any, texts: Sequence[str], layers: Sequence[int]
) -> dict[int, Tensor]:
    """C0 per layer: the mean of k k^T over every token of every text, (d_in, d_in), float64."""
    totals: dict[int, Tensor] = {}
    count = 0
    with ExitStack() as stack:
        seen = {
            layer: stack.enter_context(recording(module_at(model, layer, "ffn"), "input"))
            for layer in layers
        }
        for text in texts:
            ids = tokenizer(text)["input_ids"]
            logits_of(model, pad([ids], next(model.parameters()).device))
            count += len(ids)
            for layer in layers:
                keys = seen[layer].pop()[0].double()
                totals[layer] = totals.get(layer, 0) + keys.T @ keys
    return {layer: total / count for layer, total in totals.items()}


@torch.no_grad()
def plain_key(
    model: Any, tokenizer: Any, edit: Edit, contexts: Sequence[str], layer: int
) -> Tensor:
    """The key of one edit at one layer with the current weights, (d_in,).

    The FFN projection's input at the subject's last token: the mean over contexts, then the mean of
    that and the bare prompt's (MEMIT equation 17 with its code's groups).
    """
    rows = rows_of(tokenizer, edit, contexts)
    with recording(module_at(model, layer, "ffn"), "input") as seen:
        logits_of(model, pad(rows.prompts, next(model.parameters()).device))
    keys = seen[0][torch.arange(len(rows.lookups)), torch.tensor(rows.lookups)]
    if len(keys) == 1:
        return keys[0]
    return (keys[0] + keys[1:].mean(0)) / 2


@torch.no_grad()
def plain_state(model: Any, tokenizer: Any, edit: Edit, layer: int, site: Site) -> Tensor:
    """A site's state at the bare prompt's lookup token with the current weights, (d,)."""
    rows = rows_of(tokenizer, edit, [])
    with recording(module_at(model, layer, site), "output") as seen:
        logits_of(model, pad(rows.prompts, next(model.parameters()).device))
    return seen[0][0, rows.lookups[0]]


# ---------------------------------------------------------------- writing


@torch.no_grad()
def plain_update(
    model: Any,
    tokenizer: Any,
    edits: Sequence[Edit],
    goals: Tensor,
    contexts: Sequence[str],
    covariances: Mapping[int, Tensor],
    *,
    layers: Sequence[int],
    weight: float,
    site: Site,
    spread: Spread,
    ridge: float = 0.0,
) -> dict[int, Tensor]:
    """Delta per layer, (d, d_in), float64, so that the last layer's states come to ``goals``.

    For the i-th of n layers, with weights already changed below it (MEMIT equations 14 and 20,
    PMET equation 15):
        K = keys (d_in, edits), R = (goals - states at the last layer) / (n - i, or its root)
        Delta = R K^T (K K^T + weight * C)^-1

    Args:
        model: unchanged on return, bit for bit.
        tokenizer: its tokenizer.
        edits: n_edits of them.
        goals: initial state + delta of every edit, (n_edits, d).
        contexts: as in ``plain_values``.
        covariances: C0 of each layer on the pristine model.
        layers: ascending; the last is the one of ``goals``.
        weight: lambda.
        site: where ``goals`` are states: the block (MEMIT) or the FFN projection (PMET).
        spread: "linear" divides by n - i, "sqrt" by its root.
        ridge: this share of C's mean diagonal is added to its diagonal. Needed where C is singular:
            the first FFN of a parallel block sees the token alone, so its keys are as many as the
            tokens of the corpus. (The released code leaves this to float32's rounding errors.)
    """
    projections: dict[int, Any] = {layer: module_at(model, layer, "ffn") for layer in layers}
    originals = {layer: projection.weight.clone() for layer, projection in projections.items()}
    deltas: dict[int, Tensor] = {}
    try:
        for i, layer in enumerate(layers):
            keys = [plain_key(model, tokenizer, edit, contexts, layer) for edit in edits]
            states = [plain_state(model, tokenizer, edit, layers[-1], site) for edit in edits]
            K = torch.stack(keys, 1).double()
            left = len(layers) - i
            R = (goals - torch.stack(states)).T.double() / (
                left if spread == "linear" else left**0.5
            )
            C = covariances[layer].double()
            C = C + ridge * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype)
            system = K @ K.T + weight * C
            deltas[layer] = R @ K.T @ torch.linalg.inv(system)
            write(model, {layer: deltas[layer]})
    finally:
        for layer, projection in projections.items():
            projection.weight.copy_(originals[layer])
    return deltas


@torch.no_grad()
def write(model: Any, deltas: Mapping[int, Tensor]) -> None:
    """Add each layer's Delta to its FFN projection, in place."""
    for layer, delta in deltas.items():
        projection: Any = module_at(model, layer, "ffn")
        projection.weight.add_(delta.to(projection.weight.dtype))


@torch.no_grad()
def plain_rome(
    model: Any,
    tokenizer: Any,
    edit: Edit,
    goal: Tensor,
    contexts: Sequence[str],
    covariance: Tensor,
    layer: int,
    *,
    one_key: bool = True,
) -> Tensor:
    """ROME's rank-one Delta of one layer, (d, d_in), float64.

    u = C^-1 k* / |C^-1 k*|, Delta = (goal - v) u^T / (k . u). With ``one_key`` (r-ROME, arXiv
    2403.07175) k is k*, the mean over all prompts, and v is W k* + bias; without it both are read at
    the bare prompt, as released.
    """
    rows = rows_of(tokenizer, edit, contexts)
    projection: Any = module_at(model, layer, "ffn")
    with recording(projection, "input") as seen:
        logits_of(model, pad(rows.prompts, next(model.parameters()).device))
    keys = seen[0][torch.arange(len(rows.lookups)), torch.tensor(rows.lookups)].double()
    mean = keys.mean(0)
    u = torch.linalg.inv(covariance.double()) @ mean
    u = u / u.norm()
    key = mean if one_key else keys[0]
    value = projection.weight.double() @ key
    if projection.bias is not None:
        value = value + projection.bias.double()
    return torch.outer((goal.double() - value) / (key @ u), u)


# ---------------------------------------------------------------- scores


@dataclass(frozen=True)
class Scores:
    """CounterFact's scores in percent; ``s`` is the harmonic mean of the three before it.

    ``exact`` holds the companions of ``es``, ``ps`` and ``ns``: every token of the right answer leads.
    """

    es: float
    ps: float
    ns: float
    s: float
    exact: tuple[float, float, float]


@torch.no_grad()
def plain_scores(model: Any, tokenizer: Any, edits: Sequence[Edit]) -> Scores:
    """Teacher-forced, per record first (CounterFact; ROME section 3.3).

    Efficacy and paraphrase: the target's mean log-probability per token is above the truth's;
    neighbours: below. Ties count against.
    """
    columns: list[list[tuple[float, float]]] = [[], [], []]
    for edit in edits:
        assert edit.truth is not None
        groups = [[edit.prompt], list(edit.paraphrases), [n.prompt for n in edit.neighbours]]
        answers = [(edit.target, edit.truth)] * 2 + [(edit.truth, edit.target)]
        for column, prompts, (right, wrong) in zip(columns, groups, answers, strict=True):
            if prompts:
                ours = _likelihoods(model, tokenizer, prompts, right)
                theirs = _likelihoods(model, tokenizer, prompts, wrong)
                wins = [a[0] > b[0] for a, b in zip(ours, theirs, strict=True)]
                column.append((_mean(wins), _mean([leads for _, leads in ours])))
    es, ps, ns = (100 * _mean([a for a, _ in column]) for column in columns)
    exact = [100 * _mean([b for _, b in column]) for column in columns]
    harmonic = 3 / (1 / es + 1 / ps + 1 / ns) if min(es, ps, ns) > 0 else 0.0
    return Scores(es, ps, ns, harmonic, (exact[0], exact[1], exact[2]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _likelihoods(
    model: Any, tokenizer: Any, prompts: Sequence[str], answer: str
) -> list[tuple[float, bool]]:
    """Per prompt: the answer's mean log-probability per token, and whether every token leads."""
    before = [list(encode_prompt(tokenizer, prompt).ids) for prompt in prompts]
    target = list(encode_target(tokenizer, answer, prompts[0]))
    rows = pad([ids + target for ids in before], next(model.parameters()).device)
    log_probs = logits_of(model, rows).log_softmax(-1)
    wanted = torch.tensor(target, device=rows.ids.device)
    result = []
    for row, ids in zip(log_probs, before, strict=True):
        spoken = row[len(ids) - 1 : len(ids) - 1 + len(target)]
        mean = spoken.gather(1, wanted[:, None]).mean()
        result.append((float(mean), bool((spoken.argmax(-1) == wanted).all())))
    return result
