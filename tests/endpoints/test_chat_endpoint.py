"""An OpenAI-compatible endpoint: what is sent, what comes back, what is paid for only once."""

from __future__ import annotations

import threading
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modalign.endpoints import (
    ChatEndpoint,
    EndpointError,
    EndpointUsageError,
    Pace,
    ReplyCache,
    Request,
    Retries,
    ToolCall,
)
from modalign.endpoints.cache import request_key
from modalign.errors import DataError, UsageError

from stand_in import Answer, FakeClock, StandIn, said, serving  # isort: skip

ASKED = [{"role": "user", "content": "how many?"}]
TOOLS = [{"type": "function", "function": {"name": "count", "parameters": {"type": "object"}}}]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


def client(server: StandIn, **options: Any) -> ChatEndpoint:
    options.setdefault("pace", Pace(clock=FakeClock()))
    return ChatEndpoint(server.url, "m", **options)


def waits(endpoint: ChatEndpoint) -> list[float]:
    assert isinstance(endpoint.pace.clock, FakeClock)
    return endpoint.pace.clock.waits


def test_request_and_reply() -> None:
    with serving([said("three")]) as server:
        endpoint = client(server, api_key=" secret ", settings={"temperature": 0})
        reply = endpoint.complete(ASKED, max_tokens=7)
    assert (reply.text, reply.calls, reply.finish, reply.cached) == ("three", (), "stop", False)
    assert (reply.prompt_tokens, reply.completion_tokens) == (10, 3)
    sent = {"model": "m", "messages": ASKED, "temperature": 0, "max_tokens": 7}
    assert server.bodies == [{"path": "/v1/chat/completions"} | sent]
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert "secret" not in repr(endpoint)


def test_no_key_is_sent_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not for this address")
    with serving([said("x")]) as server:
        client(server).complete(ASKED)
    assert "Authorization" not in server.headers[0]


def test_tool_calls_come_back_as_written() -> None:
    wrong = '{"n": '
    with serving([said(calls=[("count", wrong), ("count", {"n": 1})])]) as server:
        reply = client(server).complete(ASKED, TOOLS)
    assert reply.calls == (ToolCall("count", wrong, "c0"), ToolCall("count", '{"n": 1}', "c1"))
    assert server.bodies[0]["tools"] == TOOLS
    message = reply.as_message()
    assert message["tool_calls"][0]["function"] == {"name": "count", "arguments": wrong}


def test_retry_after_in_seconds_is_honoured() -> None:
    busy = Answer({"error": {"message": "slow down"}}, 429, {"Retry-After": "17"})
    with serving([busy, said("yes")]) as server:
        endpoint = client(server)
        assert endpoint.complete(ASKED).text == "yes"
        assert waits(endpoint) == [17.0]
        assert endpoint.usage.as_json()["retries"] == 1


def test_retry_after_as_a_date_is_honoured() -> None:
    clock = FakeClock()
    date = formatdate(clock.now() + 42, usegmt=True)
    with serving([Answer(b"", 503, {"Retry-After": date}), said("yes")]) as server:
        endpoint = client(server, pace=Pace(clock=clock))
        assert endpoint.complete(ASKED).text == "yes"
    assert clock.waits == [42.0]


def test_retry_after_holds_everybody() -> None:
    clock = FakeClock()
    pace = Pace(clock=clock)
    pace.hold(30)
    with pace.turn():
        assert clock.waits == [30.0]


def test_backoff_doubles_and_ends() -> None:
    with serving(lambda *_: Answer({"error": "down"}, 500)) as server:
        endpoint = client(server, retries=Retries(attempts=4, first=2.0))
        with pytest.raises(EndpointError, match="given up after 4 attempts") as caught:
            endpoint.complete(ASKED)
        assert len(server.bodies) == 4
        ranges = zip(waits(endpoint), (2, 4, 8), strict=True)
        assert all(longest / 2 <= wait <= longest for wait, longest in ranges)
        assert caught.value.status == 500
        assert endpoint.usage.failures == 1


def test_a_wait_that_is_too_long_is_refused() -> None:
    with serving([Answer({"error": "quota"}, 429, {"Retry-After": "86400"})]) as server:
        endpoint = client(server)
        with pytest.raises(EndpointError, match="asks to wait 86400 s"):
            endpoint.complete(ASKED)
        assert waits(endpoint) == []


@pytest.mark.parametrize(
    ("status", "body", "words", "error"),
    [
        (401, {"error": {"message": "bad key"}}, "bad key; the key is missing", EndpointUsageError),
        (403, {"error": "no"}, "without rights", EndpointUsageError),
        (404, {"error": {"message": "no m"}}, "it has one, two", EndpointUsageError),
        (307, b"", "redirects to http://elsewhere", EndpointUsageError),
        (400, {"error": {"message": "context length"}}, "context length", EndpointError),
        (429, {"error": {"message": "pay", "code": "insufficient_quota"}}, "pay", EndpointError),
    ],
)
def test_final_errors_are_not_retried(
    status: int, body: Any, words: str, error: type[Exception]
) -> None:
    answers = [Answer(body, status, {"Location": "http://elsewhere"})]
    with serving(answers) as server:
        server.models = ["one", "two"]
        with pytest.raises(error, match=words) as caught:
            client(server).complete(ASKED)
        assert len(server.bodies) == 1
    assert caught.value.exit_code == (2 if error is EndpointUsageError else 1)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "broken",
    [
        Answer(b'{"choices": [{"mess', cut=True),
        Answer(b'{"choices": [{"mess'),
        Answer(b"<html>gateway</html>"),
        Answer({"choices": []}),
        Answer({"choices": [{"message": {"tool_calls": [{}]}}]}),
    ],
)
def test_broken_responses_are_asked_again_and_never_kept(broken: Answer, tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "replies.sqlite")
    with serving([broken, said("whole")]) as server:
        assert client(server, cache=cache).complete(ASKED).text == "whole"
        assert len(server.bodies) == 2
    assert len(cache) == 1
    with serving(lambda *_: broken) as server, pytest.raises(EndpointError, match="given up"):
        client(server, retries=Retries(attempts=2)).complete(ASKED)


def test_unreachable() -> None:
    with serving([]) as server:
        pass
    with pytest.raises(EndpointError, match="is the server running"):
        client(server, retries=Retries(attempts=2)).complete(ASKED)


def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modalign.endpoints.http.MAX_BYTES", 1000)
    with (
        serving([Answer(b"x" * 5000)]) as server,
        pytest.raises(EndpointError, match="more than 0 MiB"),
    ):
        client(server).complete(ASKED)


def test_what_was_paid_for_is_not_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "replies.sqlite"
    with serving(lambda _, n: said(f"answer {n}")) as server:
        first = client(server, cache=path, api_key="a")
        assert first.complete(ASKED, seed=1).text == "answer 0"
        again = client(server, cache=path, api_key="b", prices=(1e6, 1e6))
        reply = again.complete(ASKED, seed=1)
        assert (reply.text, reply.cached, len(server.bodies)) == ("answer 0", True, 1)
        used = again.usage.as_json()
        assert used.pop("cached") == 1
        assert not any(used.values())
        assert again.complete(ASKED, seed=2).text == "answer 1"
        assert again.complete(ASKED, seed=1, sample=1).text == "answer 2"
        assert again.complete(ASKED, TOOLS, seed=1).text == "answer 3"
        assert again.usage.cost == 3 * (10 + 3)
    assert not any("sample" in body for body in server.bodies)
    content = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"how many" not in content


def test_resumed_after_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    requests = [Request([{"role": "user", "content": str(i)}]) for i in range(12)]
    revoked = threading.Event()

    def answer(body: dict[str, Any], n: int) -> Answer:
        if n >= 5 and not revoked.is_set():
            return Answer({"error": "revoked"}, 401)
        return said(body["messages"][0]["content"])

    with serving(answer) as server:
        with pytest.raises(EndpointUsageError, match="revoked"):
            list(client(server, cache=path).complete_all(requests))
        kept = len(ReplyCache(path))
        asked = len(server.bodies)
        revoked.set()
        replies = [reply for _, reply in client(server, cache=path).complete_all(requests)]
    assert kept == 5
    assert [getattr(reply, "text", None) for reply in replies] == [str(i) for i in range(12)]
    assert len(server.bodies) - asked == 12 - kept


def test_many_in_order_bounded_and_lazily() -> None:
    barrier = threading.Barrier(3, timeout=20)
    taken: list[int] = []

    def slow(body: dict[str, Any], n: int) -> Answer:
        barrier.wait()
        text = body["messages"][0]["content"]
        return Answer({"error": "odd"}, 400) if text == "4" else said(text)

    def requests() -> Any:
        for i in range(12):
            taken.append(i)
            yield Request([{"role": "user", "content": str(i)}])

    with serving(slow) as server:
        endpoint = client(server, pace=Pace(concurrency=3, clock=FakeClock()))
        replies = endpoint.complete_all(requests())
        first = next(replies)
        assert len(taken) == 6
        rest = [reply for _, reply in replies]
    texts = [getattr(reply, "text", type(reply).__name__) for reply in [first[1], *rest]]
    assert texts == ["0", "1", "2", "3", "EndpointError", *map(str, range(5, 12))]
    assert server.most_running == 3


def test_requests_per_minute() -> None:
    clock = FakeClock()
    with serving(lambda *_: said("x")) as server:
        endpoint = client(server, pace=Pace(per_minute=30, clock=clock))
        for _ in range(4):
            endpoint.complete(ASKED)
    assert clock.waits == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    "url", ["localhost:8000", "file:///etc/passwd", "http://", "http://h/v1?key=1", "ftp://h/v1"]
)
def test_wrong_addresses(url: str) -> None:
    with pytest.raises(UsageError, match=r"expected http|no query|no URL"):
        ChatEndpoint(url, "m")


@pytest.mark.parametrize("key", ["", "  ", "a\nb", "schlüssel"])
def test_wrong_keys(key: str) -> None:
    with pytest.raises(UsageError, match="key"):
        ChatEndpoint("http://localhost/v1", "m", key)


def test_settings_cannot_replace_the_request() -> None:
    with pytest.raises(UsageError, match="model, stream"):
        ChatEndpoint("http://localhost/v1", "m").complete(ASKED, model="other", stream=True)


def test_a_cache_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    path.write_bytes(b"something else entirely" * 100)
    with pytest.raises(DataError, match=r"replies\.sqlite: cannot be used as a cache"):
        ReplyCache(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=st.dictionaries(st.text(), JSON, min_size=2, max_size=4))
def test_keys_do_not_depend_on_the_order_of_fields(value: dict[str, Any]) -> None:
    turned = dict(reversed(value.items()))
    assert request_key(turned, 0) == request_key(value, 0)
    assert request_key(value, 0) != request_key(value, 1)
    assert request_key({"a": [value, value]}, 0) != request_key({"a": [value]}, 0)
