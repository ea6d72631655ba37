"""Compares readings of Chinese polyphones: ours, pypinyin's and g2pM's, on a table of sentences.

python scripts/compare_polyphones.py [tests/tables/polyphones_zh.tsv] [--show]
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import typer

import mlx_vits  # noqa: F401  (before mlx, as it chooses the BLAS)
from mlx_vits.text import chinese, chinese_words

TABLE = Path(__file__).parents[1] / "tests" / "tables" / "polyphones_zh.tsv"


def parse(line: str) -> tuple[str, dict[int, str]]:
    """Split a sentence from the readings in it, by the index of their character."""
    text, readings = "", {}
    for match in re.finditer(r"([^a-z0-9])([a-z:]+[1-5])?", line):
        if match[2]:
            readings[len(text)] = match[2]
        text += match[1]
    return text, readings


def ours(text: str) -> list[str]:
    """The readings of the front end, before any change of tone."""
    words = chinese_words.read_words(chinese.normalize(text).text, in_context=True)
    return [
        f"{syllable}{tone}"
        for word in words
        for syllable, tone in zip(word.syllables, word.tones, strict=True)
    ]


def by_pypinyin(text: str) -> list[str]:
    import pypinyin

    readings: list[str] = pypinyin.lazy_pinyin(
        text, style=pypinyin.Style.TONE3, neutral_tone_with_five=True, errors=list
    )
    return readings


def by_g2pm(text: str) -> list[str]:
    return [reading or "" for reading in chinese_words._context_readings(text)]


READERS: dict[str, Callable[[str], list[str]]] = {
    "ours": ours,
    "pypinyin": by_pypinyin,
    "g2pM": by_g2pm,
}


def main(table: Path = typer.Argument(TABLE), show: bool = False) -> None:
    """Print how many of the readings asked for are right, for each part of the table."""
    rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if not row[0].startswith("#")]
    for name, reader in READERS.items():
        for part in dict.fromkeys(row[0] for row in rows):
            right = asked = 0
            for kind, line in rows:
                text, readings = parse(line)
                found = reader(text) if kind == part else []
                for index, reading in readings.items() if found else ():
                    asked += 1
                    right += found[index].replace("u:", "v").replace("ü", "v") == reading
                    if show and name == "ours" and found[index] != reading:
                        print(f"{text} {text[index]}: {found[index]}, not {reading}")
            print(f"{name:9} {part:8} {right} of {asked}")


if __name__ == "__main__":
    typer.run(main)
