"""Labels from chat templates: marks against prefix differences, tokenizers, errors, expansion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import tiny
from modalign.data.supervision import IGNORE, Sample, tokenise, tokenise_all
from modalign.errors import DataError
from modalign.models.asking import answer_ids, conversation_of, text_ids
from modalign.models.compose import DEFAULT_CHAT_TEMPLATE, prepare_tokenizer

CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}
{%- else -%}
{{- message['content'] + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""
LLAMA2 = """\
{%- if messages and messages[0]['role'] == 'system' -%}
{%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' -%}
{%- set messages = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- endif -%}
{%- for message in messages -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant') }}
{%- endif -%}
{%- if message['role'] == 'user' -%}
{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'] | trim }}
{{- ' [/INST]' }}
{%- else -%}
{{ ' ' + message['content'] | trim + ' ' + eos_token }}
{%- endif -%}
{%- endfor -%}"""
SPACED = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}{{ 'A: ' + message['content'] + eos_token }}
{%- else -%}{{ 'Q: ' + message['content'] + '\\n' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'A: ' }}{%- endif -%}"""
FORGETFUL = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' and not loop.last -%}{{ 'A:[cut]' }}
{%- else -%}{{ message['role'] + ':' + message['content'] + eos_token }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'assistant:' }}{%- endif -%}"""

WORDS = ["what is this? yes no seven, a cat and two dogs. be brief!\n", "Q: A: [INST] user system"]


def without_marks(template: str) -> str:
    return template.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def _byte_level() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(WORDS * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def _metaspace() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        unk_token="<unk>",
        show_progress=False,
    )
    core.train_from_iterator(WORDS * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(params=["byte_level", "metaspace"])
def plain(request: pytest.FixtureRequest) -> Any:
    made = _byte_level() if request.param == "byte_level" else _metaspace()
    prepare_tokenizer(made)
    return made


def supervised_text(sample: Sample, tokenizer: Any) -> str:
    return tokenizer.decode(sample.ids[sample.supervised], skip_special_tokens=False)


CONVERSATIONS = {
    "one turn": tiny.record(["what is this?"], "a cat"),
    "two turns": tiny.record("what is this?", "a cat", "and two?", "yes, seven."),
    "system": tiny.record("is this a cat?", "no", system="be brief!"),
    "image": tiny.record([tiny.image(0), "what is this?"], "two dogs"),
    "two images": tiny.record([tiny.image(0), "and", tiny.image(1), "?"], "two", "yes?", "no"),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("template", ["chatml", "default", "starter"])
def test_marks_and_prefix_difference_agree(
    name: str, template: str, plain: Any, tokenizer: Any
) -> None:
    record = CONVERSATIONS[name]
    chosen = tokenizer if template == "starter" else plain
    if template != "starter":
        chosen.chat_template = {"chatml": CHATML, "default": DEFAULT_CHAT_TEMPLATE}[template]
    if template == "chatml":
        chosen.eos_token = "<|im_end|>"
    marked = tokenise(record, chosen)
    chosen.chat_template = without_marks(chosen.chat_template)
    prefix = tokenise(record, chosen)
    assert marked.ids.tolist() == prefix.ids.tolist()
    assert marked.supervised.tolist() == prefix.supervised.tolist()
    assert marked.supervised.any()
    assert not marked.supervised.all()


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_supervised_tokens_are_the_answers_and_their_end(name: str, tokenizer: Any) -> None:
    record = CONVERSATIONS[name]
    answers = [m.text for m in record.messages if m.role == "assistant"]
    assert supervised_text(tokenise(record, tokenizer), tokenizer) == "".join(
        f"{answer}<|end|>" for answer in answers
    )


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_chatml_without_marks_stops_at_the_end_of_the_turn(name: str, plain: Any) -> None:
    """Nothing after the end mark is generated, so nothing after it is supervised."""
    plain.chat_template, plain.eos_token = without_marks(CHATML), "<|im_end|>"
    sample = tokenise(CONVERSATIONS[name], plain)
    end = plain.convert_tokens_to_ids("<|im_end|>")
    ends = np.flatnonzero(sample.supervised & ~np.append(sample.supervised[1:], False))
    assert (sample.ids[ends] == end).all()
    answers = [m.text for m in CONVERSATIONS[name].messages if m.role == "assistant"]
    assert len(ends) == len(answers)
    said = supervised_text(sample, plain).replace(" ", "")
    assert said == "".join(f"{a}<|im_end|>" for a in answers).replace(" ", "")


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_llama_two_style(name: str, plain: Any) -> None:
    plain.chat_template = LLAMA2
    record = CONVERSATIONS[name]
    sample = tokenise(record, plain)
    answers = [m.text for m in record.messages if m.role == "assistant"]
    said = supervised_text(sample, plain).replace(" ", "")
    assert said == "".join(f"{a}</s>" for a in answers).replace(" ", "")
    # Exactly one beginning mark per user turn: the tokenizer adds none of its own.
    users = sum(m.role == "user" for m in record.messages)
    assert int((sample.ids == plain.bos_token_id).sum()) == users


def test_generation_prompt_that_ends_in_a_space(plain: Any) -> None:
    """The first answer token may take the prompt's last space along."""
    plain.chat_template = SPACED
    sample = tokenise(tiny.record("a cat?", "yes"), plain)
    assert supervised_text(sample, plain).strip() == "yes</s>"


def test_default_template_prompts_as_it_trains(plain: Any) -> None:
    """What a generation is given is, token for token, what stood before the answer in training."""
    record = tiny.record([tiny.image(0), "what is this?"], "a cat")
    sample = tokenise(record, plain)
    prompt = plain.apply_chat_template(
        [{"role": "user", "content": "<image>what is this?"}],
        add_generation_prompt=True,
        return_dict=True,
    )["input_ids"]
    assert sample.ids[: sample.prompt_length].tolist() == prompt


def test_a_template_that_rewrites_earlier_turns_is_refused_with_its_row(plain: Any) -> None:
    plain.chat_template = FORGETFUL
    with pytest.raises(DataError, match=r"data\.jsonl:7: .*generation"):
        tokenise(tiny.record("a", "b", "c", "d", row=7), plain)


def test_a_template_that_drops_or_repeats_a_medium_is_an_error_with_its_row(tokenizer: Any) -> None:
    asked = tiny.record([tiny.image(0), "what?"], "yes", row=3)
    for marks, found in (("", 0), ("<image><image>", 2)):
        content = f"m.content.replace('<image>', '{marks}')"
        tokenizer.chat_template = f"{{% for m in messages %}}{{{{ {content} }}}}{{% endfor %}}"
        with pytest.raises(
            DataError, match=rf"data\.jsonl:3: {found} <image> placeholders .* 1 media"
        ):
            tokenise(asked, tokenizer)


def test_what_the_template_refuses_is_an_error_with_its_row(plain: Any) -> None:
    plain.chat_template = LLAMA2
    broken = tiny.record("a", "b", "c", row=9)
    broken = tiny.record("a", "b", row=9)
    turned = type(broken)(broken.id, broken.messages[::-1], broken.source)
    with pytest.raises(DataError, match=r"data\.jsonl:9: .*roles must alternate"):
        tokenise(turned, plain)


def test_all_records_without_supervised_tokens_are_listed(tokenizer: Any) -> None:
    good = tiny.record("what?", "yes")
    silent = [tiny.record("what?", row=row) for row in range(2, 27)]
    with pytest.raises(DataError) as error:
        tokenise_all([good, *silent], tokenizer)
    text = str(error.value)
    assert text.startswith("25 records")
    assert "data.jsonl:2:" in text
    assert "data.jsonl:21:" in text
    assert "and 5 more" in text
    assert len(tokenise_all([good, good], tokenizer)) == 2


def test_other_spellings_of_the_generation_mark(tokenizer: Any) -> None:
    record = CONVERSATIONS["two turns"]
    expected = tokenise(record, tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{% generation %}", "{%generation%}"
    ).replace("{% endgeneration %}", "{%endgeneration%}")
    found = tokenise(record, tokenizer)
    assert found.supervised.tolist() == expected.supervised.tolist()


PLACEHOLDER = 9


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    ids = draw(st.lists(st.integers(7, 11), min_size=1, max_size=12))
    flags = [draw(st.booleans()) and token != PLACEHOLDER for token in ids]
    return Sample(tiny.record("a", "b"), np.asarray(ids), np.asarray(flags))


@given(samples(), st.data())
@settings(deadline=None, max_examples=100)
def test_expansion_against_a_loop(sample: Sample, data: st.DataObject) -> None:
    count = int((sample.ids == PLACEHOLDER).sum())
    stand_in = st.lists(st.integers(20, 30), max_size=5)
    stand_ins = data.draw(st.lists(stand_in, min_size=count, max_size=count))
    left = list(stand_ins)
    ids: list[int] = []
    labels: list[int] = []
    for token, flag in zip(sample.ids, sample.supervised, strict=True):
        medium = token == PLACEHOLDER
        own = left.pop(0) if medium else [int(token)]
        ids += own
        labels += [int(token) if flag and not medium else IGNORE] * len(own)
    given_ids = [np.asarray(one, dtype=np.int64) for one in stand_ins]
    found_ids, found_labels = sample.expanded([PLACEHOLDER], given_ids)
    assert found_ids.tolist() == ids
    assert found_labels.tolist() == labels


@given(samples())
@settings(deadline=None, max_examples=100)
def test_prompt_length_against_a_loop(sample: Sample) -> None:
    flags = sample.supervised.tolist()
    if not any(flags):
        return
    place = len(flags)
    while not flags[place - 1]:  # past what follows the last answer
        place -= 1
    while place > 0 and flags[place - 1]:
        place -= 1
    assert sample.prompt_length == place


def test_without_a_template_a_model_is_trained_as_it_is_asked(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    record = tiny.record("what is this?", "a cat", "and two dogs?", "yes be brief", system="Q:")
    sample = tokenise(record, tokenizer)
    asked = conversation_of(record, tokenizer)
    prompt, answer = text_ids(tokenizer, asked), answer_ids(tokenizer, asked, "yes be brief")[0]
    assert sample.ids.tolist() == [*prompt, *answer]
    assert sample.supervised.tolist() == [False] * len(prompt) + [True] * len(answer)
    with pytest.raises(DataError, match="no token is supervised"):
        tokenise(tiny.record("what is this?"), tokenizer)
