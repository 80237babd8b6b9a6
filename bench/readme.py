"""What the README shows of `make demo`: its table, a picture of its report, a picture of the server's page.

``python -m bench.readme runs/demo`` writes the table between the README's two marks, with the commit that
printed it, and the pictures into ``docs/pictures``. Chromium takes the pictures; without it they stay as they are.
"""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from modalign.comparison.results import Comparison, MethodResult, ReferenceRow
from modalign.numbers.words import count, flops, percent, seconds
from modalign.pages.markdown import table

ROOT = Path(__file__).parents[1]
START, END = "<!-- demo: written by `make readme` -->", "<!-- end of demo -->"
HEADINGS = ("", "method", "family", "accuracy (95 %)", "trainings", "transfer", "trainable",
            "tokens", "FLOPs an answer")  # fmt: skip
WIDTH = 1300


def share(value: float | None) -> str:
    """Write a share without the percent sign, which is in the heading."""
    return percent(value).removesuffix(" %")


def method_row(method: MethodResult, chosen: str | None) -> tuple[str, ...]:
    """Return one method's cells."""
    found = method.accuracy_interval
    accuracy = f"{share(found.value)} ({share(found.low)} to {share(found.high)})" if found else ""
    name = f"**{method.name}**" if method.name == chosen else method.name
    transfer = share(method.transfer.value) if method.transfer else ""
    return (str(method.rank or ""), name, method.family, accuracy, str(len(method.seeds)), transfer,
            count(method.trainable_parameters), count(method.tokens), flops(method.inference_flops))  # fmt: skip


def reference_row(row: ReferenceRow) -> tuple[str, ...]:
    """Return the cells of a reference row."""
    return ("", row.name, "", share(row.accuracy.value), *[""] * 5)


def block(comparison: Comparison, commit: str) -> str:
    """Write the text between the marks."""
    chosen = comparison.recommendation
    methods = sorted(comparison.methods, key=lambda m: m.rank or len(comparison.methods) + 1)
    name = chosen.method if chosen else None
    rows = [method_row(method, name) for method in methods]
    rows += [reference_row(row) for row in comparison.references]
    setting = comparison.setting
    told = (
        f"What `make demo` printed on {os.cpu_count()} cores at commit `{commit}`, in "
        f"{seconds(setting.seconds)} after the installation. Accuracy is over {setting.eval_records:,} questions "
        "about handwriting that no part of any model has seen; *transfer* is a skill that no method was trained "
        "on, which the language model knows from text. Intervals are about other questions and other "
        "trainings."
    )
    said = (
        f"Recommended: **{chosen.method}**. {chosen.reason}" if chosen else "Nothing recommended."
    )
    return "\n".join(
        (*textwrap.wrap(told, 120), "", table(HEADINGS, rows), "", *textwrap.wrap(said, 120))
    )


def write_block(page: Path, text: str, first: str = START, last: str = END) -> None:
    """Replace the text between two marks.

    Raises:
        SystemExit: the page has lost its marks.
    """
    before, start, rest = page.read_text(encoding="utf-8").partition(first)
    _, end, after = rest.partition(last)
    if not start or not end:
        sys.exit(f"{page} has no lines {first} and {last}")
    page.write_text(f"{before}{first}\n{text}\n{last}{after}", encoding="utf-8")


@contextmanager
def served(model: Path) -> Iterator[str]:
    """Serve a model until the block ends; yield the server's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "modalign", "serve", str(model), "--port", str(port)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as server:
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(240):
                time.sleep(0.25)
                try:
                    urllib.request.urlopen(f"{address}/health").close()
                    break
                except OSError:
                    if server.poll() is not None:
                        raise
            yield address
        finally:
            server.terminate()


def pictures(run: Path, comparison: Comparison, folder: Path, chromium: str) -> None:
    """Photograph the top of the report, and the server's page after a question about an evaluation scene."""
    from playwright.sync_api import sync_playwright

    example = next(e for e in comparison.examples if e.image_png_base64)
    image = base64.b64decode(example.image_png_base64 or "")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 1500})
        page.goto((run / "report.html").resolve().as_uri())
        page.wait_for_timeout(1500)  # figures are drawn when the page has loaded
        page.screenshot(path=folder / "report.png")
        with served(run / "best") as address:
            page.set_viewport_size({"width": 900, "height": 760})
            page.goto(address)
            page.set_input_files(
                "#files", {"name": "scene.png", "mimeType": "image/png", "buffer": image}
            )
            page.fill("#question", example.question)
            page.keyboard.press("Enter")
            page.locator(".figures").last.wait_for()
            page.screenshot(path=folder / "page.png")
        browser.close()


def main(
    run: Annotated[Path, typer.Argument(help="The folder that `make demo` wrote.")],
    readme: Annotated[Path, typer.Option(help="The page with the two marks.")] = ROOT / "README.md",
) -> None:
    """Write the README's table and pictures from a finished `make demo`."""
    comparison = Comparison.model_validate_json((run / "report.json").read_text(encoding="utf-8"))
    commit = subprocess.check_output(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True
    ).strip()
    write_block(readme, block(comparison, commit))
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((path for name in names if (path := shutil.which(name))), None)
    if chromium is None:
        print("no Chromium: the pictures stay as they are")
    else:
        pictures(run, comparison, ROOT / "docs" / "pictures", chromium)


if __name__ == "__main__":
    typer.run(main)
