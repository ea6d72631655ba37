"""Kaldi's log-mel filterbank energies: the input of the speaker encoder.

Source: Kaldi `feat/feature-window.cc`, `feat/mel-computations.cc` (no dither, no energy), but for
samples with full scale 1.0 where Kaldi's own tools expect 32768. Axes: N samples, T frames of 25 ms
every 10 ms, W samples per frame, F frequency bins, M mel bands.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

FBANK_RATE = 16000  # Hz
MEL_BANDS = 80
FRAME_SAMPLES, HOP_SAMPLES = 400, 160
_FFT_SAMPLES = 512
_PREEMPHASIS = 0.97
_WINDOW_POWER = 0.85  # Povey window: a symmetric Hann window to this power
_LOWEST_HZ, _HIGHEST_HZ = 20.0, FBANK_RATE / 2
_FLOOR = float(np.finfo(np.float32).eps)


def kaldi_fbank(wav: np.ndarray) -> np.ndarray:
    """Compute log-mel filterbank energies of 16 kHz audio.

    Args:
        wav: `(N,)`, full scale 1.0, at least `FRAME_SAMPLES` long.

    Returns:
        `(T, M)` float32, T = 1 + (N - 400) // 160: no frame extends past the signal.

    Raises:
        ValueError: the waveform is shorter than one frame.
    """
    if len(wav) < FRAME_SAMPLES:
        raise ValueError(f"{len(wav)} samples are too few for a frame of {FRAME_SAMPLES}")
    frames = sliding_window_view(wav.astype(np.float64), FRAME_SAMPLES)[::HOP_SAMPLES]
    frames = frames - frames.mean(axis=1, keepdims=True)
    # Pre-emphasis repeats the first sample; the window is zero there anyway.
    previous = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    frames = (frames - _PREEMPHASIS * previous) * _povey_window()
    power = np.abs(np.fft.rfft(frames, _FFT_SAMPLES)) ** 2
    return np.log(np.maximum(power @ _mel_filterbank().T, _FLOOR)).astype(np.float32)


@cache
def _povey_window() -> np.ndarray:
    """Return the Povey window `(W,)`."""
    return np.hanning(FRAME_SAMPLES) ** _WINDOW_POWER


def _mel(hz: float | np.ndarray) -> np.ndarray:
    return 1127 * np.log1p(np.asarray(hz) / 700)


@cache
def _mel_filterbank() -> np.ndarray:
    """Return the filterbank `(M, F)`: height 1, linear in mel (Slaney's is linear in hertz)."""
    edges = np.linspace(_mel(_LOWEST_HZ), _mel(_HIGHEST_HZ), MEL_BANDS + 2)[:, None]
    bins = _mel(np.arange(_FFT_SAMPLES // 2 + 1) * FBANK_RATE / _FFT_SAMPLES)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling))
