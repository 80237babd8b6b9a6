"""Recipes: which records each stage sees, and what a session does with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from modalign.comparison.config import load_config
from modalign.data.records import Media, Record
from modalign.data.supervision import Sample
from modalign.errors import DataError, UsageError
from modalign.models.compose import load_language_model
from modalign.training.methods import resolve_method, resolve_methods
from modalign.training.recipes import (
    RECIPES,
    check_data,
    kind_of,
    recipe_names,
    resolve_recipe,
    select,
    shuffled_pairs,
)
from modalign.training.settings import Stage
from modalign.training.sources import DataFiles
from modalign.training.splits import load_splits


def sample(
    number: int, media: int = 1, question: str = "what?", skill: str | None = "naming", **extra: Any
) -> Sample:
    """A sample about an image of its own (a name is enough: nothing is opened)."""
    images = tuple(Media("image", path=f"{number}-{place}.png") for place in range(media))
    record = tiny.record([*images, *((question,) if question else ())], "seven", row=number)
    record = replace(record, skill=skill, extra=extra)
    ids = np.arange(4)
    return Sample(record, ids, ids > 1, images)


def data() -> list[Sample]:
    """20 instructions (12 naming, 8 counting), 6 captions, 4 texts."""
    made = [sample(number, skill="naming" if number < 12 else "counting") for number in range(20)]
    made += [sample(20 + number, question="") for number in range(3)]
    made += [sample(23 + number, skill="caption") for number in range(3)]
    return made + [sample(26 + number, media=0, skill="facts") for number in range(4)]


def ids(samples: Sequence[Sample]) -> list[str]:
    return [one.record.id for one in samples]


# --- kinds of records ---------------------------------------------------------------------------


def two_turns(first: str) -> Record:
    return tiny.record([Media("image", path="a.png"), first], "yes", "and this?", "no")


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (sample(1).record, "instructions"),
        (sample(1, question="").record, "captions"),
        (sample(1, question=" \n").record, "captions"),
        (sample(1, skill="caption").record, "captions"),
        (sample(1, kind="caption").record, "captions"),
        (sample(1, media=0).record, "text"),
        (sample(1, media=0, skill="caption").record, "text"),
        (sample(1, media=2).record, "instructions"),
        (two_turns(""), "instructions"),
    ],
)
def test_kinds(record: Record, kind: str) -> None:
    assert kind_of(record) == kind


# --- selection ----------------------------------------------------------------------------------


def test_every_record_has_one_kind_and_order_is_kept() -> None:
    whole = data()
    parts = [
        select(whole, Stage(data=kind), 0) for kind in ("instructions", "captions", "text")
    ]  # fmt: skip
    assert [len(part) for part in parts] == [20, 6, 4]
    assert [name for part in parts for name in ids(part)] == ids(whole)
    assert select(whole, Stage(), 0) == whole
    assert ids(select(whole, Stage(data="media"), 0)) == ids(whole[:26])


@pytest.mark.parametrize(
    ("data_", "rows"),
    [
        ("domain:counting", range(12, 20)),
        ("domain:*", [*range(12), 20, 21, 22, 30, 31]),  # naming, its captions too
        ("domain:pathology", [30]),
        ("domain:pubmed", [31]),
    ],
)
def test_domains(data_: str, rows: Sequence[int]) -> None:
    whole = [*data(), sample(30, domain="pathology"), sample(31, source="pubmed")]
    assert ids(select(whole, Stage(data=data_), 0)) == [f"r{row}" for row in rows]


@settings(max_examples=60, deadline=None)
@given(st.floats(0.02, 0.9), st.integers(1, 40), st.integers(1, 30), st.integers(0, 2**31))
def test_a_mix_has_its_share(share: float, count: int, texts: int, seed: int) -> None:
    whole = [sample(number) for number in range(count)]
    pool = [sample(100 + number, media=0) for number in range(texts)]
    stage = Stage(data="instructions", mix={"text": share})
    mixed = select([*whole, *pool], stage, seed)
    added = mixed[count:]
    assert mixed[:count] == whole
    assert len(added) == round(count * share / (1 - share))
    assert set(ids(added)) <= set(ids(pool))
    uses = Counter(ids(added))
    if len(added) >= texts:  # every record as often as any other, give or take one
        assert max(uses.values()) - min(uses[i] for i in ids(pool)) <= 1
    else:
        assert not uses or max(uses.values()) == 1
    assert ids(select([*whole, *pool], stage, seed)) == ids(mixed)


def test_further_text_is_read_by_text_alone() -> None:
    whole, further = data(), [sample(90, media=0)]
    for stage in (Stage(), Stage(data="instructions"), Stage(data="media")):
        assert "r90" not in ids(select(whole, stage, 0, further))
    assert ids(select(whole, Stage(data="text"), 0, further))[-1] == "r90"
    mixed = select(whole[:20], Stage(data="instructions", mix={"text": 0.2}), 0, further)
    assert ids(mixed[20:]) == ["r90"] * 5


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (Stage(data="captions"), "no captions .*'modalign data build' makes them"),
        (Stage(data="instructions", mix={"text": 0.2}), "no record without media; .*data.text"),
        (Stage(data="domain:maps"), "is 'maps'; its skills are naming"),
    ],
)
def test_what_is_missing_is_said_before_training(stage: Stage, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_data("mlp", [stage], [sample(1), sample(2)])


@pytest.mark.parametrize(
    "wrong",
    [
        {"data": "nonsense"},
        {"data": "domain:"},
        {"mix": {"text": 0.0}},
        {"mix": {"text": 0.5, "captions": 0.5}},
        {"mix": {"pictures": 0.1}},
        {"data": "text", "mix": {"text": 0.1}},
    ],
)
def test_wrong_stages(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="1 validation error"):
        Stage.model_validate(wrong)


# --- shuffled pairs -----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=30), st.integers(0, 2**31))
def test_nobody_keeps_a_medium_of_his_own(counts: list[int], seed: int) -> None:
    whole = [sample(number, media=count) for number, count in enumerate(counts)]
    if sum(count > 0 for count in counts) == 1:
        with pytest.raises(UsageError, match="cannot be shuffled"):
            shuffled_pairs(whole, np.random.default_rng(seed))
        return
    for before, after in zip(
        whole, shuffled_pairs(whole, np.random.default_rng(seed)), strict=True
    ):
        assert len(before.media) == len(after.media)
        assert not set(before.media) & set(after.media)
        assert before.record is after.record


def test_a_group_is_never_given_its_own_media() -> None:
    whole = [sample(number) for number in range(30)]
    for number, one in enumerate(whole):
        one.record = replace(one.record, group=f"g{number % 3}")
    owner = {one.media[0]: one.record.group for one in whole}
    for one in shuffled_pairs(whole, np.random.default_rng(0)):
        assert owner[one.media[0]] != one.record.group


def test_one_image_everywhere_cannot_be_shuffled() -> None:
    same = (Media("image", path="same.png"),)
    whole = [replace(sample(number), media=same) for number in range(4)]
    for number, one in enumerate(whole):
        one.record = replace(one.record, group=str(number))
    with pytest.raises(UsageError, match="cannot be shuffled"):
        shuffled_pairs(whole, np.random.default_rng(0))


def test_shuffled_media_tell_nothing_of_the_answer() -> None:
    """Two kinds of images, 500 records each; afterwards a record has either kind about as often."""
    whole = [sample(number) for number in range(1000)]
    kind = {one.media[0]: number % 2 for number, one in enumerate(whole)}
    after = shuffled_pairs(whole, np.random.default_rng(1))
    agree = sum(kind[one.media[0]] == number % 2 for number, one in enumerate(after))
    assert abs(agree - 500) < 4 * np.sqrt(250)  # four standard deviations of a fair coin
    assert len({one.media for one in after}) > 550  # drawn anew: 1 - 1/e of them in expectation


# --- names --------------------------------------------------------------------------------------


def test_a_method_carries_its_recipe() -> None:
    method = resolve_method("resampler[layers=1]:published+captions_first")
    assert (method.connector, method.variant, method.options) == (
        "resampler", "published", {"layers": 1}
    )  # fmt: skip
    assert (method.family, method.group) == ("data", "data-driven: captions first")
    first, second = method.stages
    assert (first.data, first.llm, second.data, second.llm) == (
        "captions", "frozen", "instructions", None
    )  # fmt: skip
    assert first.share + second.share == pytest.approx(1)
    plain = resolve_method("mlp")
    assert (plain.family, plain.recipe, plain.control) == ("converter", None, False)


@pytest.mark.parametrize("recipe", RECIPES)
def test_shares_add_up_behind_a_stage_one_of_the_connectors_own(recipe: str) -> None:
    own, *rest = resolve_method(f"qformer+{recipe}").stages
    assert own.runs == "stage_one"
    assert own.share + sum(stage.share for stage in rest) == pytest.approx(1)
    assert own.pairs == ("shuffled" if recipe == "shuffled_pairs" else "true")


def test_a_plus_within_options_is_no_recipe() -> None:
    with pytest.raises(UsageError, match="is not option=value"):
        resolve_method("mlp[width=1e+3]")


def test_crossing() -> None:
    names = [m.name for m in resolve_methods("mlp,linear", recipes=["instruction", "mixed_text"])]
    assert names == ["mlp+instruction", "mlp+mixed_text", "linear+instruction", "linear+mixed_text"]
    all_ = resolve_methods("mlp", recipes=["all"])
    assert [method.name for method in all_] == [f"mlp+{name}" for name in RECIPES]
    assert [method.name for method in all_ if method.control] == ["mlp+shuffled_pairs"]
    own = resolve_methods("mlp+captions_first,linear", recipes=["instruction"])
    assert [method.name for method in own] == ["mlp+captions_first", "linear+instruction"]
    assert [method.name for method in resolve_methods("mlp,mlp+mixed_text")] == [
        "mlp", "mlp+mixed_text"
    ]  # fmt: skip
    tools = resolve_methods("mlp,tool:none", recipes=["instruction"])
    assert [method.name for method in tools] == ["mlp+instruction", "tool:none"]
    with pytest.raises(UsageError, match="a control alone shows nothing"):
        resolve_methods("mlp,linear", recipes=["shuffled_pairs"])


def test_recipe_names() -> None:
    assert recipe_names(["mixed_text", "all"])[:2] == ["mixed_text", "instruction"]
    named = resolve_recipe("domain_first:counting")
    assert (named.name, named.stages[0].data) == ("domain_first:counting", "domain:counting")
    for wrong in ("caption_first", "", "instruction:x", "domain_first:"):
        with pytest.raises(UsageError, match="no recipe is called"):
            resolve_recipe(wrong)


def test_a_configuration_names_recipes(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "parts: {llm: x, encoder: {image: none}}\n"
        "data: {train: t.jsonl, text: facts.jsonl}\nrecipes: [all]\n"
    )
    config, _ = load_config(file)
    assert config.recipes == ["all"]
    assert config.data.text == str(tmp_path / "facts.jsonl")


# --- in a session and from files ----------------------------------------------------------------


def test_a_session_trains_every_stage_on_what_it_asks_for(
    tmp_path: Path, llm_folder: Any, tower_folder: Any
) -> None:
    from tiny_session import Plan

    stages = [
        {"name": "texts", "data": "text", "share": 0.5},
        {"name": "control", "data": "media", "pairs": "shuffled", "share": 0.5},
    ]
    plan = Plan(
        str(llm_folder("llama")), str(tower_folder("siglip")), str(tmp_path / "c"), recipe=stages
    )
    session = plan.session()
    first, second = (session._learner(stage) for stage in session.method.stages)
    assert {len(one.media) for one in first.samples} == {0}
    given_ = [one for one in session.train_samples if one.media]
    assert ids(second.samples) == ids(given_)
    assert all(a.media != b.media for a, b in zip(given_, second.samples, strict=True))


def test_a_text_file_is_read_and_holds_no_media(tmp_path: Path, llm_folder: Any) -> None:
    (tmp_path / "a.png").write_bytes(tiny.png_bytes(1))
    image = {"image": "a.png", "question": "what?", "answer": "seven"}
    tokenizer = load_language_model(str(llm_folder("llama"))).tokenizer
    train = tiny.write_jsonl(tmp_path / "t.jsonl", [image])
    text = tiny.write_jsonl(tmp_path / "x.jsonl", [{"question": "one plus one?", "answer": "two"}])
    files = DataFiles(train=str(train), val=str(train), text=str(text))
    splits = load_splits(files, tokenizer)
    assert [one.record.answer for one in splits.text] == ["two"]
    assert len(splits.train) == 1
    with pytest.raises(DataError, match=r"t\.jsonl:1: data\.text is for records without media"):
        load_splits(files.model_copy(update={"text": str(train)}), tokenizer)
