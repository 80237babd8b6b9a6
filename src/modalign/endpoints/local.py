"""A chat model in this process: a causal language model of transformers with its chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from modalign.chat_templates import (
    as_text,
    end_ids,
    opens_thoughts,
    pad_id,
    prompt_ids,
    takes_tools,
)
from modalign.endpoints.call_grammar import CallGrammar
from modalign.endpoints.chat import ChatMessage, Reply, ToolCall, ToolSchema, Usage
from modalign.endpoints.errors import EndpointError
from modalign.endpoints.tool_calls import (
    as_plain_text,
    end_of_thoughts,
    split_calls,
    with_mappings,
)
from modalign.errors import DataError, UsageError
from modalign.lengths import declared_length

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PLAIN = re.compile(r"[ \w.,:#-]{1,20}")  # within an argument's text, no way to end it
SETTINGS = {"max_tokens", "temperature", "top_p", "seed", "valid_calls"}


class LocalChat:
    """The protocol of :class:`~modalign.endpoints.chat.Chat` over a model and its tokenizer.

    If the chat template supports tools it gets them, and the tokenizer's response template parses
    the calls; otherwise schemas, calls and observations are written as text (:mod:`tool_calls`).

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, with a chat template.
        max_tokens: maximum length of a reply, unless a request sets it or the context is shorter.

    Raises:
        UsageError: the tokenizer has no chat template.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int = 512,
    ) -> None:
        if tokenizer.chat_template is None:
            raise UsageError(
                f"{tokenizer.name_or_path or 'the tokenizer'} has no chat template; give one that was"
                " made for conversations"
            )
        self.language_model: Any = model
        self.tokenizer: Any = tokenizer
        self.model = str(model.config.name_or_path or type(model).__name__)
        self.max_tokens = max_tokens
        self.end_ids = end_ids(tokenizer, model.generation_config)
        self.usage = Usage()
        self.knows_tools = takes_tools(tokenizer)
        self._texts: list[tuple[int, str]] | None = None  # of the tokens that a reply may hold

    def complete(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[ToolSchema] | None = None,
        *,
        sample: int = 0,
        **settings: Any,
    ) -> Reply:
        """Answer the last turn: greedily, or by sampling if ``temperature`` is above 0.

        Args:
            messages: the turns.
            tools: schemas of tools that the model may call.
            sample: added to ``seed``, so that another number gives another sample.
            settings: max_tokens, temperature, top_p, seed; ``valid_calls``: calls of these tools are held to
                their schema, token by token (only for tools whose arguments are texts).

        Raises:
            UsageError: an unknown setting.
            EndpointError: the conversation does not fit the template or the model's context.
        """
        if unknown := settings.keys() - SETTINGS:
            known = ", ".join(sorted(SETTINGS))
            raise UsageError(
                f"a local model has no setting {', '.join(sorted(unknown))}; it has {known}"
            )
        ids = self._prompt(messages, tools)
        limit = self._limit(ids.shape[1], settings.get("max_tokens"))
        held = CallGrammar(tools) if tools and settings.get("valid_calls") else None
        new = self._generate(ids, limit, sample, settings, held)
        text, calls = self._read(ids, new, tools)
        cut = new.shape[0] >= limit and int(new[-1]) not in self.end_ids
        finish = "length" if cut else "tool_calls" if calls else "stop"
        reply = Reply(text, calls, finish, ids.shape[1], new.shape[0])
        self.usage.add(reply)
        return reply

    def _prompt(
        self, messages: Sequence[ChatMessage], tools: Sequence[ToolSchema] | None
    ) -> Tensor:
        import torch

        if self.knows_tools:
            turns, offered = with_mappings(messages), list(tools) if tools else None
        else:
            turns, offered = as_plain_text(messages, tools), None
        try:
            ids = prompt_ids(self.tokenizer, as_text(self.tokenizer, turns), offered)
        except DataError as error:
            raise EndpointError(f"{self.model}: {error}") from None
        return torch.tensor([ids], device=self.language_model.device)

    def _limit(self, length: int, asked: int | None) -> int:
        """Return the maximum reply after a prompt of this length; the default is cut to the available room."""
        context = declared_length(self.language_model.config)
        wanted = self.max_tokens if asked is None else int(asked)
        room = wanted if context is None else context - length
        if room <= 0 or (asked is not None and room < wanted):
            raise EndpointError(
                f"{self.model}: {length} tokens of prompt and {wanted} of reply are more than its"
                f" context of {context}"
            )
        return min(wanted, room)

    def _generate(
        self,
        ids: Tensor,
        limit: int,
        sample: int,
        settings: dict[str, Any],
        held: CallGrammar | None,
    ) -> Tensor:
        import torch

        temperature = float(settings.get("temperature", 0.0))
        drawing: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            top_p = float(settings.get("top_p", 1.0))
            drawing = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        devices = [ids.device] if ids.device.type == "cuda" else []
        with torch.inference_mode(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(settings.get("seed", 0)) + sample)
            made = self.language_model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=limit,
                eos_token_id=self.end_ids or None,
                pad_token_id=pad_id(self.tokenizer),
                prefix_allowed_tokens_fn=self._holding(held, ids.shape[1]) if held else None,
                **drawing,
            )
        new: Tensor = made[0, ids.shape[1] :]
        return new

    def _holding(self, held: CallGrammar, start: int) -> Callable[[int, Tensor], list[int]]:
        """Return the tokens that may come next, by what was written from ``start`` on."""
        if self._texts is None:
            size = self.language_model.get_output_embeddings().weight.shape[0]
            known = min(size, len(self.tokenizer))
            front = self.tokenizer.decode(
                self.tokenizer("a", add_special_tokens=False)["input_ids"]
            )
            texts = [
                self.tokenizer.decode(
                    [*self.tokenizer("a", add_special_tokens=False)["input_ids"], token]
                )[len(front) :]
                for token in range(known)
            ]
            special = set(self.tokenizer.all_special_ids)
            self._texts = [
                (token, text)
                for token, text in enumerate(texts)
                if text and token not in special and "\ufffd" not in text
            ]
        plain = [token for token, text in self._texts if _PLAIN.fullmatch(text)]
        others = [(token, text) for token, text in self._texts if not _PLAIN.fullmatch(text)]

        def allowed(_: int, row: Tensor) -> list[int]:
            said = self.tokenizer.decode(row[start:], skip_special_tokens=True)
            rest = others if held.free(said) else self._texts or []
            found = list(plain) if held.free(said) else []
            found += [token for token, text in rest if held.begins(said + text)]
            if held.ended(said) or not found:
                found += self.end_ids
            return found

        return allowed

    def _read(
        self, ids: Tensor, new: Tensor, tools: Sequence[ToolSchema] | None
    ) -> tuple[str, tuple[ToolCall, ...]]:
        """Parse the reply's text and calls, with the tokenizer's response template if it has one."""
        if getattr(self.tokenizer, "response_template", None):
            offered = list(tools) if tools else None
            try:
                message = self.tokenizer.parse_response(
                    new.tolist(), prefix=ids[0].tolist(), tools=offered
                )
                calls = message.get("tool_calls") or ()
                return message.get("content") or "", tuple(
                    map(_typed_call, range(len(calls)), calls)
                )
            except (
                ValueError,
                KeyError,
                TypeError,
            ):  # a malformed call, which must be reported as one
                raw = self.tokenizer.decode(new, skip_special_tokens=True).strip()
                return "", (ToolCall("", raw, "call_0"),)
        thinking = opens_thoughts(self.tokenizer, ids[0].tolist())
        text = str(self.tokenizer.decode(new, skip_special_tokens=True))
        text = text[end_of_thoughts(text, thinking) :].strip()
        return split_calls(text) if tools else (text, ())


def _typed_call(place: int, item: dict[str, Any]) -> ToolCall:
    function = item["function"]
    return ToolCall(
        str(function["name"]), json.dumps(function.get("arguments", {})), f"call_{place}"
    )
