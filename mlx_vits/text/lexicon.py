"""A user's own pronunciations: words and their phonemes, one a line, looked up before a dictionary.

    # comments and empty lines are fine
    GPT      JH IY2 P IY1 T IY1 IY1
    行长      hang2 zhang3

| a word of | is read as | its phonemes |
| --- | --- | --- |
| Latin letters | English | ARPAbet, vowels with their stress: `AH0` |
| Chinese characters | Chinese | a pinyin syllable with its tone for each character: `lv4` |
| | Cantonese | symbols that begin with Y, two for each character: `Yh Yoeng1` |
| | Japanese | OpenJTalk's phonemes and pitch marks: `t o [ o ky o o` |
| kana | Japanese | the same |
| Hangul | Korean | jamo, as they are said |

Words of Chinese characters are told apart by their phonemes. English words are whole words, also
before 's or a hyphen; the others are found wherever their characters stand together in the text as
it is read aloud, the longest word first.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from mlx_vits.errors import DataError
from mlx_vits.system.text_files import read_text
from mlx_vits.text.chinese_marks import is_chinese
from mlx_vits.text.chinese_words import split_reading
from mlx_vits.text.english_marks import plain_characters
from mlx_vits.text.symbols import symbols_for

_ENGLISH_WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")
_KANA = re.compile("[\u3041-\u309f\u30a1-\u30ff]")
_HANGUL = re.compile("[\uac00-\ud7a3\u3131-\u3163]+")
_VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
_CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH"
_ARPABET = {*_CONSONANTS.split(), *(v + stress for v in _VOWELS.split() for stress in "012")}
_OPENJTALK = frozenset("abdefghijkmnoprstuvwyzN[]_") | frozenset(
    ("by", "ch", "cl", "dy", "gy", "hy", "ky", "my", "ny", "py", "ry", "sh", "ts")
)
_JAMO = re.compile("[\u3131-\u3163]")
_JYUTPING = re.compile("Y[a-z]+[1-6]?")
_LONGEST_WORD = 100


class Piece(NamedTuple):
    """A part of a text; phonemes if it is a word of the lexicon, None if not."""

    text: str
    phonemes: tuple[str, ...] | None = None


class Lexicon:
    """Words with their phonemes, by language.

    Args:
        words: code of a language to its words and their phonemes; English words in lower case.
    """

    def __init__(self, words: Mapping[str, Mapping[str, tuple[str, ...]]]):
        self._words = {language: dict(entries) for language, entries in words.items()}
        self._patterns = {
            language: re.compile("|".join(map(re.escape, sorted(entries, key=len, reverse=True))))
            for language, entries in self._words.items()
            if entries
        }

    def words(self, language: str) -> Mapping[str, tuple[str, ...]]:
        """Return the words of a language with their phonemes."""
        return self._words.get(language, {})

    def get(self, word: str, language: str) -> tuple[str, ...] | None:
        """Return a word's phonemes, None where it is not in the lexicon; English in any case."""
        return self.words(language).get(word.lower() if language == "en" else word)

    def cut(self, text: str, language: str) -> Iterator[Piece]:
        """Cut a text at the words of the lexicon, the longest first; joined it is the text."""
        end = 0
        for match in self._patterns[language].finditer(text) if self.words(language) else ():
            if match.start() > end:
                yield Piece(text[end : match.start()])
            yield Piece(match[0], self._words[language][match[0]])
            end = match.end()
        if end < len(text):
            yield Piece(text[end:])


NO_WORDS = Lexicon({})


def read_lexicon(path: Path) -> Lexicon:
    """Read a lexicon: a UTF-8 file of a word, blanks and its phonemes a line.

    A word that is listed twice has the phonemes of the last line.

    Raises:
        DataError: the file cannot be read, or a line cannot; file and line are named.
    """
    lines = read_text(path, cure="give a text file in UTF-8").split("\n")
    words: dict[str, dict[str, tuple[str, ...]]] = {}
    for number, line in enumerate(lines, 1):
        written, *phonemes = line.partition("#")[0].split() or [""]
        if not written:
            continue
        word = _as_in_texts(written)
        try:
            language = _language_of(word, phonemes)
        except ValueError as error:
            raise DataError(f"{path}: line {number}: {error}") from error
        key = word.lower() if language == "en" else word
        words.setdefault(language, {})[key] = tuple(phonemes)
    return Lexicon(words)


def _as_in_texts(word: str) -> str:
    """A word as the front ends look it up: composed, and Latin letters without accents."""
    plain = plain_characters(word)
    return plain if plain.isascii() and plain else unicodedata.normalize("NFC", word)


def _language_of(word: str, phonemes: list[str]) -> str:
    """The language of a line, once its phonemes are known to be of that language.

    Raises:
        ValueError: they are not, or the word is none; says what to write.
    """
    if not phonemes:
        raise ValueError(f"{word[:40]!r} has no phonemes; write the word, a blank and its phonemes")
    if len(word) > _LONGEST_WORD:
        raise ValueError(f"{word[:20]!r}... is longer than {_LONGEST_WORD} characters")
    if word.isascii():
        if not _ENGLISH_WORD.fullmatch(word):
            raise ValueError(
                f"{word!r} is no word of letters; numbers and signs are spelled out before words "
                "are looked up, so list the words that they become"
            )
        _check(phonemes, _ARPABET.__contains__, "ARPAbet, such as HH AH0 L OW1")
        return "en"
    if all(map(is_chinese, word)):
        return _language_of_characters(word, phonemes)
    if _HANGUL.fullmatch(word):
        symbols = symbols_for("v2")
        _check(phonemes, lambda p: bool(_JAMO.match(p)) and p in symbols, "jamo, such as ㅎ ㅏ ㄴ")
        return "ko"
    if _KANA.search(word):
        _check(phonemes, _OPENJTALK.__contains__, "OpenJTalk's phonemes, such as k o N")
        return "ja"
    raise ValueError(
        f"{word!r} is no word of Latin letters, Chinese characters, kana or Hangul alone"
    )


def _language_of_characters(word: str, phonemes: list[str]) -> str:
    """The language of a word of Chinese characters, by its phonemes.

    Raises:
        ValueError: they are of none, or too few.
    """
    if _OPENJTALK.issuperset(phonemes):
        return "ja"
    is_cantonese = all(map(_JYUTPING.fullmatch, phonemes))
    if is_cantonese:
        symbols = symbols_for("v2")
        _check(phonemes, symbols.__contains__, "Cantonese symbols, such as Yh Yoeng1")
    else:
        _check(
            phonemes,
            lambda p: split_reading(p)[0] is not None,
            "pinyin with its tone, such as zhong1",
        )
    wanted = len(word) * (2 if is_cantonese else 1)
    if len(phonemes) != wanted:
        what = "symbols, two for each character" if is_cantonese else "syllables, one a character"
        raise ValueError(f"{word!r} has {len(phonemes)} and needs {wanted} {what}")
    return "yue" if is_cantonese else "zh"


def _check(phonemes: list[str], is_known: Callable[[str], bool], wanted: str) -> None:
    for phoneme in phonemes:
        if not is_known(phoneme):
            raise ValueError(f"{phoneme[:40]!r} is no symbol of its language; write {wanted}")
