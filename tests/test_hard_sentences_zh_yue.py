"""Hard sentences of Chinese and Cantonese, against tables written before the front ends read them.

`tables/hard_zh.tsv` and `tables/hard_yue.tsv` have a sentence a row: the sentence, its code of
`clean_text`, what it is read as, the phonemes that must occur in a row, and the reason. A row that
was wrong itself says so after "corrected:". Two tests beside them ask the libraries themselves:
pypinyin for every character of the Chinese sentences, ToJyutping for whole Cantonese ones.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from mlx_vits.text import clean_text, phonemes_to_ids
from mlx_vits.text.chinese_words import pinyin_table
from tests.test_languages import needs

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import compare_polyphones

TABLES = Path(__file__).parent / "tables"
MARKS = ",.!?…-"


class Row(NamedTuple):
    """A line of a table."""

    sentence: str
    language: str
    read_as: str
    phonemes: str
    reason: str


def table(language: str) -> list[Row]:
    lines = (TABLES / f"hard_{language}.tsv").read_text(encoding="utf-8").splitlines()
    return [Row(*line.split("\t")) for line in lines if not line.startswith("# ")]


CHINESE, CANTONESE = table("zh"), table("yue")


def check(row: Row) -> None:
    cleaned = clean_text(row.sentence, row.language, "v2")
    assert cleaned.normalized == row.read_as, row.reason
    assert f" {row.phonemes} " in f" {' '.join(cleaned.phonemes)} ", row.reason


@needs("zh")
@pytest.mark.parametrize("row", CHINESE, ids=[row.sentence for row in CHINESE])
def test_chinese(row: Row) -> None:
    check(row)


@needs("yue")
@pytest.mark.parametrize("row", CANTONESE, ids=[row.sentence for row in CANTONESE])
def test_cantonese(row: Row) -> None:
    check(row)


@pytest.mark.parametrize("rows", [CHINESE, CANTONESE], ids=["zh", "yue"])
def test_the_tables_are_whole(rows: list[Row]) -> None:
    assert len({row.sentence for row in rows}) == len(rows) >= 40
    for row in rows:
        assert phonemes_to_ids(row.phonemes.split(), "v2")
        assert row.reason


# --- against the libraries ---------------------------------------------------------------------


def pypinyin_tones(character: str) -> dict[tuple[str, str], set[str]]:
    """The initial and final of each reading that pypinyin knows of a character, with its tones."""
    import pypinyin

    known: dict[tuple[str, str], set[str]] = {}
    style = pypinyin.Style.TONE3
    readings = pypinyin.pinyin(character, style, heteronym=True, neutral_tone_with_five=True)
    for reading in readings[0]:
        symbols = pinyin_table().get(reading[:-1].replace("ü", "v"))
        if symbols:
            known.setdefault(symbols, set()).add(reading[-1])
    return known


@needs("zh")
def test_every_reading_of_chinese_is_one_that_pypinyin_knows() -> None:
    """The tone too, but where the rules change it: 3 to 2, any to neutral, 不, 一 and 儿."""
    changed = {"不": set("24"), "一": set("124"), "儿": set("1234")}
    strange = []
    for row in CHINESE:
        if row.language != "zh":
            continue
        cleaned = clean_text(row.sentence, "zh", "v2")
        phonemes = iter(cleaned.phonemes)
        for character in cleaned.normalized:
            initial = next(phonemes)
            if character in MARKS:
                continue
            final, tone = re.fullmatch(r"(.+)([1-5])", next(phonemes)).groups()
            tones = pypinyin_tones(character).get((initial, final), set())
            allowed = tones | {"5"} | ({"2"} if "3" in tones else set())
            if not tones or tone not in allowed | changed.get(character, set()):
                strange.append((row.sentence, character, initial, final, tone))
    assert strange == []


# The vowels that upstream's splitting takes for an initial where a syllable begins with one.
VOWELS = ("aa", "ai", "au", "ap", "at", "ak", "a", "e", "ong", "on", "ou", "oi", "ok", "o", "uk")


def jyutping_symbols(syllable: str) -> list[str]:
    """A syllable of ToJyutping in GPT-SoVITS's symbols: "Y" before both, the tone on the second."""
    letters, tone = syllable[:-1], syllable[-1]
    consonants = re.match("(ng|gw|kw|[bcdfghjklmnpstwz])?", letters)
    first = consonants[0] or next(vowel for vowel in VOWELS if letters.startswith(vowel))
    rest = letters[len(first) :] or first[-1]
    return [f"Y{first}", f"Y{rest}{tone}"]


@needs("yue")
def test_cantonese_is_what_tojyutping_says() -> None:
    import ToJyutping

    for row in CANTONESE:
        if row.language != "yue":
            continue
        readings = ToJyutping.get_jyutping_list(row.read_as)
        spoken = [
            symbol
            for character, reading in readings
            for symbol in (jyutping_symbols(reading) if reading else [character])
        ]
        assert clean_text(row.sentence, "yue", "v2").phonemes == spoken, row.sentence


def _pairs(name: str) -> list[list[str]]:
    lines = (TABLES / name).read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if not line.startswith("#")]


@needs("zh")
@pytest.mark.parametrize(("sentence", "read_as"), _pairs("money_zh.tsv")[1:])
def test_money_in_chinese(sentence: str, read_as: str) -> None:
    assert read_as in clean_text(sentence, "zh", "v2").normalized


@needs("zh")
def test_polyphones() -> None:
    """254 of 258 readings were right, and all 61 of the last part, when this was written."""
    right = asked = 0
    for _, line in _pairs("polyphones_zh.tsv"):
        text, readings = compare_polyphones.parse(line)
        found = compare_polyphones.ours(text)
        asked += len(readings)
        right += sum(found[index] == reading for index, reading in readings.items())
    assert asked >= 300
    assert right / asked > 0.97


@needs("zh")
@pytest.mark.parametrize(
    "line",
    [
        "为wei4人民服务。",
        "我真为wei4你高兴。",
        "请给gei3我倒一杯茶。",
        "今天可累lei4死我了。",
        "他跑得de5很快。",
        "我得dei3去上班了。",
        "银行hang2行hang2长zhang3今天来了。",
        "这把剑长chang2三尺。",
    ],
)
def test_polyphones_that_were_reported(line: str) -> None:
    text, readings = compare_polyphones.parse(line)
    found = compare_polyphones.ours(text)
    assert {index: found[index] for index in readings} == readings
