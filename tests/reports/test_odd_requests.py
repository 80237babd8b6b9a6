"""Requests as no client should send them: every field of every wrong kind, and HTTP that is none.

A generator of odd inputs runs against the server. Whatever comes, the answer is a success or an error
in the one shape, nothing is left behind, and /health is answered. What had held before is kept: field extremes,
paths that lead out, requests smuggled behind others.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reports.threads import reported, tried
from serving.fake_engine import FakeEngine, Served, served
from serving.raw_http import HELLO, JSON, SETTINGS, raw

FIELDS = [
    *(
        "model",
        "n",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "ignore_eos",
    ),
    *("max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "tools", "tool_choice"),
    *("echo", "best_of", "logit_bias", "response_format", "top_k", "user", "suffix", "functions"),
    *("messages", "prompt", "metadata", "prediction", "unknown", "", "__class__", "model_config"),
]
KEYS = [
    *(
        "role",
        "content",
        "type",
        "text",
        "image_url",
        "url",
        "detail",
        "input_audio",
        "data",
        "format",
    ),
    *(
        "tool_calls",
        "function",
        "name",
        "arguments",
        "id",
        "tool_call_id",
        "series",
        "table",
        "vectors",
    ),
    *("image", "video_url", "parameters", "refusal", "include_usage", "$ref", "a"),
]
NUMBERS = [
    *(
        0,
        1,
        -1,
        2,
        16,
        64,
        65,
        2**31 - 1,
        2**31,
        2**63 - 1,
        2**63,
        -(2**63),
        -(2**63) - 1,
        2**64,
        10**30,
    ),
    *(0.0, -0.0, 5e-324, 5e-38, 1e-9, 0.5, 1.0, 2.0, 2.0000001, 1e308, -1e308, 1.5),
]
TEXTS = [
    *(
        "",
        " ",
        "user",
        "assistant",
        "tool",
        "system",
        "text",
        "image_url",
        "series",
        "function",
        "auto",
    ),
    *(
        "none",
        "tiny",
        "{}",
        "{",
        "[" * 300,
        '{"a": ' * 300,
        "\0",
        "\ud83d\ude00",
        "é" * 50,
        "</s>",
        "<image>",
    ),
    *(
        "data:,",
        "data:image/png;base64,",
        "http://[::1",
        "file:///etc/passwd",
        "../../etc/passwd",
        "x" * 3000,
    ),
]
plain = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
)
values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)
ROUTES: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": HELLO, "max_tokens": 2},
    "completions": {"prompt": "hi", "max_tokens": 2},
}


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, Any]:
    """A good request of which a few fields, at any depth, are something else."""
    route = draw(st.sampled_from(sorted(ROUTES)))
    body = json.loads(json.dumps(ROUTES[route]))
    body |= draw(st.dictionaries(st.sampled_from(FIELDS), values, max_size=3))
    if isinstance(body.get("messages"), list) and draw(st.booleans()):
        part = draw(st.dictionaries(st.sampled_from(KEYS), values, max_size=4))
        turn = {"role": draw(st.sampled_from(["user", "assistant", "tool", 5]))}
        turn |= draw(st.dictionaries(st.sampled_from(KEYS), values, max_size=3))
        body["messages"].append(turn | draw(st.sampled_from([{}, {"content": [part]}])))
    return route, draw(st.sampled_from([body, body, body, [body], draw(values)]))


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(FakeEngine(), SETTINGS) as running:
        yield running
    assert running.service.serving == 0


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, headers=JSON, timeout=20) as found:
        yield found


@tried("requests with odd fields, by generation")
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(bodies())
@example(("completions", {"prompt": "hi", "top_k": 10**30}))
@example(("completions", {"prompt": "hi", "temperature": 5e-38, "logprobs": 20}))
@example(("chat/completions", {"messages": [{"role": "user", "content": [{"type": []}]}]}))
def test_every_answer_is_a_success_or_an_error_with_its_field(
    client: httpx2.Client, asked: tuple[str, Any]
) -> None:
    route, body = asked
    response = client.post(f"/v1/{route}", content=json.dumps(body).encode())
    assert response.status_code in (200, 400, 404), (response.status_code, response.text)
    if response.status_code == 200:
        if response.headers["content-type"].startswith("text/event-stream"):
            assert response.text.endswith("data: [DONE]\n\n")
        else:
            assert response.json()["choices"]
    else:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert len(error["message"]) < 2000
        assert error["type"] == "invalid_request_error"
    assert client.get("/health").status_code == 200


@reported("unslothai/unsloth#8307")
@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.binary(max_size=60), st.sampled_from(sorted(ROUTES)))
@example(b"[" * 50_000, "completions")
@example(b'{"prompt":' * 5000, "completions")
@example(b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}", "completions")
@example(b'{"prompt": "\\ud800"}', "completions")
@example(b'{"prompt": 1e999}', "completions")
@example(b"\xef\xbb\xbf{}", "completions")
def test_bytes_that_are_no_json(client: httpx2.Client, content: bytes, route: str) -> None:
    response = client.post(f"/v1/{route}", content=content)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]


LINES = st.sampled_from(
    [
        *(
            b"GET /health HTTP/1.1",
            b"POST /v1/completions HTTP/1.1",
            b"GET / HTTP/9.9",
            b"GET",
            b"",
        ),
        *(
            b"PRI * HTTP/2.0",
            b"GET http://evil/ HTTP/1.1",
            b"CONNECT a:1 HTTP/1.1",
            b"\x16\x03\x01\x02\x00",
        ),
        *(
            b"Host: localhost",
            b"Host: evil",
            b"Content-Length: 5",
            b"Content-Length: -1",
            b"Content-Length: 5, 6",
        ),
        *(
            b"Content-Length: 99999999999999999999",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: gzip",
        ),
        *(
            b"Transfer-Encoding: chunked, identity",
            b"Content-Type: application/json",
            b"Expect: 100-continue",
        ),
        *(
            b"Upgrade: websocket",
            b"Connection: upgrade",
            b" folded",
            b"No colon",
            b"Name : space",
            b"X: \x00",
        ),
        *(
            b"X: " + b"y" * 20_000,
            b"5\r\nhello\r\n0\r\n",
            b'{"prompt":"a"}',
            b"0",
            b"ffffffffffffffffff",
            b"-1",
        ),
    ]
)


@tried("heads that are none, by hand")
@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(LINES, min_size=1, max_size=8), st.sampled_from([b"\r\n", b"\n"]))
def test_heads_that_are_none(
    server: Served, client: httpx2.Client, lines: list[bytes], end: bytes
) -> None:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(end.join(lines) + end + end)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while chunk := connection.recv(65_536):
                answer += chunk
        except ConnectionError:
            pass
    for status in answer.split(b"HTTP/1.1 ")[1:]:
        assert status[:3] in (b"100", b"200", b"400", b"404", b"405", b"415", b"421", b"408"), (
            answer
        )
    assert client.get("/health").status_code == 200


@tried("requests behind one another, by hand")
@pytest.mark.parametrize(
    ("head", "body"),
    [
        (
            b"Content-Length: 14\r\nTransfer-Encoding: chunked",
            b"0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n",
        ),
        (b"Content-Length: 4\r\nContent-Length: 40", b"{}\r\nGET /metrics HTTP/1.1\r\n\r\n"),
        (b"Transfer-Encoding: xchunked", b"0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n"),
        (b"Transfer-Encoding : chunked", b"0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n"),
        (b"Transfer-Encoding: chunked", b"0x5\r\nhello\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n"),
        (b"Content-Length: +5", b"helloGET /metrics HTTP/1.1\r\n\r\n"),
        (
            b"Content-Length: 5\r\n Transfer-Encoding: chunked",
            b"0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n",
        ),
    ],
)
def test_no_request_is_smuggled_behind_another(server: Served, head: bytes, body: bytes) -> None:
    line = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = raw(server, line + head + b"\r\n\r\n" + body)
    assert answer.count(b"HTTP/1.1 ") <= 1, answer
    assert b"modalign_requests_total" not in answer


@tried("paths that lead out, by hand")
@pytest.mark.parametrize(
    "path",
    [
        *(
            "/../../etc/passwd",
            "/page/../../../etc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "//etc/passwd",
        ),
        *(
            "/..%2f..%2fetc%2fpasswd",
            "/page/%00",
            "/v1/models/../../../etc/passwd",
            "/\\..\\..\\etc\\passwd",
        ),
        *(
            "/v1/models/%2e%2e%2f%2e%2e%2fetc/passwd",
            "/v1/models/" + "a" * 5000,
            "/openapi.json/..",
        ),
    ],
)
def test_no_path_leads_out(server: Served, path: str) -> None:
    answer = raw(
        server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    assert answer.split()[1] in (b"404", b"400"), answer
    assert b"root:" not in answer
    assert len(answer) < 2000
