"""Chinese text as words, each character with its reading in pinyin.

Words and their parts of speech come from jieba. A character with several readings is read as the
word's entry in pypinyin's dictionary says, else as g2pM finds from its sentence; turns of everyday
speech that both misread are listed in `mandarin_words.txt`. Upstream has a larger network there
from version v2 on (G2PW, 600 MB that no package ships). Of 2,564 ambiguous characters in the test
sentences that g2pM was published with (from an encyclopedia), pypinyin alone reads 88 % right, g2pM
97 %, both together 97.4 %. Version v1 has pypinyin alone, as upstream has.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mlx_vits.text.chinese_marks import is_chinese
from mlx_vits.text.data_files import read_data
from mlx_vits.text.extras import load_package

_LONGEST_TURN = 4  # words
_SYLLABLE = re.compile(r"([a-z]+)([1-5])")
# Syllables of interjections that the table of phonemes lacks, and the nearest that it has.
_NEAREST = {
    **{"n": "en", "ng": "en", "m": "mu", "hm": "heng", "hng": "heng", "ê": "ei", "r": "er"},
    **{"nia": "nian", "len": "leng", "fiao": "biao", "wong": "weng", "din": "ding", "bia": "ba"},
}


@dataclass
class Word:
    """Some characters that belong together.

    Attributes:
        text: Chinese characters, or one mark.
        tag: jieba's part of speech; "x" for a mark.
        syllables: in pinyin without tone, ü as v; None for a mark and where none is known.
        tones: 1 to 5, 5 the neutral one; 0 where there is no syllable.
    """

    text: str
    tag: str
    syllables: list[str | None]
    tones: list[int]

    def join(self, other: Word, tag: str | None = None) -> Word:
        """One word of both."""
        return Word(
            self.text + other.text,
            tag or self.tag,
            self.syllables + other.syllables,
            self.tones + other.tones,
        )


def read_words(
    text: str, in_context: bool, given: Sequence[str | None] | None = None
) -> list[Word]:
    """The words of a text of Chinese characters and marks, in order.

    Args:
        text: what `chinese_marks.keep_marks` gives.
        in_context: whether the sentence decides between readings, or the word alone.
        given: a reading for each character that goes before any other, None where there is none.

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
        if len(written) == 1 or written not in _phrases():
            readings = _replace(readings, context[here])
        if in_context and written[-1] == "地" and _is_adverbial(cut, i):
            readings[-1] = "de5"
        if in_context and written == "重" and cut[i + 1 : i + 2] and cut[i + 1][1] == "m":
            readings[-1] = "zhong4"  # what something weighs, which g2pM takes for "again"
        readings = _replace(readings, listed[here])
        if given is not None:
            readings = _replace(readings, given[here])
        pairs = [split_reading(reading) for reading in readings]
        words.append(Word(written, tag, [p[0] for p in pairs], [p[1] for p in pairs]))
        start = here.stop
    return words


def _is_adverbial(cut: list[tuple[str, str]], i: int) -> bool:
    """Whether the 地 of a word makes an adverb (慢慢地走) and names no ground."""
    written, tag = cut[i]
    if len(written) > 1:
        return tag == "d"
    before, after = cut[i - 1][1] if i else "x", cut[i + 1][1] if i + 1 < len(cut) else "x"
    return before[0] in "adz" and after[0] in "dpv"


def _replace(readings: list[str], better: Sequence[str | None]) -> list[str]:
    return [new or old for new, old in zip(better, readings, strict=True)]


def split_word(text: str) -> tuple[str, str]:
    """A word in two parts, the shorter of its own words apart from the rest."""
    short = min(_jieba().cut_for_search(text), key=len)
    if text.startswith(short):
        return short, text[len(short) :]
    return text[: -len(short)], text[-len(short) :]


@cache
def pinyin_table() -> dict[str, tuple[str, str]]:
    """Each syllable's initial and final among the models' symbols, without tone."""
    lines = read_data("pinyin_to_phonemes.tsv").decode("utf-8").splitlines()
    table = {}
    for line in lines:
        pinyin, _, phonemes = line.partition("\t")
        initial, final = phonemes.split()
        table[pinyin] = (initial, final)
    return table


@cache
def listed_words(kind: str) -> frozenset[str]:
    """The words of one part of `mandarin_words.txt`, for example "neutral"."""
    parts = read_data("mandarin_words.txt").decode("utf-8").split("[")
    return frozenset(next(p for p in parts if p.startswith(f"{kind}]")).split()[1:])


def _cut_words(text: str) -> list[tuple[str, str]]:
    posseg = load_package("jieba.posseg", "zh")
    _jieba()
    return [(pair.word, pair.flag) for pair in posseg.lcut(text)]


@cache
def _jieba() -> Any:
    jieba = load_package("jieba", "zh")
    jieba.setLogLevel("ERROR")  # it tells how long loading took
    return jieba


def _word_readings(word: str) -> list[str]:
    """One reading a character, for example "zhong1"; the character itself where none is known."""
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
    """Words and turns of phrase that dictionary and model misread, and how they are read."""
    entries = (entry.partition(":") for entry in listed_words("readings"))
    return {turn: reading.split(",") for turn, _, reading in entries}


def _listed_readings(words: list[str]) -> list[str | None]:
    """One reading a character where whole words make up a listed turn, the longest; None else."""
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
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files to be closed
        return g2pm.G2pM()


def _context_readings(text: str) -> list[str | None]:
    """One reading a character in its sentence; None where the model knows none."""
    readings = _context_model()(text, tone=True, char_split=True)
    return [r if _SYLLABLE.fullmatch(r.replace("u:", "v")) else None for r in readings]


def split_reading(reading: str) -> tuple[str | None, int]:
    """The syllable of the table and its tone, as in "zhong1"; None where it is no such syllable."""
    match = re.fullmatch(r"(.+)([1-5])", reading.replace("u:", "v").replace("ü", "v"))
    if not match:
        return None, 0
    syllable = _NEAREST.get(match[1], match[1])
    return (syllable, int(match[2])) if syllable in pinyin_table() else (None, 0)
