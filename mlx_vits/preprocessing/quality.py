"""Judge whether a clip is fit to train on, and say why not."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mlx_vits.config import DataSection
from mlx_vits.preprocessing.levels import LOUDEST, SILENT
from mlx_vits.preprocessing.prepared import LONGEST_FRAMES, SHORTEST_FRAMES, WAV_HEADER_BYTES

_FULL_SCALE = 0.999
_CLIPPED_SHARE = 0.001
_MIN_RANGE_DB = 9.0  # loudest above quietest tenth; speech at 3 dB SNR has 9
_FRAME_SECONDS = 0.025
_FLOOR = 1e-9


class Levels(NamedTuple):
    """Level statistics of a clip.

    Attributes:
        peak: largest absolute sample, 1.0 is full scale.
        rms_db: root mean square, dB re full scale.
        noise_db: mean level of the quietest tenth of 25 ms frames, dB re full scale.
        range_db: mean level of the loudest tenth above that, dB.
        clipped: share of samples at full scale.
    """

    peak: float
    rms_db: float
    noise_db: float
    range_db: float
    clipped: float


def measure_levels(wav: np.ndarray, rate: int) -> Levels:
    """Measure a non-empty clip `(N,)` with full scale 1.0."""
    size = round(rate * _FRAME_SECONDS)
    count = max(1, len(wav) // size)
    frames = wav[: count * size].astype(np.float64).reshape(count, -1)
    frames = frames - frames.mean()  # a DC offset is not noise
    levels = np.sort(20 * np.log10(np.sqrt(np.square(frames).mean(axis=1)) + _FLOOR))
    tenth = max(1, count // 10)
    noise = float(levels[:tenth].mean())
    power = np.square(wav, dtype=np.float64).mean()
    return Levels(
        peak=float(np.abs(wav).max()),
        rms_db=float(10 * np.log10(power + _FLOOR**2)),
        noise_db=noise,
        range_db=float(levels[-tenth:].mean()) - noise,
        clipped=float((np.abs(wav) >= _FULL_SCALE).mean()),
    )


def is_too_long(samples: int, data: DataSection) -> bool:
    """Whether a clip of so many samples at the model's rate exceeds the sampler's buckets."""
    # Upstream's buckets count the frames of the file, its header included.
    return (WAV_HEADER_BYTES + 2 * samples) // (2 * data.hop_length) > LONGEST_FRAMES


def longest_seconds(data: DataSection) -> float:
    """Return the duration of the longest clip that can be trained on."""
    return LONGEST_FRAMES * data.hop_length / data.sampling_rate


def judge_clip(wav: np.ndarray, data: DataSection) -> str | None:
    """Return why a clip cannot be trained on, None if it can.

    Args:
        wav: `(N,)` at the model's rate, before levelling.
        data: of the model's configuration.
    """
    rate, frames = data.sampling_rate, len(wav) // data.hop_length
    seconds = len(wav) / rate
    if frames < SHORTEST_FRAMES:
        shortest = SHORTEST_FRAMES * data.hop_length / rate
        return (
            f"is {seconds:.2f} s long; clips need at least {shortest:.2f} s, so take it out or "
            "join it with the next"
        )
    if is_too_long(len(wav), data):
        longest = longest_seconds(data)
        return f"is {seconds:.0f} s long; cut it into clips of 3 to 10 s (at most {longest:.0f} s)"
    levels = measure_levels(wav, rate)
    if levels.peak < SILENT:
        return "is silent; take it out or record it again"
    if levels.peak > LOUDEST:
        return (
            f"has a peak of {levels.peak:.1f} where 1.0 is full scale; export it again at a lower "
            "level"
        )
    if levels.clipped > _CLIPPED_SHARE:
        return f"is clipped ({levels.clipped:.1%} of it at full scale); record it at a lower level"
    if levels.range_db < _MIN_RANGE_DB:
        return (
            f"is too noisy (its loudest parts are {levels.range_db:.0f} dB above its quietest); "
            "record it where it is quiet"
        )
    return None
