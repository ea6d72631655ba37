"""What is done to decoded sound before it is heard: level, fades, conversion to integers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

FADE_SECONDS = 0.005


class Level:
    """Keep speech within full scale, sentence after sentence, without a step between two.

    The gain falls when something is louder than full scale, and never rises again.

    Args:
        per_piece: divide every piece by its own peak instead, as upstream does.
    """

    def __init__(self, *, per_piece: bool = False):
        self._per_piece, self._gain = per_piece, 1.0

    def foresee(self, wavs: Iterable[np.ndarray]) -> None:
        """Lower the gain now for what is yet to come, so that all of it has the same."""
        if not self._per_piece:
            peak = max((float(np.abs(wav).max(initial=0.0)) for wav in wavs), default=0.0)
            self._gain = min(self._gain, 1 / peak if peak else 1.0)

    def apply(self, wav: np.ndarray) -> np.ndarray:
        """Return the samples `(N,)` with the gain applied."""
        peak = float(np.abs(wav).max(initial=0.0))
        if self._per_piece:
            return wav / np.float32(peak) if peak > 1 else wav
        self._gain = min(self._gain, 1 / peak if peak else 1.0)
        return wav if self._gain == 1 else wav * np.float32(self._gain)


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
