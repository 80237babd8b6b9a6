"""A browser for the tests of the page; a server and OpenAI's client for those of the API."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from playwright.sync_api import Browser, sync_playwright

from serving.by_openai import connected
from serving.fake_engine import FakeEngine, Served
from serving.in_browser import CHROMIUM

FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="module")  # no longer: while Playwright runs, no other event loop can
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def one_server() -> Iterator[tuple[FakeEngine, Served, openai.OpenAI]]:
    """Starting and ending a server takes longer than a test."""
    engine = FakeEngine()
    with connected(engine) as (server, client):
        yield engine, server, client


@pytest.fixture
def engine(one_server: tuple[FakeEngine, Served, openai.OpenAI]) -> FakeEngine:
    """The server's engine, as if it were new."""
    engine = one_server[0]
    for seen in (engine.turns, engine.tools, engine.submitted):
        seen.clear()
    engine.script, engine.takes_tools, engine.steps = FakeEngine.script, True, None
    return engine


@pytest.fixture
def server(one_server: tuple[FakeEngine, Served, openai.OpenAI], engine: FakeEngine) -> Served:
    return one_server[1]


@pytest.fixture
def client(
    one_server: tuple[FakeEngine, Served, openai.OpenAI], engine: FakeEngine
) -> openai.OpenAI:
    return one_server[2]
