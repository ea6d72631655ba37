"""Check by a speech recogniser that a sentence was said as it is written."""

from __future__ import annotations

import re
import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mlx_vits.audio.files import write_wav
from mlx_vits.preprocessing.recognition import Recogniser

GOOD_ENOUGH = 0.1  # share of words misheard that no other try is made for
_BY_CHARACTER = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_MIXED = ("auto", "auto_yue")

Verify = Callable[[np.ndarray, str, str], float]


def verifier(recognise: Recogniser, rate: int) -> Verify:
    """Return a function of sound `(N,)`, its text and language to the share of words misheard.

    Args:
        recognise: from `load_recogniser`.
        rate: of the sound, in Hz.
    """

    def verify(wav: np.ndarray, text: str, language: str) -> float:
        code = None if language in _MIXED else language.removeprefix("all_")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sentence.wav"
            write_wav(path, wav, rate)
            heard = recognise(path, code).text
        return misheard(text, heard)

    return verify


def misheard(text: str, heard: str) -> float:
    """Return the share of words (of characters, in Chinese and Japanese) that differ, 0 to 1."""
    said, understood = _units(text), _units(heard)
    if not said:
        return 0.0
    return min(1.0, edit_distance(said, understood) / len(said))


def _units(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = "".join(c if c.isalnum() else "" if c in "'’" else " " for c in plain)
    spaced = _BY_CHARACTER.sub(lambda found: f" {found[0]} ", plain)
    return spaced.split()


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the least insertions, deletions and substitutions that make one the other."""
    row = list(range(len(second) + 1))
    for count, one in enumerate(first, start=1):
        before, row = row, [count]
        for place, other in enumerate(second, start=1):
            change = before[place - 1] + (one != other)
            row.append(min(before[place] + 1, row[place - 1] + 1, change))
    return row[-1]
