"""The page's media: chosen, dropped, pasted, recorded; previewed, sent, refused."""

from __future__ import annotations

import io
import json
import wave

import pytest
from playwright.sync_api import Browser, expect

from modalign.serving.http.settings import Settings
from serving.fake_engine import FakeEngine
from serving.in_browser import ask, bring, content, figures, in_browser, opened, picture, sound


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
        page.wait_for_timeout(300)  # what is recorded takes its time
        stop.click()
        expect(page.locator("#attached .name")).to_have_text("recording-1.wav")
        page.get_by_role("button", name="Record", exact=True).click()
        stop.wait_for()
        page.wait_for_timeout(300)
        ask(page, "what is said?")  # which ends the second recording
        figures(page)
        assert [part.modality for part in content(engine)[:2]] == ["audio", "audio"]
        with wave.open(io.BytesIO(content(engine)[0].read())) as recorded:
            assert recorded.getnchannels() == 1
            assert recorded.getnframes() > 0


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


@in_browser
def test_what_the_model_does_not_take_is_refused_at_once(browser: Browser) -> None:
    engine = FakeEngine(modalities=("image",))
    with opened(browser, engine) as page:
        bring(page, "drop", "word.wav", "audio/wav", sound())
        alert = page.get_by_role("alert")
        expect(alert).to_have_text("word.wav: this model takes an image, not audio.")
        expect(page.locator("#attached li")).to_have_count(0)
        expect(page.locator("#record")).to_be_hidden()


@in_browser
def test_a_body_over_the_limit_is_explained(browser: Browser) -> None:
    settings = Settings("tiny", body_bytes=2**17)
    with opened(browser, FakeEngine(), settings, refusals=1) as page:
        noise = {"name": "big.wav", "mimeType": "audio/wav", "buffer": sound(5)}
        page.locator("#ask:enabled").wait_for()
        page.set_input_files("#files", noise)
        ask(page, "what is said?")
        expect(page.get_by_role("alert")).to_contain_text("larger than the 0.125 MB")


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
