"""Cuts a long recording at its silences, with GPT-SoVITS's parameters and results.

The recording passes by in blocks, twice: once for the level of every 10 ms, once to take the slices
out. Only the levels are kept, 0.8 kB for each second.

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
        threshold_db: a frame below this level is silent, re full scale.
        min_length_ms: a slice is not cut off before it is so long.
        min_interval_ms: a silence that cuts is at least so long.
        hop_ms: of the frames.
        max_silence_ms: what is left of a silence at either end of a slice, at most.
    """

    threshold_db: float = -34.0
    min_length_ms: int = 4000
    min_interval_ms: int = 300
    hop_ms: int = 10
    max_silence_ms: int = 500

    def __post_init__(self) -> None:
        fits = self.min_length_ms >= self.min_interval_ms >= self.hop_ms > 0
        # A window is then a whole number of hops: four of them, or the shortest silence.
        whole = (
            self.min_interval_ms >= 4 * self.hop_ms or self.min_interval_ms % (2 * self.hop_ms) == 0
        )
        if not (fits and whole and self.max_silence_ms >= self.hop_ms):
            raise ValueError(f"{self} cannot cut a recording")

    def hop(self, rate: int) -> int:
        """Samples from one frame to the next."""
        return round(rate * self.hop_ms / 1000)

    def window(self, rate: int) -> int:
        """Samples whose level a frame is."""
        return min(round(rate * self.min_interval_ms / 1000), 4 * self.hop(rate))

    def frames(self, milliseconds: int, rate: int) -> int:
        """A length in frames."""
        return round(rate * milliseconds / 1000 / self.hop(rate))


# The options of the command line, by upstream's names.
FLAGS = {
    "threshold_db": "--threshold",
    "min_length_ms": "--min-length",
    "min_interval_ms": "--min-interval",
    "max_silence_ms": "--max-sil-kept",
}
_LOUDEST_THRESHOLD_DB = -10
_SHORTEST_INTERVAL_MS = 100  # of a pause that is suggested to cut at
_LEAST_KEPT = 0.9  # of what was taken for sound


class Span(NamedTuple):
    """A part of the recording, in samples: from `start` to before `end`."""

    start: int
    end: int


class _Removed(NamedTuple):
    """Frames taken out: from `first` to before `last`; nothing where they are equal."""

    first: int
    last: int


def frame_levels(blocks: Iterable[np.ndarray], window: int, hop: int) -> np.ndarray:
    """Root mean square of every frame, frame i centred on sample `i * hop`.

    Args:
        blocks: the recording, `(N,)` pieces of float32 in order; zeros are assumed around it.
        window: samples of a frame, a multiple of twice `hop`.
        hop: samples between frames.

    Returns:
        `(1 + samples // hop,)` float64.
    """
    pending = np.zeros(window // 2)
    levels: list[np.ndarray] = []

    def take(samples: np.ndarray) -> np.ndarray:
        """Levels of the whole frames in `samples`; what later frames need is returned."""
        count = 1 + (len(samples) - window) // hop if len(samples) >= window else 0
        if count:
            # Sums over hops, then over the hops of a window: each sample is squared once.
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
    """Where the slices lie.

    Args:
        levels: from `frame_levels`.
        samples: of the recording.
        rate: Hz.
        settings: where to cut.

    Returns:
        Spans in order, apart from each other; the whole recording where it has no silence to cut.
    """
    settings = settings or SliceSettings()
    removed = _find_removed(levels, rate, settings)
    hop, total = settings.hop(rate), len(levels)
    edges = [0, *(edge for silence in removed for edge in silence), total]
    spans = []
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        # A silence that ends the recording reaches beyond the last frame.
        if first < last:
            spans.append(Span(first * hop, min(samples, last * hop)))
    return [span for span in spans if span.start < span.end]


def settings_that_cut(
    levels: np.ndarray, samples: int, rate: int, settings: SliceSettings, longest: int
) -> SliceSettings | None:
    """The settings nearest to these under which no slice is too long; None where there are none.

    Args:
        levels: from `frame_levels`.
        samples: of the recording.
        rate: Hz.
        settings: under which one is too long.
        longest: samples of a slice, at most.
    """
    length = min(settings.min_length_ms, SliceSettings.min_length_ms)
    least = _LEAST_KEPT * sum(_lengths(find_slices(levels, samples, rate, settings)))
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
            # A threshold above the voice would take the voice itself for silence.
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
    """Runs of silent frames: the first, and the one after the last."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], silent, [False]]).astype(np.int8)))
    yield from ((int(start), int(end)) for start, end in edges.reshape(-1, 2))


def _cut(levels: np.ndarray, start: int, end: int, kept: int) -> _Removed:
    """What is taken out of a silence `start` to `end`; `end` is the first frame that is loud.

    A short one is cut at its quietest frame. Of a longer one the middle goes, between the quietest
    frames near its two ends. One that leads the recording goes from the beginning.
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
        # Both ends reach over the middle, whose quietest frame is taken along.
        middle = _quietest(levels, end - kept, start + kept)
        return _Removed(min(left, middle), max(right, middle))
    return _Removed(left, right)


def _quietest(levels: np.ndarray, first: int, last: int) -> int:
    """The quietest frame from `first` to `last`, both included; the earliest of equals."""
    return first + int(np.argmin(levels[first : last + 1]))
