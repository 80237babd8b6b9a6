"""Image encoders: towers of several families, raw patches, imported modules."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

import tiny
from modalign.encoders.base import EncoderError
from modalign.encoders.image import build
from modalign.errors import UsageError
from modalign.models.encoders.image import load_image_encoder

# kind -> leading tokens that are not patches
EXTRA = {"siglip": 0, "clip": 1, "vit": 1, "dinov2": 5}


@pytest.mark.parametrize("kind", EXTRA)
@pytest.mark.parametrize("layer", [-1, -2])
def test_towers_give_one_feature_per_patch(
    kind: str, layer: int, tower_folder: Callable[..., Path]
) -> None:
    encoder = load_image_encoder(str(tower_folder(kind)), layer=layer).module
    assert (encoder.num_features, encoder.grid, encoder.feature_size) == (16, (4, 4), 24)
    pixels = torch.randn(2, 3, tiny.SIDE, tiny.SIDE)
    reference, _ = tiny.tower(kind)
    with torch.no_grad():
        hidden = reference(pixel_values=pixels, output_hidden_states=True).hidden_states[layer]
        features, _ = encoder(pixels)
    assert torch.equal(features, hidden[:, EXTRA[kind] :])


def test_a_convolutional_tower(tower_folder: Callable[..., Path]) -> None:
    """Its configuration names no image size; its features are maps; its size is the processor's."""
    encoder = load_image_encoder(str(tower_folder("resnet")), layer=-1)
    module = encoder.module
    assert module.num_features == module.grid[0] * module.grid[1]  # type: ignore[index]
    pixels = torch.randn(2, 3, tiny.SIDE, tiny.SIDE)
    reference, _ = tiny.tower("resnet")
    with torch.no_grad():
        maps = reference(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
        features, _ = module(pixels)
    assert module.grid == tuple(maps.shape[2:])
    assert torch.equal(features[:, 1], maps[:, :, 0, 1])
    assert build(encoder.spec).grid == module.grid


def test_size_is_what_the_processor_gives(tmp_path: Path) -> None:
    """DINOv2 is configured for 518 pixels but reads 224: N follows the images it is given."""
    model, processor = tiny.tower("dinov2")
    processor.size = {"height": 48, "width": 48}
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    encoder = load_image_encoder(str(tmp_path), layer=-1)
    assert (encoder.module.num_features, encoder.module.grid) == (36, (6, 6))
    pixels = encoder.processor(images=[tiny.picture(0)], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        assert encoder.module(pixels)[0].shape == (1, 36, 24)


def test_the_tower_of_a_two_tower_model(tmp_path: Path) -> None:
    model, processor = tiny.tower("clip")
    text = CLIPTextConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    whole = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=model.config.to_dict()))
    whole.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    encoder = load_image_encoder(str(tmp_path), layer=-1).module
    pixels = torch.randn(1, 3, tiny.SIDE, tiny.SIDE)
    with torch.no_grad():
        hidden = whole.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states
        assert torch.equal(encoder(pixels)[0], hidden[-1][:, 1:])


def test_weights_that_are_missing_are_not_drawn_at_random(tmp_path: Path) -> None:
    model, processor = tiny.tower("siglip")
    state = {k: v for k, v in model.state_dict().items() if "layers.1." not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    processor.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"weights lack .*layers\.1\."):
        load_image_encoder(str(tmp_path))


def test_raw_patches_against_a_loop() -> None:
    encoder = load_image_encoder("none", image_size=24, patch_size=8).module
    pixels = torch.randn(2, 3, 24, 24)
    features, _ = encoder(pixels)
    assert features.shape == (2, 9, 192) == (2, encoder.num_features, encoder.feature_size)
    for row in range(3):
        for column in range(3):
            patch = pixels[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            assert torch.equal(features[:, 3 * row + column], patch.flatten(1))
    assert encoder.grid == (3, 3)
    wide = build({"kind": "patches", "patch_size": 4, "image_size": [8, 12]})
    assert wide.grid == (2, 3)
    assert wide(torch.zeros(1, 3, 8, 12))[0].shape[1] == wide.num_features == 6


class Sequenced(nn.Module):
    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.map = nn.Linear(3, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x[:, :, ::8, ::8].flatten(2).transpose(1, 2))


class Maps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::4, ::16]


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Tuples(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x,)


NOT_A_MODULE = dict


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(sys.modules, "users_own_encoders", sys.modules[__name__])
    return "users_own_encoders"


def test_imported_modules(here: str) -> None:
    encoder = load_image_encoder(f"{here}:Sequenced", image_size=32, options={"width": 7})
    assert encoder.module(torch.randn(2, 3, 32, 32))[0].shape == (2, 16, 7)
    assert (encoder.module.grid, encoder.module.feature_size) == ((4, 4), 7)
    # Maps of another shape than square keep it: 8 x 2 are 16 features, not a grid of 4 x 4.
    maps = load_image_encoder(f"{here}:Maps", image_size=32).module
    pixels = torch.randn(1, 3, 32, 32)
    assert (maps.grid, maps.num_features) == ((8, 2), 16)
    assert torch.equal(maps(pixels)[0][0, 3], pixels[0, :, 4, 16])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("users_own_encoders:Flat", r"Flat gave \(1, 3\), not \(n, N, d\)"),
        ("users_own_encoders:Tuples", r"Tuples gave tuple, not"),
        ("users_own_encoders:NOT_A_MODULE", r"is not a torch\.nn\.Module"),
        ("users_own_encoders:Missing", r"cannot be imported .* give package\.module:Class"),
        ("no_such_package_here:Class", r"cannot be imported"),
        ("users_own_encoders:", r"cannot be imported"),
        ("./no/such/folder", r"'\./no/such/folder' cannot be loaded"),
    ],
)
def test_bad_names(name: str, message: str, here: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_image_encoder(name)


def test_bad_arguments(here: str, llm_folder: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"cannot be created: .*height"):
        load_image_encoder(f"{here}:Sequenced", options={"height": 7})
    with pytest.raises(UsageError, match="do not tile an image of 30 x 30"):
        load_image_encoder(None, image_size=30, patch_size=8)
    with pytest.raises(UsageError):  # a language model is no image encoder
        load_image_encoder(str(llm_folder("llama")))
    with pytest.raises(EncoderError, match="unknown encoder kind 'sound'"):
        build({"kind": "sound"})


def test_a_layer_that_is_not_there(tower_folder: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="siglip"):
        load_image_encoder(str(tower_folder("siglip")), layer=9)
