"""``idefics_cross_attention`` against transformers' Idefics, and why it is saved with its own code.

The oracle is IdeficsForVisionText2Text around the same weights, given the mask of images that its
processor would have to give: the class computes what we compute; its processor is what stands
against the class.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    IdeficsConfig,
    IdeficsForVisionText2Text,
    IdeficsImageProcessorPil,
    IdeficsProcessor,
    LlamaConfig,
    LlamaForCausalLM,
)

import tiny
from modalign.models.compose import LanguageModel, compose, prepare_tokenizer
from modalign.models.encoders.image import load_image_encoder
from modalign.starter import language

END = 1  # id that ends an answer; 0 is padding
RESAMPLER = {"num_tokens": 5, "layers": 2, "heads": 2, "head_size": 10}
FORMS: dict[str, dict[str, Any]] = {
    "resampler": {"gate": "scalar", "every": 2, "resampler": RESAMPLER},
    "all features": {"gate": "vector", "every": 1, "resampler": None},
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("clip")
    for part in tiny.tower("clip"):
        part.save_pretrained(path)
    return str(path)


def llama(vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=tiny.LAYERS,
        num_attention_heads=4,  # and as many of keys: Idefics has no groups
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=END,
    )
    made = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # else every token has the same logits
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return made


def ours(clip: str, form: str) -> Any:
    tokenizer = language.build_tokenizer()
    prepare_tokenizer(tokenizer)
    options = {"heads": 4, "head_size": 8, "ffn": 48, **FORMS[form]}
    parts = LanguageModel("tiny", llama(len(tokenizer)), tokenizer)
    encoder = load_image_encoder(clip, layer="all")
    model, _ = compose(parts, encoder, "idefics_cross_attention", options=options)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.connectors.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def theirs(model: Any, form: str) -> IdeficsForVisionText2Text:
    """Idefics with the same weights: every tensor of it is one of ours."""
    text, tower = model.language_model.config, model.encoders["image"].tower
    sizes = ("image_size", "patch_size", "intermediate_size", "num_hidden_layers")
    kept = (*sizes, "num_attention_heads", "hidden_act", "layer_norm_eps")
    options = FORMS[form]
    config = IdeficsConfig(
        **{
            name: getattr(text, name)
            for name in (
                *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
                *("num_attention_heads", "rms_norm_eps", "max_position_embeddings"),
                *("pad_token_id", "bos_token_id", "eos_token_id", "rope_parameters"),
            )
        },
        vision_config={"embed_dim": tower.config.hidden_size}
        | {name: getattr(tower.config, name) for name in kept},
        perceiver_config={
            "resampler_n_latents": RESAMPLER["num_tokens"],
            "resampler_depth": RESAMPLER["layers"],
            "resampler_n_heads": RESAMPLER["heads"],
            "resampler_head_dim": RESAMPLER["head_size"],
            "qk_layer_norms_perceiver": True,
        },
        use_resampler=options["resampler"] is not None,
        cross_layer_interval=options["every"],
        alpha_type={"scalar": "float", "vector": "vector"}[options["gate"]],
        qk_layer_norms=True,
    )
    made = IdeficsForVisionText2Text(config).eval()
    state = dict(model.language_model.state_dict())
    state |= {f"model.vision_model.{key}": value for key, value in tower.state_dict().items()}
    state |= _blocks(model.connector("image"))
    shapes = {key: value.shape for key, value in made.state_dict().items()}
    made.load_state_dict({key: value.reshape(shapes[key]) for key, value in state.items()})
    return made


def _blocks(connector: Any) -> dict[str, Tensor]:
    """Idefics' names for the connector's tensors."""
    state: dict[str, Tensor] = {}
    for number, block in enumerate(connector.blocks):
        prefix = f"model.gated_cross_attn_layers.{number}."
        keys, values = block.kv.weight.chunk(2)
        state |= {
            prefix + "cross_attn.k_proj.weight": keys,
            prefix + "cross_attn.v_proj.weight": values,
            prefix + "alpha_cross_attn": block.attention_gate,
            prefix + "alpha_dense": block.ffn_gate,
        }
        modules = {
            "input_layernorm": block.norm,
            "post_attention_layernorm": block.ffn_norm,
            "cross_attn.q_proj": block.q,
            "cross_attn.o_proj": block.out,
            "cross_attn.q_layer_norm": block.q_norm,
            "cross_attn.k_layer_norm": block.k_norm,
            "mlp.gate_proj": block.ffn.gate,
            "mlp.up_proj": block.ffn.up,
            "mlp.down_proj": block.ffn.down,
        }
        state |= {f"{prefix}{name}.weight": module.weight for name, module in modules.items()}
    if connector.resampler is None:
        return state
    names = {
        "q.": "0.q_proj.",
        "k.": "0.k_proj.",
        "v.": "0.v_proj.",
        "out.": "0.output_proj.",
        "q_norm.": "0.q_layer_norm.",
        "k_norm.": "0.k_layer_norm.",
    }
    renamed = {f"attention.{old}": new for old, new in names.items()} | {
        "media_norm.": "0.context_layer_norm.",
        "latent_norm.": "0.latents_layer_norm.",
        "ffn_norm.": "1.ln.",
        "ffn.up.": "1.fc.",
        "ffn.down.": "1.c_proj.",
    }
    prefix = "model.perceiver_resampler."
    state[prefix + "latents"] = connector.resampler.latents
    for key, value in connector.resampler.norm.state_dict().items():
        state[f"{prefix}layer_norm.{key}"] = value
    for number, layer in enumerate(connector.resampler.layers):
        for key, value in layer.state_dict().items():
            old = next(each for each in renamed if key.startswith(each))
            state[f"{prefix}blocks.{number}.{renamed[old]}{key.removeprefix(old)}"] = value
    return state


def batch(model: Any, rows: list[list[int]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What both are given: left-padded rows in which -1 is an image."""
    mark = model.config.bridges["image"]["token_id"]
    T, most = max(map(len, rows)), max(1, *(row.count(-1) for row in rows))
    ids = torch.zeros(len(rows), T, dtype=torch.long)
    attention = torch.zeros_like(ids)
    seen = torch.zeros(len(rows), T, most)
    count = sum(row.count(-1) for row in rows)
    pixels = torch.randn(count, 3, tiny.SIDE, tiny.SIDE, generator=torch.Generator().manual_seed(4))
    padded = torch.zeros(len(rows), most, 3, tiny.SIDE, tiny.SIDE)
    left = list(pixels)
    for number, row in enumerate(rows):
        start, current = T - len(row), -1
        attention[number, start:] = 1
        for place, token in enumerate(row, start):
            ids[number, place] = mark if token == -1 else token
            if token == -1:
                current += 1
                padded[number, current] = left.pop(0)
            if current >= 0:
                seen[number, place, current] = 1
    both = {"input_ids": ids, "attention_mask": attention}
    image = {"pixel_values": pixels} if count else {}
    return both | image, both | {"pixel_values": padded, "image_attention_mask": seen}


ROWS = {
    "images and texts": [[5, 6, -1, 7, 8, -1, 9, 10], [-1, 11, 12], [13, 14, 15, 16, 17]],
    "texts alone": [[5, 6, 7], [8, 9, 10, 11]],
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_transformers_idefics_computes_the_same(clip: str, form: str, rows: str) -> None:
    model = ours(clip, form)
    native = theirs(model, form)
    mine, given = batch(model, ROWS[rows])
    real = mine["attention_mask"].bool()
    expected = native(**given).logits[real]
    torch.testing.assert_close(model(**mine).logits[real], expected, atol=2e-5, rtol=1e-5)
    length = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(**mine, **length), native.generate(**given, **length))
    if rows == "images and texts":  # what is compared depends on the images
        given["pixel_values"] = given["pixel_values"].flip(1)
        assert not torch.allclose(native(**given).logits[real], expected, atol=1e-2)


@torch.no_grad()
def test_a_text_is_read_alike_alone_and_beside_images(clip: str) -> None:
    model = ours(clip, "resampler")
    text = ROWS["images and texts"][2]
    alone, _ = batch(model, [text])
    mixed, _ = batch(model, ROWS["images and texts"])
    found = model(**mixed).logits[2, -len(text) :]
    torch.testing.assert_close(found, model(**alone).logits[0], atol=1e-5, rtol=1e-5)
    bare = model.language_model(**alone).logits  # hooks are on its layers: the SwiGLU runs
    torch.testing.assert_close(bare, model(**alone).logits)


def test_what_stands_against_the_class() -> None:
    """If one of these fails, transformers has changed, and Idefics may have become possible."""
    tokenizer = language.build_tokenizer()
    prepare_tokenizer(tokenizer)
    tokenizer._set_model_specific_special_tokens({"image_token": "<image>"})
    template = tokenizer.chat_template
    images = IdeficsImageProcessorPil(size={"height": tiny.SIDE, "width": tiny.SIDE})
    processor = IdeficsProcessor(images, copy.deepcopy(tokenizer), chat_template=template)
    assert processor.chat_template is None
    made = processor(text=["a<image>b"], images=[[tiny.picture(0)]])
    prompt = tokenizer.decode(made["input_ids"][0])
    mark = "<fake_token_around_image>"
    assert prompt == f"Nonea<image>b{mark}<image>{mark}"
    texts = processor(text=["a", "b"])
    assert tokenizer.decode(texts["input_ids"][0]) == "Noneab"
    turns = processor(text=["a<image>b<|end|>c"], images=[[tiny.picture(0)]])
    c = tokenizer.convert_tokens_to_ids("c")
    place = turns["input_ids"][0].tolist().index(c)
    assert turns["image_attention_mask"][0, place - 1].any()  # the end token sees the image
    assert not turns["image_attention_mask"][0, place].any()
