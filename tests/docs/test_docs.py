"""The documentation is true: snippets run, links resolve, options exist, the methods page is current."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import tiny
from forks import Forks
from modalign.cli import command as all_verbs
from modalign.comparison.config import CompareConfig, load_config
from modalign.data.readers import read_records
from modalign.data.validation import validate
from modalign.training.methods import method_names

ROOT = Path(__file__).parents[2]
SKIPPED = {".venv", "runs", ".git", "build"}
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not SKIPPED & set(path.relative_to(ROOT).parts)
    and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: ``python run`` is run, ``sh not-run`` is not, ``jsonl read`` is read as data."""

    page: Path
    number: int
    words: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}-{self.number}"


def _blocks() -> Iterator[Block]:
    for page in PAGES:
        for number, match in enumerate(FENCE.finditer(page.read_text(encoding="utf-8"))):
            yield Block(page, number, tuple(match.group(1).split()), match.group(2))


BLOCKS = list(_blocks())
RUNNABLE = [block for block in BLOCKS if block.words[1:] == ("run",)]
READABLE = [block for block in BLOCKS if block.words[1:] == ("read",)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Forks]]:
    """A folder to run in, and programs with a cache of their own."""
    folder = tmp_path_factory.mktemp("docs")
    programs = tmp_path_factory.mktemp("programs")
    environment = {
        **os.environ,
        "MODALIGN_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join(
            [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        ),
    }
    with Forks(programs, environment) as forks:
        yield folder, forks


@pytest.mark.parametrize("block", RUNNABLE, ids=str)
def test_runnable_snippets_run(block: Block, place: tuple[Path, Forks]) -> None:
    folder, forks = place
    if block.words[0] == "python":
        done = forks.python(block.text, folder)
    else:
        done = subprocess.run(
            ["bash", "-euc", block.text],
            cwd=folder,
            env=forks.environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("block", READABLE, ids=str)
def test_data_examples_are_read_without_a_problem(block: Block, tmp_path: Path) -> None:
    for number, name in enumerate(("a.png", "b.png")):
        (tmp_path / name).write_bytes(tiny.png_bytes(number))
    file = tmp_path / f"rows.{block.words[0]}"
    file.write_text(block.text, encoding="utf-8")
    records, report = validate(read_records(file))
    assert report.dropped == 0
    assert records


def test_every_block_of_code_is_run_or_says_that_it_is_not() -> None:
    unmarked = [
        str(block)
        for block in BLOCKS
        if block.words[:1] in (("python",), ("sh",), ("bash",))
        and block.words[1:] not in (("run",), ("not-run",))
    ]
    assert not unmarked, "mark each: ```sh run, or ```sh not-run"


def test_there_are_snippets_of_every_kind() -> None:
    assert {block.words[0] for block in RUNNABLE} == {"python", "sh"}
    assert {block.words[0] for block in READABLE} == {"jsonl", "json", "csv"}


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.words[:1] == ("python",)], ids=str)
def test_python_snippets_compile_and_import_what_exists(block: Block) -> None:
    code = compile(block.text, str(block), "exec")
    assert code
    for module, names in re.findall(r"^from (modalign[\w.]*) import ([^\n(]+)$", block.text, re.M):
        loaded = importlib.import_module(module)
        for name in names.split(","):
            assert hasattr(loaded, name.split(" as ")[0].strip()), f"{module} has no {name}"


# --------------------------------------------------------------------------------- links


def _anchors(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in _anchors(file), f"{page.name}: {target}"


def test_contents_name_every_page() -> None:
    contents = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in contents, page.name


# --------------------------------------------------------------------------------- options


def _commands() -> dict[str, set[str]]:
    """Verb -> its options."""
    root = all_verbs()
    found: dict[str, set[str]] = {}
    waiting = [("", root)]
    while waiting:
        name, command = waiting.pop()
        named = [option for p in command.params for option in (*p.opts, *p.secondary_opts)]
        options = {option for option in named if option.startswith("-")}
        found[name] = options | {"--help", "-h"}
        for child, value in getattr(command, "commands", {}).items():
            waiting.append((f"{name} {child}".strip(), value))
    return found


def _lines(text: str) -> Iterator[str]:
    """Command lines of a page, continuation lines joined: in blocks and between backticks."""
    for words, body in ((m.group(1).split(), m.group(2)) for m in FENCE.finditer(text)):
        if words[:1] == ["sh"]:
            yield from body.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def _called(line: str, commands: dict[str, set[str]]) -> tuple[str, list[str]] | None:
    match = re.search(r"(?:^|\s|-m )modalign\s+(.*)$", line.split(" # ", maxsplit=1)[0])
    if match is None:
        return None
    words = match.group(1).split()
    names = [" ".join(words[:count]) for count in (3, 2)]
    verb = next((name for name in names if name in commands), words[0])
    return verb, [word.partition("=")[0] for word in words if word.startswith("--")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_exist(page: Path) -> None:
    commands = _commands()
    text = page.read_text(encoding="utf-8")
    for line in _lines(text):
        called = _called(line, commands)
        if called is None:
            continue
        verb, options = called
        assert verb in commands or verb in {"...", "VERB"}, f"{page.name}: {line}"
        for option in options:
            assert option in commands.get(verb, ()), f"{page.name}: {line}: {option}"
    everything = set().union(*commands.values())
    foreign = {
        "--nproc_per_node",
        "--multi_gpu",
        "--num_processes",
        "--cpu",
        "--check",
        "--extra",
        "--lambda",
    }
    foreign |= {"--no-deps", "--no-build-isolation", "--quick", "--continuous-batching"}
    foreign |= {"--only", "--captions", "--held", "--scorer"}  # of benches
    for option in re.findall(r"`(--[a-z][\w-]*)", text):
        assert option in everything | foreign, f"{page.name}: {option}"


def test_every_option_of_compare_is_described() -> None:
    text = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    for option in _commands()["compare"] - {"--help", "-h"}:
        assert f"`{option}`" in text, option


def test_every_field_is_described_with_its_default() -> None:
    text = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    for name, field in CompareConfig.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        for child in inner or [""]:
            full = f"`{name}.{child}" if inner else f"`{name}`"
            assert full in text, full


def test_starter_values_in_compare_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODALIGN_CACHE", str(tmp_path))
    config, _ = load_config(None)
    text = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    assert f"| `budget` | `20000samples` | `{config.budget}` |" in text
    assert f"| `seeds` | auto | {config.seeds} |" in text
    assert config.total is None
    assert f"| `training.batch_size` | 32 | {config.training.batch_size} |" in text


# --------------------------------------------------------------------------------- methods page


def _builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "build_methods", ROOT / "docs" / "build_methods.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_methods_page_is_current() -> None:
    committed = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert committed == _builder().page(), "run: python docs/build_methods.py"


def test_methods_page_names_every_method() -> None:
    committed = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert all(f"\n## {name}\n" in committed for name in method_names())
