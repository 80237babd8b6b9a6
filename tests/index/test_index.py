"""An index finds what a plain loop finds, keeps what it was given, and refuses what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modalign.errors import DataError, UsageError
from modalign.index import vectors as index_module
from modalign.index.vectors import Index, Writer, unit_vectors, written

MADE = {"model": "abc", "pooling": "last"}


def drawn(n: int, size: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, size)).astype(np.float32)


def index_of(vectors: np.ndarray) -> Index:
    made = Index(dict(MADE))
    made.add([f"v{n}" for n in range(len(vectors))], vectors)
    return made


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 99))
def test_search_is_the_slow_loop(n: int, k: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).integers(-2, 3, (n, 3)).astype(np.float32)
    vectors[(vectors == 0).all(1)] = 1  # many equal ones are left
    queries = drawn(3, 3, seed)
    for query, hits in zip(queries, index_of(vectors).search(queries, k), strict=True):
        cosines = [float(v @ query / np.linalg.norm(v) / np.linalg.norm(query)) for v in vectors]
        expected = sorted(cosines, reverse=True)[:k]
        assert [hit.score for hit in hits] == pytest.approx(expected, abs=1e-5)
        assert len({hit.id for hit in hits}) == min(n, k)
        for hit in hits:
            assert cosines[int(hit.id[1:])] == pytest.approx(hit.score, abs=1e-5)


def test_equal_vectors_come_in_their_order() -> None:
    index = index_of(np.array([[1, 0], [2, 0], [0, 1], [3, 0]]))
    assert [hit.id for hit in index.search([[5, 0]], 3)[0]] == ["v0", "v1", "v3"]
    assert [hit.id for hit in index.search([[5, 0]], 9)[0]] == ["v0", "v1", "v3", "v2"]


def test_one_vector_is_an_index() -> None:
    ((hit,),) = index_of(drawn(1)).search(-drawn(1), 3)
    assert hit.id == "v0"
    assert hit.score == pytest.approx(-1, abs=1e-6)


def test_saving_keeps_everything_and_more_may_be_added(tmp_path: Path) -> None:
    index = index_of(drawn(7))
    index.save(tmp_path / "a")
    again = Index.load(tmp_path / "a", MADE)
    assert again.ids == index.ids
    assert np.array_equal(again.vectors, index.vectors)
    again.add(["ü\n"], drawn(1, seed=3))
    again.save(tmp_path / "b")
    assert Index.load(tmp_path / "b").ids[-1] == "ü\n"
    index.save(tmp_path / "b")
    assert Index.load(tmp_path / "b").ids == index.ids


def test_an_index_of_another_model_is_refused(tmp_path: Path) -> None:
    index_of(drawn(2)).save(tmp_path)
    with pytest.raises(DataError, match="made by another model"):
        Index.load(tmp_path, {**MADE, "model": "abd"})
    with pytest.raises(DataError, match="pooling"):
        Index.load(tmp_path, {**MADE, "pooling": "mean"})


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        ([[1, 2], [0, 0]], "'b' is zero"),
        ([[float("nan"), 1], [1, 1]], "'a' is not finite"),
        ([[1, 1], [float("inf"), 1]], "'b' is not finite"),
        ([[], []], "shape"),
        ([1, 2], "shape"),
        ([[1, 2]], "2 ids for 1 vectors"),
        ([[1, 2, 3], [1, 2, 4]], "of another model"),
    ],
)
def test_vectors_without_a_direction_are_refused(vectors: list, words: str) -> None:
    index = Index(dict(MADE))
    index.add(["first"], [[1, 2]])
    with pytest.raises(DataError, match=words):
        index.add(["a", "b"], vectors)
    assert len(index) == 1


def test_what_cannot_be_searched_is_refused(tmp_path: Path) -> None:
    index = index_of(drawn(2))
    with pytest.raises(DataError, match="'v1' is in the index already"):
        index.add(["v1"], drawn(1))
    with pytest.raises(DataError, match="'n' is in the index already"):
        index.add(["n", "n"], drawn(2))
    with pytest.raises(DataError, match="empty"):
        Index(dict(MADE)).search(drawn(1))
    with pytest.raises(DataError, match="another model"):
        index.search(drawn(1, 4))
    with pytest.raises(UsageError, match="k is 0"):
        index.search(drawn(1), 0)
    for content in ("", "[]", '{"made": 1}'):
        (tmp_path / "index.json").write_text(content)
        with pytest.raises(DataError):
            Index.load(tmp_path)


def test_an_interrupted_index_is_refused_and_continued(tmp_path: Path) -> None:
    vectors, ids = unit_vectors(drawn(6)), [f"v{n}" for n in range(6)]
    writer = Writer(tmp_path, MADE, [])  # never closed
    writer.add(ids[:2], vectors[:2])
    writer.add(ids[2:4], vectors[2:4])
    with pytest.raises(DataError, match="--resume"):
        Index.load(tmp_path)
    with (tmp_path / "ids.jsonl").open("a") as file:
        file.write('"v4"\n"v')  # ids of vectors that were never written
    with (tmp_path / "vectors.npy").open("ab") as file:
        file.write(b"half a row")
    assert written(tmp_path, {**MADE, "model": "other"}) == []
    assert written(tmp_path, MADE) == ids[:4]
    with Writer(tmp_path, MADE, written(tmp_path, MADE)) as continued:
        continued.add(ids[4:], vectors[4:])
    whole = Index.load(tmp_path, MADE)
    assert whole.ids == ids
    assert np.array_equal(whole.vectors, unit_vectors(vectors))
    assert json.loads((tmp_path / "index.json").read_text())["complete"] is True


def test_many_vectors_need_usearch_or_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "EXACT", 500)
    monkeypatch.setattr(index_module, "ROWS", 130)
    index, queries = index_of(drawn(2000, 8)), drawn(50, 8, seed=1)
    exact = index.search(queries, 10, exact=True)
    try:
        import usearch  # noqa: F401
    except ImportError:
        with pytest.raises(UsageError, match="usearch"):
            index.search(queries)
        return
    near = index.search(queries, 10)
    shared = [len({h.id for h in a} & {h.id for h in b}) for a, b in zip(exact, near, strict=True)]
    assert np.mean(shared) >= 9.9  # recall@10 of .99
    assert near[0][0].score == pytest.approx(exact[0][0].score, abs=1e-5)
