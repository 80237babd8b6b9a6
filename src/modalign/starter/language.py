"""The starter's language model: a Llama of about 0.4 M parameters that knows number facts from text.

It is pretrained only on generated text: number facts, and conversations about scenes described in
words ("top left seven, bottom right three"). It has never seen an image. Every skill, including the held-out
one, occurs in its text: a connector that reaches these facts shows it in the transfer column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from modalign.starter.scenes import (
    TRAINED_SKILLS,
    TRANSFER_SKILL,
    WORDS,
    ask_several,
    draw_for_skill,
    draw_scene,
)

SEED = 7
STEPS = 1600
BATCH = 48
LENGTH = 128
LEARNING_RATE = 4e-3

PAD, END, USER, ASSISTANT, SYSTEM = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
<|assistant|>{% generation %}{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|end|>{% endgeneration %}
{%- else -%}
{{ '<|' + message['role'] + '|>' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{{ part['text'] }}{%- else -%}{{ '<' + part['type'] + '>' }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""


def _facts(rng: Generator) -> str:
    a, b = (int(value) for value in rng.integers(0, 10, size=2))
    return str(
        rng.choice(
            [
                f"{WORDS[a]} plus {WORDS[b]} is {WORDS[a + b]}.",
                f"after {WORDS[a]} comes {WORDS[a + 1]}.",
                f"{WORDS[a]} is {'odd' if a % 2 else 'even'}.",
                f"{WORDS[max(a, b)]} is {'larger than' if a != b else 'equal to'} {WORDS[min(a, b)]}.",
            ]
        )
    )


def conversation(*turns: tuple[str, str]) -> str:
    """Render questions and answers in the chat template's format."""
    return "".join(f"{USER}{asked}{ASSISTANT}{answer}{END}" for asked, answer in turns)


def _scene_talk(rng: Generator) -> str:
    """Write a described scene with one to four questions; later turns do not repeat the description."""
    skills = (*TRAINED_SKILLS, TRANSFER_SKILL)
    scene, question = draw_for_skill(rng, "train", str(rng.choice(skills)))
    count = int(rng.choice(4, p=[0.55, 0.15, 0.15, 0.15])) + 1
    asked = ask_several(scene, skills, count, rng, first=question)
    turns = [(item.text, item.answer) for item in asked]
    turns[0] = (f"{scene.describe()} {turns[0][0]}", turns[0][1])
    return conversation(*turns)


def _description(rng: Generator) -> str:
    described = draw_scene(rng, "train").describe()
    return conversation((f"{described} describe the scene.", described))


def fact_question(rng: Generator) -> tuple[str, str]:
    """Return a number fact asked without any scene (the text-only rows of the training data)."""
    a, b = (int(value) for value in rng.integers(0, 10, size=2))
    pairs = [
        (f"what is {WORDS[a]} plus {WORDS[b]}?", WORDS[a + b]),
        (f"is {WORDS[a]} even or odd?", "odd" if a % 2 else "even"),
        (f"is {WORDS[a]} larger than {WORDS[b]}?", "yes" if a > b else "no"),
    ]
    return pairs[int(rng.integers(len(pairs)))]


def _fact_talk(rng: Generator) -> str:
    return conversation(*(fact_question(rng) for _ in range(int(rng.integers(1, 4)))))


def corpus(seed: int) -> Iterator[str]:
    """Yield an endless stream of documents, each ending with the end token."""
    rng = np.random.default_rng(seed)
    makers: list[Callable[[Generator], str]] = [_scene_talk, _description, _fact_talk]
    while True:
        draw = rng.random()
        if draw < 0.12:
            yield " ".join(_facts(rng) for _ in range(3)) + END
        else:
            yield makers[0 if draw < 0.80 else 1 if draw < 0.88 else 2](rng)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the corpus: every string is representable, known words are one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=448,
        special_tokens=[PAD, END, USER, ASSISTANT, SYSTEM],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(corpus(SEED), 5000), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[USER, ASSISTANT, SYSTEM],
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_config(vocab_size: int) -> LlamaConfig:
    """Return the architecture: 4 layers of width 96."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        rms_norm_eps=1e-5,
    )


def _chunks(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[torch.Tensor]:
    """Join documents and cut them to (BATCH, LENGTH + 1) token ids."""
    documents, buffer = corpus(seed), list[int]()
    while True:
        while len(buffer) < BATCH * (LENGTH + 1):
            batch = list(islice(documents, 512))
            for ids in tokenizer(batch, add_special_tokens=False)["input_ids"]:
                buffer.extend(ids)
        yield torch.tensor(buffer[: BATCH * (LENGTH + 1)]).view(BATCH, LENGTH + 1)
        buffer = buffer[BATCH * (LENGTH + 1) :]


def pretrain(
    out: Path, steps: int = STEPS, progress: Callable[[int, int, float], None] | None = None
) -> None:
    """Train from seed and save a Hugging Face folder."""
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer()
    model = LlamaForCausalLM(build_config(len(tokenizer))).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.08
    )
    for step, chunk in enumerate(islice(_chunks(tokenizer, SEED + 1), steps)):
        loss = model(input_ids=chunk[:, :-1], labels=None).logits
        loss = torch.nn.functional.cross_entropy(loss.flatten(0, 1), chunk[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress:
            progress(step + 1, steps, float(loss.detach()))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
