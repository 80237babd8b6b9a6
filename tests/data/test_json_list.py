"""JSON lists read item by item: the same as `json.loads`, whatever the size of the window."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modalign.data.readers import json_list
from modalign.data.readers.json_list import JsonListError, JsonText, iter_json_list

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(scalars, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(items=st.lists(values), chunk=st.integers(1, 9), indent=st.sampled_from([None, 0, 2]))
def test_equals_loads(tmp_path: Path, monkeypatch, items, chunk: int, indent: int | None) -> None:
    monkeypatch.setattr(json_list, "CHUNK", chunk)
    path = tmp_path / "list.json"
    path.write_text(json.dumps(items, indent=indent), encoding="utf-8")
    assert list(iter_json_list(path)) == items


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    lists=st.dictionaries(st.text(), st.lists(values, max_size=4), max_size=4),
    chunk=st.integers(1, 9),
)
def test_elements_of_an_objects_lists_have_their_line(monkeypatch, lists, chunk: int) -> None:
    """The oracle is the line that was counted when each element was written on its own."""
    monkeypatch.setattr(json_list, "CHUNK", chunk)
    lines, expected = ["{"], []
    for number, (name, items) in enumerate(lists.items()):
        lines.append("," * (number > 0) + json.dumps(name) + ": [")
        for position, item in enumerate(items):
            lines.append(json.dumps(item) + "," * (position < len(items) - 1))
            expected.append((name, len(lines), item))
        lines.append("]")
    text = JsonText(io.StringIO("\n".join([*lines, "}"])))
    found = [(name, *element) for name in text.members() for element in text.elements()]
    assert found == expected
    assert (text.line, text.next()) == (len(lines) + 1, "")


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize(
    "text", ["[1, 2", "[1 2]", '[{"a": }]', "[1,]", '[\n"a",\n"b]\n', "[1] x", "[1,\n 2,\n\n nul]"]
)
def test_errors_name_the_place_that_loads_names(
    tmp_path: Path, monkeypatch, text: str, chunk: int
) -> None:
    monkeypatch.setattr(json_list, "CHUNK", chunk)
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    with pytest.raises(JsonListError) as found:
        list(iter_json_list(path))
    if text != "[1,]":  # Python names the comma before 3.13, and what follows it since
        place = (expected.value.lineno, expected.value.colno)
        assert (found.value.line, found.value.column) == place
