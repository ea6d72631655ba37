"""What is done to decoded sound before it is heard: level, fades, conversion to integers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

FADE_SECONDS = 0.005
_FRAME_SECONDS, _LOUDEST_FRAMES = 0.02, 5
_LIMITER_SECONDS = 0.01  # before and after a peak


class Level:
    """Keep speech within full scale, sentence after sentence, without a step between two.

    The gain falls when speech is louder than full scale, and never rises again. The loudest 100 ms
    of a piece do not count: a click lowers only what is within 10 ms of it.

    Args:
        rate: of the samples, in Hz.
        per_piece: divide every piece by its own peak instead, as upstream does.
    """

    def __init__(self, rate: int, *, per_piece: bool = False):
        self._rate, self._per_piece, self._gain = rate, per_piece, 1.0

    def foresee(self, wavs: Iterable[np.ndarray]) -> None:
        """Lower the gain now for what is yet to come, so that all of it has the same."""
        if not self._per_piece:
            self._lower(max((_lasting_peak(wav, self._rate) for wav in wavs), default=0.0))

    def apply(self, wav: np.ndarray) -> np.ndarray:
        """Return the samples `(N,)` with the gain applied, none above full scale."""
        peak = float(np.abs(wav).max(initial=0.0))
        if self._per_piece:
            return wav / np.float32(peak) if peak > 1 else wav
        if peak > 1:
            self._lower(_lasting_peak(wav, self._rate))
        wav = wav if self._gain == 1 else wav * np.float32(self._gain)
        return limit_peaks(wav, self._rate)

    def _lower(self, peak: float) -> None:
        self._gain = min(self._gain, 1 / peak if peak else 1.0)


def _lasting_peak(wav: np.ndarray, rate: int) -> float:
    """Return the peak of a piece without its loudest 100 ms, 0 where it is no longer than that."""
    frame = int(_FRAME_SECONDS * rate)
    count = len(wav) // frame
    if count <= _LOUDEST_FRAMES:
        return 0.0
    peaks = np.abs(wav[: count * frame]).reshape(count, frame).max(axis=1)
    return float(np.sort(peaks)[-1 - _LOUDEST_FRAMES])


def limit_peaks(wav: np.ndarray, rate: int) -> np.ndarray:
    """Lower `(N,)` smoothly around samples above full scale, so that none remains."""
    sizes = np.abs(wav)
    if sizes.max(initial=0.0) <= 1:
        return wav
    reach = int(_LIMITER_SECONDS * rate)
    needed = np.pad(1 / np.maximum(sizes, 1.0), 2 * reach, constant_values=1.0)
    # Each value that is averaged is the least of its surroundings, hence no average is too high.
    least = np.lib.stride_tricks.sliding_window_view(needed, 2 * reach + 1).min(axis=1)
    window = np.hanning(2 * reach + 3)[1:-1]
    gain = np.convolve(least, window / window.sum(), mode="valid")
    return np.clip(wav * gain, -1, 1).astype(np.float32)  # rounding alone is left to clip


def fade_ends(wav: np.ndarray, rate: int, *, start: bool = True, end: bool = True) -> np.ndarray:
    """Fade in and out over 5 ms, so that speech between two silences does not click."""
    count = min(int(FADE_SECONDS * rate), len(wav) // 2)
    ramp = np.linspace(0, 1, count, endpoint=False, dtype=np.float32)
    wav = wav.copy()
    if start:
        wav[:count] *= ramp
    if end and count:
        wav[-count:] *= ramp[::-1]
    return wav


def to_int16(wav: np.ndarray, *, compat: bool = False) -> np.ndarray:
    """Convert float samples of full scale 1.0 to int16.

    Args:
        compat: truncate and wrap, as upstream on x86: 1.0 becomes -32768.
    """
    if compat:
        return (wav * np.float32(32768)).astype(np.int32).astype(np.int16)
    return np.clip(np.round(wav * 32768), -32768, 32767).astype(np.int16)
