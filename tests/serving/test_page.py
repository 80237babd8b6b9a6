"""The page at /, in a real browser: what is asked, shown, refused and said, and where nothing may go."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import shutil
import urllib.error
import urllib.request
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

import tiny
from modalign.data.records import Message, Record, Source
from modalign.evaluation.generation import answer_records
from modalign.serving.engine import LocalEngine
from modalign.serving.http.page import PATHS
from modalign.serving.http.settings import Settings
from serving.fake_engine import MEDIUM_TOKENS, FakeEngine, served

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
ARTEFACTS = Path(os.environ.get("MODALIGN_ARTEFACTS", Path(__file__).parents[2] / "build"))
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
WAIT = 10_000  # milliseconds
MICROPHONE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", *MICROPHONE]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


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
    page.locator("#ask:enabled").wait_for()
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


# --- what is asked and shown --------------------------------------------------------------------


@in_browser
def test_a_dropped_image_is_asked_about_and_the_answer_comes_in_pieces(browser: Browser) -> None:
    engine = FakeEngine(lambda *_: ("A red", " ball", "."), steps=0)
    with opened(browser, engine) as page:
        bring(page, "dragover", "scene.png", "image/png", picture())
        expect(page.locator("#drop")).to_be_visible()
        bring(page, "drop", "scene.png", "image/png", picture())
        expect(page.locator("#drop")).to_be_hidden()
        expect(page.get_by_role("img", name="scene.png")).to_be_visible()
        ask(page, "what is this?")
        expect(page.locator("#attached li")).to_have_count(0)
        for shown in ("A red", "A red ball", "A red ball."):
            engine.allow(1)
            expect(answer(page)).to_have_text(shown)
            expect(page.locator("#ask")).to_be_hidden()
        engine.allow(None)
        given = figures(page)
        read = len("what is this?") + MEDIUM_TOKENS
        assert (
            given["Prompt"] == f"{read} tokens ({read - MEDIUM_TOKENS} text, {MEDIUM_TOKENS} image)"
        )
        assert given["From cache"] == f"{read // 2} tokens"
        assert given["Answer"] == "3 tokens, ended by itself"
        assert given["Speed"].endswith(" tokens/s")
        assert {"First token", "Total"} <= given.keys()
        expect(page.get_by_role("img", name="scene.png")).to_be_visible()
        medium, text = content(engine)
        assert (medium.modality, medium.read(), text) == ("image", picture(), "what is this?")


@in_browser
def test_a_conversation_goes_on_and_can_be_begun_anew(browser: Browser) -> None:
    engine = FakeEngine(lambda prompt, _: ("yes",))
    with opened(browser, engine) as page:
        ask(page, "is it red?")
        expect(answer(page)).to_have_text("yes")
        figures(page)
        ask(page, "sure?")
        page.locator(".figures").nth(1).wait_for()
        said = [(turn.role, turn.text) for turn in engine.turns[-1] if isinstance(turn, Message)]
        assert said == [("user", "is it red?"), ("assistant", "yes"), ("user", "sure?")]
        page.get_by_role("button", name="New conversation").click()
        expect(page.locator("article")).to_have_count(0)
        ask(page, "again?")
        figures(page)
        assert len(engine.turns[-1]) == 1


@in_browser
def test_options_reach_the_engine(browser: Browser) -> None:
    engine = FakeEngine()
    with opened(browser, engine) as page:
        page.locator("#ask:enabled").wait_for()
        page.get_by_label("Temperature").fill("0.7")
        page.get_by_label("Most tokens of an answer").fill("2")
        page.get_by_label("Seed").fill("11")
        page.get_by_label("System prompt").fill("Be short.")
        ask(page, "hello?")
        assert figures(page)["Answer"] == "2 tokens, cut at the most tokens"
        sampling = engine.submitted[-1].sampling
        assert (sampling.temperature, sampling.max_tokens, sampling.seed) == (0.7, 2, 11)
        assert content(engine, 0) == ("Be short.",)
        page.get_by_label("Temperature").fill("3")
        ask(page, "and now?")
        expect(page.get_by_label("Temperature")).to_be_focused()  # refused before it is sent
        assert len(engine.submitted) == 1


@in_browser
def test_probabilities_are_coloured_and_told_in_words(browser: Browser) -> None:
    with opened(browser, FakeEngine()) as page:
        ask(page, "hello?")
        page.get_by_text("Token probabilities").click()
        rows = page.get_by_role("region", name="Probability of every token").get_by_role("row")
        expect(rows).to_have_count(4)
        expected = f"{100 * math.exp(-0.5):.1f} %"  # the fake engine's tokens
        expect(rows.nth(2)).to_contain_text("␣there")
        expect(rows.nth(2)).to_contain_text(expected)
        expect(rows.nth(2)).to_contain_text(f"{100 * math.exp(-2):.1f} %")
        expect(rows.nth(2)).to_contain_text("0.00 %")
        expect(page.locator(".coloured")).to_have_text("Hello there!")
        expect(page.locator(".coloured .token.level-1")).to_have_count(3)


@in_browser
def test_a_real_model_answers_in_the_page_what_it_answers_alone(
    browser: Browser, compose_tiny: Any
) -> None:
    model, processor = compose_tiny("linear")
    record = Record("r", (Message("user", (tiny.image(3), "how many")),), Source("f", 1))
    (expected,) = answer_records(model, processor, [record], 8)
    engine = LocalEngine(model, processor)
    with opened(browser, engine) as page:
        page.get_by_label("Most tokens of an answer").fill("8")
        bring(page, "drop", "scene.png", "image/png", picture())
        ask(page, "how many")
        given = figures(page)
        assert given["Prompt"].endswith(f"{tiny.PATCHES} image)")
        assert answer(page).text_content().strip() == expected


# --- sounds, values, the clipboard --------------------------------------------------------------


@in_browser
def test_a_sound_is_chosen_played_and_sent(browser: Browser) -> None:
    engine = FakeEngine(modalities=("audio",))
    with opened(browser, engine) as page:
        expect(page.locator("#invitation")).to_have_text(
            "Drop a sound here, paste or attach it, and ask about it."
        )
        page.set_input_files(
            "#files", {"name": "word.wav", "mimeType": "audio/x-wav", "buffer": sound()}
        )
        expect(page.locator("audio.preview")).to_have_attribute("aria-label", "word.wav")
        ask(page, "what is said?")
        figures(page)
        medium, _ = content(engine)
        assert (medium.modality, medium.read()) == ("audio", sound())


@in_browser
def test_the_microphone_gives_a_wav_file(browser: Browser) -> None:
    engine = FakeEngine(modalities=("audio",))
    with opened(browser, engine, permissions=["microphone"]) as page:
        page.get_by_role("button", name="Record").click()
        stop = page.get_by_role("button", name="Stop recording")
        stop.wait_for()
        page.wait_for_timeout(300)  # of recording
        stop.click()
        expect(page.locator("#attached .name")).to_have_text("recording.wav")
        ask(page, "what is said?")
        figures(page)
        with wave.open(io.BytesIO(content(engine)[0].read())) as recorded:
            assert recorded.getnchannels() == 1
            assert recorded.getnframes() / recorded.getframerate() > 0.1


@in_browser
def test_wav_files_hold_the_mean_of_the_channels(browser: Browser) -> None:
    with opened(browser, FakeEngine()) as page:
        written = page.evaluate(
            """async () => {
                const { wav } = await import("/page/media.js");
                const sound = new AudioBuffer({ length: 3, numberOfChannels: 2, sampleRate: 8000 });
                sound.copyToChannel(new Float32Array([0.5, -1, 2]), 0);
                sound.copyToChannel(new Float32Array([0, -1, 2]), 1);
                return [...new Uint8Array(wav(sound).buffer)];
            }"""
        )
    with wave.open(io.BytesIO(bytes(written))) as file:
        assert file.getparams()[:4] == (1, 2, 8000, 3)
        samples = memoryview(file.readframes(3)).cast("h").tolist()
    assert samples == [round(32767 * 0.25), -32767, 32767]  # beyond full scale is cut


@in_browser
@pytest.mark.parametrize(
    ("kind", "text"), [("table", '{"size": 3, "colour": "red"}'), ("series", "[1, 2, null]")]
)
def test_json_files_are_values(browser: Browser, kind: str, text: str) -> None:
    engine = FakeEngine(modalities=(kind,))
    with opened(browser, engine) as page:
        bring(page, "drop", "row.json", "application/json", text.encode())
        ask(page, "which?")
        figures(page)
        assert content(engine)[0].modality == kind
        assert json.loads(content(engine)[0].read()) == json.loads(text)


@in_browser
def test_pasted_files_are_attached_and_can_be_removed(browser: Browser) -> None:
    with opened(browser, FakeEngine()) as page:
        bring(page, "paste", "shot.png", "image/png", picture())
        bring(page, "paste", "other.png", "image/png", picture())
        expect(page.locator("#attached li")).to_have_count(2)
        page.get_by_role("button", name="Remove shot.png").click()
        expect(page.locator("#attached .name")).to_have_text("other.png")


# --- stopping, and what goes wrong --------------------------------------------------------------


@in_browser
@pytest.mark.parametrize("by", ["button", "Escape"])
def test_a_stopped_answer_frees_its_place_and_stays(browser: Browser, by: str) -> None:
    engine = FakeEngine(lambda *_: ("one", " two", " three"), steps=1)
    with opened(browser, engine) as page:
        ask(page, "count")
        expect(answer(page)).to_have_text("one")
        if by == "button":
            page.get_by_role("button", name="Stop").click()
        else:
            page.keyboard.press(by)
        engine.wait_for(lambda: not engine.running)
        assert figures(page)["Answer"] == "1 token, stopped"
        engine.allow(None)
        ask(page, "go on")
        page.locator(".figures").nth(1).wait_for()
        assert content(engine, 1) == ("one",)


@in_browser
def test_a_question_that_was_stopped_before_its_answer_comes_back(browser: Browser) -> None:
    engine = FakeEngine(steps=-1)
    engine.allow(0)
    with opened(browser, engine) as page:
        bring(page, "drop", "scene.png", "image/png", picture())
        ask(page, "what is this?")
        engine.wait_for(lambda: bool(engine.running))
        page.get_by_role("button", name="Stop").click()
        expect(page.locator("#question")).to_have_value("what is this?")
        expect(page.locator("#attached li")).to_have_count(1)
        expect(page.locator("article")).to_have_count(0)


@in_browser
def test_what_the_model_does_not_take_is_refused_at_once(browser: Browser) -> None:
    engine = FakeEngine(modalities=("image",))
    with opened(browser, engine) as page:
        bring(page, "drop", "word.wav", "audio/wav", sound())
        alert = page.get_by_role("alert")
        expect(alert).to_have_text("word.wav: this model takes an image, not a sound.")
        expect(page.locator("#attached li")).to_have_count(0)
        expect(page.locator("#record")).to_be_hidden()


@in_browser
def test_the_server_explains_a_broken_image_and_the_question_comes_back(browser: Browser) -> None:
    engine = FakeEngine()
    with opened(browser, engine, refusals=1) as page:
        bring(page, "drop", "scene.png", "image/png", picture()[:40])
        ask(page, "what is this?")
        expect(page.get_by_role("alert")).to_contain_text("messages[0].content[0].image_url")
        expect(page.locator("#question")).to_have_value("what is this?")
        expect(page.locator("#attached li")).to_have_count(1)
        assert engine.submitted == []


@in_browser
def test_an_answer_that_breaks_off_is_shown_and_left_out_of_the_conversation(
    browser: Browser,
) -> None:
    engine = FakeEngine(lambda *_: ("half", "ERROR"), steps=1)
    with opened(browser, engine) as page:
        ask(page, "say it")
        expect(answer(page)).to_have_text("half")
        engine.allow(None)
        expect(page.get_by_role("alert")).to_have_text(
            "the model failed; the server's log says why"
        )
        expect(answer(page)).to_have_text("half")
        expect(page.locator("#question")).to_have_value("say it")
        engine.script = lambda *_: ("whole",)
        page.keyboard.press("Enter")
        expect(answer(page)).to_have_text("whole")
        expect(page.get_by_role("alert")).to_be_hidden()
        assert len(engine.turns[-1]) == 1


@in_browser
def test_a_body_over_the_limit_is_explained(browser: Browser) -> None:
    settings = Settings("tiny", body_bytes=2**20)
    with opened(browser, FakeEngine(), settings, refusals=1) as page:
        noise = {"name": "big.wav", "mimeType": "audio/wav", "buffer": sound(200)}
        page.locator("#ask:enabled").wait_for()
        page.set_input_files("#files", noise)
        ask(page, "what is said?")
        expect(page.get_by_role("alert")).to_contain_text("server")


@in_browser
def test_a_key_is_asked_for_used_and_never_stored(browser: Browser) -> None:
    settings = Settings("tiny", api_key="right")
    with opened(browser, FakeEngine(), settings, refusals=2) as page:
        field = page.get_by_label("API key")
        expect(field).to_be_focused()
        expect(page.get_by_role("alert")).to_be_hidden()
        field.fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("no valid API key")
        field.fill("right")
        page.keyboard.press("Enter")
        ask(page, "hello?")
        expect(answer(page)).to_have_text("Hello there!")
        expect(field).to_be_hidden()
        kept = page.evaluate(
            "[localStorage.length, sessionStorage.length, document.cookie, key.value]"
        )
        assert kept == [0, 0, "", ""]


# --- for everybody ------------------------------------------------------------------------------


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


# --- without a browser --------------------------------------------------------------------------


def test_the_pages_files_have_strict_headers_and_need_no_key() -> None:
    assert {"/", "/page/page.js", "/page/page.css"} <= PATHS
    with served(FakeEngine(), Settings("tiny", api_key="right")) as server:
        for path in PATHS:
            with urllib.request.urlopen(server.url + path) as response:
                policy = response.headers["Content-Security-Policy"]
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                assert response.headers["Referrer-Policy"] == "no-referrer"
                text = response.read().decode().replace("http://www.w3.org/2000/svg", "")
            assert "default-src 'self'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert "http://" not in text
            assert "https://" not in text
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(server.url + "/v1/models")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(server.url + "/page/")
