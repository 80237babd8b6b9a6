"""Every case of this folder names the public thread that it comes from, or says that none was found."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from reports.threads import THREADS

FOLDER = Path(__file__).parent
MARKS = {"reported", "tried"}


def marks(function: ast.FunctionDef) -> list[ast.Call]:
    calls = [node for node in function.decorator_list if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in MARKS]


def cases() -> list[tuple[str, list[ast.Call]]]:
    """The place and the marks of every case but this file's."""
    found = []
    for path in sorted(FOLDER.glob("test_*.py")):
        if path != Path(__file__):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                    found.append((f"{path.name}: {node.name}", marks(node)))
    return found


def test_every_case_names_its_source() -> None:
    without = [place for place, found in cases() if len(found) != 1]
    assert not without, without


def test_every_listed_thread_is_somebodys_source() -> None:
    cited = {
        word.value
        for _, found in cases()
        for call in found
        if isinstance(call.func, ast.Name) and call.func.id == "reported"
        for word in call.args
        if isinstance(word, ast.Constant)
    }
    assert cited == set(THREADS)
    for thread, title in THREADS.items():
        assert re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", thread), thread
        assert title.strip(), thread


def test_no_case_cites_a_number_of_this_projects_own_list() -> None:
    for path in FOLDER.glob("test_*.py"):
        words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert not re.search(r"\b(issue|fault) #?\d", words, re.IGNORECASE), path.name
