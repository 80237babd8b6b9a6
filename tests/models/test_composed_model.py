"""The composed model: what the language model is fed, batching, generation, gradients."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaConfig, LlavaForConditionalGeneration

import tiny
from modalign.connectors.registry import connectors
from modalign.errors import UsageError
from modalign.models.bridges import Features, PlaceholderError
from modalign.models.compose import compose, load_language_model
from modalign.models.encoders.image import load_image_encoder
from modalign.models.modeling import ModalignForConditionalGeneration

Compose = Callable[..., Any]
ALL = list(connectors())
PREFIX = [name for name, cls in connectors().items() if cls.enters == "prefix"]
IN_LAYER = [name for name, cls in connectors().items() if cls.enters == "in-layer"]
TEXTS = ["what is this?", "is there a seven to the left?", "yes", "and this"]


def rows(model: Any, processor: Any, images: list[int]) -> dict[str, Any]:
    """Left-padded rows with so many images each, some of them between words."""
    token, each = processor.image_token_id, processor.num_image_tokens
    encode = processor.tokenizer.encode
    ids = []
    for row, count in enumerate(images):
        words = encode(TEXTS[row % 4])
        ids.append(words[:1] + ([token] * each + words[1:]) * count + words)
    width = max(map(len, ids))
    return {
        "input_ids": torch.tensor([[0] * (width - len(i)) + i for i in ids]),
        "attention_mask": torch.tensor([[0] * (width - len(i)) + [1] * len(i) for i in ids]),
        "features": {"image": tiny.features(model, sum(images))} if sum(images) else None,
    }


def single(batch: dict[str, Any], images: list[int], row: int) -> dict[str, Any]:
    """One row of a batch, without padding."""
    keep = batch["attention_mask"][row].bool()
    own = slice(sum(images[:row]), sum(images[: row + 1]))
    features = None
    if images[row]:
        given = batch["features"]["image"]
        features = {"image": Features(given.values[own], given.mask[own], given.grid)}
    ids = batch["input_ids"][row][keep][None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "features": features}


@pytest.mark.parametrize("name", PREFIX)
def test_equals_embeddings_built_by_hand(name: str, compose_tiny: Compose) -> None:
    model, processor = compose_tiny(name)
    batch = rows(model, processor, [1, 0, 2])
    given = batch["features"]["image"]
    with torch.no_grad():
        tokens, mask = model.connectors["image"](given.values, given.mask, given.grid)
        assert mask.all()
        embeds = model.get_input_embeddings()(batch["input_ids"]).clone()
        queue = list(tokens.flatten(0, 1))
        for row in range(3):
            for place in range(embeds.shape[1]):
                if batch["input_ids"][row, place] == processor.image_token_id:
                    embeds[row, place] = queue.pop(0)
        assert not queue
        expected = model.language_model(
            inputs_embeds=embeds, attention_mask=batch["attention_mask"]
        ).logits
        assert torch.equal(model(**batch).logits, expected)


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_equals_transformers_llava(name: str, compose_tiny: Compose) -> None:
    """An independent implementation with the same weights, from pixels to logits."""
    model, processor = compose_tiny(name, tower="clip")
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=model.encoders["image"].tower.config,
            text_config=model.language_model.config,
            image_token_index=processor.image_token_id,
            vision_feature_layer=-1,
        )
    ).eval()
    llava.model.vision_tower.load_state_dict(model.encoders["image"].tower.state_dict())
    llava.model.language_model.load_state_dict(model.language_model.model.state_dict())
    llava.lm_head.load_state_dict(model.language_model.lm_head.state_dict())
    linears = [m for m in model.connectors.modules() if isinstance(m, torch.nn.Linear)]
    projector = llava.model.multi_modal_projector
    if name == "linear":
        projector.act = projector.linear_2 = torch.nn.Identity()
    for target, source in zip([projector.linear_1, projector.linear_2], linears, strict=False):
        target.load_state_dict(source.state_dict())
    batch = rows(model, processor, [1, 2])
    batch.pop("features")
    batch["pixel_values"] = torch.randn(3, 3, tiny.SIDE, tiny.SIDE)
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        ours, theirs = model(**batch).logits[real], llava(**batch).logits[real]
    assert tiny.largest_difference(ours, theirs) < 1e-4
    assert ours.abs().max() > 1


@pytest.mark.parametrize("name", ALL)
def test_left_padding_changes_nothing(name: str, compose_tiny: Compose) -> None:
    model, processor = compose_tiny(name)
    images = [1, 0, 2, 1]
    batch = rows(model, processor, images)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        together = model(**batch, position_ids=positions).logits
        for row in range(len(images)):
            alone = model(**single(batch, images, row)).logits[0]
            assert tiny.largest_difference(together[row, -len(alone) :], alone) < 2e-4


@pytest.mark.parametrize("name", ALL)
def test_batched_generation_equals_one_by_one(name: str, compose_tiny: Compose) -> None:
    model, processor = compose_tiny(name)
    images = [1, 0, 2, 1]
    batch = rows(model, processor, images)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    start = batch["input_ids"].shape[1]
    together = model.generate(**batch, **options)[:, start:]
    for row in range(len(images)):
        own = single(batch, images, row)
        alone = model.generate(**own, **options)[0, own["input_ids"].shape[1] :]
        assert together[row].tolist() == alone.tolist()
        slow = model.generate(**own, **options, use_cache=False)[0, own["input_ids"].shape[1] :]
        assert slow.tolist() == alone.tolist()
    other = dict(batch, features={"image": tiny.features(model, 4, seed=5)})
    with torch.no_grad():  # the media are looked at, and the text-only row is not
        changed = (model(**batch).logits - model(**other).logits)[:, -1].abs().amax(1) > 1e-4
    assert changed.tolist() == [True, False, True, True]


@pytest.mark.parametrize("name", ["mlp", "gated_cross_attention"])
@pytest.mark.parametrize("raw", [True, False])
def test_several_beams_keep_every_row_at_its_own_media(
    name: str, raw: bool, compose_tiny: Compose
) -> None:
    model, processor = compose_tiny(name)
    images = [1, 0, 2]
    batch = rows(model, processor, images)
    pixels = torch.randn(3, 3, tiny.SIDE, tiny.SIDE)
    with torch.no_grad():
        batch["features"] = {"image": model.encode("image", pixels)}
    options = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    start = batch["input_ids"].shape[1]
    given = dict(batch, features=None, pixel_values=pixels) if raw else batch
    together = model.generate(**given, **options)[:, start:]
    for row in range(len(images)):
        own = single(batch, images, row)
        alone = model.generate(**own, **options)[0, own["input_ids"].shape[1] :].tolist()
        found = together[row].tolist()
        assert found[: len(alone)] == alone


@pytest.mark.parametrize("name", ["linear", "resampler", "gated_cross_attention", "llama_adapter"])
def test_placeholders_and_media_must_match(name: str, compose_tiny: Compose) -> None:
    model, processor = compose_tiny(name)
    each = processor.num_image_tokens
    batch = rows(model, processor, [1, 1])
    with pytest.raises(PlaceholderError, match=f"{2 * each} image placeholders, but no image"):
        model(**dict(batch, features=None))
    for count in (1, 3):
        given = dict(batch, features={"image": tiny.features(model, count)})
        with pytest.raises(PlaceholderError, match=rf"{2 * each} image placeholders.* {count} "):
            model(**given)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
def test_vocabulary_grows_by_the_mean(
    family: str, tied: bool, llm_folder: Callable[..., Any], tower_folder: Callable[..., Any]
) -> None:
    llm = load_language_model(str(llm_folder(family, tied)))
    old = {k: v.clone() for k, v in llm.model.state_dict().items()}
    inputs = llm.model.get_input_embeddings().weight.clone()
    outputs = llm.model.get_output_embeddings().weight.clone()
    size = len(inputs)
    before = llm.model(torch.tensor([[5, 6, 7]])).logits
    assert len(llm.tokenizer) == size + 1  # the placeholder
    model, _ = compose(llm, load_image_encoder(str(tower_folder())), "linear")
    new_in = model.get_input_embeddings().weight
    new_out = model.get_output_embeddings().weight
    assert new_in.shape[0] == new_out.shape[0] == size + 1
    assert torch.equal(new_in[:size], inputs)
    assert torch.equal(new_out[:size], outputs)
    assert torch.allclose(new_in[size], inputs.mean(0))
    assert torch.allclose(new_out[size], outputs.mean(0))
    assert (new_in.data_ptr() == new_out.data_ptr()) == tied
    for key, value in model.language_model.state_dict().items():
        if value.shape == old[key].shape:
            assert torch.equal(value, old[key]), key
    after = model(torch.tensor([[5, 6, 7]])).logits
    assert tiny.largest_difference(after[..., :size], before) < 1e-5
    assert model.config.text_config.vocab_size == size + 1


def test_a_bias_of_the_output_grows_by_the_mean_too(
    llm_folder: Callable[..., Any], tower_folder: Callable[..., Any]
) -> None:
    llm = load_language_model(str(llm_folder("gptj")))
    bias = llm.model.get_output_embeddings().bias
    with torch.no_grad():
        bias.copy_(torch.arange(len(bias)) / 10)
    mean, old = bias.mean().item(), bias.clone()
    model, _ = compose(llm, load_image_encoder(str(tower_folder())), "linear")
    grown = model.get_output_embeddings().bias
    assert torch.equal(grown[:-1], old)
    assert grown[-1].item() == pytest.approx(mean)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["mlp", "gated_cross_attention"])
def test_saved_and_loaded_again(
    name: str, tied: bool, tmp_path: Any, llm_folder: Any, tower_folder: Any
) -> None:
    model, processor = tiny.composed(llm_folder("llama", tied), tower_folder(), name)
    model.save_pretrained(tmp_path)
    again = ModalignForConditionalGeneration.from_pretrained(tmp_path).eval()
    weights = again.get_input_embeddings().weight, again.get_output_embeddings().weight
    assert (weights[0].data_ptr() == weights[1].data_ptr()) == tied
    batch = rows(model, processor, [1, 2])
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, again(**batch).logits)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("name", ["mlp", "gated_cross_attention"])
def test_every_family_composes(name: str, family: str, compose_tiny: Compose) -> None:
    model, processor = compose_tiny(name, llm=family)
    images = [1, 0]
    batch = rows(model, processor, images)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    together = model.generate(**batch, **options)[:, -4:]
    for row in range(2):
        alone = model.generate(**single(batch, images, row), **options)[0, -4:]
        assert together[row].tolist() == alone.tolist()


def _gradients(model: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    labels = batch["input_ids"].masked_fill(~batch["attention_mask"].bool(), -100)
    model(**batch, labels=labels, use_cache=False).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["mlp", "qformer", *IN_LAYER])
def test_gradient_checkpointing_gives_equal_gradients(name: str, compose_tiny: Compose) -> None:
    model, processor = compose_tiny(name)
    model.train()
    batch = rows(model, processor, [1, 0, 2])
    plain = _gradients(model, batch)
    model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    checkpointed = _gradients(model, batch)
    assert plain.keys() == checkpointed.keys()
    assert any(name.startswith("connectors") for name in plain)
    for key, value in plain.items():
        assert torch.allclose(value, checkpointed[key], atol=1e-6), key


@pytest.mark.parametrize("name", ALL)
def test_text_only_batches_touch_the_whole_connector(name: str, compose_tiny: Compose) -> None:
    """All gradients exist, so that processes that train together agree.

    They are zero, but for the half of an Idefics block that runs on every text.
    """
    model, processor = compose_tiny(name)
    model.language_model.requires_grad_(False)
    batch = rows(model, processor, [0, 0])
    with torch.no_grad():
        expected = model(**batch).logits
    model.train()
    touched = set(_gradients(model, rows(model, processor, [1, 0])))
    gradients = _gradients(model, batch)
    assert gradients.keys() == touched
    moved = {key.split(".")[4] for key, gradient in gradients.items() if gradient.any()}
    assert moved == ({"ffn", "ffn_norm", "ffn_gate"} if name.startswith("idefics") else set())
    assert torch.equal(model(**batch).logits, expected)


@pytest.mark.parametrize("name", IN_LAYER)
def test_an_in_layer_connector_reads_only_the_last_medium(name: str, compose_tiny: Compose) -> None:
    model, processor = compose_tiny(name)
    token = processor.image_token_id
    ids = torch.tensor([[5, token, 6, 7, token, 8, 9]])
    given = tiny.features(model, 2)
    with torch.no_grad():
        base = model(ids, features={"image": given}).logits[0]
        for medium, first, last in ((0, 1, 4), (1, 4, 7)):
            values = given.values.clone()
            values[medium] = torch.randn(values.shape[1:])
            changed = model(ids, features={"image": Features(values, given.mask, given.grid)})
            differs = (changed.logits[0] - base).abs().amax(1) > 1e-6
            assert not differs[:first].any()
            assert differs[first:last].all()


def test_stories260k_composes(compose_tiny: Compose, tower_folder: Callable[..., Any]) -> None:
    folder = tiny.SHARED / "models" / "stories260k"
    if not folder.exists():
        pytest.skip(f"{folder.name} is not there")
    model, processor = tiny.composed(folder, tower_folder(), "mlp")
    images = [1, 0]
    batch = rows(model, processor, images)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    together = model.generate(**batch, **options)[:, -5:]
    alone = model.generate(**single(batch, images, 0), **options)[0, -5:]
    assert together[0].tolist() == alone.tolist()


def test_weights_that_are_a_pickle_are_read_only_where_allowed(
    llm_folder: Callable[..., Path], tmp_path: Path
) -> None:
    source = llm_folder()
    folder = tmp_path / "pickled"
    shutil.copytree(source, folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="--allow-pickle"):
        load_language_model(str(folder))
    read = load_language_model(str(folder), allow_pickle=True).model.state_dict()
    assert all(torch.equal(read[name], value) for name, value in state.items())


def test_a_connector_that_cannot_be_built_is_a_wrong_option(compose_tiny: Compose) -> None:
    with pytest.raises(UsageError, match="lower `every`"):
        compose_tiny("gated_cross_attention", every=9)
