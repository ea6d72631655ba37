"""Cantonese front end: text to Jyutping initials and finals with tones.

Readings are ToJyutping's, as in GPT-SoVITS's `text/cantonese.py`; symbols start with "Y", and the
tone is on the second of a character's two. Differences from upstream: characters are not simplified
first (upstream maps both 發 and 髮 to 发, and loses 㗎); the digit 1 of telephone numbers is 一,
not 幺; of adjacent marks one is kept, as in Mandarin; a syllable missing from the symbols becomes
the nearest one; and a character without a reading becomes "UNK" instead of an error.
"""

from __future__ import annotations

import re
from functools import cache

from mlx_vits.errors import DataError
from mlx_vits.text.chinese_marks import (
    MARKS,
    Marked,
    keep_marks,
    plain_characters,
    spell_symbols,
)
from mlx_vits.text.chinese_normalizer import spell_numbers
from mlx_vits.text.cleaner import UNKNOWN, CleanText
from mlx_vits.text.extras import load_package
from mlx_vits.text.lexicon import NO_WORDS, Lexicon
from mlx_vits.text.symbols import symbols_for

# Jyutping's initials, and the vowel that takes their place in a syllable without one.
_ONSET = re.compile("ng|gw|kw|[bpmfdtnlgkhzcsjw]")
_VOWEL_ONSETS = (
    *("aa", "ai", "au", "ap", "at", "ak", "a", "e"),
    *("ong", "on", "ou", "oi", "ok", "o", "uk", "ung"),
)
_NEAREST_FINAL = {"eu": "iu", "ep": "ip", "et": "it", "em": "im", "en": "in", "oet": "eot"}
_SYLLABLE = re.compile("([a-z]+)([1-6])")


def clean(text: str, version: str, lexicon: Lexicon = NO_WORDS) -> CleanText:
    """Implement `clean_text` for Cantonese; every version that has it uses the same symbols.

    Raises:
        DataError: no character of the text is Chinese.
        UserError: the package of the extra `yue` is not installed.
    """
    marked = normalize(text)
    if not marked.text.strip(MARKS):
        raise DataError(f"The transcript {text.strip()[:40]!r} has no character of Cantonese.")
    phonemes: list[str] = []
    word2ph: list[int] = []
    unknown = marked.unknown
    readings = load_package("ToJyutping", "yue").get_jyutping_list(marked.text)
    given = _given(marked.text, lexicon)
    for (character, reading), own in zip(readings, given, strict=True):
        if character in MARKS:
            symbols = [character]
        else:
            read = [s for syllable in (reading or "").split() for s in _symbols(syllable)]
            symbols = own or read
            if not symbols:
                symbols = [UNKNOWN]
                unknown.append(character)
        phonemes += symbols
        word2ph.append(len(symbols))
    return CleanText(phonemes, word2ph, marked.text, tuple(unknown))


def _given(text: str, lexicon: Lexicon) -> list[list[str]]:
    """The lexicon's two symbols of each character, none where it has no word."""
    given: list[list[str]] = []
    for piece in lexicon.cut(text, "yue"):
        symbols = list(piece.phonemes or ())
        given += [symbols[2 * i : 2 * i + 2] for i in range(len(piece.text))]
    return given


def normalize(text: str) -> Marked:
    """Return the spoken form of a text, in Chinese characters and the models' marks."""
    return keep_marks(spell_symbols(spell_numbers(plain_characters(text), one="一")))


def _symbols(syllable: str) -> list[str]:
    """Return the two symbols of a Jyutping syllable: "hoeng1" is Yh Yoeng1.

    A syllable with one part repeats the end of it, as upstream does: "m4" is Ym Ym4, "aa3" is Yaa
    Ya3.
    """
    match = _SYLLABLE.fullmatch(syllable)
    if not match:
        return []
    letters, tone = match.groups()
    onset = _ONSET.match(letters)
    first = onset[0] if onset else next((v for v in _VOWEL_ONSETS if letters.startswith(v)), "")
    rest = letters[len(first) :] or first[-1:]
    # A syllable without an initial may also start with "ng"; rare finals have a close one.
    for pair in ((first, rest), ("ng", letters), (first, _NEAREST_FINAL.get(rest, rest))):
        symbols = [f"Y{pair[0]}", f"Y{pair[1]}{tone}"]
        if pair[0] and _known_symbols().issuperset(symbols):
            return symbols
    return []


@cache
def _known_symbols() -> frozenset[str]:
    return frozenset(symbols_for("v2"))
