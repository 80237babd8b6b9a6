"""An answer that is written piece by piece is the JSON that it is as a whole."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from modalign.serving.http.shapes import PIECE, in_pieces

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values, st.integers(0, 6))
def test_pieces_are_the_whole(value: object, depth: int) -> None:
    assert json.loads(in_pieces(value, depth)) == value


@given(st.sampled_from([1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 1]), st.booleans())
def test_long_lists(count: int, objects: bool) -> None:
    value = {"a": [{"b": [1]} if objects else "é,]" for _ in range(count)]}
    assert json.loads(in_pieces(value)) == value
