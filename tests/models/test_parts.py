"""Parts of a language model are found by structure."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiny
from modalign.models.parts import PartNotFoundError, decoder_layers, embedding, hidden_size


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_layers_and_embedding_of_every_family(family: str) -> None:
    model = tiny.language_model(family, 50)
    layers = decoder_layers(model)
    assert len(layers) == tiny.LAYERS
    called: list[int] = []
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, number=number: called.append(number))
    model(torch.tensor([[1, 2, 3]]))
    assert called == [0, 1, 2, 3]
    assert embedding(model).weight.shape == (50, 32)
    assert hidden_size(model) == 32


def test_a_model_without_layers_is_named() -> None:
    with pytest.raises(PartNotFoundError, match="Linear has no list of decoder layers"):
        decoder_layers(nn.Linear(2, 2))
    with pytest.raises(PartNotFoundError, match="Linear has no input embedding"):
        embedding(nn.Linear(2, 2))
    empty = nn.Module()
    empty.blocks = nn.ModuleList([nn.ReLU(), nn.ReLU()])
    with pytest.raises(PartNotFoundError):
        decoder_layers(empty)


def test_two_equal_lists_are_not_guessed_between() -> None:
    model = nn.Module()
    model.left = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
    model.right = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
    with pytest.raises(PartNotFoundError, match=r"left.*right"):
        decoder_layers(model)


def test_lists_inside_layers_are_not_taken_for_the_layers() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(8, 8) for _ in range(6)])

    model = nn.Module()
    model.layers = nn.ModuleList([Layer(), Layer()])
    assert decoder_layers(model) is model.layers
