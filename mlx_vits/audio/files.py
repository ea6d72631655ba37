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

from mlx_vits.audio.streams import check_speech_rate, open_stream
from mlx_vits.errors import DataError
from mlx_vits.system.files import atomic_write

_LONGEST_SECONDS = 600.0  # far above any clip; longer recordings are streamed


class Recording(NamedTuple):
    """Mono audio.

    Attributes:
        wav: `(N,)` float32, full scale 1.0.
        rate: Hz.
        channels: of the file.
        channel: the one of them that `wav` is, from 0; None where it is their average.
    """

    wav: np.ndarray
    rate: int
    channels: int = 1
    channel: int | None = None


def read_audio(path: str | Path) -> Recording:
    """Reads a recording of up to ten minutes into memory.

    Several channels are averaged, unless that would lose most of the sound (`Recording.channel`).

    Raises:
        DataError: the file is missing, is not audio, is empty, too long, or holds something that
            is no sound.
        UserError: it needs ffmpeg, which is not installed, or more space for temporary files than
            there is.
    """
    path = Path(path)
    with open_stream(path, _LONGEST_SECONDS) as stream, stream.naming_faults():
        blocks = list(stream.mono())
        if not blocks:
            raise DataError(f"{path}: holds no sound; take it out of the folder")
        wav = np.concatenate(blocks)
        return Recording(wav, stream.rate, stream.channels, stream.channel)


def read_seconds(path: str | Path) -> float:
    """How long a recording of up to ten minutes is, from its header if that says so.

    Raises:
        DataError: as `read_audio`.
        UserError: as `read_audio`.
    """
    with open_stream(Path(path), _LONGEST_SECONDS) as stream:
        frames = stream.frames
        if frames is None:
            frames = sum(len(block) for block in stream.blocks())
        return frames / stream.rate


def read_speech(path: str | Path, rate: int) -> np.ndarray:
    """Reads a recording at a given rate.

    Args:
        path: the recording.
        rate: Hz, of the result.

    Returns:
        `(N,)` float32.

    Raises:
        DataError: as `read_audio`, or the recording was made below 16 kHz and lacks what a voice
            needs.
        UserError: as `read_audio`.
    """
    return to_speech(read_audio(path), path, rate)


def to_speech(recording: Recording, path: str | Path, rate: int) -> np.ndarray:
    """A recording at a given rate.

    Args:
        recording: from `read_audio`.
        path: of the recording, for messages.
        rate: Hz, of the result.

    Raises:
        DataError: it was made below 16 kHz.
    """
    check_speech_rate(path, recording.rate, rate)
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
