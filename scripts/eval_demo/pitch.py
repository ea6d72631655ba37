"""Fundamental frequency, and how well two recordings agree on it.

Source: Boersma 1993, "Accurate short-term analysis of the fundamental frequency and the
harmonics-to-noise ratio of a sampled sound", whose costs and thresholds are Praat's defaults.
Axes: N samples, T frames of 10 ms, W samples of a frame, L lags, K candidates.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

PITCH_RATE = 16000  # Hz
_LOWEST_HZ, _HIGHEST_HZ = 60.0, 500.0
_HOP = PITCH_RATE // 100
_WINDOW = int(3 * PITCH_RATE / _LOWEST_HZ)  # three periods of the lowest pitch
_CANDIDATES = 8  # voiced ones a frame
_SILENCE, _VOICING = 0.03, 0.45
_OCTAVE_COST = 0.01
_OCTAVE_JUMP_COST, _VOICING_CHANGE_COST = 0.35, 0.14
_FEWEST_FRAMES = 20  # common to both, for a correlation to mean something


class PitchAgreement(NamedTuple):
    """Two recordings of the same words at the same times.

    Attributes:
        correlation: of the logarithms over the frames voiced in both; None below 20 such frames.
        voiced_kept: share of the first one's voiced frames that are voiced in the other.
        frames: voiced in both.
    """

    correlation: float | None
    voiced_kept: float
    frames: int


def track_pitch(wav: np.ndarray) -> np.ndarray:
    """Fundamental frequency of each frame.

    Args:
        wav: `(N,)` at `PITCH_RATE`; the level does not matter.

    Returns:
        `(T,)` in Hz, 0 where nothing is voiced; T = 1 + (N - 800) // 160, 0 where N is less.
    """
    if len(wav) < _WINDOW:
        return np.zeros(0)
    frames = sliding_window_view(wav.astype(np.float64), _WINDOW)[::_HOP]
    frames = frames - frames.mean(axis=1, keepdims=True)
    loudest = float(np.abs(frames).max())
    if loudest == 0:
        return np.zeros(len(frames))
    hertz, strength = _candidates(_autocorrelation(frames))
    quiet = np.abs(frames).max(axis=1) / loudest / (_SILENCE / (1 + _VOICING))
    unvoiced = _VOICING + np.maximum(0, 2 - quiet)
    hertz = np.concatenate([np.zeros((len(frames), 1)), hertz], axis=1)
    strength = np.concatenate([unvoiced[:, None], strength], axis=1)
    return _best_path(hertz, strength)


def compare_pitch(first: np.ndarray, second: np.ndarray) -> PitchAgreement:
    """How two pitch tracks agree.

    Args:
        first, second: `(T,)` in Hz, 0 where unvoiced; the longer one is cut.
    """
    length = min(len(first), len(second))
    a, b = first[:length], second[:length]
    both = (a > 0) & (b > 0)
    count, voiced = int(both.sum()), int((a > 0).sum())
    correlation = None
    if count >= _FEWEST_FRAMES:
        logs = np.log(a[both]), np.log(b[both])
        if min(np.ptp(logs[0]), np.ptp(logs[1])) > 0:
            correlation = float(np.corrcoef(*logs)[0, 1])
    return PitchAgreement(correlation, count / voiced if voiced else 0.0, count)


def _autocorrelation(frames: np.ndarray) -> np.ndarray:
    """`(T, W)` to `(T, L)`, that of the windowed frame over that of its window; 1 at lag 0."""
    window = np.hanning(_WINDOW)
    size = 1 << (2 * _WINDOW - 1).bit_length()
    lags = int(PITCH_RATE / _LOWEST_HZ) + 2

    def correlate(signal: np.ndarray) -> np.ndarray:
        power = np.abs(np.fft.rfft(signal, size, axis=-1)) ** 2
        return np.fft.irfft(power, axis=-1)[..., :lags]

    of_window = correlate(window)
    of_frames = correlate(frames * window)
    energy = np.maximum(of_frames[:, :1], np.finfo(np.float64).tiny)
    return (of_frames / energy) / (of_window / of_window[0])


def _candidates(correlation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The highest peaks of each frame: hertz and strength `(T, K)`, strength -inf where none is."""
    before, here, after = correlation[:, :-2], correlation[:, 1:-1], correlation[:, 2:]
    # The vertex of the parabola through a peak and its neighbours.
    curve = np.minimum(before - 2 * here + after, -1e-12)
    shift = np.clip((before - after) / (2 * curve), -0.5, 0.5)
    height = here - (before - after) * shift / 4
    hertz = PITCH_RATE / (np.arange(1, here.shape[1] + 1) + shift)
    is_peak = (here > before) & (here >= after) & (hertz >= _LOWEST_HZ) & (hertz <= _HIGHEST_HZ)
    is_peak &= height > 0.5 * _VOICING
    strength = np.minimum(height, 1) - _OCTAVE_COST * np.log2(_LOWEST_HZ / hertz)
    strength = np.where(is_peak, strength, -np.inf)
    order = np.argsort(-strength, axis=1)[:, :_CANDIDATES]
    return np.take_along_axis(hertz, order, 1), np.take_along_axis(strength, order, 1)


def _best_path(hertz: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """The candidates `(T, K)`, the first unvoiced, whose strengths less their jumps add up best."""
    logs = np.log2(np.where(hertz > 0, hertz, 1.0))
    voiced = hertz > 0
    total, origin = strength[0], np.zeros(hertz.shape, dtype=np.int64)
    for frame in range(1, len(hertz)):
        jump = _OCTAVE_JUMP_COST * np.abs(logs[frame - 1][:, None] - logs[frame][None])
        both = voiced[frame - 1][:, None] & voiced[frame][None]
        changed = voiced[frame - 1][:, None] != voiced[frame][None]
        cost = np.where(both, jump, np.where(changed, _VOICING_CHANGE_COST, 0.0))
        scores = total[:, None] - cost
        origin[frame] = np.argmax(scores, axis=0)
        total = np.take_along_axis(scores, origin[frame][None], 0)[0] + strength[frame]
    path = np.zeros(len(hertz), dtype=np.int64)
    path[-1] = int(np.argmax(total))
    for frame in range(len(hertz) - 1, 0, -1):
        path[frame - 1] = origin[frame, path[frame]]
    return hertz[np.arange(len(hertz)), path]
