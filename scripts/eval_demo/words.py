"""Words of a transcript, and how many of them were heard wrongly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from mlx_vits.synthesis.verifying import edit_distance
from mlx_vits.text.english import normalize

_NOT_WORDS = re.compile(r"[^a-z ]+")
_APOSTROPHES = re.compile(r"['’‘`]")


class WordErrors(NamedTuple):
    """Words heard wrongly, missed or added, of so many that were said."""

    errors: int
    words: int


def spoken_words(text: str) -> list[str]:
    """The words of an English text in lower case, without punctuation, numbers spelled out.

    Numbers, amounts and common abbreviations are read as this project's English front end reads
    them, so "1455" and "fourteen fifty-five" are the same words. A hyphen separates words, an
    apostrophe does not.
    """
    spelled = _APOSTROPHES.sub("", normalize(text).lower())
    return _NOT_WORDS.sub(" ", spelled).split()


def count_word_errors(said: str, heard: str) -> WordErrors:
    """Word errors of one clip: the least substitutions, deletions and insertions.

    Args:
        said: the transcript.
        heard: what a recogniser wrote.

    Example:
        >>> count_word_errors("It was 1455.", "it was fourteen fifty six")
        WordErrors(errors=1, words=5)
    """
    reference = spoken_words(said)
    return WordErrors(edit_distance(reference, spoken_words(heard)), len(reference))


def word_error_rate(parts: Sequence[WordErrors]) -> float:
    """Errors of all clips over words of all clips.

    Raises:
        ValueError: no word was said.
    """
    words = sum(part.words for part in parts)
    if words == 0:
        raise ValueError("there is no word in any transcript")
    return sum(part.errors for part in parts) / words
