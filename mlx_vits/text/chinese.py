"""The Chinese front end: a transcript in, initials and finals with tones out, two a character.

It gives what GPT-SoVITS's `text/chinese2.py` (v2 and later) and `text/chinese.py` (v1) give; what
differs, and why, stands at the top of `chinese_normalizer`, `chinese_marks`, `chinese_words` and
`chinese_sandhi`. Latin letters are left out, as upstream does; the codes that read them as English
are in `mixed`.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import groupby
from typing import Any

from mlx_vits.errors import DataError
from mlx_vits.text.chinese_marks import (
    MARKS,
    Marked,
    keep_marks,
    plain_characters,
    spell_symbols,
)
from mlx_vits.text.chinese_normalizer import spell_numbers
from mlx_vits.text.chinese_sandhi import change_tones
from mlx_vits.text.chinese_words import Word, pinyin_table, read_words
from mlx_vits.text.cleaner import UNKNOWN, CleanText
from mlx_vits.text.extras import load_package

# Upstream's own marks of longer silence; the first that a text has turns all its commas into it.
_SILENCES = (("￥", "SP2"), ("^", "SP3"))
_REPLACED = str.maketrans({"嗯": "恩", "呣": "母"})
_PARTICLE = re.compile("(?<![名专原编显巨土论卓昭合所遗拙译撰])著(?![名作者书述称录])")


def clean(text: str, version: str) -> CleanText:
    """What `mlx_vits.text.clean_text` calls.

    Raises:
        DataError: no character of the text is Chinese.
        UserError: the packages of the extra `zh` are not installed.
    """
    comma = ","
    for sign, symbol in _SILENCES:
        if sign in text:
            text, comma = text.replace(sign, ","), symbol
            break
    marked = normalize(text)
    if not marked.text.strip(MARKS):
        raise DataError(f"The transcript {text.strip()[:40]!r} has no character of Chinese.")
    phonemes: list[str] = []
    word2ph: list[int] = []
    unknown = marked.unknown
    for word in pronounce(marked.text, version):
        for character, symbols in zip(word.text, _symbols(word), strict=True):
            phonemes += [comma if symbol == "," else symbol for symbol in symbols]
            word2ph.append(len(symbols))
            unknown += [character] if symbols == [UNKNOWN] else []
    return CleanText(phonemes, word2ph, marked.text, tuple(unknown))


def normalize(text: str) -> Marked:
    """The text as it is read aloud, in simplified characters and the models' marks."""
    text = spell_symbols(spell_numbers(plain_characters(_simplify(text))))
    return keep_marks(text.translate(_REPLACED))


def pronounce(text: str, version: str) -> list[Word]:
    """The words of a normalized text with their readings and the tones they have together."""
    words: list[Word] = []
    read = read_words(text, in_context=version != "v1")
    for is_mark, group in groupby(read, key=lambda word: word.text in MARKS):
        clause = list(group)
        words += clause if is_mark else change_tones(clause, merge_er=version != "v1")
    return words


def _symbols(word: Word) -> list[list[str]]:
    """The phonemes of each character of a word."""
    if word.text in MARKS:
        return [[word.text]]
    symbols = []
    for syllable, tone in zip(word.syllables, word.tones, strict=True):
        if syllable is None:
            symbols.append([UNKNOWN])
        else:
            initial, final = pinyin_table()[syllable]
            symbols.append([initial, f"{final}{tone}"])
    return symbols


def _simplify(text: str) -> str:
    """Traditional characters as simplified ones; 著 in a traditional text is 着 but for books."""
    simplified = str(_converter().convert(text))
    return simplified if simplified == text else _PARTICLE.sub("着", simplified)


@cache
def _converter() -> Any:
    return load_package("opencc", "zh").OpenCC("t2s")
