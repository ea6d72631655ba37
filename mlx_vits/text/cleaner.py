"""The door to the front ends: a transcript and its language in, phonemes of a version out.

A language is one module of this package, named in `_FRONT_ENDS` and imported when it is first
asked for, like the packages that it needs. It offers `clean(text, version, lexicon) -> CleanText`;
phonemes outside the version's symbols become "UNK" here, for every language alike. A text of
several languages goes through `mixed`, which cuts it and comes back here with each part.
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

# The rules of the front ends look back and ahead within a word: their time grows with the square of
# its length. Scripts that are written without blanks have no such rules but in English.
_LONGEST_WORD = 500
_NO_BLANKS = r"\u3001-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
_TOO_LONG_ENGLISH = re.compile(rf"\S{{{_LONGEST_WORD + 1},}}")
_TOO_LONG = re.compile(rf"[^\s{_NO_BLANKS}]{{{_LONGEST_WORD + 1},}}")

_FRONT_ENDS = {
    "en": "mlx_vits.text.english",
    "zh": "mlx_vits.text.chinese",
    "ja": "mlx_vits.text.japanese",
    "ko": "mlx_vits.text.korean",
    "yue": "mlx_vits.text.cantonese",
}
# Upstream's codes for a text of several languages, and the languages that each one needs.
_MIXED = {
    "all_zh": "zh",
    "all_ja": "ja",
    "all_ko": "ko",
    "all_yue": "yue",
    "auto": "zh",
    "auto_yue": "yue",
}
_ALIASES = {"jp": "ja"}  # upstream's lists have both
_NOT_IN_V1 = ("ko", "yue")


class CleanText(NamedTuple):
    """A transcript made ready for a model.

    phonemes: L symbols of the version.
    word2ph: how many phonemes each character of `normalized` has, where a language has that
        (Chinese, Cantonese); None elsewhere, as upstream writes it.
    normalized: the text as it is read aloud, numbers and abbreviations in words.
    unknown: what the text has and the phonemes do not say, in order, repeats included: letters of
        another script, pictures, characters without a reading, symbols that the version lacks.
        English guesses words that it does not know, which is no such case.
    guessed: English words that no dictionary has, in order, repeats included.
    """

    phonemes: list[str]
    word2ph: list[int] | None
    normalized: str
    unknown: tuple[str, ...] = ()
    guessed: tuple[str, ...] = ()


def supported_languages(version: str = "v2") -> tuple[str, ...]:
    """The codes that `clean_text` takes for a version, single languages first."""
    codes = {**{code: code for code in _FRONT_ENDS}, **_MIXED}
    return tuple(c for c, main in codes.items() if not (version == "v1" and main in _NOT_IN_V1))


def clean_text(
    text: str, language: str, version: str = "v2", lexicon: Lexicon = NO_WORDS
) -> CleanText:
    """The phonemes of a transcript, as GPT-SoVITS's `text.cleaner.clean_text` gives them.

    Args:
        text: one transcript, in any case and with any punctuation.
        language: a code of `supported_languages()`, in either case. "zh" and its like read the
            text as that language alone; "all_zh" and its like read Latin letters in it as English;
            "auto" tells the languages apart. See `mixed`.
        version: the model version whose symbols are wanted; see `symbols_for`.
        lexicon: the user's own pronunciations, which go before every dictionary.

    Raises:
        DataError: the text is empty or has nothing to speak, has a word of more than 500
            characters, or the version does not have the language (upstream would read such a text
            as one space of English).
        UserError: the language needs packages that are not installed.
    """
    code = resolve_language(language, version)
    if not text.strip():
        raise DataError("The transcript is empty; write what is said in the recording.")
    if word := (_TOO_LONG_ENGLISH if code == "en" else _TOO_LONG).search(text):
        raise DataError(
            f"The transcript has a word of {len(word[0]):,} characters ({word[0][:20]!r}...), at "
            f"most {_LONGEST_WORD} can be read; write what is said, with blanks between the words."
        )
    if code in _MIXED:
        from mlx_vits.text.mixed import clean_mixed

        return clean_mixed(text, code, version, lexicon)
    cleaned: CleanText = import_module(_FRONT_ENDS[code]).clean(text, version, lexicon)
    if code == "en":
        cleaned = cleaned._replace(unknown=tuple(filter(_is_strange_to_english, text)))
    known_symbols = frozenset(symbols_for(version))
    strange = tuple(p for p in cleaned.phonemes if p not in known_symbols)
    if not strange:
        return cleaned
    phonemes = [p if p in known_symbols else UNKNOWN for p in cleaned.phonemes]
    return cleaned._replace(phonemes=phonemes, unknown=cleaned.unknown + strange)


def _is_strange_to_english(character: str) -> bool:
    """Whether it is a letter of another script, or a picture: English makes no sound of them."""
    kind = unicodedata.category(character)
    if kind == "So":
        return character not in "°©®™℃℉№"
    return kind[0] == "L" and not unicodedata.name(character, "").startswith(("LATIN", "MICRO"))


def resolve_language(language: str, version: str) -> str:
    """The code of `supported_languages()` that is meant.

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
