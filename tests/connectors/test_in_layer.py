"""The in-layer perceivers on tiny language models of several families."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from formulas import adapter_prompts, gated_blocks
from properties import (
    CHECKS,
    CLIP_L_TO_7B,
    SIGLIP_B_TO_135M,
    SIGLIP_B_TO_HALF_B,
    TABLE_PAIRS,
    TINY,
    TINY_OBLONG,
    Check,
    check_parameter_count,
    random_features,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from modalign.connectors.base import ConnectorError, InLayerConnector, Widths
from modalign.connectors.perceivers.gated_cross_attention import GatedCrossAttention
from modalign.connectors.perceivers.idefics_cross_attention import IdeficsCrossAttention
from modalign.connectors.perceivers.llama_adapter import LlamaAdapter
from modalign.models.caches import CACHE

IN_LAYER: tuple[type[InLayerConnector], ...] = (
    GatedCrossAttention,
    IdeficsCrossAttention,
    LlamaAdapter,
)
VOCAB, T = 50, 9
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,  # grouped
}
GPT_SIZES = {"vocab_size": VOCAB, "n_embd": 96, "n_layer": 4, "n_head": 4}


def language_model(kind: str) -> PreTrainedModel:
    torch.manual_seed(3)
    model: PreTrainedModel
    match kind:
        case "llama":
            model = LlamaForCausalLM(LlamaConfig(**SIZES))
        case "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**SIZES))
        case "qwen3":  # heads of another size than D / H, norms of queries and keys
            model = Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32))
        case "gpt2":
            model = GPT2LMHeadModel(GPT2Config(**GPT_SIZES))
        case "gptj":
            model = GPTJForCausalLM(GPTJConfig(**GPT_SIZES, rotary_dim=8))
        case _:
            raise AssertionError(kind)
    return model.eval()


KINDS = ("llama", "qwen2", "qwen3", "gpt2", "gptj")


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 4)


def build(cls: type[InLayerConnector], widths: Widths = TINY) -> InLayerConnector:
    torch.manual_seed(5)
    return cls(widths, **cls.options_for("matched", widths)).eval()


def open_gates(connector: InLayerConnector) -> None:
    for name, parameter in connector.named_parameters():
        if name.endswith(("gate", "gates")):
            nn.init.constant_(parameter, 0.7)


def read_two(connector: InLayerConnector, seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Token ids of two rows, and their media: row 0 has items at 2 and 5, row 1 has one at 4."""
    ids = torch.randint(VOCAB, (2, T), generator=torch.Generator().manual_seed(0))
    features = random_features(TINY, 3, seed).to(next(connector.parameters()).dtype)
    memory, mask = connector.encode(features, torch.ones(3, 36, dtype=torch.bool), (6, 6))
    M = memory.shape[1]
    rows = memory.new_zeros(2, 2 * M, memory.shape[2])
    rows[0, :M], rows[0, M:], rows[1, :M] = memory[0], memory[1], memory[2]
    rows_mask = torch.zeros(2, 2 * M, dtype=torch.bool)
    rows_mask[0, :M], rows_mask[0, M:], rows_mask[1, :M] = mask[0], mask[1], mask[2]
    visible = torch.zeros(2, T, 2 * M, dtype=torch.bool)
    visible[0, 2:5, :M] = visible[0, 5:, M:] = visible[1, 4:, :M] = True
    return ids, rows, rows_mask, visible


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Iterator[PreTrainedModel]:
    return language_model(request.param)  # type: ignore[return-value]


both = pytest.mark.parametrize("cls", IN_LAYER, ids=lambda c: c.name)


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@both
@pytest.mark.parametrize("widths", [TINY, TINY_OBLONG], ids=["square", "oblong"])
def test_encode_has_the_property(check: Check, cls: type[InLayerConnector], widths: Widths) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        check(cls, widths, cls.options_for("matched", widths))


@pytest.mark.parametrize("widths", TABLE_PAIRS)
@pytest.mark.parametrize("variant", ["published", "matched"])
@both
def test_formula_counts_the_module(
    cls: type[InLayerConnector], variant: str, widths: Widths
) -> None:
    check_parameter_count(cls, widths, cls.options_for(variant, widths))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("widths", "every_fourth", "every_layer"),
    [
        (CLIP_L_TO_7B, 1120, 4460),
        (SIGLIP_B_TO_HALF_B, 48.8, 195),
        (SIGLIP_B_TO_135M, 28.2, 121),
    ],
)
def test_gated_table(widths: Widths, every_fourth: float, every_layer: float) -> None:
    # The rows count the blocks without their resampler, to three digits.
    for every, figure in ((4, every_fourth), (1, every_layer)):
        options = GatedCrossAttention.options_for("published", widths) | {"every": every}
        count = gated_blocks(widths, options) / 1e6
        assert float(f"{count:.3g}") == figure


@pytest.mark.parametrize(
    ("widths", "figure"),
    [(CLIP_L_TO_7B, 1.23), (SIGLIP_B_TO_HALF_B, 0.20), (SIGLIP_B_TO_135M, 0.16)],
)
def test_llama_adapter_table(widths: Widths, figure: float) -> None:
    options = LlamaAdapter.options_for("published", widths)
    assert round(adapter_prompts(widths, options) / 1e6, 2) == figure


@both
@torch.no_grad()
def test_zero_gates_change_nothing(cls: type[InLayerConnector], model: PreTrainedModel) -> None:
    connector = build(cls)
    ids, *media = read_two(connector)
    before = model(ids).logits
    connector.attach(layers_of(model))
    assert torch.equal(model(ids).logits, before)
    with connector.reading(*media):
        assert torch.equal(model(ids).logits, before)


@both
@torch.no_grad()
def test_open_gates_read_the_last_item_before(
    cls: type[InLayerConnector], model: PreTrainedModel
) -> None:
    connector = build(cls)
    open_gates(connector)
    ids, memory, mask, visible = read_two(connector)
    connector.attach(layers_of(model))
    without = model(ids).logits
    with connector.reading(memory, mask, visible):
        read = model(ids).logits
    # Before the first item: exactly what a text alone gives.
    assert torch.equal(read[0, :2], without[0, :2])
    assert torch.equal(read[1, :4], without[1, :4])
    assert not torch.allclose(read[0, 2:], without[0, 2:], atol=1e-4)
    # Another second item changes row 0 from there on, and nothing else.
    M = memory.shape[1] // 2
    other = memory.clone()
    other[0, M:] += torch.randn_like(other[0, M:])
    with connector.reading(other, mask, visible):
        changed = model(ids).logits
    assert torch.equal(changed[0, :5], read[0, :5])
    assert torch.equal(changed[1], read[1])
    assert not torch.allclose(changed[0, 5:], read[0, 5:], atol=1e-4)
    # What the mask excludes does not matter.
    other = memory.clone()
    other[1, M:] = 1e3
    with connector.reading(other, mask, torch.ones_like(visible)):
        loud = model(ids).logits
    with connector.reading(memory, mask, torch.ones_like(visible)):
        assert torch.equal(model(ids).logits[1], loud[1])


@both
@torch.no_grad()
def test_rows_without_media_are_texts_alone(
    cls: type[InLayerConnector], model: PreTrainedModel
) -> None:
    connector = build(cls)
    open_gates(connector)
    ids, memory, mask, visible = read_two(connector)
    visible[1] = False
    bare = model(ids).logits
    connector.attach(layers_of(model))
    alone = model(ids).logits
    with connector.reading(memory, mask, visible):
        assert torch.equal(model(ids).logits[1], alone[1])
    # A text alone is the language model's, but for Idefics, whose SwiGLU runs on every text.
    assert torch.equal(alone, bare) == (cls is not IdeficsCrossAttention)


@both
@torch.no_grad()
def test_detach_restores(cls: type[InLayerConnector], model: PreTrainedModel) -> None:
    connector = build(cls)
    open_gates(connector)
    ids, *media = read_two(connector)
    before = model(ids).logits
    connector.attach(layers_of(model))
    connector.attach(layers_of(model))  # twice is once
    connector.detach()
    with connector.reading(*media):
        assert torch.equal(model(ids).logits, before)
    hooks = [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
    assert not hooks


@both
def test_gradients_reach_every_parameter(
    cls: type[InLayerConnector], model: PreTrainedModel
) -> None:
    connector = build(cls)
    open_gates(connector)
    connector.attach(layers_of(model))
    ids, *media = read_two(connector)
    with connector.reading(*media):
        logits = model(ids).logits
    logits[:, :, :7].square().sum().backward()
    missing = [n for n, p in connector.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing


@both
def test_nothing_of_the_language_model_is_owned(
    cls: type[InLayerConnector], model: PreTrainedModel
) -> None:
    connector = build(cls)
    own = set(connector.state_dict())
    connector.attach(layers_of(model))
    assert set(connector.state_dict()) == own
    theirs = {id(p) for p in model.parameters()}
    assert not any(id(p) in theirs for p in connector.parameters())


def gradients(connector: InLayerConnector, model: PreTrainedModel) -> list[Tensor]:
    """Two readings with different media, and a text alone, before one backward pass each."""
    connector.zero_grad()
    losses = []
    for seed in (1, 2):
        ids, *media = read_two(connector, seed)
        with connector.reading(*media):
            losses.append(model(ids).logits.logsumexp(-1).sum() * seed)
    losses.append(model(ids).logits.sum())
    (losses[0] + losses[2]).backward()  # not in the reverse order of the forward passes
    losses[1].backward()
    return [p.grad.clone() for p in connector.parameters() if p.grad is not None]


@both
def test_gradient_checkpointing_gives_the_same_gradients(
    cls: type[InLayerConnector], model: PreTrainedModel
) -> None:
    connector = build(cls)
    open_gates(connector)
    connector.attach(layers_of(model))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.double().train()
    plain = gradients(connector.double(), model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    checkpointed = gradients(connector, model)
    assert len(plain) == len(checkpointed) == len(list(connector.parameters()))
    for a, b in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(a, b)


@both
def test_checkpointing_of_whole_layer_calls(cls: type[InLayerConnector]) -> None:
    """As libraries do it that wrap the call of a layer, its hooks included."""
    model = language_model("llama").double()
    connector = build(cls).double()
    open_gates(connector)
    connector.attach(layers_of(model))
    plain = gradients(connector, model)
    layer_class = type(layers_of(model)[0])
    call = layer_class.__call__

    def checkpointed_call(self: nn.Module, *args: object, **kwargs: object) -> object:
        return torch.utils.checkpoint.checkpoint(
            lambda *a: call(self, *a, **kwargs), *args, use_reentrant=False
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_class, "__call__", checkpointed_call)
        checkpointed = gradients(connector, model)
    for a, b in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(a, b)


@both
@torch.no_grad()
def test_cached_decoding_equals_recomputing(
    cls: type[InLayerConnector], model: PreTrainedModel
) -> None:
    connector = build(cls)
    open_gates(connector)
    connector.attach(layers_of(model))
    start, memory, mask, visible = read_two(connector)
    last = visible[:, -1:]
    ids, past = start, None
    full = start
    for step in range(6):
        now = visible if step == 0 else last
        with connector.reading(memory, mask, now):
            out = model(ids, use_cache=True, **{CACHE: past})
        past, ids = out[CACHE], out.logits[:, -1:].argmax(-1)
        seen = torch.cat([visible, last.expand(-1, step, -1)], 1)
        with connector.reading(memory, mask, seen):
            again = model(full, use_cache=False).logits
        torch.testing.assert_close(again[:, -1], out.logits[:, -1], atol=1e-4, rtol=1e-4)
        assert torch.equal(again[:, -1].argmax(-1), ids[:, 0])
        full = torch.cat([full, ids], 1)


@both
@torch.no_grad()
def test_half_precision_language_model(cls: type[InLayerConnector]) -> None:
    model = language_model("llama").bfloat16()
    connector = build(cls)
    open_gates(connector)
    connector.attach(layers_of(model))
    ids, *media = read_two(connector)
    with connector.reading(*media):
        logits = model(ids).logits
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


@both
def test_a_copied_pair_is_on_its_own(cls: type[InLayerConnector]) -> None:
    pair = nn.ModuleDict({"model": language_model("llama"), "connector": build(cls)})
    connector = pair["connector"]
    open_gates(connector)  # type: ignore[arg-type]
    connector.attach(layers_of(pair["model"]))  # type: ignore[arg-type, operator]
    ids, *media = read_two(connector)  # type: ignore[arg-type]
    with connector.reading(*media):  # type: ignore[operator]
        expected = pair["model"](ids).logits
    twin = copy.deepcopy(pair)
    connector.detach()  # type: ignore[operator]
    with twin["connector"].reading(*media):  # type: ignore[operator]
        assert torch.equal(twin["model"](ids).logits, expected)


@both
def test_errors_say_what_is_missing(cls: type[InLayerConnector]) -> None:
    with pytest.raises(ConnectorError, match="4 decoder layers"):
        build(cls).attach(nn.ModuleList([nn.Identity()]))
    with pytest.raises(ConnectorError, match="language model has 0"):
        cls(Widths(64, 96, 36, (6, 6)))
    model, connector = language_model("llama"), build(cls)
    connector.attach(layers_of(model))
    ids, memory, mask, visible = read_two(connector)
    with (
        connector.reading(memory, mask, visible),
        pytest.raises(ConnectorError, match="current positions"),
    ):
        model(ids[:, :3])


def test_adapter_names_the_projections_it_needs() -> None:
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCAB,
            hidden_size=96,
            intermediate_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
        )
    )
    connector = build(LlamaAdapter)
    with pytest.raises(ConnectorError, match="q_proj, k_proj, v_proj"):
        connector.attach(layers_of(model))
    gated = build(GatedCrossAttention)  # needs no projections
    gated.attach(layers_of(model))


@torch.no_grad()
def test_adapter_equals_the_papers_formula() -> None:
    """One layer's attention, head by head, from its own projections."""
    model, connector = language_model("qwen2"), build(LlamaAdapter)
    open_gates(connector)
    assert isinstance(connector, LlamaAdapter)
    attention = layers_of(model)[2].self_attn
    seen: dict[str, Tensor] = {}
    attention.o_proj.register_forward_pre_hook(lambda _, a: seen.__setitem__("out", a[0]))
    attention.q_proj.register_forward_pre_hook(lambda _, a: seen.__setitem__("in", a[0]))
    ids, memory, mask, visible = read_two(connector)
    model(ids)
    plain = seen["out"]
    connector.attach(layers_of(model))
    attention.o_proj.register_forward_pre_hook(lambda _, a: seen.__setitem__("out", a[0]))
    with connector.reading(memory, mask, visible):
        model(ids)
    x, c = seen["in"], 24
    for row, position, item in ((0, 3, 0), (0, 8, 1), (1, 6, 0), (1, 1, None)):
        prompts = connector.prompts[0] + (0 if item is None else memory[row, item])
        k, v = attention.k_proj(prompts), attention.v_proj(prompts)
        for head in range(4):
            q = attention.q_proj(x[row, position])[head * c : (head + 1) * c]
            group = slice((head // 2) * c, (head // 2 + 1) * c)
            read = (k[:, group] @ q / c**0.5).softmax(0) @ v[:, group]
            gate = 0.0 if item is None else connector.gates[0, head].tanh()
            here = slice(head * c, (head + 1) * c)
            actual = seen["out"][row, position, here] - plain[row, position, here]
            torch.testing.assert_close(actual, gate * read, atol=1e-5, rtol=1e-4)


@both
@torch.no_grad()
def test_flops_per_position(cls: type[InLayerConnector]) -> None:
    """One item, all positions see it: the difference to the language model alone."""
    model, connector = language_model("llama"), build(cls)
    ids = torch.randint(VOCAB, (1, T))
    memory, mask = connector.encode(random_features(TINY, 1), torch.ones(1, 36, dtype=torch.bool))
    visible = torch.ones(1, T, memory.shape[1], dtype=torch.bool)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as alone:
            model(ids)
        connector.attach(layers_of(model))
        with connector.reading(memory, mask, visible), FlopCounterMode(display=False) as joined:
            model(ids)
    added = joined.get_total_flops() - alone.get_total_flops()
    if cls is LlamaAdapter:  # the prompts' keys and values: 10 rows, two maps of 96 -> 48
        added -= 2 * (2 * 2 * 10 * 96 * 48)
    assert added == pytest.approx(T * connector.flops_per_position(), rel=0.01)


def test_idefics_blocks_stand_before_whole_groups() -> None:
    options = IdeficsCrossAttention.options_for("matched", TINY)
    places = {every: [*range(0, 4, every)] for every in (1, 2, 4)}
    for every, expected in places.items():
        assert [*IdeficsCrossAttention(TINY, **options | {"every": every}).places] == expected
    for every in (0, 3, 5):
        with pytest.raises(ConnectorError, match=r"has 4; `every` can be 1, 2, 4"):
            IdeficsCrossAttention(TINY, **options | {"every": every})
    # 30 and 22 layers: the divisor next to four, and to a quarter of them.
    for layers, published, matched in ((30, 3, 6), (22, 2, 2), (32, 4, 8), (24, 4, 6)):
        widths = Widths(64, 96, 36, (6, 6), num_layers=layers, num_heads=4)
        assert IdeficsCrossAttention.options_for("published", widths)["every"] == published
        assert IdeficsCrossAttention.options_for("matched", widths)["every"] == matched


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_idefics_without_a_resampler_has_the_property(check: Check) -> None:
    options = IdeficsCrossAttention.options_for("matched", TINY)
    with sdpa_kernel(SDPBackend.MATH):
        check(IdeficsCrossAttention, TINY, options | {"resampler": None, "gate": "vector"})


def test_idefics_has_two_kinds_of_gates() -> None:
    options = IdeficsCrossAttention.options_for("matched", TINY)
    with pytest.raises(ConnectorError, match="'scalar' or 'vector' gate, not 'float'"):
        IdeficsCrossAttention(TINY, **options | {"gate": "float"})
