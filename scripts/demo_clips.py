"""Which speech the demo's base is made from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Spoken(NamedTuple):
    """A clip and what is said in it."""

    name: str
    path: Path
    text: str


def training_clips(voices: Path) -> list[Spoken]:
    """kathleen (CC0), and kokoro (output of an Apache-2.0 model) without its last speaker.

    Args:
        voices: folder with `kathleen` and `kokoro`, each with `transcripts.tsv`
            (file, speaker where there are several, text).
    """

    def rows(folder: str) -> list[list[str]]:
        lines = (voices / folder / "transcripts.tsv").read_text("utf-8").splitlines()
        return [line.split("\t") for line in lines if line.strip()]

    kokoro = rows("kokoro")
    unseen = max(row[1] for row in kokoro)
    print(f"left out: {unseen}")
    kept = [("kathleen", row) for row in rows("kathleen")]
    kept += [("kokoro", row) for row in kokoro if row[1] != unseen]
    return [Spoken(row[0], voices / folder / row[0], row[-1]) for folder, row in kept]
