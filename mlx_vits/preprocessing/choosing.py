"""Choose the clip of a prepared voice that its speech is to begin from.

T2S continues a recording of 3 to 10 s and takes over its manner: where it stops within a word, or
is hurried or noisy, so is what follows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlx_vits.audio.files import read_audio
from mlx_vits.errors import DataError
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.languages import guess_language
from mlx_vits.preprocessing.quality import Levels, measure_levels

SHORTEST, LONGEST = 3.0, 10.0  # seconds, what T2S has learnt to continue
_GOOD_SECONDS = (4.0, 7.0)
_END_SECONDS = 0.06
_QUIET_DB = -20.0  # of the end, relative to the clip; an open vowel is at about 0
_LEAST_RANGE_DB = 30.0
_MOST_MEASURED = 200  # clips of a large voice
_CLIPPED_SHARE = 0.001
_SENTENCE_END = re.compile(r"[.!?。！？…][\"'”’」』）)]*$")
_CLAUSE_END = re.compile(r"[,;:，；：、—-][\"'”’」』）)]*$")


class Candidate(NamedTuple):
    """A training clip as a reference.

    Attributes:
        name: of the clip.
        text: what is said.
        language: of the text.
        seconds: its length.
        pace: phonemes a second.
        levels: of its sound.
        end_db: level of its last 60 ms, relative to the whole.
    """

    name: str
    text: str
    language: str
    seconds: float
    pace: float
    levels: Levels
    end_db: float


class Choice(NamedTuple):
    """The chosen clip, and in words what is not ideal about it."""

    candidate: Candidate
    flaws: list[str]


class _Flaw(NamedTuple):
    weight: float
    words: str


def choose_reference(candidates: Sequence[Candidate]) -> Choice | None:
    """Choose the clip of 3 to 10 s with the fewest flaws, the first of equals; None without any.

    Args:
        candidates: all clips of the voice, also those too short or too long to be chosen: they tell
            what level and pace are typical.
    """
    fit = [one for one in candidates if SHORTEST <= one.seconds <= LONGEST]
    if not fit:
        return None
    pace = float(np.median([one.pace for one in candidates]))
    level = float(np.median([one.levels.rms_db for one in candidates]))
    flaws = [_flaws(one, pace, level) for one in fit]
    best = min(range(len(fit)), key=lambda index: sum(flaw.weight for flaw in flaws[index]))
    return Choice(fit[best], [flaw.words for flaw in flaws[best]])


def _flaws(one: Candidate, pace: float, level: float) -> list[_Flaw]:
    """Weigh what is wrong with a clip; 1 is as bad as a text that does not end its sentence."""
    shortest, longest = _GOOD_SECONDS
    outside = max(shortest - one.seconds, one.seconds - longest)
    hurry = abs(np.log2(max(one.pace, 1e-3) / max(pace, 1e-3)))
    loudness = abs(one.levels.rms_db - level)
    judged = [
        _Flaw(0.5 * outside, f"{one.seconds:.1f} s are not {shortest:.0f} to {longest:.0f}"),
        _Flaw((one.end_db - _QUIET_DB) / 5, "it does not end in a pause"),
        _Flaw(4 * hurry if hurry > 0.1 else 0.0, "its pace is not the voice's usual one"),
        _Flaw(loudness / 3 if loudness > 1.5 else 0.0, "its level is not the voice's usual one"),
        _Flaw((_LEAST_RANGE_DB - one.levels.range_db) / 5, "it is noisy"),
        _Flaw(2.0 if one.levels.clipped > _CLIPPED_SHARE else 0.0, "it is clipped"),
        _Flaw(_unfinished(one.text), "its text does not end a sentence"),
    ]
    return [flaw for flaw in judged if flaw.weight > 0]


def _unfinished(text: str) -> float:
    text = text.strip()
    if _SENTENCE_END.search(text):
        return 0.0
    return 0.5 if _CLAUSE_END.search(text) else 1.0


def measure_candidate(
    name: str, text: str, language: str, phonemes: int, wav: np.ndarray, rate: int
) -> Candidate:
    """Measure a clip `(N,)` of one sample or more, in which so many phonemes are said."""
    levels, seconds = measure_levels(wav, rate), len(wav) / rate
    end = measure_levels(wav[-round(_END_SECONDS * rate) :], rate)
    return Candidate(
        name, text, language, seconds, phonemes / seconds, levels, end.rms_db - levels.rms_db
    )


def read_candidates(folder: Path, language: str) -> list[Candidate]:
    """Measure the training clips of a prepared folder, at most 200 of them.

    Args:
        folder: ours or GPT-SoVITS's.
        language: of texts that state none; where it is English, their script may say otherwise.

    Raises:
        DataError: the manifest or the list of texts is damaged.
    """
    manifest = layout.Manifest.read(folder)
    sources = {clip.name: clip for clip in manifest.sources} if manifest else {}
    skipped: list[str] = []  # lines that training leaves out as well
    found = []
    for line in layout.read_text_lines(folder / layout.TEXT_FILE, skipped.append):
        path = folder / layout.WAV_FOLDER / line.name
        if not path.is_file():
            continue
        source = sources.get(line.name)
        text = source.text if source else line.text
        spoken = (source.language if source else "") or (manifest.language if manifest else "")
        if not spoken:
            spoken = language if language != "en" else guess_language(text)
        try:
            recording = read_audio(path)
        except DataError:
            continue  # training names what it cannot read
        phonemes = sum(symbol[0].isalnum() for symbol in line.phonemes if symbol)
        found.append(
            measure_candidate(line.name, text, spoken, phonemes, recording.wav, recording.rate)
        )
        if len(found) == _MOST_MEASURED:
            break
    return found
