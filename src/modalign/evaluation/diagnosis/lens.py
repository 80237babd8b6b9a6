"""The logit lens at a modality's positions: the words that the language model reads from them, layer by layer.

Source: nostalgebraist 2020 (interpreting GPT: the logit lens); on image tokens Neo et al. 2024 (arXiv
2410.07149). A layer's hidden states are read through the model's own final norm and head. The last layer
predicts the next token; if earlier states contain words of the answer, the connector's tokens have become
text-like.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modalign.evaluation.diagnosis.reading import ObservedModel, Seen
from modalign.evaluation.diagnosis.results import Diagnostic, WordShare, diagnostic
from modalign.models.parts import PartNotFoundError, decoder_layers
from modalign.numbers.sampling import Sampling

TOP = 5  # most likely tokens of a position searched for words of the answer
SHOWN = 6  # most likely tokens listed per layer
OTHERS = 20  # other records' answers used for chance
SAYS = "says a word of the answer"
ROWS = 256  # positions read at a time

Readout = Callable[[Tensor], Tensor]


def entropy(logits: Tensor) -> Tensor:
    """(..., V) -> (...) entropy in nats, between 0 and ln V."""
    logs = torch.log_softmax(logits.float(), dim=-1)
    return -(logs.exp() * logs).sum(dim=-1)


def find_readout(subject: ObservedModel) -> Readout | None:
    """Find the modules that turn the last layer's output into logits.

    Found by running two tokens; None if the result differs from the model's own logits (which may be
    scaled or capped).
    """
    head = subject.model.get_output_embeddings()
    try:
        layers = decoder_layers(subject.decoder)
    except PartNotFoundError:
        return None
    parent = next(m for m in subject.decoder.modules() if any(c is layers for c in m.children()))
    tail: list[nn.Module] = []
    seen: dict[str, Tensor] = {}

    def last(module: nn.Module, args: Any, output: Any) -> None:
        seen["state"] = output[0] if isinstance(output, tuple) else output
        tail.clear()

    ids = torch.tensor([[5, 7]], device=subject.device)
    with ExitStack() as stack, torch.inference_mode():
        for child in parent.children():
            if child is not layers:
                hook = child.register_forward_hook(lambda module, args, output: tail.append(module))
                stack.callback(hook.remove)
        stack.callback(layers[-1].register_forward_hook(last).remove)
        logits = subject.model(input_ids=ids, use_cache=False).logits

    def read(states: Tensor) -> Tensor:
        for module in tail:
            states = module(states)
        found: Tensor = head(states)
        return found

    if head is None or "state" not in seen:
        return None
    with torch.inference_mode():
        made = read(seen["state"])
    close = made.shape == logits.shape and torch.allclose(made, logits, rtol=1e-2, atol=1e-2)
    return read if close else None


def answer_tokens(tokenizer: Any, text: str) -> set[int]:
    """Return ids of a text's tokens with letters or digits, at the start of a line and after a space."""
    ids = set()
    for written in (text, " " + text):
        ids |= set(tokenizer(written, add_special_tokens=False)["input_ids"])
    return {token for token in ids if re.search(r"\w", tokenizer.decode([token]))}


class LogitLens:
    """Collects the lens's readings record by record."""

    def __init__(self, subject: ObservedModel, answers: Sequence[str], sampling: Sampling) -> None:
        """``answers``: of all records, in the order of :meth:`add`."""
        self.subject, self.sampling = subject, sampling
        self.readout = find_readout(subject)
        self.answers = [answer_tokens(subject.tokenizer, answer) for answer in answers]
        self.rng = np.random.default_rng(sampling.seed)
        self.entropies: list[list[float]] = []
        self.shares: list[list[float]] = []
        self.chances: list[list[float]] = []
        self.words: list[Counter[int]] = []
        self.positions = 0

    @torch.inference_mode()
    def add(self, number: int, seen: Seen, places: Tensor) -> None:
        """Add a record: its ``number`` among the answers, and its modality's positions."""
        if self.readout is None:
            return
        drawn = self.rng.permutation(len(self.answers))[: OTHERS + 1].tolist()
        others = [other for other in drawn if other != number][:OTHERS]
        entropies, shares, chances = [], [], []
        for layer, state in enumerate(seen.states):
            found, top = self._read(state[places], layer == len(seen.states) - 1)
            entropies.append(float(found.mean()))
            shares.append(self._hits(top, number))
            chances.append(float(np.mean([self._hits(top, o) for o in others or [number]])))
            if layer == len(self.words):
                self.words.append(Counter())
            self.words[layer].update(top[:, 0].tolist())
        self.positions += len(places)
        self.entropies.append(entropies)
        self.shares.append(shares)
        self.chances.append(chances)

    def _read(self, states: Tensor, normed: bool) -> tuple[Tensor, Tensor]:
        """Return entropies (M,) and most likely tokens (M, TOP) of states, which may be normed already."""
        assert self.readout is not None
        head = self.subject.model.get_output_embeddings()
        parts = [(head if normed else self.readout)(part) for part in states.split(ROWS)]
        entropies = torch.cat([entropy(part) for part in parts])
        return entropies, torch.cat([part.topk(TOP, dim=-1).indices for part in parts]).cpu()

    def _hits(self, top: Tensor, number: int) -> float:
        wanted = torch.tensor(sorted(self.answers[number]), dtype=torch.long)
        return float(torch.isin(top, wanted).any(dim=1).double().mean())

    def result(self) -> Diagnostic:
        """Return curves over layers, the most likely words, and the layer with most of the answer."""
        found = diagnostic("logit_lens")
        if not self.shares:
            found.undefined = (
                "the logits of this model are not its head on its final norm, so states of earlier "
                "layers cannot be read through them"
            )
            return found
        shares, chances = np.array(self.shares), np.array(self.chances)
        entropies = np.array(self.entropies)
        for layer in range(shares.shape[1]):
            chance = float(chances[:, layer].mean())
            share = self.sampling.mean(shares[:, layer], "share", chance)
            spread = self.sampling.mean(entropies[:, layer], "nats")
            found.curves.setdefault(SAYS, []).append(share)
            found.curves.setdefault("entropy", []).append(spread)
        gains = shares - chances
        best = int(gains.mean(axis=0).argmax())
        found.figures = {
            f"{SAYS}, layer {best}": found.curves[SAYS][best],
            f"more than by chance, layer {best}": self.sampling.mean(
                gains[:, best], "difference of shares"
            ),
            "entropy at layer 0": found.curves["entropy"][0],
            f"entropy at layer {shares.shape[1] - 1}": found.curves["entropy"][-1],
        }
        found.words = [self._likeliest(counter) for counter in self.words]
        words = self.subject.model.get_output_embeddings().weight.shape[0]
        found.notes = [
            f"{self.positions:,} positions; entropy is at most {math.log(words):.2f} nats",
            f"a position counts where one of its {TOP} likeliest tokens is a token of the record's own answer; "
            "chance is the same with other records' answers",
        ]
        return found

    def _likeliest(self, counter: Counter[int]) -> list[WordShare]:
        total = max(sum(counter.values()), 1)
        return [
            WordShare(token=self.subject.tokenizer.decode([token]), share=count / total)
            for token, count in counter.most_common(SHOWN)
        ]
