"""Templates that ask otherwise than they answer are refused with the reason; templates by name work everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from modalign.chat_templates import end_ids, has_marks, one_template, rendered
from modalign.data.supervision import tokenise
from modalign.endpoints import LocalChat
from modalign.errors import DataError
from modalign.evaluation.generation import answer_records
from modalign.models.compose import load_language_model
from modalign.models.open import open_model
from modalign.models.templates import multimodal_template
from modalign.serving.prompts import Prompts
from modalign.serving.sampling import Settled
from reports.odd_tokenizers import byte_level
from reports.threads import reported

TURNS = (
    "{% for m in messages %}[{{ m.role }}]ANSWER{% endfor %}"
    "{% if add_generation_prompt %}[assistant]PROMPT{% endif %}"
)
PLAIN = "{{ m.content }}</s>"
MARKED = (
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>{% endgeneration %}"
    "{% else %}{{ m.content }}</s>{% endif %}"
)
WITH_TOOLS = "{% for t in tools or [] %}{{ t.function.name }};{% endfor %}" + TURNS.replace(
    "ANSWER", PLAIN
).replace("PROMPT", "")
DEFAULT = TURNS.replace("ANSWER", PLAIN).replace("PROMPT", "")
TALK = [{"role": "user", "content": "a"}]
TOOL = {"type": "function", "function": {"name": "count", "parameters": {}}}


def tokenizer_with(template: Any) -> Any:
    made = byte_level()
    made.chat_template = template
    return made


@reported("hiyouga/LlamaFactory#6987")
@pytest.mark.parametrize("answer", [PLAIN, MARKED])
@pytest.mark.parametrize(
    "record", [tiny.record("a", "b", row=5), tiny.record("a", "b", "c", "d", row=5)]
)
def test_a_prompt_that_opens_thoughts_is_not_what_is_trained(answer: str, record: Any) -> None:
    """Protects: trained on `[assistant]b`, asked with `[assistant]<think>`; the reason given was another."""
    template = TURNS.replace("ANSWER", answer)
    tokenizer = tokenizer_with(template.replace("PROMPT", "<think>\n"))
    with pytest.raises(DataError, match=r"data\.jsonl:5: the chat template prompts with .*<think>"):
        tokenise(record, tokenizer)
    tokenizer.chat_template = template.replace("PROMPT", "")
    assert tokenise(record, tokenizer).supervised.any()


@reported("NVIDIA-NeMo/Automodel#1696")
@pytest.mark.parametrize(
    "templates", [{"default": DEFAULT, "tool_use": WITH_TOOLS}, {"default": DEFAULT}]
)
def test_one_template_renders_as_those_by_name(templates: dict[str, str]) -> None:
    by_name, one = tokenizer_with(templates), tokenizer_with(one_template(templates))
    for tools in (None, [TOOL]):
        assert rendered(one, TALK, tools=tools) == rendered(by_name, TALK, tools=tools)
    assert end_ids(one) == end_ids(by_name)
    assert not has_marks(one)


@reported("NVIDIA-NeMo/Automodel#1696")
def test_names_without_a_default_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"named chat templates .rag, tool_use. but none called default"
    ):
        one_template({"tool_use": WITH_TOOLS, "rag": DEFAULT})


@reported("NVIDIA-NeMo/Automodel#1696")
def test_a_model_with_templates_by_name(llm_folder: Any, tmp_path: Path) -> None:
    """Protects: training failed with AttributeError, serve said that the model has no tools."""
    model = AutoModelForCausalLM.from_pretrained(llm_folder("llama"))
    tokenizer = AutoTokenizer.from_pretrained(llm_folder("llama"))
    tokenizer.chat_template = {
        "default": DEFAULT.replace("</s>", tokenizer.eos_token),
        "tool_use": WITH_TOOLS.replace("</s>", tokenizer.eos_token),
    }
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_language_model(str(tmp_path))
    assert isinstance(multimodal_template(loaded.tokenizer.chat_template), str)
    assert tokenise(tiny.record([tiny.image(0), "a"], "b"), loaded.tokenizer).supervised.any()
    _, reader = open_model(tmp_path)
    assert Prompts(reader).takes_tools
    assert LocalChat(loaded.model, loaded.tokenizer).knows_tools


@reported("Blaizzy/mlx-vlm#2112", "huggingface/lighteval#1279", "huggingface/transformers#38330")
def test_ask_and_serve_end_where_the_turn_ends(
    llm_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects: only the generation configuration's end was read, and a chat model ran on behind its turn."""
    model, tokenizer = open_model(llm_folder("llama"))
    mark = next(
        each.content
        for token, each in tokenizer.added_tokens_decoder.items()
        if each.special and token != tokenizer.eos_token_id
    )
    tokenizer.chat_template = DEFAULT.replace("</s>", mark)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    wanted = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(mark)}
    asked: list[dict[str, Any]] = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **how: asked.append(how) or generate(**how))
    answer_records(model, tokenizer, [tiny.record("a red ball", "x")], max_new_tokens=2)
    LocalChat(model, tokenizer, max_tokens=2).complete(TALK)
    assert [set(how["eos_token_id"]) for how in asked] == [wanted, wanted]
    assert Settled.of(model, tokenizer).ends == wanted
