"""``modalign merge`` of LoRA folders: exact products, peft's ways by name, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def base(llm_folder: Callable[..., Path]) -> Path:
    return llm_folder("llama")


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of unequal ranks and scalings; the second changes one more kind of layer, one by rsLoRA."""
    place = tmp_path_factory.mktemp("adapters")
    made = {
        "a": LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"],
                        rank_pattern={"layers.1.self_attn.q_proj": 3}),
        "b": LoraConfig(r=4, lora_alpha=2, target_modules=["q_proj", "up_proj"], use_rslora=True),
    }  # fmt: skip
    for seed, (name, config) in enumerate(made.items()):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        torch.manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.copy_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(place / name)
    return {name: place / name for name in made}


def added(base: Path, adapter: Path) -> dict[str, Tensor]:
    """What peft itself adds to each weight."""
    before = {
        n: v.clone() for n, v in AutoModelForCausalLM.from_pretrained(base).state_dict().items()
    }
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    after = model.merge_and_unload().state_dict()
    return {n: after[n].double() - before[n].double() for n in before}


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_products_are_added_exactly(
    method: str, base: Path, adapters: dict[str, Path], cli: Run, tmp_path: Path
) -> None:
    given = ("merge", *adapters.values(), "-o", tmp_path / "out", "--method", method)
    code, printed, said = cli(*given, "--weight", "0.5,1.5", "--json")
    assert code == 0, said
    found = json.loads(printed)
    assert found["exact"]
    assert sorted(set(found["ranks"].values())) == [4, 6, 7]  # 4 alone, 2 + 4, 3 + 4
    whole = 2.0 if method == "linear" else 1.0
    a, b = (added(base, each) for each in adapters.values())
    merged = added(base, tmp_path / "out" / "adapter")
    for name, value in merged.items():
        wanted = (0.5 * a[name] + 1.5 * b[name]) / whole
        torch.testing.assert_close(value, wanted, rtol=0, atol=2e-6)
    assert any(bool(value.any()) for value in merged.values())
    assert "exactly the weighted sum" in (tmp_path / "out" / "report.md").read_text()


def test_pefts_way_is_inexact_and_says_so(
    base: Path, adapters: dict[str, Path], cli: Run, tmp_path: Path
) -> None:
    given = (
        "merge",
        adapters["b"],
        f"other={adapters['b']}",
        "-o",
        tmp_path / "out",
        "--base",
        base,
    )
    code, printed, said = cli(*given, "--method", "peft_ties", "--set", "density=0.5", "--json")
    assert code == 0, said
    assert not json.loads(printed)["exact"]
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    code, _, said = cli(*given[:3], "-o", tmp_path / "no", "--base", base, "--method", "peft_tie")
    assert code == 2
    assert "did you mean peft_ties" in said


def test_what_does_not_fit_is_refused(
    base: Path, adapters: dict[str, Path], cli: Run, tmp_path: Path
) -> None:
    def refused(code: int, words: str, *given: Any) -> None:
        got, _, said = cli("merge", *given, "-o", tmp_path / "no")
        assert got == code, said
        assert words in " ".join(said.split()), said
        assert not (tmp_path / "no").exists()

    refused(2, "not all parents are", adapters["a"], base)
    refused(2, "adapters are not merged by 'ties'", *adapters.values(), "--method", "ties")
    refused(2, "is for models", *adapters.values(), "--as", "patch")
    config = json.loads((adapters["a"] / "adapter_config.json").read_text())
    for name, change, words in (
        ("dora", {"use_dora": True}, "is DoRA"),
        ("biased", {"bias": "all"}, "trains biases"),
        ("foreign", {"base_model_name_or_path": "another"}, "merge adapters of one model"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(config | change))
        held = load_file(adapters["a"] / "adapter_model.safetensors")
        save_file(held, folder / "adapter_model.safetensors", {"format": "pt"})
        refused(2, words, adapters["b"], folder)
    held[next(iter(held))][0, 0] = torch.inf
    save_file(held, folder / "adapter_model.safetensors", {"format": "pt"})
    refused(3, "of foreign holds values that are not finite", adapters["a"], folder)
