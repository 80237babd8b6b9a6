"""Models that see, as transformers' own classes: the same ids, logits and answers, or a reason."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    CLIPImageProcessorPil,
    Idefics2ForConditionalGeneration,
    Idefics3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

import tiny
from modalign.errors import ModalignError
from modalign.models.compose import LanguageModel, compose, prepare_tokenizer
from modalign.models.encoders.image import load_image_encoder
from modalign.models.export import (
    Expected,
    load_model,
    observe,
    save_model,
    verify_in_clean_process,
    verify_saved,
)
from modalign.models.export.native import NotNativeError, build_native
from modalign.starter import language

transformers.utils.logging.disable_progress_bar()

NEW = 5  # greedy tokens


def asked(*parts: Any) -> list[dict[str, Any]]:
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": tiny.picture(part, 50)}
        for part in parts
    ]
    return [{"role": "user", "content": content}]


SEEING = [asked("left: ", 0, " right: ", 1, " which?"), asked(2, "what is it?")]
CONVERSATIONS = [*SEEING, asked("hi")]  # one row without an image, others with one and two


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = {}
    for kind in ("siglip", "clip", "vit"):
        path = tmp_path_factory.mktemp(kind)
        for part in tiny.tower(kind):
            part.save_pretrained(path)
        made[kind] = str(path)
    cropping = tmp_path_factory.mktemp("cropping")
    tiny.tower("siglip")[0].save_pretrained(cropping)
    size = {"height": tiny.SIDE, "width": tiny.SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": tiny.SIDE}, crop_size=size).save_pretrained(
        cropping
    )
    return made | {"cropping": str(cropping)}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    made = language.build_tokenizer()
    prepare_tokenizer(made)
    return made


def joined(
    tower: str,
    tokenizer: PreTrainedTokenizerFast,
    connector: str,
    layer: int | str = "output",
    family: str = "llama",
    tied: bool = False,
    **options: Any,
) -> tuple[Any, Any]:
    """Composed from tiny parts, every weight of the connector moved."""
    llm = tiny.language_model(family, len(tokenizer), tied)
    torch.manual_seed(3)
    encoder = load_image_encoder(tower, layer=layer)
    model, processor = compose(
        LanguageModel("tiny", llm, tokenizer), encoder, connector, options=options
    )
    with torch.no_grad():
        for parameter in model.connectors.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return model.eval(), processor


@dataclass
class Case:
    folder: Path
    kind: str
    model: Any
    processor: Any
    conversations: list[Any]
    seen: dict[str, Tensor]


MATRIX = {"depth": 1, "bias": False, "num_tokens": 4}
IDEFICS: dict[str, Any] = {
    "connector": "idefics_cross_attention",
    "layer": "all",
    "family": "ungrouped",
    "head_size": 8,
    "ffn": 48,
}
OWN_PROCESSOR = ("Idefics",)  # classes whose own would change prompts
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # name: class, tower, arguments of `joined`
    "shuffle": ("Idefics3", "siglip", {"connector": "pixel_shuffle_linear"}),
    "shuffle-by-4": (
        "Idefics3",
        "siglip",
        {"connector": "pixel_shuffle_linear", "factor": 4, "family": "qwen2", "tied": True},
    ),
    "pool": ("Idefics3", "siglip", {"connector": "avgpool_mlp", **MATRIX}),
    "resampler": ("Idefics2", "siglip", {"connector": "swiglu_resampler"}),
    "narrow-resampler": (
        "Idefics2",
        "siglip",
        {"connector": "swiglu_resampler", "hidden": 20, "ffn": 50, "family": "qwen2", "tied": True},
    ),
    "idefics": ("Idefics", "clip", IDEFICS | {"resampler": None, "gate": "vector", "every": 2}),
    "narrow-idefics": ("Idefics", "clip", IDEFICS | {"heads": 2, "ffn": 20, "tied": True}),
    "qformer": ("Blip2", "vit", {"connector": "qformer", "layer": "all", "tied": True}),
    "qformer-gpt2": (
        "Blip2",
        "vit",
        {
            "connector": "qformer",
            "layer": "all",
            "family": "gpt2",
            "layers": 3,
            "cross_every": 2,
        },
    ),
}


@pytest.fixture(scope="module")
def cases(
    towers: dict[str, str],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Case]:
    root = tmp_path_factory.mktemp("saved")
    made = {}
    for name, (target, tower, arguments) in CASES.items():
        model, processor = joined(towers[tower], tokenizer, **arguments)
        asks = "Blip2" if target == "Blip2" else None
        talks = SEEING if target == "Blip2" else CONVERSATIONS
        saved = save_model(model, processor, root / name, target=asks)
        seen = observe(model, processor, talks, NEW)
        made[name] = Case(saved.folder, saved.kind, model, processor, talks, seen)
    return made


@pytest.fixture(scope="module")
def clean(cases: dict[str, Case]) -> dict[str, float]:
    expected = [
        Expected(case.folder, case.conversations, case.seen, max_new_tokens=NEW)
        for case in cases.values()
    ]
    return dict(zip(cases, verify_in_clean_process(expected), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_native_models_answer_the_same(
    name: str, cases: dict[str, Case], clean: dict[str, float]
) -> None:
    case = cases[name]
    assert case.kind == f"native:{CASES[name][0]}"
    assert clean[name] <= 1e-5
    difference = verify_saved(
        case.folder,
        case.model,
        case.processor,
        case.conversations,
        max_new_tokens=NEW,
        seen=case.seen,
    )
    assert difference <= 1e-5


@pytest.mark.parametrize("name", CASES)
def test_folders_hold_the_keys_of_the_class_and_no_code_of_a_model(
    name: str, cases: dict[str, Case]
) -> None:
    case = cases[name]
    own = CASES[name][0] in OWN_PROCESSOR
    assert bool(list(case.folder.glob("*.py"))) == own
    assert ("auto_map" in (case.folder / "processor_config.json").read_text()) == own
    assert "auto_map" not in (case.folder / "config.json").read_text()
    config = json.loads((case.folder / "config.json").read_text())
    (architecture,) = config["architectures"]
    assert architecture.startswith(f"{CASES[name][0]}For")
    of: Any = getattr(transformers, architecture)
    loaded, report = of.from_pretrained(case.folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with safe_open(case.folder / "model.safetensors", "pt") as tensors:
        ours = set(tensors.keys())
    head = next(key for key in loaded.state_dict() if key.endswith("lm_head.weight"))
    tied = bool(case.model.config.text_config.tie_word_embeddings)
    assert ours == set(loaded.state_dict()) - ({head} if tied else set())
    assert f"{CASES[name][0]} class" in (case.folder / "README.md").read_text()


def test_hub_names() -> None:
    """What the classes' own checkpoints on the hub call some tensors."""
    named = {
        Idefics3ForConditionalGeneration: (
            "model.vision_model.embeddings.patch_embedding.weight",
            "model.connector.modality_projection.proj.weight",
            "model.text_model.embed_tokens.weight",
            "lm_head.weight",
        ),
        Idefics2ForConditionalGeneration: (
            "model.connector.perceiver_resampler.layers.0.self_attn.k_proj.weight",
            "model.connector.modality_projection.gate_proj.weight",
        ),
        Blip2ForConditionalGeneration: (
            "query_tokens",
            "vision_model.encoder.layers.0.self_attn.qkv.weight",
            "qformer.encoder.layer.0.crossattention.attention.query.weight",
            "language_projection.weight",
        ),
    }
    with torch.device("meta"):
        for cls, names in named.items():
            assert set(names) <= set(cls(cls.config_class()).state_dict()), cls


@pytest.mark.parametrize("name", ["shuffle", "pool", "resampler", "qformer"])
def test_comparison_would_see_another_connector(name: str, cases: dict[str, Case]) -> None:
    case = cases[name]
    kept = {key: value.clone() for key, value in case.model.connectors.state_dict().items()}
    with torch.no_grad():
        for parameter in case.model.connectors.parameters():
            parameter.copy_(parameter.flip(0))
    try:
        with pytest.raises(ModalignError, match="differ"):
            verify_saved(case.folder, case.model, case.processor, case.conversations[:1])
    finally:
        case.model.connectors.load_state_dict(kept)


def test_half_precision(
    towers: dict[str, str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model, processor = joined(towers["siglip"], tokenizer, "pixel_shuffle_linear")
    saved = save_model(model.to(torch.bfloat16), processor, tmp_path / "model")
    assert saved.kind == "native:Idefics3"
    loaded, _ = load_model(tmp_path / "model")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert verify_saved(tmp_path / "model", model, processor, SEEING[:1]) <= 2e-2


def test_our_tokenizer_is_left_as_it_was(
    towers: dict[str, str], tokenizer: PreTrainedTokenizerFast
) -> None:
    before = list(tokenizer.SPECIAL_TOKENS_ATTRIBUTES)
    build_native(*joined(towers["siglip"], tokenizer, "pixel_shuffle_linear"))
    assert before == tokenizer.SPECIAL_TOKENS_ATTRIBUTES


# --- what stands against it ---

SHUFFLE, LATENTS = {"connector": "pixel_shuffle_linear"}, {"connector": "swiglu_resampler"}
REFUSED: list[tuple[str, dict[str, Any], str | None, str]] = [
    ("siglip", SHUFFLE | {"layer": -1}, None, "Idefics3 reads the tower's output.*layer -1"),
    ("clip", SHUFFLE, None, "tower is SigLIP's, but this one is clip_vision_model"),
    (
        "cropping",
        SHUFFLE,
        None,
        "CLIPImageProcessorPil prepares images in a way that Idefics3's image processor cannot",
    ),
    ("siglip", SHUFFLE | {"family": "gpt2"}, None, "GPT2Model has no embed_tokens"),
    ("siglip", {"connector": "avgpool_mlp"}, None, "options depth 1 and bias false"),
    ("siglip", {"connector": "avgpool_mlp", **MATRIX, "bias": True}, "Idefics3", "without a bias"),
    ("siglip", {"connector": "avgpool_mlp", **MATRIX, "num_tokens": 9}, "Idefics3", "3 does not"),
    ("siglip", {"connector": "mlp"}, None, "Llava reads a hidden layer"),
    ("siglip", {"connector": "mlp"}, "Idefics3", "no connector like 'mlp'"),
    ("siglip", LATENTS | {"family": "gemma"}, None, "gelu_pytorch_tanh"),
    ("siglip", LATENTS | {"hidden": 49}, None, "hidden 48, and the connector 49"),
    ("siglip", LATENTS | {"ffn": 129}, None, "ffn 128, and the connector 129"),
    ("siglip", {"connector": "resampler"}, None, "another form: swiglu_resampler"),
    (
        "siglip",
        {"connector": "gated_cross_attention"},
        None,
        "SwiGLU: idefics_cross_attention",
    ),
    ("clip", {"connector": "mlp"}, "Idefics", "like 'mlp', only like 'idefics_cross_attention'"),
    ("clip", IDEFICS | {"layer": "output"}, None, "class token, but this model reads 'output'"),
    ("siglip", IDEFICS, None, "tower is CLIP's, but this one is siglip"),
    ("clip", IDEFICS | {"family": "llama"}, None, "keys for each head, but this one 2 for 4"),
    ("clip", IDEFICS | {"family": "qwen2"}, None, "LLaMA's, but this one is Qwen2ForCausalLM"),
    ("clip", IDEFICS | {"head_size": 4}, None, "option head_size 8"),
    ("clip", IDEFICS | {"heads": 5}, None, "option heads at most 4"),
    ("clip", IDEFICS | {"ffn": 49}, None, "option ffn at most 48"),
    ("clip", IDEFICS | {"norm_eps": 1e-5}, None, "option norm_eps 1e-06"),
    ("vit", {"connector": "qformer", "layer": "all"}, None, "no prompt without an image"),
    (
        "vit",
        {"connector": "qformer"},
        "Blip2",
        "with its class token, but this model reads 'output'",
    ),
    ("siglip", {"connector": "qformer", "layer": "all"}, "Blip2", "but this one is siglip"),
    ("vit", {"connector": "mlp", "layer": "all"}, "Blip2", "only like 'qformer'"),
    ("vit", {"connector": "mlp", "layer": "all"}, "Mllama", "choose from Llava, Blip2"),
]


@pytest.mark.parametrize(("tower", "arguments", "target", "reason"), REFUSED)
def test_refusals_say_why(
    tower: str,
    arguments: dict[str, Any],
    target: str | None,
    reason: str,
    towers: dict[str, str],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(NotNativeError, match=reason):
        build_native(*joined(towers[tower], tokenizer, **arguments), target)


def test_a_grid_whose_positions_are_rounded_is_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """25 / 25ths of an image: transformers puts two patches at one position there."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    side = {"image_size": 50, "patch_size": 2, "num_attention_heads": 1, "vision_use_head": False}
    SiglipVisionModel(SiglipVisionConfig(**sizes, **side)).save_pretrained(tmp_path)
    SiglipImageProcessorPil(size={"height": 50, "width": 50}).save_pretrained(tmp_path)
    parts = joined(str(tmp_path), tokenizer, "pixel_shuffle_linear", factor=5)
    with pytest.raises(NotNativeError, match="25 x 25 patches at their neighbour's position"):
        build_native(*parts)


def test_a_target_that_is_asked_for_is_made_or_refused(
    towers: dict[str, str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model, processor = joined(towers["siglip"], tokenizer, "mlp", -1)
    with pytest.raises(ModalignError, match="cannot be saved: not as Idefics3"):
        save_model(model, processor, tmp_path / "model", target="Idefics3")
    assert not (tmp_path / "model").exists()
    saved = save_model(model, processor, tmp_path / "model", target="remote-code")
    assert saved.kind == "remote-code"
    assert saved.notes == ("Saved with its own code, as requested.",)
    assert save_model(model, processor, tmp_path / "model").kind == "native:Llava"


def test_other_logits_are_refused(
    towers: dict[str, str], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison decides, not the structure: a head that is scaled is seen."""
    model, processor = joined(towers["siglip"], tokenizer, "pixel_shuffle_linear")
    plain = model.forward

    def scaled(**inputs: Any) -> Any:
        output = plain(**inputs)
        output.logits = 2 * output.logits
        return output

    monkeypatch.setattr(model, "forward", scaled)
    with pytest.raises(NotNativeError, match=r"Idefics3 around these parts gives logits .* apart"):
        build_native(model, processor)


def test_a_blip2_checkpoint_gives_its_tower(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tower = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    side = {"num_attention_heads": 2, "image_size": tiny.SIDE, "patch_size": tiny.PATCH}
    query = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    text = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 9}
    config = Blip2Config(
        vision_config=tower | side,
        qformer_config=query | {"num_hidden_layers": 1},
        text_config=text,
    )
    torch.manual_seed(0)
    whole = Blip2ForConditionalGeneration(config)
    whole.save_pretrained(tmp_path)
    tiny.tower("siglip")[1].save_pretrained(tmp_path)
    model, processor = joined(str(tmp_path), tokenizer, "qformer", "all")
    loaded = model.encoders["image"].tower.state_dict()
    for name, tensor in whole.vision_model.state_dict().items():
        assert torch.equal(tensor, loaded[name]), name
    assert build_native(model, processor, "Blip2").target == "Blip2"
