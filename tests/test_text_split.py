"""How a text is cut into the pieces that are spoken: upstream's goldens, its faults, pauses."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from mlx_vits.synthesis.pauses import Pause, split_pauses
from mlx_vits.synthesis.text_marks import SPLITTERS, TextError, collapse_marks, first_clause
from mlx_vits.synthesis.text_split import (
    LONGEST,
    METHODS,
    cut,
    finish_prompt,
    pre_segment,
    split_long,
)
from mlx_vits.synthesis.upstream_split import merge_short, upstream_split_long
from tests.support.goldens import values

LETTERS = [
    "今天",
    "a",
    "B",
    "1",
    "2",
    ".",
    ",",
    "。",
    "，",
    "…",
    "—",
    "”",
    '"',
    " ",
    "\n",
    "~",
    "ー",
]


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    loaded: dict[str, Any] = values("text_split", "text_split.json")
    return loaded


def outcome(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return function(*args, **options)
    except (ValueError, IndexError) as error:
        return error


def agrees(found: Any, expected: Any) -> bool:
    """Whether a result is the stored one, or an exception of the stored kind."""
    if isinstance(expected, dict):
        return expected["error"] in [kind.__name__ for kind in type(found).__mro__]
    return bool(found == expected)


@pytest.mark.parametrize("method", METHODS)
def test_compat_cuts_as_upstream(stored: dict[str, Any], method: str) -> None:
    for case in stored["cases"]:
        text, language = case["text"], case["lang"]
        assert agrees(outcome(cut, text, method, compat=True), case["cut"][method]), text
        pieces = outcome(pre_segment, text, language, method, compat=True)
        assert agrees(pieces, case["pre_seg"][method]), text


def test_compat_helpers_are_upstreams(stored: dict[str, Any]) -> None:
    assert sorted(SPLITTERS) == sorted(stored["splitters"])
    for case in stored["cases"]:
        text = case["text"]
        assert collapse_marks(text, compat=True) == case["collapsed"]
        assert first_clause(text) == case["first"]
        if case["prompt_text"] != "no prompt":
            prompt = outcome(finish_prompt, text, case["lang"], compat=True)
            assert agrees(prompt, case["prompt_text"]), text
    for case in stored["merge_short"]:
        assert merge_short(case["texts"], case["threshold"]) == case["out"]
    texts = [case["text"] for case in stored["cases"]]
    for case in stored["split_big_text"]:
        cut_up = [
            upstream_split_long(t, case["max_len"]) for t in texts if len(t) == case["text_len"]
        ]
        assert case["out"] in cut_up


def test_the_last_group_of_cut1_is_no_longer_than_the_others() -> None:
    assert cut("一，二，三，四，五，六，七，八，九。", "cut1").split("\n") == [
        "一，二，三，四，",
        "五，六，七，八，",
        "九。",
    ]


@pytest.mark.parametrize("method", ["cut1", "cut2"])
def test_english_gets_no_chinese_full_stop(method: str) -> None:
    assert cut("First one, then another", method) == "First one, then another"
    assert pre_segment("First one, then another", "en", method) == ["First one, then another."]


def test_a_number_at_the_end_of_a_sentence_ends_it() -> None:
    text = "In 2024. Then he left. Pi is 3.14. Bye."
    assert cut(text, "cut4").split("\n") == ["In 2024", " Then he left", " Pi is 3.14", " Bye"]
    assert pre_segment(text, "en", "cut4") == [
        "In 2024.",
        " Then he left.",
        " Pi is 3.14.",
        " Bye.",
    ]


@pytest.mark.parametrize("method", METHODS)
def test_numbers_names_and_addresses_stay_whole(method: str) -> None:
    for text in (
        ".5 is a half",
        "It costs 1,000.50 at 10:30",
        "See main.py",
        "At 9 a.m",
        "https://a.b",
    ):
        assert cut(text, method) == text


def test_cut5_cuts_at_every_mark() -> None:
    text = "one~ two— three; four: five；six，seven、eight"
    assert cut(text, "cut5").split("\n") == [
        "one~",
        " two—",
        " three;",
        " four:",
        " five；",
        "six，",
        "seven、",
        "eight",
    ]


def test_closing_quotes_stay_with_their_sentence() -> None:
    assert pre_segment("他说：“明天我们就出发。”我点点头。", "zh", "cut3") == [
        "他说：“明天我们就出发。”",
        "我点点头。",
    ]
    assert pre_segment('"Quoted," she said, "ends here."', "en", "cut0") == [
        '"Quoted," she said, "ends here."'
    ]


@pytest.mark.parametrize("method", METHODS)
def test_lines_are_not_glued_together(method: str) -> None:
    assert pre_segment("苹果，\n香蕉\n梨子", "all_zh", method)[-1].endswith("香蕉。梨子。")
    assert pre_segment("Ship\nMe\r\nThat", "en", method) == ["Ship.", "Me. That."]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("text", ["", " ", "\n", "...", "。。。", "- - -", "“”《》？", "🎵", "___"])
def test_a_text_without_a_word_is_refused(text: str, method: str) -> None:
    assert cut(text, method) == ""
    with pytest.raises(TextError, match="at least one word"):
        pre_segment(text, "zh", method)


def test_an_unknown_method_is_refused() -> None:
    for compat in (False, True):
        with pytest.raises(TextError, match="cut0 to cut5"):
            cut("Hello", "cut6", compat=compat)


def test_repeated_marks_collapse_in_every_method_but_not_in_numbers() -> None:
    for method in METHODS:
        pieces = pre_segment("Really?! It was -.5 degrees...", "en", method)
        assert "".join(pieces) == "Really? It was -.5 degrees."


@pytest.mark.parametrize(
    ("text", "end"),
    [("没有标点" * 400 + "，尾巴。", "尾巴。"), ("word " * 500, "word.")],
)
def test_a_clause_that_is_too_long_is_cut(text: str, end: str) -> None:
    pieces = pre_segment(text, "en" if text.isascii() else "zh", "cut5")
    assert all(0 < len(piece) <= LONGEST for piece in pieces)
    assert "".join(pieces).replace("。", "").replace(".", "").replace(" ", "") == (
        text.replace("。", "").replace(" ", "")
    )
    assert pieces[-1].endswith(end)
    assert all(piece.strip(" .").endswith("word") for piece in pieces if text.isascii())


def test_the_prompt_ends_in_a_mark_unless_there_is_none() -> None:
    assert finish_prompt(" Hello there\n", "en") == "Hello there."
    assert finish_prompt("他说“好。”", "zh") == "他说“好。”"
    assert finish_prompt("\n", "zh") == finish_prompt("。", "zh") == ""


@pytest.mark.parametrize("method", METHODS)
def test_any_text_keeps_its_words_and_has_pieces_that_can_be_spoken(method: str) -> None:
    draw = random.Random(method)
    for length in range(1, 300):
        text = "今" + "".join(draw.choices(LETTERS, k=length))
        pieces = pre_segment(text, "zh", method)
        words = [character for character in text if character.isalnum()]
        assert [c for piece in pieces for c in piece if c.isalnum()] == words
        assert all(any(c.isalnum() for c in piece) for piece in pieces)
        parts = [part for piece in pieces for part in split_long(piece, "zh", 20)]
        assert all(0 < len(part) <= 20 for part in parts)
        assert [c for part in parts for c in part if c.isalnum()] == words


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("今天天气很好，我们去公园散步吧。", "cut1"),
        ("a。 。 。 。 。 。 。 。 ", "cut5"),
        ("1.", "cut4"),
        ("没有标点", "cut2"),
        ("，", "cut0"),
        ("a[pause 1s]", "cut3"),
    ],
)
def test_a_book_takes_no_longer_than_its_length_asks(text: str, method: str) -> None:
    # Where the time grows with the square of the length, one of these takes minutes.
    book = text * (400_000 // len(text)) + "end"
    assert pre_segment(book, "zh", method)
    assert pre_segment(book, "zh", method, compat=True)
    assert split_pauses(book)


def test_pauses_are_taken_out_of_a_text() -> None:
    text = "One. [pause 0.8s] Two [PAUSE 800ms], three[pause: 1.5][pause .25 seconds]"
    assert split_pauses(text) == [
        "One. ",
        Pause(0.8),
        " Two ",
        Pause(0.8),
        ", three",
        Pause(1.5),
        Pause(0.25),
    ]
    assert split_pauses("Hello [pause 1s].") == ["Hello ", Pause(1.0)]
    assert split_pauses("[pause 60s]") == [Pause(60.0)]


@pytest.mark.parametrize("text", ["No mark.", "", "...", "[paused] it", "[Pausenraum]", "pause 1s"])
def test_other_brackets_are_text(text: str) -> None:
    assert split_pauses(text) == [text]


@pytest.mark.parametrize(
    "mark",
    [
        "[pause]",
        "[pause 1",
        "[pause -1s]",
        "[pause 1m]",
        "[pause nan]",
        "[pause 1e3]",
        "[pause 1 2]",
    ],
)
def test_a_pause_that_cannot_be_read_is_named(mark: str) -> None:
    with pytest.raises(TextError) as error:
        split_pauses(f"One {mark} two")
    assert mark in str(error.value)
    assert "[pause 800ms]" in str(error.value)


@pytest.mark.parametrize("mark", ["[pause 61s]", "[pause 60001ms]", "[pause 999999999]"])
def test_a_pause_over_a_minute_is_refused(mark: str) -> None:
    with pytest.raises(TextError, match="longer than 60 seconds"):
        split_pauses(f"One {mark} two")
