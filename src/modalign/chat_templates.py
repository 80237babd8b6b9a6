"""How a tokenizer writes a conversation: the one place that applies a chat template.

From messages to text and token ids, which stretches of them the assistant says, and which ids end an answer.
Tokenizers and processors are known here by what they do, so this file needs neither torch nor any room: it
lies on the ground, where supervision, a local endpoint and all the rooms above share it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from modalign.errors import DataError, first_line

Messages = Sequence[Mapping[str, Any]]
Spans = list[tuple[int, int]]  # characters, first and one after the last

_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TURN_ENDS: WeakKeyDictionary[Any, tuple[Any, list[int]]] = WeakKeyDictionary()


def rendered(
    reader: Any, messages: Messages, *, answered: bool = False, tools: Sequence[Any] | None = None
) -> str:
    """A conversation as the chat template writes it.

    Args:
        reader: a tokenizer, or a processor with a template of its own.
        messages: as the template takes them.
        answered: whether the last message is the answer; if not, the text ends where it would begin.
        tools: schemas of tools that the model may call.

    Raises:
        DataError: the template refuses the conversation; the message says why.
    """
    try:
        text: str = reader.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=not answered,
            **({"tools": list(tools)} if tools else {}),
        )
    except (
        Exception
    ) as error:  # a template is a program of the model's maker: it may raise anything
        raise _refusal(error) from error
    return text


def prompt_ids(tokenizer: Any, messages: Messages, tools: Sequence[Any] | None = None) -> list[int]:
    """Token ids of a conversation, up to where the answer begins.

    Raises:
        DataError: the template refuses the conversation.
    """
    return ids_of(tokenizer, rendered(tokenizer, messages, tools=tools))


def supervised(tokenizer: Any, messages: Messages) -> tuple[str, Spans]:
    """An answered conversation as text, and the stretches of it that the assistant says.

    They come from the template's generation marks; without marks from what each assistant turn adds to the
    conversation before it.

    Raises:
        DataError: the template refuses the conversation, or writes a turn differently once more follow.
    """
    if not has_marks(tokenizer):
        return _by_prefix(tokenizer, messages)
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, spans = render_jinja_template(
            conversations=[list(messages)],
            chat_template=tokenizer.get_chat_template(),
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    except Exception as error:
        raise _refusal(error) from error
    return texts[0], [(start, stop) for start, stop in spans[0]]


def _by_prefix(tokenizer: Any, messages: Messages) -> tuple[str, Spans]:
    whole, spans = rendered(tokenizer, messages, answered=True), []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = rendered(tokenizer, messages[:turn])
        after = rendered(tokenizer, messages[: turn + 1], answered=True)
        if not (after.startswith(before) and whole.startswith(after)):
            raise DataError(
                f"the chat template renders turn {turn + 1} differently once more turns follow, so its "
                "supervised tokens cannot be told; add {% generation %} marks to the template"
            )
        spans.append((len(before), len(after)))
    return whole, spans


def has_marks(tokenizer: Any) -> bool:
    """Whether the chat template says itself what the assistant generates."""
    return _MARK.search(tokenizer.get_chat_template()) is not None


def takes_tools(reader: Any, question: Any = "?") -> bool:
    """Whether the chat template shows the model the tools it is given.

    Args:
        reader: a tokenizer, or a processor with a template of its own.
        question: a message's content as the template takes it.
    """
    asked = [{"role": "user", "content": question}]
    schema = {"type": "object", "properties": {}}
    function = {"name": "look", "description": "", "parameters": schema}
    try:
        without = rendered(reader, asked)
        return (
            rendered(reader, asked, tools=[{"type": "function", "function": function}]) != without
        )
    except DataError:
        return False


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a rendered conversation or a part of it."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def ids_and_offsets(
    tokenizer: Any, text: str, *, add_special_tokens: bool = False
) -> tuple[list[int], Spans]:
    """Token ids of a text, and the characters each stands for.

    Raises:
        DataError: the tokenizer does not know the characters.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed to tell "
            "which token stands for what"
        )
    encoded = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
    return list(encoded["input_ids"]), list(encoded["offset_mapping"])


def ids_after(tokenizer: Any, before: str, text: str, *, fixed: bool = True) -> list[int]:
    """Token ids of a text that stands after another.

    Both are tokenised together, as in training: alone, many tokenizers would put a space in front.

    Args:
        tokenizer: a fast one.
        before: the text before it.
        text: what comes then.
        fixed: whether the first text's own ids are given. Then, where a token reaches over the border, a line
            break takes the first text's place; if not, that token belongs to the second.
    """
    found: list[tuple[int, int]] = []
    least = 0
    for front in (before, "\n"):
        ids, offsets = ids_and_offsets(tokenizer, front + text)
        found = [
            (token, start)
            for token, (start, stop) in zip(ids, offsets, strict=True)
            if stop > max(start, len(front))
        ]
        least = len(front) if fixed else 0
        if all(start >= least for _, start in found):
            break
    return [token for token, start in found if start >= least]


def until_end(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Ids up to the first end mark, which is kept."""
    last = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return list(ids[: last + 1])


def without_end(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """Ids without the special tokens that some tokenizers put after every text (T5's </s>, BERT's [SEP])."""
    special = set(getattr(tokenizer, "all_special_ids", None) or [])
    stop = len(ids)
    while stop > 1 and ids[stop - 1] in special:
        stop -= 1
    return list(ids[:stop])


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text to go on from: with what the tokenizer puts before it, not with what it puts after.

    Raises:
        DataError: it has no tokens.
    """
    ids = without_end(tokenizer, tokenizer(text)["input_ids"])
    if not ids:
        raise DataError(f"the prompt {text!r} has no tokens")
    return ids


def end_ids(tokenizer: Any, generation: Any = None) -> list[int]:
    """Every id that ends an answer.

    Args:
        tokenizer: its end token counts, and the mark that its chat template puts after a turn.
        generation: the model's generation configuration, whose ends count first.
    """
    declared = getattr(generation, "eos_token_id", None)
    found = list(declared) if isinstance(declared, list | tuple) else [declared]
    found += [getattr(tokenizer, "eos_token_id", None), *turn_end_ids(tokenizer)]
    return list(dict.fromkeys(int(token) for token in found if token is not None))


def turn_end_ids(tokenizer: Any) -> list[int]:
    """The special token that the chat template puts after an assistant's turn, if it puts one."""
    template = getattr(tokenizer, "chat_template", None)
    if template is None:
        return []
    known = _TURN_ENDS.get(tokenizer)
    if known is None or known[0] != template:
        known = _TURN_ENDS[tokenizer] = (template, _turn_end_ids(tokenizer))
    return known[1]


def _turn_end_ids(tokenizer: Any) -> list[int]:
    texts = []
    for answer in ("a", "b"):
        talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
        try:
            texts.append(rendered(tokenizer, talk, answered=True))
        except DataError:  # a template of another form of messages says nothing here
            return []
    first, second = (ids_of(tokenizer, text) for text in texts)
    shared = 0
    while shared < min(len(first), len(second)) and first[-1 - shared] == second[-1 - shared]:
        shared += 1
    special = {int(key) for key, value in tokenizer.added_tokens_decoder.items() if value.special}
    return [token for token in first[len(first) - shared :] if token in special][:1]


def opens_thoughts(tokenizer: Any, ids: Sequence[int]) -> bool:
    """Whether a prompt ends within thoughts, as some templates begin every answer."""
    end = str(tokenizer.decode(list(ids[-8:]), skip_special_tokens=False))
    return end.rstrip().endswith("<think>")


def pad_id(tokenizer: Any) -> int:
    """An id to fill rows with, which a mask hides: the padding token, else the end token, else 0."""
    for name in ("pad_token_id", "eos_token_id"):
        found = getattr(tokenizer, name, None)
        if found is not None:
            return int(found)
    return 0


def _refusal(error: Exception) -> DataError:
    return DataError(f"the chat template refuses the conversation: {first_line(error)}")
