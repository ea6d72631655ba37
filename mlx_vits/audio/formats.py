"""Opens recordings: what libsndfile reads and, where ffmpeg is installed, what that reads."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import soundfile

from mlx_vits.errors import DataError, UserError

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif")
# Of ffmpeg's, those that recordings have; which codec is inside does not matter.
FFMPEG_SUFFIXES = (
    *(".m4a", ".m4b", ".mp4", ".mov", ".aac", ".wma", ".webm", ".mka", ".mkv", ".3gp", ".amr"),
    *(".ac3", ".ape", ".wv", ".tta", ".mp2", ".oga", ".caf"),
)
_COMMON = f"{', '.join(SUFFIXES[:3])} or {SUFFIXES[3]}"


def is_recording_name(name: str) -> bool:
    """Whether a file's name ends as those of recordings do."""
    return name.lower().endswith((*SUFFIXES, *FFMPEG_SUFFIXES))


@contextlib.contextmanager
def open_recording(path: Path) -> Iterator[soundfile.SoundFile]:
    """Opens a recording, by way of ffmpeg where libsndfile does not know its form.

    Raises:
        DataError: it is missing, or nothing that is installed can read it.
        UserError: its name says that ffmpeg would, which is not installed: no fault of the
            recording's.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such recording; check the path")
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, OSError, RuntimeError):
        with tempfile.TemporaryDirectory() as folder:
            decoded = Path(folder) / "decoded.wav"
            _decode(path, decoded)
            with soundfile.SoundFile(decoded) as file:
                yield file
        return
    with file:
        yield file


def _decode(path: Path, output: Path) -> None:
    """Has ffmpeg write a WAV at the recording's own rate."""
    program = shutil.which("ffmpeg")
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
    # As a file, whatever protocol its name begins like; and no list within it is followed further.
    source = ["-protocol_whitelist", "file", "-i", f"file:{path}"]
    command = [program, "-nostdin", "-v", "error", *source, "-vn", "-rf64", "auto"]
    done = subprocess.run(
        [*command, "-acodec", "pcm_f32le", str(output)], capture_output=True, check=False
    )
    if done.returncode != 0 or not output.is_file():
        raise DataError(
            f"{path}: holds no sound that ffmpeg can read; export it again as WAV, or take it out"
        )
