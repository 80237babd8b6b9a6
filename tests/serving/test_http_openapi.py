"""The server keeps to its own OpenAPI document, whatever it is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi import checks as openapi_checks

from serving.fake_engine import FakeEngine, Served, served

CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]

EXAMPLES = 25
RIGHT, WRONG = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
CASES = (
    ("POST /v1/chat/completions", RIGHT),
    ("POST /v1/chat/completions", WRONG),
    ("POST /v1/completions", RIGHT),
    ("POST /v1/completions", WRONG),
    ("GET /v1/models", RIGHT),
    ("GET /v1/models/{model}", RIGHT),
    ("GET /health", RIGHT),
    ("GET /metrics", RIGHT),
)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(FakeEngine()) as running:
        yield running


@pytest.mark.parametrize(("label", "mode"), CASES)
def test_it_answers_as_documented(server: Served, label: str, mode: GenerationMode) -> None:
    """Requests made from the document, right ones and wrong ones."""
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    method, path = label.split()
    operation = api[path][method]
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        response = case.call()
        case.validate_response(response, checks=CHECKS)
        statuses[response.status_code] += 1

    check()
    if method == "POST":  # the requests were what they were meant to be
        assert (400 if mode == WRONG else 200) in statuses


def test_the_document_names_what_there_is(server: Served) -> None:
    document = httpx2.get(f"{server.url}/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/v1/models/{model}",
        "/health",
        "/metrics",
    }
    schemas = document["components"]["schemas"]
    assert {"ChatRequest", "CompletionRequest", "ChatCompletion", "ErrorAnswer"} <= set(schemas)
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    reference = chat["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    assert reference == "#/components/schemas/ChatRequest"
