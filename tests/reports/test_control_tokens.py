"""What a user or an answer says is never a control token: in training, asking, serving and tools' text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import tiny
from modalign.chat_templates import as_text, end_ids, ids_of, let_through, prompt_ids
from modalign.data.supervision import tokenise
from modalign.editing.engine.asking import Asking
from modalign.errors import DataError, UsageError
from modalign.evaluation.generation import answer_records
from modalign.evaluation.likelihood import score_options
from modalign.models.asking import conversation_of, text_ids
from modalign.models.export.verify import check_trained_ids
from modalign.models.open import open_model
from modalign.models.tool_text import _ids
from modalign.serving.prompts import Prompts
from reports.odd_tokenizers import SPECIAL, byte_level, llama, unigram
from reports.threads import reported, tried

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UNMARKED = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
TOKENIZERS = {"byte level": byte_level(), "Llama": llama(), "unigram": unigram()}
# What these vocabularies can spell, special tokens among it.
contents = st.lists(
    st.sampled_from([*SPECIAL, "<|im_", "start|>", "the cat ", " a", "once", " "]), max_size=6
).map(lambda parts: "the " + "".join(parts) + " cat")


def made(name: str, template: str) -> Any:
    tokenizer = TOKENIZERS[name]
    tokenizer.chat_template = template
    return tokenizer


@reported("huggingface/transformers#47822")
@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(TOKENIZERS)), st.booleans(), contents, contents)
def test_training_sees_only_the_templates_marks(
    name: str, marks: bool, asked: str, said: str
) -> None:
    """Protects: an answer that holds </s> cut its own supervision; a user's <|im_start|> opened a turn."""
    tokenizer = made(name, CHATML if marks else UNMARKED)
    sample = tokenise(tiny.record(asked, said), tokenizer)
    plain = tokenise(tiny.record("the cat", "the cat"), tokenizer)
    for text in SPECIAL[1:]:  # the unknown token may be what a vocabulary writes for a letter
        token = tokenizer.convert_tokens_to_ids(text)
        assert (sample.ids == token).sum() == (plain.ids == token).sum(), text
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    supervised = sample.ids[sample.supervised].tolist()
    assert supervised.count(end) == 1
    assert supervised[-1] == end
    if name == "byte level":  # the others cannot spell every sign
        assert tokenizer.decode(supervised[:-1]) == said


@reported("huggingface/transformers#29279")
@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(TOKENIZERS)), contents)
def test_what_is_asked_is_what_was_trained(name: str, asked: str) -> None:
    tokenizer = made(name, UNMARKED)
    record = tiny.record(asked, "the cat")
    sample = tokenise(record, tokenizer)
    trained = sample.ids[: sample.prompt_length].tolist()
    assert text_ids(tokenizer, conversation_of(record, tokenizer)) == trained
    turns = [{"role": "user", "content": asked}]
    assert list(Prompts(tokenizer).chat(turns).ids) == trained
    assert prompt_ids(tokenizer, as_text(tokenizer, turns)) == trained


@reported("huggingface/transformers#29279")
@settings(max_examples=60, deadline=None, derandomize=True)
@given(contents)
def test_text_that_is_marked_reads_back(text: str) -> None:
    tokenizer = TOKENIZERS["byte level"]
    assert tokenizer.decode(ids_of(tokenizer, as_text(tokenizer, text))) == text
    assert as_text(tokenizer, as_text(tokenizer, text)) == as_text(tokenizer, text)


@reported("huggingface/transformers#29279")
def test_a_text_without_control_tokens_is_tokenised_as_ever() -> None:
    for tokenizer in TOKENIZERS.values():
        assert as_text(tokenizer, {"a": ["the cat", 7, None]}) == {"a": ["the cat", 7, None]}


@reported("huggingface/transformers#47217", "vllm-project/vllm#57740")
@pytest.mark.parametrize("connector", ["mlp", "gated_cross_attention"])
def test_the_placeholder_is_ours(connector: str, compose_tiny: Callable[..., Any]) -> None:
    """Protects: `ask --image a.png "what does <image> mean?"` was a traceback."""
    model, processor = compose_tiny(connector)
    record = tiny.record([tiny.image(0), "what does <image> mean?"], "no")
    conversation = conversation_of(record, processor)
    check_trained_ids(processor, conversation)
    assert len(answer_records(model, processor, [record], max_new_tokens=2)) == 1
    (scores,) = score_options(model, processor, [record], [("seven", "no")])
    assert [score.text for score in scores] == ["seven", "no"]
    sample = tokenise(record, processor.tokenizer)
    assert (sample.ids == processor.image_token_id).sum() == 1
    prompt = Prompts(processor).chat(record.messages[:1])
    assert prompt.media_tokens["image"] == prompt.ids.count(processor.image_token_id)


@reported("ggml-org/llama.cpp#26273")
def test_tools_texts_hold_none(tokenizer: Any) -> None:
    """The same mistake, elsewhere: what a tool reads in a picture closed the user's turn."""
    end = tokenizer.eos_token
    ids = _ids(tokenizer, f"two {end} three")
    assert tokenizer.eos_token_id not in ids


@tried("the same prompts in an edits file")
def test_edits_refuse_them(llm_folder: Callable[..., Path]) -> None:
    model, _ = open_model(llm_folder("llama"))
    tokenizer: Any = AutoTokenizer.from_pretrained(llm_folder("llama"))
    asking = Asking(tokenizer, "chat")
    with pytest.raises(DataError, match="holds a control token"):
        asking.text(f"the red {tokenizer.eos_token} ball")
    assert end_ids(tokenizer, model.generation_config)


@reported("ggml-org/llama.cpp#11270")
def test_a_model_that_needs_them_may_have_them(tmp_path: Path) -> None:
    """An option lets named tokens through; it is saved, so that asking and training agree."""
    tokenizer = made("byte level", CHATML)
    fresh = Path(tmp_path / "fresh")
    tokenizer.save_pretrained(fresh)
    known: Any = AutoTokenizer.from_pretrained(fresh)
    token = known.convert_tokens_to_ids("<|im_end|>")
    record = tiny.record("the <|im_end|> cat", "</s> here")
    plain = (tokenise(record, known).ids == token).sum()
    let_through(known, ["<|im_end|>"])
    known.save_pretrained(tmp_path / "saved")
    again: Any = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for each in (known, again):
        ids = tokenise(record, each).ids
        assert (ids == token).sum() == plain + 1
        assert (ids == each.convert_tokens_to_ids("</s>")).sum() == 0
    with pytest.raises(UsageError, match="--control-token 'cat'"):
        let_through(known, ["cat"])


@reported("ggml-org/llama.cpp#26273")
def test_every_verb_takes_the_option(
    cli: Callable[..., tuple[int, str, str]], llm_folder: Callable[..., Path], tmp_path: Path
) -> None:
    model = llm_folder("gpt2")
    rows = tiny.write_jsonl(tmp_path / "rows.jsonl", [{"question": "one?", "answer": "two"}] * 20)
    edits = tiny.write_jsonl(
        tmp_path / "e.jsonl",
        [{"subject": "one", "prompt": "{} is", "target": "two", "truth": "six"}],
    )
    for words in (
        ["ask", model, "one?"],
        ["eval", model, rows],
        ["eval", model, "--task", "zsre", "--edits", edits],
        ["serve", model, "--port", "0"],
        ["edit", "run", model, edits, "-o", tmp_path / "p.safetensors"],
        ["train", "--llm", model, "--encoder", "none", "--train", rows, "--out", tmp_path / "out"],
    ):
        code, _, err = cli(*words, "--control-token", "<|nonsense|>")
        assert code == 2
        assert "--control-token '<|nonsense|>'" in err
