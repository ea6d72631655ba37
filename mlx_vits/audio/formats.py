"""Opens recordings: what libsndfile reads and, where ffmpeg is installed, what that reads."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import soundfile

from mlx_vits.audio.ffmpeg import decode
from mlx_vits.errors import DataError, UserError

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif")
# Of ffmpeg's, those that recordings have; which codec is inside does not matter.
FFMPEG_SUFFIXES = (
    *(".m4a", ".m4b", ".mp4", ".mov", ".aac", ".wma", ".webm", ".mka", ".mkv", ".3gp", ".amr"),
    *(".ac3", ".ape", ".wv", ".tta", ".mp2", ".oga", ".caf"),
)
_COMMON = f"{', '.join(SUFFIXES[:3])} or {SUFFIXES[3]}"


class SoundFile(soundfile.SoundFile):
    """Reads from front to back only.

    soundfile seeks after every read, which libsndfile cannot do in every format (DWVW, GSM 6.10)
    and in every damaged file.
    """

    def __init__(self, path: Path):
        super().__init__(os.fsencode(path))  # names need not be UTF-8
        self.path = path

    def seekable(self) -> bool:
        """Denies it."""
        return False


def is_recording_name(name: str) -> bool:
    """Whether a file's name ends as those of recordings do."""
    return name.lower().endswith((*SUFFIXES, *FFMPEG_SUFFIXES))


@contextlib.contextmanager
def open_recording(path: Path, longest: float | None = None) -> Iterator[SoundFile]:
    """Opens a recording, by way of ffmpeg where libsndfile does not know its form.

    Args:
        path: the recording.
        longest: seconds that will be read, None for all.

    Yields:
        What libsndfile says of the recording, or of what ffmpeg made of it; to be read from `path`.

    Raises:
        DataError: it is missing, or nothing that is installed can read it.
        UserError: it needs ffmpeg, which is not installed, or more space for temporary files than
            there is: no fault of the recording's.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such recording; check the path")
    try:
        path.open("rb").close()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from error
    program = shutil.which("ffmpeg")
    header = _read_header(path)
    # A recorder that lost its power leaves a header of no frames, which ffmpeg does not trust.
    if header is not None and (header.frames > 0 or program is None):
        yield header
        return
    if program is None and path.suffix.lower() in FFMPEG_SUFFIXES:
        raise UserError(
            f"{path}: can be read with ffmpeg alone, which is not installed; install it, or give "
            f"the recording as {_COMMON}"
        )
    if program is None:
        raise DataError(
            f"{path}: is not audio that can be read; give it as {_COMMON}, install ffmpeg, or take "
            "it out"
        )
    with decode(program, path, longest) as decoded:
        header = _read_header(decoded)
        if header is None:
            raise DataError(
                f"{path}: holds no sound that ffmpeg can read; export it again as WAV, or take it "
                "out"
            )
        yield header


def _read_header(path: Path) -> SoundFile | None:
    """What libsndfile says of a file, closed again; None where it does not know its form."""
    try:
        with SoundFile(path) as file:
            return file
    except (soundfile.LibsndfileError, OSError, RuntimeError, TypeError):  # the last for .raw
        return None
