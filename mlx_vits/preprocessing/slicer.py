"""Cut a long recording at its silences, with GPT-SoVITS's parameters and results.

The recording is streamed twice: once to measure the level every 10 ms, once to extract the slices.
Only the levels are kept in memory, 0.8 kB per second.

Source: GPT-SoVITS `tools/slicer2.py`, `tools/slice_audio.py`, after openvpi's audio-slicer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class SliceSettings:
    """Where to cut; the defaults are those of GPT-SoVITS's WebUI.

    Attributes:
        threshold_db: frames below this level are silent, dB re full scale.
        min_length_ms: length that a slice must reach before it is cut off.
        min_interval_ms: minimum length of a silence to cut at.
        hop_ms: hop between frames.
        max_silence_ms: maximum silence kept at either end of a slice.
    """

    threshold_db: float = -34.0
    min_length_ms: int = 4000
    min_interval_ms: int = 300
    hop_ms: int = 10
    max_silence_ms: int = 500

    def __post_init__(self) -> None:
        fits = self.min_length_ms >= self.min_interval_ms >= self.hop_ms > 0
        # So that a window is a whole number of hops: four, or the shortest silence.
        whole = (
            self.min_interval_ms >= 4 * self.hop_ms or self.min_interval_ms % (2 * self.hop_ms) == 0
        )
        if not (fits and whole and self.max_silence_ms >= self.hop_ms):
            raise ValueError(f"{self} cannot cut a recording")

    def hop(self, rate: int) -> int:
        """Return the samples from one frame to the next."""
        return round(rate * self.hop_ms / 1000)

    def window(self, rate: int) -> int:
        """Return the samples in the window of a frame."""
        return min(round(rate * self.min_interval_ms / 1000), 4 * self.hop(rate))

    def frames(self, milliseconds: int, rate: int) -> int:
        """Convert a length to frames."""
        return round(rate * milliseconds / 1000 / self.hop(rate))


# Command-line options, with upstream's names.
FLAGS = {
    "threshold_db": "--threshold",
    "min_length_ms": "--min-length",
    "min_interval_ms": "--min-interval",
    "max_silence_ms": "--max-sil-kept",
}
_LOUDEST_THRESHOLD_DB = -10
_SHORTEST_INTERVAL_MS = 100  # of a pause to suggest cutting at
_MIN_KEPT = 0.9  # of the samples that were kept before


class Span(NamedTuple):
    """A range of samples, from `start` up to but not including `end`."""

    start: int
    end: int


class _Removed(NamedTuple):
    """A range of frames to remove, from `first` up to but not including `last`; may be empty."""

    first: int
    last: int


def frame_levels(blocks: Iterable[np.ndarray], window: int, hop: int) -> np.ndarray:
    """Compute the RMS of every frame; frame i is centred on sample `i * hop`.

    Args:
        blocks: the recording as `(N,)` float32 pieces, zero-padded at both ends.
        window: samples per frame, a multiple of `2 * hop`.
        hop: samples between frames.

    Returns:
        `(1 + samples // hop,)` float64.
    """
    pending = np.zeros(window // 2)
    levels: list[np.ndarray] = []

    def take(samples: np.ndarray) -> np.ndarray:
        """Append the levels of all complete frames; return the samples that later frames need."""
        count = 1 + (len(samples) - window) // hop if len(samples) >= window else 0
        if count:
            # Sum per hop, then over the hops of each window: every sample is squared only once.
            squares = np.square(samples[: (count - 1) * hop + window])
            sums = squares.reshape(-1, hop).sum(axis=1)
            per = window // hop
            total = sum(sums[i : i + count] for i in range(per))
            levels.append(np.sqrt(total / window))
        return samples[count * hop :]

    for block in blocks:
        pending = take(np.concatenate([pending, block.astype(np.float64)]))
    take(np.concatenate([pending, np.zeros(window // 2)]))
    return np.concatenate(levels) if levels else np.zeros(0)


def find_slices(
    levels: np.ndarray, samples: int, rate: int, settings: SliceSettings | None = None
) -> list[Span]:
    """Find the slices of a recording.

    Args:
        levels: from `frame_levels`.
        samples: length of the recording.
        rate: Hz.
        settings: where to cut.

    Returns:
        Disjoint spans in order; the whole recording if it has no silence to cut at.
    """
    settings = settings or SliceSettings()
    removed = _find_removed(levels, rate, settings)
    hop, total = settings.hop(rate), len(levels)
    edges = [0, *(edge for silence in removed for edge in silence), total]
    spans = []
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        # A final silence ends one frame after the last.
        if first < last:
            spans.append(Span(first * hop, min(samples, last * hop)))
    return [span for span in spans if span.start < span.end]


def settings_that_cut(
    levels: np.ndarray, samples: int, rate: int, settings: SliceSettings, longest: int
) -> SliceSettings | None:
    """Return the nearest settings that leave no slice too long, None if there are none.

    Args:
        levels: from `frame_levels`.
        samples: length of the recording.
        rate: Hz.
        settings: the ones that leave a slice too long.
        longest: maximum length of a slice, samples.
    """
    length = min(settings.min_length_ms, SliceSettings.min_length_ms)
    least = _MIN_KEPT * sum(_lengths(find_slices(levels, samples, rate, settings)))
    intervals = dict.fromkeys(
        (settings.min_interval_ms, min(settings.min_interval_ms, _SHORTEST_INTERVAL_MS))
    )
    for interval in intervals:
        for threshold in range(math.floor(settings.threshold_db), _LOUDEST_THRESHOLD_DB + 1):
            wider = replace(
                settings,
                threshold_db=max(float(threshold), settings.threshold_db),
                min_length_ms=max(length, interval),
                min_interval_ms=interval,
            )
            lengths = _lengths(find_slices(levels, samples, rate, wider))
            # A threshold above the level of the voice would remove the voice itself.
            if max(lengths, default=0) <= longest and sum(lengths) >= least:
                return wider
    return None


def _lengths(spans: Iterable[Span]) -> list[int]:
    return [span.end - span.start for span in spans]


def _find_removed(levels: np.ndarray, rate: int, settings: SliceSettings) -> list[_Removed]:
    threshold = 10 ** (settings.threshold_db / 20)
    least_slice = settings.frames(settings.min_length_ms, rate)
    least_silence = settings.frames(settings.min_interval_ms, rate)
    kept = settings.frames(settings.max_silence_ms, rate)
    removed: list[_Removed] = []
    slice_start = 0
    for start, end in _silences(levels < threshold):
        if end == len(levels):
            if end - start >= least_silence:
                quietest = _quietest(levels, start, min(end, start + kept))
                removed.append(_Removed(quietest, end + 1))
            break
        leads = start == 0 and end > kept
        cuts = end - start >= least_silence and end - slice_start >= least_slice
        if leads or cuts:
            removed.append(_cut(levels, start, end, kept))
            slice_start = removed[-1].last
    return removed


def _silences(silent: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield runs of silent frames as (first, one past the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], silent, [False]]).astype(np.int8)))
    yield from ((int(start), int(end)) for start, end in edges.reshape(-1, 2))


def _cut(levels: np.ndarray, start: int, end: int, kept: int) -> _Removed:
    """Choose the frames to remove from the silence `start` to `end`, exclusive.

    A short silence is cut at its quietest frame. Of a longer one the part between the quietest
    frames near both ends is removed. Leading silence is removed from the beginning.
    """
    length = end - start
    if length <= kept:
        quietest = _quietest(levels, start, end)
        return _Removed(0 if start == 0 else quietest, quietest)
    left = _quietest(levels, start, start + kept)
    right = _quietest(levels, end - kept, end)
    if start == 0:
        return _Removed(0, right)
    if length <= 2 * kept:
        # The two ends overlap: the quietest frame of the overlap is removed as well.
        middle = _quietest(levels, end - kept, start + kept)
        return _Removed(min(left, middle), max(right, middle))
    return _Removed(left, right)


def _quietest(levels: np.ndarray, first: int, last: int) -> int:
    """Return the quietest frame from `first` to `last` inclusive; the earliest on ties."""
    return first + int(np.argmin(levels[first : last + 1]))
