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
_FROM, _TO = (
    "\U000f0000",
    "\U000f0001",
)  # around a control token that is text; transformers' own marks
_PIECES = re.compile(f"{_FROM}(?P<plain>.*?){_TO}|[^{_FROM}{_TO}]+", re.DOTALL)
_CONTROLS: WeakKeyDictionary[Any, tuple[int, re.Pattern[str]]] = WeakKeyDictionary()
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
    except Exception as error:
        # a template is a program of the model's maker: it may raise anything
        raise _refusal(error) from error
    return text


def as_text(tokenizer: Any, value: Any) -> Any:
    """A message's content, in which no text is a control token any more.

    A user's ``<|im_start|>`` opens no turn, an answer's ``</s>`` ends none: special tokens that stand in the
    text are marked, and are tokenised as the characters they are. Placeholders of media are put in afterwards.

    Args:
        tokenizer: whose special tokens count.
        value: a text, or lists and mappings that hold some; all else stays as it is.
    """
    if isinstance(value, str):
        bare = value.replace(_FROM, "").replace(_TO, "")
        return _controls(tokenizer).sub(f"{_FROM}\\g<0>{_TO}", bare)
    if isinstance(value, Mapping):
        return {key: as_text(tokenizer, each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_text(tokenizer, each) for each in value]
    return value


def _controls(tokenizer: Any) -> re.Pattern[str]:
    """Matches the special tokens, longest first."""
    known = _CONTROLS.get(tokenizer)
    if known is None or known[0] != len(tokenizer):
        added = tokenizer.added_tokens_decoder.values()
        texts = sorted({each.content for each in added if each.special}, key=len, reverse=True)
        pattern = "|".join(re.escape(text) for text in texts if text.strip()) or "(?!)"
        known = _CONTROLS[tokenizer] = (len(tokenizer), re.compile(pattern))
    return known[1]


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
        DataError: the template refuses the conversation, asks otherwise than it writes what was answered, or
            writes a turn differently once more follow.
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
    if messages[-1]["role"] == "assistant" and len(messages) > 1:
        check_asked(rendered(tokenizer, messages[:-1]), texts[0])
    return texts[0], [(start, stop) for start, stop in spans[0]]


def _by_prefix(tokenizer: Any, messages: Messages) -> tuple[str, Spans]:
    whole, spans = rendered(tokenizer, messages, answered=True), []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = rendered(tokenizer, messages[:turn]) if turn else _opening(tokenizer, message)
        after = rendered(tokenizer, messages[: turn + 1], answered=True)
        check_asked(before, after)
        if not whole.startswith(after):
            raise DataError(
                f"the chat template renders turn {turn + 1} differently once more turns follow, so its "
                "supervised tokens cannot be told; add {% generation %} marks to the template"
            )
        spans.append((len(before), len(after)))
    return whole, spans


def check_asked(asked: str, answered: str) -> None:
    """See that what is asked is what stands before the answer in training.

    Raises:
        DataError: it is not; the message shows where the two part.
    """
    if answered.startswith(asked):
        return
    pairs = enumerate(zip(asked, answered, strict=False))
    place = next((at for at, (one, other) in pairs if one != other), min(len(asked), len(answered)))
    raise DataError(
        f"the chat template asks with {asked[max(place - 20, 0) :]!r} where an answered conversation has "
        f"{answered[max(place - 20, 0) : place + 20]!r}: the model would be asked otherwise than it was "
        "trained; give the tokenizer a template whose generation prompt is what stands before answers"
    )


def _opening(tokenizer: Any, message: Mapping[str, Any]) -> str:
    """What the template writes before an answer that nothing was asked for: what all such answers share."""
    first, second = (
        rendered(tokenizer, [{**message, "content": each}], answered=True) for each in ("a", "b")
    )
    pairs = enumerate(zip(first, second, strict=False))
    return first[: next((place for place, (one, other) in pairs if one != other), len(first))]


def has_marks(tokenizer: Any) -> bool:
    """Whether the chat template says itself what the assistant generates."""
    return _MARK.search(tokenizer.get_chat_template()) is not None


def one_template(template: Any) -> str | None:
    """A tokenizer's chat template; of several by name (``default``, ``tool_use``) one that chooses as they do.

    Raises:
        DataError: none of them is called ``default``.
    """
    if template is None or isinstance(template, str):
        return template
    if "default" not in template:
        raise DataError(
            f"the tokenizer has chat templates by name ({', '.join(sorted(template))}) and none called "
            "default: save it with the one to use as its chat_template"
        )
    default = str(template["default"])
    if "tool_use" not in template:
        return default
    # A line break after a tag is dropped (trim_blocks), so that both begin as they did.
    return f"{{% if tools %}}\n{template['tool_use']}{{% else %}}\n{default}{{% endif %}}"


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
    if _FROM in text or _TO in text:
        return _marked(tokenizer, text)[0]
    return list(_encoded(tokenizer, text, add_special_tokens=False)["input_ids"])


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
    if _FROM in text or _TO in text:
        return _marked(tokenizer, text)
    encoded = _encoded(
        tokenizer, text, add_special_tokens=add_special_tokens, return_offsets_mapping=True
    )
    return list(encoded["input_ids"]), list(encoded["offset_mapping"])


def _encoded(tokenizer: Any, text: str, **how: bool) -> Any:
    try:
        return tokenizer(text, **how)
    except Exception as error:  # a lone surrogate, or whatever else a tokenizer does not take
        raise DataError(f"the tokenizer refuses the text: {first_line(error)}") from error


def _marked(tokenizer: Any, text: str) -> tuple[list[int], Spans]:
    """Ids and offsets of a text with marks: piece by piece, as transformers' processors do."""
    ids: list[int] = []
    offsets: Spans = []
    for match in _PIECES.finditer(text):
        if match["plain"] is None:
            pieces = [_piece(tokenizer, match[0], match.start(), plain=False)]
        else:
            begin, control = match.start("plain"), match["plain"]
            pieces = [_piece(tokenizer, control, begin, plain=True)]
            if tokenizer.added_tokens_encoder.get(control) in pieces[0][0]:
                # A vocabulary of unigrams writes it itself: letter by letter it cannot.
                pieces = [
                    _piece(tokenizer, c, begin + i, plain=True) for i, c in enumerate(control)
                ]
        for found, places in pieces:
            ids += found
            offsets += places
    return ids, offsets


def _piece(tokenizer: Any, piece: str, begin: int, *, plain: bool) -> tuple[list[int], Spans]:
    """Ids and offsets of what stands at a place of a text.

    It is encoded after a line break, since SentencePiece puts a space before what comes first.
    """
    for front in ("\n", "") if begin else ("",):
        encoded = _encoded(
            tokenizer,
            front + piece,
            add_special_tokens=False,
            return_offsets_mapping=True,
            split_special_tokens=plain,
        )
        pairs = list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
        if not any(start < len(front) < stop for _, (start, stop) in pairs):
            break
    shift = begin - len(front)
    kept = [(token, start, stop) for token, (start, stop) in pairs if stop > len(front)]
    return [token for token, _, _ in kept], [
        (max(start, len(front)) + shift, stop + shift) for _, start, stop in kept
    ]


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
    ids = without_end(tokenizer, _encoded(tokenizer, text)["input_ids"])
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
