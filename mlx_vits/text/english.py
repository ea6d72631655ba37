"""English front end: text to ARPAbet phonemes with stress, and pause marks.

Equivalent to GPT-SoVITS's `text/english.py` and `en_normalization`, in the same symbols, except
where upstream's result is not what a person would say:

- Titles, initials and dotted letters lose their dots, which upstream turns into pauses.
- Capitals of four or more letters in the dictionary (NASA), and emphasised words (NOT), are read as
  words; upstream spells all capitals.
- Quotes are dropped, single ones too (upstream turns those into "-"); `;` and `:` are commas, as
  upstream's table intends; dashes are "-", ASCII or not; a mark after a space is kept.
- Counts with a comma are never years; times are read without an invented "a.m."; dates, ranges,
  decades, telephone numbers, addresses and most units are supported.
- Heteronyms are resolved by rules of grammar, not by a tagger; unknown words go to another network,
  and compounds are not split first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from mlx_vits.errors import DataError
from mlx_vits.text.cleaner import CleanText
from mlx_vits.text.english_abbreviations import expand_abbreviations
from mlx_vits.text.english_amounts import spell_amounts
from mlx_vits.text.english_marks import plain_characters, tidy_marks
from mlx_vits.text.english_words import is_dialect, is_known, is_spelled, pronounce_in
from mlx_vits.text.lexicon import NO_WORDS, Lexicon

# Short words whose capitals are more often emphasis than an abbreviation.
_EMPHASISED_WORDS = """
AH ALL AND ANY ARE BAD BIG BUT BY CAN DID DO FOR GET GO HA HAS HE HER HEY HIM HIS HOW HUH IF IN IS
ME MY NEW NO NOR NOT NOW OF OFF OH OLD ON ONE OUR OUT OW SHE SO THE TO TOO TWO UGH UP WAS WE WHY WOW
YES YET YOU
"""
_EMPHASISED = frozenset(_EMPHASISED_WORDS.split())
# Short abbreviations that are words.
_SAID = frozenset(["GIF", "LAN", "PIN", "RAM", "ROM", "SIM", "WAN", "ZIP"])
_WITH_CAPITALS = re.compile(r"[A-Za-z]*[A-Z][A-Za-z]*")
_WITHIN_RUN = (" ", ", ", "'", "-")
_QUOTATION = re.compile(r"(?<![A-Za-z])'(([A-Za-z]+)[^']{0,200})'(?![A-Za-z])")
_TRAILING = re.compile(r"([A-Za-z]+)'(?![A-Za-z])")
_LEADING = re.compile(r"(?<![A-Za-z])'([A-Za-z]+)")
_MARKS = ",.?!-"
_MIN_PHONEMES = 4
_LONGEST_SENTENCE = 100  # words that a heteronym is judged by
_WORD = re.compile(r"[A-Za-z]+")
_TOKEN = re.compile(r"'?[A-Za-z]+(?:['-][A-Za-z]+)*(?:(?<=in)')?|[,.!?-]")


class Phonemized(NamedTuple):
    """Phonemes, the normalised text they come from, and the words that were guessed."""

    phonemes: list[str]
    normalized: str
    unknown: list[str]


def clean(text: str, version: str, lexicon: Lexicon = NO_WORDS) -> CleanText:
    """Implement `clean_text` for English, which is the same in every version.

    Raises:
        DataError: the text has no English word.
    """
    spoken = phonemize(text, lexicon)
    return CleanText(spoken.phonemes, None, spoken.normalized, guessed=tuple(spoken.unknown))


def normalize(text: str, lexicon: Lexicon = NO_WORDS) -> str:
    """Return the spoken form of a text: words, `, . ! ?` and " - "; empty if it has no word.

    Case is kept. Letters that are spelled out stand alone, as in "the F B I", except in words of
    the lexicon.
    """
    text = expand_abbreviations(plain_characters(text))
    text = _spell_capitals(spell_amounts(text), lexicon)
    return _drop_outer_apostrophes(tidy_marks(text))


def phonemize(text: str, lexicon: Lexicon = NO_WORDS) -> Phonemized:
    """Convert an English text to phonemes, in symbols common to all versions.

    Fewer than four phonemes are prefixed with ",", as upstream does.

    Raises:
        DataError: the text has no English word.
    """
    normalized = normalize(text, lexicon)
    phonemes: list[str] = []
    unknown: list[str] = []
    for sentence in _sentences(normalized):
        for index, token in enumerate(sentence):
            if token in _MARKS:
                phonemes.append(token)
                continue
            spoken = pronounce_in(sentence, index, lexicon)
            phonemes += spoken.phonemes
            unknown += [token] if spoken.guessed else []
    if not _WORD.search(normalized):
        raise DataError(f"The transcript {text.strip()[:40]!r} has no word that English can read.")
    if len(phonemes) < _MIN_PHONEMES:
        phonemes.insert(0, ",")
    return Phonemized(phonemes, normalized, unknown)


def _sentences(normalized: str) -> Iterator[list[str]]:
    """Words and marks, sentence by sentence."""
    sentence: list[str] = []
    for token in _TOKEN.findall(normalized):
        sentence.append(token)
        if token in ".!?" or len(sentence) == _LONGEST_SENTENCE:
            yield sentence
            sentence = []
    yield sentence


def _spell_capitals(text: str, lexicon: Lexicon) -> str:
    """Separate the letters of spelled-out capitals, and the words in mixed case."""
    shouts = text.upper() == text and any(map(_is_surely_word, _WORD.findall(text)))
    pieces: list[str] = []
    end = 0
    for run in _capital_runs(text):
        is_shouted = shouts or (len(run) > 1 and any(_is_surely_word(word[0]) for word in run))
        for word in run:
            keeps = lexicon.get(word[0], "en") is not None
            said = word[0] if keeps else _spell_if_letters(word[0], is_shouted)
            pieces += [text[end : word.start()], said]
            end = word.end()
    return "".join(pieces) + text[end:]


def _capital_runs(text: str) -> Iterator[list[re.Match[str]]]:
    """The words with capitals: those in capitals that follow each other together, others alone."""
    run: list[re.Match[str]] = []
    for word in _WITH_CAPITALS.finditer(text):
        goes_on = run and word[0].isupper() and run[-1][0].isupper()
        if run and not (goes_on and text[run[-1].end() : word.start()] in _WITHIN_RUN):
            yield run
            run = []
        run.append(word)
    if run:
        yield run


def _is_surely_word(word: str) -> bool:
    """Whether a word in capitals is one that is emphasised, rather than an abbreviation."""
    is_long = len(word) > 3 and is_known(word) and not is_spelled(word)
    return is_long or word in _EMPHASISED


def _spell_if_letters(word: str, is_shouted: bool) -> str:
    if word.isupper():
        return " ".join(word) if _is_letters(word, is_shouted) else word
    if word[:-1].isupper() and word[-1] == "s" and len(word) > 2:  # "CDs"
        return " ".join(word[:-1]) + "'s"
    pieces = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", word)
    if len(pieces) == 1 or is_known(word):
        return word
    return " ".join(_spell_if_letters(piece, is_shouted) for piece in pieces)


def _is_letters(word: str, is_shouted: bool) -> bool:
    """Whether a word in capitals is spelled out."""
    if word in _SAID:
        return False
    if (len(word) < 4 and not is_shouted) or word == "US":
        return word not in _EMPHASISED
    return not is_known(word) and (len(word) < 6 or not re.search("[AEIOU]", word))


def _drop_outer_apostrophes(text: str) -> str:
    """Drop single quotes; an apostrophe stays in 'twas, which the dictionary has, and singin'."""
    text = _QUOTATION.sub(lambda m: m[0] if is_known(f"'{m[2]}") else m[1], text)
    text = _TRAILING.sub(lambda m: m[0] if is_dialect(m[0]) else m[1], text)
    return _LEADING.sub(lambda m: m[0] if is_known(m[0]) else m[1], text)
