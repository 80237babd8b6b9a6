"""Tokens, bytes and offsets put together are the text, for every kind of tokenizer and every stop text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from modalign.serving.http.completions import CompletionShape
from modalign.serving.http.shapes import Collected
from modalign.serving.requests import Delta, Finished, Prompt, Sampling, Started
from modalign.serving.rows import Row
from modalign.serving.sampling import Settled
from modalign.serving.text import Spelling
from reports.odd_tokenizers import byte_level, llama, unigram
from reports.threads import reported
from serving.collected import ask

CPU = torch.device("cpu")
TOKENIZERS = {
    "byte level": byte_level(),
    "Llama": llama(),
    "older Llama": llama(legacy=True),
    "unigram": unigram(),
}
SPELLINGS = {name: Spelling(tokenizer) for name, tokenizer in TOKENIZERS.items()}
names = st.sampled_from(sorted(TOKENIZERS))
texts = st.text(alphabet="abceotx \n?\u00e9\u4e2d\u6587\U0001f600\u200d", max_size=20)
STORIES = tiny.SHARED / "models" / "stories260k"


class Said:
    """A scripted answer: the row's events, with no model before it."""

    def __init__(self, spelling: Spelling, prompt: list[int], made: list[int], **how: Any) -> None:
        sampling = Sampling(**{"max_tokens": len(made), "logprobs": 2, **how})
        self.events: list[Any] = []
        self.spelling, self.sampling = spelling, sampling
        size = len(spelling.tokenizer)
        row = Row(
            Prompt(tuple(prompt), continued=True),
            sampling,
            lambda event, more=False: self.events.append(event),
            spelling,
            Settled(None, frozenset([2]), _plain()),
            CPU,
            max(len(made), 1),
        )
        scored = sampling.prompt_logprobs
        row.start(row.prompt_scores(torch.zeros(len(prompt), size)) if scored else (), 0)
        for token in made:
            if row.finished:
                break
            logits = torch.zeros(size)
            logits[token] = 5.0
            assert row.choose(logits) == token
            row.take(token)
        if not row.finished:
            row.finish("length")

    @property
    def deltas(self) -> list[Delta]:
        return [event for event in self.events if isinstance(event, Delta)]

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def tokens(self) -> list[Any]:
        started = next(event for event in self.events if isinstance(event, Started))
        return [*started.prompt, *(token for delta in self.deltas for token in delta.tokens)]

    def completion(self, echo: bool = False) -> dict[str, Any]:
        """As /v1/completions would write it."""
        shape = CompletionShape("m", 1, [None] if echo else None, self.sampling.logprobs, False)
        started = next(event for event in self.events if isinstance(event, Started))
        tokens = [token for delta in self.deltas for token in delta.tokens]
        return shape.choice(0, Collected([self.text], started.prompt, tokens))


def _plain() -> Any:
    from transformers import GenerationConfig

    return GenerationConfig()


def rebuilt(choice: dict[str, Any], said: Said) -> None:
    """The choice's tokens, bytes and offsets are its text."""
    text, scores = choice["text"], choice["logprobs"]
    assert "".join(scores["tokens"]) == text
    assert b"".join(token.data for token in said.tokens) == text.encode()
    ends = [*scores["text_offset"], len(text)][1:]
    for token, begin, end in zip(scores["tokens"], scores["text_offset"], ends, strict=True):
        assert text[begin:end] == token


@reported("vllm-project/vllm#47815", "vllm-project/vllm#19379", "oobabooga/textgen#5339")
@settings(max_examples=120, deadline=None, derandomize=True)
@given(names, texts, texts, st.booleans())
def test_pieces_of_prompt_and_answer_make_the_text(
    name: str, before: str, after: str, echo: bool
) -> None:
    """Protects: echo gave `<s>Onceuponatime`, offsets counted half characters as whole ones."""
    tokenizer, spelling = TOKENIZERS[name], SPELLINGS[name]
    ids = tokenizer(before + after, add_special_tokens=False)["input_ids"]
    cut = len(tokenizer(before, add_special_tokens=False)["input_ids"])
    prompt, made = [1, *ids[:cut]], ids[cut:]
    said = Said(spelling, prompt, made, prompt_logprobs=echo)
    rebuilt(said.completion(echo), said)
    if echo:
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        assert said.completion(echo)["text"] == whole


@reported("vllm-project/vllm#47815")
@settings(max_examples=80, deadline=None, derandomize=True)
@given(names, texts, st.lists(st.text(alphabet="abc \u4e2d", min_size=1, max_size=3), max_size=2))
def test_up_to_a_stop_text_too(name: str, text: str, stop: list[str]) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    said = Said(SPELLINGS[name], [1], ids, stop=tuple(stop))
    choice = said.completion()
    assert not any(each in choice["text"] for each in stop)
    if "" not in choice["logprobs"]["tokens"]:  # no half character is cut off
        rebuilt(choice, said)


@reported("huggingface/transformers#22710", "deepjavalibrary/djl-serving#1272")
@pytest.mark.parametrize("name", ["Llama", "older Llama", "unigram", "byte level"])
def test_a_continuation_keeps_its_space(name: str) -> None:
    """Protects: `Once` went on as `upon`, so `Onceupon`."""
    tokenizer = TOKENIZERS[name]
    ids = tokenizer("once upon a time", add_special_tokens=False)["input_ids"]
    cut = len(tokenizer("once", add_special_tokens=False)["input_ids"])
    said = Said(SPELLINGS[name], ids[:cut], ids[cut:])
    assert said.text == " upon a time"


@reported("ollama/ollama#13497", "standardcompletions/rfcs#2")
@pytest.mark.parametrize("name", ["Llama", "byte level"])
def test_half_characters_have_their_own_bytes_and_keys(name: str) -> None:
    """Protects: alternatives that are parts of characters were one key, with the replacement's bytes."""
    tokenizer, spelling = TOKENIZERS[name], SPELLINGS[name]
    parts = tokenizer("\U0001f600", add_special_tokens=False)["input_ids"][-4:]
    found = [spelling.named(token, False) for token in parts]
    assert [piece.text for piece in found] == [
        f"bytes:\\x{byte:02x}" for byte in "\U0001f600".encode()
    ]
    assert b"".join(piece.data for piece in found) == "\U0001f600".encode()


@reported(
    "vllm-project/vllm#2123", "thinking-machines-lab/tinker-feedback#90", "LostRuins/koboldcpp#791"
)
def test_a_special_token_can_be_a_stop() -> None:
    """Protects: `stop: ["<|im_end|>"]` never fired, since special tokens do not show."""
    tokenizer = TOKENIZERS["Llama"]
    ids = tokenizer("once upon", add_special_tokens=False)["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    said = Said(SPELLINGS["Llama"], [1], [*ids, end, *ids], stop=("<|im_end|>",))
    assert said.text == "once upon"
    assert said.events[-1] == Finished("stop")


@reported("huggingface/transformers#22710", "abetlen/llama-cpp-python#1375")
@pytest.mark.skipif(not STORIES.is_dir(), reason=f"the shared model {STORIES.name} is not there")
def test_stories_go_on_with_a_space() -> None:
    """Protects: the real Llama tokenizer of the report, by the engine itself."""
    from modalign.serving.engine import open_engine

    engine = open_engine(STORIES, device="cpu", threads=1)
    try:
        heard = ask(engine, engine.text_prompt("Once"), max_tokens=1).wait()
        assert heard.text == " upon"
        ids = engine.text_prompt([1, 403, 407, 261, 378])
        echo = ask(engine, ids, max_tokens=0, logprobs=1, prompt_logprobs=True).wait()
        texts = [token.text for token in echo.started.prompt]
        assert texts == ["", "Once", " upon", " a", " time"]
    finally:
        engine.close()
