"""Entry point of the front ends: a transcript and its language to phonemes of a version.

Each language is a module of this package, listed in `_FRONT_ENDS` and imported on first use, like
the packages it needs. It provides `clean(text, version, lexicon) -> CleanText`; phonemes outside
the version's symbols become "UNK" here, for every language. Multilingual texts go through `mixed`,
which splits them and calls back here for each part.
"""

from __future__ import annotations

import re
import unicodedata
from importlib import import_module
from typing import NamedTuple

from mlx_vits.errors import DataError
from mlx_vits.text.extras import LANGUAGE_NAMES
from mlx_vits.text.lexicon import NO_WORDS, Lexicon
from mlx_vits.text.symbols import symbols_for

UNKNOWN = "UNK"

# The front ends' rules look around within a word, so their time is quadratic in its length. Scripts
# without blanks are exempt, except when read as English.
_MAX_CHARS = 500
_NO_BLANKS = r"\u3001-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
_TOO_LONG_ENGLISH = re.compile(rf"\S{{{_MAX_CHARS + 1},}}")
_TOO_LONG = re.compile(rf"[^\s{_NO_BLANKS}]{{{_MAX_CHARS + 1},}}")

_FRONT_ENDS = {
    "en": "mlx_vits.text.english",
    "zh": "mlx_vits.text.chinese",
    "ja": "mlx_vits.text.japanese",
    "ko": "mlx_vits.text.korean",
    "yue": "mlx_vits.text.cantonese",
}
# Upstream's codes for multilingual texts, with the main language of each.
_MIXED = {
    "all_zh": "zh",
    "all_ja": "ja",
    "all_ko": "ko",
    "all_yue": "yue",
    "auto": "zh",
    "auto_yue": "yue",
}
_ALIASES = {"jp": "ja"}  # upstream's lists use both
_NOT_IN_V1 = ("ko", "yue")


class CleanText(NamedTuple):
    """A normalised transcript and its phonemes.

    Attributes:
        phonemes: L symbols of the version.
        word2ph: number of phonemes of each character of `normalized`, for Chinese and Cantonese;
            None for other languages, as upstream writes it.
        normalized: the spoken form of the text, with numbers and abbreviations in words.
        unknown: what has no phonemes, in order, with repeats: letters of another script, emoji,
            characters without a reading, symbols missing from the version. Unknown English words
            are guessed and not listed here.
        guessed: English words that are in no dictionary, in order, with repeats.
    """

    phonemes: list[str]
    word2ph: list[int] | None
    normalized: str
    unknown: tuple[str, ...] = ()
    guessed: tuple[str, ...] = ()


def supported_languages(version: str = "v2") -> tuple[str, ...]:
    """Return the codes that `clean_text` accepts for a version, single languages first."""
    codes = {**{code: code for code in _FRONT_ENDS}, **_MIXED}
    return tuple(c for c, main in codes.items() if not (version == "v1" and main in _NOT_IN_V1))


def clean_text(
    text: str, language: str, version: str = "v2", lexicon: Lexicon = NO_WORDS
) -> CleanText:
    """Convert a transcript to phonemes, like GPT-SoVITS's `text.cleaner.clean_text`.

    Args:
        text: one transcript, in any case and with any punctuation.
        language: a code of `supported_languages()`, in any case. "zh" etc. read the text as that
            language only; "all_zh" etc. read Latin letters in it as English; "auto" detects the
            languages. See `mixed`.
        version: model version that determines the symbols; see `symbols_for`.
        lexicon: the user's pronunciations, which override every dictionary.

    Raises:
        DataError: the text is empty or unpronounceable, has a word of more than 500 characters, or
            the version lacks the language (upstream would read such a text as a single space).
        UserError: the language needs packages that are not installed.
    """
    code = resolve_language(language, version)
    if not text.strip():
        raise DataError("The transcript is empty; write what is said in the recording.")
    if word := (_TOO_LONG_ENGLISH if code == "en" else _TOO_LONG).search(text):
        raise DataError(
            f"The transcript has a word of {len(word[0]):,} characters ({word[0][:20]!r}...), at "
            f"most {_MAX_CHARS} can be read; write what is said, with blanks between the words."
        )
    if code in _MIXED:
        from mlx_vits.text.mixed import clean_mixed

        return clean_mixed(text, code, version, lexicon)
    cleaned: CleanText = import_module(_FRONT_ENDS[code]).clean(text, version, lexicon)
    if code == "en":
        cleaned = cleaned._replace(unknown=tuple(filter(_is_silent_in_english, text)))
    known_symbols = frozenset(symbols_for(version))
    unsupported = tuple(p for p in cleaned.phonemes if p not in known_symbols)
    if not unsupported:
        return cleaned
    phonemes = [p if p in known_symbols else UNKNOWN for p in cleaned.phonemes]
    return cleaned._replace(phonemes=phonemes, unknown=cleaned.unknown + unsupported)


def _is_silent_in_english(character: str) -> bool:
    """Whether a character is a sign or a letter of another script that is silent in English."""
    kind = unicodedata.category(character)
    if kind == "So":
        return character not in "°©℃℉№♥♭"
    if kind == "Sm":
        return unicodedata.normalize("NFKC", character) not in "+<=>|~×÷−±≤≥≈≠∞√♯⁄"
    name = unicodedata.name(character, "").removeprefix("FULLWIDTH ")
    return kind[0] == "L" and not name.startswith(("LATIN", "MICRO"))


def resolve_language(language: str, version: str) -> str:
    """Return the code of `supported_languages()` that a language code stands for.

    Raises:
        DataError: there is none, or the version lacks the language.
    """
    code = _ALIASES.get(language.lower(), language.lower())
    main = _MIXED.get(code, code)
    if main not in _FRONT_ENDS:
        known = ", ".join(repr(code) for code in supported_languages(version))
        raise DataError(f"The language {language!r} is not supported; supported: {known}.")
    if version == "v1" and main in _NOT_IN_V1:
        raise DataError(
            f"Version v1 has no symbols of {LANGUAGE_NAMES[main]} ({language!r}); "
            "choose a base of version v2 or later."
        )
    return code
