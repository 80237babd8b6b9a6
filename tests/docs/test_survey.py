"""docs/survey.md: every row's file and page exist, and its command parses."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from pathlib import Path

import pytest

from modalign.cli import command as all_verbs
from modalign.errors import ModalignError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "survey.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("|") and "`modalign" in line]


def parse(line: str) -> None:
    """Parse a command line as the program would, without running it."""
    command = all_verbs()
    words = shlex.split(line)[1:]
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert getattr(command, "invoke_without_command", True), line
    with suppress(ModalignError):  # the files of an example are not there
        command.make_context(line, words)


def test_every_row_has_a_command() -> None:
    tables = [line for line in PAGE.splitlines() if line.startswith("|")]
    heads = [line for line in tables if line.startswith("|---")]
    assert len(ROWS) == len(tables) - 2 * len(heads) > 25


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_a_row_leads_to_what_is_there(row: str) -> None:
    _, _, command, file, page, _ = row.split("|")
    parse(command.strip(" `"))
    assert (ROOT / "src" / "modalign" / file.strip(" `")).is_file()
    (target,) = re.findall(r"\]\(([\w.-]+)\)", page)
    assert (ROOT / "docs" / target).is_file()


def test_a_wrong_command_is_noticed() -> None:
    with pytest.raises(Exception, match=r"(?i)no such option"):
        parse("modalign ask model question --nonsense")
