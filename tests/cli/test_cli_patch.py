"""``modalign patch`` and ``--patch``: what a user does, end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from modalign.hashing import tensor_hash, tokenizer_hash
from modalign.models.asking import tokenizer_of
from modalign.models.export import save_model
from modalign.models.open import open_model
from modalign.patches import load_patch, save_patch, structure_patch
from modalign.patches.changes import DenseChange, SolvedChange
from modalign.patches.cuts import Cut
from modalign.patches.header import BaseTensor, EditRecord, PatchHeader, patch_hash
from modalign.patches.inspection import distance
from modalign.patches.patch import Patch

VERBS = (
    "list",
    "inspect",
    "verify",
    "apply",
    "remove",
    "drop",
    "merge",
    "scale",
    "sum",
    "soup",
    "diff",
    "export",
)


def random_patch(folder: Path, name: str, *, ids: tuple[str, ...], dense: bool = False) -> Patch:
    """A strong random patch of the FFN output of layer 1."""
    model, reader = open_model(folder)
    (tensor,) = [n for n, _ in model.named_parameters()
                 if n.endswith(("h.1.mlp.fc_out.weight", "layers.1.mlp.down_proj.weight"))]  # fmt: skip
    value = model.get_parameter(tensor).detach()
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    d_out, d_in = value.shape
    K, R = (
        torch.randn(d, len(ids), generator=generator, dtype=torch.float64) for d in (d_in, d_out)
    )
    change = SolvedChange(K, K / 0.1, 3 * R, tuple(range(len(ids))))
    edits = tuple(
        EditRecord(id=i, subject=f"S{i}", prompt=f"S{i} is", target=f"t{i}", probability=0.9)
        for i in ids
    )
    header = PatchHeader(
        name=name, method="pmet", model=str(folder), covariance="c", settings={"clamp": 4},
        base={tensor: BaseTensor(sha256=tensor_hash(value), shape=tuple(value.shape))},
        tokenizer=tokenizer_hash(tokenizer_of(reader)), edits=edits,
    )  # fmt: skip
    return Patch(header, {tensor: DenseChange(change.delta()) if dense else change})


@pytest.fixture(scope="module")
def plain(llm_folder: Callable[..., Path]) -> Path:
    """A causal language model without a chat template."""
    folder = llm_folder("gptj").parent / "gptj-plain"
    if not folder.exists():
        AutoModelForCausalLM.from_pretrained(llm_folder("gptj")).save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(llm_folder("gptj"))
        tokenizer.chat_template = None
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def files(plain: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two patches of the plain model."""
    for name, ids in (("one", ("1", "17")), ("two", ("2",))):
        save_patch(random_patch(plain, name, ids=ids), tmp_path / f"{name}.safetensors")
    return tmp_path / "one.safetensors", tmp_path / "two.safetensors"


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_examples_and_exit_codes(cli, verb):
    code, out, _ = cli("patch", verb, "--help")
    assert code == 0
    assert "Example" in out
    assert "Exit codes" in out
    assert f"modalign patch {verb}" in out


def test_apply_list_remove(cli, plain, files, tmp_path):
    one, two = files
    edited = tmp_path / "edited"
    code, out, _ = cli("patch", "apply", plain, one, "-o", edited)
    assert code == 0
    assert "one" in out
    assert patch_hash(load_patch(one))[:12] in out
    code, out, _ = cli("patch", "apply", edited, two, "--json")
    assert [entry["name"] for entry in json.loads(out)["applied"]] == ["one", "two"]
    code, out, _ = cli("patch", "list", edited, "--json")
    assert code == 0
    assert [entry["sha256"] for entry in json.loads(out)["applied"]] == [
        patch_hash(load_patch(path)) for path in files
    ]
    code, out, _ = cli("patch", "remove", edited, "one")
    assert code == 0
    assert "two" in out
    code, out, _ = cli("patch", "remove", edited, "--all")
    assert "has no patches" in out
    assert (edited / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    code, _, err = cli("patch", "remove", edited)
    assert code == 2
    assert "--all" in err
    code, _, err = cli("patch", "apply", plain, one)
    assert code == 2
    assert "-o FOLDER" in err


def test_list_reports_what_is_not_as_logged(cli, plain, files, tmp_path):
    cli("patch", "apply", plain, files[0], "-o", tmp_path / "e")
    (tmp_path / "e" / "model.safetensors").write_bytes((plain / "model.safetensors").read_bytes())
    code, out, err = cli("patch", "list", tmp_path / "e")
    assert code == 3
    assert "one" in out
    assert "does not match its log" in err
    code, out, _ = cli("patch", "list", tmp_path / "e", "--json")
    assert code == 3
    assert "the log says" in json.loads(out)["error"]


def test_an_interrupted_change_is_put_right(cli, plain, files, tmp_path):
    cli("patch", "apply", plain, files[0], "-o", tmp_path / "e")
    log = tmp_path / "e" / "patches" / "log.jsonl"
    log.write_text(log.read_text().splitlines(keepends=True)[0])  # killed before "done"
    code, _, err = cli("patch", "list", tmp_path / "e")
    assert code == 3
    assert "--repair" in err
    code, out, _ = cli("patch", "list", tmp_path / "e", "--repair")
    assert code == 0
    assert "repaired" in out


def test_inspect(cli, plain, files):
    code, out, _ = cli("patch", "inspect", files[0], plain)
    assert code == 0
    for word in ("pmet", "S17 is", "t17", "0.900", "solved", "clamp 4", "fc_out"):
        assert word in out
    code, out, _ = cli("patch", "inspect", files[0], plain, "--json")
    found = json.loads(out)
    (tensor,) = found["tensors"]
    delta = load_patch(files[0]).changes[tensor["name"]].delta()
    weight = load_file(plain / "model.safetensors")[tensor["stored_as"]].double()
    assert tensor["rank"] == torch.linalg.matrix_rank(delta) == 2
    assert tensor["norm"] == pytest.approx(float(delta.norm()), rel=1e-9)
    assert tensor["relative"] == pytest.approx(float(delta.norm() / weight.norm()), rel=1e-9)
    code, out, _ = cli("patch", "inspect", files[0], "--edits", 1)
    assert "and 1 more edits" in out


def test_verify(cli, plain, files, llm_folder, tmp_path):
    code, out, _ = cli("patch", "verify", files[0], plain)
    assert code == 0
    assert patch_hash(load_patch(files[0])) in out
    code, out, _ = cli("patch", "verify", files[0], "--json")
    assert json.loads(out)["whole"] is True
    cli("patch", "apply", plain, files[0], "-o", tmp_path / "e")
    for path in files:  # the one that is in, and one that could be
        assert cli("patch", "verify", path, tmp_path / "e")[0] == 0
    code, _, err = cli("patch", "verify", files[0], llm_folder("llama"))
    assert code == 3
    assert "another model" in err
    content = bytearray(files[0].read_bytes())
    content[-1] ^= 1
    files[0].write_bytes(content)
    code, _, err = cli("patch", "verify", files[0])
    assert code == 3
    assert "changed after it was written" in err
    files[0].write_bytes(content[:99])
    assert cli("patch", "verify", files[0])[0] == 3


def test_another_tokenizer(cli, plain, files, tmp_path):
    patch = load_patch(files[0])
    header = patch.header.model_copy(update={"tokenizer": "0" * 64})
    save_patch(Patch(header, patch.changes), tmp_path / "other.safetensors")
    for verb in (["patch", "verify", tmp_path / "other.safetensors", plain],
                 ["patch", "apply", plain, tmp_path / "other.safetensors", "-o", tmp_path / "e"],
                 ["ask", plain, "yes", "--patch", tmp_path / "other.safetensors"]):  # fmt: skip
        code, _, err = cli(*verb)
        assert code == 3
        assert "another tokenizer" in err
    assert cli(*verb[:0], "patch", "apply", plain, tmp_path / "other.safetensors",
               "-o", tmp_path / "e", "--any-tokenizer")[0] == 0  # fmt: skip


def test_drop_and_merge(cli, files, tmp_path):
    one, two = files
    code, out, _ = cli("patch", "drop", one, "--id", "17")
    assert code == 0
    assert "1 edits" in out
    smaller = load_patch(tmp_path / "one-without-17.safetensors")
    assert [edit.id for edit in smaller.header.editing.edits] == ["1"]
    code, _, err = cli("patch", "drop", one, "--id", "17")
    assert code == 2
    assert "exists already" in err
    code, _, err = cli("patch", "drop", one, "--id", "99", "-o", tmp_path / "x")
    assert code == 2
    assert "it has 1, 17" in err
    code, out, _ = cli("patch", "merge", one, two, "-o", tmp_path / "both.safetensors", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["edits"] == ["1", "17", "2"]
    assert "joint solve" in found["history"]
    both = load_patch(tmp_path / "both.safetensors")
    assert both.header.name == "both"
    cli("patch", "drop", tmp_path / "both.safetensors", "--id", "2", "-o", tmp_path / "again")
    assert max(distance(load_patch(tmp_path / "again"), load_patch(one)).values()) < 1e-9


def test_export(cli, plain, files, tmp_path):
    code, out, _ = cli("patch", "export", files[0], "-o", tmp_path / "lora", "--model", plain)
    assert code == 0
    assert "logits within" in out
    model, _ = open_model(plain)
    expected = model + load_patch(files[0])
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        wanted = expected(input_ids=ids).logits
        found = PeftModel.from_pretrained(model, str(tmp_path / "lora"))(input_ids=ids).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    dense = random_patch(plain, "dense", ids=("1", "2"), dense=True)
    save_patch(dense, tmp_path / "dense.safetensors")
    code, _, err = cli("patch", "export", tmp_path / "dense.safetensors", "-o", tmp_path / "l2")
    assert code == 2
    assert "--max-error" in err
    code, out, _ = cli("patch", "export", tmp_path / "dense.safetensors", "-o", tmp_path / "l2",
                       "--max-error", "0.01", "--json")  # fmt: skip
    assert code == 0
    assert list(json.loads(out)["ranks"].values()) == [2]


def test_ask_a_plain_language_model_with_and_without_a_patch(cli, plain, files):
    weights = (plain / "model.safetensors").read_bytes()
    answers = {}
    for name, options in (("plain", []), ("patched", ["--patch", files[0]]),
                          ("both", ["--patch", files[0], "--patch", files[1]])):  # fmt: skip
        code, out, _ = cli("ask", plain, "which digit is seven", "--json", *options,
                           "--max-new-tokens", 6)  # fmt: skip
        assert code == 0
        answers[name] = json.loads(out)["answer"]
    assert len(set(answers.values())) == 3
    assert (plain / "model.safetensors").read_bytes() == weights
    model, tokenizer = open_model(plain)
    patched = model + load_patch(files[0])
    ids = tokenizer("which digit is seven", return_tensors="pt")["input_ids"]
    made = patched.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    expected = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert answers["patched"] == expected
    code, _, err = cli("ask", plain, "x", "--patch", plain / "model.safetensors")
    assert code == 3
    assert "not a modalign patch" in err


def test_a_language_model_takes_no_image_and_uses_its_template(cli, plain, llm_folder, tmp_path):
    (tmp_path / "a.png").write_bytes(tiny.png_bytes(1))
    code, _, err = cli("ask", plain, "what?", "--image", tmp_path / "a.png")
    assert code == 2
    assert "text only" in err
    folder = llm_folder("gptj")
    code, out, _ = cli("ask", folder, "what is seven?", "--max-new-tokens", 5)
    assert code == 0
    model, tokenizer = open_model(folder)
    talk = [{"role": "user", "content": "what is seven?"}]
    ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt",
                                        return_dict=True)["input_ids"]  # fmt: skip
    made = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert (
        out.strip() == tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip()
    )


def test_eval_and_ask_of_a_multimodal_model_with_a_patch(cli, compose_tiny, small_data, tmp_path):
    model, processor = compose_tiny("mlp")
    save_model(model, processor, tmp_path / "m")
    patch = random_patch(tmp_path / "m", "vision", ids=("1", "2"))
    save_patch(patch, tmp_path / "p.safetensors")
    answers = {}
    for name, options in (("plain", []), ("patched", ["--patch", tmp_path / "p.safetensors"])):
        out_file = tmp_path / f"{name}.jsonl"
        code, out, _ = cli("eval", tmp_path / "m", small_data / "data.jsonl", "--limit", 6, "--json",
                           "--max-new-tokens", 3, "--out", out_file, *options)  # fmt: skip
        assert code == 0
        assert json.loads(out)["patches"] == [f"vision ({patch_hash(patch)})"] * len(options[:1])
        answers[name] = [json.loads(line)["output"] for line in out_file.read_text().splitlines()]
    assert answers["plain"] != answers["patched"]
    cli("patch", "apply", tmp_path / "m", tmp_path / "p.safetensors", "-o", tmp_path / "edited")
    out_file = tmp_path / "edited.jsonl"
    cli("eval", tmp_path / "edited", small_data / "data.jsonl", "--limit", 6, "--max-new-tokens", 3,
        "--out", out_file)  # fmt: skip
    edited = [json.loads(line)["output"] for line in out_file.read_text().splitlines()]
    assert edited == answers["patched"]


def test_eval_of_a_plain_language_model(cli, plain, files, tmp_path):
    rows = [{"id": str(i), "messages": [{"role": "user", "content": f"what is {w}"},
                                        {"role": "assistant", "content": "seven"}]}
            for i, w in enumerate(("one", "two and two", "six"))]  # fmt: skip
    data = tiny.write_jsonl(tmp_path / "text.jsonl", rows)
    out_file = tmp_path / "answers.jsonl"
    code, out, _ = cli("eval", plain, data, "--json", "--out", out_file, "--patch", files[0],
                       "--max-new-tokens", 4, "--batch-size", 2)  # fmt: skip
    assert code == 0
    assert json.loads(out)["overall"]["measures"]["accuracy"]["n"] == 3
    for row, line in zip(rows, out_file.read_text().splitlines(), strict=True):
        text = row["messages"][0]["content"]
        code, out, _ = cli("ask", plain, text, "--patch", files[0], "--max-new-tokens", 4)
        assert out.strip() == json.loads(line)["output"]


def test_scale_sum_and_soup(cli, plain, files, tmp_path):
    one, two = (load_patch(path) for path in files)
    (name,) = one.changes
    first, second = (patch.changes[name].delta() for patch in (one, two))
    half, total, mixed = (tmp_path / f"{each}.safetensors" for each in ("half", "sum", "soup"))
    code, out, _ = cli("patch", "scale", files[0], "0.5", "-o", half)
    assert code == 0
    assert "scaled one" in out
    torch.testing.assert_close(load_patch(half).changes[name].delta(), 0.5 * first)
    code, *_ = cli("patch", "scale", "-o", tmp_path / "minus.safetensors", "--", files[0], "-1")
    assert code == 0
    torch.testing.assert_close(
        load_patch(tmp_path / "minus.safetensors").changes[name].delta(), -first
    )
    weights = ("--weight", "0.7", "--weight", "-0.3")
    code, out, _ = cli("patch", "sum", *files, *weights, "-o", total, "--json")
    assert code == 0
    assert json.loads(out)["sha256"] == patch_hash(load_patch(total))
    code, out, _ = cli("patch", "soup", *files, *weights, "-o", mixed)
    assert code == 0
    for path in (total, mixed):
        found = load_patch(path).changes[name].delta()
        torch.testing.assert_close(found, 0.7 * first - 0.3 * second)
    code, out, _ = cli("patch", "inspect", mixed)
    assert f"0.7 x one ({patch_hash(one)[:12]})" in out
    assert "weighted" in out
    code, out, _ = cli("ask", plain, "S1 is", "--patch", mixed, "--max-new-tokens", "2")
    assert code == 0
    code, _, err = cli("patch", "sum", *files, "--weight", "1", "-o", tmp_path / "bad.safetensors")
    assert code == 2
    assert "2 patches, 1 weights" in err
    code, _, err = cli("patch", "soup", mixed, files[1], "-o", tmp_path / "bad.safetensors")
    assert code == 3
    assert "is a soup itself" in err
    code, _, err = cli("patch", "scale", files[0], "nan", "-o", tmp_path / "bad.safetensors")
    assert code == 2
    assert not (tmp_path / "bad.safetensors").exists()


def test_diff(cli, plain, files, tmp_path):
    cli("patch", "apply", plain, files[0], "-o", tmp_path / "edited")
    made = tmp_path / "made.safetensors"
    code, out, _ = cli("patch", "diff", tmp_path / "edited", plain, "-o", made)
    assert code == 0
    assert "difference of edited" in out
    cli("patch", "apply", plain, made, "-o", tmp_path / "again")
    again, edited = (
        load_file(tmp_path / each / "model.safetensors") for each in ("again", "edited")
    )
    assert all(torch.equal(again[name], value) for name, value in edited.items())
    code, out, _ = cli("patch", "inspect", made, plain, "--json")
    assert [each["form"] for each in json.loads(out)["tensors"]] == ["dense"]
    code, _, err = cli("patch", "diff", plain, plain, "-o", tmp_path / "none.safetensors")
    assert code == 3
    assert "the same values" in err
    code, _, err = cli(
        "patch", "diff", plain, tmp_path / "edited", "-o", tmp_path / "none.safetensors"
    )
    assert code == 2
    assert "carries the patch" in err
    code, *_ = cli(
        "patch", "diff", tmp_path / "nowhere", plain, "-o", tmp_path / "none.safetensors"
    )
    assert code == 2


def test_a_structure_is_applied_shown_and_removed(cli, llm_folder, tmp_path):
    folder = llm_folder("llama")
    config = json.loads((folder / "config.json").read_text())
    kept = torch.arange(0, config["intermediate_size"], 2)
    cuts = {
        name: Cut((None, kept) if "down_proj" in name else (kept, None), name)
        for name in load_file(folder / "model.safetensors")
        if ".mlp." in name
    }
    configuration = {**config, "intermediate_size": len(kept)}
    structure = structure_patch(folder, cuts, configuration, name="narrow", method="chosen")
    save_patch(structure, tmp_path / "narrow.safetensors")
    code, out, _ = cli("patch", "inspect", tmp_path / "narrow.safetensors", folder)
    assert code == 0
    assert f"{config['hidden_size']} x {len(kept)} kept" in out
    code, out, _ = cli("patch", "verify", tmp_path / "narrow.safetensors", folder)
    assert code == 0
    pruned = tmp_path / "pruned"
    code, out, _ = cli("patch", "apply", folder, tmp_path / "narrow.safetensors", "-o", pruned)
    assert code == 0
    assert AutoModelForCausalLM.from_pretrained(pruned).config.intermediate_size == len(kept)
    code, out, _ = cli("ask", pruned, "S1 is", "--max-new-tokens", "2")
    assert code == 0
    code, out, _ = cli("patch", "verify", tmp_path / "narrow.safetensors", pruned)
    assert code == 0
    code, _, err = cli("patch", "apply", folder, tmp_path / "narrow.safetensors")
    assert code == 2
    assert "-o FOLDER" in err
    code, _, err = cli("ask", folder, "S1 is", "--patch", tmp_path / "narrow.safetensors")
    assert code == 2
    assert "changes shapes" in err
    code, out, _ = cli("patch", "remove", pruned, "narrow")
    assert code == 0
    for name in ("model.safetensors", "config.json"):
        assert (pruned / name).read_bytes() == (folder / name).read_bytes()
