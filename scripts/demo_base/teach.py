"""Stage `teach`: what the teacher hears in every clip at every speed, and its main directions.

Several clips share a window of 30 s. Over a third of the variance of Whisper's features says where
in its window a frame lies, which nobody can hear: the mean at each position is taken away. Writes
`teacher.npz` (all features at speed 1), `directions.npz`, and for each speed `targets_K.npz`.
Axes: S frames, C channels, P directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scripts.demo_base.clips import TRAINED, read_clip_list
from scripts.demo_base.settings import Settings
from scripts.demo_base.store import read_arrays, read_clips, say, write_arrays, write_clips
from scripts.demo_base.whisper import HOP, WINDOW_FRAMES, WINDOW_SAMPLES, Teacher, mel_power

_SMOOTHING = 51  # frames over which the mean at a position is taken
_EVERY = 5  # frame that the directions are found from
_TOGETHER = 16  # windows


class Placed(NamedTuple):
    """Where a clip lies in a window: its number, its first frame, and how many there are."""

    clip: int
    start: int
    frames: int


class Directions(NamedTuple):
    """The main directions of what depends on the speech.

    Attributes:
        means: `(WINDOW_FRAMES, C)`, to be subtracted by position in the window.
        basis: `(C, P)`; targets have unit variance, all directions taken together.
    """

    means: np.ndarray
    basis: np.ndarray

    def reduce(self, features: np.ndarray, start: int) -> np.ndarray:
        """Features `(S, C)` that begin at a place of a window, to `(S, P)` float16."""
        means = self.means[start : start + len(features)]
        return ((features - means) @ self.basis).astype(np.float16)


def teach(teacher: Path, work: Path, settings: Settings) -> None:
    """Runs the stage; what is there already is kept."""
    clips = read_clip_list(work / "clips.json")
    targets = [work / f"targets_{number}.npz" for number in range(len(settings.speech.speeds))]
    if all(p.is_file() for p in (work / "teacher.npz", work / "directions.npz", *targets)):
        return
    model = Teacher(teacher)
    if not (work / "teacher.npz").is_file():
        wavs = read_clips(work / "wav16_0.npz", "prepare")["wav"]
        plan = pack_windows([len(wav) // HOP for wav in wavs])
        features = hear(model, wavs, plan, lambda heard, start: heard.astype(np.float16))
        write_clips(work / "teacher.npz", features=features)
        say("the teacher has heard every clip")
    if not (work / "directions.npz").is_file():
        features = read_clips(work / "teacher.npz", "teach")["features"]
        starts = {p.clip: p.start for w in pack_windows([len(f) for f in features]) for p in w}
        trained = [number for number, clip in enumerate(clips) if clip.use == TRAINED]
        found = find_directions(
            [features[number] for number in trained],
            [starts[number] for number in trained],
            settings.distil.directions,
        )
        write_arrays(work / "directions.npz", **found._asdict())
    directions = Directions(**read_arrays(work / "directions.npz", "teach"))
    for number, path in enumerate(targets):
        if path.is_file():
            continue
        if number == 0:
            features = read_clips(work / "teacher.npz", "teach")["features"]
            plan = pack_windows([len(f) for f in features])
            places = (placed for window in plan for placed in window)
            reduced = [directions.reduce(features[p.clip], p.start) for p in places]
        else:
            wavs = read_clips(work / f"wav16_{number}.npz", "prepare")["wav"]
            plan = pack_windows([len(wav) // HOP for wav in wavs])
            reduced = hear(model, wavs, plan, directions.reduce)
        write_clips(path, targets=reduced)
        say(f"speed {settings.speech.speeds[number]}: taught")


def pack_windows(lengths: Sequence[int]) -> list[list[Placed]]:
    """Clips of so many frames in windows, in their order."""
    plan: list[list[Placed]] = [[]]
    used = 0
    for clip, frames in enumerate(lengths):
        frames = min(frames, WINDOW_FRAMES)
        if used + frames > WINDOW_FRAMES:
            plan.append([])
            used = 0
        plan[-1].append(Placed(clip, used, frames))
        used += frames
    return plan


def fill_windows(wavs: Sequence[np.ndarray], plan: Sequence[list[Placed]]) -> Iterator[np.ndarray]:
    """int16 clips at 16 kHz as blocks of windows `(B, WINDOW_SAMPLES)` float32."""
    for first in range(0, len(plan), _TOGETHER):
        some = plan[first : first + _TOGETHER]
        block = np.zeros((len(some), WINDOW_SAMPLES), np.float32)
        for row, placed in zip(block, some, strict=True):
            for clip, start, frames in placed:
                row[start * HOP : (start + frames) * HOP] = wavs[clip][: frames * HOP] / 32768
        yield block


def hear(
    teacher: Teacher,
    wavs: Sequence[np.ndarray],
    plan: Sequence[list[Placed]],
    reduce: Callable[[np.ndarray, int], np.ndarray],
) -> list[np.ndarray]:
    """What the teacher hears in each clip.

    Args:
        reduce: features `(S, C)` and their first position in the window to what is kept.
    """
    heard: dict[int, np.ndarray] = {}
    windows = iter(plan)
    for block in fill_windows(wavs, plan):
        for features, placed in zip(np.array(teacher(mel_power(block))), windows, strict=False):
            for clip, start, frames in placed:
                heard[clip] = reduce(features[start : start + frames], start)
    return [heard[clip] for clip in range(len(wavs))]


def find_directions(
    features: Sequence[np.ndarray], starts: Sequence[int], count: int
) -> Directions:
    """Principal directions of features `(S, C)`, each clip beginning at its place of a window."""
    positions = np.concatenate(
        [start + np.arange(len(clip)) for clip, start in zip(features, starts, strict=True)]
    )
    x = np.concatenate(list(features)).astype(np.float32)
    sums = np.zeros((WINDOW_FRAMES, x.shape[1]), np.float64)
    np.add.at(sums, positions, x)
    counts = np.bincount(positions, minlength=WINDOW_FRAMES).astype(np.float64)
    # Sums and counts are smoothed alike, so that the ends of a window are means as well.
    window = np.ones(_SMOOTHING)
    sums = np.stack([np.convolve(column, window, "same") for column in sums.T], axis=1)
    counts = np.convolve(counts, window, "same")
    overall = x.mean(axis=0)
    means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], overall)
    means = means.astype(np.float32)
    before = np.mean(np.square(x - overall))
    x -= means[positions]
    values, vectors = np.linalg.eigh(np.cov(x[::_EVERY].T.astype(np.float64)))
    say(
        f"position explains {1 - np.mean(np.square(x)) / before:.1%} of the teacher's features; "
        f"{count} directions keep {values[-count:].sum() / values.sum():.1%} of the rest"
    )
    scale = np.sqrt(values[-count:].sum() / count)
    basis = (vectors[:, ::-1][:, :count] / scale).astype(np.float32)
    return Directions(means, basis)
