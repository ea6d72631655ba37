"""Turn recordings into a folder of clips and a list of transcripts: the step before `prepare`.

| file | contents |
| --- | --- |
| `RECORDING_START_END.wav` | the slices |
| `transcripts.list` | their texts in GPT-SoVITS's list format, to be corrected by hand |
| `recognised.txt` | slices already transcribed, including those whose line the user deleted |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlx_vits.audio.formats import FFMPEG_SUFFIXES, SUFFIXES
from mlx_vits.errors import DataError, UserError
from mlx_vits.preprocessing.cues import CUE_SUFFIXES, is_timed, read_cues
from mlx_vits.preprocessing.languages import find_language, guess_language
from mlx_vits.preprocessing.recognition import DEFAULT_MODEL, load_recogniser, recognise_clips
from mlx_vits.preprocessing.recordings import (
    Notice,
    SliceFile,
    describe_long_slices,
    is_clip,
    is_too_long_slice,
    slice_recordings,
)
from mlx_vits.preprocessing.slicer import FLAGS
from mlx_vits.preprocessing.sources import find_audio
from mlx_vits.preprocessing.transcripts import (
    Transcript,
    find_beside,
    find_transcripts,
    read_transcripts,
    write_list,
)
from mlx_vits.system.files import atomic_write, make_folder, single_name, sweep
from mlx_vits.system.locks import WriterLock
from mlx_vits.system.text_files import read_text

Progress = Callable[[int, int, str], None]

LIST = "transcripts.list"
_RECOGNISED = "recognised.txt"
_MAX_NAME_BYTES = 200  # bytes of a file name; the names of slices are 26 bytes longer
_SAVE_EVERY = 20  # clips between two saves of the list


@dataclass(frozen=True)
class ClipOptions:
    """How recordings become clips with transcripts.

    Attributes:
        language: of all clips; None to detect it for each clip.
        model: name or folder of the recogniser's model.
        speaker: speaker name for the list; upstream ignores it.
        slicing: fields of `SliceSettings` to override; the others keep the value that the
            recording was last cut with, or the default.
        strict: whether a slice that is too long for a clip is an error instead of left out.
    """

    language: str | None = None
    model: str = DEFAULT_MODEL
    speaker: str = "voice"
    slicing: Mapping[str, float] = field(default_factory=dict)
    strict: bool = False

    def refuse_slicing(self, path: Path) -> None:
        """Refuse slicing options where there is nothing to cut.

        Raises:
            UserError: a slicing option is set.
        """
        if self.slicing:
            raise UserError(
                f"{FLAGS[next(iter(self.slicing))]}: is for recordings, which are cut into clips; "
                f"{path} holds clips already, so leave it out"
            )


def needs_clips(sources: Sequence[Path]) -> bool:
    """Whether the sources are recordings to cut and transcribe, not clips with transcripts."""
    if len(sources) == 1 and sources[0].is_dir():
        folder = sources[0]
        recordings = [folder / name for name in find_audio(folder)]
        return (
            bool(recordings)
            and find_transcripts(folder) is None
            and not _have_plain_texts(recordings)
        )
    return True


def _have_plain_texts(recordings: Sequence[Path]) -> bool:
    """Whether any recording is a clip with a plain text file as its transcript.

    A text beside a recording that is too long for a clip, as an interview's, says nothing of when
    its words are said; that recording is cut and recognised.
    """
    for clip, path in find_beside(recordings).items():
        try:
            if is_timed(read_text(path)):
                continue
            if is_clip(clip):
                return True
        except UserError:
            return True  # reported when the clip is read
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
    """Cut recordings into clips, and transcribe them unless transcripts are given.

    A recording with subtitles or an Audacity label track beside it (see `cues.py`) is cut at these,
    and their texts become its transcripts.

    An existing list belongs to the user: its lines are kept, deleted lines stay deleted, and only
    new clips are transcribed and added. If a recording is cut differently, lines of vanished slices
    are removed and the previous list is kept beside the new one.

    Args:
        sources: recordings, or folders of them.
        folder: output folder of the clips.
        options: how to cut and transcribe.
        transcripts: file with the texts of the slices; then nothing is transcribed.
        cutting: called with recordings cut, total and the recording's name.
        listening: called with clips transcribed, total and the clip's name.
        notice: called with a sentence for each recording read from a single channel, for slices
            too long for a clip (not transcribed), and for removed lines.

    Returns:
        Path of the transcript file.

    Raises:
        DataError: a recording cannot be read, no speech is found, or all slices are too long.
        UserError: transcripts are needed but no recogniser is installed, or another process is
            writing to the folder.
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
    removed: list[str] = []
    recordings = _find_recordings(sources)
    subtitles = {} if transcripts else find_beside(recordings, CUE_SUFFIXES)
    cues = {recording: read_cues(path) for recording, path in subtitles.items()}
    slices = slice_recordings(
        recordings,
        folder,
        changes=options.slicing,
        cues=cues,
        progress=cutting,
        forget=removed.extend,
        notice=notice,
    )
    slices = _leave_out_long(recordings, slices, folder, options.strict, notice)
    if transcripts is not None:
        return transcripts
    path, done_path = folder / LIST, folder / _RECOGNISED
    rows = read_transcripts(path) if path.is_file() else []
    done = read_text(done_path).splitlines() if done_path.is_file() else []
    if removed:
        if any(row.name in removed for row in rows):
            kept = _back_up(path)
            if notice:
                notice(f"{path}: slices have changed; the former list is kept in {kept}.")
        rows = [row for row in rows if row.name not in removed]
        done = [name for name in done if name not in removed]
        _save(path, done_path, rows, done, options.speaker)
    seen = {*done, *(row.name for row in rows)}
    fresh = [piece for piece in slices if piece.name not in seen]
    from_cues = [_cue_transcript(piece, options) for piece in fresh if piece.text is not None]
    if from_cues:
        rows += from_cues
        done += [row.name for row in from_cues]
        _save(path, done_path, rows, done, options.speaker)
    new = [folder / piece.name for piece in fresh if piece.text is None]
    if new:
        recogniser = load_recogniser(options.model)
        found = recognise_clips(new, recogniser, options.language, progress=listening)
        for number, row in enumerate(found, 1):
            done.append(row.name)
            rows += [row] if row.text else []
            if number % _SAVE_EVERY == 0 or number == len(new):
                _save(path, done_path, rows, done, options.speaker)
    if not rows:
        raise DataError(f"{folder}: no speech was found in these recordings; give others")
    return path


def _cue_transcript(piece: SliceFile, options: ClipOptions) -> Transcript:
    text = piece.text or ""
    language = find_language((options.language or "").removeprefix("all_"))
    return Transcript(piece.name, text, language or guess_language(text), piece.recording)


def _leave_out_long(
    recordings: Sequence[Path],
    slices: list[SliceFile],
    folder: Path,
    strict: bool,
    notice: Callable[[str], None] | None,
) -> list[SliceFile]:
    """Drop slices that are too long for a clip, and report how to cut their recordings."""
    fitting = [piece for piece in slices if not is_too_long_slice(piece)]
    for path in recordings if len(fitting) < len(slices) else ():
        of_it = [piece for piece in slices if piece.recording == path.name]
        long = [piece for piece in of_it if is_too_long_slice(piece)]
        if long:
            words = describe_long_slices(path, long, folder)
            if strict or not fitting:
                raise DataError(words.removesuffix("."))
            if notice:
                notice(words)
    return fitting


def _back_up(path: Path) -> Path:
    """Append the list to the backup of earlier lists."""
    kept = path.with_name(f"{path.name}.old")
    before = kept.read_bytes() if kept.is_file() else b""
    with atomic_write(kept) as file:
        file.write(before + path.read_bytes())
    return kept


def _save(
    path: Path, done_path: Path, rows: list[Transcript], done: list[str], speaker: str
) -> None:
    if rows:
        write_list(path, rows, path.parent, speaker)
    else:
        path.unlink(missing_ok=True)
    with atomic_write(done_path) as file:
        file.write("".join(f"{name}\n" for name in done).encode())


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
    for path in found:
        _check_name(path)
    return found


def _check_name(path: Path) -> None:
    """Refuse a recording whose slices would have names that a list cannot hold."""
    single_name(path.name, str(path.parent), DataError)
    if "|" in str(path):
        raise DataError(f"{path}: has `|` in its path, which a list has no place for; rename it")
    if len(path.name.encode()) > _MAX_NAME_BYTES:
        raise DataError(f"{path}: has too long a name for its slices; shorten it")
