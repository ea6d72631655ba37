"""What the commands that print a page (`check`, `doctor`, `inspect`) have in common."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 100
_MOST_CHARS = 2000  # of one text; folding millions takes minutes

Level = Literal["problem", "note"]


class Remark(NamedTuple):
    """A finding in one or two sentences, with what to do about it.

    Attributes:
        level: a problem keeps something from working, or makes a worse voice; a note does not.
    """

    level: Level
    words: str


def problem(words: str) -> Remark:
    return Remark("problem", words)


def note(words: str) -> Remark:
    return Remark("note", words)


def problems_first(remarks: Iterable[Remark]) -> list[Remark]:
    return sorted(remarks, key=lambda remark: remark.level != "problem")


def name_some(names: Sequence[str], most: int = 3) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def are(number: int, noun: str) -> str:
    return f"{count(number, noun)} {'is' if number == 1 else 'are'}"


def standard_output() -> Console:
    """Return a console of at most `WIDTH` columns; a sign it lacks becomes a question mark."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    console = Console(highlight=False)
    width = min(WIDTH, console.width) if console.is_terminal else WIDTH
    return Console(highlight=False, width=width)


def safe_text(value: Any, style: str = "") -> Text:
    """Return text from a file without markup or control characters, cut to a bearable length."""
    text = str(value)
    left = len(text) - _MOST_CHARS
    shown = "".join(c if c.isprintable() else "?" for c in text[:_MOST_CHARS])
    return Text(shown if left <= 0 else f"{shown} ... and {left:,} characters more", style)


def pairs(rows: Iterable[tuple[str, Any]], label_width: int | None = None) -> Table:
    """Return labels and values; a row whose value is None or empty is left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, min_width=label_width)
    grid.add_column(overflow="fold")
    for label, value in rows:
        if value not in (None, "", [], {}):
            grid.add_row(safe_text(f"  {label}", "dim"), safe_text(value))
    return grid


def remark_list(remarks: Iterable[Remark]) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for level, words in remarks:
        sign, style = ("  !", "bold yellow") if level == "problem" else ("  -", "")
        grid.add_row(safe_text(sign, style), safe_text(words, style))
    return grid


def plain(value: Any) -> Any:
    """Return a value as JSON has it: tables for records, null for a number that is not finite."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
