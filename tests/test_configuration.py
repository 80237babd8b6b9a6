"""Fields from files and options, and errors that name what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from modalign.cache import cache_directory
from modalign.configuration import Fields, assigned, merged, validated
from modalign.differences import flat
from modalign.errors import UsageError


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rate: float = 1.0


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Inner = Inner()
    names: list[str] = []


names = st.text("abc", min_size=1, max_size=3)
fields = st.dictionaries(
    names,
    st.recursive(
        st.integers(), lambda inner: st.dictionaries(names, inner, min_size=1), max_leaves=5
    ),
    max_size=4,
)


@given(fields, fields)
def test_changes_win_and_nothing_else_is_touched(base: Fields, changes: Fields) -> None:
    whole, new = flat(merged(base, changes)), flat(changes)
    assert {key: whole[key] for key in new} == new
    for key, value in flat(base).items():
        related = [k for k in new if k == key or k.startswith(f"{key}.") or key.startswith(f"{k}.")]
        assert related or whole[key] == value


@given(fields)
def test_options_say_what_a_file_would(values: Fields) -> None:
    assert flat(assigned(f"{key}={value}" for key, value in flat(values).items())) == flat(values)


def test_values_of_options_are_yaml() -> None:
    found = assigned(["a.b=[1, x]", "c=null", "d=a=b"], {"a": {"kept": 1}})
    assert found == {"a": {"kept": 1, "b": [1, "x"]}, "c": None, "d": "a=b"}
    assert assigned(None) == {}


@pytest.mark.parametrize(
    ("items", "said"),
    [(["a"], "field=value"), (["a=[1"], "not YAML"), (["a=1", "a.b=2"], "a is a value here")],
)
def test_options_of_another_form_are_refused(items: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        assigned(items)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"inner": {"rat": 1}}, "file: inner.rat: there is no such field; "),
        ({"inner": {"rate": "x"}, "names": 3}, "file: inner.rate: .*; names: .*list$"),
        (
            {"innre": {}},
            r"innre: there is no such field; did you mean inner\? choose from inner, names$",
        ),
    ],
)
def test_wrong_fields_are_named(values: Fields, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        validated(Settings, values, "file")


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"MODALIGN_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a")),
        ({"MODALIGN_CACHE": "", "XDG_CACHE_HOME": "/b"}, Path("/b/modalign")),
        ({"HOME": "/home/u"}, Path("/home/u/.cache/modalign")),
    ],
)
def test_the_cache_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], place: Path
) -> None:
    for name in ("MODALIGN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_directory() == place
