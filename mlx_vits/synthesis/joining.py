"""Chunks of one utterance, decoded one after another, joined into a waveform without seams.

Every chunk begins with the last `overlap` samples of the one before, decoded anew. It is shifted to
where it fits best (SOLA, synchronous overlap-add) and faded in.

Source: GPT-SoVITS `TTS_infer_pack/TTS.py` (`sola_algorithm`, streaming in `run`). Axes: N samples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SEARCH_SAMPLES = 320  # how far a chunk may be shifted: 10 ms at 32 kHz
_FLOOR = 1e-8  # of the energy that correlations are divided by


class Joined(NamedTuple):
    """Two chunks in one: `wav` `(N,)`, and the samples `offset` by which the second was shifted."""

    wav: np.ndarray
    offset: int


def join(first: np.ndarray, second: np.ndarray, overlap: int) -> Joined:
    """Join two chunks, of which the second begins with the end of the first.

    Args:
        first: `(N,)`, `overlap` samples at least.
        second: `(M,)`, of the same speech from `overlap` samples before the end of `first`.
        overlap: samples that both have.
    """
    end = first[-overlap:]
    reach = min(SEARCH_SAMPLES, len(second) - overlap)
    windows = np.lib.stride_tricks.sliding_window_view(second[: reach + overlap], overlap)
    energy = np.sqrt((windows**2).sum(axis=1) + _FLOOR)
    offset = int(np.argmax(windows @ end / energy))
    fade = 0.5 - 0.5 * np.cos(np.arange(2 * overlap, dtype=np.float32) * (np.pi / overlap))
    faded = end * fade[overlap:] + second[offset : offset + overlap] * fade[:overlap]
    return Joined(np.concatenate([first[:-overlap], faded, second[offset + overlap :]]), offset)


class ChunkJoiner:
    """Take the chunks of an utterance in order and return what can be played of each.

    Args:
        overlap: samples that a chunk shares with the one before.
        joins_last: whether the last chunk is joined too; upstream plays it as decoded.
    """

    def __init__(self, overlap: int, *, joins_last: bool = True):
        self._overlap, self._joins_last = overlap, joins_last
        self._before: np.ndarray | None = None

    def add(self, chunk: np.ndarray, *, is_last: bool) -> np.ndarray:
        """Return the samples that are final now; the overlap is held back until the last chunk."""
        before, self._before = self._before, chunk
        if before is None:
            return chunk if is_last else chunk[: -self._overlap]
        if is_last and not self._joins_last:
            return chunk
        joined = join(before, chunk, self._overlap).wav[len(before) - self._overlap :]
        return joined if is_last else joined[: -self._overlap]

    def finish(self) -> np.ndarray:
        """Return what was held back, where no chunk follows the last one added."""
        return np.zeros(0, np.float32) if self._before is None else self._before[-self._overlap :]
