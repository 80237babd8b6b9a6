"""Tool calls from a request's JSON to the text that a chat template makes of them."""

from __future__ import annotations

from typing import Any

from modalign.models.tool_text import ToolReader
from modalign.serving.http.body import parsed
from modalign.serving.http.conversation import turns_of
from modalign.serving.http.fetch import Fetcher
from modalign.serving.http.media import MediaReader
from modalign.serving.http.schemas import ChatRequest
from modalign.serving.http.settings import MediaLimits, Settings
from modalign.serving.prompts import Prompts

TEMPLATE = """{%- if tools %}tools {% for tool in tools %}{{ tool.function.name }} {% endfor %}{% endif -%}
{%- for message in messages %}[{{ message.role }}]{{ message.content }}
{%- for call in message.tool_calls or [] -%}
{{ call.function.name }} of {{ call.function.arguments.of }}{% endfor -%}
{%- endfor %}[assistant]"""
BODY = b"""{"messages": [
  {"role": "user", "content": "how many"},
  {"role": "assistant", "content": null, "tool_calls": [
    {"id": "c", "type": "function", "function": {"name": "count", "arguments": "{\\"of\\": \\"red\\"}"}}]},
  {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "seven"}]},
  {"role": "user", "content": [{"type": "text", "text": "and "}, {"type": "text", "text": "two"}]}
]}"""
TOOL = {"type": "function", "function": {"name": "count", "parameters": {"type": "object"}}}


def test_calls_results_and_tools_reach_the_template(tokenizer: Any) -> None:
    tokenizer.chat_template = TEMPLATE
    prompts = Prompts(tokenizer)
    assert prompts.takes_tools
    reader = MediaReader((), MediaLimits(), Fetcher((), 1, 1.0))
    turns = turns_of(parsed(ChatRequest, BODY, Settings("tiny")).messages, reader, tools=True)
    expected = (
        "tools count [user]how many[assistant]count of red[tool]seven[user]and two[assistant]"
    )
    ids = prompts.chat(turns, [TOOL]).ids
    assert list(ids) == tokenizer(expected, add_special_tokens=False)["input_ids"]


def test_a_model_that_reads_tools_texts_is_offered_no_others(tokenizer: Any) -> None:
    tokenizer.chat_template = TEMPLATE
    reader: Any = object.__new__(ToolReader)
    reader.tokenizer, reader.modalities = tokenizer, ["image"]
    assert not Prompts(reader).takes_tools
