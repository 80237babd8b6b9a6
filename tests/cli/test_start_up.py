"""What computes nothing loads nothing: modules are counted, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modalign.cli.methods import _resolved, listed
from modalign.hashing import tensor_hash
from modalign.patches import Patch, save_patch
from modalign.patches.changes import DenseChange
from modalign.patches.header import BaseTensor, PatchHeader
from modalign.tools.registry import BUILT_IN
from modalign.training.methods import method_names
from modalign.training.tool_methods import tool_names

COUNT = """
import contextlib, io, json, sys
from modalign.cli import main
sys.argv = ["modalign", *sys.argv[1:]]
told, code = io.StringIO(), 0
with contextlib.redirect_stdout(told):
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
packages = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps([told.getvalue(), packages, code]))
"""


def loaded(*arguments: object, fails: tuple[int, str] = (0, "")) -> tuple[str, set[str]]:
    """What a command prints, and the packages it has loaded at its end; its exit code, and what it says then."""
    command = [sys.executable, "-c", COUNT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told, packages, code = json.loads(done.stdout.splitlines()[-1])
    assert code == fails[0], done.stderr
    assert fails[1] in " ".join(done.stderr.split())
    return told, set(packages)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["--help"],
        ["methods"],
        ["methods", "qformer"],
        ["tools", "list"],
        *(
            [*verb.split(), "--help"]
            for verb in ("compare", "eval", "data curate", "serve", "edit run")
        ),
    ],
    ids=" ".join,
)
def test_what_lists_and_explains_needs_no_torch(arguments: list[str]) -> None:
    told, packages = loaded(*arguments)
    assert told
    assert not packages & {"torch", "transformers", "numpy", "scipy", "sklearn", "pyarrow"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["ask", "./no/model", "a question"], 2, "contains no model: there is no such folder"),
        (["serve", "nowhere/model.gguf"], 2, "there is no such"),
        (["edit", "run", "a/b/c", "edits.json", "-o", "x.safetensors"], 2, "contains no model"),
        (["train", "--llm", "./gone", "--train", "x.jsonl"], 2, "contains no model"),
        (["embed", "MODEL", "./no/rows.jsonl", "-o", "out"], 3, "no such file or folder"),
        (["train", "--train", "./no/rows.jsonl"], 3, "no such file or folder"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_path_to_nothing_needs_no_torch(
    arguments: list[str], code: int, said: str, tmp_path: Path
) -> None:
    """The question whether a file is there takes no second."""
    words = [str(tmp_path) if word == "MODEL" else word for word in arguments]
    told, packages = loaded(*words, fails=(code, said))
    assert told == ""
    assert not packages & {"torch", "transformers", "numpy", "scipy", "sklearn", "pyarrow"}


def test_a_patch_is_inspected_without_transformers(tmp_path: Path) -> None:
    """It measures changes, which takes torch; it loads no model."""
    value = torch.ones(3, 2)
    base = {"weight": BaseTensor(sha256=tensor_hash(value), shape=(3, 2))}
    header = PatchHeader(name="fix", method="ft", model="tiny", base=base)
    patch = Patch(header, {"weight": DenseChange(value.double())})
    save_patch(patch, tmp_path / "fix.safetensors")
    told, packages = loaded("patch", "inspect", tmp_path / "fix.safetensors")
    assert "fix" in told
    assert not packages & {"transformers", "peft", "sklearn", "scipy", "pyarrow"}


def test_what_is_listed_is_what_the_classes_say() -> None:
    """The catalogue reads sources; the classes, loaded, are the oracle."""
    rows = {row["name"]: row for row in listed()}
    assert list(rows) == [*method_names(), *tool_names(list(BUILT_IN))]
    for name, row in rows.items():
        assert row == _resolved(name)
