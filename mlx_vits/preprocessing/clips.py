"""From recordings to a folder of clips with a list of transcripts: what comes before `prepare`.

| in the folder | what |
| --- | --- |
| `RECORDING_START_END.wav` | the slices |
| `transcripts.list` | what is said in them, GPT-SoVITS's form; to be corrected by hand |
| `recognised.txt` | slices that have been listened to, whether or not their line is still there |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_vits.audio.formats import FFMPEG_SUFFIXES, SUFFIXES
from mlx_vits.errors import DataError
from mlx_vits.files import atomic_write, make_folder, sweep
from mlx_vits.locks import WriterLock
from mlx_vits.preprocessing.cues import CUE_SUFFIXES, is_timed, read_cues
from mlx_vits.preprocessing.languages import find_language, guess_language
from mlx_vits.preprocessing.recognition import DEFAULT_MODEL, load_recogniser, recognise_clips
from mlx_vits.preprocessing.recordings import Notice, SliceFile, is_clip, slice_recordings
from mlx_vits.preprocessing.sources import find_audio
from mlx_vits.preprocessing.text_files import read_text
from mlx_vits.preprocessing.transcripts import (
    Transcript,
    find_beside,
    find_transcripts,
    read_transcripts,
    write_list,
)

Progress = Callable[[int, int, str], None]

LIST = "transcripts.list"
_RECOGNISED = "recognised.txt"
_SAVE_EVERY = 20  # clips between two writings of the list


@dataclass(frozen=True)
class ClipOptions:
    """How recordings become clips with transcripts.

    Attributes:
        language: of all, None to have it told from each clip.
        model: of the recogniser.
        speaker: a name for the list; upstream ignores it.
    """

    language: str | None = None
    model: str = DEFAULT_MODEL
    speaker: str = "voice"


def needs_clips(sources: Sequence[Path]) -> bool:
    """Whether these are recordings to be cut and recognised, and not clips with transcripts."""
    if len(sources) == 1 and sources[0].is_dir():
        folder = sources[0]
        recordings = [folder / name for name in find_audio(folder)]
        return bool(recordings) and find_transcripts(folder) is None and not _are_told(recordings)
    return True


def _are_told(recordings: Sequence[Path]) -> bool:
    """Whether a text beside one of them is all that is said in it.

    Recognisers write subtitles as well as plain text: of a clip the text counts, of a long
    recording the subtitles.
    """
    texts = find_beside(recordings)
    subtitles = find_beside(recordings, CUE_SUFFIXES) if texts else {}
    for clip, path in texts.items():
        try:
            if is_timed(read_text(path)):
                continue
            if subtitles.get(clip, path) == path or is_clip(clip):
                return True
        except DataError:
            return True  # said when its turn comes
    return False


def make_clips(
    sources: Sequence[Path],
    folder: Path,
    options: ClipOptions,
    *,
    transcripts: Path | None = None,
    cutting: Progress | None = None,
    listening: Progress | None = None,
    notice: Notice | None = None,
) -> Path:
    """Cuts recordings into clips, and has them recognised where their transcripts are not given.

    One with subtitles or Audacity's labels beside it, see `cues.py`, is cut by these, and their
    texts are its transcripts.

    A list that is there already is the user's: its lines stay as they are, lines that were taken
    out stay out, and only clips that are new are recognised and added.

    Args:
        sources: recordings, or folders of them.
        folder: of the clips.
        options: how.
        transcripts: given for the slices; then nothing is recognised.
        cutting: called with recordings cut, recordings in all and the recording's name.
        listening: called with clips recognised, clips in all and the clip's name.
        notice: called with a sentence on each recording of which one channel alone is read.

    Returns:
        The file of the transcripts.

    Raises:
        DataError: a recording cannot be read, or nothing is said in any.
        UserError: transcripts are needed and there is no recogniser, or another process is at work
            in the folder.
    """
    make_folder(folder)
    with WriterLock(folder):
        sweep(folder)
        return _make_clips(sources, folder, options, transcripts, cutting, listening, notice)


def _make_clips(
    sources: Sequence[Path],
    folder: Path,
    options: ClipOptions,
    transcripts: Path | None,
    cutting: Progress | None,
    listening: Progress | None,
    notice: Notice | None,
) -> Path:
    gone: list[str] = []
    recordings = _find_recordings(sources)
    subtitles = {} if transcripts else find_beside(recordings, CUE_SUFFIXES)
    cues = {recording: read_cues(path) for recording, path in subtitles.items()}
    slices = slice_recordings(
        recordings, folder, cues=cues, progress=cutting, forget=gone.extend, notice=notice
    )
    if transcripts is not None:
        return transcripts
    path, known = folder / LIST, folder / _RECOGNISED
    rows = read_transcripts(path) if path.is_file() else []
    heard = read_text(known).splitlines() if known.is_file() else []
    if gone:
        rows = [row for row in rows if row.name not in gone]
        heard = [name for name in heard if name not in gone]
        _save(path, known, rows, heard, options.speaker)
    seen = {*heard, *(row.name for row in rows)}
    fresh = [piece for piece in slices if piece.name not in seen]
    told = [_told(piece, options) for piece in fresh if piece.text is not None]
    if told:
        rows += told
        heard += [row.name for row in told]
        _save(path, known, rows, heard, options.speaker)
    new = [folder / piece.name for piece in fresh if piece.text is None]
    if new:
        recogniser = load_recogniser(options.model)
        found = recognise_clips(new, recogniser, options.language, progress=listening)
        for number, row in enumerate(found, 1):
            heard.append(row.name)
            rows += [row] if row.text else []
            if number % _SAVE_EVERY == 0 or number == len(new):
                _save(path, known, rows, heard, options.speaker)
    if not rows:
        raise DataError(f"{folder}: nothing is said in these recordings; give others")
    return path


def _told(piece: SliceFile, options: ClipOptions) -> Transcript:
    text = piece.text or ""
    language = find_language((options.language or "").removeprefix("all_"))
    return Transcript(piece.name, text, language or guess_language(text), piece.recording)


def _save(path: Path, known: Path, rows: list[Transcript], heard: list[str], speaker: str) -> None:
    if rows:
        write_list(path, rows, path.parent, speaker)
    else:
        path.unlink(missing_ok=True)
    with atomic_write(known) as file:
        file.write("".join(f"{name}\n" for name in heard).encode())


def _find_recordings(sources: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for source in sources:
        if source.is_dir():
            names = find_audio(source)
            if not names:
                endings = ", ".join([*SUFFIXES, *FFMPEG_SUFFIXES])
                raise DataError(f"{source}: is empty of recordings ({endings}); check the path")
            found += [source / name for name in names]
        elif source.is_file():
            found.append(source)
        else:
            raise DataError(f"{source}: there is no such recording; check the path")
    return found
