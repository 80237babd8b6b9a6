"""Calls are what the model calls, not what it thinks of; a broken one stays what was written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modalign.endpoints.tool_calls import end_of_thoughts, split_calls, with_mappings
from modalign.serving.http.calls import CallReader
from modalign.serving.prompts import Prompts
from reports.threads import reported

GOOD = '<tool_call>{"name": "count", "arguments": {"of": "cats"}}</tool_call>'
BROKEN = '<tool_call>{"name": "count", "argu</tool_call>'


def told(reader: CallReader, text: str, size: int) -> tuple[str, list[str]]:
    shown = "".join(reader.feed(text[i : i + size]) for i in range(0, len(text), size))
    rest, calls = reader.end()
    return shown + rest, [call["function"]["name"] for call in calls]


@reported("lmstudio-ai/lmstudio-bug-tracker#1592", "verl-project/verl#4757")
@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "thinking", "names"),
    [
        (f"<think>I could {GOOD} now</think>No.", False, []),
        (f"<think>I could {GOOD} now", False, []),  # cut off within its thoughts
        (f"I could {GOOD} now</think>No.", True, []),
        (f"I could {GOOD} now</think>No.", False, []),
        (f"I could {GOOD} now", True, []),
        (f"<think>{GOOD}</think>{GOOD}", False, ["count"]),
        ('<think>hm</think>{"name": "count", "arguments": {}}', False, ["count"]),
        (f"{GOOD}", True, []),
    ],
)
def test_what_is_thought_is_not_called(
    text: str, thinking: bool, names: list[str], size: int
) -> None:
    """Protects: a call written inside <think> was executed."""
    shown, found = told(CallReader({"count"}, thinking), text, size)
    assert found == names
    if not names:
        assert shown == text
    local = text[end_of_thoughts(text, thinking) :]
    assert [call.name for call in split_calls(local)[1]] == names


@reported("Neroued/ninfer#158")
@pytest.mark.parametrize("text", [GOOD + BROKEN, BROKEN + GOOD, f"a {BROKEN} b {GOOD} c {BROKEN}"])
def test_a_broken_call_leaves_the_one_beside_it(text: str) -> None:
    """Protects: a malformed call turned a valid one beside it into text."""
    shown, names = told(CallReader({"count"}), text, 5)
    assert names == ["count"]
    assert shown == text.replace(GOOD, "").strip()


@reported("lmstudio-ai/lmstudio-bug-tracker#1592", "Neroued/ninfer#158")
@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.lists(
        st.sampled_from([GOOD, BROKEN, "<think>", "</think>", " a ", "{", "<tool"]), max_size=6
    ),
    st.lists(st.integers(1, 9), max_size=20),
    st.booleans(),
)
def test_how_it_arrives_does_not_matter(
    pieces: list[str], sizes: list[int], thinking: bool
) -> None:
    text = "".join(pieces)
    whole = told(CallReader({"count"}, thinking), text, len(text) + 1)
    reader, shown, rest = CallReader({"count"}, thinking), "", text
    for size in sizes:
        shown += reader.feed(rest[:size])
        rest = rest[size:]
    shown += reader.feed(rest)
    tail, calls = reader.end()
    assert [call["function"]["name"] for call in calls] == whole[1]
    assert (shown + tail).split() == whole[0].split()


@reported("local-inference-lab/vllm#684")
@pytest.mark.parametrize("arguments", ['{"of": ', "", "7", "[1]", "[" * 100_000])
def test_broken_arguments_come_back_as_they_were_written(arguments: str) -> None:
    """Protects: broken JSON in the arguments that a client returns was rendered as {}."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    (turn,) = with_mappings([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert turn["tool_calls"][0]["function"]["arguments"] == arguments


@reported("sgl-project/sglang#28035")
def test_arguments_that_are_a_mapping_become_one() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    (turn,) = with_mappings([{"role": "assistant", "tool_calls": [call]}])
    assert turn["tool_calls"][0]["function"]["arguments"] == json.loads('{"a": 1}')


@reported("unslothai/unsloth#5704")
def test_prompts_say_whether_they_end_within_thoughts(tokenizer: Any) -> None:
    turns = [{"role": "user", "content": "a red ball"}]
    plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
    for template, thinking in ((plain, False), (plain + "<think>\n", True)):
        tokenizer.chat_template = template
        tokenizer.add_tokens(["<think>"])
        assert Prompts(tokenizer).chat(turns).thinking is thinking
