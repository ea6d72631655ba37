"""From recordings to a folder of clips with a list of transcripts: what comes before `prepare`.

| in the folder | what |
| --- | --- |
| `RECORDING_START_END.wav` | the slices |
| `transcripts.list` | what is said in them, GPT-SoVITS's form; to be corrected by hand |
| `recognised.txt` | slices that have been listened to, whether or not their line is still there |
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
_LONGEST_RECORDING = 200  # bytes of a name; those of slices are longer by 26
_SAVE_EVERY = 20  # clips between two writings of the list


@dataclass(frozen=True)
class ClipOptions:
    """How recordings become clips with transcripts.

    Attributes:
        language: of all, None to have it told from each clip.
        model: of the recogniser.
        speaker: a name for the list; upstream ignores it.
        slicing: fields of `SliceSettings` that are to be different from how a recording was cut
            before, or else from the defaults.
        strict: whether a slice that is too long for a clip is refused instead of left out.
    """

    language: str | None = None
    model: str = DEFAULT_MODEL
    speaker: str = "voice"
    slicing: Mapping[str, float] = field(default_factory=dict)
    strict: bool = False

    def refuse_slicing(self, path: Path) -> None:
        """Refuses options of cutting where there is nothing to cut.

        Raises:
            UserError: one is given.
        """
        if self.slicing:
            raise UserError(
                f"{FLAGS[next(iter(self.slicing))]}: is for recordings, which are cut into clips; "
                f"{path} holds clips already, so leave it out"
            )


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
    out stay out, and only clips that are new are recognised and added. Where a recording is cut in
    other places, lines of slices that are no longer there go, and the former list is kept beside
    the new one.

    Args:
        sources: recordings, or folders of them.
        folder: of the clips.
        options: how.
        transcripts: given for the slices; then nothing is recognised.
        cutting: called with recordings cut, recordings in all and the recording's name.
        listening: called with clips recognised, clips in all and the clip's name.
        notice: called with a sentence on each recording of which one channel alone is read, on
            slices that are too long for a clip, which are not recognised, and on lines that are
            gone.

    Returns:
        The file of the transcripts.

    Raises:
        DataError: a recording cannot be read, nothing is said in any, or all slices are too long.
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
        recordings,
        folder,
        changes=options.slicing,
        cues=cues,
        progress=cutting,
        forget=gone.extend,
        notice=notice,
    )
    slices = _leave_out_long(recordings, slices, folder, options.strict, notice)
    if transcripts is not None:
        return transcripts
    path, known = folder / LIST, folder / _RECOGNISED
    rows = read_transcripts(path) if path.is_file() else []
    heard = read_text(known).splitlines() if known.is_file() else []
    if gone:
        if any(row.name in gone for row in rows):
            kept = _keep(path)
            if notice:
                notice(f"{path}: slices have changed; the former list is kept in {kept}.")
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


def _leave_out_long(
    recordings: Sequence[Path],
    slices: list[SliceFile],
    folder: Path,
    strict: bool,
    notice: Callable[[str], None] | None,
) -> list[SliceFile]:
    """The slices that can be clips; of each recording that has others it is said how to cut it."""
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


def _keep(path: Path) -> Path:
    """Adds a list to those that were kept before."""
    kept = path.with_name(f"{path.name}.old")
    before = kept.read_bytes() if kept.is_file() else b""
    with atomic_write(kept) as file:
        file.write(before + path.read_bytes())
    return kept


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
    for path in found:
        _check_name(path)
    return found


def _check_name(path: Path) -> None:
    """Refuse a recording whose slices could not be listed."""
    single_name(path.name, str(path.parent), DataError)
    if "|" in str(path):
        raise DataError(f"{path}: has `|` in its path, which a list has no place for; rename it")
    if len(path.name.encode()) > _LONGEST_RECORDING:
        raise DataError(f"{path}: has too long a name for its slices; shorten it")
