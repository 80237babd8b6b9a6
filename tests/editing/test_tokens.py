"""Where a subject ends in tokens, for the tokenizers and the subjects that others trip over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_tokenizers import KINDS, tokenizer

from modalign.editing.engine.requests import KL_PROMPT
from modalign.editing.engine.tokens import encode_prompt, encode_target, pad
from modalign.errors import DataError

PROMPTS = [
    ("Danielle Darrieux", "The mother tongue of Danielle Darrieux is"),
    ("Danielle Darrieux", "Danielle Darrieux's mother tongue is"),
    ("Danielle Darrieux", "The home of Danielle Darrieux, is said, is"),
    ("Danielle Darrieux", '"Danielle Darrieux" said is'),
    ("Jean {Gabin}", "The mother tongue of Jean {Gabin} is"),
    ('"Al"', 'The mother tongue of "Al" is'),
    ("東京", "東京日本"),
    ("東京", "The mother tongue of 東京 is"),
    ("Édith", "The home of Édith, said Édith, is"),
    ("is", "The home is is"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("subject", "prompt"), PROMPTS)
def test_the_lookup_token_ends_the_subject(kind: str, subject: str, prompt: str) -> None:
    """Read back, the tokens up to it hold the subject, and those before it do not."""
    tok = tokenizer(kind)
    at = prompt.rindex(subject)
    found = encode_prompt(tok, prompt, subject, at)
    assert list(found.ids) == tok(prompt)["input_ids"]

    def read(count: int) -> str:
        return tok.decode(list(found.ids[:count]), skip_special_tokens=True)

    end = prompt[: at + len(subject)]
    assert len(read(found.lookup + 1).strip()) >= len(end.strip())
    assert not read(found.lookup).strip().endswith(end.strip())


@pytest.mark.parametrize("kind", KINDS)
def test_the_padding_side_and_the_begin_mark_do_not_move_it(kind: str) -> None:
    tok = tokenizer(kind)
    subject, prompt = PROMPTS[0]
    found = encode_prompt(tok, prompt, subject, prompt.index(subject))
    side = tok.padding_side
    try:
        tok.padding_side = "left" if side == "right" else "right"
        assert encode_prompt(tok, prompt, subject, prompt.index(subject)) == found
    finally:
        tok.padding_side = side
    begins = tok.bos_token_id is not None and found.ids[0] == tok.bos_token_id
    assert begins == (kind != "bytes")
    target = encode_target(tok, "French", prompt)
    assert tok.bos_token_id is None or tok.bos_token_id not in target
    said = tok.decode(list(found.ids + target), skip_special_tokens=True)
    assert said.strip() == prompt + " French"


@pytest.mark.parametrize(
    ("prompt", "target", "whole"),
    [
        ("The mother tongue is", "French", "The mother tongue is French"),
        ("The mother tongue is ", "French", "The mother tongue is French"),
        ("東京", "日本", "東京日本"),
        ("The home is", "東京", "The home is 東京"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_target_continues_its_prompt(kind: str, prompt: str, target: str, whole: str) -> None:
    tok = tokenizer(kind)
    ids = encode_prompt(tok, prompt).ids + encode_target(tok, target, prompt)
    assert tok.decode(list(ids), skip_special_tokens=True).strip() == whole


def test_without_a_subject_the_last_token_is_looked_up() -> None:
    found = encode_prompt(tokenizer("bytes"), "which digit is this?")
    assert found.lookup == len(found.ids) - 1


def test_what_cannot_be_found_is_said() -> None:
    tok = tokenizer("bytes")
    with pytest.raises(DataError, match="is not at offset 3"):
        encode_prompt(tok, "The tongue of Al is", "Al", 3)
    with pytest.raises(DataError, match="the target of 'Al is' is empty"):
        encode_target(tok, "  ", "Al is")


def test_the_kl_prompt_holds_any_subject() -> None:
    assert KL_PROMPT.replace("{}", "Jean {Gabin}") == "Jean {Gabin} is a"


def test_rows_are_padded_on_the_right_with_their_positions() -> None:
    rows = pad([[5, 6, 7], [8]])
    expected: Any = [[5, 6, 7], [8, 0, 0]]
    assert torch.equal(rows.ids, torch.tensor(expected))
    assert torch.equal(rows.mask, torch.tensor([[1, 1, 1], [1, 0, 0]]))
    assert torch.equal(rows.positions, torch.tensor([[0, 1, 2], [0, 0, 0]]))
