"""The door to the front ends: a transcript and its language in, phonemes of a version out.

A language is one module of this package, named in `_FRONT_ENDS` and imported when it is first
asked for. It offers `clean(text, version) -> CleanText`; phonemes outside the version's symbols
become "UNK" here, for every language alike.
"""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

from mlx_vits.errors import DataError
from mlx_vits.text.symbols import symbols_for

UNKNOWN = "UNK"

_FRONT_ENDS = {"en": "mlx_vits.text.english"}


class CleanText(NamedTuple):
    """A transcript made ready for a model.

    phonemes: L symbols of the version.
    word2ph: how many phonemes each character of `normalized` has, where a language has that
        (Chinese, Cantonese); None elsewhere, as upstream writes it.
    normalized: the text as it is read aloud, numbers and abbreviations in words.
    """

    phonemes: list[str]
    word2ph: list[int] | None
    normalized: str


def supported_languages() -> tuple[str, ...]:
    """The codes that `clean_text` takes, for example `("en",)`."""
    return tuple(_FRONT_ENDS)


def clean_text(text: str, language: str, version: str = "v2") -> CleanText:
    """The phonemes of a transcript, as GPT-SoVITS's `text.cleaner.clean_text` gives them.

    Args:
        text: one transcript, in any case and with any punctuation.
        language: a code of `supported_languages()`, in either case.
        version: the model version whose symbols are wanted; see `symbols_for`.

    Raises:
        DataError: the text is empty or has nothing to speak, or the language is not supported
            (upstream would read such a text as one space of English).
    """
    front_end = _FRONT_ENDS.get(language.lower())
    if front_end is None:
        known = ", ".join(repr(code) for code in _FRONT_ENDS)
        raise DataError(f"The language {language!r} is not supported; supported: {known}.")
    if not text.strip():
        raise DataError("The transcript is empty; write what is said in the recording.")
    cleaned: CleanText = import_module(front_end).clean(text, version)
    known_symbols = frozenset(symbols_for(version))
    phonemes = [p if p in known_symbols else UNKNOWN for p in cleaned.phonemes]
    return cleaned._replace(phonemes=phonemes)
