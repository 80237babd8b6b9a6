"""Edits with pictures: rows, lookup tokens, key statistics, patches and measures, on tiny random models."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from modalign.data.corpus import Corpus
from modalign.editing.benchmarks.multimodal import evaluate_multimodal, probes_of
from modalign.editing.computation import Options
from modalign.editing.edits import Edit, Neighbour
from modalign.editing.engine.asking import Asking
from modalign.editing.engine.covariance import collect, collect_rows, combined
from modalign.editing.engine.forward import Row, logits_at
from modalign.editing.engine.keys import read_keys
from modalign.editing.engine.lookups import look_up
from modalign.editing.engine.requests import Request, owners
from modalign.editing.engine.rewriting import Rewriter, Rewriting
from modalign.editing.engine.spec import ModelSpec, SpecError
from modalign.editing.methods import FT, MEMIT, FTConfig, MEMITConfig
from modalign.editing.multimodal.eyes import Eyes
from modalign.editing.multimodal.pictures import PictureRows, Pictures, read_pictures
from modalign.editing.multimodal.variants import MOST, variants
from modalign.editing.readers import read_edits
from modalign.errors import DataError, UsageError
from modalign.models.export import save_model
from modalign.models.open import open_model
from modalign.patches import drop, load_patch, save_patch, view

QUESTION = "is the digit even or odd?"
TEXTS = Corpus("texts", [f"after {word} comes one. is it even or odd?" for word in "abcdefgh"] * 8)
CONFIG = MEMITConfig(
    layers=(1, 2),
    lookup="last",
    clamp=6.0,
    lr=0.5,
    steps=60,
    decay=0.0,
    contexts=(),
    covariance_weight=0.5,
    tokens=400,
)


@pytest.fixture(params=["modalign", "llava"])
def pair(request: pytest.FixtureRequest, compose_tiny: Any, tmp_path: Path) -> tuple[Any, Any]:
    """A modalign prefix model, or a transformers LLaVA, with its processor."""
    model, processor = compose_tiny("resampler" if request.param == "modalign" else "mlp")
    save_model(model, processor, tmp_path / "model")
    opened = open_model(tmp_path / "model")
    assert type(opened[0]).__name__.startswith("Llava") == (request.param == "llava")
    return opened


@pytest.fixture
def picture(tmp_path: Path) -> str:
    tiny.picture(1).save(tmp_path / "one.png")
    return str(tmp_path / "one.png")


@pytest.fixture
def edit(picture: str) -> Edit:
    """Named in its text, shown in its picture."""
    return Edit(
        "1", "seven", "is seven even or odd?", 3, "even", image=picture, image_prompt=QUESTION
    )


def pictures(folder: Path, count: int = 12) -> Pictures:
    rows = []
    for number in range(count):
        tiny.picture(20 + number).save(folder / f"p{number}.png")
        content = [{"type": "image", "image": f"p{number}.png"}, {"type": "text", "text": QUESTION}]
        answer = {"role": "assistant", "content": "odd"}
        rows.append({"id": str(number), "messages": [{"role": "user", "content": content}, answer]})
    rows.append(
        {
            "id": "t",
            "messages": [{"role": "user", "content": "is one odd?"}, rows[0]["messages"][1]],
        }
    )
    return read_pictures(tiny.write_jsonl(folder / "pictures.jsonl", rows))


def test_columns_under_other_names_are_read(tmp_path: Path):
    tiny.picture(20).save(tmp_path / "p.png")
    rows = [{"file": "p.png", "asked": QUESTION, "label": "odd"}]
    data = tiny.write_jsonl(tmp_path / "own.jsonl", rows)
    names = {"image": "file", "question": "asked", "answer": "label"}
    [prompt] = read_pictures(data, columns=names).prompts
    assert (prompt.question, prompt.answer) == (QUESTION, "odd")


def weights(model: Any) -> dict[str, str]:
    return {
        name: hashlib.sha256(value.detach().numpy().tobytes()).hexdigest()
        for name, value in model.state_dict().items()
    }


def test_rows_say_what_the_whole_model_says(pair: Any, edit: Edit):
    model, processor = pair
    spec = ModelSpec.detect(model)
    [text, shown] = Rewriter(spec, processor, Rewriting(lookup="last", variants=3)).of(edit, ())
    assert len(shown.prompts) == 4
    for row, image in zip(
        shown.prompts, [tiny.picture(1), *variants(tiny.picture(1), 3)], strict=True
    ):
        talk = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": talk}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        assert row.ids == tuple(inputs["input_ids"][0].tolist())
        with torch.no_grad():
            expected = model(**inputs).logits
            found = logits_at(spec, [row], [range(len(row))])[0][None]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    asked = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": edit.prompt}]}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
    )
    assert list(text.prompts[0].ids) == list(asked["input_ids"][0])


def test_in_layer_connectors_are_refused(compose_tiny: Any, edit: Edit):
    model, processor = compose_tiny("gated_cross_attention")
    rewriter = Rewriter(ModelSpec.detect(model), processor, Rewriting())
    with pytest.raises(SpecError, match="inside the layers"):
        rewriter.of(edit, ())
    [text] = rewriter.of(replace(edit, image=None, image_prompt=None), ())
    assert text.prompts[0].embeds is None


def test_a_model_whose_language_part_gets_more_than_embeddings_is_refused(pair: Any, edit: Edit):
    model, processor = pair
    spec = ModelSpec.detect(model)

    def add(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if kwargs.get("pixel_values") is not None:
            output.logits = output.logits + 1
        return output

    handle = model.register_forward_hook(add, with_kwargs=True)
    rewriter = Rewriter(spec, processor, Rewriting(lookup="last"))
    with pytest.raises(SpecError, match="more than embeddings"):
        rewriter.of(edit, ())
    handle.remove()


def test_lookup_tokens(pair: Any, edit: Edit):
    _, processor = pair
    asking = Asking(processor)
    asked = asking.picture(edit.prompt, tiny.picture(1), edit.subject, edit.subject_at)
    word = processor.tokenizer.decode([asked.ids[look_up(asked, "subject", "")[0]]])
    assert word.strip() == "seven"
    assert look_up(asked, "last", "")[0] == len(asked.ids) - 1
    position, strategy = look_up(asked, "visual", "")
    assert strategy == "visual"
    mark = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    assert asked.ids[position] == mark
    assert mark not in asked.ids[position + 1 :]
    unnamed = asking.picture(QUESTION, tiny.picture(1))
    assert look_up(unnamed, "auto", "")[1] == "last"
    with pytest.raises(UsageError, match=r"edits.json:3: --lookup subject"):
        look_up(unnamed, "subject", "edits.json:3")


def test_plain_text_requests_are_those_of_the_papers(llm_folder: Any):
    model, tokenizer = open_model(llm_folder("llama"))
    edit = Edit("1", "seven", "after seven comes", 6, "two")
    contexts = ("one is odd", "two is even")
    [found] = Rewriter(ModelSpec.detect(model), tokenizer, Rewriting(template="plain")).of(
        edit, contexts
    )
    prompts = [edit.prompt, *(f"{context}. {edit.prompt}" for context in contexts)]
    read = [tuple(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    of_subject = [len(tokenizer(p[: p.index("seven") + 5])["input_ids"]) - 1 for p in prompts]
    general = tuple(tokenizer("seven is a")["input_ids"])
    assert found == Request(
        edit=edit,
        prompts=tuple(map(Row, read, of_subject)),
        groups=(0, 1, 1),
        shares=(1 / 3,) * 3,
        target=tuple(tokenizer(" two", add_special_tokens=False)["input_ids"]),
        kl=Row(general, len(tokenizer("seven")["input_ids"]) - 1),
    )
    [chat] = Rewriter(ModelSpec.detect(model), tokenizer, Rewriting()).of(edit, ())
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": edit.prompt}], add_generation_prompt=True, return_dict=True
    )
    assert list(chat.prompts[0].ids) == asked["input_ids"]
    assert tokenizer.decode([chat.prompts[0].ids[chat.prompts[0].lookup]]).strip() == "seven"
    # The target begins where the template's answers do: no space of its own.
    assert tokenizer.decode(chat.target) == "two"
    assert tokenizer.decode(found.target) == " two"


def test_a_template_that_begins_with_bos_gets_no_second_one(llm_folder: Any):
    _, tokenizer = open_model(llm_folder("llama"))
    tokenizer.bos_token = "<|system|>"
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    asking = Asking(tokenizer, "chat")
    asked = asking.text("is seven odd?", "seven", 3)
    assert asked.ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(asking.target("yes", "is seven odd?")) == " yes"
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    with pytest.raises(DataError, match="does not keep the prompt"):
        Asking(tokenizer, "chat").text("is seven odd?")


def test_variants_keep_what_is_shown():
    image = tiny.picture(3)
    found = variants(image, MOST)
    assert len({each.tobytes() for each in found}) == MOST
    assert all(each.size == image.size and each.mode == "RGB" for each in found)
    assert [each.tobytes() for each in variants(image, 2)] == [e.tobytes() for e in found[:2]]


def test_text_and_picture_share_a_key_or_have_their_own(pair: Any, edit: Edit):
    model, processor = pair
    spec = ModelSpec.detect(model)
    own = Rewriter(spec, processor, Rewriting(lookup="last", variants=2))
    other = replace(edit, id="2", subject="two", prompt="is two even or odd?", image=None)
    requests = own.requests([edit, other], ())
    assert owners(requests) == (0, 0, 1)
    joint = own.settings.model_copy(update={"image_keys": "joint", "image_share": 0.25})
    [both] = Rewriter(spec, processor, joint).of(edit, ("one",))
    assert both.groups == (0, 1, 2, 3, 3)
    assert sum(both.shares) == pytest.approx(1)
    assert sum(both.shares[2:]) == pytest.approx(0.25)
    keys = read_keys(spec, 1, [both])
    assert torch.isfinite(keys).all()
    # Rows of text among rows with pictures give the keys they give alone.
    alone = read_keys(spec, 1, requests[:1])
    torch.testing.assert_close(read_keys(spec, 1, requests)[:, :1], alone, atol=1e-5, rtol=1e-5)


def test_key_statistics_of_pictures(pair: Any, tmp_path: Path):
    model, processor = pair
    spec = ModelSpec.detect(model)
    source = PictureRows(pictures(tmp_path), Asking(processor), Eyes(spec))
    found = collect_rows(spec, [1, 2], source, tokens=10_000, cache=tmp_path / "cache")
    rows = list(source.rows(0))
    assert len(rows) == 12  # the record without a picture is left out
    total: torch.Tensor = torch.zeros(48, 48, dtype=torch.float64)
    count = 0

    def note(module: Any, args: Any) -> None:
        nonlocal total
        keys = args[0].reshape(-1, 48).double()
        total = total + keys.T @ keys

    handle = spec.projection(1, "ffn").register_forward_pre_hook(note)
    for row in rows:
        with torch.no_grad():
            logits_at(spec, [row], [range(len(row))])
        count += len(row)
    handle.remove()
    assert found.tokens == count
    torch.testing.assert_close(found.matrices[1], total / count, atol=1e-6, rtol=1e-4)
    text = collect(spec, processor.tokenizer, [1, 2], corpus=TEXTS, cache=tmp_path / "cache")
    both = combined(text, found, 0.5)
    torch.testing.assert_close(both.matrices[2], text.matrices[2] + 0.5 * found.matrices[2])
    assert both.fingerprint not in (
        text.fingerprint,
        combined(text, found, 1.0).fingerprint,
    )
    # Other pictures, other towers: other statistics. The same again comes from the cache.
    fewer = replace(source, pictures=replace(source.pictures, prompts=source.pictures.prompts[1:]))
    cut = collect_rows(spec, [1, 2], fewer, tokens=10_000, cache=tmp_path / "cache")
    again = collect_rows(spec, [1, 2], source, tokens=10_000, cache=tmp_path / "cache")
    assert cut.fingerprint != found.fingerprint
    assert torch.equal(again.matrices[1], found.matrices[1])
    tower = next(p for n, p in model.named_parameters() if "vision" in n or "encoder" in n)
    with torch.no_grad():
        tower.add_(0.5)
    moved = collect_rows(spec, [1, 2], source, tokens=10_000, cache=tmp_path / "cache")
    assert moved.fingerprint != found.fingerprint


@pytest.mark.parametrize("keys", ["own", "joint"])
def test_an_edit_holds_in_text_and_picture(pair: Any, edit: Edit, tmp_path: Path, keys: Any):
    model, processor = pair
    before = weights(model)
    options = Options(
        corpus=TEXTS, pictures=pictures(tmp_path), cache=tmp_path / "cache", said=lambda _: None
    )
    config = CONFIG.model_copy(update={"image_keys": keys})
    patch = MEMIT(config).compute(model, processor, [edit], options=options)
    assert weights(model) == before  # the vision tower's among them
    assert all("layers" in name and "down_proj" in name for name in patch.changes)
    [record] = patch.header.editing.edits
    assert record.lookup == "last; image: last"
    assert not any("not written" in warning for warning in record.warnings)
    assert any("C_text + 1 C_image" in note for note in patch.header.history)
    assert patch.header.settings["template"] == "chat"
    save_patch(patch, tmp_path / "fix.safetensors")
    edited = view(model, load_patch(tmp_path / "fix.safetensors"))
    found = evaluate_multimodal(edited, processor, [edit], base=model, resamples=10)
    assert found.metrics["reliability"].value == found.metrics["text_reliability"].value == 100
    assert found.metrics["reliability_said"].value == 100 * (
        found.rows[0].prompts[0].after.generated == "even"
    )
    assert found.before is not None
    assert found.before["reliability"].value < 100


def test_one_of_two_edits_is_taken_out_with_both_its_columns(pair: Any, edit: Edit, tmp_path: Path):
    model, processor = pair
    options = Options(corpus=TEXTS, pictures=pictures(tmp_path), cache=tmp_path / "cache")
    other = replace(edit, id="2", subject="two", prompt="is two even or odd?", target="nine")
    other = replace(other, image=None, image_prompt=None)
    config = CONFIG.model_copy(update={"layers": (2,)})
    both = MEMIT(config).compute(model, processor, [edit, other], options=options)
    [change] = both.changes.values()
    assert change.edits == (0, 0, 1)  # type: ignore[union-attr]
    alone = MEMIT(config).compute(model, processor, [other], options=options)
    left = drop(both, ["1"])
    [kept], [wanted] = left.changes.values(), alone.changes.values()
    torch.testing.assert_close(kept.delta(), wanted.delta(), atol=1e-4, rtol=1e-3)
    assert [record.id for record in left.header.editing.edits] == ["2"]


def test_fine_tuning_takes_pictures_too(pair: Any, edit: Edit, tmp_path: Path):
    model, processor = pair
    before = weights(model)
    config = FTConfig(layers=(2,), lookup="last", lr=1e-2, epochs=40, variants=0)
    patch = FT(config).compute(model, processor, [edit])
    assert weights(model) == before
    [record] = patch.header.editing.edits
    assert not record.warnings  # the target is the first choice in text and picture


def test_what_cannot_be_edited_is_told(pair: Any, edit: Edit, llm_folder: Any, tmp_path: Path):
    model, processor = pair
    with pytest.raises(UsageError, match="give the processor"):
        MEMIT(CONFIG).compute(model, processor.tokenizer, [edit])
    _, tokenizer = open_model(llm_folder("gpt2"))
    tokenizer.chat_template = None
    with pytest.raises(UsageError, match="no chat template"):
        Asking(tokenizer, "chat")
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = tiny.write_jsonl(tmp_path / "text.jsonl", [{"id": "t", "messages": talk}])
    with pytest.raises(DataError, match="no record asks about one picture"):
        read_pictures(text)


def test_measures(pair: Any, edit: Edit, tmp_path: Path):
    model, processor = pair
    tiny.picture(2).save(tmp_path / "two.png")
    other = str(tmp_path / "two.png")
    full = replace(
        edit,
        paraphrases=("seven: even or odd?",),
        other_images=(other,),
        neighbours=(
            Neighbour("is two even or odd?", "even"),
            Neighbour("what comes after one?"),
            Neighbour("is one larger than two?", "no"),
            Neighbour(QUESTION, None, other),
            Neighbour("which digit is this?", "one", other),
        ),
    )
    assert [probe.measure for probe in probes_of([full])] == [
        "reliability",
        "text_reliability",
        "text_generality",
        "image_generality",
        *["text_locality"] * 3,
        *["image_locality"] * 2,
    ]
    shown = replace(full, subject="", prompt=QUESTION, subject_at=None, image_prompt=None)
    assert {p.image for p in probes_of([shown]) if p.measure == "text_generality"} == {edit.image}
    same = evaluate_multimodal(model, processor, [full], base=model, resamples=10)
    for name in ("text_locality", "image_locality"):
        assert same.metrics[name].value == same.metrics[f"{name}_top10"].value == 100
        assert same.metrics[f"{name}_easyedit"].value == same.metrics[f"{name}_said"].value == 100
        assert same.metrics[f"{name}_kl"].value == 0
        assert "EasyEdit" in same.metrics[f"{name}_easyedit"].protocol
    assert set(same.chance) == {
        "reliability",
        "text_reliability",
        "text_generality",
        "image_generality",
        "text_locality",
        "image_locality",
    }
    # A model that always says one thing agrees with itself alone.
    stuck, _ = pair
    constant = view(model, _nothing(model, processor, edit, tmp_path))
    with torch.no_grad():
        head = constant.get_output_embeddings()
    handle = head.register_forward_hook(  # type: ignore[operator]
        lambda module, args, output: torch.zeros_like(output).index_fill_(
            -1, torch.tensor([9]), 5.0
        )
    )
    found = evaluate_multimodal(constant, processor, [full], base=stuck, resamples=10)
    handle.remove()
    assert found.metrics["image_locality"].value < 100
    assert found.metrics["image_locality_kl"].value > 0
    assert found.metrics["reliability"].value == 0


def _nothing(model: Any, processor: Any, edit: Edit, tmp_path: Path) -> Any:
    """A patch that changes next to nothing."""
    config = CONFIG.model_copy(update={"steps": 1, "layers": (2,), "variants": 0})
    options = Options(corpus=TEXTS, cache=tmp_path / "nothing")
    return MEMIT(config).compute(model, processor, [edit], options=options)


def test_edits_with_pictures_are_read(tmp_path: Path, picture: str):
    plain = {
        "subject": "seven",
        "prompt": "is {} even or odd?",
        "target": "even",
        "image": "one.png",
        "image_prompt": QUESTION,
        "other_images": ["one.png"],
        "neighbours": ["is two odd?", {"prompt": QUESTION, "image": "one.png"}],
    }
    mmedit = {
        "src": "What is it?",
        "pred": "a cat",
        "alt": "a dog",
        "rephrase": "What is shown?",
        "image": "one.png",
        "image_rephrase": "one.png",
        "loc": "who wrote hamlet",
        "loc_ans": "shakespeare",
        "m_loc": "one.png",
        "m_loc_q": "What colour?",
        "m_loc_a": "red",
    }
    file = tmp_path / "edits.json"
    file.write_text(json.dumps([plain, mmedit]))
    first, second = read_edits(file)
    assert (first.image, first.asked_of_image) == (picture, QUESTION)
    assert first.neighbours[1] == Neighbour(QUESTION, None, picture)
    assert (second.subject, second.target, second.other_images) == ("", "a dog", (picture,))
    assert second.neighbours == (
        Neighbour("who wrote hamlet", "shakespeare"),
        Neighbour("What colour?", "red", picture),
    )
    del plain["image"]
    file.write_text(json.dumps([plain]))
    with pytest.raises(DataError, match="need an image"):
        read_edits(file)
