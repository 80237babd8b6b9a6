"""The page is for everybody: by keyboard, by ear, in light and dark, on any screen."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from serving.fake_engine import FakeEngine
from serving.in_browser import ask, bring, figures, in_browser, opened, picture

ARTEFACTS = Path(os.environ.get("MODALIGN_ARTEFACTS", Path(__file__).parents[2] / "build"))


@in_browser
def test_the_keyboard_alone_is_enough(browser: Browser) -> None:
    with opened(browser, FakeEngine()) as page:
        expect(page.locator("#question")).to_be_focused()
        page.keyboard.type("one")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("two")
        expect(page.locator("#question")).to_have_value("one\ntwo")
        page.keyboard.press("Enter")
        figures(page)
        expect(page.locator("#question")).to_be_focused()
        page.locator(".skip").focus()
        order = []
        for _ in range(10):
            page.keyboard.press("Tab")
            order.append(
                page.evaluate("document.activeElement.id || document.activeElement.innerText")
            )
        assert order == [
            "clear", "Options", "temperature", "max-tokens", "seed", "system",
            "Token probabilities", "question", "attach", "record",
        ]  # fmt: skip


@in_browser
def test_the_answer_is_spoken_by_sentences(browser: Browser) -> None:
    words = "This is one . And this is two . Here it ends"
    pieces = re.findall(r"\S+\s*", words)
    engine = FakeEngine(lambda *_: pieces)
    with opened(browser, engine) as page:
        ask(page, "tell me")
        figures(page)
        spoken = page.locator("#spoken p").all_inner_texts()
        assert spoken[0] == "Answering"
        assert spoken[-1] == "End of the answer"
        assert "".join(page.locator("#spoken p").all_text_contents()[1:-1]) == words
        assert len(spoken) < 6
        assert page.locator(".answer").get_attribute("aria-live") is None  # not token by token


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("size", "width"), [("wide", 1280), ("narrow", 360)])
def test_nothing_serious_stands_in_anybodys_way(
    browser: Browser, scheme: Any, size: str, width: int
) -> None:
    engine = FakeEngine(lambda *_: ("A red", " ball", "."))
    view = {"width": width, "height": 800}
    with opened(browser, engine, color_scheme=scheme, viewport=view, refusals=1) as page:
        found = _violations(page, lambda: page.locator("#empty").wait_for())
        bring(page, "drop", "scene.png", "image/png", picture())
        ask(page, "what is this?")
        page.get_by_text("Token probabilities").click()
        page.get_by_text("Options", exact=True).click()  # the other way round than it was
        bring(page, "drop", "broken.png", "image/png", picture()[:40])
        ask(page, "and this?")
        page.get_by_role("alert").wait_for()
        found += _violations(page, lambda: None)
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=ARTEFACTS / f"page-{size}-{scheme}.png", full_page=True)
        overhang = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert found == []
    assert overhang <= 0


def _violations(page: Page, ready: Callable[[], None]) -> list[str]:
    """What axe-core finds serious or critical."""
    ready()
    results = Axe().run(page).response["violations"]
    serious = [one for one in results if one["impact"] in ("serious", "critical")]
    return [f"{one['id']}: {node['html']}" for one in serious for node in one["nodes"]]
