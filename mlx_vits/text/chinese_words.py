"""Segment Chinese text into words, with the pinyin reading of each character.

Words and parts of speech come from jieba. Polyphonic characters take the reading of the word in
pypinyin's dictionary, else g2pM's prediction from the sentence; colloquial phrases that both
misread are listed in `mandarin_words.txt`. From version v2 on upstream uses a larger network (G2PW,
600 MB that no package ships). On the 2,564 ambiguous characters of g2pM's published test sentences
(from an encyclopedia) pypinyin alone is right for 88 %, g2pM for 97 %, both together for 97.4 %.
Version v1 uses pypinyin alone, as upstream does.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mlx_vits.text.chinese_marks import is_chinese
from mlx_vits.text.chinese_polyphones import reading_in
from mlx_vits.text.data_files import read_data
from mlx_vits.text.extras import load_package

_LONGEST_TURN = 4  # words
_SYLLABLE = re.compile(r"([a-z]+)([1-5])")
# Syllables of interjections missing from the phoneme table, and the nearest ones in it.
_NEAREST = {
    **{"n": "en", "ng": "en", "m": "mu", "hm": "heng", "hng": "heng", "ê": "ei", "r": "er"},
    **{"nia": "nian", "len": "leng", "fiao": "biao", "wong": "weng", "din": "ding", "bia": "ba"},
}


@dataclass
class Word:
    """A word with its readings.

    Attributes:
        text: Chinese characters, or one mark.
        tag: jieba's part of speech; "x" for a mark.
        syllables: pinyin without tone, ü as v; None for a mark or an unknown reading.
        tones: 1 to 5, 5 is neutral; 0 without a syllable.
    """

    text: str
    tag: str
    syllables: list[str | None]
    tones: list[int]

    def join(self, other: Word, tag: str | None = None) -> Word:
        """Merge two words."""
        return Word(
            self.text + other.text,
            tag or self.tag,
            self.syllables + other.syllables,
            self.tones + other.tones,
        )


def read_words(
    text: str, in_context: bool, given: Sequence[str | None] | None = None
) -> list[Word]:
    """Segment a text of Chinese characters and marks, and look up the readings.

    Args:
        text: from `chinese_marks.keep_marks`.
        in_context: whether readings depend on the sentence or on the word alone.
        given: a reading that overrides the dictionary for each character, or None.

    Raises:
        UserError: the packages of the extra `zh` are not installed.
    """
    cut = _cut_words(text)
    context: Sequence[str | None] = [None] * len(text)
    listed = context
    if in_context:
        context, listed = _context_readings(text), _listed_readings([word for word, _ in cut])
    words: list[Word] = []
    start = 0
    for i, (written, tag) in enumerate(cut):
        readings = _word_readings(written)
        here = slice(start, start + len(written))
        is_open = len(written) == 1 or written not in _phrases()
        is_counted = tag == "m" and len(written) == 2  # "一行", whose 行 may be any
        if is_open:
            readings = _replace(readings, context[here])
        if in_context and (is_open or is_counted):
            ruled = [reading_in(text, at) for at in range(here.start, here.stop)]
            readings = _replace(readings, ruled)
        if in_context and written[-1] == "地" and _is_adverbial(cut, i):
            readings[-1] = "de5"
        if in_context and written == "重" and cut[i + 1 : i + 2] and cut[i + 1][1] == "m":
            readings[-1] = "zhong4"  # weight, which g2pM reads as "again"
        readings = _replace(readings, listed[here])
        if given is not None:
            readings = _replace(readings, given[here])
        pairs = [split_reading(reading) for reading in readings]
        words.append(Word(written, tag, [p[0] for p in pairs], [p[1] for p in pairs]))
        start = here.stop
    return words


def _is_adverbial(cut: list[tuple[str, str]], i: int) -> bool:
    """Whether the 地 of a word is the adverbial particle (慢慢地走) rather than "ground"."""
    written, tag = cut[i]
    if len(written) > 1:
        return tag == "d"
    before, after = cut[i - 1][1] if i else "x", cut[i + 1][1] if i + 1 < len(cut) else "x"
    return before[0] in "adz" and after[0] in "dpv"


def _replace(readings: list[str], better: Sequence[str | None]) -> list[str]:
    return [new or old for new, old in zip(better, readings, strict=True)]


def split_word(text: str) -> tuple[str, str]:
    """Split a word in two: its shortest sub-word, and the rest."""
    short = min(_jieba().cut_for_search(text), key=len)
    if text.startswith(short):
        return short, text[len(short) :]
    return text[: -len(short)], text[-len(short) :]


@cache
def pinyin_table() -> dict[str, tuple[str, str]]:
    """Return the initial and final symbols of each toneless syllable."""
    lines = read_data("pinyin_to_phonemes.tsv").decode("utf-8").splitlines()
    table = {}
    for line in lines:
        pinyin, _, phonemes = line.partition("\t")
        initial, final = phonemes.split()
        table[pinyin] = (initial, final)
    return table


@cache
def listed_words(kind: str) -> frozenset[str]:
    """Return the words of a section of `mandarin_words.txt`, for example "neutral"."""
    parts = read_data("mandarin_words.txt").decode("utf-8").split("[")
    return frozenset(next(p for p in parts if p.startswith(f"{kind}]")).split()[1:])


def _cut_words(text: str) -> list[tuple[str, str]]:
    posseg = load_package("jieba.posseg", "zh")
    _jieba()
    return [(pair.word, pair.flag) for pair in posseg.lcut(text)]


@cache
def _jieba() -> Any:
    jieba = load_package("jieba", "zh")
    jieba.setLogLevel("ERROR")  # it logs its loading time
    return jieba


def _word_readings(word: str) -> list[str]:
    """Return a reading per character, such as "zhong1"; the character itself if unknown."""
    if not any(map(is_chinese, word)):
        return list(word)
    pypinyin = load_package("pypinyin", "zh")
    readings: list[str] = pypinyin.lazy_pinyin(
        word, style=pypinyin.Style.TONE3, neutral_tone_with_five=True, errors=list
    )
    return readings


@cache
def _phrases() -> Any:
    return load_package("pypinyin.constants", "zh").PHRASES_DICT


@cache
def _turns() -> dict[str, list[str]]:
    """Return words and phrases that dictionary and model misread, with their readings."""
    entries = (entry.partition(":") for entry in listed_words("readings"))
    return {turn: reading.split(",") for turn, _, reading in entries}


def _listed_readings(words: list[str]) -> list[str | None]:
    """Return readings of the longest listed phrases made of whole words; None elsewhere."""
    readings: list[str | None] = []
    i = 0
    while i < len(words):
        ends = range(min(len(words), i + _LONGEST_TURN), i, -1)
        end = next((j for j in ends if "".join(words[i:j]) in _turns()), None)
        if end is None:
            readings += [None] * len(words[i])
            i += 1
        else:
            readings += _turns()["".join(words[i:end])]
            i = end
    return readings


@cache
def _context_model() -> Any:
    g2pm = load_package("g2pM", "zh")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it does not close its files
        return g2pm.G2pM()


def _context_readings(text: str) -> list[str | None]:
    """Return g2pM's reading of each character; None where it has none."""
    readings = _context_model()(text, tone=True, char_split=True)
    return [r if _SYLLABLE.fullmatch(r.replace("u:", "v")) else None for r in readings]


def split_reading(reading: str) -> tuple[str | None, int]:
    """Split a reading such as "zhong1" into the table's syllable (or None) and the tone."""
    match = re.fullmatch(r"(.+)([1-5])", reading.replace("u:", "v").replace("ü", "v"))
    if not match:
        return None, 0
    syllable = _NEAREST.get(match[1], match[1])
    return (syllable, int(match[2])) if syllable in pinyin_table() else (None, 0)
