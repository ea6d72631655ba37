"""Stage `prepare`: every clip decoded, levelled as fine-tuning does, at every speed.

Writes `clips.json` and for each speed `wav32_K.npz` and `wav16_K.npz`, int16.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import mlx_vits  # noqa: F401  (chooses the BLAS before mlx is imported)
import numpy as np
import soxr

from mlx_vits.audio.files import read_speech, resample
from mlx_vits.checkpoints.base import file_sha256
from mlx_vits.preprocessing.features import ENCODER_RATE
from mlx_vits.preprocessing.levels import mix_level, to_int16
from scripts.demo_base.clips import Clip, find_clips, read_clip_list, voice_digest, write_clip_list
from scripts.demo_base.settings import Settings
from scripts.demo_base.store import say, write_clips


class Decoded(NamedTuple):
    """A clip as int16, `(N,)` at the model's rate and at the encoder's."""

    wav32: np.ndarray
    wav16: np.ndarray


class _Job(NamedTuple):
    path: Path
    speed: float
    rate: int


def prepare(voices: Path, teacher: Path, work: Path, settings: Settings) -> None:
    """Runs the stage; the choice of clips and the speeds that are there already are kept.

    Raises:
        UserError: a recording is missing or cannot be used.
    """
    path = work / "clips.json"
    clips = read_clip_list(path) if path.is_file() else find_clips(voices, settings)
    uses = {use: sum(clip.use == use for clip in clips) for use in sorted({c.use for c in clips})}
    say(f"{len(clips)} clips: " + ", ".join(f"{count} {use}" for use, count in uses.items()))
    if not path.is_file():
        _compare_digests(voices, teacher, clips, settings)
        write_clip_list(path, clips)
    rate = settings.model.data.sampling_rate
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, speed in enumerate(settings.speech.speeds):
            paths = [work / f"wav{kilohertz}_{number}.npz" for kilohertz in (32, 16)]
            if all(path.is_file() for path in paths):
                continue
            jobs = [_Job(voices / clip.voice / clip.name, speed, rate) for clip in clips]
            decoded = list(pool.map(decode, jobs))
            write_clips(paths[0], wav=[clip.wav32 for clip in decoded])
            write_clips(paths[1], wav=[clip.wav16 for clip in decoded])
            hours = sum(len(clip.wav32) for clip in decoded) / rate / 3600
            say(f"speed {speed}: {hours:.2f} h decoded")


def decode(job: _Job) -> Decoded:
    """Reads a clip and plays it at a speed.

    Raises:
        DataError: it cannot be used.
    """
    wav = read_speech(job.path, job.rate)
    if job.speed != 1:
        wav = soxr.resample(wav, job.rate * job.speed, job.rate)
    levelled = mix_level(wav, job.path.name)
    return Decoded(to_int16(levelled), to_int16(resample(levelled, job.rate, ENCODER_RATE)))


def _compare_digests(voices: Path, teacher: Path, clips: list[Clip], settings: Settings) -> None:
    """Says whether recordings and teacher are those that the shipped base was made from."""
    found = {
        voice: voice_digest(voices, [clip for clip in clips if clip.voice == voice])
        for voice in settings.speech.weights
    }
    found["teacher"] = file_sha256(teacher)
    for name, digest in found.items():
        same = settings.sha256.get(name) == digest
        say(f"sha256 of {name}: {digest}" + ("" if same else ", not the one in the settings"))
