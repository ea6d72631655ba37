"""Mandarin front end: text to initials and finals with tones, two symbols a character.

Equivalent to GPT-SoVITS's `text/chinese2.py` (v2 and later) and `text/chinese.py` (v1); differences
and their reasons are listed at the top of `chinese_normalizer`, `chinese_marks`, `chinese_words`
and `chinese_sandhi`. Latin letters are dropped, as upstream does; `mixed` handles the codes that
read them as English.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import groupby, islice
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
from mlx_vits.text.chinese_words import Word, pinyin_table, read_words, split_reading
from mlx_vits.text.cleaner import UNKNOWN, CleanText
from mlx_vits.text.extras import load_package
from mlx_vits.text.lexicon import NO_WORDS, Lexicon

# Upstream's marks for longer silences; the first one found replaces all commas of the text. Beside
# a number ￥ is money.
_SILENCES = ((re.compile(r"(?<![\d万亿千百])￥(?! ?\d)"), "SP2"), (re.compile(r"\^"), "SP3"))
_REPLACED = str.maketrans({"嗯": "恩", "呣": "母"})
_PARTICLE = re.compile("(?<![名专原编显巨土论卓昭合所遗拙译撰])著(?![名作者书述称录])")


def clean(text: str, version: str, lexicon: Lexicon = NO_WORDS) -> CleanText:
    """Implement `clean_text` for Mandarin.

    Words of the lexicon have its tones, whatever stands beside them.

    Raises:
        DataError: no character of the text is Chinese.
        UserError: the packages of the extra `zh` are not installed.
    """
    comma = ","
    for sign, symbol in _SILENCES:
        if sign.search(text):
            text, comma = sign.sub(",", text), symbol
            break
    marked = normalize(text)
    if not marked.text.strip(MARKS):
        raise DataError(f"The transcript {text.strip()[:40]!r} has no character of Chinese.")
    phonemes: list[str] = []
    word2ph: list[int] = []
    unknown = marked.unknown
    for word in pronounce(marked.text, version, _given(marked.text, lexicon)):
        for character, symbols in zip(word.text, _symbols(word), strict=True):
            phonemes += [comma if symbol == "," else symbol for symbol in symbols]
            word2ph.append(len(symbols))
            unknown += [character] if symbols == [UNKNOWN] else []
    return CleanText(phonemes, word2ph, marked.text, tuple(unknown))


def normalize(text: str) -> Marked:
    """Return the spoken form of a text, in simplified characters and the models' marks."""
    text = spell_symbols(spell_numbers(plain_characters(_simplify(text))))
    return keep_marks(text.translate(_REPLACED))


def pronounce(text: str, version: str, given: Sequence[str | None] | None = None) -> list[Word]:
    """Return the words of a normalised text with their readings, after tone sandhi.

    Args:
        text: what `normalize` gives.
        version: v1 reads each word by itself.
        given: a fixed reading for each character, None where there is none.
    """
    words: list[Word] = []
    read = read_words(text, version != "v1", given)
    for is_mark, group in groupby(read, key=lambda word: word.text in MARKS):
        clause = list(group)
        words += clause if is_mark else change_tones(clause, merge_er=version != "v1")
    if given is not None:
        _keep_tones(words, given)
    return words


def _keep_tones(words: list[Word], given: Sequence[str | None]) -> None:
    """Gives back the tones that came with a reading."""
    readings = iter(given)
    for word in words:
        for i, reading in enumerate(islice(readings, len(word.text))):
            if reading:
                word.syllables[i], word.tones[i] = split_reading(reading)


def _given(text: str, lexicon: Lexicon) -> list[str | None] | None:
    """A reading for each character of a word of the lexicon; None if it has no Chinese word."""
    if not lexicon.words("zh"):
        return None
    readings: list[str | None] = []
    for piece in _simplified(lexicon).cut(text, "zh"):
        readings += piece.phonemes or [None] * len(piece.text)
    return readings


@lru_cache(maxsize=4)
def _simplified(lexicon: Lexicon) -> Lexicon:
    """A lexicon whose Chinese words are as `normalize` writes them."""
    words = {normalize(word).text: given for word, given in lexicon.words("zh").items()}
    # A word that another number of characters stands for could not be aligned with its syllables.
    return Lexicon({"zh": {w: given for w, given in words.items() if len(w) == len(given)}})


def _symbols(word: Word) -> list[list[str]]:
    """Return the phonemes of each character of a word."""
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
    """Convert to simplified characters; traditional 著 becomes 着, except in words of writing."""
    simplified = str(_converter().convert(text))
    return simplified if simplified == text else _PARTICLE.sub("着", simplified)


@cache
def _converter() -> Any:
    return load_package("opencc", "zh").OpenCC("t2s")
