"""Parts are found by running the model, and running it in part equals running it whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from modalign.editing.engine.forward import Inputs, PartialForward, Row, read
from modalign.editing.engine.spec import ModelSpec, SpecError
from modalign.models.projections import hidden_of
from tiny import LAYERS, language_model

VOCABULARY = 60
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}

EXPECTED = {  # attention, FFN, parallel, additive
    "gpt2": ("attn.c_proj", "mlp.c_proj", False, True),
    "gptj": ("attn.out_proj", "mlp.fc_out", True, True),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h", True, True),
    "llama": ("self_attn.o_proj", "mlp.down_proj", False, True),
    "mistral": ("self_attn.o_proj", "mlp.down_proj", False, True),
    "qwen2": ("self_attn.o_proj", "mlp.down_proj", False, True),
    "qwen3": ("self_attn.o_proj", "mlp.down_proj", False, True),
    "gemma": ("self_attn.o_proj", "mlp.down_proj", False, True),
    "gemma2": ("self_attn.o_proj", "mlp.down_proj", False, False),
    "gemma3_text": ("self_attn.o_proj", "mlp.down_proj", False, False),
    "opt": ("self_attn.out_proj", "fc2", False, True),
    "phi": ("self_attn.dense", "mlp.fc2", True, True),
}


def model_of(family: str) -> Any:
    """A tiny random model of a family."""
    if family in ("qwen3", "gemma2", "gemma3_text", "phi"):
        config = transformers.AutoConfig.for_model(family, **SIZES)
    elif family == "opt":
        config = transformers.OPTConfig(
            vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=LAYERS,
            num_attention_heads=4, max_position_embeddings=128, word_embed_proj_dim=32,
        )  # fmt: skip
    else:
        return language_model(family, VOCABULARY)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return model


@pytest.mark.parametrize("family", EXPECTED)
def test_parts_are_found(family: str) -> None:
    model = model_of(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    spec = ModelSpec.detect(model)
    assert (spec.attention, spec.ffn, spec.parallel, spec.additive) == EXPECTED[family]
    assert spec.depth == LAYERS
    assert spec.width == 32
    assert spec.transposed(0) == (family == "gpt2")
    assert dict(model.named_parameters())[spec.weight_name(2)] is spec.projection(2, "ffn").weight
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_mixture_of_experts_is_refused() -> None:
    config = transformers.MixtralConfig(**SIZES, num_local_experts=2)
    torch.manual_seed(0)
    with pytest.raises(SpecError, match=r"no single FFN|no linear map"):
        ModelSpec.detect(transformers.MixtralForCausalLM(config).eval())


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(SpecError, match="output head"):
        ModelSpec.detect(model_of("llama").model)


ROWS = [
    Row((5, 9, 12, 7, 33, 8), 2),
    Row((11, 3, 4), 0),
    Row((21, 22, 23, 24, 25, 26, 27, 28, 29), 7),
    Row((5, 6, 7, 8), 3),
]


def whole(spec: ModelSpec, row: Row, layer: int, vectors: dict[Any, Tensor]) -> Tensor:
    """Logits from the lookup token on, one row, the whole model with hooks, (S, V)."""

    def adding(vector: Tensor) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = hidden_of(output).clone()
            hidden.view(1, len(row), -1)[0, row.lookup] += vector
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    handles = [
        spec.module(layer, site).register_forward_hook(adding(vector))
        for site, vector in vectors.items()
    ]
    logits = spec.language(input_ids=torch.tensor([row.ids]), use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits[0, row.lookup :]


@pytest.mark.parametrize("layer", [0, 1, LAYERS - 1])
@pytest.mark.parametrize("sites", [("block",), ("ffn",), ("attention", "ffn")])
@pytest.mark.parametrize("family", EXPECTED)
def test_a_part_of_the_model_gives_what_the_whole_gives(
    family: str, sites: tuple[Any, ...], layer: int
) -> None:
    model = model_of(family).double()
    spec = ModelSpec.detect(model)
    forward = PartialForward(spec, layer, sites)
    base = forward.prepare(Inputs.of(ROWS, spec))
    generator = torch.Generator().manual_seed(1)
    vectors = {
        site: torch.randn(len(ROWS), 32, generator=generator).double().requires_grad_()
        for site in sites
    }
    rows = torch.tensor([i for i, row in enumerate(ROWS) for _ in range(row.lookup, len(row))])
    places = torch.tensor([p for row in ROWS for p in range(len(row) - row.lookup)])
    got = forward.logits(base, vectors, (rows, places))
    want = torch.cat(
        [
            whole(spec, row, layer, {site: vector[i] for site, vector in vectors.items()})
            for i, row in enumerate(ROWS)
        ]
    )
    # Some architectures compute rotary angles, norms or softmax in float32 whatever the weights are.
    torch.testing.assert_close(got, want, atol=2e-4, rtol=2e-4)
    weights = torch.randn(want.shape, generator=generator).double()
    ours = torch.autograd.grad((got * weights).sum(), list(vectors.values()), retain_graph=True)
    theirs = torch.autograd.grad((want * weights).sum(), list(vectors.values()))
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).norm() <= 1e-4 * other.norm()
    assert all("forward" not in vars(module) for module in spec.layers)


def test_some_rows_of_a_base_are_the_base_of_some_rows() -> None:
    spec = ModelSpec.detect(model_of("llama").double())
    forward = PartialForward(spec, 1, ("attention", "ffn"))
    base = forward.prepare(Inputs.of(ROWS, spec))
    vectors = {s: torch.ones(2, 32).double() for s in ("attention", "ffn")}
    chosen = torch.tensor([0, 2])
    where = (torch.tensor([0, 1]), torch.tensor([2, 1]))
    few = forward.prepare(Inputs.of([ROWS[0], ROWS[2]], spec))
    torch.testing.assert_close(
        forward.logits(base.select(chosen), vectors, where), forward.logits(few, vectors, where)
    )


def test_a_prompt_longer_than_the_attention_window_is_refused() -> None:
    config = transformers.MistralConfig(**SIZES, sliding_window=6)
    spec = ModelSpec.detect(transformers.MistralForCausalLM(config).eval())
    with pytest.raises(
        SpecError, match="9 tokens is longer than the sliding attention window of 6"
    ):
        PartialForward(spec, 1, ("block",)).prepare(Inputs.of(ROWS, spec))


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_reading_stops_early_and_equals_hooks_on_the_whole(family: str) -> None:
    spec = ModelSpec.detect(model_of(family))
    wanted: list[Any] = [(1, "ffn", "input"), (1, "attention", "output"), (2, "block", "output")]
    modules = {key: (spec.module(key[0], key[1]), key[2]) for key in wanted}
    got = read(spec, ROWS, modules)
    for number, row in enumerate(ROWS):
        for key in wanted:
            torch.testing.assert_close(
                got[key][number], seen_whole(spec, row, key), atol=1e-4, rtol=1e-4
            )


def seen_whole(spec: ModelSpec, row: Row, key: Any) -> Tensor:
    """A part's input or output at the lookup token, the whole model with one hook, (d,)."""
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        value = hidden_of(output) if key[2] == "output" else args[0]
        seen.append(value.reshape(len(row), -1)[row.lookup])

    handle = spec.module(key[0], key[1]).register_forward_hook(hook)
    spec.language(input_ids=torch.tensor([row.ids]), use_cache=False)
    handle.remove()
    return seen[0]
