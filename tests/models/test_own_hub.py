"""A hub of one's own: fetched from HF_ENDPOINT into HF_HOME, read from there offline, as transformers does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

import tiny_gguf
from modalign.errors import UsageError
from modalign.models import local
from modalign.models.local import gguf_file, model_folder
from modalign.models.open import open_model
from modalign.models.saved import open_composed
from modalign.patches.folder_weights import FolderWeights

NAME, COMMIT = "somebody/tiny", "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The part of a hub's protocol that downloads need, over one repository.

    Attributes:
        asked: paths of the requests.
    """

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                hub.asked.append(self.path)
                files = sorted(folder.iterdir())
                told: Any = {
                    "id": NAME,
                    "sha": COMMIT,
                    "siblings": [{"rfilename": f.name} for f in files],
                }
                if self.path.startswith(f"/api/models/{NAME}/tree/"):
                    told = [
                        {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name}
                        for f in files
                    ]
                if self.path.startswith(f"/api/models/{NAME}/"):
                    self.answer(200, json.dumps(told).encode(), "application/json")
                    return
                file = folder / self.path.rpartition("/")[2]
                if f"/{NAME}/resolve/" in self.path and file.is_file():
                    self.answer(200, file.read_bytes(), "application/octet-stream")
                else:
                    self.answer(404, b"", "text/plain")

            def answer(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
                if status == 404:
                    self.send_header("X-Error-Code", "EntryNotFound")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        """Stop answering."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def hub(
    llm_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hub]:
    """A hub with a tiny model in two forms, and the settings of a user of it."""
    repository = tmp_path / "repository"
    repository.mkdir()
    for file in llm_folder().iterdir():
        (repository / file.name).write_bytes(file.read_bytes())
    (repository / "pytorch_model.bin").write_bytes(b"a pickle")
    tiny_gguf.write_gguf(llm_folder(), repository / "tiny.gguf")
    made = Hub(repository)
    monkeypatch.setattr(constants, "ENDPOINT", made.address)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", made.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(local, "getproxies", dict)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("MODALIGN_CACHE", str(tmp_path / "cache"))
    yield made
    made.close()


def test_a_name_is_fetched_once_and_read_offline(
    hub: Hub, llm_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(NAME)
    assert folder.is_relative_to(tmp_path / "home" / "hub")
    assert not (folder / "pytorch_model.bin").exists()  # weights that are not read are not fetched
    assert not (folder / "tiny.gguf").exists()
    wanted: Any = AutoModelForCausalLM.from_pretrained(llm_folder())
    for model in (open_model(NAME)[0], open_composed(NAME).model.language_model):
        for name, tensor in wanted.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert model_folder(NAME) == folder
    assert FolderWeights(Path(NAME)).folder == folder  # as a verb's argument is read
    open_model(NAME)
    assert hub.asked == []


def test_a_gguf_file_of_a_repository(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    found = gguf_file(f"{NAME}/tiny.gguf")
    assert found is not None
    assert found.read_bytes()[:4] == b"GGUF"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert gguf_file(f"{NAME}/tiny.gguf") == found
    with pytest.raises(UsageError, match=r"somebody/tiny/other\.gguf cannot be read"):
        gguf_file(f"{NAME}/other.gguf")


def test_offline_a_name_that_is_not_here_is_refused_without_asking(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for read in (model_folder, open_model):
        with pytest.raises(UsageError, match="'somebody/tiny' cannot be loaded") as caught:
            read(NAME)
        assert "\n" not in str(caught.value)
    assert hub.asked == []


def test_what_the_hub_does_not_have_is_one_line(hub: Hub) -> None:
    with pytest.raises(UsageError, match="'somebody/else' cannot be loaded") as caught:
        model_folder("somebody/else")
    assert "\n" not in str(caught.value)
