"""The page at /: what is asked, shown and said, stopping, and what goes wrong."""

from __future__ import annotations

import math
import urllib.error
import urllib.request
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

import tiny
from modalign.data.records import Message, Record, Source
from modalign.evaluation.generation import answer_records
from modalign.serving.engine import LocalEngine
from modalign.serving.http.page import PATHS
from modalign.serving.http.settings import Settings
from serving.fake_engine import MEDIUM_TOKENS, FakeEngine, served
from serving.in_browser import answer, ask, bring, content, figures, in_browser, opened, picture

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


SLOW_FILES = """
const read = FileReader.prototype.readAsDataURL;
FileReader.prototype.readAsDataURL = function (blob) {
    window.readOn = () => read.call(this, blob);
};
"""


@in_browser
def test_a_question_waits_for_files_that_are_still_being_read(browser: Browser) -> None:
    engine = FakeEngine()
    with opened(browser, engine) as page:
        page.evaluate(SLOW_FILES)
        bring(page, "drop", "scene.png", "image/png", picture())
        ask(page, "what is this?")
        expect(page.locator("article")).to_have_count(0)
        assert not engine.submitted
        page.evaluate("readOn()")
        figures(page)
        medium, text = content(engine)
        assert (medium.read(), text) == (picture(), "what is this?")


@in_browser
def test_a_question_stays_where_its_file_cannot_be_read(browser: Browser) -> None:
    engine = FakeEngine()
    with opened(browser, engine) as page:
        page.evaluate(
            SLOW_FILES.replace("read.call(this, blob)", 'this.onerror(new Event("error"))')
        )
        bring(page, "drop", "scene.png", "image/png", picture())
        ask(page, "what is this?")
        page.evaluate("readOn()")
        expect(page.get_by_role("alert")).to_contain_text("scene.png cannot be read")
        expect(page.locator("#question")).to_have_value("what is this?")
        assert not engine.submitted


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
def test_an_answer_that_breaks_off_is_shown_and_left_out_of_the_conversation(
    browser: Browser,
) -> None:
    engine = FakeEngine(lambda *_: ("half", "ERROR"), steps=1)
    with opened(browser, engine) as page:
        ask(page, "say it")
        expect(answer(page)).to_have_text("half")
        engine.allow(None)
        expect(page.get_by_role("alert")).to_have_text("the model failed; see the server's log")
        expect(answer(page)).to_have_text("half")
        expect(page.locator("#question")).to_have_value("say it")
        engine.script = lambda *_: ("whole",)
        page.keyboard.press("Enter")
        expect(answer(page)).to_have_text("whole")
        expect(page.get_by_role("alert")).to_be_hidden()
        assert len(engine.turns[-1]) == 1


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
