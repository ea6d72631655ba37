"""The Korean front end: a transcript in, the jamo of its pronunciation out.

It gives what GPT-SoVITS's `text/korean.py` gives: simple jamo, diphthongs as two, "ㅇ" for a
syllable without an onset, "空" for a space, "停" for what cannot be read, and a "." where a text
ends in a jamo.

The pronunciation is `korean_sounds`, checked against the package upstream uses; what the rules have
to know of grammar comes from mecab-ko, whose dictionary is a package. Numbers: `korean_numbers`.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any

from mlx_vits.errors import DataError
from mlx_vits.text.chinese_marks import MARKS, is_silent
from mlx_vits.text.cleaner import CleanText
from mlx_vits.text.data_files import read_data
from mlx_vits.text.extras import load_package
from mlx_vits.text.korean_numbers import spell_numbers
from mlx_vits.text.korean_sounds import Syllable, pronounce, split_syllable
from mlx_vits.text.lexicon import NO_WORDS, Lexicon

SPACE, UNREAD = "空", "停"
_DIVIDED = {
    **{"ㅘ": "ㅗㅏ", "ㅙ": "ㅗㅐ", "ㅚ": "ㅗㅣ", "ㅝ": "ㅜㅓ", "ㅞ": "ㅜㅔ", "ㅟ": "ㅜㅣ"},
    **{
        "ㅢ": "ㅡㅣ",
        "ㅑ": "ㅣㅏ",
        "ㅒ": "ㅣㅐ",
        "ㅕ": "ㅣㅓ",
        "ㅖ": "ㅣㅔ",
        "ㅛ": "ㅣㅗ",
        "ㅠ": "ㅣㅜ",
    },
    # Clusters that stand alone, as in chat.
    **{
        "ㄳ": "ㄱㅅ",
        "ㄵ": "ㄴㅈ",
        "ㄶ": "ㄴㅎ",
        "ㄺ": "ㄹㄱ",
        "ㄻ": "ㄹㅁ",
        "ㄼ": "ㄹㅂ",
        "ㄽ": "ㄹㅅ",
    },
    **{"ㄾ": "ㄹㅌ", "ㄿ": "ㄹㅍ", "ㅀ": "ㄹㅎ", "ㅄ": "ㅂㅅ"},
}
_MARK_OF = {
    **{"：": ",", ":": ",", "；": ",", ";": ",", "，": ",", "、": ",", "·": ",", "ㆍ": ","},
    **{"。": ".", "！": "!", "？": "?", "\n": ".", "~": "…", "〜": "…", "～": "…", "⋯": "…"},
    **dict.fromkeys("—―─–−", "-"),
}
_STEM_CODAS = frozenset("ㄴㄵㅁㄻㄺㄼㄾ")


def clean(text: str, version: str, lexicon: Lexicon = NO_WORDS) -> CleanText:
    """What `mlx_vits.text.clean_text` calls; every version that has Korean has it alike.

    Raises:
        DataError: nothing in the text can be spoken in Korean.
        UserError: the package of the extra `ko` is not installed.
    """
    normalized = normalize(text)
    if not re.search("[가-힣ㄱ-ㅣ]", normalized):
        raise DataError(f"The transcript {text.strip()[:40]!r} has no word that Korean can read.")
    phonemes: list[str] = []
    unknown: list[str] = []
    for piece in lexicon.cut(normalized, "ko"):
        if piece.phonemes:
            phonemes += piece.phonemes
            continue
        for syllable in _pronounced(piece.text):
            phonemes += _symbols(syllable)
            if phonemes[-1] == UNREAD and not is_silent(syllable.other):
                unknown.append(syllable.other)
    if "ㄱ" <= phonemes[-1] <= "ㅣ":
        phonemes.append(".")
    return CleanText(phonemes, None, normalized, tuple(unknown))


def _symbols(syllable: Syllable) -> list[str]:
    if not syllable.other:
        return _jamo(syllable.onset, syllable.vowel, syllable.coda)
    if "ㄱ" <= syllable.other <= "ㅣ":
        return _jamo(syllable.other)
    if syllable.other == " ":
        return [SPACE]
    return [syllable.other if syllable.other in MARKS else UNREAD]


def normalize(text: str) -> str:
    """The text with numbers and Latin letters in Hangul and marks in the models' form."""
    text = unicodedata.normalize("NFC", text)
    text = "".join(unicodedata.normalize("NFKC", c) if "！" <= c <= "～" else c for c in text)
    text = re.sub(r"\.{2,}", "…", text)
    text = spell_numbers(text)
    text = "".join(_MARK_OF.get(c, c) for c in text)
    text = re.sub(rf"([{MARKS}])[{MARKS}]+", r"\1", text)
    # A blank at an end is a pause of its own, between a word and one of another language.
    return re.sub(r"\s+", " ", text)


def _pronounced(text: str) -> list[Syllable]:
    for written, spoken in _irregular():
        text = text.replace(written, spoken)
    syllables = [split_syllable(character) for character in text]
    _mark_grammar(text, syllables)
    pronounce(syllables)
    return syllables


def _mark_grammar(text: str, syllables: list[Syllable]) -> None:
    """Notes which syllables end a verb's stem or its form in -ㄹ."""
    at = 0
    for line in _tagger().parse(text).splitlines():
        surface, tab, features = line.partition("\t")
        if not tab:
            continue
        at = text.index(surface, at) + len(surface)
        last, tag = syllables[at - 1], features.split(",")[0].split("+")[-1]
        last.is_stem = tag.startswith("V") and last.coda in _STEM_CODAS
        last.is_modifier = tag.startswith("E") and last.coda == "ㄹ"


@cache
def _tagger() -> Any:
    return load_package("mecab_ko", "ko").Tagger()


@cache
def _irregular() -> tuple[tuple[str, str], ...]:
    """Words whose sound the rules do not tell, and how they are said."""
    lines = read_data("korean_words.txt").decode("utf-8").splitlines()
    pairs = (entry.split("=") for line in lines if line[:1] != "#" for entry in line.split())
    return tuple((written, spoken) for written, spoken in pairs)


def _jamo(*letters: str) -> list[str]:
    """The symbols of some letters; a cluster that stands alone as its parts."""
    return [jamo for letter in letters for jamo in _DIVIDED.get(letter, letter)]
