"""Files of edits: four layouts in three containers, and everything wrong in them with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tiny
from modalign.editing.edits import Neighbour
from modalign.editing.readers import conflict_free, read_edits, validate_against_tokenizer
from modalign.errors import DataError

PLAIN = {"subject": "Danielle Darrieux", "prompt": "{} speaks", "target": "English"}
ORIGINAL = {
    "case_id": 7,
    "pararel_idx": 1,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Shayna does this. Danielle Darrieux, a native"],
    "neighborhood_prompts": ["Jean Gabin is a native speaker of", "Louis Blanc speaks"],
    "attribute_prompts": ["J. R. R. Tolkien speaks"],
    "generation_prompts": ["Danielle Darrieux's mother tongue is"],
}
MEND = {
    "case_id": 0,
    "prompt": "The mother tongue of Danielle Darrieux is",
    "target_new": "English",
    "subject": "Danielle Darrieux",
    "ground_truth": "French",
    "rephrase_prompt": "Where Danielle Darrieux is from, people speak",
    "locality_prompt": "Michel Rocard is a native speaker of",
    "locality_ground_truth": "French",
}
ZSRE = {
    "subject": "UniFirst",
    "src": "What is the product made by UniFirst?",
    "pred": "shirts",
    "rephrase": "What will be the product of UniFirst?",
    "alt": "unmanned aircraft",
    "answers": ["uniform"],
    "loc": "nq question: who is walter",
    "loc_ans": "Walter Sobchak",
    "cond": "uniform >> unmanned aircraft",
}


def saved(tmp_path: Path, *records: Any, name: str = "edits.jsonl") -> Path:
    path = tmp_path / name
    if path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_edits(path)
    return str(caught.value)


def problems_of(tmp_path: Path, **changes: Any) -> str:
    """What is said about one plain record, changed."""
    record = {key: value for key, value in (PLAIN | changes).items() if value is not ...}
    return refused(saved(tmp_path, record))


def test_reads_counterfact_as_published(tmp_path: Path) -> None:
    (edit,) = read_edits(saved(tmp_path, ORIGINAL, name="edits.json"))
    assert edit.id == "7"
    assert edit.prompt == "The mother tongue of Danielle Darrieux is"
    assert edit.prompt[edit.subject_at :].startswith("Danielle Darrieux is")
    assert (edit.target, edit.truth, edit.protocol) == ("English", "French", "counterfact")
    assert edit.relation == "The mother tongue of {} is"
    assert edit.neighbours[1] == Neighbour("Louis Blanc speaks", "French")
    assert len(edit.paraphrases) == len(edit.generation_prompts) == 1


def test_reads_counterfact_in_mends_records(tmp_path: Path) -> None:
    (edit,) = read_edits(saved(tmp_path, MEND))
    assert (edit.id, edit.subject_at, edit.protocol) == ("0", 21, "counterfact")
    assert edit.neighbours == (Neighbour("Michel Rocard is a native speaker of", "French"),)
    assert edit.paraphrases == ("Where Danielle Darrieux is from, people speak",)


def test_reads_zsre(tmp_path: Path) -> None:
    other = {"src": "UniFirst makes what?"}
    corrected, given = ZSRE | other | {"alt": "uniform"}, ZSRE | other | {"alt": ""}
    first, second, third = read_edits(saved(tmp_path, ZSRE, corrected, given))
    assert (first.target, first.truth, first.protocol) == ("unmanned aircraft", "uniform", "zsre")
    assert first.neighbours == (Neighbour("nq question: who is walter?", "Walter Sobchak"),)
    # A right answer taught is a correction: nothing is known that it replaces.
    assert (second.target, second.truth) == (third.target, third.truth) == ("uniform", None)


def test_reads_a_plain_list(tmp_path: Path) -> None:
    record = PLAIN | {
        "id": "x",
        "prompt": "Here {}'s tongue is",
        "truth": " French ",
        "paraphrases": ["{} talks in", "Danielle Darrieux says"],
        "neighbours": ["Jean speaks", {"prompt": "Paul speaks", "answer": "French"}],
        "generation_prompts": ["{} is"],
        "reference_texts": ["English is a language."],
    }
    (edit,) = read_edits(saved(tmp_path, record))
    assert edit.prompt == "Here Danielle Darrieux's tongue is"
    assert edit.subject_at == 5
    assert edit.truth == "French"
    assert edit.paraphrases == ("Danielle Darrieux talks in", "Danielle Darrieux says")
    assert edit.neighbours == (Neighbour("Jean speaks"), Neighbour("Paul speaks", "French"))
    assert edit.generation_prompts == ("Danielle Darrieux is",)
    assert edit.source.endswith("edits.jsonl:1")


def test_lists_in_csv_are_json_or_separated_by_bars(tmp_path: Path) -> None:
    path = tmp_path / "edits.csv"
    path.write_text(
        "subject,prompt,target,paraphrases,neighbours,truth\n"
        '"Jo","{} likes\nmuch",tea,Jo drinks|{} takes,"[{""prompt"": ""Al likes"", ""answer"": ""ale""}]",\n'
        "Al,Al likes,milk,,Jo likes|Cy likes,ale\n"
    )
    first, second = read_edits(path)
    assert first.prompt == "Jo likes\nmuch"
    assert first.paraphrases == ("Jo drinks", "Jo takes")
    assert first.neighbours == (Neighbour("Al likes", "ale"),)
    assert first.truth is None
    assert second.neighbours == (Neighbour("Jo likes"), Neighbour("Cy likes"))
    assert second.source.endswith(":4")  # the first row spans two lines


def test_an_object_may_hold_the_list_or_be_the_edit(tmp_path: Path) -> None:
    path = tmp_path / "edits.json"
    path.write_text(json.dumps({"name": "mine", "seeds": [1, 2], "edits": [PLAIN, MEND]}, indent=1))
    assert [edit.protocol for edit in read_edits(path)] == ["plain", "counterfact"]
    path.write_text(json.dumps(PLAIN, indent=1))
    assert len(read_edits(path)) == 1
    path.write_text(json.dumps(PLAIN) + "\n" + json.dumps(MEND) + "\n")  # lines, misnamed
    assert len(read_edits(path)) == 2
    path.write_text(json.dumps({"facts": [["a", "b"]], "rels": {}}))
    assert "no list of edits" in refused(path)


@pytest.mark.parametrize("indent", [None, 1])
def test_lines_of_a_json_list_are_real(tmp_path: Path, indent: int | None) -> None:
    records = [PLAIN | {"id": str(i), "prompt": f"{i}\n{{}} eats"} for i in range(5)]
    text = "\n\n[" + ",\n".join(json.dumps(record, indent=indent) for record in records) + "\n]\n"
    path = tmp_path / "edits.json"
    path.write_text(text)
    lines = text.split("\n")
    for edit in read_edits(path):
        line = int(edit.source.rpartition(":")[2])
        start = "\n".join(lines[line - 1 :]).lstrip("[")
        assert json.JSONDecoder().raw_decode(start)[0]["id"] == edit.id


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[\n{"a": 1},\n{"a": }\n]', ":3: not valid JSON"),
        ('[\n{"a": 1}\n{"a": 2}\n]', ":3: not valid JSON"),
        ('[\n{"a": 1},\n', ":3: not valid JSON"),
        ('[{"subject": 1}]\nmore', ":2: more text"),
        ('{"edits": [{}]', "not valid JSON"),
        ('"edits"', "neither a list nor an object"),
        ("[]", "holds no edits"),
        (" \n", "holds no edits"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_broken_json_names_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "edits.json"
    path.write_text(text)
    assert said in refused(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path / "none.json")
    path = tmp_path / "edits.json"
    path.write_bytes(b'[\n{"subject": "\xff"}]')
    assert ":2: byte 15 is not UTF-8" in refused(path)
    other = tmp_path / "edits.txt"
    other.write_text("x")
    assert "Give .json" in refused(other)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "She speaks"}, "is not in 'She speaks'"),
        ({"prompt": "danielle darrieux speaks"}, "only in other capitals"),
        ({"prompt": "{} or {} speaks"}, "2 placeholders"),
        ({"paraphrases": ["{} and {}"]}, "2 placeholders"),
        ({"prompt": "Al saw Al", "subject": "Al"}, "stands 2 times"),
        ({"target": " "}, "target is empty"),
        ({"target": ...}, "target is missing"),
        ({"target": 3}, "target must be a text, not a number"),
        ({"truth": "English "}, "equals the truth"),
        ({"subject": ...}, "subject is missing"),
        ({"paraphrases": "one"}, "paraphrases must be a list, not a text"),
        ({"paraphrases": ["one", 2]}, "paraphrases, item 2, must be a text"),
        ({"paraphrases": ["one", ""]}, "item 2 is empty"),
        ({"neighbours": [3]}, "neighbours, item 1, must be a text or an object"),
        ({"neighbours": [{"answer": "x"}]}, "neighbours[1].prompt is missing"),
        ({"neighbors": ["x"]}, "unknown field neighbors: did you mean neighbours?"),
        ({"id": True}, "id must be a text or a whole number"),
        ({"image": "none.png"}, "the image none.png:"),
        ({"target": "\ud83d"}, "half a character"),
    ],
)
def test_one_wrong_record_is_told(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in problems_of(tmp_path, **changes)


def test_wrong_published_records_are_told(tmp_path: Path) -> None:
    broken = ORIGINAL | {"requested_rewrite": {"prompt": "{} is", "target_new": "English"}}
    message = refused(saved(tmp_path, broken))
    assert "requested_rewrite.subject is missing" in message
    assert "requested_rewrite.target_new must be an object, not a text" in message
    assert "requested_rewrite.target_true is missing" in message
    assert "target_true.str" not in message


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    records = [PLAIN | {"target": "", "id": i} for i in range(30)]
    message = refused(saved(tmp_path, *records))
    assert "30 problems on 30 lines, of 30 edits" in message
    assert "edits.jsonl:20: target is empty" in message
    assert "... and 10 more" in message


def test_an_unknown_column_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "edits.csv"
    path.write_text("subject,prompt,target,targt\na,a is,b,x\nc,c is,d,y\ne,f,g\n")
    message = refused(path)
    assert message.count("targt") == 1
    assert ":1: unknown field targt: did you mean target" in message
    assert ":4: 3 cells under 4 columns" in message


def test_duplicate_ids_and_conflicts(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        PLAIN | {"id": 1},
        PLAIN | {"id": "1", "prompt": "{} lives"},
        PLAIN | {"prompt": "Danielle Darrieux speaks", "target": "Czech"},
    )
    message = refused(path)
    assert ":2: the id '1' is taken by line 1" in message
    assert ":3: the target 'Czech' contradicts 'English' of line 1" in message


def test_conflicts_may_be_left_out_and_repetitions_are_told(tmp_path: Path) -> None:
    path = saved(tmp_path, PLAIN, PLAIN | {"target": "Czech"}, PLAIN, PLAIN | {"prompt": "{} eats"})
    said: list[str] = []
    edits = read_edits(path, conflicting="first", warn=said.append)
    assert [edit.id for edit in edits] == ["1", "3", "4"]
    assert said[0].endswith("give a fact a second target: 1")
    assert said[1].endswith("edits.jsonl:3: the same edit as " + str(path) + ":1")
    assert conflict_free(edits) == (edits, 0)
    assert len(read_edits(path, conflicting="first", limit=2)) == 2


def test_ids_made_up_do_not_collide(tmp_path: Path) -> None:
    path = saved(tmp_path, PLAIN, PLAIN | {"id": 1, "prompt": "{} eats"})
    assert [edit.id for edit in read_edits(path)] == ["row-1", "1"]


@pytest.mark.parametrize(
    ("subject", "prompt", "full", "at"),
    [
        ("{x} set", "The {} holds", "The {x} set holds", 4),
        ("{}", "An empty {} is a", "An empty {} is a", 9),
        ("a {}", "In C, a {} is", "In C, a {} is", 6),
        ("{0}%s", "{}'s name", "{0}%s's name", 0),
        ('"Al"', 'We call "Al", or', 'We call "Al", or', 8),
        ("東京", "東京は日本の", "東京は日本の", 0),
        ("北京", "中国的首都{}是", "中国的首都北京是", 5),
        ("Ωmega", "(Ωmega) is", "(Ωmega) is", 1),
        ("Al", "Al saw {}.", "Al saw Al.", 7),
    ],
)
def test_subjects_are_placed_by_characters(
    tmp_path: Path, subject: str, prompt: str, full: str, at: int
) -> None:
    record = {"subject": subject, "prompt": prompt, "target": "it"}
    (edit,) = read_edits(saved(tmp_path, record))
    assert (edit.prompt, edit.subject_at) == (full, at)


def test_a_subject_may_be_in_the_image_only(tmp_path: Path) -> None:
    (tmp_path / "seven.png").write_bytes(tiny.png_bytes(7))
    record = {"prompt": "What is this? It is", "target": "Gizmo", "image": "seven.png"}
    (edit,) = read_edits(saved(tmp_path, record))
    assert (edit.subject, edit.subject_at) == ("", None)
    assert edit.image == str(tmp_path / "seven.png")
    (tmp_path / "seven.png").write_bytes(b"not a picture")
    assert "the image seven.png" in refused(saved(tmp_path, record))


def test_answers_without_tokens_are_told(tmp_path: Path) -> None:
    words = {"<unk>": 0, "Al": 1, "likes": 2, "tea": 3, "ale": 4}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    good = {"subject": "Al", "prompt": "{} likes", "target": "tea", "truth": "ale"}
    edits = read_edits(saved(tmp_path, good, good | {"subject": "Cy", "target": "gin"}))
    validate_against_tokenizer(edits[:1], tokenizer)
    with pytest.raises(DataError, match=r"edits.jsonl:2: the target 'gin' has characters"):
        validate_against_tokenizer(edits, tokenizer)
    tokenizer.model_max_length = 2
    with pytest.raises(DataError, match="more than the 2"):
        validate_against_tokenizer(edits[:1], tokenizer)


@pytest.mark.skipif(not tiny.SHARED.exists(), reason="no shared files beside the repository")
@pytest.mark.parametrize(("name", "total"), [("counterfact", 1998), ("zsre", 500)])
def test_reads_the_real_files(name: str, total: int) -> None:
    edits = read_edits(_real(name), conflicting="first")
    assert len(edits) == total
    assert {edit.protocol for edit in edits} == {name}
    assert all(len(edit.paraphrases) == len(edit.neighbours) == 1 for edit in edits)


def _real(name: str) -> Path:
    return tiny.SHARED / "data" / "editing" / f"{name}.json"
