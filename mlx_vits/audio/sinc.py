"""Resample with a short windowed sinc, the filter behind upstream's speaker vectors.

`audio/files.py` has the better resampler. This one matches torchaudio's default, a shorter filter
with more aliasing, which the speaker encoder was trained on.

Source: `torchaudio.functional.resample`; Smith, "Digital Audio Resampling",
https://ccrma.stanford.edu/~jos/resample/. Axes: N samples, K taps, P phases (output
samples per stride of input samples).
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
    """A polyphase filter.

    Attributes:
        taps: `(K, P)`.
        stride: input samples from one window of K to the next.
        width: input samples of a window before its first output.
    """

    taps: np.ndarray
    stride: int
    width: int


def resample_sinc(wav: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Resample `(N,)` to `(ceil(N * new_rate / rate),)` float32; rates in Hz."""
    if rate == new_rate:
        return wav.astype(np.float32)
    taps, stride, width = _sinc_filter(rate, new_rate)
    padded = np.pad(wav.astype(np.float64), (width, width + stride))
    resampled = sliding_window_view(padded, len(taps))[::stride] @ taps
    length = -(-len(wav) * new_rate // rate)
    return resampled.reshape(-1)[:length].astype(np.float32)


@cache
def _sinc_filter(rate: int, new_rate: int) -> _Filter:
    """Build a Hann-windowed sinc with its cutoff just below the lower Nyquist frequency."""
    divisor = math.gcd(rate, new_rate)
    stride, phases = rate // divisor, new_rate // divisor
    cutoff = _ROLLOFF * min(stride, phases)
    width = math.ceil(_ZERO_CROSSINGS * stride / cutoff)
    times = np.arange(-width, width + stride)[:, None] / stride - np.arange(phases) / phases
    crossings = np.clip(times * cutoff, -_ZERO_CROSSINGS, _ZERO_CROSSINGS)
    window = np.cos(crossings * np.pi / (2 * _ZERO_CROSSINGS)) ** 2
    return _Filter(np.sinc(crossings) * window * (cutoff / stride), stride, width)
