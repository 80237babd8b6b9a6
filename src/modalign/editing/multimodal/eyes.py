"""Get what the language part reads in place of a picture: embeddings made by the model itself.

The whole model runs once per picture and prompt, up to its first decoder layer, and the embeddings that
arrive there are kept in memory. Everything after that (values, keys, statistics) runs the language part
on them, so the vision tower runs once per row and is never changed.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from modalign.connectors.base import InLayerConnector
from modalign.editing.engine.asking import Asked
from modalign.editing.engine.forward import Row, StopForwardError, logits_at
from modalign.editing.engine.spec import ModelSpec, SpecError
from modalign.models.projections import evaluating

TOLERANCE = 1e-3  # of logits, relative to the largest: different shapes may use different kernels


class Eyes:
    """Reads pictures for one model.

    Attributes:
        spec: the model.
    """

    def __init__(self, spec: ModelSpec) -> None:
        """Refuse models whose pictures do not become tokens among the words.

        Raises:
            SpecError: a connector inside the layers reads the pictures.
        """
        inside = [m for m in spec.model.modules() if isinstance(m, InLayerConnector)]
        if inside:
            raise SpecError(
                f"{type(inside[0]).__name__} reads pictures inside the layers, so they have no "
                "tokens that an edit could be written at; edit with text only (leave the images out), "
                "or train a connector that puts tokens before the text"
            )
        self.spec = spec
        self._seen: dict[str, Tensor] = {}
        self._checked = False

    def row(self, asked: Asked, lookup: int, *, keep: bool = True) -> Row:
        """Make the prompt a row with embeddings.

        Args:
            asked: the prompt with its picture.
            lookup: position of the lookup token.
            keep: keep the embeddings in memory for next time; False for a long stream.

        Raises:
            SpecError: the language part alone, run on the embeddings, differs from the whole
                model, because it receives more than embeddings (several position axes, visual features
                added in deeper layers ...).
        """
        embeds = self.embeddings(asked, keep=keep)
        row = Row(asked.ids, lookup, embeds)
        if not self._checked:
            self._check(asked, row)
            self._checked = True
        return row

    def embeddings(self, asked: Asked, *, keep: bool = True) -> Tensor:
        """Return the embeddings, (T, D) on the CPU, the picture's among the words'."""
        assert asked.inputs is not None
        if not keep:
            return self._read(asked.inputs)
        key = _key(asked.inputs)
        if key not in self._seen:
            self._seen[key] = self._read(asked.inputs)
        return self._seen[key]

    def _read(self, inputs: dict[str, Any]) -> Tensor:
        found: list[Tensor] = []

        def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            given = kwargs.get("inputs_embeds")
            if given is not None:
                found.append(given.detach())

        def stop(module: nn.Module, args: Any) -> None:
            raise StopForwardError

        with ExitStack() as stack, torch.no_grad(), evaluating(self.spec.model):
            for module in self.spec.model.modules():
                if isinstance(module, PreTrainedModel) and _holds(module, self.spec.layers):
                    handle = module.register_forward_pre_hook(note, with_kwargs=True)
                    stack.enter_context(handle)
            stack.enter_context(self.spec.layers[0].register_forward_pre_hook(stop))
            with suppress(StopForwardError):
                self.spec.model(**self._placed(inputs), use_cache=False)
        if not found:
            raise SpecError(
                f"{type(self.spec.model).__name__} hands its language part no embeddings; editing "
                "with pictures needs a model whose pictures become tokens"
            )
        return found[-1][0].cpu()

    def _placed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move inputs to the model's device, pixels in its precision."""
        return {
            name: value.to(self.spec.device, self.spec.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
            if isinstance(value, Tensor)
        }

    def _check(self, asked: Asked, row: Row) -> None:
        assert asked.inputs is not None
        with torch.no_grad(), evaluating(self.spec.model):
            whole = self.spec.model(**self._placed(asked.inputs), use_cache=False).logits[0]
            alone = logits_at(self.spec, [row], [range(len(row))])[0]
        same_length = whole.shape == alone.shape
        difference = float((whole - alone).double().abs().max()) if same_length else float("inf")
        scale = float(whole.double().abs().max())
        allowed = TOLERANCE if self.spec.dtype in (torch.float32, torch.float64) else 5e-2
        if not difference <= allowed * scale:
            raise SpecError(
                f"{type(self.spec.model).__name__}: the language part alone differs from the whole "
                f"model by {difference:.2g} in the logits of a prompt with a picture; it gets more "
                "than embeddings, and editing with pictures cannot follow that. Leave the images out"
            )


def _holds(module: nn.Module, layers: nn.Module) -> bool:
    return any(part is layers for part in module.modules())


def _key(inputs: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(inputs.items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
