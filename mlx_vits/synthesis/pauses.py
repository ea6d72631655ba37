"""Pauses written into a text: `[pause 0.8s]`, `[pause 800ms]`, `[pause: 1.5]`."""

from __future__ import annotations

import re
from typing import NamedTuple

from mlx_vits.synthesis.text_marks import TextError, is_spoken

LONGEST_PAUSE = 60.0  # seconds
_MARK = re.compile(r"\[\s*pause(?![^\W\d_])[^\[\]\n]{0,40}\]?", re.IGNORECASE)
_LENGTH = re.compile(
    r"\[\s*pause\s*[:=]?\s*(\d{1,9}(?:\.\d{1,9})?|\.\d{1,9})\s*(ms|milliseconds?|s|sec|seconds?)?\s*\]",
    re.IGNORECASE,
)


class Pause(NamedTuple):
    """Silence between two texts."""

    seconds: float


def split_pauses(text: str) -> list[str | Pause]:
    """Split a text into texts and pauses, in order.

    A number without a unit is in seconds. Texts without a letter or a digit are left out where
    there is anything else.

    Args:
        text: with or without marks.

    Raises:
        TextError: a mark that cannot be read, or a pause longer than `LONGEST_PAUSE`.
    """
    parts: list[str | Pause] = []
    start = 0
    for mark in _MARK.finditer(text):
        parts += [text[start : mark.start()], _read_mark(mark[0])]
        start = mark.end()
    parts.append(text[start:])
    return [p for p in parts if isinstance(p, Pause) or is_spoken(p)] or [text]


def _read_mark(mark: str) -> Pause:
    length = _LENGTH.fullmatch(mark)
    if length is None:
        raise TextError(
            f"The pause {mark!r} cannot be read; write its length as in [pause 0.8s] or "
            "[pause 800ms]."
        )
    unit = (length[2] or "s").lower()
    seconds = float(length[1]) / (1000 if unit.startswith("m") else 1)
    if seconds > LONGEST_PAUSE:
        raise TextError(
            f"The pause {mark!r} is longer than {LONGEST_PAUSE:g} seconds; write a shorter one, "
            "or several."
        )
    return Pause(seconds)
