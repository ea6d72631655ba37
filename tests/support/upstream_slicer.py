"""GPT-SoVITS's audio slicer at 32 kHz with the WebUI's settings, written down a second time.

The whole recording is one array, every frame is a loop turn, the numbers are float64. It shares
nothing with the product: only tests read it, as the answer the product has to give.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

RATE = 32000
HOP = 320  # samples, 10 ms
WINDOW = 1280  # samples: the smaller of 300 ms and four hops
THRESHOLD = 10 ** (-34 / 20)
MIN_LENGTH = 400  # frames, 4 s
MIN_INTERVAL = 30  # frames, 300 ms
MAX_KEPT = 50  # frames, 500 ms
PEAK = 0.9
ALPHA = 0.25
SHORTEST = 400  # upstream compares samples with the frame count, and then its caller fails


class Slice(NamedTuple):
    samples: np.ndarray  # int16, after the level mix
    start: int  # sample
    end: int  # sample; a whole frame, so the last may lie up to a frame behind the recording's end


def levels(recording: np.ndarray) -> np.ndarray:
    """RMS of the frames around 0, 320, 640 ...; zeros stand before and behind the recording."""
    edge = np.zeros(WINDOW // 2)
    padded = np.concatenate([edge, np.asarray(recording, np.float64), edge])
    count = len(recording) // HOP + 1
    frames = (padded[at * HOP : at * HOP + WINDOW] for at in range(count))
    return np.sqrt(np.array([frame @ frame / WINDOW for frame in frames]))


def silences(rms: np.ndarray) -> list[tuple[int, int]]:
    """The maximal runs of frames below the threshold: first frame, frame behind the last."""
    runs: list[tuple[int, int]] = []
    start = None
    for at, quiet in enumerate([*(rms < THRESHOLD), False]):
        if quiet and start is None:
            start = at
        if not quiet and start is not None:
            runs.append((start, at))
            start = None
    return runs


def quietest(rms: np.ndarray, first: int, last: int) -> int:
    """The frame of the lowest level among first ... last, both included."""
    return first + int(np.argmin(rms[first : last + 1]))


def removed_frames(rms: np.ndarray) -> list[tuple[int, int]]:
    """Frames [a, b) that no slice holds; a == b is a cut that loses nothing."""
    removed: list[tuple[int, int]] = []
    clip_start = 0
    for start, end in silences(rms):
        if end == len(rms):  # nothing loud follows: the trailing silence
            if end - start >= MIN_INTERVAL:
                removed.append((quietest(rms, start, start + MAX_KEPT), end + 1))
            continue
        leading = start == 0 and end > MAX_KEPT
        between = end - start >= MIN_INTERVAL and end - clip_start >= MIN_LENGTH
        if not leading and not between:
            continue
        if end - start <= MAX_KEPT:
            left = right = quietest(rms, start, end)
        else:
            left = quietest(rms, start, start + MAX_KEPT)
            right = quietest(rms, end - MAX_KEPT, end)
            if end - start <= 2 * MAX_KEPT and start > 0:
                middle = quietest(rms, end - MAX_KEPT, start + MAX_KEPT)
                left, right = min(left, middle), max(right, middle)
        removed.append((0 if start == 0 else left, right))
        clip_start = right
    return removed


def kept_frames(rms: np.ndarray) -> list[tuple[int, int]]:
    """Frames [a, b) of each slice: what lies between the removed ones."""
    removed = removed_frames(rms)
    if not removed:
        return [(0, len(rms))]
    kept = []
    if removed[0][0] > 0:
        kept.append((0, removed[0][0]))
    for (_, start), (end, _) in itertools.pairwise(removed):
        kept.append((start, end))
    if removed[-1][1] < len(rms):
        kept.append((removed[-1][1], len(rms)))
    return kept


def level_mix(chunk: np.ndarray, precision: type = np.float64) -> np.ndarray:
    """A quarter of the chunk is brought to the peak 0.9, the rest stays as it is; int16, cut off.

    Above full scale the first part is divided by the peak twice, as upstream does. Digital
    silence has no peak: NaN upstream, whose cast to int16 is 0 on x86, so 0 here."""
    chunk = np.asarray(chunk, precision)
    peak = np.abs(chunk).max()
    if peak == 0:
        return np.zeros(len(chunk), np.int16)
    if peak > 1:
        chunk = chunk / peak
    mixed = chunk / peak * precision(PEAK * ALPHA) + precision(1 - ALPHA) * chunk
    return (mixed * precision(32767)).astype(np.int16)


def slice_recording(recording: np.ndarray, precision: type = np.float64) -> list[Slice]:
    """The slices upstream writes of one mono recording at 32 kHz; none if it fails on it."""
    if len(recording) <= SHORTEST:
        return []
    return [
        Slice(level_mix(recording[a * HOP : b * HOP], precision), a * HOP, b * HOP)
        for a, b in kept_frames(levels(recording))
    ]


def slice_name(recording_name: str, piece: Slice) -> str:
    """The file name of a slice: the recording's name with its ending, then the two samples."""
    return f"{recording_name}_{piece.start:010d}_{piece.end:010d}.wav"
