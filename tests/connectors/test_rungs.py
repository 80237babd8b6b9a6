"""The table of rungs: it names what can be written, and orders it."""

from __future__ import annotations

import pytest

from modalign.connectors import rungs
from modalign.connectors.base import Widths
from modalign.connectors.registry import connectors
from modalign.connectors.rungs import height, native_class, standing_of
from modalign.models.export.native import TARGETS


def standing(name: str, modality: str = "image") -> rungs.Standing:
    return standing_of([(modality, connectors()[name], None)])


@pytest.mark.parametrize("modality", ["image", "audio", "table"])
@pytest.mark.parametrize("name", list(connectors()))
def test_every_class_that_is_named_can_be_written(name: str, modality: str) -> None:
    found = native_class(modality, connectors()[name])
    assert found is None or found in {*TARGETS, rungs.CAUSAL_LM}


def test_where_methods_stand() -> None:
    assert standing("mlp").rung == "native:Llava"
    assert standing("mlp", "audio").rung == "remote-code"
    assert standing("linear", "audio").rung == "native:Qwen2Audio"
    assert standing("stack_mlp", "audio").rung == "native:Voxtral"
    assert standing("idefics_cross_attention").rung == "native:Idefics"
    assert standing("vq_codes", "series").rung == "native:CausalLM"
    assert standing("resampler").rung == "remote-code"


def test_a_class_for_images_takes_a_tower_of_transformers() -> None:
    """A module of the user's own, given by its import path, is no part of a Llava; nor are raw patches."""
    linear = connectors()["linear"]

    class Module:
        """As the module around an import path is: without ``tower``."""

        path = "package.module:Class"

    class Tower:
        tower = object()

    assert standing_of([("image", linear, Tower())]).rung == "native:Llava"
    for modality in ("image", "audio"):
        found = standing_of([(modality, linear, Module())])
        assert (found.rung, "transformers serve" in found.served_by) == ("remote-code", False)


def test_what_serves_them() -> None:
    assert standing("mlp").served_by == (
        "transformers serve",
        "vLLM",
        "vLLM through the gateway",
        "modalign serve",
    )
    assert standing("resampler").served_by == ("vLLM through the gateway", "modalign serve")
    assert standing("ldpv2").served_by[-1] == "llama.cpp"
    inside = standing("gated_cross_attention")
    assert (inside.gateway, inside.served_by) == (False, ("modalign serve",))
    own = standing("idefics_cross_attention")  # vLLM wants the class's own processor
    assert (own.gateway, own.served_by) == (False, ("transformers serve", "modalign serve"))
    assert standing("stack_mlp", "audio").served_by == (
        "transformers serve",
        "vLLM through the gateway",
        "modalign serve",
    )
    tools = standing_of([])
    assert (tools.rung, tools.gateway, tools.served_by) == ("tools", False, ("modalign serve",))


def test_several_modalities_have_no_class_but_codes() -> None:
    known = connectors()
    mixed = [("image", known["mlp"], None), ("audio", known["linear"], None)]
    assert standing_of(mixed).rung == "remote-code"
    codes = [("image", known["vq_codes"], None), ("audio", known["vocabulary_codes"], None)]
    assert standing_of(codes).rung == "native:CausalLM"
    half = [("image", known["mlp"], None), ("audio", known["llama_adapter"], None)]
    assert not standing_of(half).gateway


def test_sound_needs_an_encoder_of_the_form() -> None:
    class Encoder:
        form = "own"

    linear = connectors()["linear"]
    assert native_class("audio", linear, Encoder()) is None
    Encoder.form = "qwen2_audio"
    assert native_class("audio", linear, Encoder()) == "Qwen2Audio"
    stack = connectors()["stack_mlp"]
    assert native_class("audio", stack, Encoder()) is None
    Encoder.form = "voxtral"
    assert native_class("audio", stack, Encoder()) == "Voxtral"
    assert native_class("audio", stack(Widths(8, 8, 4, None), stack=8), Encoder()) is None


def test_rungs_have_an_order() -> None:
    assert height("native:Llava") == height("native:CausalLM") == 0
    assert height("native:Llava") < height("remote-code") < height("tools")
