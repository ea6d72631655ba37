"""A voice source: a folder of clips beside `transcripts.tsv`.

`transcripts.tsv` has one line a clip, `file<TAB>text`; a speaker column may stand between. A file
`held_out.txt`, one clip's name a line, names clips that are only listened to, never trained on.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from mlx_vits.audio.files import SUFFIXES
from mlx_vits.errors import DataError

TRANSCRIPTS = "transcripts.tsv"
HELD_OUT = "held_out.txt"
_HELD_OUT_SHARE = 0.1
_FEWEST_TO_SPLIT = 4


class Clip(NamedTuple):
    """One utterance.

    Attributes:
        name: the file's name, which also names everything prepared from it.
        path: the recording.
        text: what is said.
    """

    name: str
    path: Path
    text: str


class VoiceSource(NamedTuple):
    """Clips in the order of the transcripts: all, those to train on, those only to listen to."""

    clips: list[Clip]
    training: list[Clip]
    held_out: list[Clip]


def read_voice_source(folder: Path, held_out: int | None = None) -> VoiceSource:
    """Reads a folder of clips and transcripts.

    Args:
        held_out: how many of the last clips are kept from training; None for what
            `held_out.txt` names, or without one a tenth of the clips, if there are four or more.

    Raises:
        DataError: the folder, a clip or a transcript is missing, empty, or has no counterpart.
    """
    clips = _read_clips(folder)
    listed = folder / HELD_OUT
    if held_out is None and listed.is_file():
        names = [line.strip() for line in _read_text(listed).splitlines() if line.strip()]
        unknown = sorted(set(names) - {clip.name for clip in clips})
        if unknown:
            raise DataError(f"{listed}: names {unknown[0]}, which {TRANSCRIPTS} does not list")
    else:
        count = held_out if held_out is not None else _default_held_out(len(clips))
        names = [clip.name for clip in clips[max(0, len(clips) - count) :]]
    training = [clip for clip in clips if clip.name not in names]
    if not training:
        raise DataError(f"{folder}: no clip is left to train on; hold out fewer of {len(clips)}")
    return VoiceSource(clips, training, [clip for clip in clips if clip.name in names])


def _default_held_out(clips: int) -> int:
    return max(1, round(clips * _HELD_OUT_SHARE)) if clips >= _FEWEST_TO_SPLIT else 0


def _read_clips(folder: Path) -> list[Clip]:
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; check the path")
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
    # Names with a leading dot are macOS's own companions of files on other disks.
    audio = [n for n in names if Path(n).suffix.lower() in SUFFIXES and not n.startswith(".")]
    transcripts = folder / TRANSCRIPTS
    if not audio and not transcripts.is_file():
        raise DataError(
            f"{folder}: is empty of recordings; put clips of about 3 to 10 seconds there, with "
            f"{TRANSCRIPTS} (file<TAB>text) beside them"
        )
    if not transcripts.is_file():
        raise DataError(
            f"{folder}: has recordings but no {TRANSCRIPTS}; write one, a line `file<TAB>text` "
            "for each clip"
        )
    clips = _parse_transcripts(transcripts, folder)
    missing = [clip.name for clip in clips if not clip.path.is_file()]
    if missing:
        raise DataError(f"{transcripts}: lists {missing[0]}, which is not in the folder")
    untold = sorted(set(audio) - {clip.name for clip in clips})
    if untold:
        raise DataError(
            f"{folder / untold[0]}: has no line in {TRANSCRIPTS}; add one or take the clip out"
        )
    stems = Counter(Path(clip.name).stem for clip in clips)
    twins = [clip.name for clip in clips if stems[Path(clip.name).stem] > 1]
    if twins:
        raise DataError(f"{folder}: {twins[0]} and {twins[1]} differ in ending only; rename one")
    return clips


def _parse_transcripts(path: Path, folder: Path) -> list[Clip]:
    clips: dict[str, Clip] = {}
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        columns = line.split("\t")
        if len(columns) not in (2, 3):
            raise DataError(f"{path}: line {number} is not `file<TAB>text`")
        name, text = columns[0].strip(), columns[-1].strip()
        if not name or Path(name).name != name:
            raise DataError(f"{path}: line {number} does not name a file of the folder itself")
        if not text:
            raise DataError(f"{path}: line {number} gives no text for {name}")
        if name in clips:
            raise DataError(f"{path}: line {number} lists {name} a second time")
        clips[name] = Clip(name, folder / name, text)
    if not clips:
        raise DataError(f"{path}: lists no clip; write a line `file<TAB>text` for each")
    return list(clips.values())


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text; save it again as UTF-8") from error
