"""Two notes, a soft separator, late fusion: by hand arithmetic, by causality, and kept with the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from modalign.chat_templates import SEPARATOR, separator_id
from modalign.data.records import Media, Record
from modalign.data.supervision import tokenise_all
from modalign.errors import DataError, UsageError
from modalign.index.embedding import makes, reading
from modalign.index.vectors import Index
from modalign.models.asking import conversation_of, media_inputs
from modalign.models.bridges import Features
from modalign.models.export import save_model
from modalign.models.open import open_model
from modalign.models.parts import embedding
from modalign.models.pooled import pooled
from modalign.models.prompts import FILE, Fusion, Prompt, add_separator, load_prompt, seen_media
from modalign.models.saved import open_composed
from modalign.training.budget import Budget
from modalign.training.learners import ModelLearner
from modalign.training.outputs import read
from modalign.training.settings import LearningRates, Stage, TrainSettings
from modalign.training.tuning import Tuning

NOTES = Prompt(notes=True)
TERM = {"anchor": "a", "positive": "b", "fusion": True}
STAGE = Stage(
    objective={
        "info_nce": {**TERM, "weight": 0.9, "pooling": "prompt"},
        "info_nce/picture": {**TERM, "weight": 0.1, "pooling": "separator"},
    },
    roles={"a": "domain:a", "b": "domain:b"},
    matched=True,
)


def pairs(count: int = 4) -> list[Record]:
    """Two records of each group, with a picture and a text each."""
    return [
        replace(
            tiny.record([tiny.image(2 * n + k), f"{'one ' * (n + 1)}?"], "?", row=2 * n + k),
            group=f"g{n}",
            skill="ab"[k],
        )
        for n in range(count)
        for k in range(2)
    ]


def tuned(
    make: Callable[..., Any], tmp_path: Path, stage: Stage = STAGE, connector: str = "mlp"
) -> Tuning:
    save_model(*make(connector), tmp_path / "base")
    opened = open_composed(tmp_path / "base")
    add_separator(opened.model, opened.tokenizer)
    samples = tokenise_all(map(NOTES.shown, pairs()), opened.tokenizer)
    made = TrainSettings(
        llm="lora", batch_size=4, learning_rates=LearningRates(connector=1e-2, llm=1e-2), device="cpu"
    )  # fmt: skip
    return Tuning(opened, [stage], made, samples, prompt=NOTES, cache=tmp_path / "cache")


def test_fusion_is_the_papers_formula_and_leaves_texts_alone() -> None:
    """v = W1 f, z = sigmoid(W2 [v; n]), z v + (1 - z) n, number by number in numpy."""
    rng = np.random.default_rng(0)
    fusion = Fusion({"image": 3, "audio": 2}, 4)
    features = {
        "image": Features(
            torch.tensor(rng.normal(size=(3, 2, 3)), dtype=torch.float32),
            torch.tensor([[True, True], [True, False], [True, True]]),
        ),
        "audio": Features(torch.tensor(rng.normal(size=(1, 1, 2)), dtype=torch.float32),
                          torch.ones(1, 1, dtype=torch.bool)),
    }  # fmt: skip
    image, audio = Media("image"), Media("audio")
    media = [(0, [image, audio]), (2, [image, image]), (1, [])]
    states = rng.normal(size=(3, 4))
    with torch.no_grad():
        found = fusion(torch.tensor(states), seen_media(features, media)).numpy()
    x = features["image"].values.numpy()
    f = [x[0].mean(0), x[1, 0], x[2].mean(0)]  # the mask leaves one feature of the second
    W1, W1a, W2 = (
        w.detach().numpy()
        for w in (fusion.enter["image"].weight, fusion.enter["audio"].weight, fusion.gate.weight)
    )
    sound = W1a @ features["audio"].values.numpy()[0, 0]
    for number, v in ((0, (W1 @ f[0] + sound) / 2), (2, (W1 @ f[1] + W1 @ f[2]) / 2)):
        n = states[number]
        z = 1 / (1 + np.exp(-(W2 @ np.concatenate([v, n]))))
        assert found[number] == pytest.approx(z * v + (1 - z) * n, abs=1e-5)
    assert found[1] == pytest.approx(states[1], abs=1e-6)


def test_two_notes_show_media_first_and_no_text_spells_the_separator() -> None:
    given = tiny.record(["before ", tiny.image(0), f"a {SEPARATOR} b"], "an answer")
    shown = NOTES.shown(given).messages
    assert shown[0].parts == (tiny.image(0), SEPARATOR, "before ", "a   b")
    assert shown[1:] == given.messages[1:]
    assert Prompt().shown(given) is given


@pytest.mark.parametrize("packing", [False, True])
def test_the_first_note_sees_the_picture_alone(
    packing: bool, compose_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    """By causality: another text leaves its state, another picture or one before does not."""
    tuning = tuned(compose_tiny, tmp_path)
    model, tokenizer = tuning.model.eval(), tuning.opened.tokenizer
    collate = tuning.opened.collator(None, 400 if packing else None)
    needs = ("pooled:separator", "pooled:prompt")
    shown = [(0, "one"), (0, "a longer text, which is another one?"), (1, "one")]
    records = [NOTES.shown(tiny.record([tiny.image(k), text], "?")) for k, text in shown]
    learner = ModelLearner(tuning, STAGE)
    learner.samples, learner.collator, learner.roles = (
        tokenise_all(records, tokenizer),
        collate,
        None,
    )
    with torch.no_grad():
        rows = read(model, model, learner.collate([0, 1, 2]), needs).rows
    first, whole = (rows[need] for need in needs)
    assert torch.allclose(first[0], first[1], atol=1e-5)
    assert not torch.allclose(first[0], first[2], atol=1e-3)
    assert not torch.allclose(whole[0], whole[1], atol=1e-3)
    inputs = media_inputs(tuning.processor, [conversation_of(records[0], tuning.processor)], [""])
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states[-1][0]
    (place,) = (inputs["input_ids"][0] == separator_id(tokenizer)).nonzero().flatten().tolist()
    assert torch.allclose(first[0], states[place], atol=1e-4)
    assert torch.allclose(whole[0], states[-1], atol=1e-4)


@pytest.mark.parametrize("connector", ["mlp", "c_abstractor"])  # a Llava, and remote code
def test_what_training_learns_is_what_embed_reads(
    connector: str, compose_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    """The vectors after training, in the training's own code, equal those of the saved model and prompt."""
    tuning = tuned(compose_tiny, tmp_path, connector=connector)
    token = separator_id(tuning.opened.tokenizer)
    assert token is not None
    before = embedding(tuning.model).weight.detach().clone()
    tuning.check(tmp_path / "model")
    tuning.run(Budget.parse("64samples"), tmp_path / "run")
    tuning.save(tmp_path / "model")
    changed = (embedding(tuning.model).weight != before).any(1).nonzero().flatten().tolist()
    assert changed == [token]
    prompt = reading(tmp_path / "model", None)
    assert isinstance(prompt, Prompt)
    assert prompt.notes
    assert prompt.fusion is not None
    assert prompt.hash == tuning.prompt.hash
    model, reader = open_model(tmp_path / "model")
    found = pooled(model, reader, pairs(), prompt)
    own = open_composed(tmp_path / "model")
    media = [own.encoders[0].prepare([each]).values for r in pairs() for each in r.media()]
    features = own.model.encode("image", torch.cat(media))
    fuse = tuning.prompt.fusion
    assert fuse is not None
    for number, record in enumerate(pairs()):
        conversation = conversation_of(NOTES.shown(record), own.reader)
        inputs = media_inputs(own.reader, [conversation], [""])
        with torch.no_grad():
            n = own.model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1]
            v = fuse.enter["image"](features.values[number].mean(0))
            z = torch.sigmoid(fuse.gate(torch.cat([v, n])))
        assert torch.allclose(found[number], z * v + (1 - z) * n, atol=1e-4)
    assert not torch.allclose(found, pooled(model, reader, pairs(), "last"), atol=1e-2)


@pytest.mark.parametrize("tied", [False, True])
def test_a_soft_separator_computes_while_it_trains_as_it_is_saved(
    tied: bool, llm_folder: Callable[..., Path], tmp_path: Path
) -> None:
    opened = open_composed(llm_folder(tied=tied))
    add_separator(opened.model, opened.tokenizer)
    records = [tiny.record(f"one {SEPARATOR} two", "three"), tiny.record("one", "two")]
    samples = tokenise_all(records, opened.tokenizer)
    rates = LearningRates(connector=0.3, llm=1e-9)
    made = TrainSettings(llm="lora", batch_size=2, learning_rates=rates, device="cpu")
    tuning = Tuning(opened, [Stage()], made, samples, prompt=NOTES, cache=tmp_path / "cache")
    seen: list[torch.Tensor] = []
    ids = torch.from_numpy(samples[0].ids)[None]
    stage = tuning.method.stages[0]
    trainer = tuning._trainer(stage, Budget.parse("16samples"), tmp_path / "run", 0)
    whole = trainer.save

    def save() -> None:
        whole()
        with torch.no_grad():
            seen[:] = [tuning.model(input_ids=ids).logits]

    trainer.save = save  # type: ignore[method-assign]
    start = embedding(tuning.model).weight.detach().clone()
    with torch.no_grad():
        untrained = tuning.model(input_ids=ids).logits
    trainer.run()
    with torch.no_grad():
        after = tuning.model(input_ids=ids).logits
    assert torch.allclose(seen[0], after, atol=1e-4)
    assert not torch.allclose(untrained, after, atol=1e-2)
    moved = (embedding(tuning.model).weight != start).any(1).nonzero().flatten().tolist()
    assert moved == [separator_id(opened.tokenizer)]
    head = tuning.model.get_output_embeddings()
    assert (head.weight is embedding(tuning.model).weight) == tied  # type: ignore[union-attr]


def test_embed_reads_the_saved_prompt_and_tells_indexes_apart(
    cli: Callable[..., tuple[int, str, str]], compose_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    tuning = tuned(compose_tiny, tmp_path)
    tuning.run(Budget.parse("16samples"), tmp_path / "run")
    tuning.save(tmp_path / "model")
    (tmp_path / "a.png").write_bytes(tiny.png_bytes(0))
    rows = [{"id": "a", "text": "one", "image": "a.png"}, {"id": "b", "text": "two"}]
    items = tiny.write_jsonl(tmp_path / "items.jsonl", rows)
    for name, more in (("own", ()), ("last", ("--pooling", "last"))):
        arguments = ("embed", tmp_path / "model", items, "-o", tmp_path / name, "--json", *more)
        code, said, err = cli(*arguments)
        assert code == 0, err
        assert json.loads(said)["pooling"] == {"own": "saved"}.get(name, name)
    model, reader = open_model(tmp_path / "model")
    prompt = load_prompt(tmp_path / "model")
    assert prompt is not None
    own = Index.load(tmp_path / "own", makes(model, reader, prompt))
    assert not np.allclose(own.vectors, Index.load(tmp_path / "last").vectors, atol=1e-2)
    with pytest.raises(DataError, match="in another way"):
        Index.load(tmp_path / "own", makes(model, reader, "last"))
    other = replace(prompt, fusion=Fusion({"image": 32}, 32))
    with pytest.raises(DataError, match="in another way"):
        Index.load(tmp_path / "own", makes(model, reader, other))


def test_prompts_that_cannot_be_are_refused(
    compose_tiny: Callable[..., Any], llm_folder: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no encoder"):
        Fusion.of(open_composed(llm_folder()).model)
    with pytest.raises(UsageError, match=f"no {FILE}"):
        reading(llm_folder(), "saved")
    model, reader = compose_tiny("mlp")
    with pytest.raises(UsageError, match="belongs to another model"):
        pooled(model, reader, pairs(1), Prompt(fusion=Fusion({"audio": 4}, 32)))
    other = Prompt().save(tmp_path).read_bytes().replace(b"notes", b"tones")
    for content in (b"", b"no tensors", other):
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(DataError, match=f"{FILE} is not a prompt"):
            load_prompt(tmp_path)
    tuning = tuned(compose_tiny, tmp_path / "t")
    plain = tokenise_all(pairs(), tuning.opened.tokenizer)  # not shown as two notes
    settings = TrainSettings(llm="lora", batch_size=4, device="cpu")
    again = Tuning(open_composed(tmp_path / "t" / "base"), [STAGE], settings, plain)
    with pytest.raises((DataError, UsageError), match="no two notes"):
        again.run(Budget.parse("16samples"), tmp_path / "run")
    with pytest.raises(UsageError, match="call add_separator"):
        Tuning(open_composed(tmp_path / "t" / "base"), [STAGE], settings, plain, prompt=NOTES)
