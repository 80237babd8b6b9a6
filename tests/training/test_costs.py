"""FLOPs by formula against FLOPs counted while the model runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tiny
from modalign.training.costs import CostModel
from modalign.training.settings import TrainSettings
from modalign.training.trainable import add_lora, freeze

B, T, KEPT = 3, 40, 5


def ratios(model: Any, processor: Any, llm: Any, encoder: Any) -> tuple[float, float]:
    settings = TrainSettings(llm=llm, encoder=encoder, lora_rank=4)
    if llm == "lora":
        add_lora(model, settings)
    freeze(model, llm, encoder, settings.learning_rates)
    ids = torch.randint(5, 400, (B, T))
    ids[:, 1 : 1 + processor.num_image_tokens] = processor.image_token_id
    keep = torch.zeros(B, T, dtype=torch.bool)
    keep[:, -KEPT:] = True
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones(B, T)}
    inputs |= {"use_cache": False, "logits_to_keep": keep}
    if encoder == "full":
        inputs["pixel_values"] = torch.randn(B, 3, tiny.SIDE, tiny.SIDE)
    else:
        inputs["features"] = {"image": tiny.features(model, B)}
    forward, training = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH):
        with forward, torch.no_grad():
            model(**inputs)
        with training:
            model(**inputs).logits.float().square().mean().backward()
    costs = CostModel.of(model)
    return (
        costs.forward(B, T, KEPT * B, B, encoder == "full") / forward.get_total_flops(),
        costs.training(B, T, KEPT * B, B, llm, encoder) / training.get_total_flops(),
    )


@pytest.mark.parametrize("llm", ["frozen", "lora", "full"])
@pytest.mark.parametrize("name", ["mlp", "resampler", "gated_cross_attention"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_formula_against_count(
    family: str, name: str, llm: str, compose_tiny: Callable[..., Any]
) -> None:
    assert ratios(*compose_tiny(name, llm=family), llm, "frozen") == pytest.approx((1, 1), abs=0.05)


@pytest.mark.parametrize("llm", ["frozen", "full"])
def test_with_the_encoder_training(llm: str, compose_tiny: Callable[..., Any]) -> None:
    assert ratios(*compose_tiny("mlp"), llm, "full") == pytest.approx((1, 1), abs=0.05)


@pytest.mark.parametrize("llm", ["frozen", "lora", "full"])
def test_prompts_in_the_upper_layers(llm: str, compose_tiny: Callable[..., Any]) -> None:
    """Within 10 %: of the lowest adapted layer (here one of two) only a part is gone back through."""
    assert ratios(*compose_tiny("llama_adapter"), llm, "frozen") == pytest.approx((1, 1), abs=0.1)


def test_blocks_before_the_last_layer_only(compose_tiny: Callable[..., Any]) -> None:
    made = compose_tiny("gated_cross_attention", every=4)
    assert ratios(*made, "frozen", "frozen") == pytest.approx((1, 1), abs=0.05)
