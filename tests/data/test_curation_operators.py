"""Curation's operators, one by one, on rows small enough to know the answer."""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import tiny
from modalign.data.curation import Request, curate
from modalign.data.curation.operators import (
    AnswerBalance,
    Contamination,
    ExactDuplicates,
    ImageSize,
    ImageTextSimilarity,
    Language,
    Length,
    NearImages,
    NearTexts,
    Operator,
)
from modalign.data.curation.operators.balance import answer_cap
from modalign.data.images import open_image
from modalign.data.records import Media
from modalign.errors import DataError, UsageError

Row = dict[str, Any]
Dropped = dict[int, str]


def noise(seed: int, side: int = 64) -> Image.Image:
    """A picture of smooth random patches, unlike any other."""
    patches = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((side, side), Image.Resampling.BICUBIC)


def saved(image: Image.Image, path: Path, **options: Any) -> str:
    """Write a picture; its name."""
    image.save(path, **options)
    return path.name


@pytest.fixture
def dropped(tmp_path: Path) -> Callable[..., Dropped]:
    """Curate rows with one operator: the dropped row numbers and why."""

    def run(operator: Operator, rows: Sequence[Row]) -> Dropped:
        data = tiny.write_jsonl(tmp_path / "data.jsonl", rows)
        out = tmp_path / "out.jsonl"
        result = curate(Request((str(data),), out, (operator,), examples=1000))
        (done,) = result.card.operators
        assert done.rows_in == len(rows)
        assert done.dropped == len(done.examples) == len(rows) - done.rows_out
        return {example.row: example.reason for example in done.examples}

    return run


def ask(question: str, answer: str = "yes", **fields: Any) -> Row:
    return {"question": question, "answer": answer, **fields}


# --- duplicates ---------------------------------------------------------------------------------


def test_exact_duplicates_compare_text_and_media_content(tmp_path: Path, dropped) -> None:
    saved(noise(1), tmp_path / "a.png")
    saved(noise(1), tmp_path / "copy.png")
    saved(noise(2), tmp_path / "b.png")
    found = dropped(
        ExactDuplicates(),
        [
            ask("what?", image="a.png"),
            ask("what?", image="b.png"),
            ask("what?", image="copy.png", id="other", skill="s"),
            ask("What?", image="a.png"),
            ask("what?"),
            ask("what?", "no"),
            ask("what?"),
        ],
    )
    assert list(found) == [3, 7]
    assert found[3].endswith("data.jsonl:1")


def test_media_order_and_place_count(tmp_path: Path, dropped) -> None:
    for name in ("a", "b"):
        saved(noise(ord(name)), tmp_path / f"{name}.png")
    rows = [
        ask("<image> and <image>", images=["a.png", "b.png"]),
        ask("<image> and <image>", images=["b.png", "a.png"]),
        ask("<image><image> and ", images=["a.png", "b.png"]),
        ask("<image> and <image>", images=["a.png", "b.png"]),
    ]
    assert list(dropped(ExactDuplicates(), rows)) == [4]


LONG = "the quick brown fox jumps over the lazy dog near the river bank on a sunny afternoon"


def test_near_texts_state_the_exact_similarity(dropped) -> None:
    found = dropped(
        NearTexts(),
        [ask(LONG), ask(LONG.upper() + " !"), ask("something else entirely, of which no copy is")],
    )
    assert list(found) == [2]
    # "...afternoon yes" against "...afternoon ! yes": 85 5-grams and the 6 of the inserted " !".
    sets = [
        {text[i : i + 5] for i in range(len(text) - 4)} for text in (LONG + " yes", LONG + " ! yes")
    ]
    expected = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    assert found[2].startswith(f"Jaccard {expected:.3f} with")


def test_near_texts_of_different_media_are_none_unless_asked(tmp_path: Path, dropped) -> None:
    for number in range(3):
        saved(noise(number), tmp_path / f"{number}.png")
    saved(noise(0), tmp_path / "copy.png")
    rows = [ask(LONG, image=f"{number}.png") for number in range(3)]
    rows.append(ask(LONG + ".", image="copy.png"))
    assert list(dropped(NearTexts(), rows)) == [4]
    assert list(dropped(NearTexts(media="any"), rows)) == [2, 3, 4]


def test_a_chain_of_near_texts_keeps_what_is_far_from_the_kept(dropped) -> None:
    """a ~ b ~ c, but not a ~ c: b goes, and c stays, for what it was near to is gone."""
    words = LONG.split()
    first, second, third = (" ".join(words[n : n + 12]) for n in (0, 1, 2))
    assert list(dropped(NearTexts(threshold=0.75), [ask(first), ask(second), ask(third)])) == [2]


def test_near_images_survive_resizing_and_encoding(tmp_path: Path, dropped) -> None:
    names = [
        saved(noise(1), tmp_path / "a.png"),
        saved(noise(2), tmp_path / "b.png"),
        saved(noise(1).resize((48, 48)), tmp_path / "small.png"),
        saved(noise(1), tmp_path / "a.jpg", quality=60),
    ]
    rows = [ask("what is it?", image=name) for name in names]
    found = dropped(NearImages(), rows)
    assert list(found) == [3, 4]
    assert "bits from that of" in found[3]
    rows[2]["question"] = "how many are there?"
    assert list(dropped(NearImages(), rows)) == [4]
    assert list(dropped(NearImages(text="any"), rows)) == [3, 4]


def test_an_object_of_another_colour_is_no_near_image(tmp_path: Path, dropped) -> None:
    """The hash of two drawings may be equal; their colours are not."""
    rows = []
    for colour in ("red", "blue"):
        image = Image.new("RGB", (80, 80), "white")
        image.paste("black", (0, 40, 80, 80))
        image.paste(colour, (20, 50, 30, 60))
        rows.append(ask("what?", image=saved(image, tmp_path / f"{colour}.png")))
    assert not dropped(NearImages(), rows)
    assert list(dropped(NearImages(tolerance=None), rows)) == [2]


def test_images_of_one_colour_are_never_near(tmp_path: Path, dropped) -> None:
    names = [saved(Image.new("RGB", (9, 9), c), tmp_path / f"{c}.png") for c in ("red", "blue")]
    assert not dropped(NearImages(distance=15), [ask("which colour?", image=n) for n in names])


def test_rows_of_several_images_are_near_if_each_pair_is(tmp_path: Path, dropped) -> None:
    for number in range(3):
        saved(noise(number), tmp_path / f"{number}.png")
        saved(noise(number), tmp_path / f"{number}.jpg", quality=70)
    text = "<image> <image> same?"
    rows = [
        ask(text, images=["0.png", "1.png"]),
        ask(text, images=["0.jpg", "2.png"]),
        ask(text, images=["0.jpg", "1.jpg"]),
        ask("<image> same?", images=["0.png"]),
    ]
    assert list(dropped(NearImages(), rows)) == [3]
    assert list(dropped(NearImages(text="any"), rows)) == [3]


# --- single rows --------------------------------------------------------------------------------


def test_length_limits_are_inclusive(dropped) -> None:
    rows = [ask("x" * n, "y") for n in (1, 2, 3, 4, 5)]
    assert list(dropped(Length(of="question", min_chars=2, max_chars=4), rows)) == [1, 5]
    assert dropped(Length(min_words=2, max_words=2), [*rows, ask("a b", "c")]) == {
        6: "text of 3 words, more than 2"
    }


def test_language_keeps_what_it_cannot_tell(dropped) -> None:
    rows = [
        ask("Which of these two houses is the larger one, and where does it stand?", "the left"),
        ask("Welches der beiden Häuser ist das größere, und wo genau steht es?", "links"),
        ask("¿Cuál de estas dos casas es la más grande y dónde se encuentra?", "izquierda"),
        ask("wie?", "so"),
    ]
    found = dropped(Language(keep=("en", "es")), rows)
    assert list(found) == [2]
    assert found[2].startswith("language de with ")
    assert dropped(Language(keep=("en",), min_chars=1000), rows) == {}
    uncertain = Language(keep=("en", "es"), confidence=1.0, uncertain="drop")
    assert list(dropped(uncertain, [rows[1], rows[3]])) == [1]


def test_language_that_does_not_exist(dropped) -> None:
    with pytest.raises(UsageError, match=r"unknown code\(s\) xx; known: ace, af"):
        dropped(Language(keep=("en", "xx")), [ask("a")])


@pytest.mark.parametrize(
    ("module", "operator"),
    [("py3langid.langid", Language(keep=("en",))), ("imagehash", NearImages())],
)
def test_a_missing_library_names_the_extra(monkeypatch, dropped, module, operator) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=r"pip install '\.\[data\]'"):
        dropped(operator, [ask("a")])
    assert not dropped(ExactDuplicates(), [ask("a")])


def test_image_size_and_aspect(tmp_path: Path, dropped) -> None:
    sizes = [(10, 10), (9, 30), (40, 10), (20, 20), (30, 10)]
    rows = [
        ask("what?", image=saved(Image.new("RGB", size), tmp_path / f"{index}.png"))
        for index, size in enumerate(sizes)
    ]
    rows.append(ask("no image at all"))
    found = dropped(ImageSize(min_side=10, max_side=30, max_aspect=2.9), rows)
    assert found == {
        2: "image of 9 x 30 pixels, shorter side under 10",
        3: "image of 40 x 10 pixels, longer side over 30",
        5: "image of 30 x 10 pixels, aspect 3.00 over 2.9",
    }


# --- answer balance -----------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.floats(0.01, 1.0),
)
def test_answer_cap_is_the_largest_that_fits(rows: list[int], max_share: float) -> None:
    share = max(max_share, 1 / len(rows))
    fitting = [
        cap
        for cap in range(min(rows), max(rows) + 1)
        if cap <= share * sum(min(n, cap) for n in rows) + 1e-9
    ]
    assert answer_cap([(n, 1) for n in rows], max_share) == max(fitting)


def shares(rows: Sequence[Row], found: Dropped) -> dict[str, int]:
    kept = [row["answer"] for number, row in enumerate(rows, start=1) if number not in found]
    return {answer: kept.count(answer) for answer in set(kept)}


def test_balance_caps_each_skill_by_itself(dropped) -> None:
    rows = [ask(f"q{n}?", "yes", skill="presence", id=f"a{n}") for n in range(80)]
    rows += [
        ask(f"r{n}?", "No " if n % 2 else "no", skill="presence", id=f"b{n}") for n in range(20)
    ]
    rows += [ask(f"s{n}?", "one", skill="count", id=f"c{n}") for n in range(50)]
    found = dropped(AnswerBalance(max_share=0.6), rows)
    # 30 of 50 rows are 60 %; an answer that is alone stays.
    assert shares(rows[:100], found) == {"yes": 30, "no": 10, "No ": 10}
    assert not [number for number in found if number > 100]
    assert found[min(found)] == "'yes' answers 80 of 100 skill 'presence': 30 kept"


def test_balance_chooses_the_same_rows_in_any_order(dropped) -> None:
    rows = [ask(f"is it {n}?", "yes" if n % 5 else "no", id=str(n)) for n in range(100)]
    forward = {rows[number - 1]["id"] for number in dropped(AnswerBalance(max_share=0.5), rows)}
    back = rows[::-1]
    backward = {back[number - 1]["id"] for number in dropped(AnswerBalance(max_share=0.5), back)}
    assert forward == backward
    assert len(forward) == 60
    other = dropped(AnswerBalance(max_share=0.5, seed=1), rows)
    assert {rows[number - 1]["id"] for number in other} != forward


def test_balance_by_first_words_leaves_small_types_alone(dropped) -> None:
    rows = [ask(f"is there {n}?", "yes" if n % 4 else "no") for n in range(40)]
    rows += [ask(f"how many {n}?", "2") for n in range(5)] + [ask("how many?", "3")]
    found = dropped(AnswerBalance(max_share=0.5), rows)
    assert shares(rows[:40], found) == {"yes": 10, "no": 10}
    assert max(found) <= 40


# --- image-text similarity ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with random weights."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{x}</w>" for x in letters)]
    tokenizer = CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[])
    torch.manual_seed(0)
    shared = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(
        text_config=shared | ids | {"vocab_size": len(tokens), "max_position_embeddings": 16},
        vision_config=shared | {"image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def cosine(folder: Path, text: str, picture: Path) -> float:
    """By the model's own forward pass."""
    processor = CLIPProcessor.from_pretrained(folder)
    inputs = processor(
        text=[text],
        images=[open_image(Media("image", path=str(picture)))],
        return_tensors="pt",
    )
    with torch.inference_mode():
        found = CLIPModel.from_pretrained(folder).eval()(**inputs)
    return float(found.text_embeds[0] @ found.image_embeds[0])


def test_similarity_is_the_models_own(tmp_path: Path, dropped, encoder: Path) -> None:
    texts = ["red dog", "a cat", "two men", "b", "zebra"]
    rows = [
        {"image": saved(noise(n), tmp_path / f"{n}.png"), "caption": text}
        for n, text in enumerate(texts)
    ]
    scores = [cosine(encoder, text, tmp_path / f"{n}.png") for n, text in enumerate(texts)]
    order = sorted(range(5), key=lambda n: scores[n])
    rows.append(ask("no image: not scored"))
    limit = (scores[order[1]] + scores[order[2]]) / 2
    by_limit = ImageTextSimilarity(encoder=str(encoder), min_similarity=limit, batch_size=2)
    assert set(dropped(by_limit, rows)) == {order[0] + 1, order[1] + 1}
    by_share = ImageTextSimilarity(encoder=str(encoder), keep_share=0.6, batch_size=3)
    found = dropped(by_share, rows)
    assert set(found) == {order[0] + 1, order[1] + 1}
    assert f"similarity {scores[order[0]]:.3f}, not among the 3 highest of 5" in found.values()


def test_similarity_needs_one_limit_and_a_dual_encoder(dropped, llm_folder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="either min_similarity or keep_share"):
        ImageTextSimilarity(encoder="x", min_similarity=0.1, keep_share=0.5)
    language_model = ImageTextSimilarity(encoder=str(llm_folder("llama")), keep_share=0.5)
    with pytest.raises(UsageError, match="has no get_image_features"):
        dropped(language_model, [ask("a")])
    with pytest.raises(UsageError, match="cannot load"):
        dropped(ImageTextSimilarity(encoder=str(tmp_path), keep_share=0.5), [ask("a")])


# --- contamination ------------------------------------------------------------------------------


def test_contamination_by_media(tmp_path: Path, dropped) -> None:
    saved(noise(1), tmp_path / "eval.png")
    evaluation = tiny.write_jsonl(tmp_path / "eval.jsonl", [ask("which?", image="eval.png")])
    rows = [
        ask("what?", image=saved(noise(1), tmp_path / "copy.png")),
        ask("what?", image=saved(noise(1).resize((50, 50)), tmp_path / "near.png")),
        ask("which?", image=saved(noise(2), tmp_path / "new.png")),
    ]
    every = Contamination(against=(str(evaluation),))
    found = dropped(every, rows)
    assert list(found) == [1, 2]
    assert found[1].startswith("has a medium of ")
    assert found[1].endswith("eval.jsonl:1")
    assert list(dropped(every.model_copy(update={"distance": None}), rows)) == [1]
    assert list(dropped(every.model_copy(update={"media": False}), rows)) == [1, 2]


def test_contamination_by_text(tmp_path: Path, dropped) -> None:
    evaluation = tiny.write_jsonl(
        tmp_path / "eval.jsonl",
        [ask(LONG), ask("short one"), ask("shown", image=saved(noise(1), tmp_path / "e.png"))],
    )
    rows = [
        ask("An unrelated beginning. " + LONG.upper(), "no"),
        ask("Short one!"),
        ask("short one", "no"),
        ask("shown"),
        ask(LONG.replace("lazy", "sleepy").replace("sunny", "rainy"), "no"),
        ask("shown", image=saved(noise(2), tmp_path / "t.png")),
    ]
    found = dropped(Contamination(against=(str(evaluation),), ngram=5, overlap=0.6), rows)
    assert list(found) == [1, 2]
    # 21 words make 17 5-grams; 13 of them lie within the 17 words of the evaluation row.
    assert found[1].startswith("76% of its n-grams are in the evaluation data: 'the quick brown")
    assert not dropped(Contamination(against=(str(evaluation),), ngram=None), rows)


def test_evaluation_data_must_be_readable(tmp_path: Path, dropped) -> None:
    evaluation = tiny.write_jsonl(tmp_path / "eval.jsonl", [ask("a", image="nowhere.png")])
    with pytest.raises(DataError, match=r"eval\.jsonl:1: image .*nowhere\.png: cannot be read"):
        dropped(Contamination(against=(str(evaluation),)), [ask("b")])


def test_equal_pictures_are_opened_once(tmp_path: Path, dropped, monkeypatch) -> None:
    opened: list[str] = []

    def counted(media: Media) -> Image.Image:
        opened.append(media.label)
        return open_image(media)

    monkeypatch.setattr("modalign.data.curation.media.open_image", counted)
    saved(noise(1), tmp_path / "a.png")
    dropped(ImageSize(min_side=1), [ask(f"question {n}", image="a.png") for n in range(5)])
    assert len(opened) == 1


def test_pictures_as_bytes(tmp_path: Path, dropped) -> None:
    buffer = io.BytesIO()
    noise(1).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    saved(noise(1), tmp_path / "a.png")
    rows = [ask("what?", image="a.png"), ask("what?", image=url)]
    assert list(dropped(ExactDuplicates(), rows)) == [2]
