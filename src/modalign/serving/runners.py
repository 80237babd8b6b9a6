"""Run a model for the engine: prompts become keys and values, then one position of all rows at a time.

One runner serves any transformers decoder; those with media cache encoder results by content, so that an
image asked about twice is encoded once.
"""

from __future__ import annotations

import inspect
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from modalign.connectors.base import InLayerConnector
from modalign.models.bridges import Features, signal_names
from modalign.models.caches import CACHE
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.probe import placed
from modalign.serving.growing import Growing
from modalign.serving.requests import Prompt
from modalign.serving.slots import KeysValues, Slots

MASKED = ("full_attention", "sliding_attention")  # kinds of layers that a step has masks for
MEDIA = 256  # number of cached encoder results

Memory = Mapping[str, tuple[Tensor, Tensor]]  # what in-layer connectors read, per modality


@dataclass
class Prefilled:
    """The result of reading prompts together.

    Attributes:
        logits: (n, 1, V) at the last position, or (n, T, V).
        layers: keys and values of all layers, (n, H, T, Dh).
        memories: per row, what in-layer connectors read.
    """

    logits: Tensor
    layers: list[KeysValues]
    memories: list[Memory]


@dataclass
class MediaCache:
    """Encoder results by content, the least recently used dropped first."""

    most: int = MEDIA
    hits: int = 0
    misses: int = 0
    kept: OrderedDict[Any, Any] = field(default_factory=OrderedDict)

    def get(self, key: Any) -> Any:
        """Return the value of a key, or None."""
        found = self.kept.get(key)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
            self.kept.move_to_end(key)
        return found

    def put(self, key: Any, value: Any) -> None:
        """Store a result."""
        self.kept[key] = value
        while len(self.kept) > self.most:
            self.kept.popitem(last=False)


class Runner:
    """A decoder that reads text.

    Attributes:
        device, dtype: of the model, which is not moved.
        shares: whether prompts may reuse keys and values of an earlier prefix.
        groups: whether prompts of equal length may be read together.
    """

    shares = True
    groups = True

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: Any = model
        # Cached, because the model's properties search its parameters every time.
        self.device, self.dtype = torch.device(self.model.device), model.dtype
        self.config = model.config.get_text_config()
        self.media = MediaCache()
        self._named = tuple(inspect.signature(model.forward).parameters)

    def prefill(
        self,
        prompts: Sequence[Prompt],
        cache: Growing | None = None,
        stop: int | None = None,
        *,
        all_logits: bool = False,
        memories: Sequence[Memory] = (),
    ) -> Prefilled:
        """Read prompts of equal length together, or a piece of them.

        Args:
            prompts: of equal length.
            cache: what was read of them so far; it takes what is read now.
            stop: where to stop; None: at their end.
            all_logits: return logits of every position that is read, not only of the last.
            memories: per row, what in-layer connectors have left so far.
        """
        stop = len(prompts[0].ids) if stop is None else stop
        cache = Growing(len(prompts[0].ids)) if cache is None else cache
        start = cache.read
        ids = torch.tensor([prompt.ids[start:stop] for prompt in prompts], device=self.device)
        output = self.model(
            input_ids=ids,
            attention_mask=torch.ones(len(prompts), stop, dtype=torch.long, device=self.device),
            position_ids=torch.arange(start, stop, device=self.device).expand(len(prompts), -1),
            use_cache=True,
            **{CACHE: cache},
            logits_to_keep=0 if all_logits else 1,
            **self.inputs(prompts, start, stop),
            **self.remembered(memories),
        )
        return Prefilled(output.logits, cache.all(), self.memories(output, len(prompts)))

    def by_itself(self, prompt: Prompt) -> Tensor:
        """Return a prompt's logits (T, V) by the model's own forward: no cache, its own positions."""
        ids = torch.tensor([prompt.ids], device=self.device)
        mask = torch.ones_like(ids)
        inputs = self.whole_inputs(prompt)
        output = self.model(input_ids=ids, attention_mask=mask, use_cache=False, **inputs)
        logits: Tensor = output.logits[0]
        return logits

    def whole_inputs(self, prompt: Prompt) -> dict[str, Any]:
        """Return what the processor made of a prompt, for the model's own forward or ``generate``."""
        inputs: dict[str, Any] = placed(dict(prompt.inputs), self.model)
        if prompt.types is not None and "mm_token_type_ids" in self._named:
            inputs["mm_token_type_ids"] = prompt.types.to(self.device)
        return inputs

    @property
    def obstacle(self) -> str:
        """What the configuration says against batches: layers of a kind that is not served so; or nothing."""
        others = set(getattr(self.config, "layer_types", None) or ()) - set(MASKED)
        if not others:
            return ""
        named = " and ".join(sorted(others))
        if "chunked_attention" in others:
            return f"its layers of the kind {named} have masks that are not made for a batch here"
        return f"its layers of the kind {named} keep a state that does not consist of positions"

    def cut(self, prompt: Prompt, stop: int) -> int:
        """Return where reading may stop, at ``stop`` or later: never within a medium."""
        if not self.shares and prompt.media:
            stop = max(stop, max(map(sum, prompt.spans), default=0))
        if prompt.inputs and not prompt.media:
            return len(prompt.ids)  # inputs of every position (Idefics)
        for begin, size in prompt.spans:
            if begin < stop < begin + size:
                return begin + size
        return stop

    def step(self, ids: Tensor, slots: Slots, memories: Sequence[Memory]) -> Tensor:
        """Advance every row by one position: last ids (n,) -> logits (n, V)."""
        slots.ready()
        output = self.model(
            input_ids=ids[:, None],
            attention_mask=self._mask(slots),
            position_ids=torch.tensor(slots.lengths(), device=self.device)[:, None],
            use_cache=True,
            **{CACHE: slots},
            **self.remembered(memories),
        )
        slots.advance()
        logits: Tensor = output.logits[:, -1]
        return logits

    def _mask(self, slots: Slots) -> Any:
        """Build the additive mask of a step, or one per kind of layer."""
        window = getattr(self.config, "sliding_window", None)
        kinds = set(getattr(self.config, "layer_types", None) or ())
        if window is None or kinds == {"full_attention"}:
            return self._additive(slots, None)
        if kinds <= {"sliding_attention"}:
            return self._additive(slots, window)
        return {
            "full_attention": self._additive(slots, None),
            "sliding_attention": self._additive(slots, window),
        }

    def _additive(self, slots: Slots, reach: int | None) -> Tensor:
        seen = slots.mask(self.device, reach)
        mask = torch.zeros(seen.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(~seen, torch.finfo(self.dtype).min)

    def inputs(self, prompts: Sequence[Prompt], start: int, stop: int) -> dict[str, Any]:
        """Return further model inputs for the media between ``start`` and ``stop``."""
        return {}

    def memories(self, output: Any, rows: int) -> list[Memory]:
        """Return what each row's in-layer connectors read."""
        return [{}] * rows

    def remembered(self, memories: Sequence[Memory]) -> dict[str, Any]:
        """Convert the rows' memories to the model's inputs of a step."""
        return {}


def media_between(prompt: Prompt, start: int, stop: int) -> list[int]:
    """Return the indices, in reading order, of the media that begin at ``start`` or later and before ``stop``."""
    return [n for n, (begin, _) in enumerate(prompt.spans) if start <= begin < stop]


class ComposedRunner(Runner):
    """A model of modalign's own class: any encoders, any connectors."""

    model: ModalignForConditionalGeneration

    def __init__(self, model: ModalignForConditionalGeneration) -> None:
        super().__init__(model)
        connectors = model.connectors.values()
        self.shares = not any(isinstance(each, InLayerConnector) for each in connectors)

    def inputs(self, prompts: Sequence[Prompt], start: int, stop: int) -> dict[str, Any]:
        """Return encoder features of the media, cached or new."""
        found = encoded(self.model, prompts, self.media, start, stop)
        return {"features": found} if found else {}

    def memories(self, output: Any, rows: int) -> list[Memory]:
        """Return the media memory of each row, as left by in-layer connectors."""
        held = output.media_memory or {}
        return [
            {m: (memory[row : row + 1], mask[row : row + 1]) for m, (memory, mask) in held.items()}
            for row in range(rows)
        ]

    def remembered(self, memories: Sequence[Memory]) -> dict[str, Any]:
        """Batch memories, padded to the longest; a row without one reads nothing."""
        together = {}
        for modality in {m for memory in memories for m in memory}:
            held = [memory.get(modality) for memory in memories]
            example = next(pair[0] for pair in held if pair is not None)
            K = max(pair[0].shape[1] for pair in held if pair is not None)
            memory = example.new_zeros(len(held), K, example.shape[2])
            mask = torch.zeros(len(held), K, dtype=torch.bool, device=example.device)
            for row, pair in enumerate(held):
                if pair is not None:
                    memory[row, : pair[0].shape[1]] = pair[0][0]
                    mask[row, : pair[1].shape[1]] = pair[1][0]
            together[modality] = (memory, mask)
        return {"media_memory": together} if together else {}


def encoded(
    model: Any,
    prompts: Sequence[Prompt],
    cache: MediaCache,
    start: int = 0,
    stop: int = sys.maxsize,
) -> dict[str, Features]:
    """Return features of the media between two positions, cached or new, by modality.

    Args:
        model: with the encoders of :class:`~modalign.models.bridges.Bridges`.
        prompts: prompts with the media, in reading order.
        cache: cache of single media.
        start: first position to include.
        stop: the position after the last.
    """
    found: dict[str, list[Features]] = {}
    for prompt in prompts:
        wanted = set(media_between(prompt, start, stop))
        numbers: dict[str, int] = {}
        for n, (modality, content) in enumerate(prompt.media):
            number = numbers[modality] = numbers.get(modality, -1) + 1
            if n not in wanted:
                continue
            made = cache.get((modality, content))
            if made is None:
                made = _encoded_one(model, prompt, modality, number)
                cache.put((modality, content), made)
            found.setdefault(modality, []).append(made)
    return {modality: _together(each) for modality, each in found.items()}


def _encoded_one(model: Any, prompt: Prompt, modality: str, number: int) -> Features:
    names = signal_names(modality)
    values, mask = (prompt.inputs.get(name) if name else None for name in names)
    assert values is not None
    one = slice(number, number + 1)
    made: Features = model.encode(
        modality,
        values[one].to(model.device, model.dtype),
        None if mask is None else mask[one].to(model.device),
    )
    return made


def _together(features: Sequence[Features]) -> Features:
    """Batch features of single media, (1, N, d) each; shorter ones are padded."""
    N = max(each.values.shape[1] for each in features)
    values, masks = [], []
    for each in features:
        missing = N - each.values.shape[1]
        values.append(torch.nn.functional.pad(each.values, (0, 0, 0, missing)))
        masks.append(torch.nn.functional.pad(each.mask, (0, missing)))
    return Features(torch.cat(values), torch.cat(masks), features[0].grid)


class NativeRunner(Runner):
    """A transformers model with images; caches image features if its forward accepts them."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.ready_made = "mm_encoder_outputs" in self._named
        # Without precomputed features, inputs cannot be assigned to images.
        self.shares = self.groups = self.ready_made

    @property
    def obstacle(self) -> str:
        """What speaks against batches: positions of several axes, which a step has no numbers for."""
        if hasattr(getattr(self.model, "model", None), "get_rope_index"):
            return "the positions of its media have several axes"
        return super().obstacle

    def inputs(self, prompts: Sequence[Prompt], start: int, stop: int) -> dict[str, Any]:
        """Return the images' features, or the processor's own inputs of a single prompt."""
        if not self.ready_made:
            if start:
                return {}  # all media are in the first piece: see ``cut``
            return {name: self._moved(value) for name, value in prompts[0].inputs.items()}
        pooled: list[Tensor] = []
        for prompt in prompts:
            wanted = media_between(prompt, start, stop)
            pooled += [self._image_features(prompt)[number] for number in wanted]
        if not pooled:
            return {}
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=pooled)}}

    def _image_features(self, prompt: Prompt) -> list[Tensor]:
        key = tuple(content for _, content in prompt.media)
        known = self.media.get(key)
        if known is None:
            taken = inspect.signature(self.model.model.get_image_features).parameters
            given = {n: self._moved(v) for n, v in prompt.inputs.items() if n in taken}
            known = list(self.model.get_image_features(**given, return_dict=True).pooler_output)
            self.media.put(key, known)
        return known

    def _moved(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(self.device, self.dtype if value.is_floating_point() else None)


def runner_of(model: PreTrainedModel, modalities: Sequence[str]) -> Runner:
    """Choose the runner for a model's class."""
    if isinstance(model, ModalignForConditionalGeneration):
        return ComposedRunner(model)
    return NativeRunner(model) if modalities else Runner(model)
