"""A page opened from a file in a real browser, that asked nothing of any network and complained of nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@contextmanager
def opened(file: Path, width: int = 1300, **options: Any) -> Iterator[Page]:
    """The page with all its figures drawn."""
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url))
        page.goto(file.as_uri())
        drawn = "document.documentElement.dataset.drawn ?? 0"
        page.wait_for_function(f"Number({drawn}) === document.querySelectorAll('.chart').length")
        yield page
        browser.close()
    foreign = [text for text in complaints if not text.startswith(("file:", "data:"))]
    assert foreign == []


def violations(page: Page) -> list[str]:
    """What axe-core finds serious or critical."""
    results = Axe().run(page).response["violations"]
    serious = [one for one in results if one["impact"] in ("serious", "critical")]
    return [f"{one['id']}: {node['html']}" for one in serious for node in one["nodes"]]


# Elements that reach beyond the right edge of their card, and cards beyond the window.
OVERHANG = """() => [...document.querySelectorAll('.card, .card *, .chart svg *')].filter((element) => {
  const [own, card] = [element, element.closest('.card')].map((e) => e.getBoundingClientRect());
  if (element.closest('.scroll') || element.closest('.unseen') || !own.width) return false;
  return own.right > card.right + 1 || own.left < card.left - 1 || own.right > innerWidth + 1;
}).map((element) => element.outerHTML.slice(0, 160))"""


def overhanging(page: Page) -> list[str]:
    """What is cut or runs out of its card."""
    beyond = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return page.evaluate(OVERHANG) + ([f"{beyond} pixels beyond the window"] if beyond > 0 else [])
