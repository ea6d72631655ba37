"""Resampling by a short windowed sinc, as upstream's speaker vectors were made.

`audio/files.py` has the better resampler. This one is torchaudio's default, a shorter filter that
lets more through above the new Nyquist frequency, which the speaker encoder is used to.

Source: `torchaudio.functional.resample`; Smith, "Digital Audio Resampling",
https://ccrma.stanford.edu/~jos/resample/. Axes: N samples, K taps, P phases (samples that come out
for each stride of samples that goes in).
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

_ZERO_CROSSINGS = 6  # on either side
_ROLLOFF = 0.99  # cutoff as a share of the lower Nyquist frequency


class _Filter(NamedTuple):
    """One filter for each phase.

    Attributes:
        taps: `(K, P)`.
        stride: samples from one window of K to the next.
        reach: samples of a window that lie before its first output.
    """

    taps: np.ndarray
    stride: int
    reach: int


def resample_sinc(wav: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """`(N,)` at `rate` Hz to `(ceil(N * new_rate / rate),)` float32 at `new_rate` Hz."""
    if rate == new_rate:
        return wav.astype(np.float32)
    taps, stride, reach = _sinc_filter(rate, new_rate)
    padded = np.pad(wav.astype(np.float64), (reach, reach + stride))
    resampled = sliding_window_view(padded, len(taps))[::stride] @ taps
    length = -(-len(wav) * new_rate // rate)
    return resampled.reshape(-1)[:length].astype(np.float32)


@cache
def _sinc_filter(rate: int, new_rate: int) -> _Filter:
    """A Hann-windowed sinc, its cutoff just below the lower of the two Nyquist frequencies."""
    shared = math.gcd(rate, new_rate)
    stride, phases = rate // shared, new_rate // shared
    cutoff = _ROLLOFF * min(stride, phases)
    reach = math.ceil(_ZERO_CROSSINGS * stride / cutoff)
    times = np.arange(-reach, reach + stride)[:, None] / stride - np.arange(phases) / phases
    crossings = np.clip(times * cutoff, -_ZERO_CROSSINGS, _ZERO_CROSSINGS)
    window = np.cos(crossings * np.pi / (2 * _ZERO_CROSSINGS)) ** 2
    return _Filter(np.sinc(crossings) * window * (cutoff / stride), stride, reach)
