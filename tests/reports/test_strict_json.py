"""Values that Python's JSON reader makes up: NaN and Infinity, the last of two equal names, 7.0 for 7.

``{"answer": NaN}`` was trained as "nan"; of two equal names the last won without a word.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modalign.configuration import read_yaml
from modalign.data.readers import read_records, write_records
from modalign.editing.readers import read_edits
from modalign.errors import DataError
from modalign.strict_json import dumps, loads
from reports.threads import reported

BAD = {
    "nan": ('{"question": "q", "answer": NaN}', "NaN is not a JSON number"),
    "infinity": ('{"question": "q", "answer": -Infinity}', "-Infinity is not a JSON number"),
    "overflow": ('{"question": "q", "answer": 1e999}', "1e999 is too large for a number"),
    "twice": ('{"answer": "a", "question": "q", "answer": "b"}', "'answer' occurs twice"),
    "deep": ('{"question": "q", "answer": "b", "extra": [{"x": 1, "x": 2}]}', "'x' occurs twice"),
}
GOOD = '{"question": "q", "answer": "a"}'


@reported("python-rapidjson/python-rapidjson#26", "msgspec/msgspec#648")
@pytest.mark.parametrize("case", BAD)
def test_json_lines_lose_the_row_alone(tmp_path: Path, case: str) -> None:
    row, message = BAD[case]
    path = tmp_path / "data.jsonl"
    path.write_text(f"{GOOD}\n{row}\n{GOOD}\n")
    found = read_records(path)
    assert len(found.records) == 2
    (problem,) = found.problems
    assert problem.source.row == 2
    assert message in problem.message


@reported("python-rapidjson/python-rapidjson#26", "ajschumacher/mergic#38")
@pytest.mark.parametrize("case", BAD)
def test_lists_name_the_line(tmp_path: Path, case: str) -> None:
    row, message = BAD[case]
    path = tmp_path / "data.json"
    path.write_text(f"[{GOOD},\n{row}]")
    with pytest.raises(DataError, match=rf"data\.json:2: .*{message}"):
        read_records(path)


@reported("python-rapidjson/python-rapidjson#26")
@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("budget: 4samples\nseeds: 1\nbudget: 8samples\n", "budget"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", "b"),
        ("- {x: 1, y: 2, x: 1}\n", "x"),
        ('{"a": 1, "a": 2}', "a"),
        ("a: &m {b: 1}\nc: {<<: *m, d: 1, d: 2}\n", "d"),
    ],
)
def test_configurations_have_a_key_once(text: str, key: str) -> None:
    with pytest.raises(ValueError, match=f"the key '{key}' occurs twice"):
        read_yaml(text)


@reported("python-rapidjson/python-rapidjson#26")
def test_what_a_configuration_merges_may_be_overridden() -> None:
    text = "a: &m {b: 1, c: 2}\nd: {<<: *m, b: 3}\ne: {<<: *m, c: 4}\n"
    found = read_yaml(text)
    assert found == {"a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}, "e": {"b": 1, "c": 4}}


@reported("pandas-dev/pandas#58306")
def test_cells_of_csv_files(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('question,answer,answers\nq,a,"[""b"", NaN]"\n')
    (problem,) = read_records(path).problems
    assert "NaN is not a JSON number" in problem.message


@reported("python-rapidjson/python-rapidjson#26", "ajschumacher/mergic#38")
@pytest.mark.parametrize("case", BAD)
def test_edits(tmp_path: Path, case: str) -> None:
    line = BAD[case][0].replace("question", "prompt").replace("answer", "target_new")
    path = tmp_path / "edits.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=BAD[case][1].replace("answer", "target_new")):
        read_edits(path)


@reported("pandas-dev/pandas#58306")
@pytest.mark.parametrize(
    ("answer", "said"), [(7.0, "7"), (7.5, "7.5"), (-0.25, "-0.25"), (1e300, "1e+300")]
)
def test_whole_numbers_of_a_float_column_are_whole(
    tmp_path: Path, answer: float, said: str
) -> None:
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"question": ["q", "q"], "answer": [answer, None]}), path)
    found = read_records(path)
    assert [record.answer for record in found.records] == [said]
    assert [problem.kind for problem in found.problems] == ["empty-answer"]


@reported("ecmwf/WeatherGenerator#210")
def test_nan_of_a_parquet_column_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    table = {"question": ["q", "q"], "answer": [1.0, float("nan")], "note": [float("nan"), 2.0]}
    pq.write_table(pa.table(table), path)
    found = read_records(path)
    assert [problem.kind for problem in found.problems] == ["empty-answer"]
    write_records(found.records, tmp_path / "again.jsonl")  # what is written can be read again
    (again,) = read_records(tmp_path / "again.jsonl").records
    assert again.extra == {"note": None}


@reported("msgspec/msgspec#648")
def test_one_name_of_many_twice_is_found_at_once() -> None:
    text = "{" + ",".join(f'"k{number}":0' for number in range(200_000)) + ',"k199999":1}'
    with pytest.raises(ValueError, match="'k199999'"):
        loads(text)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@reported("python-rapidjson/python-rapidjson#26")
@given(values)
def test_all_other_json_is_read_as_ever(value: object) -> None:
    text = json.dumps(value)
    assert loads(text) == json.loads(text)
    assert loads(dumps(value, str).encode()) == value


@reported("python-rapidjson/python-rapidjson#26")
@given(values, st.sampled_from(["NaN", "Infinity", "-Infinity", '{"a": 1, "a": 1}']))
def test_whatever_stands_around_it(value: object, wrong: str) -> None:
    for wrap in WRAPS:
        with pytest.raises(ValueError, match=r"not a JSON number|occurs twice"):
            loads(wrap(json.dumps(value), wrong))


WRAPS: tuple[Callable[[str, str], str], ...] = (
    lambda other, wrong: f"[{other}, {wrong}]",
    lambda other, wrong: f'{{"x": {wrong}, "y": {other}}}',
)
