"""Chains by name: built in, from a configuration, from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from modalign.errors import UsageError
from modalign.tools.registry import BUILT_IN, chain_spec, chain_specs

OWN = {"mine": {"tools": [{"kind": "callable", "target": "a.py:f"}], "budget": 9}}
TEXTS = {
    "yaml": "tools:\n  - {kind: ocr, min_score: 0.2}\nbudget: 9\n",
    "toml": 'budget = 9\n[[tools]]\nkind = "ocr"\nmin_score = 0.2\n',
    "json": '{"tools": [{"kind": "ocr", "min_score": 0.2}], "budget": 9}',
}


def test_built_in_and_own_chains_are_known_by_name() -> None:
    assert set(chain_specs(OWN)) == {*BUILT_IN, "mine"}
    assert {"starter_tools", "ocr", "asr", "structure"} <= set(chain_specs())
    assert chain_spec("mine", OWN).budget == 9


@pytest.mark.parametrize("kind", TEXTS)
def test_a_file_holds_a_chain(kind: str, tmp_path: Path) -> None:
    (tmp_path / f"chain.{kind}").write_text(TEXTS[kind])
    spec = chain_spec(str(tmp_path / f"chain.{kind}"))
    assert (spec.budget, spec.tools[0].kind, spec.tools[0].min_score) == (9, "ocr", 0.2)


@pytest.mark.parametrize(
    ("name", "own", "message"),
    [
        ("starter_tool", {}, "did you mean starter_tools"),
        ("x", {"x": {"tools": []}}, "tool chain x: tools: List should have at least 1 item"),
        ("x", {"x": {"tools": [{"kind": "nose"}]}}, "tool chain x: tools.0: .*'nose'"),
        (
            "x",
            {"x": {"tools": [{"kind": "ocr", "size": 1}]}},
            "tools.0.ocr.size: there is no such field",
        ),
        ("x", {"ocr": OWN["mine"]}, "'ocr' is built in"),
        ("nowhere.yaml", {}, "nowhere.yaml cannot be read"),
    ],
)
def test_what_is_no_chain_is_told(name: str, own: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        chain_spec(name, own)


@pytest.mark.parametrize("kind", TEXTS)
def test_a_file_that_is_none_is_told(kind: str, tmp_path: Path) -> None:
    (tmp_path / f"bad.{kind}").write_text("{[")
    with pytest.raises(UsageError, match="cannot be read"):
        chain_spec(str(tmp_path / f"bad.{kind}"))
