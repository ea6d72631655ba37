"""A user's own pronunciations: how they are written, and that every language says them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from mlx_vits.errors import DataError
from mlx_vits.text.cleaner import clean_text
from mlx_vits.text.lexicon import Lexicon, read_lexicon
from mlx_vits.text.symbols import symbols_for

LINES = """
# names
GPT\tJH IY2 P IY1 T IY1
SoVITS   S OW1 V IH0 T S   # the tool
read R EH1 D
read R IY1 D

行长  hang2 zhang3
台灣 wan1 wan1
你好 ni3 hao3
香港 Yh Yoeng1 Yg Yong2
東京 t o o ky o o
ラーメン r a a m e N
ガム g a m u
Beyoncé B IY0 Y AA1 N S EY2
떡볶이 ㄸ ㅓ ㄱ ㅃ ㅗ ㄱ ㄱ ㅣ
"""


@pytest.fixture
def lexicon(tmp_path: Path) -> Lexicon:
    path = tmp_path / "words.txt"
    # Decomposed, as some systems' editors write.
    path.write_text(unicodedata.normalize("NFD", LINES), encoding="utf-8")
    return read_lexicon(path)


def _phonemes(text: str, language: str, lexicon: Lexicon, version: str = "v2") -> str:
    return " ".join(clean_text(text, language, version, lexicon).phonemes)


def test_english(lexicon: Lexicon) -> None:
    spoken = _phonemes("GPT-SoVITS and gpt's voice", "en", lexicon)
    gpt = "JH IY2 P IY1 T IY1"
    assert spoken == f"{gpt} S OW1 V IH0 T S AH0 N D {gpt} Z V OY1 S"
    assert _phonemes("Beyoncé's here", "en", lexicon).startswith("B IY0 Y AA1 N S EY2 Z")
    # The dictionary knows a word by the one before it; the lexicon goes before that.
    assert _phonemes("I have read it", "en", lexicon).endswith("R IY1 D IH1 T")


def test_chinese(lexicon: Lexicon) -> None:
    for package in ("jieba", "pypinyin", "g2pM", "opencc"):
        pytest.importorskip(package, reason="needs the extra `zh`")
    for version in ("v1", "v2"):
        spoken = _phonemes("他是行长。", "zh", lexicon, version)
        assert spoken == "t a1 sh ir4 h ang2 zh ang3 ."
    # Written in traditional characters, as the text or not; tones stay as they were given.
    for text in ("台灣你好", "台湾你好"):
        assert _phonemes(text, "zh", lexicon) == "w an1 w an1 n i3 h ao3"
    assert clean_text("行长你", "zh", "v2", lexicon).word2ph == [2, 2, 2]


def test_cantonese(lexicon: Lexicon) -> None:
    pytest.importorskip("ToJyutping", reason="needs the extra `yue`")
    cleaned = clean_text("去香港。", "yue", "v2", lexicon)
    assert cleaned.phonemes == ["Yh", "Yeoi3", "Yh", "Yoeng1", "Yg", "Yong2", "."]
    assert cleaned.word2ph == [2, 2, 2, 1]


def test_japanese(lexicon: Lexicon) -> None:
    pytest.importorskip("pyopenjtalk", reason="needs the extra `ja`")
    spoken = _phonemes("東京、ラーメン、ガム。", "ja", lexicon)
    assert spoken == "t o o ky o o , r a a m e N , g a m u ."


def test_korean(lexicon: Lexicon) -> None:
    pytest.importorskip("mecab_ko", reason="needs the extra `ko`")
    assert _phonemes("떡볶이, 떡볶이", "ko", lexicon) == (
        "ㄸ ㅓ ㄱ ㅃ ㅗ ㄱ ㄱ ㅣ , 空 ㄸ ㅓ ㄱ ㅃ ㅗ ㄱ ㄱ ㅣ ."
    )


def test_a_mixed_text(lexicon: Lexicon) -> None:
    for package in ("jieba", "pypinyin", "g2pM", "opencc"):
        pytest.importorskip(package, reason="needs the extra `zh`")
    assert _phonemes("行长用GPT", "all_zh", lexicon).endswith("JH IY2 P IY1 T IY1")


def test_all_arpabet_is_spoken_by_every_version(tmp_path: Path) -> None:
    """What the reader takes for ARPAbet are symbols of the models."""
    vowels = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH")
    phonemes = [vowel + stress for vowel in (*vowels, "UW") for stress in "012"]
    path = tmp_path / "words.txt"
    path.write_text(f"word {' '.join(phonemes)}")
    assert read_lexicon(path).get("word", "en") == tuple(phonemes)
    assert set(phonemes) <= set(symbols_for("v1"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("GPT", "'GPT' has no phonemes; write the word"),
        ("GPT JH IY Q", "'IY' is no symbol of its language; write ARPAbet"),
        ("GPT hang2", "'hang2' is no symbol of its language; write ARPAbet"),
        ("GPT4 F AO1 R", "'GPT4' is no word of letters; numbers and signs"),
        ("行长 hang2", "'行长' has 1 and needs 2 syllables, one a character"),
        ("行长 hang zhang3", "'hang' is no symbol of its language; write pinyin with its tone"),
        ("行长 hang2 zhang9", "'zhang9' is no symbol"),
        ("香港 Yh Yoeng1 Yg", "'香港' has 3 and needs 4 symbols, two for each character"),
        ("香港 Yh Yzzz1 Yg Yong2", "'Yzzz1' is no symbol of its language; write Cantonese"),
        ("ラーメン ra men", "'ra' is no symbol of its language; write OpenJTalk's"),
        ("떡볶이 tteok", "'tteok' is no symbol of its language; write jamo"),
        ("GPT長 JH IY1", "'GPT長' is no word of Latin letters, Chinese characters, kana or Hangul"),
        ("Привет P R", "'Привет' is no word of Latin letters"),
        ("a" * 101 + " AH0", "is longer than 100 characters"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text(f"# mine\n\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"words\.txt: line 3: .*{words}"):
        read_lexicon(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"words\.txt: cannot be read \(there is no such file\)"):
        read_lexicon(tmp_path / "words.txt")
    (tmp_path / "words.txt").write_bytes(b"caf\xe9 K")
    with pytest.raises(DataError, match=r"words\.txt: is not UTF-8 text"):
        read_lexicon(tmp_path / "words.txt")
