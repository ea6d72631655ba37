"""What one recording sounds like, in numbers: levels, noise, clipping, offset, bandwidth.

Axes: N samples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mlx_vits.preprocessing.levels import SILENT
from mlx_vits.preprocessing.quality import measure_levels

_FLOOR = 1e-9
_AT_PEAK = 0.999
_WINDOW = 1024  # samples of a spectrum
_BAND_HZ = 250
# A band this far below the loudest holds nothing: in LJ Speech, kathleen and Kokoro's voices every
# band below the edge is within 57 dB of the loudest, every band above it 74 dB or more below.
_NOTHING_DB = 70
# Truncation to 16 bits leaves -113 dB of noise in a band of this width at 32 kHz.
_LEAST_BAND_DB = -108


class SoundFacts(NamedTuple):
    """One recording; levels are in dB re full scale."""

    rate: int  # Hz
    channels: int  # of the file; measured is their mean, or the one of `channel`
    peak: float  # largest absolute sample, 1.0 is full scale
    rms_db: float
    range_db: float  # the loudest tenth of its 25 ms frames above the quietest tenth
    noise_db: float  # the quietest tenth
    # Share of samples within 0.1 % of the recording's own peak: flat tops that were made quieter
    # later count as well, those that were resampled later do not.
    clipped: float
    dc_offset: float  # mean sample
    bandwidth_hz: float  # there is nothing above it
    largest_step: float  # between neighbouring samples
    channel: int | None = None  # from 0; the only one that is read, where the mean would lose most


def measure_sound(
    wav: np.ndarray, rate: int, channels: int = 1, channel: int | None = None
) -> SoundFacts:
    """Measure a recording `(N,)`, full scale 1.0, of one sample or more."""
    peak = float(np.abs(wav).max())
    offset = float(wav.mean(dtype=np.float64))
    is_silent = peak < SILENT
    centred = wav - np.float32(offset)  # an offset is no noise
    levels = measure_levels(centred, rate)
    return SoundFacts(
        rate=rate,
        channels=channels,
        peak=peak,
        rms_db=levels.rms_db,
        range_db=levels.range_db,
        noise_db=levels.noise_db,
        clipped=0.0 if is_silent else float((np.abs(wav) >= _AT_PEAK * peak).mean()),
        dc_offset=offset,
        bandwidth_hz=0.0 if is_silent else _bandwidth(centred, rate),
        largest_step=float(np.abs(np.diff(wav)).max(initial=0.0)),
        channel=channel,
    )


def _bandwidth(wav: np.ndarray, rate: int) -> float:
    """The upper end of the highest band that holds something, of the whole recording's mean."""
    count = max(1, len(wav) // _WINDOW)
    padded = np.pad(wav, (0, max(0, _WINDOW - len(wav))))
    window = np.hanning(_WINDOW)
    frames = padded[: count * _WINDOW].reshape(count, _WINDOW) * window
    power = np.square(np.abs(np.fft.rfft(frames, axis=1))).mean(axis=0)
    power *= 2 / (_WINDOW * np.square(window).sum())
    wide = max(1, round(_BAND_HZ * _WINDOW / rate))
    bands = power[: len(power) // wide * wide].reshape(-1, wide).sum(axis=1)
    levels = 10 * np.log10(bands + _FLOOR**2)
    heard = np.flatnonzero(levels >= max(levels.max() - _NOTHING_DB, _LEAST_BAND_DB))
    highest = int(heard[-1]) + 1 if len(heard) else 0
    return min(highest * wide * rate / _WINDOW, rate / 2)
