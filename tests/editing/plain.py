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
from modalign.editing.tokens import Rows, encode_prompt, encode_target, pad

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
