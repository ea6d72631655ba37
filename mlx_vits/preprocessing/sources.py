"""A voice source: a folder of clips with their transcripts, in any form of `transcripts.py`.

A file `held_out.txt`, one clip's name a line, names clips that are only listened to, never trained
on.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mlx_vits.audio.formats import FFMPEG_SUFFIXES, SUFFIXES
from mlx_vits.errors import DataError, UserError
from mlx_vits.files import single_name
from mlx_vits.preprocessing.transcripts import (
    LIST_SUFFIX,
    TRANSCRIPTS,
    Fault,
    Transcript,
    find_transcripts,
    read_beside,
    read_text,
    read_transcripts,
)

HELD_OUT = "held_out.txt"
_HELD_OUT_SHARE = 0.1
_FEWEST_TO_SPLIT = 4
_MOST_HELD_OUT = 20  # all of them are spoken at every checkpoint, and held in memory


class Clip(NamedTuple):
    """One utterance.

    Attributes:
        name: the file's name, which also names everything prepared from it.
        path: the recording.
        text: what is said.
        language: its code, where the transcripts state one.
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
        held_out: those only to listen to.
        unlisted: names of recordings that a `.list` leaves out, which is how one is taken out
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
    """Reads a folder of clips and transcripts.

    Args:
        folder: of the clips.
        held_out: how many of the last clips are kept from training; None for what
            `held_out.txt` names, or without one a tenth of the clips, at most 20, if there are
            four or more.
        transcripts: their file, where it is not the one within the folder.
        fault: called with the sentence on each clip or line that has to be left out; where not
            given, the first is an error.

    Raises:
        DataError: the folder is missing or nothing in it can be used; without `fault` also a clip
            or a transcript that is missing, empty, or has no counterpart.
    """
    clips, unlisted = _read_clips(folder, transcripts, fault)
    listed = folder / HELD_OUT
    if held_out is None and listed.is_file():
        names = [line.strip() for line in read_text(listed).splitlines() if line.strip()]
        unknown = sorted(set(names) - {clip.name for clip in clips})
        if unknown:
            raise DataError(f"{listed}: names {unknown[0]}, which has no transcript")
    else:
        count = held_out if held_out is not None else _default_held_out(len(clips))
        names = [clip.name for clip in clips[max(0, len(clips) - count) :]]
    training = [clip for clip in clips if clip.name not in names]
    if not training:
        raise DataError(f"{folder}: no clip is left to train on; hold out fewer of {len(clips)}")
    kept = [clip for clip in clips if clip.name in names]
    return VoiceSource(clips, training, kept, unlisted)


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
    rows = _read_rows(folder, found, path, leave_out if fault else None)
    of_lines = list(reasons)
    audio = _usable(folder, found, leave_out)
    clips = _match(folder, rows, audio, set(found) - set(audio), leave_out)
    told = {clip.name for clip in clips}
    untold = [name for name in audio if name not in told]
    if untold and not (path is not None and path.suffix.lower() == LIST_SUFFIX):
        place = path.name if path is not None else "a .txt or .lab beside it"
        for name in untold:
            if not any(name in reason for reason in of_lines):  # its line has been said
                leave_out(f"{folder / name}: has no line in {place}; add one or take the clip out")
        untold = []
    if not clips:
        raise DataError(reasons[0] if reasons else f"{folder}: no clip has a transcript")
    return _Listed(clips, untold)


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
    """The names that are files and that no other shares but for its ending."""
    usable: list[str] = []
    for name in audio:
        twin = next((other for other in usable if Path(other).stem == Path(name).stem), None)
        if not (folder / name).is_file():
            kind = "a folder" if (folder / name).is_dir() else "a link to nothing"
            leave_out(f"{folder / name}: is {kind}, not a recording; take it out")
        elif twin is not None:
            leave_out(f"{folder}: {twin} and {name} differ in ending only; rename one")
        else:
            try:
                usable.append(single_name(name, str(folder)))
            except UserError as error:
                leave_out(str(error))
    return usable


def _match(
    folder: Path, rows: list[Transcript], audio: list[str], refused: set[str], leave_out: Fault
) -> list[Clip]:
    present = {path.name for path in folder.iterdir()}
    by_stem = {Path(name).stem: name for name in audio}
    clips: dict[str, Clip] = {}
    for row in rows:
        # LJ Speech lists its clips without their ending.
        name = row.name if row.name in present else by_stem.get(row.name)
        if name is None:
            leave_out(f"{row.where} lists {row.name}, which is not in the folder")
        elif name in clips:
            leave_out(f"{row.where} lists {name} a second time")
        elif name not in refused:
            clips[name] = Clip(name, folder / name, row.text, row.language)
    return list(clips.values())


def find_audio(folder: Path) -> list[str]:
    """Names of the recordings of a folder, in order.

    Where one that only ffmpeg reads lies beside another of the same name, as it does once it was
    converted, it is left aside.

    Raises:
        DataError: there is no such folder, or it cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; check the path")
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
    # Names with a leading dot are macOS's own companions of files on other disks.
    names = [name for name in names if not name.startswith(".")]
    plain = {Path(name).stem for name in names if Path(name).suffix.lower() in SUFFIXES}
    return [
        name
        for name in names
        if (suffix := Path(name).suffix.lower()) in SUFFIXES
        or (suffix in FFMPEG_SUFFIXES and Path(name).stem not in plain)
    ]
