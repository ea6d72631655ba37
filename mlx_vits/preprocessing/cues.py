"""Subtitles and label tracks of a long recording: where its clips are, and their texts.

| beside `talk.wav` | format |
| --- | --- |
| `talk.srt`, `talk.vtt` | SubRip, WebVTT |
| `talk.txt` | an Audacity label track: start, end and text, separated by tabs |
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from mlx_vits.errors import DataError
from mlx_vits.system.text_files import read_text

_SUBTITLES = (".srt", ".vtt")
CUE_SUFFIXES = (*_SUBTITLES, ".txt")
_TIME = r"((?:\d+:)?\d+:\d+[.,]\d+)"
_TIMING = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(\s.*)?")
_LABEL = re.compile(r"\s*(\d+[.,]\d+)\t(\d+[.,]\d+)(?:\t(.*))?")
_MARKUP = re.compile(r"<[^>]*>|\{\\[^}]*\}")
_NO_SPEECH = re.compile(r"[\[(♪].*[\])♪]|")  # `[music]`, `(laughs)`
_OVERLAP_SECONDS = 0.05  # tolerance for rounding
_SHORT_SECONDS, _LONG_SECONDS, _GAP_SECONDS = 4.0, 15.0, 1.0  # limits for merging cues into clips


class Cue(NamedTuple):
    """A text with its start and end in the recording, in seconds."""

    start: float
    end: float
    text: str


def is_timed(content: str) -> bool:
    """Whether a text is subtitles or a label track rather than a plain transcript."""
    lines = [line for line in content.split("\n") if line.strip() and line[0] != "\\"]
    return any(map(_TIMING.fullmatch, lines)) or bool(lines and all(map(_LABEL.fullmatch, lines)))


def read_cues(path: Path) -> list[Cue]:
    """Read cues, merging short neighbours; a file without times has none.

    Raises:
        DataError: cues overlap or have no duration, or a subtitle file has no cues.
    """
    content = read_text(path)
    if not is_timed(content):
        if path.suffix.lower() in _SUBTITLES:
            raise DataError(f"{path}: holds no subtitles; write them again or take it away")
        return []
    lines = content.split("\n")
    cues = _subtitles(lines) if any(map(_TIMING.fullmatch, lines)) else _labels(lines)
    spoken = [cue for cue in cues if not _NO_SPEECH.fullmatch(cue.text)]
    return _merge(_without_overlaps(path, sorted(spoken)))


def _subtitles(lines: Sequence[str]) -> Iterable[Cue]:
    timings = [(i, match) for i, line in enumerate(lines) if (match := _TIMING.fullmatch(line))]
    for number, (at, match) in enumerate(timings):
        last = timings[number + 1][0] if number + 1 < len(timings) else len(lines)
        text = list(lines[at + 1 : last])
        if last < len(lines) and text and text[-1].strip().isdigit():
            text.pop()  # the next cue's number
        blank = next((i for i, line in enumerate(text) if not line.strip()), len(text))
        yield Cue(_seconds(match[1]), _seconds(match[2]), _clean(" ".join(text[:blank])))


def _labels(lines: Sequence[str]) -> Iterable[Cue]:
    for match in filter(None, map(_LABEL.fullmatch, lines)):
        yield Cue(_seconds(match[1]), _seconds(match[2]), _clean(match[3] or ""))


def _seconds(time: str) -> float:
    seconds = 0.0
    for part in time.replace(",", ".").split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def _clean(text: str) -> str:
    return " ".join(html.unescape(_MARKUP.sub("", text)).replace("|", " ").split())


def _without_overlaps(path: Path, cues: Iterable[Cue]) -> list[Cue]:
    """Return cues without their rounding overlaps.

    Raises:
        DataError: a cue overlaps the next one, or has no duration.
    """
    found: list[Cue] = []
    for cue in cues:
        before = found[-1].end if found else 0.0
        if cue.end <= cue.start:
            raise DataError(
                f"{path}: {cue.text!r} at {cue.start:.2f} s has no length; give it an end, or take "
                "it out"
            )
        if cue.start < before - _OVERLAP_SECONDS:
            raise DataError(
                f"{path}: two texts overlap at {cue.start:.2f} s, as in rolling captions; give "
                "subtitles without overlaps, or remove them to have the recording recognised"
            )
        found.append(cue._replace(start=max(cue.start, before)))
    return found


def _merge(cues: Iterable[Cue]) -> list[Cue]:
    """Join a short cue with the one that closely follows it."""
    merged: list[Cue] = []
    for cue in cues:
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.end - last.start < _SHORT_SECONDS
            and cue.start - last.end <= _GAP_SECONDS
            and cue.end - last.start <= _LONG_SECONDS
        ):
            merged[-1] = Cue(last.start, cue.end, f"{last.text} {cue.text}")
        else:
            merged.append(cue)
    return merged
