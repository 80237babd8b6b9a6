"""Kinds of layers and positions in serve: batched, or answered one by one with the reason; never wrongly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from modalign.serving.engine import LocalEngine
from modalign.serving.one_by_one import answer_alone
from modalign.serving.requests import Prompt, Sampling
from modalign.serving.rows import Row
from modalign.serving.runners import runner_of
from modalign.serving.sampling import Settled
from modalign.serving.selftest import why_not_batched
from modalign.serving.text import Spelling
from serving.collected import Heard, ask_all

NEW = 5
COMMON: Any = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
LINEAR: Any = {
    "head_dim": 8,
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
HYBRIDS: dict[str, Callable[[int], Any]] = {
    "conv": lambda size: transformers.Lfm2Config(
        vocab_size=size, **COMMON, layer_types=["conv", "full_attention"]
    ),
    "linear_attention": lambda size: transformers.Qwen3_5TextConfig(
        vocab_size=size, **COMMON, **LINEAR
    ),
    "chunked_attention": lambda size: transformers.Llama4TextConfig(
        vocab_size=size,
        **COMMON,
        head_dim=8,
        attention_chunk_size=8,
        num_local_experts=2,
        intermediate_size_mlp=48,
    ),
}


def drawn(model: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model.eval()


@pytest.mark.parametrize("kind", HYBRIDS)
def test_layers_that_are_not_batched_are_named(tokenizer: Any, kind: str) -> None:
    """Answers are the model's own, recomputed in full for every token."""
    config = HYBRIDS[kind](len(tokenizer))
    model = drawn(transformers.AutoModelForCausalLM.from_config(config))
    engine = LocalEngine(model, tokenizer)
    try:
        state = engine.state()
        assert (state.batching, state.reading) == ("one by one", "whole")
        assert f"layers of the kind {kind}" in state.note
        prompts = [engine.text_prompt([5 + place % 40 for place in range(n)]) for n in (3, 11)]
        heard = ask_all(engine, prompts, max_tokens=NEW, ignore_end=True)
    finally:
        engine.close()
    for prompt, said in zip(prompts, heard, strict=True):
        ids = torch.tensor([prompt.ids])
        with torch.inference_mode():
            for _ in range(NEW):
                logits = model(ids, use_cache=False).logits[:, -1:]
                ids = torch.cat([ids, logits.argmax(-1)], dim=1)
        made = ids[0, len(prompt.ids) :]
        assert said.text == tokenizer.decode(made, skip_special_tokens=True)


def _several_axes(vocabulary: int) -> tuple[Any, Prompt]:
    """A small Qwen2.5-VL, and a prompt with a picture of 4 x 4 places."""
    axes = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    image, start, end = vocabulary - 1, vocabulary - 3, vocabulary - 4
    config = transformers.Qwen2_5_VLConfig(
        text_config={"vocab_size": vocabulary, **COMMON, "rope_parameters": axes},
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 4,
            "patch_size": 4,
            "window_size": 16,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
        image_token_id=image,
        video_token_id=vocabulary - 2,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    model = drawn(transformers.Qwen2_5_VLForConditionalGeneration(config))
    ids = (5, 6, start, *[image] * 16, end, 7, 8)
    types = torch.tensor([[int(token == image) for token in ids]])
    signals = torch.randn(64, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(0))
    inputs = {"pixel_values": signals, "image_grid_thw": torch.tensor([[1, 8, 8]])}
    return model, Prompt(ids, inputs, (("image", "x"),), ((3, 16),), types)


def test_positions_of_several_axes_are_the_models_own(tokenizer: Any) -> None:
    model, prompt = _several_axes(len(tokenizer))
    runner = runner_of(model, ("image",))
    assert "several axes" in why_not_batched(runner, None)  # type: ignore[arg-type]
    heard = Heard()
    settled = Settled.of(model, tokenizer)
    sampling = Sampling(max_tokens=NEW, ignore_end=True)
    row = Row(prompt, sampling, heard, Spelling(tokenizer), settled, runner.device, NEW, alone=True)
    with torch.inference_mode():
        answer_alone(runner, row)
        ids, types = torch.tensor([prompt.ids]), prompt.types
        assert types is not None
        plain = model(ids, **prompt.inputs).logits
        for _ in range(NEW):
            logits = model(ids, mm_token_type_ids=types, use_cache=False, **prompt.inputs).logits
            if ids.shape == plain.shape[:2]:
                assert (logits - plain).abs().max() > 1e-3  # the axes do matter
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
            types = torch.cat([types, torch.zeros(1, 1, dtype=types.dtype)], dim=1)
    assert row.made == ids[0, len(prompt.ids) :].tolist()
