"""The text block: within the budget, whole lines, the least informative ones dropped first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modalign.errors import UsageError
from modalign.tools.block import Block, ToolLines, rank
from modalign.tools.results import Line

WORDS = ["cat", "dog", "red", "car", "tree", "on", "a"]
PLAIN = (
    "{% for tool in tools %}{% for line in tool.lines %}{{ line.text }}\n{% endfor %}{% endfor %}"
)

some_lines = st.lists(
    st.builds(
        Line,
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join),
        st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    ),
    max_size=8,
)


def words(text: str) -> int:
    """A tokenizer: one token per word."""
    return len(text.split())


def informative(lines: list[Line]) -> list[int]:
    """The rank by its definition: greedily, everything computed anew at each step."""
    frequency = {word: sum(word in line.text.split() for line in lines) for word in WORDS}
    left, said, order = list(range(len(lines))), set[str](), list[int]()

    def value(number: int) -> float:
        own = set(lines[number].text.split())
        whole = sum(1 / frequency[word] for word in sorted(own))
        return lines[number].score * sum(1 / frequency[w] for w in sorted(own - said)) / whole

    while left:
        best = max(left, key=lambda number: (value(number), -number))
        left.remove(best)
        order.append(best)
        said |= set(lines[best].text.split())
    return order


@given(some_lines)
def test_the_rank_is_its_definition(lines: list[Line]) -> None:
    assert rank(lines) == informative(lines)


@given(some_lines, some_lines, st.integers(min_value=1, max_value=30))
def test_a_block_fits_and_keeps_the_most_informative_whole_lines(
    first: list[Line], second: list[Line], budget: int
) -> None:
    block = Block(["one", "two"], PLAIN, budget, words)
    text = block.write([ToolLines("one", tuple(first)), ToolLines("two", tuple(second))])
    assert words(text) <= budget
    every = first + second
    order = informative(every)
    kept: list[int] = []
    for number in order:  # as many of the first ones as fit
        if sum(words(every[k].text) for k in [*kept, number]) > budget:
            break
        kept.append(number)
    if kept or not every:
        assert text == "".join(every[number].text + "\n" for number in sorted(kept))
    else:  # not even the best line fits: its first words
        best = every[order[0]].text.split()
        assert text == " ".join(best[:budget]) + "\n"


def test_what_repeats_is_dropped_first_whatever_its_score() -> None:
    lines = [Line("a red car", 0.9), Line("a red car", 0.99), Line("two trees", 0.1)]
    assert rank(lines) == [1, 2, 0]
    text = Block(["t"], PLAIN, 5, words).write([ToolLines("t", tuple(lines))])
    assert text == "a red car\ntwo trees\n"


def test_words_that_few_lines_say_weigh_more() -> None:
    lines = [
        Line("a photo of a dog"),
        Line("a photo of a cat"),
        Line("a photo of a zebra crossing"),
    ]
    assert rank(lines) == [0, 2, 1]


def test_one_word_that_is_too_long_is_cut_within() -> None:
    block = Block(["t"], "{{ tools[0].lines[0].text if tools[0].lines else '' }}", 4, len)
    assert block.write([ToolLines("t", (Line("abcdefgh"),))]) == "abcd"


def test_the_default_template_names_the_tools() -> None:
    sections = [ToolLines("ocr", (Line("STOP"), Line("50"))), ToolLines("tags", ())]
    assert Block(["ocr", "tags"], None, 10, words).write(sections) == "ocr: STOP; 50\n"


def test_equal_lines_give_an_equal_text() -> None:
    section = ToolLines("t", tuple(Line(f"{a} {b}") for a in WORDS for b in WORDS))
    texts = {Block(["t"], PLAIN, 20, words).write([section]) for _ in range(3)}
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ tools", "cannot be used"),
        ("{{ nothing }}", "cannot be used"),
        ("{{ tools.__class__.__mro__ }}", "cannot be used"),
        ("{{ ''.__class__ }}", "cannot be used"),
        ("one two three four", "has 4 tokens, the budget is 3"),
    ],
)
def test_templates_that_cannot_be_used(template: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Block(["t"], template, 3, words)
