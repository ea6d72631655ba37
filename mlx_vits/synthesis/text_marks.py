"""Punctuation of a text to be spoken: what ends a clause, what is repeated, what a text ends in."""

from __future__ import annotations

import re

from mlx_vits.errors import UserError

SPLITTERS = "，。？！,.?!~:：—…"  # upstream's `splits`
CLAUSE_MARKS = SPLITTERS + "；;、"
_CLOSING = "”’」』）】》〉)\\]}"
# A straight quote opens a quotation as often as it closes one.
_CLOSERS = rf"(?:[{_CLOSING}]|[\"'](?=\s|$))*"
_ENDS_WITH_MARK = re.compile(rf"[{CLAUSE_MARKS}][{_CLOSING}\"']*$")
_REPEATED = "!?…,.\\-"  # upstream collapses no full-width marks; the Chinese front end does
# "-.5" and "...5" keep what belongs to the number.
_REPEATS = re.compile(rf"([{_REPEATED}])[{_REPEATED}]*?(?=-?\.?\d|[^{_REPEATED}]|$)", re.DOTALL)
_UPSTREAM_REPEATS = re.compile(rf"([{_REPEATED}])[{_REPEATED}]+")
_FIRST_SPLITTER = re.compile(f"[{SPLITTERS}]")
_SPOKEN = re.compile(r"[^\W_]")


class TextError(UserError, ValueError):
    """The text to be spoken, or how it is to be cut, cannot be used."""


def end_pattern(marks: str) -> re.Pattern[str]:
    """Return a pattern for the end of a clause: a run of marks and the closing quotes after it.

    Marks inside a number ("3.14", "1,000", "10:30"), a file name or an abbreviation ("main.py",
    "a.m.") and the colon of "https://" end nothing.
    """
    inside = "".join(mark for mark in marks if mark in ",:：")
    always = "".join(mark for mark in marks if mark not in ",:：.")
    kinds = [rf"[{always}]"] if always else []
    if inside:
        kinds += [rf"(?<!\d)[{inside}](?!//)", rf"[{inside}](?![\d/])"]
    if "." in marks:
        kinds.append(r"\.(?![a-z\d])")
    return re.compile(f"(?:{'|'.join(kinds)})+{_CLOSERS}")


def is_spoken(text: str) -> bool:
    """Tell whether a text has a letter or a digit."""
    return _SPOKEN.search(text) is not None


def collapse_marks(text: str, *, compat: bool = False) -> str:
    """Keep the first of consecutive ASCII marks and ellipses ("?!" becomes "?").

    Args:
        text: any text.
        compat: as upstream, which also takes the point of "-.5" for a repetition.
    """
    return (_UPSTREAM_REPEATS if compat else _REPEATS).sub(r"\1", text)


def first_clause(text: str) -> str:
    """Return the text before its first splitter, stripped."""
    return _FIRST_SPLITTER.split(text, maxsplit=1)[0].strip()


def final_mark(language: str) -> str:
    """Return the mark that upstream puts at the end of a text that has none."""
    return "." if language == "en" else "。"


def finish(text: str, language: str) -> str:
    """Strip the blanks at the end of a text, and add a final mark where it ends in none."""
    text = text.rstrip()
    return text if _ENDS_WITH_MARK.search(text[-20:]) else text + final_mark(language)
