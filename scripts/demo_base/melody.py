"""Stage `melody`: whether a frame is voiced, and how high its pitch is for this clip.

Codes made for phones alone say nothing of pitch; a prior that does not know it gives a blur of all
pitches, which costs words as well. The height is relative to the clip's own middle, so that it says
little of who speaks, and the same at every speed. Writes `melody.npz`. Axes: S frames of 20 ms.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from scripts.demo_base.settings import MELODY_SIDES, Settings
from scripts.demo_base.store import read_clips, say, write_clips
from scripts.demo_base.whisper import HOP
from scripts.eval_demo.pitch import track_pitch

_REACH = 400  # samples from the start of a frame of `track_pitch` to its middle
_STEP = 160  # samples between its frames
_SPREAD = 0.2  # natural logarithm: a height of 1
_HIGHEST = 2.5  # heights beyond it are mistakes of an octave


def melody_stage(work: Path, settings: Settings) -> None:
    """Runs the stage."""
    path = work / "melody.npz"
    if path.is_file():
        return
    wavs = read_clips(work / "wav16_0.npz", "prepare")["wav"]
    # A fresh process each: one that is forked from a running MLX may hang.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        melodies = list(pool.map(melody_of, wavs, chunksize=16))
    write_clips(path, melody=melodies)
    shares = np.mean([m[:, 0].mean() for m in melodies])
    say(f"{len(melodies)} melodies, {shares:.0%} voiced")


def melody_of(wav: np.ndarray) -> np.ndarray:
    """What is sung, so to speak.

    Args:
        wav: `(N,)` int16 at 16 kHz.

    Returns:
        `(N // 320, 2)` float16: 1 where voiced; there the logarithm of the pitch over the clip's
        median, in fifths (0.2). Both 0 where nothing is voiced.
    """
    frames = len(wav) // HOP
    hertz = track_pitch(wav.astype(np.float64) / 32768)
    melody = np.zeros((frames, MELODY_SIDES), np.float32)
    if not (hertz > 0).any():
        return melody.astype(np.float16)
    middles = np.arange(frames) * HOP + HOP // 2
    at = np.clip(np.round((middles - _REACH) / _STEP), 0, len(hertz) - 1).astype(np.int64)
    own, median = hertz[at], np.median(hertz[hertz > 0])
    is_voiced = own > 0
    height = np.log(np.where(is_voiced, own, median) / median) / _SPREAD
    melody[:, 0] = is_voiced
    melody[:, 1] = np.clip(height, -_HIGHEST, _HIGHEST) * is_voiced
    return melody.astype(np.float16)
