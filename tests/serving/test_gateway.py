"""A gateway before a stand-in for the language model's server: what goes over the wire, and what comes back."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from modalign.data.records import Media, Message
from modalign.errors import UsageError
from modalign.evaluation.generation import answer_records
from modalign.models.export.gateway import save_gateway
from modalign.serving.engine import open_engine
from modalign.serving.gateway import GatewayEngine, open_gateway
from modalign.serving.requests import Engine, PromptError, QueueFullError, Sampling, Started
from serving import backend
from serving.collected import Heard, ask, ask_all

NEW = 6


@pytest.fixture
def parts(compose_tiny: Any, tmp_path: Path) -> tuple[Any, Any, Path]:
    model, processor = compose_tiny("mlp")
    folder = tmp_path / "gateway"
    folder.mkdir()
    save_gateway(model, processor, folder)
    return model, processor, folder


@contextmanager
def opened(folder: Path, url: str, **options: Any) -> Iterator[GatewayEngine]:
    engine = open_gateway(folder, url, **options)
    typed: Engine = engine
    try:
        yield engine
    finally:
        typed.close()


def chats() -> list[list[Message]]:
    picture = tiny.image(3)
    return [
        [Message("user", (picture, "is the ball red ?"))],
        [Message("system", ("be brief",)), Message("user", ("how many",))],
        [
            Message("user", (picture, tiny.image(4), "which ?")),
            Message("assistant", ("yes",)),
            Message("user", (Media("image", data=tiny.png_bytes(9, 20)), "and now ?")),
        ],
    ]


def test_answers_are_those_of_the_whole_model(parts: Any) -> None:
    model, processor, folder = parts
    plain = model.language_model
    with (
        backend.running(plain, processor.tokenizer) as server,
        opened(folder, server.url, api_key="secret") as engine,
    ):
        prompts = [engine.chat_prompt(messages) for messages in chats()]
        heard = ask_all(engine, prompts, max_tokens=NEW)
        expected = [
            answer_records(model, processor, [tiny_record(messages)], NEW)[0]
            for messages in chats()
        ]
        assert [each.text.strip() for each in heard] == expected
        assert all(each.finished.reason in ("stop", "length") for each in heard)
        assert [each.count for each in heard] == [NEW] * 3 or all(
            each.count <= NEW for each in heard
        )
        assert set(server.keys) == {"Bearer secret"}
        assert engine.state().media_misses == 3  # one picture is in two of the chats
        assert engine.state().media_hits == 1


def tiny_record(messages: list[Message]) -> Any:
    from modalign.data.records import Record, Source

    return Record("r", tuple(messages), Source("f", 1))


def test_the_wire_carries_the_whole_templated_prompt(parts: Any) -> None:
    model, processor, folder = parts
    with (
        backend.running(model.language_model, processor.tokenizer) as server,
        opened(folder, server.url) as engine,
    ):
        prompt = engine.chat_prompt(chats()[0])
        how = {"max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ("x",)}
        (scored,) = ask_all(engine, [prompt], logprobs=2, **how)
        assert "".join(token.text for token in scored.tokens) == scored.text
        assert all(len(token.top) == 2 for token in scored.tokens)
        ask_all(engine, [prompt], max_tokens=NEW, ignore_end=True)
        (sent, _), (body, endless) = server.prompts, server.bodies
    ids = torch.tensor(prompt.ids)
    text = ids != processor.image_token_id
    assert sent.shape == (len(ids), model.config.text_config.hidden_size)
    known = model.get_input_embeddings()(ids)
    assert torch.equal(sent[text], known[text])  # template, question, where the answer begins
    rendered = processor.tokenizer.decode(ids[text])
    assert rendered == processor.tokenizer.decode(
        processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": "is the ball red ?"}],
            add_generation_prompt=True,
            return_dict=True,
        )["input_ids"]
    )
    features = model.encode("image", prompt.inputs["pixel_values"])
    tokens, mask = model.connect("image", features)
    assert torch.allclose(sent[~text], tokens[mask], atol=1e-6)
    assert body["model"] == "llm"
    assert {name: body[name] for name in how if name != "stop"} == {
        name: value for name, value in how.items() if name != "stop"
    }
    assert body["stop"] == ["x"]
    assert (body["logprobs"], endless["logprobs"]) == (2, 0)
    assert "ignore_eos" not in body
    assert (endless["ignore_eos"], endless["stop_token_ids"]) == (True, [])
    assert body["stream"] is True
    assert body["stop_token_ids"]
    assert "messages" not in body


def test_requests_before_a_backend_are_apart(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temperature that overflows is greedy, and whatever one request's answer raises ends that one."""
    model, processor, folder = parts
    take = GatewayEngine._take

    def fails(engine: GatewayEngine, asked: Any, chunk: Any) -> Any:
        if asked.sampling.seed == 7:
            raise ValueError("a chunk that cannot be")
        return take(engine, asked, chunk)

    monkeypatch.setattr(GatewayEngine, "_take", fails)
    with (
        backend.running(model.language_model, processor.tokenizer) as server,
        opened(folder, server.url) as engine,
    ):
        prompt = engine.text_prompt("how many")
        asked = [ask(engine, prompt, max_tokens=NEW, seed=seed) for seed in (6, 7, 8)]
        cold = ask(engine, prompt, max_tokens=NEW, temperature=5e-38, logprobs=1)
        said = [heard.wait() for heard in (*asked, cold)]
        assert {body["temperature"] for body in server.bodies} == {0.0}
    assert said[1].finished.error == "ValueError: a chunk that cannot be"
    assert said[0].text == said[2].text == said[3].text
    assert [heard.finished.reason == "error" for heard in said] == [False, True, False, False]


def test_a_continuation_is_told_as_the_whole_model_tells_it(parts: Any) -> None:
    """The backend does not know what stands before the answer: its texts would lose a space."""
    model, processor, folder = parts
    with (
        backend.running(model.language_model, processor.tokenizer) as server,
        opened(folder, server.url) as engine,
    ):
        prompt = engine.text_prompt("how many")
        (said,) = ask_all(engine, [prompt], max_tokens=NEW, ignore_end=True)
        (scored,) = ask_all(engine, [prompt], max_tokens=NEW, ignore_end=True, logprobs=1)
    whole = processor.tokenizer.decode(
        [*prompt.ids, *(token.id for token in scored.tokens)], skip_special_tokens=True
    )
    before = processor.tokenizer.decode(list(prompt.ids), skip_special_tokens=True)
    assert said.text == scored.text == whole[len(before) :]
    assert "".join(token.text for token in scored.tokens) == scored.text
    assert said.tokens == []


def test_a_client_that_leaves_frees_its_place_at_the_backend(parts: Any) -> None:
    model, processor, folder = parts
    with (
        backend.running(model.language_model, processor.tokenizer) as server,
        opened(folder, server.url, max_batch=1, max_waiting=1) as engine,
    ):
        server.hold = threading.Event()
        prompt = engine.text_prompt("how many")
        first, second = Heard(), Heard()
        handle = engine.submit(prompt, Sampling(max_tokens=3), first)
        assert first.begun.wait(60)
        engine.submit(prompt, Sampling(max_tokens=3, ignore_end=True), second)
        with pytest.raises(QueueFullError):
            engine.submit(prompt, Sampling(max_tokens=3), Heard())
        handle.cancel()
        assert first.wait().finished.reason == "cancelled"
        assert server.left.wait(60)
        server.hold.set()
        assert second.wait().count == 3
        assert engine.drain(30)


def test_clients_take_turns_at_the_backend(parts: Any) -> None:
    class Noted(Heard):
        def __init__(self, client: str) -> None:
            super().__init__()
            self.client = client

        def __call__(self, event: Any, /, more: bool = False) -> None:
            if isinstance(event, Started):
                order.append(self.client)
            super().__call__(event)

    order: list[str] = []
    model, processor, folder = parts
    with (
        backend.running(model.language_model, processor.tokenizer) as server,
        opened(folder, server.url, max_batch=1, max_waiting=8) as engine,
    ):
        server.hold = threading.Event()
        prompt, how = engine.text_prompt("how many"), Sampling(max_tokens=2, ignore_end=True)
        heard = [Noted(client) for client in ["many", "many", "many", "new"]]
        for each in heard:
            engine.submit(prompt, how, each, each.client)
        assert heard[0].begun.wait(60)
        server.hold.set()
        for each in heard:
            each.wait()
        assert order == ["many", "new", "many", "many"]
        with engine._changed:
            assert engine._changed.wait_for(lambda: not engine._asked, 60)
        assert [*engine._queue, *engine._running] == []


def test_what_the_backend_says_when_it_refuses(parts: Any) -> None:
    model, processor, folder = parts
    with (
        backend.running(model.language_model, processor.tokenizer) as server,
        opened(folder, server.url) as engine,
    ):
        server.fail = "prompt embeddings are off"
        (said,) = ask_all(engine, [engine.text_prompt("x")], max_tokens=2)
        assert said.finished.reason == "error"
        assert "answers 400" in str(said.finished.error)
        assert "prompt embeddings are off" in str(said.finished.error)
        server.fail = None
        (after,) = ask_all(engine, [engine.text_prompt("x")], max_tokens=2, ignore_end=True)
        assert after.count == 2
        with pytest.raises(PromptError, match="echo"):
            engine.submit(engine.text_prompt("x"), Sampling(prompt_logprobs=True), Heard())
        with pytest.raises(PromptError, match="reads 200"):  # the backend's own limit
            engine.submit(engine.text_prompt([5] * 200), Sampling(), Heard())


def test_backends_that_cannot_be(parts: Any, tmp_path: Path) -> None:
    model, processor, folder = parts
    with pytest.raises(UsageError, match="not an address"):
        open_gateway(folder, "localhost:8000")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(UsageError, match="enable-prompt-embeds"):
            open_gateway(folder, f"http://127.0.0.1:{port}")
    with backend.running(model.language_model, processor.tokenizer, ("one", "two")) as server:
        with pytest.raises(UsageError, match="serves one, two: choose one"):
            open_gateway(folder, server.url)
        with opened(folder, f"{server.url}/v1", model="two") as engine:
            assert engine.backend.model == "two"
        with pytest.raises(UsageError, match="contains no gateway"):
            open_gateway(tmp_path, server.url)
    with pytest.raises(UsageError, match=r"is a gateway.*--backend"):
        open_engine(folder)
