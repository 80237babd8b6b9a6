"""Instruction records from annotations: true to them, balanced, and by a chat model with checks."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import tiny
from modalign.data.readers import read_records
from modalign.data.records import Record
from modalign.data.synthesis import Outputs, build_by_model, build_by_templates, read_items
from modalign.data.synthesis.by_template import make_by_templates
from modalign.data.synthesis.replies import LEAKS, read_reply
from modalign.data.synthesis.templates import load_templates, plural
from modalign.data.synthesis.views import pairs, place_of
from modalign.data.validation import validate
from modalign.endpoints import ChatEndpoint, Pace, Retries
from modalign.errors import DataError, UsageError

sys.path.insert(0, str(Path(__file__).parents[1] / "endpoints"))
from stand_in import Answer, FakeClock, StandIn, said, serving  # isort: skip

LABELS = ("cat", "dog", "person", "box", "cherry")
NLVR = tiny.SHARED / "data/nlvr/nlvr.json"


def draw_boxes(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of images of 100 x 80 with boxes of random things."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        boxes = []
        for _ in range(int(rng.integers(0, 6))):
            x, y = rng.integers(0, 70), rng.integers(0, 60)
            bbox = [int(x), int(y), int(rng.integers(5, 25)), int(rng.integers(5, 18))]
            boxes.append({"label": LABELS[int(rng.integers(5))], "bbox": bbox})
        rows.append({"image": f"{number}.png", "boxes": boxes})
    return rows


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows, and an image for each that names one."""
    for number, row in enumerate(rows):
        color = (number % 256, number // 256, 9)
        Image.new("RGB", (100, 80), color).save(folder / row["image"])
    return tiny.write_jsonl(folder / "notes.jsonl", rows)


def built(folder: Path, rows: list[dict[str, Any]], kind: Any, **options: Any) -> list[Record]:
    out = folder / "out.jsonl"
    build_by_templates(written(folder, rows), out, kind, **options)
    return read_records(out).records


def asked(record: Record) -> str:
    return record.messages[0].text


# --- boxes --------------------------------------------------------------------------------------


def singular(word: str) -> str:
    return {plural(label): label for label in LABELS}[word]


def test_answers_are_what_the_boxes_say(tmp_path: Path) -> None:
    rows = draw_boxes(60)
    by_image = {str(tmp_path / row["image"]): row["boxes"] for row in rows}
    seen: Counter[str] = Counter()
    for record in built(tmp_path, rows, "boxes", per_record=8):
        boxes = by_image[str(next(iter(record.media())).path)]
        counts = Counter(box["label"] for box in boxes)
        question, answer = asked(record), record.answer
        template = record.extra["made"]["template"]
        seen[template] += 1
        if template == "counting":
            found = re.search(r"How many (\w+)", question)
            assert found
            assert answer == str(counts[singular(found[1])])
        elif template == "presence":
            found = re.search(r"an? (\w+)", question)
            assert found
            assert answer == ("yes" if counts[found[1]] else "no")
        elif template in ("left_right", "above_below"):
            first, second = re.findall(r"the (cat|dog|person|box|cherry)", question)
            if question.startswith("On which side"):
                first, second = second, first
            one, two = (next(b["bbox"] for b in boxes if b["label"] == n) for n in (first, second))
            assert counts[first] == counts[second] == 1
            axis = template == "above_below"
            before = one[axis] + one[axis + 2] < two[axis]
            after = two[axis] + two[axis + 2] < one[axis]
            assert before != after
            assert (answer in ("left", "above")) == before
        elif template == "place":
            found = re.search(r"the (cat|dog|person|box|cherry)\?", question)
            assert found
            assert counts[found[1]] == 1
            x, y, w, h = next(b["bbox"] for b in boxes if b["label"] == found[1])
            across, down = (x + w / 2) / 100, (y + h / 2) / 80
            assert ("left" in answer, "right" in answer) == (across < 1 / 3, across > 2 / 3)
            assert ("top" in answer, "bottom" in answer) == (down < 1 / 3, down > 2 / 3)
    assert set(seen) == {
        "counting", "presence", "left_right", "above_below", "place", "occupied"
    }  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_options_are_even_over_all_and_per_question(
    tmp_path_factory: pytest.TempPathFactory, seed: int, per_record: int
) -> None:
    folder = tmp_path_factory.mktemp("even")
    items, _ = read_items(written(folder, draw_boxes(20, seed)), "boxes")
    loaded = load_templates("boxes")
    records, _, _ = make_by_templates(items, "boxes", loaded, per_record, seed)
    first = {t.name: t.question[0] for t in loaded.templates}
    overall: dict[str, Counter[str]] = defaultdict(Counter)
    each: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for record in records:
        template = record.extra["made"]["template"]
        overall[template][record.answer] += 1
        if template == "presence":  # both wordings name one thing
            thing = re.search(r"an? (\w+)", asked(record))
            assert thing
            each[template, thing[1]][record.answer] += 1
    assert max(Counter(r.extra["made"]["row"] for r in records).values()) <= per_record
    for name in first:
        if options := next(t.options for t in loaded.templates if t.name == name):
            given_ = [overall[name][option] for option in options]
            assert max(given_) - min(given_) <= 1
    for counts in each.values():
        assert abs(counts["yes"] - counts["no"]) <= 1


def test_one_seed_gives_one_file_and_another_another(tmp_path: Path) -> None:
    source = written(tmp_path, draw_boxes(12))
    files = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        build_by_templates(source, tmp_path / f"{name}.jsonl", "boxes", seed=seed)
        files.append((tmp_path / f"{name}.jsonl").read_bytes())
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize(
    ("gap", "side"), [(0.05, "left"), (0.03, None), (-0.1, None)], ids=["clear", "near", "over"]
)
def test_a_relation_needs_a_gap(gap: float, side: str | None) -> None:
    named = [("a", (0.1, 0.1, 0.3, 0.5)), ("b", (0.3 + gap, 0.1, 0.6 + gap, 0.5))]
    found = {values["first"]: values["horizontal"] for _, values in pairs(named)}
    assert found.get("a") == side
    assert found.get("b") == ("right" if side else None)


@pytest.mark.parametrize(
    ("box", "place"),
    [
        ((0.0, 0.0, 0.2, 0.2), "top left"),
        ((0.4, 0.4, 0.6, 0.6), "center"),
        ((0.45, 0.8, 0.55, 1.0), "bottom"),
        ((0.8, 0.45, 1.0, 0.55), "right"),
        ((0.25, 0.0, 0.4, 0.2), None),  # its middle is beside the line at a third
        ((0.0, 0.0, 0.6, 0.3), None),  # too wide for one place
    ],
)
def test_places(box: tuple[float, float, float, float], place: str | None) -> None:
    assert place_of(box) == place


def shares(rows: list[dict[str, Any]], scale: float) -> list[dict[str, Any]]:
    """The same boxes, the image's sides counting ``scale``."""
    sides = (100, 80, 100, 80)
    return [
        row | {"boxes": [
            box | {"bbox": [scale * x / side for x, side in zip(box["bbox"], sides, strict=True)]}
            for box in row["boxes"]
        ]}
        for row in rows
    ]  # fmt: skip


@pytest.mark.parametrize("scale", [1, 1000])
def test_boxes_by_a_scale_are_those_in_pixels(tmp_path: Path, scale: float) -> None:
    rows = draw_boxes(30)
    in_pixels = built(tmp_path, rows, "boxes")
    scaled = built(tmp_path, shares(rows, scale), "boxes", box_scale=scale)
    assert [r.messages for r in scaled] == [r.messages for r in in_pixels]


def test_shares_are_never_taken_for_pixels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"100 x 80 pixels: shares .* --box-scale 1\n"):
        built(tmp_path, [row for row in shares(draw_boxes(9), 1) if row["boxes"]][:1], "boxes")


def test_a_template_with_one_answer_is_warned_of(tmp_path: Path) -> None:
    box = [{"label": "cat", "bbox": [2, 2, 20, 16]}]
    rows = [{"image": f"{number}.png", "boxes": box} for number in range(6)]
    build_by_templates(written(tmp_path, rows), tmp_path / "out.jsonl", "boxes", per_record=9)
    card = json.loads((tmp_path / "out.card.json").read_text())
    (warning,) = (w for w in card["warnings"] if w.startswith("place: "))
    assert "all 6 answers are 'top left'" in warning
    built(tmp_path, draw_boxes(60), "boxes")
    assert json.loads((tmp_path / "out.card.json").read_text())["warnings"] == []


def test_coco_with_a_crowd(tmp_path: Path) -> None:
    Image.new("RGB", (100, 80)).save(tmp_path / "a.png")
    Image.new("RGB", (100, 80), "red").save(tmp_path / "b.png")
    whole = {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 100, "height": 80},
            {"id": 2, "file_name": "b.png", "width": 100, "height": 80},
        ],
        "categories": [{"id": 7, "name": "person"}, {"id": 8, "name": "dog"}],
        "annotations": [
            {"image_id": 1, "category_id": 7, "bbox": [0, 0, 50, 80], "iscrowd": 1},
            {"image_id": 1, "category_id": 8, "bbox": [60, 0, 20, 20], "iscrowd": 0},
        ],
    }
    source = tmp_path / "instances.json"
    source.write_text(json.dumps(whole))
    build_by_templates(source, tmp_path / "out.jsonl", "boxes", per_record=20)
    records = read_records(tmp_path / "out.jsonl").records
    about_people = [r for r in records if "person" in asked(r) or "people" in asked(r)]
    assert {r.extra["made"]["template"] for r in about_people} == {"presence"}
    assert {r.answer for r in about_people if r.group == "b.png"} <= {"no"}
    assert any(asked(r).startswith("How many dogs") for r in records)


@pytest.mark.parametrize(
    ("box", "said_"),
    [
        ({"label": "cat", "bbox": [90, 0, 20, 10]}, "leaves the image of 100 x 80"),
        ({"label": "cat", "box": [30, 30, 20, 40]}, "empty or turned"),
        ({"label": "cat", "bbox": [1, 2, 3]}, "not four numbers"),
        ({"bbox": [1, 2, 3, 4]}, "has no name"),
        ({"label": "cat", "bbox": [float("nan"), 2, 3, 4]}, "NaN is not a JSON number"),
    ],
)
def test_wrong_boxes_name_their_row(tmp_path: Path, box: dict[str, Any], said_: str) -> None:
    source = written(tmp_path, [*draw_boxes(3), {"image": "9.png", "boxes": [box]}])
    with pytest.raises(DataError, match=said_) as error:
        build_by_templates(source, tmp_path / "out.jsonl", "boxes")
    assert f"{source}:4" in str(error.value)
    assert not (tmp_path / "out.jsonl").exists()
    card = build_by_templates(source, tmp_path / "out.jsonl", "boxes", skip_broken="25%")
    assert card.unusable == {"row": 1}


# --- captions -----------------------------------------------------------------------------------

CAPTIONS = (
    "A brown horse grazes beside wooden fences.",
    "Three sailors repair torn sails.",
    "An empty kitchen with yellow walls.",
    "Children throw snowballs under streetlights.",
    "A violin rests against stacked books.",
    "Two trains pass across iron bridges.",
)


def caption_rows() -> list[dict[str, Any]]:
    return [{"image": f"{i}.png", "caption": text} for i, text in enumerate(CAPTIONS)]


def test_captions_are_described_and_told_from_foreign_ones(tmp_path: Path) -> None:
    records = built(tmp_path, caption_rows(), "captions", per_record=5)
    right = {f"{i}.png": text for i, text in enumerate(CAPTIONS)}
    seen: set[tuple[str, str]] = set()
    for record in records:
        template, own = record.extra["made"]["template"], right[record.group or ""]
        if template == "describe":
            assert record.answer == own
            assert (record.skill, record.extra["kind"]) == ("caption", "caption")
        elif template == "statement":
            assert record.answer == ("yes" if own in asked(record) else "no")
        else:
            texts = re.findall(r'[AB]: "([^"]*)"', asked(record))
            assert texts["AB".index(record.answer)] == own
            assert record.options == ("A", "B")
        seen.add((template, record.answer if template != "describe" else ""))
    expected = {("describe", ""), ("statement", "yes"), ("statement", "no"),
                ("choice", "A"), ("choice", "B")}  # fmt: skip
    assert seen == expected
    assert validate(read_records(tmp_path / "out.jsonl")).report.dropped == 0


def test_a_like_caption_of_another_image_is_no_negative(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "caption": "A brown horse grazes."} for i in range(4)]
    records = built(tmp_path, rows, "captions", per_record=5)
    assert {record.answer for record in records} == {"A brown horse grazes.", "yes"}


def test_a_caption_with_a_mark_is_set_aside(tmp_path: Path) -> None:
    rows = [*caption_rows(), {"image": "9.png", "caption": "The word <image> on gravestones."}]
    built(tmp_path, rows, "captions")
    card = json.loads((tmp_path / "out.card.json").read_text())
    lines = (tmp_path / "out.rejected.jsonl").read_text().splitlines()
    assert card["rejected"] == {"contains the placeholder <image>": len(lines)}
    assert json.loads(lines[0])["reason"] == "contains the placeholder <image>"
    assert validate(read_records(tmp_path / "out.jsonl")).report.dropped == 0


# --- structure ----------------------------------------------------------------------------------


def test_attributes(tmp_path: Path) -> None:
    colors = ("red", "blue", "green")
    rows = [
        {"image": f"{i}.png", "attributes": {"color": colors[i % 3], "wet": i % 2 == 0}}
        for i in range(9)
    ]
    records = built(tmp_path, rows, "structure", per_record=6)
    for record in records:
        truth = rows[int((record.group or "").split(".")[0])]["attributes"]
        said_ = {"color": truth["color"], "wet": "yes" if truth["wet"] else "no"}
        name = "color" if "color" in asked(record) else "wet"
        if record.extra["made"]["template"] == "attribute":
            assert record.answer == said_[name]
        else:
            assert record.answer == ("yes" if f"{name} {said_[name]}?" in asked(record) else "no")


@pytest.mark.skipif(not NLVR.exists(), reason="needs ../shared/data/nlvr")
def test_nlvr_scenes(tmp_path: Path) -> None:
    rows = json.loads(NLVR.read_text())[:80]
    source = tmp_path / "scenes.json"
    source.write_text(json.dumps(rows))
    out = tmp_path / "out.jsonl"
    card = build_by_templates(
        source, out, "structure", templates=["nlvr"], per_record=8, media_root=str(NLVR.parent)
    )
    assert set(card.skills) == {
        "attribute", "counting", "grouping", "presence", "relation", "statement"
    }  # fmt: skip
    color = {"#0099ff": "blue", "Yellow": "yellow", "Black": "black"}
    size = {10: "small", 20: "medium", 30: "big"}
    for record in read_records(out).records:
        row = rows[record.extra["made"]["row"] - 1]
        assert record.group == f"sentence-{row['image'].split('-')[1]}"
        words = [
            [{color[t["color"]], size[t["size"]], t["type"]} for t in box] for box in row["boxes"]
        ]
        template, question = record.extra["made"]["template"], asked(record)
        if template == "sentence":
            assert row["sentence"].strip() in question
            assert record.answer == {"true": "yes", "false": "no"}[row["label"]]
            continue
        named = {w for w in (*color.values(), *size.values()) if re.search(rf"\b{w}\b", question)}
        named |= {w for w in ("square", "triangle", "circle") if w in question}
        fit = [sum(named <= thing for thing in box) for box in words]
        if template == "counting":
            assert record.answer == str(sum(fit))
        elif template == "presence":
            assert record.answer == ("yes" if sum(fit) else "no")
        elif template == "most":
            best = ("left", "middle", "right").index(record.answer)
            assert all(fit[best] > n for place, n in enumerate(fit) if place != best)
        elif template == "group_presence":
            place = ("left", "middle", "right").index(question.split()[-2])
            assert record.answer == ("yes" if fit[place] else "no")
        elif template == "only":
            (thing,) = [thing for box in words for thing in box if named <= thing]
            assert record.answer in thing - named


# --- templates ----------------------------------------------------------------------------------

OWN = """
from: boxes
without: [counting, presence, left_right, above_below, place, occupied]
templates:
  - {name: many, each: label, skill: many, question: "%s", answer: "%s"}
"""


def test_own_templates(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(OWN % ("Many {{ label | plural }}?", "{{ 'yes' if count > 1 else 'no' }}"))
    records = built(tmp_path, draw_boxes(5), "boxes", templates=[str(file)])
    assert {record.skill for record in records} == {"many"}


@pytest.mark.parametrize(
    ("question", "said_"),
    [
        ("{{ colour }}", "'colour' is undefined; its variables are count, label, row"),
        ("{{ label", "unexpected end of template"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ row.update({'image': 'x'}) }}", "unsafe|not safely callable"),
    ],
)
def test_wrong_templates(tmp_path: Path, question: str, said_: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(OWN % (question, "yes"))
    with pytest.raises(UsageError, match=said_):
        built(tmp_path, draw_boxes(5), "boxes", templates=[str(file)])


@pytest.mark.parametrize(
    ("text", "said_"),
    [
        ("from: captions", "its templates read captions, but --from is boxes"),
        ("from: boxes\ncolour: red", "colour: there is no such field"),
        ("from: boxes\nwithout: [nothing]", "without lists 'nothing', which is not a template"),
        (OWN.replace("each: label", "each: caption") % ("q", "a"), "each 'caption'; boxes have"),
    ],
)
def test_wrong_template_files(tmp_path: Path, text: str, said_: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=said_):
        load_templates("boxes", [str(file)])


# --- by a chat model ----------------------------------------------------------------------------


def pairs_of(*texts: tuple[str, str]) -> str:
    return json.dumps({"pairs": [{"question": q, "answer": a, "skill": "What"} for q, a in texts]})


GOOD = pairs_of(("What is it?", "A horse."), ("Where does it stand?", "Beside fences."))


def written_by_model(
    folder: Path, stand_in: StandIn, rows: list[dict[str, Any]] | None = None, **options: Any
) -> Any:
    source = folder / "notes.jsonl"
    if not source.exists():
        source = written(folder, rows or caption_rows()[:1])
    outputs = Outputs(folder / "out.jsonl")
    clock = FakeClock()
    client = ChatEndpoint(
        stand_in.url,
        "m",
        cache=outputs.replies,
        pace=Pace(concurrency=2, clock=clock),
        retries=Retries(attempts=2),
    )
    options = {"per_record": 2, **options}
    return build_by_model(source, outputs.records, "captions", client, **options)


def test_a_reply_becomes_records(tmp_path: Path) -> None:
    with serving([said(f"Here you are:\n```json\n{GOOD}\n```")]) as stand_in:
        card = written_by_model(tmp_path, stand_in)
    (body,) = stand_in.bodies
    prompt = body["messages"][0]["content"]
    assert CAPTIONS[0] in prompt
    assert '"pairs"' in prompt
    records = read_records(tmp_path / "out.jsonl").records
    assert [(asked(r), r.answer, r.skill) for r in records] == [
        ("What is it?", "A horse.", "what"),
        ("Where does it stand?", "Beside fences.", "what"),
    ]
    assert {r.group for r in records} == {"0.png"}
    assert (card.records, card.rejected, card.retried) == (2, {}, 0)
    assert card.usage["requests"] == 1


def test_images_are_sent_only_where_asked(tmp_path: Path) -> None:
    with serving(lambda *_: said(GOOD)) as stand_in:
        written_by_model(tmp_path, stand_in)
        written_by_model(tmp_path, stand_in, send_images=True)
    assert isinstance(stand_in.bodies[0]["messages"][0]["content"], str)
    text, image = stand_in.bodies[1]["messages"][0]["content"]
    assert text["type"] == "text"
    assert image["image_url"]["url"].startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        ("I cannot do that.", "not JSON"),
        ('{"pairs": []}', "no list of pairs"),
        (pairs_of(("What is it?", "")), "answer: string too short"),
        (pairs_of(("What is it?", "x" * 1001)), "answer: string too long"),
        (pairs_of(("According to the caption, what is it?", "A horse.")), "reveals its source"),
        (pairs_of(("What is <image> about?", "A horse.")), "contains the placeholder <image>"),
        ('{"pairs": [{"question": "What is it?"}]}', "answer: missing"),
    ],
)
def test_a_faulty_reply_is_retried_once_then_kept_aside(
    tmp_path: Path, first: str, reason: str
) -> None:
    with serving([said(first), said(GOOD)]) as stand_in:
        card = written_by_model(tmp_path, stand_in)
    told = stand_in.bodies[1]["messages"]
    assert [turn["role"] for turn in told] == ["user", "assistant", "user"]
    assert told[1]["content"] == first
    assert reason in told[2]["content"]
    assert (card.records, card.retried, card.rejected) == (2, 1, {})
    again = tmp_path / "again"
    again.mkdir()
    with (
        serving(lambda *_: said(first)) as stand_in,
        pytest.raises(DataError, match=re.escape(reason)),
    ):
        written_by_model(again, stand_in)
    assert len(stand_in.bodies) == 2
    (line,) = (again / "out.rejected.jsonl").read_text().splitlines()
    assert reason in json.loads(line)["reason"]
    assert json.loads(line)["row"] == 1


def test_good_pairs_of_a_faulty_reply_stay_and_duplicates_go(tmp_path: Path) -> None:
    mixed = pairs_of(("What is it?", "A horse."), ("Is the caption long?", "yes"))
    second = pairs_of(("what is it", "A mare."), ("Is it brown?", "yes"))
    with serving([said(mixed), said(second)]) as stand_in:
        card = written_by_model(tmp_path, stand_in)
    records = read_records(tmp_path / "out.jsonl").records
    assert [asked(r) for r in records] == ["What is it?", "Is it brown?"]
    assert (card.duplicates, card.retried) == (1, 1)


def test_a_build_cut_short_asks_only_for_what_it_lacks(tmp_path: Path) -> None:
    ill = True

    def answer(body: dict[str, Any], _: int) -> Answer:
        if ill and CAPTIONS[4] in body["messages"][0]["content"]:
            return Answer({"error": {"message": "bad gateway"}}, status=502)
        return said(GOOD)

    with serving(answer) as stand_in:
        card = written_by_model(tmp_path, stand_in, caption_rows())
        assert (card.records, card.rejected) == (10, {"no reply": 1})
        asked_before, ill = len(stand_in.bodies), False
        card = written_by_model(tmp_path, stand_in)
        new = stand_in.bodies[asked_before:]
    assert [CAPTIONS[4] in body["messages"][0]["content"] for body in new] == [True]
    assert (card.usage["requests"], card.usage["cached"]) == (1, 5)
    assert (card.records, card.rejected) == (12, {})


def test_a_wrong_model_name_ends_the_build(tmp_path: Path) -> None:
    with serving(lambda *_: Answer({"error": {"message": "no such model"}}, 404)) as stand_in:
        stand_in.models = ["other"]
        with pytest.raises(UsageError, match="it has other"):
            written_by_model(tmp_path, stand_in)


@pytest.mark.parametrize(
    "text",
    ["As stated in the caption, yes.", "Based on the description, two.", "In the provided caption.",
     "The bounding box is at the left."],
)  # fmt: skip
def test_leaks(text: str) -> None:
    assert LEAKS.search(text)


@pytest.mark.parametrize(
    "text",
    ["The text on the sign says STOP.", "A boxer stands in the ring.", "A man from the village.",
     "Which attributes does it have?"],
)  # fmt: skip
def test_ordinary_wording_is_no_leak(text: str) -> None:
    assert not LEAKS.search(text)


@given(st.text(max_size=200))
def test_no_reply_breaks_the_reading(text: str) -> None:
    checked = read_reply(text, set(), 3)
    assert checked.faults or checked.pairs or checked.duplicates


# --- files --------------------------------------------------------------------------------------


def test_the_card_counts_what_is_in_the_file(tmp_path: Path) -> None:
    records = built(tmp_path, draw_boxes(20), "boxes")
    card = json.loads((tmp_path / "out.card.json").read_text())
    by_name = Counter(record.extra["made"]["template"] for record in records)
    assert {name: made["records"] for name, made in card["made"].items()} == by_name
    assert card["skills"] == Counter(record.skill for record in records)
    assert card["records"] == len(records)
    assert (card["rows"], card["groups"]) == (20, len({r.group for r in records}))
    presence = Counter(r.answer for r in records if r.skill == "presence")
    assert card["made"]["presence"]["answers"] == presence


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path / "out.jsonl")
    outputs.check_free()
    (tmp_path / "out.replies.sqlite").touch()
    with pytest.raises(UsageError, match=r"out\.replies\.sqlite exists: --resume"):
        outputs.check_free()
    outputs.check_free(resume=True)
    outputs.check_free(overwrite=True)
    with pytest.raises(UsageError, match="give only one of them"):
        outputs.check_free(resume=True, overwrite=True)
    outputs.replies.unlink()
    outputs.card.write_text("{}")
    with pytest.raises(UsageError, match=r"out\.card\.json exists already: --overwrite"):
        outputs.check_free()
    with pytest.raises(UsageError, match="name the output"):
        Outputs(tmp_path / "out.csv").check_free()


# --- the command line ---------------------------------------------------------------------------


def test_the_verb(cli: Any, tmp_path: Path) -> None:
    source, out = written(tmp_path, caption_rows()), tmp_path / "made" / "out.jsonl"
    arguments = ("data", "build", source, "-o", out, "--from", "captions")
    code, printed, _ = cli(*arguments, "--json")
    assert (code, json.loads(printed)["records"]) == (0, len(read_records(out).records))
    code, _, err = cli(*arguments)
    assert code == 2
    assert "--overwrite" in err
    code, _, err = cli(*arguments[:-1], "pictures")
    assert code == 2
    code, _, err = cli(*arguments, "--endpoint", "http://localhost:1/v1")
    assert (code, "--endpoint and --model go together" in err) == (2, True)
    code, _, err = cli(*arguments, "--prompt", source)
    assert (code, "need --endpoint" in err) == (2, True)
    with serving(lambda *_: said(GOOD)) as stand_in:
        named = ("--endpoint", stand_in.url, "--model", "m", "--per-record", "1")
        code, printed, _ = cli(*arguments, *named, "--resume", "--json")
    card = json.loads(printed)
    assert (code, card["maker"], card["records"]) == (0, "model", len(CAPTIONS))
