"""What the whole test suite shares: a tiny tokenizer, models, towers and a data set, made once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import tiny
from compared import cli, compared, scenes_folder, small_cache, small_config  # noqa: F401
from modalign.models.compose import prepare_tokenizer
from modalign.starter.language import build_tokenizer

torch.set_num_threads(1)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a file's tests in one process, and all files that use the shared comparison in one: it is made once."""
    from xdist.scheduler import LoadFileScheduling

    uses = re.compile(r"^def \w+\([^)]*\bcompared\b", re.MULTILINE)
    files = (config.rootpath / "tests").rglob("test_*.py")
    shared = {file.relative_to(config.rootpath).as_posix() for file in files
              if uses.search(file.read_text(encoding="utf-8"))}  # fmt: skip

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "compared" if file in shared else file

    return Together(config, log)


@pytest.fixture(scope="session")
def parts_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tiny models are kept during the session."""
    return tmp_path_factory.mktemp("parts")


@pytest.fixture(scope="session")
def tokenizer_folder(parts_folder: Path) -> Path:
    """The starter's tokenizer, saved."""
    folder = parts_folder / "tokenizer"
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerFast:
    """A fresh copy of the starter's tokenizer, placeholder and padding token included."""
    made: Any = AutoTokenizer.from_pretrained(tokenizer_folder)
    prepare_tokenizer(made)
    return made


@pytest.fixture(scope="session")
def llm_folder(parts_folder: Path, tokenizer_folder: Path) -> Callable[..., Path]:
    """Family name -> folder of a tiny language model (random weights) with its tokenizer."""

    def make(family: str = "llama", tied: bool = False) -> Path:
        folder = parts_folder / f"{family}-{'tied' if tied else 'untied'}"
        if not folder.exists():
            saved = AutoTokenizer.from_pretrained(tokenizer_folder)
            tiny.language_model(family, len(saved), tied).save_pretrained(folder)
            saved.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tower_folder(parts_folder: Path) -> Callable[..., Path]:
    """Tower name -> folder of a tiny vision tower (random weights) with its processor."""

    def make(kind: str = "siglip") -> Path:
        folder = parts_folder / kind
        if not folder.exists():
            model, processor = tiny.tower(kind)
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def compose_tiny(
    llm_folder: Callable[..., Path], tower_folder: Callable[..., Path]
) -> Callable[..., Any]:
    """(connector, llm family, tower, seed, options) -> a fresh composed model and its processor."""

    def make(connector: str, llm: str = "llama", tower: str = "siglip", **options: Any) -> Any:
        from modalign.connectors.registry import connector_class

        raw = connector_class(connector).raw_input
        encoder = "none" if raw else tower_folder(tower)
        return tiny.composed(llm_folder(llm), encoder, connector, **options)

    return make


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data.jsonl``: 24 rows, one of four text-only, one of four with two images."""
    folder = tmp_path_factory.mktemp("data")
    rows: list[dict[str, Any]] = []
    for number in range(24):
        count = (1, 0, 2, 1)[number % 4]
        content: list[dict[str, str]] = []
        for place in range(count):
            path = f"{number}-{place}.png"
            (folder / path).write_bytes(tiny.png_bytes(10 * number + place))
            content.append({"type": "image", "image": path})
        content.append({"type": "text", "text": f"what is {'one' if number % 3 else 'two'}?"})
        answer = ("yes", "no", "seven")[number % 3]
        rows.append(
            {
                "id": f"row-{number}",
                "messages": [
                    {"role": "user", "content": content},
                    {"role": "assistant", "content": answer},
                ],
                "skill": ("naming", "counting")[number % 2],
            }
        )
    tiny.write_jsonl(folder / "data.jsonl", rows)
    return folder
