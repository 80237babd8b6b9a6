"""The contract: signatures are checked, schemas are OpenAI's, costs add up, results are plain and bounded."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from modalign.data.records import Media
from modalign.errors import UsageError
from modalign.tools.base import NotTextError, Signature, Tool, ToolArgumentError, ToolCost
from modalign.tools.results import MAX_DEPTH, Line, bounded, jsonable, lines

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(blacklist_categories=("Cc", "Cs", "Cn", "Co"))),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abcdef"), inner),
)  # fmt: skip


class Plain(Tool):
    """Answers with its arguments."""

    def __init__(self, **settings: Any) -> None:
        signature = Signature(
            {"count": {"type": "integer"}, "names": {"type": "array"}, "ratio": {"type": "number"}},
            ("count",),
        )
        given = {"name": "plain", "description": "says what it got", **settings}
        super().__init__(**{"signature": signature, **given})

    def run(self, medium: Media, **arguments: Any) -> Any:
        return arguments

    def identity(self, hash_file: Any) -> Any:
        return "plain"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "'count' is missing"),
        ({"count": 1, "size": 2}, "unknown argument 'size'; known: count, names, ratio"),
        ({"count": "1"}, "'count' is a str, not of type integer"),
        ({"count": True}, "'count' is a bool"),
        ({"count": 1, "names": "a"}, "'names' is a str, not of type array"),
    ],
)
def test_arguments_are_held_against_the_signature(arguments: Any, message: str) -> None:
    with pytest.raises(ToolArgumentError, match=message):
        Plain()(tiny.image(0), **arguments)


def test_right_arguments_arrive() -> None:
    arguments = {"count": 1, "names": ["a"], "ratio": 2}
    assert Plain()(tiny.image(0), **arguments) == arguments


def test_a_medium_of_another_modality_is_refused() -> None:
    with pytest.raises(ToolArgumentError, match="takes audio, not image"):
        Plain(modalities=("audio",))(tiny.image(0), count=1)


def test_the_schema_is_an_openai_function() -> None:
    schema = Plain().to_schema()
    assert schema["type"] == "function"
    assert schema["function"]["name"] == "plain"
    parameters = schema["function"]["parameters"]
    jsonschema.Draft202012Validator.check_schema(parameters)
    jsonschema.validate({"count": 1}, parameters)
    for wrong in ({}, {"count": "1"}, {"count": 1, "other": 2}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, parameters)


def test_with_several_media_an_argument_says_which() -> None:
    parameters = Plain().to_schema(media=3)["function"]["parameters"]
    jsonschema.validate({"count": 1, "medium": 2}, parameters)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"count": 1, "medium": 3}, parameters)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"count": 1}, parameters)


@pytest.mark.parametrize(
    "settings", [{"name": "read text"}, {"signature": Signature({"medium": {}})}]
)
def test_names_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Plain(**settings)


def test_means_of_a_cost() -> None:
    assert ToolCost(calls=4, seconds=2.0, tokens=10).mean_seconds == 0.5
    assert ToolCost(calls=4, seconds=2.0, tokens=10).mean_tokens == 2.5
    assert ToolCost().mean_seconds == ToolCost().mean_tokens == 0.0


# --- results --------------------------------------------------------------------------------


@given(JSON)
def test_plain_data_stays_as_it_is(value: Any) -> None:
    assert jsonable(value) == value


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.5), 0.5),
        (np.arange(3), [0, 1, 2]),
        (torch.tensor([[1.0]]), [[1.0]]),
        (("a", {"b"}), ["a", ["b"]]),
        ("é".encode(), "é"),
        (float("nan"), None),
        ({1: float("inf")}, {"1": None}),
        ("a long line with one bell\x07", "a long line with one bell "),
        (Line("cat", 0.5), {"text": "cat", "score": 0.5, "box": None}),
    ],
)
def test_what_libraries_return_becomes_plain(value: Any, plain: Any) -> None:
    assert jsonable(value) == plain


def nested(depth: int) -> list[Any]:
    return [] if depth == 0 else [nested(depth - 1)]


@pytest.mark.parametrize(
    "value", [b"\xff\xfe\x00", "\x00", "\x01\x02ab", object(), "\ud800", nested(MAX_DEPTH + 1)]
)
def test_what_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(NotTextError):
        jsonable(value)


@given(JSON, st.integers(min_value=1, max_value=60))
def test_a_bounded_result_is_no_longer_than_its_bound(value: Any, limit: int) -> None:
    found = bounded(value, limit)
    assert found.length == len(written(value))
    if found.length <= limit or value == []:
        assert found.value == value
    else:
        items = found.value if isinstance(found.value, list) else [found.value]
        assert len("\n".join(map(written, items))) <= limit


def written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def test_texts_are_cut_between_lines_and_lists_between_items() -> None:
    assert bounded("one two\nthree four", 12).value == "one two"
    assert bounded("one two", 6).value == "one"
    assert bounded("abcdef", 3).value == "abc"
    assert bounded(["aa", "bb", "cc"], 6).value == ["aa", "bb"]


def test_lines_of_every_form() -> None:
    box = {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}
    found = lines(
        [
            "one\n\n  two   words ",
            {"generated_text": "three"},
            {"label": "four", "score": 0.25, "box": box},
            {"text": "five", "confidence": 7, "box": [1, 2, 3, 4]},
            {"x": 6, "y": [7]},
            8,
        ]
    )
    assert found == [
        Line("one"),
        Line("two words"),
        Line("three"),
        Line("four", 0.25, (1, 2, 3, 4)),
        Line("five", 1.0, (1, 2, 3, 4)),
        Line("x: 6; y: [7]"),
        Line("8"),
    ]
    assert lines(None) == []
