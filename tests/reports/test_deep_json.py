"""JSON and YAML so deep that reading them, or writing them again, overflows the stack.

``"[" * 100000`` in a tool call's arguments, a model's answer, a tool's result and a
patch's header ended in RecursionError.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from modalign.configuration import assigned, read_fields, read_yaml
from modalign.data.readers import read_records
from modalign.data.records import Media
from modalign.data.synthesis.templates import load_templates
from modalign.editing.readers import read_edits
from modalign.endpoints.errors import EndpointError
from modalign.endpoints.responses import listed_models, parsed_json, server_message
from modalign.endpoints.tool_calls import split_calls, with_mappings
from modalign.errors import DataError, UsageError
from modalign.evaluation.tasks.chair import _read_objects
from modalign.patches.storage import load_patch
from modalign.strict_json import DECODER, DEPTH, dumps, loads
from modalign.tools.channel import Channel, ChannelError
from modalign.tools.planning.answer import Transcript
from modalign.tools.planning.toolbox import Toolbox
from modalign.tools.registry import chain_spec
from reports.threads import reported, tried

OPEN = ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000, "[" * 900 + "]" * 900]
deep = pytest.mark.parametrize("text", OPEN, ids=["lists", "objects", "closed", "readable"])


@reported("ijl/orjson#458", "simplejson/simplejson#270")
@given(st.integers(0, 3 * DEPTH), st.booleans())
def test_the_depth_is_counted(levels: int, objects: bool) -> None:
    opened, closed = ('{"a":', "}") if objects else ("[", "]")
    text = opened * levels + "[[],[]]" + closed * levels
    if levels <= DEPTH - 2:
        assert loads(text) == json.loads(text)
        assert loads(dumps(loads(text), str)) == loads(text)
    else:
        with pytest.raises(ValueError, match="nested lists and"):
            loads(text)


@reported("ijl/orjson#458")
def test_many_lists_beside_one_another_are_not_deep() -> None:
    text = "[" + ",".join(["[1]"] * 5000) + "]"
    assert loads(text) == json.loads(text)


@reported("agent0ai/agent-zero#1773")
@pytest.mark.parametrize("text", ['"\\ud800"', '{"\\uDFFF": 1}', '["\\ude00\\ud83d", "é"]'])
def test_half_characters_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="half a character"):
        loads(text)


@reported("agent0ai/agent-zero#1773")
@given(st.text())
def test_whole_characters_stay(text: str) -> None:
    assert loads(json.dumps(text)) == text
    assert DECODER.raw_decode(json.dumps([text]) + ' "\\ud800"')[0] == [text]


@reported("run-llama/llama_index#18877")
@deep
def test_readers_of_data_and_edits(tmp_path: Path, text: str) -> None:
    lines = tmp_path / "data.jsonl"
    lines.write_text(f'{{"question": "q", "answer": {text}}}\n{{"question": "q", "answer": "a"}}\n')
    found = read_records(lines)
    assert len(found.records) == 1
    assert found.problems[0].source.row == 1
    whole = tmp_path / "data.json"
    whole.write_text(f'[{{"question": "q", "answer": {text}}}]')
    with pytest.raises(DataError, match=r"data\.json:1"):
        read_records(whole)
    edits = tmp_path / "edits.json"
    edits.write_text(text)
    with pytest.raises(DataError, match=r"edits\.json"):
        read_edits(edits)


@reported("simplejson/simplejson#270")
@deep
def test_what_a_model_wrote(text: str) -> None:
    said = f'<tool_call>{{"name": "f", "arguments": {text}}}</tool_call>'
    assert [call.name for call in split_calls(said)[1]] == [""]
    split_calls(text)
    asked: Any = {"function": {"name": "f", "arguments": text}}
    (turn,) = with_mappings([{"role": "assistant", "tool_calls": [asked]}])
    assert turn["tool_calls"][0]["function"]["arguments"] == text
    tool: Any = SimpleNamespace(name="f", modalities=("image",))
    box = Toolbox([tool], [Media("image", data=b"")], Transcript(None, {}))  # type: ignore[arg-type]
    assert box.observe("f", text).startswith("error: the arguments are not JSON")


@reported("flop-labs/technocore-chat#129")
@deep
def test_what_a_server_sent(text: str) -> None:
    with pytest.raises(EndpointError, match="not JSON"):
        parsed_json(text.encode(), "http://localhost")
    assert listed_models(text.encode()) == []
    assert server_message(text.encode())[1] is None


@reported("simplejson/simplejson#270")
@deep
def test_what_a_tool_returned(text: str) -> None:
    reading, writing = os.pipe()
    channel = Channel(reading, writing, 1_000_000)
    try:
        os.set_blocking(writing, True)
        sent = f'{{"result": {text[:30_000]}}}\n'.encode()  # what a pipe holds
        os.write(writing, sent)
        with pytest.raises(ChannelError, match="not JSON"):
            channel.receive(time.monotonic() + 10)
    finally:
        os.close(reading)
        os.close(writing)


@reported("simplejson/simplejson#270")
@deep
def test_a_patchs_header(tmp_path: Path, text: str) -> None:
    path = tmp_path / "fix.safetensors"
    metadata = {
        "format": "modalign-patch",
        "format_version": "1",
        "header": text,
        "columns": "{}",
        "sha256": "0",
    }
    save_file({"x": torch.zeros(1)}, path, metadata)
    with pytest.raises(DataError, match=r"fix\.safetensors"):
        load_patch(path)


@reported("simplejson/simplejson#270")
@pytest.mark.parametrize("text", ["[" * 350, "[" * 350 + "]" * 350])  # YAML is read slowly
def test_configurations(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        assigned([f"a.b={text}"])
    for name, form in {"a.toml": "a = {}", "a.json": '{{"a": {}}}', "a.yaml": "a: {}"}.items():
        path = tmp_path / name
        path.write_text(form.format(text))
        with pytest.raises(UsageError, match=r"a\.\w+ cannot be read|tool chain"):
            chain_spec(str(path))
    with pytest.raises(UsageError, match="cannot be read"):
        read_fields(path)
    with pytest.raises(UsageError, match="templates"):
        load_templates("image", [str(path)])
    with pytest.raises(DataError, match="cannot be read"):
        _read_objects(path)


@tried("configurations of odd YAML")
def test_a_date_that_does_not_exist_is_no_traceback() -> None:
    with pytest.raises(UsageError, match="not YAML"):
        assigned(["a=2026-13-45"])


@tried("configurations of odd YAML")
@pytest.mark.parametrize("text", ["&a [*a]", "&a [*a, *a]", "&a {b: *a, c: {d: *a}}"])
def test_a_value_within_itself_is_too_deep(text: str) -> None:
    with pytest.raises(ValueError, match=r"within one another|nested"):
        read_yaml(text)


@tried("configurations of odd YAML")
def test_aliases_are_looked_at_once() -> None:
    """Of `lines` each has ten of the one before: 10 ** 20 values in a kilobyte."""
    lines = ["l0: &l0 [x]"] + [
        f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 21)
    ]
    assert len(read_yaml("\n".join(lines))["l20"]) == 10
