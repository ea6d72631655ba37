"""Read a voice source: a folder of clips with transcripts in any form of `transcripts.py`.

The clips are in the folder itself or, if there are none, in sub-folders, such as `wavs/` of LJ
Speech and Piper. Clips of several sub-folders are named `SUBFOLDER_NAME`.

`held_out.txt` lists clips that are kept from training and only used to compare, one name a line.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from mlx_vits.audio.formats import FFMPEG_SUFFIXES, SUFFIXES
from mlx_vits.errors import DataError, UserError
from mlx_vits.preprocessing.listed import Recordings
from mlx_vits.preprocessing.transcripts import (
    LIST_SUFFIX,
    TRANSCRIPTS,
    Fault,
    Transcript,
    find_transcripts,
    read_beside,
    read_transcripts,
)
from mlx_vits.system.files import list_folder, single_name
from mlx_vits.system.text_files import read_text

HELD_OUT = "held_out.txt"
_HELD_OUT_SHARE = 0.1
_FEWEST_TO_SPLIT = 4
_DEEPEST = 3  # levels of sub-folders to search: voice, chapter, `wavs`
_MOST_HELD_OUT = 20  # all are synthesised at every checkpoint and kept in memory


class Clip(NamedTuple):
    """One utterance.

    Attributes:
        name: used for everything prepared from it: the file's name, prefixed with its sub-folder
            if there are several.
        path: the recording.
        text: transcript.
        language: code, if the transcripts state one.
    """

    name: str
    path: Path
    text: str
    language: str | None = None


class VoiceSource(NamedTuple):
    """A voice's clips.

    Attributes:
        clips: in the order of the transcripts.
        training: those to train on.
        held_out: those kept from training.
        unlisted: names of recordings missing from a `.list`, which is how clips are excluded
            there; other forms have to name every recording.
    """

    clips: list[Clip]
    training: list[Clip]
    held_out: list[Clip]
    unlisted: list[str]


def read_voice_source(
    folder: Path,
    held_out: int | None = None,
    transcripts: Path | None = None,
    fault: Fault | None = None,
) -> VoiceSource:
    """Read a folder of clips and transcripts.

    Args:
        folder: of the clips.
        held_out: number of clips, from the end, to keep from training; None for those in
            `held_out.txt`, or without it a tenth, at most 20, if there are four or more clips.
        transcripts: transcript file, if not the one in the folder.
        fault: called with a sentence for each clip or line that is left out; if None, the first
            one is an error.

    Raises:
        DataError: the folder is missing or has nothing usable; without `fault` also for a clip or
            a transcript that is missing, empty, or has no counterpart.
    """
    clips, unlisted = _read_clips(folder, transcripts, fault)
    listed = folder / HELD_OUT
    if held_out is None and listed.is_file():
        names = _read_held_out(listed, folder, clips)
    else:
        count = held_out if held_out is not None else _default_held_out(len(clips))
        names = [clip.name for clip in clips[max(0, len(clips) - count) :]]
    training = [clip for clip in clips if clip.name not in names]
    if not training:
        raise DataError(f"{folder}: no clip is left to train on; hold out fewer of {len(clips)}")
    kept = [clip for clip in clips if clip.name in names]
    return VoiceSource(clips, training, kept, unlisted)


def _read_held_out(path: Path, folder: Path, clips: list[Clip]) -> list[str]:
    """Read the clip names in `held_out.txt`, matched like those in transcripts."""
    by_path = {clip.path.relative_to(folder).as_posix(): clip.name for clip in clips}
    recordings, known = Recordings(by_path), set(by_path.values())
    names = []
    for line in filter(None, map(str.strip, read_text(path).split("\n"))):
        name = line if line in known else by_path.get(recordings.find(line) or "")
        if name is None:
            raise DataError(
                f"{path}: names {line}, which has no transcript; add one, or take the line out"
            )
        names.append(name)
    return names


def _default_held_out(clips: int) -> int:
    if clips < _FEWEST_TO_SPLIT:
        return 0
    return min(max(1, round(clips * _HELD_OUT_SHARE)), _MOST_HELD_OUT)


class _Listed(NamedTuple):
    clips: list[Clip]
    unlisted: list[str]


def _read_clips(folder: Path, transcripts: Path | None, fault: Fault | None) -> _Listed:
    reasons: list[str] = []

    def leave_out(reason: str) -> None:
        if fault is None:
            raise DataError(reason)
        reasons.append(reason)
        fault(reason)

    found = find_audio(folder)
    path = transcripts or find_transcripts(folder)
    if not found and path is None:
        found = _find_below(folder)
    rows = _read_rows(folder, found, path, leave_out if fault else None)
    here = Recordings(found)
    if not any(here.find(row.listed or row.name) for row in rows):
        found = [*found, *_find_below(folder)]
    of_lines = list(reasons)
    audio = _usable(folder, found, leave_out)
    clips = _match(folder, rows, audio, set(found) - set(audio), leave_out)
    told = {clip.path for clip in clips}
    untold = [name for name in audio if folder / name not in told]
    if untold and not (path is not None and path.suffix.lower() == LIST_SUFFIX):
        place = path.name if path is not None else "a .txt or .lab beside it"
        for name in untold:
            named = re.compile(rf"(?<![\w.-]){re.escape(Path(name).name)}(?!\w)")
            if not any(map(named.search, of_lines)):  # its line was already reported
                leave_out(f"{folder / name}: has no line in {place}; add one or take the clip out")
        untold = []
    if not clips:
        none = f"{folder}: no clip has a transcript; write {TRANSCRIPTS}, a line for each clip"
        raise DataError(reasons[0] if reasons else none)
    names = _clip_names(audio)
    return _Listed(clips, [names[name] for name in untold])


def _read_rows(
    folder: Path, audio: list[str], path: Path | None, fault: Fault | None
) -> list[Transcript]:
    if path is not None:
        rows = read_transcripts(path, fault)
    elif audio:
        rows = read_beside([folder / name for name in audio], fault)
    else:
        raise DataError(
            f"{folder}: is empty of recordings; put clips of about 3 to 10 seconds there, with "
            f"{TRANSCRIPTS} (file<TAB>text) beside them"
        )
    if not rows:
        raise DataError(
            f"{folder}: has recordings but no {TRANSCRIPTS}; write one, a line `file<TAB>text` "
            "for each clip"
        )
    return rows


def _usable(folder: Path, audio: list[str], leave_out: Fault) -> list[str]:
    """Return the names that are files and that no other shares up to the suffix."""
    usable: dict[Path, str] = {}
    clips = _clip_names(audio)
    for name in audio:
        twin = usable.get(Path(name).with_suffix(""))
        if not (folder / name).is_file():
            kind = "a folder" if (folder / name).is_dir() else "a link to nothing"
            leave_out(f"{folder / name}: is {kind}, not a recording; take it out")
        elif twin is not None:
            leave_out(f"{folder}: {twin} and {name} differ in ending only; rename one")
        else:
            try:
                single_name(clips[name], str(folder))
            except UserError as error:
                leave_out(str(error))
            else:
                usable[Path(name).with_suffix("")] = name
    return list(usable.values())


def _match(
    folder: Path, rows: list[Transcript], audio: list[str], refused: set[str], leave_out: Fault
) -> list[Clip]:
    others = {path.name for path in list_folder(folder, DataError)}.difference(audio)
    recordings, clip_names = Recordings(audio), _clip_names(audio)
    clips: dict[str, Clip] = {}
    for row in rows:
        listed = row.listed or row.name
        found = row.name if row.name in others else recordings.find(listed)
        name = clip_names.get(found, found) if found is not None else None
        if found is None or name is None:
            similar = recordings.similar(listed)
            cure = f"did you mean {similar}?" if similar else "add it or take the line out"
            leave_out(f"{row.where} lists {row.name}, which is not in the folder; {cure}")
        elif name in clips:
            leave_out(f"{row.where} lists {name} a second time; take one of the lines out")
        elif found not in refused:
            clips[name] = Clip(name, folder / found, row.text, row.language)
    return list(clips.values())


def _clip_names(audio: list[str]) -> dict[str, str]:
    """Map each recording to the name of its clip."""
    is_flat = len({Path(name).parent for name in audio}) <= 1
    return {name: Path(name).name if is_flat else name.replace("/", "_") for name in audio}


def find_audio(folder: Path) -> list[str]:
    """Return the names of a folder's recordings, sorted.

    A file that only ffmpeg reads is skipped if a converted one of the same name is beside it.

    Raises:
        DataError: there is no such folder, or it cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; check the path")
    # macOS leaves companion files with a leading dot on other file systems.
    found = (path.name for path in list_folder(folder, DataError))
    names = [name for name in found if not name.startswith(".")]
    plain = {Path(name).stem for name in names if Path(name).suffix.lower() in SUFFIXES}
    return [
        name
        for name in names
        if (suffix := Path(name).suffix.lower()) in SUFFIXES
        or (suffix in FFMPEG_SUFFIXES and Path(name).stem not in plain)
    ]


def _find_below(folder: Path) -> list[str]:
    """Return recordings in sub-folders, sorted, relative to `folder`, with `/`."""
    found: list[str] = []
    seen = {folder.resolve()}
    waiting = [(folder, 0)]
    while waiting:
        place, depth = waiting.pop()
        found_here = list_folder(place, DataError)
        below = [path for path in found_here if path.is_dir() and path.name[:1] != "."]
        for path in below if depth < _DEEPEST else ():
            if path.resolve() not in seen:  # links may form cycles
                seen.add(path.resolve())
                waiting.append((path, depth + 1))
                names = [name for name in find_audio(path) if (path / name).is_file()]
                found += [(path / name).relative_to(folder).as_posix() for name in names]
    return sorted(found)
