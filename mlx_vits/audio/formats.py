"""Open recordings with libsndfile or, where it is installed, with ffmpeg."""

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
# Containers of audio that only ffmpeg reads; the codec inside does not matter.
FFMPEG_SUFFIXES = (
    *(".m4a", ".m4b", ".mp4", ".mov", ".aac", ".wma", ".webm", ".mka", ".mkv", ".3gp", ".amr"),
    *(".ac3", ".ape", ".wv", ".tta", ".mp2", ".oga", ".caf"),
)
_COMMON = f"{', '.join(SUFFIXES[:3])} or {SUFFIXES[3]}"


class SoundFile(soundfile.SoundFile):
    """A sound file that is read from front to back only.

    soundfile seeks after every read, which libsndfile cannot do in some formats (DWVW, GSM 6.10)
    or in damaged files.
    """

    def __init__(self, path: Path):
        super().__init__(os.fsencode(path))  # file names need not be UTF-8
        self.path = path

    def seekable(self) -> bool:
        """Return False, which keeps soundfile from seeking."""
        return False


def is_recording_name(name: str) -> bool:
    """Whether a file name has a suffix of an audio format."""
    return name.lower().endswith((*SUFFIXES, *FFMPEG_SUFFIXES))


@contextlib.contextmanager
def open_recording(path: Path, max_seconds: float | None = None) -> Iterator[SoundFile]:
    """Open a recording, decoded by ffmpeg if libsndfile does not know the format.

    Args:
        path: the recording.
        max_seconds: how much will be read, None for all.

    Yields:
        The header of the recording or of its decoded copy; its `path` is the file to read.

    Raises:
        DataError: it is missing, or nothing installed can read it.
        UserError: ffmpeg is needed and not installed, or its temporary files do not fit on the
            disk; the recording is not at fault.
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
    # A recorder that lost power leaves a header of 0 frames; ffmpeg reads the data all the same.
    if header is not None and (header.frames > 0 or program is None):
        yield header
        return
    if program is None and path.suffix.lower() in FFMPEG_SUFFIXES:
        raise UserError(
            f"{path}: can only be read with ffmpeg, which is not installed; install it, or give "
            f"the recording as {_COMMON}"
        )
    if program is None:
        raise DataError(
            f"{path}: is not audio that can be read; give it as {_COMMON}, install ffmpeg, or take "
            "it out"
        )
    with decode(program, path, max_seconds) as decoded:
        header = _read_header(decoded)
        if header is None:
            raise DataError(
                f"{path}: holds no sound that ffmpeg can read; export it again as WAV, or take it "
                "out"
            )
        yield header


def _read_header(path: Path) -> SoundFile | None:
    """Return a file's header, already closed; None if libsndfile does not know the format."""
    try:
        with SoundFile(path) as file:
            return file
    except (soundfile.LibsndfileError, OSError, RuntimeError, TypeError):  # the last for .raw
        return None
