"""How a tokenizer renders a conversation: the only module that applies chat templates.

From messages to text and token ids, with the spans that the assistant says and the ids that end an answer.
Tokenizers and processors are duck-typed, so this file needs neither torch nor any room: supervision, local
endpoints and all rooms above share it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from modalign.errors import DataError, UsageError, choose, first_line

Messages = Sequence[Mapping[str, Any]]
Spans = list[tuple[int, int]]  # in characters, end exclusive

SEPARATOR = "<|separator|>"  # a token whose embedding trains, of a prompt that is kept with a model
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_FROM, _TO = (
    "\U000f0000",
    "\U000f0001",
)  # surround a control token that is text; transformers' own markers
_PIECES = re.compile(f"{_FROM}(?P<plain>.*?){_TO}|[^{_FROM}{_TO}]+", re.DOTALL)
_IN_TEXT = "control_tokens_in_text"  # of a tokenizer's configuration: see let_through
_CONTROLS: WeakKeyDictionary[Any, tuple[int, re.Pattern[str]]] = WeakKeyDictionary()
_TURN_ENDS: WeakKeyDictionary[Any, tuple[Any, list[int]]] = WeakKeyDictionary()


def rendered(
    reader: Any, messages: Messages, *, answered: bool = False, tools: Sequence[Any] | None = None
) -> str:
    """Render a conversation with the chat template.

    Args:
        reader: a tokenizer, or a processor with its own template.
        messages: in the template's form.
        answered: whether the last message is the answer; if not, the text ends where the answer would begin.
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
    ) as error:  # a template is a program of the model's maker and may raise anything
        raise _refusal(error) from error
    return text


def as_text(tokenizer: Any, value: Any) -> Any:
    """Mark a message's content so that no text in it is a control token.

    A user's ``<|im_start|>`` opens no turn and an answer's ``</s>`` ends none: special tokens in the text are
    marked and tokenised as ordinary characters. Placeholders of media are inserted afterwards.

    Args:
        tokenizer: the tokenizer with the special tokens.
        value: a text, or lists and mappings of texts; everything else is unchanged.
    """
    if isinstance(value, str):
        bare = value.replace(_FROM, "").replace(_TO, "")
        return _controls(tokenizer).sub(f"{_FROM}\\g<0>{_TO}", bare)
    if isinstance(value, Mapping):
        return {key: as_text(tokenizer, each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_text(tokenizer, each) for each in value]
    return value


def let_through(tokenizer: Any, texts: Iterable[str]) -> None:
    """Let special tokens be what they are where a text holds them, for models that need it.

    The tokenizer keeps it when it is saved, so that a model is asked as it was trained. Where others write
    the texts, mind what the tokens do: a turn's mark opens a turn.

    Raises:
        UsageError: one of them is not a special token.
    """
    special = _special(tokenizer)
    for text in texts:
        if text not in special:
            raise UsageError(f"--control-token {text!r}: {choose(text, sorted(special))}")
    kept = {*tokenizer.init_kwargs.get(_IN_TEXT, ()), *texts}
    if kept:
        tokenizer.init_kwargs[_IN_TEXT] = sorted(kept)
        _CONTROLS.pop(tokenizer, None)


def separator_id(tokenizer: Any) -> int | None:
    """Return the id of a tokenizer's separator; None if it has none."""
    found: int | None = tokenizer.added_tokens_encoder.get(SEPARATOR)
    return found


def without_separator(text: str) -> str:
    """Return a text that does not spell the separator, for tokenizers that let it through."""
    return text.replace(SEPARATOR, " ")


def _special(tokenizer: Any) -> set[str]:
    added = tokenizer.added_tokens_decoder.values()
    return {each.content for each in added if each.special and each.content.strip()}


def _controls(tokenizer: Any) -> re.Pattern[str]:
    """Compile a pattern of the special tokens that texts may not use, longest first."""
    known = _CONTROLS.get(tokenizer)
    if known is None or known[0] != len(tokenizer):
        through = getattr(tokenizer, "init_kwargs", {}).get(_IN_TEXT, ())
        texts = sorted(_special(tokenizer).difference(through), key=len, reverse=True)
        pattern = "|".join(re.escape(text) for text in texts) or "(?!)"
        known = _CONTROLS[tokenizer] = (len(tokenizer), re.compile(pattern))
    return known[1]


def prompt_ids(tokenizer: Any, messages: Messages, tools: Sequence[Any] | None = None) -> list[int]:
    """Return the token ids of a conversation, up to the answer.

    Raises:
        DataError: the template refuses the conversation.
    """
    return ids_of(tokenizer, rendered(tokenizer, messages, tools=tools))


# Rendered before a template that knows no tools: their names, calls and observations as text.
_TOOLS_AS_TEXT = """\
{%- set told = namespace(turns=[], tools='') -%}
{%- for tool in tools or [] -%}
{%- set told.tools = told.tools ~ (', ' if told.tools else 'Tools: ') ~ tool['function']['name'] ~ '(' ~ \
(tool['function']['parameters']['properties'] | list | join(', ')) ~ ')' -%}
{%- endfor -%}
{%- if told.tools -%}{%- set told.tools = told.tools ~ '.\\n' -%}{%- endif -%}
{%- for message in messages -%}
{%- set content = message['content'] or '' -%}
{%- if message['role'] == 'tool' or message['tool_calls'] -%}
{%- set text = namespace(said=content if content is string else content | map(attribute='text') | join('')) -%}
{%- for call in message['tool_calls'] or [] -%}
{%- set text.said = text.said ~ ('\\n' if text.said else '') ~ '<tool_call>{"name": ' ~ \
(call['function']['name'] | tojson) ~ ', "arguments": ' ~ \
(call['function']['arguments'] | tojson) ~ '}</tool_call>' -%}
{%- endfor -%}
{%- set told.turns = told.turns + [{'role': 'user', 'content': 'Observation: ' ~ text.said} if \
message['role'] == 'tool' else {'role': 'assistant', 'content': text.said}] -%}
{%- elif message['role'] == 'user' and told.tools -%}
{%- set asked = told.tools ~ content if content is string else \
[{'type': 'text', 'text': told.tools}] + (content | list) -%}
{%- set told.turns = told.turns + [{'role': 'user', 'content': asked}] -%}
{%- set told.tools = '' -%}
{%- else -%}
{%- set told.turns = told.turns + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = told.turns -%}
"""


def with_tools(template: str) -> str:
    """Return a chat template that renders tools, calls and observations as text, for a model that learns to call.

    Only the names of tools and of their arguments are told, before the first question.
    """
    return _TOOLS_AS_TEXT + template


def supervised(
    tokenizer: Any, messages: Messages, tools: Sequence[Any] | None = None
) -> tuple[str, Spans]:
    """Render an answered conversation, and return the spans that the assistant says.

    They come from the template's generation marks; without them, from what each assistant turn adds to the
    conversation before it.

    Raises:
        DataError: the template refuses the conversation, prompts differently from its rendering of answers, or
            renders a turn differently when more turns follow.
    """
    if not has_marks(tokenizer):
        return _by_prefix(tokenizer, messages, tools)
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, spans = render_jinja_template(
            conversations=[list(messages)],
            tools=list(tools) if tools else None,
            chat_template=tokenizer.get_chat_template(),
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    except Exception as error:  # as above, a template may raise anything
        raise _refusal(error) from error
    if messages[-1]["role"] == "assistant" and len(messages) > 1:
        check_asked(rendered(tokenizer, messages[:-1], tools=tools), texts[0])
    return texts[0], [(start, stop) for start, stop in spans[0]]


def _by_prefix(
    tokenizer: Any, messages: Messages, tools: Sequence[Any] | None
) -> tuple[str, Spans]:
    whole, spans = rendered(tokenizer, messages, answered=True, tools=tools), []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = (
            rendered(tokenizer, messages[:turn], tools=tools)
            if turn
            else _opening(tokenizer, message)
        )
        after = rendered(tokenizer, messages[: turn + 1], answered=True, tools=tools)
        check_asked(before, after)
        if not whole.startswith(after):
            raise DataError(
                f"the chat template renders turn {turn + 1} differently when more turns follow, so its "
                "supervised tokens are unknown; add {% generation %} marks to the template"
            )
        spans.append((len(before), len(after)))
    return whole, spans


def check_asked(asked: str, answered: str) -> None:
    """Check that the prompt equals what precedes the answer in training.

    Raises:
        DataError: they differ; the message shows where.
    """
    if answered.startswith(asked):
        return
    pairs = enumerate(zip(asked, answered, strict=False))
    place = next((at for at, (one, other) in pairs if one != other), min(len(asked), len(answered)))
    raise DataError(
        f"the chat template prompts with {asked[max(place - 20, 0) :]!r} but an answered conversation has "
        f"{answered[max(place - 20, 0) : place + 20]!r}: the model would be prompted differently than it was "
        "trained; give the tokenizer a template whose generation prompt equals what precedes answers"
    )


def _opening(tokenizer: Any, message: Mapping[str, Any]) -> str:
    """Return what the template writes before an answer without a question."""
    first, second = (
        rendered(tokenizer, [{**message, "content": each}], answered=True) for each in ("a", "b")
    )
    pairs = enumerate(zip(first, second, strict=False))
    return first[: next((place for place, (one, other) in pairs if one != other), len(first))]


def has_marks(tokenizer: Any) -> bool:
    """Whether the chat template marks what the assistant generates."""
    return _MARK.search(tokenizer.get_chat_template()) is not None


def one_template(template: Any) -> str | None:
    """Return a tokenizer's chat template; several named ones (``default``, ``tool_use``) become one.

    Raises:
        DataError: none of them is called ``default``.
    """
    if template is None or isinstance(template, str):
        return template
    if "default" not in template:
        raise DataError(
            f"the tokenizer has named chat templates ({', '.join(sorted(template))}) but none called "
            "default: save it with the one to use as its chat_template"
        )
    default = str(template["default"])
    if "tool_use" not in template:
        return default
    # A line break after a tag is dropped (trim_blocks), so both keep their beginnings.
    return f"{{% if tools %}}\n{template['tool_use']}{{% else %}}\n{default}{{% endif %}}"


def takes_tools(reader: Any, question: Any = "?") -> bool:
    """Whether the chat template renders tools.

    Args:
        reader: a tokenizer, or a processor with its own template.
        question: a message's content in the template's form.
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
    """Return the token ids of a rendered conversation or a part of it."""
    if _FROM in text or _TO in text:
        return _marked(tokenizer, text)[0]
    return list(_encoded(tokenizer, text, add_special_tokens=False)["input_ids"])


def ids_and_offsets(
    tokenizer: Any, text: str, *, add_special_tokens: bool = False
) -> tuple[list[int], Spans]:
    """Return the token ids of a text, and the characters of each.

    Raises:
        DataError: the tokenizer gives no offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed to find "
            "the characters of each token"
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
    except Exception as error:  # a lone surrogate, or anything else that a tokenizer refuses
        raise DataError(f"the tokenizer refuses the text: {first_line(error)}") from error


def _marked(tokenizer: Any, text: str) -> tuple[list[int], Spans]:
    """Return ids and offsets of a text with marks, piece by piece, as transformers' processors do."""
    ids: list[int] = []
    offsets: Spans = []
    for match in _PIECES.finditer(text):
        if match["plain"] is None:
            pieces = [_piece(tokenizer, match[0], match.start(), plain=False)]
        else:
            begin, control = match.start("plain"), match["plain"]
            pieces = [_piece(tokenizer, control, begin, plain=True)]
            if tokenizer.added_tokens_encoder.get(control) in pieces[0][0]:
                # A unigram vocabulary has it as a whole: it cannot spell it.
                pieces = [
                    _piece(tokenizer, c, begin + i, plain=True) for i, c in enumerate(control)
                ]
        for found, places in pieces:
            ids += found
            offsets += places
    return ids, offsets


def _piece(tokenizer: Any, piece: str, begin: int, *, plain: bool) -> tuple[list[int], Spans]:
    """Return ids and offsets of a piece at a position of a text.

    It is encoded after a line break, because SentencePiece puts a space before the first piece.
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
    """Return the token ids of a text that follows another.

    Both are tokenised together, as in training: alone, many tokenizers would add a leading space.

    Args:
        tokenizer: a fast one.
        before: the text before it.
        text: what comes then.
        fixed: whether the first text's own ids are given. Then, if a token spans the border, a line
            break replaces the first text; otherwise that token belongs to the second.
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
    """Return the ids up to and including the first end mark."""
    last = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return list(ids[: last + 1])


def without_end(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """Remove the special tokens that some tokenizers append to every text (T5's </s>, BERT's [SEP])."""
    special = set(getattr(tokenizer, "all_special_ids", None) or [])
    stop = len(ids)
    while stop > 1 and ids[stop - 1] in special:
        stop -= 1
    return list(ids[:stop])


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text to continue: with the tokenizer's leading special tokens, not trailing ones.

    Raises:
        DataError: it has no tokens.
    """
    ids = without_end(tokenizer, _encoded(tokenizer, text)["input_ids"])
    if not ids:
        raise DataError(f"the prompt {text!r} has no tokens")
    return ids


def end_ids(tokenizer: Any, generation: Any = None) -> list[int]:
    """Return every id that ends an answer.

    Args:
        tokenizer: contributes its end token, and the mark that its chat template puts after a turn.
        generation: the model's generation configuration, whose end ids come first.
    """
    declared = getattr(generation, "eos_token_id", None)
    found = list(declared) if isinstance(declared, list | tuple) else [declared]
    found += [getattr(tokenizer, "eos_token_id", None), *turn_end_ids(tokenizer)]
    return list(dict.fromkeys(int(token) for token in found if token is not None))


def turn_end_ids(tokenizer: Any) -> list[int]:
    """Return the special token that the chat template puts after an assistant's turn, if any."""
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
        except DataError:  # a template with another message format does not help here
            return []
    first, second = (ids_of(tokenizer, text) for text in texts)
    shared = 0
    while shared < min(len(first), len(second)) and first[-1 - shared] == second[-1 - shared]:
        shared += 1
    special = {int(key) for key, value in tokenizer.added_tokens_decoder.items() if value.special}
    return [token for token in first[len(first) - shared :] if token in special][:1]


def opens_thoughts(tokenizer: Any, ids: Sequence[int]) -> bool:
    """Whether a prompt ends within thoughts: some templates begin every answer with them."""
    end = str(tokenizer.decode(list(ids[-8:]), skip_special_tokens=False))
    return end.rstrip().endswith("<think>")


def pad_id(tokenizer: Any) -> int:
    """Return the id of masked padding: the padding token, else the end token, else 0."""
    for name in ("pad_token_id", "eos_token_id"):
        found = getattr(tokenizer, name, None)
        if found is not None:
            return int(found)
    return 0


def _refusal(error: Exception) -> DataError:
    return DataError(f"the chat template refuses the conversation: {first_line(error)}")
