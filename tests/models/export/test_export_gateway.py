"""A gateway's embeddings, given to the plain language model, are the composed model's prompt."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import every_modality
import tiny
from modalign.connectors.base import InLayerConnector
from modalign.connectors.registry import connectors
from modalign.errors import ModalignError, UsageError
from modalign.models.asking import conversation_of
from modalign.models.export import (
    Expected,
    observe,
    save_model,
    verify_in_clean_process,
)
from modalign.models.export.gateway import load_gateway, save_gateway, save_language_model
from modalign.models.probe import prepare

transformers.utils.logging.disable_progress_bar()

Compose = Callable[..., Any]
NEW = 4  # greedy tokens
PREFIX = [name for name, cls in connectors().items() if not issubclass(cls, InLayerConnector)]
ALL, WHOLE = "six modalities", "six modalities, whole"


def asked(*parts: Any) -> list[dict[str, Any]]:
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": tiny.picture(part)}
        for part in parts
    ]
    return [{"role": "user", "content": content}]


TALKS = [asked(0, "what is it?"), asked("left: ", 1, " right: ", 2, " which?"), asked("hi")]


@dataclass
class Case:
    folder: Path
    plain: Path
    model: Any
    processor: Any
    talks: list[Any]
    seen: dict[str, Any]


@pytest.fixture(scope="module")
def cases(
    compose_tiny: Compose,
    llm_folder: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Case]:
    root = tmp_path_factory.mktemp("gateways")
    made: dict[str, Case] = {}
    families = dict.fromkeys(PREFIX, "llama") | {"mlp": "gemma", "linear": "gpt2"}
    for name in [*PREFIX, ALL]:
        talks: list[Any] = TALKS
        if name == ALL:
            model, processor, _ = every_modality.composed(str(llm_folder()), connectors="linear")
            records = [every_modality.record(*every_modality.OPTIONS, row=row) for row in (1, 2)]
            records += [every_modality.record(m, row=3) for m in ("audio", "table", "vectors")]
            talks = [conversation_of(record, processor) for record in records]
        else:
            model, processor = compose_tiny(name, families[name])
        folder, plain = root / name / "gateway", root / name / "plain"
        folder.mkdir(parents=True)
        save_gateway(model, processor, folder)
        save_language_model(model, processor, plain)
        seen = observe(model, processor, talks, NEW)
        made[name] = Case(folder, plain, model, processor, talks, seen)
    return made


def expected(case: Case) -> Expected:
    return Expected(
        case.folder,
        case.talks,
        case.seen,
        max_new_tokens=NEW,
        form="gateway",
        language_model=case.plain,
    )


@pytest.fixture(scope="module")
def clean(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """All gateways, and the whole model of six modalities with its own code, in one process."""
    whole = save_model(cases[ALL].model, cases[ALL].processor, tmp_path_factory.mktemp("whole"))
    asked = [expected(case) for case in cases.values()]
    asked.append(Expected(whole.folder, cases[ALL].talks, cases[ALL].seen, max_new_tokens=NEW))
    return dict(zip([*cases, WHOLE], verify_in_clean_process(asked), strict=True))


@pytest.mark.parametrize("name", [*PREFIX, ALL, WHOLE])
def test_without_modalign_the_plain_model_answers_the_same(
    name: str, clean: dict[str, float]
) -> None:
    assert clean[name] <= 1e-5


@pytest.mark.parametrize("name", ["resampler", "mlp", "linear", ALL])
def test_embeddings_are_the_composed_models_prompt(name: str, cases: dict[str, Case]) -> None:
    case = cases[name]
    gateway = load_gateway(case.folder)
    plain = AutoModelForCausalLM.from_pretrained(case.plain).eval()
    for talk in case.talks:
        prompt = gateway.encode(copy.deepcopy(talk))
        inputs = prepare(case.processor, [copy.deepcopy(talk)])
        with torch.no_grad():
            ours = case.model(**inputs).logits[0]
            theirs = plain(inputs_embeds=prompt.embeddings[None]).logits[0]
        assert prompt.ids == inputs["input_ids"][0].tolist()
        assert prompt.embeddings.shape == (len(prompt.ids), gateway.language_model["hidden_size"])
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


def test_usage_counts_text_and_media(cases: dict[str, Case]) -> None:
    case = cases["resampler"]
    gateway = load_gateway(case.folder)
    each = case.model.connector("image").num_tokens(tiny.PATCHES)
    none, two = gateway.encode(asked("hi")), gateway.encode(asked(1, "a", 2))
    assert none.media_tokens == {"image": 0}
    assert none.usage == {
        "prompt_tokens": len(none.ids),
        "text_tokens": len(none.ids),
        "media_tokens": 0,
    }
    assert two.media_tokens == {"image": 2 * each}
    assert two.usage["text_tokens"] + two.usage["media_tokens"] == len(two.ids)
    assert gateway.modalities == ["image"]
    assert gateway.generation.suppress_tokens == [case.processor.image_token_id]


def test_the_folder_holds_no_language_model(cases: dict[str, Case]) -> None:
    case = cases["resampler"]
    with safe_open(case.folder / "model.safetensors", "pt") as tensors:
        keys = set(tensors.keys())
        rows = tensors.get_tensor("embedding.weight")
    assert not [key for key in keys if key.startswith("language_model")]
    assert torch.equal(rows, case.model.get_input_embeddings().weight)
    assert "SHA-256" in (case.folder / "README.md").read_text()


def test_an_embedding_with_a_factor_is_kept_with_it(cases: dict[str, Case]) -> None:
    case = cases["mlp"]  # gemma multiplies by the root of its width
    gateway = load_gateway(case.folder)
    width = gateway.language_model["hidden_size"]
    assert gateway.language_model["embedding_factor"] == pytest.approx(width**0.5, rel=1e-3)
    ids = torch.arange(5)
    assert torch.equal(gateway.model.embedding(ids), case.model.get_input_embeddings()(ids))


def test_the_language_model_is_told_by_its_tensors(
    cases: dict[str, Case], llm_folder: Callable[..., Path], tmp_path: Path
) -> None:
    gateway = load_gateway(cases["resampler"].folder)
    gateway.check_language_model(cases["resampler"].plain)
    # The model as it was before a row was added for the placeholder serves as well ...
    original = AutoModelForCausalLM.from_pretrained(llm_folder())
    grown = cases["resampler"].model.get_input_embeddings().num_embeddings
    assert original.get_input_embeddings().num_embeddings == grown - 1
    gateway.check_language_model(llm_folder())
    # ... and one of other values does not.
    with torch.no_grad():
        next(iter(original.parameters()))[0, 0] += 1
    original.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(llm_folder()).save_pretrained(tmp_path / "other")
    with pytest.raises(
        ModalignError, match=r"is not the language model .*embed_tokens.weight differs"
    ):
        gateway.check_language_model(tmp_path / "other")
    with pytest.raises(UsageError, match="cannot be loaded"):
        gateway.check_language_model(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["resampler", "vq_codes"])
def test_another_picture_is_another_prompt(name: str, cases: dict[str, Case]) -> None:
    gateway = load_gateway(cases[name].folder)
    first, second = (gateway.encode(asked(seed, "what is it?")) for seed in (0, 1))
    assert first.ids == second.ids
    assert not torch.allclose(first.embeddings, second.embeddings, atol=1e-2)


def test_in_layer_connectors_are_refused(compose_tiny: Compose, tmp_path: Path) -> None:
    model, processor = compose_tiny("llama_adapter")
    with pytest.raises(UsageError, match=r"'llama_adapter' acts inside .* remote-code"):
        save_gateway(model, processor, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_no_gateway_is_refused(cases: dict[str, Case], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no gateway.*gateway\.json"):
        load_gateway(cases["mlp"].plain)
    folder = cases["mlp"].folder
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    reference = json.loads((tmp_path / "gateway.json").read_text())
    (tmp_path / "gateway.json").write_text(json.dumps(reference | {"format": 99}))
    with pytest.raises(UsageError, match="format 99"):
        load_gateway(tmp_path)
