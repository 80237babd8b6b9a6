"""The one place that applies chat templates: end marks from all that declare them, refusals with a reason."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import modalign
from modalign.chat_templates import (
    end_ids,
    ids_after,
    plain_ids,
    prompt_ids,
    rendered,
    supervised,
    takes_tools,
    until_end,
    without_end,
)
from modalign.errors import DataError

ASKED = [{"role": "user", "content": "a red ball"}]
TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<image>{% endfor %}"
WITH_TOOLS = "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}" + TURNS


def test_no_other_file_applies_a_chat_template() -> None:
    """But the processor that is the template's own method, and what runs where modalign is not installed."""
    house = Path(modalign.__file__).parent
    applying = {
        str(file.relative_to(house))
        for file in house.rglob("*.py")
        if re.search(r"\.apply_chat_template\((?!\n    messages)", file.read_text(encoding="utf-8"))
    }
    assert applying == {"chat_templates.py", "models/probe.py", "models/processing.py"}


def test_an_answer_ends_at_every_mark_that_anyone_declares(tokenizer: Any) -> None:
    tokenizer.chat_template = TURNS  # its turns end in <image>, as good a mark as any
    image = tokenizer.convert_tokens_to_ids("<image>")
    for declared, first in ((None, []), (7, [7]), ([7, 8], [7, 8])):
        generation = SimpleNamespace(eos_token_id=declared)
        assert end_ids(tokenizer, generation) == [*first, tokenizer.eos_token_id, image]
    tokenizer.chat_template = None
    assert end_ids(tokenizer) == [tokenizer.eos_token_id]


def test_ends_follow_a_template_that_is_replaced(tokenizer: Any) -> None:
    tokenizer.chat_template = TURNS
    before = end_ids(tokenizer)
    tokenizer.chat_template = TURNS.replace("<image>", "")
    assert end_ids(tokenizer) == before[:1]


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no such turn') }}", "{{ messages[7].content }}", "{{ 1 / 0 }}", "{% for"],
)
def test_whatever_a_template_raises_is_a_refusal(template: str, tokenizer: Any) -> None:
    tokenizer.chat_template = template
    with pytest.raises(DataError, match=r"the chat template refuses the conversation: ."):
        prompt_ids(tokenizer, ASKED)
    assert end_ids(tokenizer) == [tokenizer.eos_token_id]
    marked = template + "{% generation %}{% endgeneration %}"
    tokenizer.chat_template = marked
    with pytest.raises(DataError, match=r"the chat template refuses the conversation: ."):
        supervised(tokenizer, ASKED)


@pytest.mark.parametrize("template", [WITH_TOOLS, {"default": TURNS, "tool_use": WITH_TOOLS}])
def test_templates_that_show_tools(template: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = template
    assert takes_tools(tokenizer)
    tool = {"type": "function", "function": {"name": "count"}}
    assert rendered(tokenizer, ASKED, tools=[tool]) == f"count[user]{ASKED[0]['content']}<image>"
    assert rendered(tokenizer, ASKED) == f"[user]{ASKED[0]['content']}<image>"


def test_templates_that_show_none(tokenizer: Any) -> None:
    tokenizer.chat_template = TURNS + "{# tools #}"
    assert not takes_tools(tokenizer)


def test_ids_to_go_on_from_end_in_no_mark(tokenizer: Any) -> None:
    end = tokenizer.eos_token_id
    words = tokenizer("a red ball", add_special_tokens=False)["input_ids"]
    assert without_end(tokenizer, [end, *words, end, end]) == [end, *words]
    assert without_end(tokenizer, [end, end]) == [end]
    assert until_end([*words, end, 5, end], [end]) == [*words, end]
    assert until_end(words, [end]) == words
    assert plain_ids(tokenizer, "a red ball") == without_end(
        tokenizer, tokenizer("a red ball")["input_ids"]
    )


def test_a_token_over_the_border_belongs_to_the_answer_where_the_prompt_is_not_fixed(
    tokenizer: Any,
) -> None:
    before, text = "the red b", "all"
    whole = tokenizer(before + text, add_special_tokens=False, return_offsets_mapping=True)
    crossing = [
        token
        for token, (_, stop) in zip(whole["input_ids"], whole["offset_mapping"], strict=True)
        if stop > len(before)
    ]
    assert ids_after(tokenizer, before, text, fixed=False) == crossing
    fixed = ids_after(tokenizer, before, text)
    assert tokenizer.decode(fixed).strip() == text
