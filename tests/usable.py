"""One usable thing of every kind that verbs take, tiny, and a call of every verb on them.

A call runs, or would but for what a test spoils: each test changes one thing of a call and leaves the others.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import tiny
import tiny_gguf
from applications import (
    test_bundle,
    test_documents,
    test_fingerprint,
    test_items,
    test_link,
    test_transform,
)
from modalign.applications.entity_linking.linking import Linker
from modalign.applications.fingerprints.data import read_texts
from modalign.applications.fingerprints.fingerprinting import checked
from modalign.index.embedding import embed_data
from modalign.models.export.folder import save_model
from modalign.patches.model_folders import apply_to_folder
from modalign.patches.storage import load_patch, save_patch
from patches.made_patches import FFN, patch_for

# Verb -> its arguments; {name} is a usable thing, OUT a place to write to.
CALLS: dict[str, str] = {
    "app bundle eval": "{catalogue} --llm {llm} --limit 2",
    "app bundle relations": "{catalogue} -o OUT",
    "app bundle run": "{catalogue} --item 0",
    "app bundle train": "{catalogue} --llm {llm} --budget 2samples --factor 1 -o OUT",
    "app documents eval": "{documents} --llm {llm} --limit 1",
    "app documents run": "{documents} --field total --llm {llm}",
    "app fingerprint eval": "{texts}",
    "app fingerprint run": "{prints} {poem}",
    "app fingerprint train": "{texts} -o OUT.json",
    "app items eval": "{items} {photos} --llm {media}",
    "app items run": "{index} a",
    "app items train": "{items} {photos} --llm {media} --budget 2samples --factor 1 -o OUT",
    "app link eval": "{mentions} {entities} --limit 2",
    "app link run": "{mentions} {entities} --linker {linker}",
    "app link train": "{mentions} {entities} -o OUT.json",
    "app transform eval": "{instructions} --llm {llm} --max-tokens 4",
    "app transform run": "sing -o OUT --llm {llm} --max-tokens 4",
    "app transform train": "{instructions} --llm {llm} --budget 2samples --factor 1 -o OUT",
    "ask": "{media} what? --image {picture} --max-new-tokens 2",
    "choose": "{media} what? --image {picture} --option yes --option no",
    "compare": "{config} --methods linear --dry-run --out OUT",
    "data build": "{captions} --from captions --out OUT.jsonl",
    "data curate": "{rows} -o OUT.jsonl --near-text 0.8",
    "data mix": "{mix} --dry-run -o OUT",
    "data probe": "{rows} --dry-run -o OUT --llm {llm} --encoder none",
    "data reformat": "{rows} -o OUT.jsonl",
    "data tables": "{tabled} --out OUT.jsonl",
    "diagnose": "{media} {pictures} --limit 4",
    "distill store": "{llm} {rows} -o OUT",
    "doctor": "{config} --method linear",
    "edit analyze": "{llm} {edits} --facts 1",
    "edit compare": "{llm} {edits} --methods ft --sizes 1 --out OUT",
    "edit run": "{llm} {edits} -o OUT.safetensors --method ft --settings published",
    "edit stats": "{llm} --text {poem} --tokens 16",
    "edit suggest": "{llm} {edits} --text {poem}",
    "embed": "{llm} {rows} -o OUT",
    "eval": "{llm} {rows} --patch {patch} --limit 2 --max-new-tokens 2",
    "export": "{media} -o OUT --data {pictures} --records 1",
    "federate": "{federation} --out OUT",
    "import": "{gguf} -o OUT",
    "merge": "a={llm} b={other} --base {llm} --train {poem} -o OUT",
    "merge adapters": "{adapter} b={adapter} -o OUT",
    "patch apply": "{llm} {patch} -o OUT",
    "patch diff": "{other} {llm} --out OUT.safetensors",
    "patch drop": "{patch} --id 0 --out OUT.safetensors --model {llm}",
    "patch export": "{patch} --out OUT --model {llm}",
    "patch inspect": "{patch} {llm}",
    "patch list": "{llm}",
    "patch merge": "{patch} {patch} --out OUT.safetensors",
    "patch remove": "{patched} --all",
    "patch scale": "{patch} 2 --out OUT.safetensors",
    "patch soup": "{patch} {patch} --out OUT.safetensors",
    "patch sum": "{patch} {patch} --out OUT.safetensors",
    "patch verify": "{patch} {llm}",
    "prune": "{llm} -o OUT --data {poem} --recover none --set rounds=0",
    "tools ask": "what? --image {picture} --llm {llm} --max-tokens 2",
    "tools run": "--image {picture}",
    "train": "{config} --method linear --factor 1 --out OUT",
    "unlearn": "{llm} --forget {forget} --retain {retain} --steps 1 --anyway -o OUT.safetensors",
}


def things(
    folder: Path,
    llm: Path,
    tower: Path,
    compose: Callable[..., Any],
    pictures: Path,
) -> dict[str, Path]:
    """Make one of everything.

    Args:
        folder: for them.
        llm, tower: folders of a tiny language model and a tiny vision tower.
        compose: makes a tiny model with media.
        pictures: a file of records with pictures.
    """
    made = {"llm": llm, "pictures": pictures, "picture": pictures.parent / "0-0.png"}
    made |= _models(folder, llm, compose) | _rows(folder) | _applications(folder, llm)
    parts = {"llm": str(llm), "encoder": {"image": str(tower)}, "feature_layer": -1}
    common: dict[str, Any] = {"parts": parts, "budget": "4samples", "training": {"batch_size": 2}}
    made["config"] = folder / "config.yaml"
    made["config"].write_text(yaml.safe_dump({**common, "data": {"train": str(pictures)}}))
    made["federation"] = folder / "federation.yaml"
    clients = {"by": "column:skill", "held_out": 0.2}
    given = {**common, "data": {"train": str(pictures), "eval": str(pictures)}, "clients": clients}
    made["federation"].write_text(yaml.safe_dump({**given, "rounds": 1, "seeds": 1}))
    made["mix"] = folder / "mix.yaml"
    sources = {"a": str(made["forget"]), "b": str(made["retain"])}
    given = {"model": str(llm), "sources": sources, "budget": "4samples", "seeds": 1}
    made["mix"].write_text(yaml.safe_dump(given))
    return made


def _models(folder: Path, llm: Path, compose: Callable[..., Any]) -> dict[str, Path]:
    other, adapter, patched = (folder / name for name in ("other", "adapter", "patched"))
    shutil.copytree(llm, other)
    model = AutoModelForCausalLM.from_pretrained(llm)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[:2] += 0.5
    model.save_pretrained(other)
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(llm), lora).save_pretrained(adapter)
    media = folder / "media"
    composed, processor = compose("linear")
    save_model(composed, processor, media)
    found = {"other": other, "adapter": adapter, "media": media}
    found["gguf"] = tiny_gguf.write_gguf(llm, folder / "tiny.gguf")
    plain = AutoModelForCausalLM.from_pretrained(llm)
    found["patch"] = folder / "patch.safetensors"
    save_patch(patch_for(plain, [FFN["llama"].format(0)], "low_rank"), found["patch"])
    apply_to_folder(llm, [load_patch(found["patch"])], patched, any_tokenizer=True)
    return found | {"patched": patched}


def _rows(folder: Path) -> dict[str, Path]:
    poem = folder / "poem.txt"
    poem.write_text(
        "\n\n".join(f"what is {n} and seven?" for n in ("one", "two", "three", "four") * 3)
    )
    asked = [
        {"id": f"{n}", "question": f"the sport of {name} is", "answer": ("one", "two")[n % 2]}
        for n, name in enumerate("abcdefgh")
    ]
    edits = [
        {"id": str(n), "subject": name, "prompt": f"{name} is", "target": "two", "truth": "one"}
        for n, name in enumerate(("anba", "cedi"))
    ]
    (folder / "t.csv").write_text("year,sales\n2019,7\n2018,9\n")
    tabled = [{"question": "what were sales in 2019?", "table": "t.csv", "answer": "7"}]
    (folder / "c.png").write_bytes(tiny.png_bytes(7))
    captions = [{"image": "c.png", "caption": "a red circle and a blue square"}]
    files = {
        "tabled": tabled,
        "captions": captions,
        "rows": asked,
        "forget": asked[:2],
        "retain": asked[2:],
        "edits": edits,
    }
    found = {name: tiny.write_jsonl(folder / f"{name}.jsonl", own) for name, own in files.items()}
    return found | {"poem": poem}


def _applications(folder: Path, llm: Path) -> dict[str, Path]:
    shop, catalogue = folder / "shop", folder / "catalogue"
    for place in (shop, catalogue):
        place.mkdir()
    items, photos = test_items.shop(shop)
    texts = test_fingerprint.rows({name: name for name in test_fingerprint.WORDS}, documents=6)
    made: dict[str, list[dict[str, Any]]] = {
        "mentions": test_link.MENTIONS, "entities": test_link.BASE, "documents": [test_documents.ROW],
        "texts": texts, "instructions": test_transform.ROWS,
    }  # fmt: skip
    found = {name: tiny.write_jsonl(folder / f"{name}.jsonl", own) for name, own in made.items()}
    found |= {"items": items, "photos": photos, "catalogue": test_bundle.shop(catalogue, 4)}
    found["linker"], found["prints"] = folder / "linker.json", folder / "prints.json"
    found["linker"].write_text(Linker(threshold=0.5).model_dump_json())
    found["prints"].write_text(checked(read_texts([found["texts"]])).model_dump_json())
    named = tiny.write_jsonl(
        folder / "named.jsonl", [{"id": "a", "text": "one"}, {"id": "b", "text": "two"}]
    )
    found["index"] = folder / "index"
    embed_data(llm, str(named), found["index"])
    return found


def words(verb: str, given: dict[str, Path], out: Path) -> list[str]:
    """Return the command line of a verb's call."""
    plain = [part.replace("OUT", str(out)) for part in CALLS[verb].split()]
    return [*verb.removesuffix(" adapters").split(), *(part.format(**given) for part in plain)]
