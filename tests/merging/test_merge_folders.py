"""``modalign merge`` on folders: what is aligned with what, bit for bit; what is refused leaves nothing."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

import tiny
from modalign.errors import DataError, UsageError
from modalign.merging.config import MergeConfig
from modalign.merging.run import merge_models
from modalign.models.export import save_model
from modalign.models.saved import open_composed

Run = Callable[..., tuple[int, str, str]]
Folder = Callable[..., Path]

# Options under which a model merged with itself is that model, whatever the weights.
ITSELF: dict[str, dict[str, float]] = {
    "linear": {},
    "slerp": {},
    "ties": {"density": 1.0},
    "sce": {},
    "model_stock": {},
    "dare_ties": {"density": 1.0},
    "dare_linear": {"density": 1.0},
}


CLEAN = ("test_the_verb_end_to_end",)


@pytest.fixture(autouse=True)
def unchecked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the clean process, which one test is about."""
    if request.node.name not in CLEAN:
        monkeypatch.setattr("modalign.merging.run.CleanProcess", tiny.NoProcess)


def changed(source: Path, target: Path, seed: int) -> Path:
    """A model folder whose tensors are all a little different."""
    shutil.copytree(source, target)
    generator = torch.Generator().manual_seed(seed)
    for file in target.glob("*.safetensors"):
        held = load_file(file)
        moved = {n: v + 0.1 * torch.randn(v.shape, generator=generator) for n, v in held.items()}
        save_file(moved, file, {"format": "pt"})
    return target


@pytest.fixture
def two(llm_folder: Folder, tmp_path: Path) -> tuple[Path, Path]:
    """Two language models of one origin."""
    source = llm_folder("llama")
    return changed(source, tmp_path / "a", 1), changed(source, tmp_path / "b", 2)


def merged(out: Path, parents: dict[str, Path], **fields: Any) -> dict[str, torch.Tensor]:
    """Merge, and return the tensors of the written files."""
    named = {name: str(folder) for name, folder in parents.items()}
    merge_models(MergeConfig(parents=named, **fields), out)
    return held(out / "model")


def held(folder: Path) -> dict[str, torch.Tensor]:
    return {n: v for file in folder.glob("*.safetensors") for n, v in load_file(file).items()}


@pytest.mark.parametrize("method", sorted(ITSELF))
def test_a_model_with_itself_is_that_model(
    method: str, two: tuple[Path, Path], llm_folder: Folder, tmp_path: Path
) -> None:
    found = merged(
        tmp_path / "out",
        {"one": two[0], "other": two[0]},
        method=method,
        options=ITSELF[method],
        weight=["0.3,0.45"],
        base=str(llm_folder("llama")),
    )
    assert found
    assert all(torch.equal(value, held(two[0])[name]) for name, value in found.items())


def test_coefficients_of_all_layers_and_of_some(two: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = map(held, two)
    found = merged(
        tmp_path / "out",
        dict(zip("ab", two, strict=True)),
        weight=["0.25", "layers.1.mlp.*=1,0", "embedding=0,3"],
    )
    for name, value in found.items():
        share = 0.25
        share = 0.0 if "layers.1.mlp" in name else 1.0 if "embed_tokens" in name else share
        wanted = (1 - share) * a[name].double() + share * b[name].double()
        torch.testing.assert_close(value.double(), wanted, rtol=0, atol=1e-6)
    assert set(found) == set(a)


def test_shards_stay_shards_and_the_result_is_the_same(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    whole = merged(tmp_path / "whole", dict(zip("ab", two, strict=True)))
    model = LlamaForCausalLM.from_pretrained(two[0])
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    shutil.copy(two[0] / "tokenizer.json", tmp_path / "shards")
    shutil.copy(two[0] / "tokenizer_config.json", tmp_path / "shards")
    found = merged(tmp_path / "out", {"a": tmp_path / "shards", "b": two[1]})
    files = sorted(path.name for path in (tmp_path / "out/model").glob("*.safetensors"))
    assert files == sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 2
    assert all(torch.equal(value, whole[name]) for name, value in found.items())
    (tmp_path / "shards" / files[1]).unlink()
    with pytest.raises(DataError, match=files[1]):
        merged(tmp_path / "gone", {"a": tmp_path / "shards", "b": two[1]})


# ---------------------------------------------------------------------- a multimodal model and its language model


@pytest.fixture
def llava(llm_folder: Folder, tmp_path: Path) -> Path:
    """A LLaVA around the tiny Llama, with one more token for pictures."""
    source = llm_folder("llama")
    language = LlamaForCausalLM.from_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<picture>"]})
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    vision = SiglipVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=tiny.SIDE, patch_size=tiny.PATCH,
    )  # fmt: skip
    config = LlavaConfig(
        text_config=language.config.to_dict(),
        vision_config=vision.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<picture>"),
    )
    torch.manual_seed(1)
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    folder = tmp_path / "llava"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_llava_and_its_language_model(llava: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    parents = {"llava": llava, "text": two[1]}
    with pytest.raises(
        UsageError, match=r"not in every parent: model\.multi_modal.*--assign llava"
    ):
        merged(tmp_path / "no", parents)
    assert not (tmp_path / "no").exists()
    merged(tmp_path / "out", parents, weight=["0.25"], assign=["llava"])
    found = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out/model")
    whole = LlavaForConditionalGeneration.from_pretrained(llava)
    text = LlamaForCausalLM.from_pretrained(two[1])
    ours, theirs = whole.model.language_model.state_dict(), text.model.state_dict()
    assert set(ours) == set(theirs)
    for name, value in found.model.language_model.state_dict().items():
        rows = len(theirs[name])
        wanted = 0.75 * ours[name][:rows].double() + 0.25 * theirs[name].double()
        torch.testing.assert_close(value[:rows].double(), wanted, rtol=0, atol=1e-6)
        assert torch.equal(value[rows:], ours[name][rows:])  # the picture's row is LLaVA's own
    head = 0.75 * whole.lm_head.weight[: len(text.lm_head.weight)] + 0.25 * text.lm_head.weight
    torch.testing.assert_close(found.lm_head.weight[: len(head)], head)
    for part in ("vision_tower", "multi_modal_projector"):
        for name, value in getattr(found.model, part).state_dict().items():
            assert torch.equal(value, getattr(whole.model, part).state_dict()[name])


def test_a_modalign_model_and_its_language_model(
    compose_tiny: Callable[..., Any], two: tuple[Path, Path], tmp_path: Path
) -> None:
    model, processor = compose_tiny("mlp")
    own = tmp_path / "own"
    save_model(model, processor, own, target="remote-code")
    parents = {"own": own, "text": two[1]}
    with pytest.raises(UsageError, match=r"not in every parent.*--assign own"):
        merged(tmp_path / "no", parents)
    found = merged(tmp_path / "out", parents, weight=["0.25"], assign=["own"])
    whole, text = held(own), held(two[1])
    assert set(found) == set(whole)
    for name, value in found.items():
        other = text.get(name.removeprefix("language_model."))
        if other is None:
            assert torch.equal(value, whole[name])  # encoder and connector
            continue
        rows = len(other)
        wanted = 0.75 * whole[name][:rows].double() + 0.25 * other.double()
        torch.testing.assert_close(value[:rows].double(), wanted, rtol=0, atol=1e-6)
        assert torch.equal(value[rows:], whole[name][rows:])
    again = open_composed(tmp_path / "out" / "model")
    assert not again.plain


def test_llava_with_itself_under_old_names_is_that_model(llava: Path, tmp_path: Path) -> None:
    """Files of older versions have other names for the same tensors."""
    again = tmp_path / "again"
    shutil.copytree(llava, again)
    old = {
        name.replace("language_model.model.", "model.language_model.").replace("language_model.lm_head", "lm_head")
        .replace("vision_tower.", "model.vision_tower."): value
        for name, value in held(llava).items()
    }  # fmt: skip
    assert set(old) != set(held(llava))
    save_file(old, again / "model.safetensors", {"format": "pt"})
    found = merged(tmp_path / "out", {"new": llava, "old": again})
    assert all(torch.equal(value, held(llava)[name]) for name, value in found.items())


# ---------------------------------------------------------------------- vocabularies


def renumbered(source: Path, target: Path, rename: dict[str, str]) -> Path:
    """A model whose tokenizer calls rows otherwise."""
    shutil.copytree(source, target)
    values = json.loads((target / "tokenizer.json").read_text())
    vocab = values["model"]["vocab"]
    for first, second in rename.items():
        if second in vocab:
            vocab[first], vocab[second] = vocab[second], vocab[first]
        else:
            vocab[second] = vocab.pop(first)
    (target / "tokenizer.json").write_text(json.dumps(values))
    return target


def test_rows_are_mapped_by_token_string_or_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    ids = AutoTokenizer.from_pretrained(two[0]).get_vocab()
    first, second = sorted(ids, key=lambda text: ids[text])[20:22]
    other = renumbered(two[1], tmp_path / "other", {first: second})
    parents = {"a": two[0], "other": other}
    with pytest.raises(UsageError, match=r"2 tokens have other ids.*--tokens map"):
        merged(tmp_path / "no", parents)
    assert not (tmp_path / "no").exists()
    found = merged(tmp_path / "out", parents, tokens="map")
    a, b = map(held, two)
    name = next(each for each in a if "embed_tokens" in each)
    swapped = b[name].clone()
    swapped[[ids[first], ids[second]]] = b[name][[ids[second], ids[first]]]
    torch.testing.assert_close(found[name], (a[name] + swapped) / 2)


# ---------------------------------------------------------------------- refusals


def test_other_widths_depths_and_architectures_are_refused_by_name(
    two: tuple[Path, Path], llm_folder: Folder, tmp_path: Path
) -> None:
    wide, deep = (LlamaForCausalLM.from_pretrained(two[0]).config for _ in range(2))
    wide.intermediate_size, deep.num_hidden_layers = 64, 3
    for name, config in (("wide", wide), ("deep", deep)):
        LlamaForCausalLM(config).save_pretrained(tmp_path / name)
        for file in two[0].glob("tokenizer*"):
            shutil.copy(file, tmp_path / name)

    def refused(other: Path, words: str) -> None:
        with pytest.raises(UsageError, match=words):
            merged(tmp_path / "out", {"a": two[0], "other": other})
        assert not (tmp_path / "out").exists()

    refused(tmp_path / "wide", r"layers\.0\.mlp\.\w+\.weight has the shape .* same widths")
    refused(tmp_path / "deep", r"9 tensors are not in every parent: layers\.3\.")
    refused(llm_folder("gpt2"), "match nothing")


def test_values_that_are_not_finite_name_tensor_and_parent_and_leave_nothing(
    two: tuple[Path, Path], cli: Run, tmp_path: Path
) -> None:
    values = held(two[1])
    values["model.layers.2.mlp.up_proj.weight"][3, 1] = torch.nan
    save_file(values, two[1] / "model.safetensors", {"format": "pt"})
    code, _, said = cli("merge", *two, "-o", tmp_path / "out")
    assert code == 3
    assert "layers.2.mlp.up_proj.weight of b holds values that are not finite" in said
    assert not list((tmp_path / "out").glob("*model*"))
    assert not list((tmp_path / "out").glob(".model*"))


def test_a_full_disk_leaves_nothing_and_resume_goes_on(
    two: tuple[Path, Path], cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def full(value: torch.Tensor) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr("modalign.merging.writing.little_endian", full)
        code, _, said = cli("merge", *two, "-o", out)
    assert code == 1
    assert "No space left" in said
    assert not (out / "model").exists()
    killed = out / ".model.0123abcd.part" / "new"  # what kill -9 leaves
    killed.mkdir(parents=True)
    (killed / "model.safetensors").write_bytes(b"half")
    code, _, said = cli("merge", *two, "-o", out)
    assert code == 2
    assert "--resume" in said
    code, printed, said = cli("merge", *two, "-o", out, "--resume", "--json")
    assert code == 0, said
    assert not killed.exists()
    assert json.loads(printed)["chosen"] == "linear"
    torch.testing.assert_close(
        held(out / "model")["model.norm.weight"],
        sum(held(each)["model.norm.weight"] for each in two) / 2,
    )


def test_the_verb_end_to_end(cli: Run, two: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, said = cli("merge", *two, "-o", out, "--dry-run")
    assert code == 0, said
    assert "39 tensors are merged" in printed
    assert not out.exists()
    code, printed, said = cli("merge", *two, "-o", out, "--json")
    assert code == 0, said
    found = json.loads(printed)
    assert found["tensors"] == len(held(two[0])) == 39
    assert found == json.loads((out / "report.json").read_text())
    assert "a + b by linear" in (out / "report.md").read_text()
    assert (out / "report.html").exists()
    for words, given in {
        "did you mean ties": ("--method", "tie"),
        "--base": ("--method", "ties"),
        "matches this pattern": ("--weight", "layer.*=1,2"),
        "3 numbers for 2 parents": ("--weight", "1,2,3"),
        "is none of the parents": ("--assign", "c"),
        "add up to 0": ("--weight", "1,-1"),
        "there are none": ("--set", "density=0.1"),
    }.items():
        code, _, said = cli("merge", *two, "-o", tmp_path / "new", *given)
        assert code == 2, said
        assert words in " ".join(said.split()), said
    assert not (tmp_path / "new").exists()
