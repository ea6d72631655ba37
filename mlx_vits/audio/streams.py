"""Recordings of any length, a block at a time, at any rate.

What libsndfile cannot open goes through ffmpeg, where that is installed. The resampler is soxr, as
for whole clips.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from mlx_vits.audio.files import SUFFIXES
from mlx_vits.errors import DataError

_BLOCK = 1 << 18  # samples


@contextlib.contextmanager
def open_recording(path: Path) -> Iterator[soundfile.SoundFile]:
    """Opens a recording, by way of ffmpeg where libsndfile does not know its form.

    Raises:
        DataError: it is missing, or neither can read it.
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
    if program is None:
        raise DataError(
            f"{path}: cannot be read; give it as {', '.join(SUFFIXES[:4])}, or install ffmpeg"
        )
    command = [program, "-nostdin", "-v", "error", "-i", str(path), "-vn", "-rf64", "auto"]
    done = subprocess.run(
        [*command, "-acodec", "pcm_f32le", str(output)], capture_output=True, check=False
    )
    if done.returncode != 0 or not output.is_file():
        raise DataError(f"{path}: holds no sound that ffmpeg can read; export it again as WAV")


def stream_recording(path: Path, rate: int) -> Iterator[np.ndarray]:
    """A recording in blocks, mono, at a given rate.

    Args:
        rate: Hz, of the result.

    Yields:
        `(N,)` float32, full scale 1.0.

    Raises:
        DataError: it cannot be read, or holds something that is not a number.
    """
    with open_recording(path) as file:
        resampler = None
        if file.samplerate != rate:
            resampler = soxr.ResampleStream(file.samplerate, rate, 1, "float32", "HQ")
        try:
            # Not `blocks()`: where a file is cut off, that gives its last buffer again.
            while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                mono = block.mean(axis=1, dtype=np.float32)
                if not np.isfinite(mono).all():
                    raise DataError(
                        f"{path}: holds samples that are not numbers; record or export it again"
                    )
                yield resampler.resample_chunk(mono) if resampler else mono
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise DataError(f"{path}: is damaged; export it again") from error
        if resampler:
            yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
