"""The text front end: symbols, English normalisation, pronunciations, and the door to them.

`SENTENCES` was written before the front end existed, and is the reference: a row that disagrees
with the code is judged on its reason, not copied from the output. Pronunciations in it come from
the CMU dictionary's first entry for a word.
"""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mlx_vits.errors import DataError
from mlx_vits.text import (
    CleanText,
    clean_text,
    english,
    english_words,
    letter_to_sound,
    phonemes_to_ids,
    symbols_for,
)
from mlx_vits.text.english_numbers import cardinal, ordinal, year
from mlx_vits.text.mixed import split_languages

VOICES = Path(__file__).resolve().parents[1].parent / "shared" / "voices"


def _table(name: str) -> list[list[str]]:
    """The rows of a table, written down before the front end read them, without its header."""
    lines = (Path(__file__).parent / "tables" / name).read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines[1:]]


class Row(NamedTuple):
    """One hard sentence: what it is read as, its phonemes where they are the point, and why."""

    text: str
    normalized: str
    phonemes: str | None
    why: str


SENTENCES = [
    # --- cardinals, years, decimals, fractions ---------------------------------------------
    Row("I have 3 cats.", "I have three cats.", "AY1 HH AE1 V TH R IY1 K AE1 T S .", "cardinal"),
    Row("12,345 people", "twelve thousand, three hundred forty-five people", None, "the comma "
        "groups digits; upstream's number words keep a comma after the thousands, and no 'and'"),
    Row("1,234 of 1,000,000", "one thousand, two hundred thirty-four of one million", None,
        "a number written with a comma is a count, not a year"),
    Row("In 1984 and 1905.", "In nineteen eighty-four and nineteen oh five.", None, "years"),
    Row("1900, 2000, 2005, 2010, 1066",
        "nineteen hundred, two thousand, two thousand five, twenty ten, ten sixty-six", None,
        "upstream's year readings; digits after ', ' are a list, not one number"),
    Row("the 1990s, the '80s and the 1800s",
        "the nineteen nineties, the eighties and the eighteen hundreds", None,
        "decades, not seconds"),
    Row("1914-1918", "nineteen fourteen to nineteen eighteen", None, "a range of years"),
    Row("10–20 people", "ten to twenty people", None, "a range written with an en dash"),
    Row("3.14159", "three point one four one five nine", None, "digits after the point one by one"),
    Row(".5 of it", "point five of it", None, "no digit before the point"),
    Row("version 1.2.3", "version one point two point three", None, "two points"),
    Row("It ended in 1950. Then came 20 more.",
        "It ended in nineteen fifty. Then came twenty more.", None,
        "a number at the end of a sentence is neither an ordinal nor a decimal"),
    Row("1. First item", "first, First item", None, "a numbered list's item, as upstream reads it"),
    Row("3/4 of 1/2", "three fourths of one half", None, "fractions as upstream reads them"),
    Row("2½ cups", "two and one half cups", None, "a Unicode fraction after a whole number"),
    Row("open 24/7", "open twenty-four seven", None, "an idiom, not a fraction"),
    Row("agent 007", "agent zero zero seven", None, "leading zeros are spoken"),
    Row("a 100-year-old", "a one hundred-year-old",
        "AH0 W AH1 N HH AH1 N D R AH0 D Y IH1 R OW1 L D", "hyphens make no sound"),
    Row("3 + 4 = 7", "three plus four equals seven", None, "arithmetic with spaces"),
    Row("6 × 7 − 2 ÷ 1", "six times seven minus two divided by one", None, "mathematical signs"),
    # --- ordinals and dates ----------------------------------------------------------------
    Row("the 1st, 2nd, 3rd, 22nd and 103rd",
        "the first, second, third, twenty-second and one hundred and third", None, "ordinals"),
    Row("the 21st century", "the twenty-first century",
        "DH AH0 T W EH1 N T IY0 F ER2 S T S EH1 N CH ER0 IY0", "a dictionary entry"),
    Row("March 5, 2024", "March fifth, twenty twenty-four", None, "a day after a month's name"),
    Row("Feb. 29", "February twenty-ninth", None, "an abbreviated month before a day"),
    Row("on 5 March 1990", "on the fifth of March nineteen ninety", None, "day before month"),
    Row("2024-03-05", "March fifth, twenty twenty-four", None, "an ISO date"),
    Row("7/4/1976", "July fourth, nineteen seventy-six", None, "an American date"),
    # --- money, percent, units, times, telephone -------------------------------------------
    Row("It cost $5.", "It cost five dollars.", None, "the stop ends the sentence, no decimals"),
    Row("$1 is not $1.01", "one dollar is not one dollar and one cent", None, "singulars"),
    Row("£7.14 or 20£", "seven pounds and fourteen pence or twenty pounds", None, "either side"),
    Row("€3.50, ¥500", "three euros and fifty cents, five hundred yen", None, "other currencies"),
    Row("It made $2.5 million.", "It made two point five million dollars.", None,
        "the unit follows the magnitude"),
    Row("$1,234.56", "one thousand, two hundred thirty-four dollars and fifty-six cents", None,
        "commas and cents"),
    Row("$0.99", "ninety-nine cents", None, "no dollars"),
    Row("50% of 12.5%", "fifty percent of twelve point five percent", None, "percent"),
    Row("-5 degrees", "negative five degrees", None, "a sign, not a dash"),
    Row("It was −19°C and 72 °F.",
        "It was negative nineteen degrees celsius and seventy-two degrees fahrenheit.", None,
        "a true minus sign; the unit with and without a space"),
    Row("1 km at 80 km/h", "one kilometer at eighty kilometers per hour", None, "units, singular"),
    Row("5m in 20min, 1.2s", "five meters in twenty minutes, one point two seconds", None,
        "units that touch the number, as upstream reads them"),
    Row("at 4:00, 4:05 and 13:30", "at four o'clock, four oh five and one thirty P M", None,
        "clock times; only a 24-hour one tells the half of the day"),
    Row("Meet me at 9:15 a.m. sharp.", "Meet me at nine fifteen A M sharp.",
        "M IY1 T M IY1 AE1 T N AY1 N F IH0 F T IY1 N EY1 EH1 M SH AA1 R P .", "a.m. as letters"),
    Row("He left at 5 p.m.", "He left at five P M.", None, "the last dot ends the sentence too"),
    Row("Call 555-1234.", "Call five five five, one two three four.", None, "a telephone number"),
    Row("No. 5 and #7", "number five and number seven", None, "'No.' is a word unless a number"),
    # --- abbreviations and initials --------------------------------------------------------
    Row("Mr. and Mrs. Smith met Dr. Jones.", "Mister and Missus Smith met Doctor Jones.",
        "M IH1 S T ER0 AH0 N D M IH1 S IH0 Z S M IH1 TH M EH1 T D AA1 K T ER0 JH OW1 N Z .",
        "titles; their dots are not pauses"),
    Row("St. Paul lives on Main St.", "Saint Paul lives on Main Street.", None, "saint or street"),
    Row("Prof. Lee, Ph.D., vs. Gen. Grant Jr.",
        "Professor Lee, P H D, versus General Grant Junior.", None, "more titles"),
    Row("apples, pears, etc.", "apples, pears, etc.",
        "AE1 P AH0 L Z , P EH1 R Z , EH2 T S EH1 T ER0 AH0 .", "etc. is in the dictionary"),
    Row("e.g. this, i.e. that", "for example this, that is that", None, "as upstream reads them"),
    Row("the U.S. and the U.K.", "the U S and the U K.", None, "dotted letters, the end's stop"),
    Row("J. R. R. Tolkien and George W. Bush", "J R R Tolkien and George W Bush", None,
        "initials, without a pause after each"),
    Row("Take vitamin C. Then rest.", "Take vitamin C. Then rest.", None,
        "a letter at a sentence's end keeps its stop"),
    Row("Henry VIII and World War II", "Henry the eighth and World War two", None,
        "Roman numerals where the word before tells them"),
    # --- capitals, mixed case, letters and digits ------------------------------------------
    Row("the FBI and CIA", "the F B I and C I A",
        "DH AH0 EH1 F B IY1 AY1 AH0 N D S IY1 AY1 EY1", "short capitals are spelled"),
    Row("NASA and NATO", "NASA and NATO", "N AE1 S AH0 AH0 N D N EY1 T OW0",
        "four capitals that the dictionary says as a word; upstream spells them"),
    Row("HELLO WORLD!", "HELLO WORLD!", "HH AH0 L OW1 W ER1 L D !", "shouted, not spelled"),
    Row("You must NOT go", "You must NOT go", "Y UW1 M AH1 S T N AA1 T G OW1", "emphasis"),
    Row("CDs and URLs", "C D's and U R L's", "S IY1 D IY1 Z AH0 N D Y UW1 AA1 R EH1 L Z",
        "plural letters"),
    Row("HTTP 404", "HTTP four hundred four",
        "EY2 CH T IY2 T IY2 P IY1 F AO1 R HH AH1 N D R AH0 D F AO1 R",
        "letters that the dictionary has as letters"),
    Row("XKCD comics", "X K C D comics", None, "capitals not in the dictionary"),
    Row("MP3, H2O and COVID-19", "M P three, H two O and COVID nineteen", None,
        "digits leave the letters they touch; the hyphen before 19 is no minus"),
    Row("iPhone, YouTube and OpenAI", "iPhone, YouTube and Open A I",
        "AY1 F OW2 N , Y UW1 T UW2 B AH0 N D OW1 P AH0 N EY1 AY1", "mixed case"),
    Row("AT&T & R&D", "A T and T and R and D", None, "ampersands"),
    Row("A cat", "A cat", "EY1 K AE1 T", "a capital A is always the letter, upstream's rule"),
    Row("a cat sat", "a cat sat", "AH0 K AE1 T S AE1 T", "the article"),
    # --- apostrophes, quotes, hyphens, dashes ----------------------------------------------
    Row("Don't, won't, I'll, you've, they're, she'd, I'm",
        "Don't, won't, I'll, you've, they're, she'd, I'm",
        "D OW1 N T , W OW1 N T , AY1 L , Y UW1 V , DH EH1 R , SH IY1 D , AY1 M", "contractions"),
    Row("I’d’ve gone", "I'd've gone", "AY1 D AH0 V G AO1 N", "curly, and two contractions"),
    Row("the dog's bone", "the dog's bone", "DH AH0 D AO1 G Z B OW1 N", "possessive"),
    Row("the dogs' bones", "the dogs bones", "DH AH0 D AA1 G Z B OW1 N Z", "plural possessive"),
    Row("'Twas he who said 'hello'.", "'Twas he who said hello.",
        "T W AH1 Z HH IY1 HH UW1 S EH1 D HH AH0 L OW1 .", "an apostrophe and two quotes"),
    Row("rock 'n' roll", "rock 'n roll", "R AA1 K AH0 N R OW1 L", "'n is in the dictionary"),
    Row("ten o'clock at O'Brien's", "ten o'clock at O'Brien's",
        "T EH1 N AH0 K L AA1 K AE1 T OW0 B R AY1 IH0 N Z", "apostrophes inside words"),
    Row('"Stop," she said.', "Stop, she said.", "S T AA1 P , SH IY1 S EH1 D .", "double quotes go"),
    Row("“Quoted” and ‘quoted’", "Quoted and quoted", None, "curly quotes"),
    Row("a well-known mother-in-law", "a well-known mother-in-law",
        "AH0 W EH1 L N OW1 N M AH1 DH ER0 IH0 N L AO2", "hyphens: two words, or one entry"),
    Row("x-ray, T-shirt, e-mail", "x-ray, T-shirt, e-mail",
        "EH1 K S R EY2 , T IY1 SH ER2 T , IY1 M EY2 L", "hyphenated entries, any case"),
    Row("Wait - what?", "Wait - what?", "W EY1 T - W AH1 T ?", "a spaced hyphen is a pause"),
    Row("Wait—what?", "Wait - what?", "W EY1 T - W AH1 T ?", "so is a dash"),
    Row("Wait -- what?", "Wait - what?", "W EY1 T - W AH1 T ?", "and a typed one"),
    # --- punctuation -----------------------------------------------------------------------
    Row("one; two: three", "one, two, three", "W AH1 N , T UW1 , TH R IY1", "as upstream intends"),
    Row("Well... maybe…", "Well. maybe.", "W EH1 L . M EY1 B IY0 .", "dots collapse to one"),
    Row("Really?! so,, much", "Really? so, much", None, "the first of several marks stays"),
    Row("Hi , there .", "Hi, there.", "HH AY1 , DH EH1 R .", "a space before a mark"),
    Row("(in brackets) [too]", "in brackets too", None, "brackets go"),
    Row("Ｈｅｌｌｏ，ｗｏｒｌｄ！", "Hello, world!", "HH AH0 L OW1 , W ER1 L D !", "full width"),
    Row("yes。no、maybe？", "yes. no, maybe?", None, "Chinese marks"),
    Row("line one\nline\ttwo", "line one line two", None, "any white space"),
    Row("Hi.", "Hi.", ", HH AY1 .", "three symbols: a comma goes in front, upstream's rule"),
    Row("I", "I", ", AY1", "one symbol"),
    # --- other letters, pictures, addresses ------------------------------------------------
    Row("café naïve", "cafe naive", "K AH0 F EY1 N AY2 IY1 V", "accents go"),
    Row("Søren Łódź Straße", "Soren Lodz Strasse", None, "letters that do not decompose"),
    Row("🙂 Nice 👍🏽", "Nice", ", N AY1 S", "pictures make no sound; three phonemes"),
    Row("你好 hello", "hello", "HH AH0 L OW1", "other scripts make no sound in English"),
    Row("john.doe@example.com", "john dot doe at example dot com", None, "an address"),
    Row("See https://www.example.com/a_b.", "See W W W dot example dot com slash a b.", None,
        "a web address, and the sentence's stop"),
    Row("and/or", "and or", None, "a slash between words"),
    Row("snake_case *bold* ~ok~", "snake case bold ok", None, "marks of markup"),
    Row("2001: A Space Odyssey", "two thousand one, A Space Odyssey", None, "colon after a year"),
    # --- found by trying the front end -----------------------------------------------------
    Row("from 10 a.m.-5 p.m.", "from ten A M to five P M.", None, "a range of times"),
    Row("-$5.50 is 50-50", "negative five dollars and fifty cents is fifty-fifty", None, "a debt"),
    Row("$20-30 for 7 1/2 hrs", "twenty to thirty dollars for seven and one half hours", None,
        "a range of money; a mixed fraction"),
    Row("6 ft. tall, 5'10\"", "six feet tall, five foot ten", None, "a dotted unit; a height"),
    Row("Jan 5; Dec. 2020; 12/25/99",
        "January fifth, December twenty twenty, December twenty-fifth, ninety-nine", None, "dates"),
    Row("WWII, Rocky III", "World War two, Rocky three", None, "numerals that are no letters"),
    Row("The book I read on World War I", "The book I read on World War one", None,
        "the pronoun and the numeral"),
    Row("O.K., he has two M.D.s", "O K, he has two M D's", None, "dotted letters before marks"),
    Row("At 8 a.m. He said OW!", "At eight A M. He said OW!", None, "a new sentence; a cry"),
    Row("at one:fifteen", "at one fifteen", None, "a colon inside words is no pause"),
]  # fmt: skip


@pytest.mark.parametrize("row", SENTENCES, ids=[row.text.strip() for row in SENTENCES])
def test_sentence_is_read_as_the_table_says(row: Row) -> None:
    spoken = clean_text(row.text, "en", "v2")
    assert spoken.normalized == row.normalized, row.why
    if row.phonemes is not None:
        assert " ".join(spoken.phonemes) == row.phonemes, row.why


# --- symbols -------------------------------------------------------------------------------

SYMBOL_HASHES = {
    "v1": "f7c3b280b9cc519b0829a6f182fcdd208643a07f1e20c1ab2bf4fc9e8e9a7ca6",
    "v2": "0771f6cd6f6201e8c2b0de921dc69cc04caf3f346c599d4a41413967d5674da7",
}
# fmt: off
ANCHORS = {
    "!": 0, ",": 1, "-": 2, ".": 3, "?": 4, "AA": 5, "SP": 77, "SP2": 78, "SP3": 79, "UNK": 86,
    "_": 95, "a": 96, "a1": 97, "b": 122, "zh": 320, "…": 321,
}
ANCHORS_V2 = {"[": 322, "]": 323, "ㄱ": 324, "ㅔ": 346, "停": 351, "空": 352, "Ya": 353, "Yz": 731}
# fmt: on


@pytest.mark.parametrize(("version", "count"), [("v1", 322), ("v2", 732)])
def test_symbols_are_upstreams(version: str, count: int) -> None:
    symbols = symbols_for(version)
    assert len(symbols) == count
    assert hashlib.sha256("\n".join(symbols).encode()).hexdigest() == SYMBOL_HASHES[version]
    anchors = ANCHORS if version == "v1" else {**ANCHORS, **ANCHORS_V2}
    assert phonemes_to_ids(anchors, version) == list(anchors.values())


def test_every_later_version_has_the_symbols_of_v2() -> None:
    assert symbols_for("v2Pro") == symbols_for("v2ProPlus") == symbols_for("v2")
    assert symbols_for("v2")[:322] == symbols_for("v1")


def test_an_unknown_symbol_is_named() -> None:
    assert phonemes_to_ids(["Ya"], "v2Pro") == [353]
    with pytest.raises(DataError, match="'Ya' is not one of the 322 symbols of version v1"):
        phonemes_to_ids(["AA1", "Ya"], "v1")


# --- the door ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "  ", "\n\t", "?!...", "🙂", "你好", " - ", "'", "—"])
def test_a_text_without_words_is_an_error(text: str) -> None:
    with pytest.raises(DataError, match=r"empty|no word"):
        clean_text(text, "en", "v2")


def test_an_unsupported_language_is_named_with_the_supported_ones() -> None:
    with pytest.raises(DataError, match="'xx' is not supported; supported: 'en'"):
        clean_text("hello", "xx", "v2")


def test_english_is_the_same_in_every_version_and_has_no_word2ph() -> None:
    cleaned = clean_text("Hello there.", "EN", "v1")
    assert isinstance(cleaned, CleanText)
    assert cleaned == clean_text("Hello there.", "en", "v2ProPlus")
    assert cleaned.word2ph is None


def test_a_phoneme_outside_the_symbols_becomes_unk(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = CleanText(["HH", "QQ9", "."], None, "h")
    monkeypatch.setattr(english, "clean", lambda text, version, lexicon: odd)
    assert clean_text("h", "en", "v2").phonemes == ["HH", "UNK", "."]


def test_importing_reads_no_data() -> None:
    code = "import sys, mlx_vits.text; print('mlx_vits.text.english' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


# --- numbers -------------------------------------------------------------------------------


# What inflect 7.6 (the package upstream uses) says, without its "and" in counts.
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "zero"),
        (19, "nineteen"),
        (100, "one hundred"),
        (101, "one hundred one"),
        (999, "nine hundred ninety-nine"),
        (1000, "one thousand"),
        (12345, "twelve thousand, three hundred forty-five"),
        (1000000, "one million"),
        (1000001, "one million one"),
    ],
)
def test_counts(value: int, words: str) -> None:
    assert cardinal(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1, "first"),
        (12, "twelfth"),
        (20, "twentieth"),
        (22, "twenty-second"),
        (103, "one hundred and third"),
        (1000, "one thousandth"),
        (1003, "one thousand and third"),
        (5456023, "five million, four hundred and fifty-six thousand and twenty-third"),
    ],
)
def test_ordinals(value: int, words: str) -> None:
    assert ordinal(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1066, "ten sixty-six"),
        (1805, "eighteen oh five"),
        (1900, "nineteen hundred"),
        (2000, "two thousand"),
        (2009, "two thousand nine"),
        (2010, "twenty ten"),
        (2100, "twenty-one hundred"),
    ],
)
def test_years(value: int, words: str) -> None:
    assert year(value) == words


# --- words ---------------------------------------------------------------------------------


# (the word, its phonemes, whether they are a guess); none of these is in the dictionary.
@pytest.mark.parametrize(
    ("word", "phonemes"),
    [
        ("podcasts", "P AO1 D K AE2 S T S"),
        ("Zyx", "Z IY1 W AY1 EH1 K S"),
        ("HTML's", "EY2 CH T IY2 EH2 M EH1 L Z"),
        ("barista-like", "B AA0 R IY1 S T AH0 L AY1 K"),
        ("Chomsky'll", "CH AA1 M S K IY2 AH0 L"),
    ],
)
def test_rules_for_words_outside_the_dictionary(word: str, phonemes: str) -> None:
    assert word.lower() not in english_words.dictionary()
    spoken = english_words.pronounce(word)
    assert " ".join(spoken.phonemes) == phonemes
    assert not spoken.guessed


HETERONYMS = _table("heteronyms_en.tsv")
HARD = _table("hard_en.tsv")


@pytest.mark.parametrize(("word", "phonemes", "sentence"), HETERONYMS)
def test_the_sentence_tells_heteronyms_apart(word: str, phonemes: str, sentence: str) -> None:
    """Both readings of each word, about equally often, written before the rules were."""
    assert word in sentence.lower()
    assert f" {phonemes} " in f" {' '.join(english.phonemize(sentence).phonemes)} "


@pytest.mark.parametrize(("column", "text", "expected"), [row[:3] for row in HARD])
def test_hard_texts(column: str, text: str, expected: str) -> None:
    spoken = english.phonemize(text)
    assert (spoken.normalized if column == "text" else " ".join(spoken.phonemes)) == expected


def test_unknown_words_are_guessed_and_listed() -> None:
    spoken = english.phonemize("Daenerys blorped at Sweynheim, the dog did not.")
    assert spoken.unknown == ["Daenerys", "blorped", "Sweynheim"]
    assert set(spoken.phonemes) <= set(symbols_for("v1"))


def test_the_guesser_is_right_about_regular_words() -> None:
    guess = letter_to_sound.english_letter_to_sound().pronounce
    known = {
        "knight": "N AY1 T",
        "nation": "N EY1 SH AH0 N",
        "photograph": "F OW1 T AH0 G R AE2 F",
        "string": "S T R IH1 NG",
        "thinking": "TH IH1 NG K IH0 NG",
    }
    assert {word: " ".join(guess(word)) for word in known} == known


@pytest.mark.parametrize("word", ["a", "zzzz", "qwrtpsd", "pneumono" * 20, "hmmmmm"])
def test_the_guesser_always_has_one_stressed_vowel(word: str) -> None:
    phonemes = letter_to_sound.english_letter_to_sound().pronounce(word)
    assert sum(p.endswith("1") for p in phonemes) == 1
    assert set(phonemes) <= set(symbols_for("v1"))


def test_the_dictionary_is_whole() -> None:
    assert len(english_words.dictionary()) > 120_000


# --- whatever people type ------------------------------------------------------------------


def test_no_text_crashes_the_front_end() -> None:
    rng = random.Random(0)
    marked = (
        "a B . , - -- ' \" 1 23 4,567 8.9 $ € % & @ # / : ; ! ? ( ) é ß 中 🙂 \u200b \x00 … — – − "
        "½ ² °C km Mr. St. a.m. U.S. A. II www. http:// .com x@y.z 'tis n't 1st 90s 12:30 1/2 -5"
    )
    pieces = marked.split(" ")
    for _ in range(2000):
        text = "".join(rng.choice([*pieces, " ", " "]) for _ in range(rng.randint(1, 12)))
        normalized = english.normalize(text)
        assert re.fullmatch(r"(?:[A-Za-z'-]|[,.!?](?= |$)| (?! ))*", normalized), text
        try:
            phonemes = clean_text(text, "en", "v1").phonemes
        except DataError:
            continue
        assert len(phonemes) > 1
        assert "UNK" not in phonemes, text


@pytest.mark.parametrize("ending", ["", "th", "%", "$", ".5", "/2", "km"])
def test_endless_numbers_are_read_digit_by_digit(ending: str) -> None:
    normalized = english.normalize("7" * 5000 + ending)
    assert normalized.startswith("seven seven seven")
    assert english.normalize("1,234,567,890,123,456").startswith("one two three four")


_ODD = ["a", "9", "I", ".", "a-", "A.B.", "'", "1,", "$", "12:", "/", "㎡", "x.com/", "あ1"]


@pytest.mark.parametrize("unit", _ODD)
def test_a_word_that_nobody_says_is_refused_before_it_takes_minutes(unit: str) -> None:
    odd = (unit * 8000)[:8000]
    with pytest.raises(DataError, match=r"has a word of 8,000 characters \(.*with blanks between"):
        clean_text(f"Say {odd} now.", "en")


@pytest.mark.parametrize("language", ["zh", "ja", "ko", "yue", "auto", "all_zh"])
def test_so_it_is_in_every_language(language: str) -> None:
    with pytest.raises(DataError, match=r"has a word of 8,000 characters"):
        clean_text("日本は中国" * 1600 + "12:" * 2666 + "12。", language)


def test_long_texts_and_long_words_are_read() -> None:
    assert clean_text("hello " * 2000, "en").phonemes == clean_text("hello", "en").phonemes * 2000
    assert clean_text("Dots" + "." * 400 + " and more", "en").normalized == "Dots. and more"
    assert len(clean_text("See https://x.com/" + "a/" * 200, "en").phonemes) > 400


def test_cutting_a_text_of_many_languages_takes_steps_in_proportion_to_its_length() -> None:
    def lines_run(repeats: int) -> int:
        count = 0

        def note(*_: object) -> Any:
            nonlocal count
            count += 1
            return note

        before = sys.gettrace()
        sys.settrace(note)
        try:
            split_languages("% 12 。" * repeats + "好", "auto")
        finally:
            sys.settrace(before)
        return count

    assert lines_run(200) < 5 * lines_run(50)


@pytest.mark.skipif(not VOICES.is_dir(), reason="the voices in ../shared are not here")
def test_every_transcript_of_the_voices_has_phonemes() -> None:
    for path in sorted(VOICES.glob("*/transcripts.tsv")):
        for line in path.read_text(encoding="utf-8").splitlines():
            text = line.split("\t")[-1]
            phonemes = clean_text(text, "en", "v2").phonemes
            assert "UNK" not in phonemes, text
            assert len(phonemes) == len(phonemes_to_ids(phonemes, "v2"))
