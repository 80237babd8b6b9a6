"""Are the merges mergekit's? linear, ties, model stock of text-only parents, to 1e-6; a LLaVA with its Llama.

make oracles        # makes mergekit's environment, then runs: python -m bench.oracles.merging PYTHON
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

from modalign.merging.config import MergeConfig
from modalign.merging.run import merge_models
from modalign.starter.language import build_tokenizer

TOLERANCE = 1e-6
TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
METHODS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "linear": ({}, ["0.3,0.7"]),
    "ties": ({"density": 0.5}, ["0.4,0.6"]),
    "model_stock": ({}, []),
}


def models(place: Path) -> dict[str, Path]:
    """Make a base, two parents and a LLaVA around the first parent, each with a tokenizer."""
    tokenizer = build_tokenizer()
    text = LlamaConfig(**TEXT, vocab_size=len(tokenizer), tie_word_embeddings=False)
    torch.manual_seed(0)
    base = LlamaForCausalLM(text)
    made: dict[str, Any] = {"base": base}
    for name in ("a", "b"):
        made[name] = LlamaForCausalLM(text)
        made[name].load_state_dict(base.state_dict())
        with torch.no_grad():
            for parameter in made[name].parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    config = LlavaConfig(text_config=text.to_dict(), vision_config=VISION | {"model_type": "siglip_vision_model"},
                         image_token_index=len(tokenizer) - 1)  # fmt: skip
    made["llava"] = LlavaForConditionalGeneration(config)
    made["llava"].model.language_model.load_state_dict(made["a"].model.state_dict())
    for name, model in made.items():
        model.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    assert SiglipVisionConfig(**VISION)
    return {name: place / name for name in made}


def theirs(
    python: str, folders: dict[str, Path], method: str, names: tuple[str, str], out: Path
) -> str:
    """Run mergekit's merge; return the last line of its error if it failed."""
    options, weights = METHODS[method]
    shares = [float(share) for share in (weights[0].split(",") if weights else ("1", "1"))]
    recipe: dict[str, Any] = {
        "merge_method": method,
        "dtype": "float32",
        "models": [
            {"model": str(folders[name]), "parameters": {"weight": share, **options}}
            for name, share in zip(names, shares, strict=True)
        ],
    }
    if method != "linear":
        recipe["base_model"] = str(folders["base"])
    file = out.with_suffix(".yaml")
    file.write_text(json.dumps(recipe))
    done = subprocess.run(
        [str(Path(python).with_name("mergekit-yaml")), str(file), str(out), "--quiet"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"},
    )
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def held(folder: Path) -> dict[str, Tensor]:
    return {
        n: v for file in sorted(folder.glob("*.safetensors")) for n, v in load_file(file).items()
    }


def main(python: str) -> int:
    """Compare, and return 1 if something differs."""
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        folders = models(place)
        for method, (options, weight) in METHODS.items():
            parents = {each: str(folders[each]) for each in "ab"}
            config = MergeConfig(
                parents=parents,
                base=str(folders["base"]),
                method=method,
                options=options,
                weight=weight,
            )
            merge_models(config, place / f"ours-{method}")
            ours = held(place / f"ours-{method}" / "model")
            if problem := theirs(python, folders, method, ("a", "b"), place / f"theirs-{method}"):
                print(f"{method}: mergekit failed: {problem}")
                bad = 1
                continue
            other = held(place / f"theirs-{method}")
            gap = max(
                float((ours[each].double() - other[each].double()).abs().max()) for each in ours
            )
            same = set(ours) == set(other) and gap <= TOLERANCE
            bad |= not same
            print(
                f"{method}: {len(ours)} tensors, largest difference {gap:.1e}: {'equal' if same else 'NOT equal'}"
            )
        pair = {each: str(folders[each]) for each in ("llava", "b")}
        merge_models(
            MergeConfig(parents=pair, weight=["0.3,0.7"], assign=["llava"]), place / "ours-llava"
        )
        ours, own, text = (
            held(each) for each in (place / "ours-llava" / "model", folders["llava"], folders["b"])
        )
        wrong = [
            each for each, value in ours.items()
            if not torch.allclose(value, 0.3 * own[each] + 0.7 * text[each.removeprefix("language_model.")]
                                  if each.startswith("language_model.") else own[each], atol=TOLERANCE)
        ]  # fmt: skip
        bad |= bool(wrong)
        print(f"LLaVA + Llama, modalign: {len(ours)} of {len(own)} tensors, {len(wrong)} wrong")
        problem = theirs(python, folders, "linear", ("llava", "b"), place / "theirs-llava")
        count = len(held(place / "theirs-llava")) if (place / "theirs-llava").is_dir() else 0
        print(
            f"LLaVA + Llama, mergekit: {f'failed: {problem}' if problem else 'exit code 0'}, {count} of "
            f"{len(own)} tensors"
        )
    return int(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
