"""Read and write recordings, and resample them.

Libraries: soundfile (libsndfile) and soxr, the resampler that upstream's librosa calls.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from mlx_vits.audio.streams import check_speech_rate, open_stream
from mlx_vits.errors import DataError
from mlx_vits.system.files import atomic_write

_MAX_SECONDS = 600.0  # far above any clip; longer recordings are streamed


class Recording(NamedTuple):
    """Mono audio.

    Attributes:
        wav: `(N,)` float32, full scale 1.0.
        rate: Hz.
        channels: number of channels in the file.
        channel: index of the channel that `wav` holds; None if it is the average of all.
    """

    wav: np.ndarray
    rate: int
    channels: int = 1
    channel: int | None = None


def read_audio(path: str | Path) -> Recording:
    """Read a recording of up to ten minutes into memory.

    Channels are averaged, unless that would cancel most of the signal (see `Stream.channel`).

    Raises:
        DataError: the file is missing, empty, too long, not audio, or holds invalid samples.
        UserError: ffmpeg is needed and not installed, or its temporary files do not fit on the
            disk.
    """
    path = Path(path)
    with open_stream(path, _MAX_SECONDS) as stream, stream.data_errors():
        blocks = list(stream.mono())
        if not blocks:
            raise DataError(f"{path}: holds no sound; take it out of the folder")
        wav = np.concatenate(blocks)
        return Recording(wav, stream.rate, stream.channels, stream.channel)


def read_seconds(path: str | Path) -> float:
    """Return the length of a recording of up to ten minutes, in seconds.

    Taken from the header where it states the length.

    Raises:
        DataError: as `read_audio`.
        UserError: as `read_audio`.
    """
    with open_stream(Path(path), _MAX_SECONDS) as stream:
        frames = stream.frames
        if frames is None:
            frames = sum(len(block) for block in stream.blocks())
        return frames / stream.rate


def read_speech(path: str | Path, rate: int) -> np.ndarray:
    """Read a recording and resample it.

    Args:
        path: the recording.
        rate: target rate, Hz.

    Returns:
        `(N,)` float32.

    Raises:
        DataError: as `read_audio`, or the recording's own rate is below 16 kHz, which lacks the
            treble of a voice.
        UserError: as `read_audio`.
    """
    return to_speech(read_audio(path), path, rate)


def to_speech(recording: Recording, path: str | Path, rate: int) -> np.ndarray:
    """Resample a recording, and refuse one whose rate is too low for speech.

    Args:
        recording: from `read_audio`.
        path: its file, for messages.
        rate: target rate, Hz.

    Raises:
        DataError: the recording's own rate is below 16 kHz.
    """
    check_speech_rate(path, recording.rate, rate)
    return resample(recording.wav, recording.rate, rate)


def resample(wav: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Resample `(N,)` from `rate` to `new_rate` Hz with soxr's HQ preset; returns float32."""
    if rate == new_rate:
        return wav
    return soxr.resample(wav.astype(np.float32), rate, new_rate, quality="HQ")


def write_wav(path: str | Path, wav: np.ndarray, rate: int) -> None:
    """Write a mono 16-bit RIFF WAV file with a 44-byte header.

    Args:
        wav: `(N,)`; int16 is written unchanged, float is clipped to [-1, 1] and scaled by 32767.
        rate: Hz.

    Raises:
        UserError: the file cannot be written.
    """
    if wav.dtype != np.int16:
        wav = np.round(np.clip(wav, -1.0, 1.0) * 32767).astype(np.int16)
    # Encoded in memory: an error raised in libsndfile's write callbacks would be lost.
    content = io.BytesIO()
    soundfile.write(content, wav, rate, subtype="PCM_16", format="WAV")
    with atomic_write(path) as file:
        file.write(content.getbuffer())
