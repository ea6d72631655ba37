"""Recordings of any length, a block at a time, at any rate.

The resampler is soxr, as for whole clips.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from mlx_vits.audio.formats import open_recording
from mlx_vits.errors import DataError

_BLOCK = 1 << 18  # samples


def stream_recording(path: Path, rate: int) -> Iterator[np.ndarray]:
    """A recording in blocks, mono, at a given rate.

    Args:
        rate: Hz, of the result.

    Yields:
        `(N,)` float32, full scale 1.0.

    Raises:
        DataError: it cannot be read, or holds something that is not a number.
        UserError: it needs ffmpeg, which is not installed.
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
