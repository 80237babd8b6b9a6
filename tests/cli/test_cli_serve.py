"""``modalign serve``: a small real model over HTTP, and what is refused before it is loaded."""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

import tiny
from modalign.data.records import Message, Record, Source
from modalign.evaluation.generation import answer_records
from modalign.models.export import save_model
from modalign.models.open import open_model

NEW = 8
KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def folder(compose_tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of images with random weights."""
    made = tmp_path_factory.mktemp("serve") / "scenes"
    save_model(*compose_tiny("mlp"), made)
    return made


@pytest.fixture(scope="module")
def running(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The verb in a process of its own: its address."""
    key = tmp_path_factory.mktemp("key") / "key.txt"
    key.write_text(KEY + "\n")
    command = [sys.executable, "-m", "modalign", "serve", str(folder), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--api-key-file", str(key), "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    found = re.fullmatch(r"scenes is served at (http://127\.0\.0\.1:\d+/v1)\n", line)
    assert found, line + process.stderr.read()
    try:
        yield found[1], process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def client(running: tuple[str, subprocess.Popen[str]]) -> openai.OpenAI:
    return openai.OpenAI(base_url=running[0], api_key=KEY, max_retries=0)


def test_chats_with_pictures_are_answered_as_by_generation(
    client: openai.OpenAI, folder: Path
) -> None:
    model, processor = open_model(folder)
    answers = set()
    for pictures in ((), (0,), (1, 2)):
        media = [tiny.image(number) for number in pictures]
        record = Record("r", (Message("user", (*media, "how many red")),), Source("f", 1))
        (expected,) = answer_records(model, processor, [record], NEW)
        parts = [
            {
                "type": "image_url",
                "image_url": {
                    "url": f"data:image/png;base64,{base64.b64encode(medium.read()).decode()}"
                },
            }
            for medium in media
        ]
        messages: Any = [
            {"role": "user", "content": [*parts, {"type": "text", "text": "how many red"}]}
        ]
        asked: Any = {"model": "scenes", "messages": messages, "temperature": 0}
        answer = client.chat.completions.create(**asked, max_tokens=NEW)
        assert (answer.choices[0].message.content or "").strip() == expected
        details: Any = answer.usage.prompt_tokens_details  # type: ignore[union-attr]
        assert (details.image_tokens or 0) == tiny.PATCHES * len(media)
        streamed = client.chat.completions.create(**asked, max_tokens=NEW, stream=True)
        said = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
        assert said.strip() == expected
        answers.add(expected)
    assert len(answers) == 3


def test_a_broken_image_is_the_clients_mistake(client: openai.OpenAI) -> None:
    cut = base64.b64encode(tiny.png_bytes(0)[:200]).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{cut}"}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="scenes",
            messages=[{"role": "user", "content": [part]}],  # type: ignore[list-item]
        )
    assert "messages[0].content[0].image_url.url: truncated or damaged image" in str(caught.value)


def test_texts_are_scored(client: openai.OpenAI) -> None:
    asked: Any = {"model": "scenes", "echo": True, "logprobs": 1, "max_tokens": 0}
    text = "how many red"
    scores = client.completions.create(prompt=text, **asked).choices[0].logprobs
    assert scores is not None
    assert "".join(scores.tokens or []) == text
    assert all(value <= 0 for value in (scores.token_logprobs or [])[1:])


def test_without_the_key_nobody_is_answered(running: tuple[str, Any]) -> None:
    assert httpx2.get(f"{running[0]}/models").status_code == 401


def test_sigterm_ends_it_in_order(running: tuple[str, subprocess.Popen[str]]) -> None:
    """The last test of this server."""
    _, process = running
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out == ""
    assert "POST /v1/chat/completions 200" in err
    assert "GET /v1/models 401" in err
    assert "finishing running requests" in err
    assert KEY not in err
    assert "base64" not in err
    assert "Traceback" not in err


# --- refused before a model is loaded -----------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "--api-key-file"),
        (["--host", "::"], "--no-api-key"),
        (["--api-key-file", "KEY", "--no-api-key"], "contradict"),
        (["--api-key-file", "EMPTY"], "contains no key"),
        (["--api-key-file", "nowhere.txt"], "cannot be read"),
        (["--allow-url", "https://x.org/"], "without scheme"),
        (["--host", "no such host", "--no-api-key"], "cannot listen"),
        (["--port", "0"], "not-there"),
    ],
)
def test_what_is_refused(cli: Any, tmp_path: Path, options: list[str], said: str) -> None:
    (tmp_path / "KEY").write_text(KEY)
    (tmp_path / "EMPTY").write_text("\n")
    paths = [str(tmp_path / word) if word.isupper() else word for word in options]
    (tmp_path / "not-there").mkdir()  # without a model in it
    code, out, err = cli("serve", tmp_path / "not-there", *paths)
    assert code == 2
    assert said in err
    assert out == ""
