"""The page in a real browser, before any engine; what a test does there, and that nothing went elsewhere."""

from __future__ import annotations

import base64
import io
import shutil
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

import tiny
from modalign.data.records import Message
from modalign.serving.http.settings import Settings
from serving.fake_engine import FakeEngine, served

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
WAIT = 60_000  # milliseconds; a browser on a busy machine is slow
expect.set_options(timeout=WAIT)


@contextmanager
def opened(
    browser: Browser,
    engine: Any,
    settings: Settings | None = None,
    refusals: int = 0,
    **options: Any,
) -> Iterator[Page]:
    """The page before an engine; afterwards nothing was requested elsewhere and nothing was complained of.

    ``refusals`` answers of 4xx or 5xx are expected, which a browser notes in its console.
    """
    with served(engine, settings) as server:
        context = browser.new_context(**options)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        complaints: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server.url)
        yield page
        context.close()
        own = (f"{server.url}/", "data:", f"blob:{server.url}/")
        assert [url for url in asked if not url.startswith(own)] == []
        noted = [text for text in complaints if text.startswith("Failed to load resource")]
        assert [text for text in complaints if text not in noted] == []
        assert len(noted) == refusals


def ask(page: Page, text: str) -> None:
    page.locator("#ask:enabled").wait_for()
    page.fill("#question", text)
    page.keyboard.press("Enter")


def answer(page: Page, number: int = -1) -> Any:
    return page.locator(".answer").nth(number)


def figures(page: Page) -> dict[str, str]:
    """The last answer's, by label."""
    last = page.locator(".figures").last
    last.wait_for()
    return dict(
        zip(last.locator("dt").all_inner_texts(), last.locator("dd").all_inner_texts(), strict=True)
    )


def bring(page: Page, event: str, name: str, kind: str, content: bytes) -> None:
    """Drop or paste a file, as a browser would."""
    page.locator("#ask:enabled").wait_for(state="attached")
    page.evaluate(
        """([event, name, type, content]) => {
            const bytes = Uint8Array.from(atob(content), (sign) => sign.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type }));
            const about = { bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer };
            const made = event === "paste" ? new ClipboardEvent("paste", about) : new DragEvent(event, about);
            document.getElementById("conversation").dispatchEvent(made);
        }""",
        [event, name, kind, base64.b64encode(content).decode()],
    )


def picture() -> bytes:
    return tiny.png_bytes(3)


def sound(seconds: float = 0.1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 16000, 0, "NONE", ""))
        writer.writeframes(bytes(2 * int(16000 * seconds)))
    return file.getvalue()


def content(engine: FakeEngine, turn: int = -1) -> tuple[Any, ...]:
    """What a turn of the last request held."""
    message = engine.turns[-1][turn]
    assert isinstance(message, Message)
    return message.parts
