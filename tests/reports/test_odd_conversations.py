"""Whatever a template, a tokenizer or a processor raises is an error that names the record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from modalign.data.records import Message
from modalign.data.supervision import tokenise
from modalign.errors import DataError
from modalign.evaluation.generation import answer_records
from modalign.evaluation.likelihood import score_options
from modalign.models.open import open_model
from modalign.serving.prompts import Prompts
from modalign.serving.requests import PromptError
from reports.odd_tokenizers import byte_level
from reports.threads import reported

OPENING = (
    Message("assistant", ("hello",)),
    Message("user", ("what?",)),
    Message("assistant", ("no",)),
)
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}[assistant]"
REFUSING = "{{ raise_exception('no turns like that') }}"


def opened(template: str) -> Any:
    tokenizer = byte_level()
    tokenizer.chat_template = template
    return tokenizer


@reported("huggingface/transformers#46752")
@pytest.mark.parametrize("marks", [True, False])
def test_a_conversation_that_begins_with_the_assistant(marks: bool) -> None:
    """Protects: the template was called without messages, a traceback."""
    said = (
        "{% generation %}{{ m.content }}</s>{% endgeneration %}" if marks else "{{ m.content }}</s>"
    )
    tokenizer = opened(
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}"
        + said
        + "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    record = tiny.record("a", "b")
    record = type(record)(record.id, OPENING, record.source)
    sample = tokenise(record, tokenizer)
    assert tokenizer.decode(sample.ids[sample.supervised]) == "hello</s>no</s>"


@reported("huggingface/transformers#46752")
def test_every_way_to_ask_names_the_row(
    llm_folder: Callable[..., Path], compose_tiny: Callable[..., Any]
) -> None:
    record = tiny.record("what?", "no", row=7)
    model, tokenizer = open_model(llm_folder("llama"))
    composed, processor = compose_tiny("mlp")
    tokenizer.chat_template = processor.chat_template = REFUSING
    for asked, reader in ((model, tokenizer), (composed, processor)):
        with pytest.raises(DataError, match=r"data\.jsonl:7: .*no turns like that"):
            answer_records(asked, reader, [record])
        with pytest.raises(DataError, match=r"data\.jsonl:7: .*no turns like that"):
            score_options(asked, reader, [record], [("a", "b")])
        with pytest.raises(PromptError, match="no turns like that"):
            Prompts(reader).chat([{"role": "user", "content": "what?"}])
    with pytest.raises(DataError, match=r"data\.jsonl:7: .*no turns like that"):
        tokenise(record, tokenizer)


@reported("huggingface/transformers#46752")
def test_the_row_is_named_among_others(compose_tiny: Callable[..., Any]) -> None:
    model, processor = compose_tiny("mlp")
    processor.chat_template = (
        "{% for m in messages %}{% for part in m.content %}{% if part.text == 'bad' %}"
        "{{ raise_exception('no') }}{% endif %}{{ part.text }}{% endfor %}{% endfor %}"
    )
    records = [tiny.record(text, "x", row=row) for row, text in enumerate(("a", "bad", "c"), 1)]
    with pytest.raises(DataError, match=r"data\.jsonl:2: "):
        answer_records(model, processor, records)


@reported("MadSkittles/Router-Maestro#37")
def test_a_text_that_no_tokenizer_takes() -> None:
    """A lone surrogate comes out of JSON as a character, and out of the tokenizer as an exception."""
    with pytest.raises(DataError, match=r"data\.jsonl:3: "):
        tokenise(tiny.record("a \ud800 b", "c", row=3), opened(PLAIN))
