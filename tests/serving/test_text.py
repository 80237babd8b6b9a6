"""Pieces of text put together are the whole text; a stop text and half a character never show."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from modalign.serving.text import Detokenizer, Spelling, token_bytes


def byte_level() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(["the cat sat on the mat"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner)


BYTES = byte_level()
texts = st.text(alphabet="abc the\n\u00e9\u4e2d\U0001f600", max_size=40)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(texts, st.lists(st.text(alphabet="ab\u00e9 ", min_size=1, max_size=4), max_size=2))
def test_pieces_make_the_text_up_to_its_first_stop(text: str, stop: list[str]) -> None:
    made = Detokenizer(Spelling(BYTES), stop)
    shown, pieces = "", []
    for token in BYTES(text)["input_ids"]:
        new, told = made.push(token)
        assert "\ufffd" not in new
        shown += new
        pieces += told
        if made.stopped:
            break
    else:
        new, told = made.finish()
        shown += new
        pieces += told
    assert "".join(piece.text for piece in pieces) == shown
    assert b"".join(piece.data for piece in pieces) == shown.encode()
    expected, stopped = plainly(text, stop)
    assert shown == expected
    assert made.stopped == stopped


def plainly(text: str, stop: list[str]) -> tuple[str, bool]:
    """What is shown, by decoding everything anew after every token: up to the first stop that is complete."""
    ids = BYTES(text)["input_ids"]
    for count in range(1, len(ids) + 1):
        so_far = BYTES.decode(ids[:count])
        ends = [place for place in (so_far.find(each) for each in stop) if place >= 0]
        if ends and not so_far.endswith("\ufffd"):
            return so_far[: min(ends)], True
    return text, False


def test_pieces_of_a_sentence_piece_tokenizer(tokenizer: Any) -> None:
    for text in ("the red ball is left of 7", "a b"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        made = Detokenizer(Spelling(tokenizer))
        shown = "".join([made.push(token)[0] for token in ids]) + made.finish()[0]
        assert shown == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_character_that_is_never_completed_shows_in_the_end() -> None:
    first = BYTES("\U0001f600")["input_ids"][0]
    made = Detokenizer(Spelling(BYTES))
    assert made.push(first) == ("", [])
    assert made.finish()[0] == BYTES.decode([first])


@pytest.mark.parametrize("text", ["the", " a", "\u00e9", "\U0001f600"])
def test_bytes_of_tokens_make_the_text(text: str) -> None:
    ids = BYTES(text)["input_ids"]
    assert b"".join(token_bytes(BYTES, token) for token in ids) == text.encode()
