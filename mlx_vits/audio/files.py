"""Recordings in and out, and resampling.

Libraries: soundfile (libsndfile) and soxr, the resampler that upstream's librosa calls.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from mlx_vits.audio.formats import open_recording
from mlx_vits.errors import DataError
from mlx_vits.files import atomic_write

_MIN_RATE = 16000


class Recording(NamedTuple):
    """Mono audio.

    Attributes:
        wav: `(N,)` float32, full scale 1.0.
        rate: Hz.
    """

    wav: np.ndarray
    rate: int


def read_audio(path: str | Path) -> Recording:
    """Reads a recording; several channels are averaged.

    Raises:
        DataError: the file is missing, is not audio, is empty, or holds something that is not a
            number.
        UserError: it needs ffmpeg, which is not installed.
    """
    path = Path(path)
    with open_recording(path) as file:
        rate = file.samplerate
        try:
            samples = file.read(dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise DataError(f"{path}: is damaged; export it again or take it out") from error
    if not len(samples):
        raise DataError(f"{path}: holds no sound; take it out of the folder")
    wav = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    if not np.isfinite(wav).all():
        raise DataError(f"{path}: holds samples that are not numbers; record or export it again")
    return Recording(np.ascontiguousarray(wav, dtype=np.float32), int(rate))


def read_seconds(path: str | Path) -> float:
    """How long a recording is, from its header.

    Raises:
        DataError: the file is missing or is not audio.
        UserError: it needs ffmpeg, which is not installed.
    """
    with open_recording(Path(path)) as file:
        return file.frames / file.samplerate


def read_speech(path: str | Path, rate: int) -> np.ndarray:
    """Reads a recording at a given rate.

    Args:
        rate: Hz, of the result.

    Returns:
        `(N,)` float32.

    Raises:
        DataError: as `read_audio`, or the recording was made below 16 kHz and lacks what a voice
            needs.
    """
    recording = read_audio(path)
    if recording.rate < _MIN_RATE:
        raise DataError(
            f"{path}: was recorded at {recording.rate} Hz, which lacks the upper half of a voice; "
            f"record it at {_MIN_RATE} Hz or more, best at {rate} Hz"
        )
    return resample(recording.wav, recording.rate, rate)


def resample(wav: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """`(N,)` float32 at `rate` Hz to float32 at `new_rate` Hz, soxr's high quality."""
    if rate == new_rate:
        return wav
    return soxr.resample(wav.astype(np.float32), rate, new_rate, quality="HQ")


def write_wav(path: str | Path, wav: np.ndarray, rate: int) -> None:
    """Writes mono 16-bit RIFF WAV with a 44-byte header.

    Args:
        wav: `(N,)`, int16 written as it is, float scaled by 32767 and clipped to full scale.
        rate: Hz.

    Raises:
        UserError: the file cannot be written.
    """
    if wav.dtype != np.int16:
        wav = np.round(np.clip(wav, -1.0, 1.0) * 32767).astype(np.int16)
    # By way of memory: libsndfile's callbacks cannot raise what the disk says.
    content = io.BytesIO()
    soundfile.write(content, wav, rate, subtype="PCM_16", format="WAV")
    with atomic_write(path) as file:
        file.write(content.getbuffer())
