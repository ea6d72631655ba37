"""Clips unlike the others, by their sound and by their speaker vectors.

Thresholds on sound were measured on LJ Speech's first 32 clips, all 1620 of kathleen, and 16 voices
of Kokoro-82M with 30 each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mlx_vits.preprocessing import prepared as layout
from mlx_vits.tools.check.facts import ClipFacts, SoundSummary, Spread, VectorSummary
from mlx_vits.tools.check.sound import SoundFacts

_FEWEST = 5  # clips that have a usual value
_SIGMAS = 3
_MAD_TO_SIGMA = 1.4826  # of normally distributed values

# White noise 15 dB below the speech leaves 21 dB. Without it 2131 of the 2132 clips have more than
# this; medians are 34 dB for kathleen, 46 for LJ Speech, above 100 for Kokoro's silences.
NOISY_RANGE_DB = 22.0
# `preprocessing.quality` refuses 0.1 % of a recording at full scale; these have 0.005 % at most.
CLIPPED_SHARE = 2e-4
OFF_LEVEL_DB = 10.0  # LJ Speech is within 2.3 of its median, kathleen within 5, before levelling
OFFSET = 0.01  # of full scale; the clips have 0.001 at most
WRAPPED_STEP = 1.8  # samples that ran over 16 bits jump by nearly 2; the clips by 1.6 at most
_NARROW = 0.75  # of the median bandwidth: recorded or compressed in another way
_LESS_LIKE = 1.05  # not measured: no encoder of full size was at hand
_LEAST_NORM = 1e-12


def far_from_median(
    values: Sequence[float], *, factor: float = 1.0, below_only: bool = False
) -> list[bool]:
    """Return which values are far away, seen from how the others scatter.

    Args:
        values: one for each clip; fewer than five say nothing.
        factor: how many times the median, or what part of it, they have to be as well.
        below_only: whether only small values count.
    """
    if len(values) < _FEWEST:
        return [False] * len(values)
    array = np.asarray(values, dtype=np.float64)
    median = np.median(array)
    spread = _SIGMAS * _MAD_TO_SIGMA * np.median(np.abs(array - median))
    low = (array < median - spread) & (array * factor < median)
    high = (array > median + spread) & (array > median * factor)
    return [bool(far) for far in (low if below_only else low | high)]


def summarize_sound(clips: Sequence[ClipFacts]) -> SoundSummary | None:
    """Summarize the recordings to train on; None where none can be read."""
    heard = [(clip.name, clip.sound) for clip in clips if clip.sound is not None]
    if not heard:
        return None

    def spread(value: Callable[[SoundFacts], float]) -> Spread:
        return Spread.of([value(sound) for _, sound in heard])

    def named(is_odd: Callable[[SoundFacts], bool]) -> tuple[str, ...]:
        return tuple(name for name, sound in heard if is_odd(sound))

    level = spread(lambda sound: sound.rms_db)
    bandwidth = spread(lambda sound: sound.bandwidth_hz)
    return SoundSummary(
        rates=dict(Counter(str(sound.rate) for _, sound in heard).most_common()),
        peak=spread(lambda sound: sound.peak),
        rms_db=level,
        range_db=spread(lambda sound: sound.range_db),
        noise_db=spread(lambda sound: sound.noise_db),
        dc_offset=spread(lambda sound: abs(sound.dc_offset)),
        bandwidth_hz=bandwidth,
        clipped=named(lambda sound: sound.clipped > CLIPPED_SHARE),
        noisy=named(lambda sound: sound.range_db < NOISY_RANGE_DB),
        narrow=named(lambda sound: sound.bandwidth_hz < _NARROW * bandwidth.median),
        off_level=named(lambda sound: abs(sound.rms_db - level.median) > OFF_LEVEL_DB),
        offset=named(lambda sound: abs(sound.dc_offset) > OFFSET),
        wrapped=named(lambda sound: sound.largest_step > WRAPPED_STEP),
        one_channel=named(lambda sound: sound.channel is not None),
    )


def compare_vectors(folder: Path, clips: Sequence[ClipFacts]) -> VectorSummary:
    """Compare the speaker vectors of a prepared folder, of one width, with their mean.

    They are read again rather than kept. Which cosine tells two speakers apart is not known here:
    clips are named for being unlike the others, the mean is reported and not judged.

    Args:
        folder: the prepared one.
        clips: all of its clips; their `likeness` is set.
    """
    widths = Counter(clip.vector_width for clip in clips if clip.vector_width is not None)
    if not widths:
        return VectorSummary(0, {}, None, ())
    width, _ = widths.most_common(1)[0]
    alike = [clip for clip in clips if clip.vector_width == width]
    total = np.zeros(width)
    for clip in alike:
        total += _read_unit(folder, clip)
    norm = float(np.linalg.norm(total))
    likeness = [float(_read_unit(folder, clip) @ total / max(norm, _LEAST_NORM)) for clip in alike]
    for clip, value in zip(alike, likeness, strict=True):
        clip.likeness = value
    far = far_from_median(likeness, factor=_LESS_LIKE, below_only=True)
    # The squared norm of a sum of unit vectors is their number and the cosines of all pairs.
    count = len(alike)
    cosine = (norm**2 - count) / (count * (count - 1)) if count > 1 else None
    return VectorSummary(
        clips=widths.total(),
        widths={str(wide): number for wide, number in widths.most_common()},
        mean_cosine=cosine,
        outliers=tuple(clip.name for clip, is_far in zip(alike, far, strict=True) if is_far),
    )


def _read_unit(folder: Path, clip: ClipFacts) -> np.ndarray:
    part = folder / layout.HELD_OUT_FOLDER if clip.held_out else folder
    path = layout.speaker_file(part, clip.name)
    vector = layout.read_speaker_vector(path).astype(np.float64)
    return vector / max(float(np.linalg.norm(vector)), _LEAST_NORM)
