"""The recording that a spoken text takes its voice and manner from.

Upstream reads it twice: for the prompt by librosa (soxr, 16 kHz), and for the style by torchaudio
(a windowed sinc, 32 kHz).

Source: GPT-SoVITS `TTS_infer_pack/TTS.py` (`_set_prompt_semantic`, `_set_ref_spec`). Axes: N
samples, K codes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlx_vits.audio.files import read_audio, resample
from mlx_vits.audio.sinc import resample_sinc
from mlx_vits.errors import DataError
from mlx_vits.preprocessing.features import ENCODER_RATE

_SHORTEST, _LONGEST = 3.0, 10.0  # seconds, what T2S has learnt to continue
# Appended to the prompt. Upstream means 0.3 s, counted at 32 kHz.
_SILENCE_SAMPLES = 9600
SILENCE_CODES = 15  # that it becomes
_SHORTEST_STYLE = 0.5  # seconds, of a recording that gives its timbre alone
_SILENT = 1e-4
_LOUDEST = 2.0  # a louder recording is divided by this, and stays above full scale

Encode = Callable[[np.ndarray], np.ndarray]


class Reference(NamedTuple):
    """A recording as the content encoder and as the style encoders hear it.

    Attributes:
        source: its path, for messages.
        for_prompt: `(N,)` float32 at 16 kHz.
        for_style: `(N,)` float32 at the voice's rate, not yet `lowered`.
    """

    source: str
    for_prompt: np.ndarray
    for_style: np.ndarray

    @property
    def seconds(self) -> float:
        return len(self.for_prompt) / ENCODER_RATE


def read_reference(path: str | Path, rate: int) -> Reference:
    """Read a recording.

    Args:
        path: of any format that `read_audio` takes.
        rate: of the voice, in Hz.

    Raises:
        DataError: as `read_audio`, or the recording is silent or too short.
    """
    recording = read_audio(path)
    if len(recording.wav) < _SHORTEST_STYLE * recording.rate:
        raise DataError(
            f"{path}: lasts {len(recording.wav) / recording.rate:.2f} s; a reference has to last "
            f"{_SHORTEST:.0f} to {_LONGEST:.0f} s"
        )
    peak = float(np.abs(recording.wav).max(initial=0.0))
    if peak < _SILENT:
        raise DataError(f"{path}: is silent; give a recording of speech as the reference")
    for_style = resample_sinc(recording.wav, recording.rate, rate)
    return Reference(str(path), resample(recording.wav, recording.rate, ENCODER_RATE), for_style)


def lowered(wav: np.ndarray) -> np.ndarray:
    """Divide a recording `(N,)` louder than full scale by its peak, at most by 2, as upstream."""
    peak = float(np.abs(wav).max(initial=0.0))
    return wav / min(_LOUDEST, peak) if peak > 1 else wav


def prompt_codes(reference: Reference, encode: Encode) -> np.ndarray:
    """Return the semantic codes `(K,)` that T2S continues.

    Args:
        encode: samples `(N,)` at 16 kHz to codes `(K,)`.

    Raises:
        DataError: the recording is not of 3 to 10 seconds.
    """
    wav = reference.for_prompt
    if not _SHORTEST * ENCODER_RATE <= len(wav) <= _LONGEST * ENCODER_RATE:
        raise DataError(
            f"{reference.source}: lasts {reference.seconds:.1f} s; a reference has to last "
            f"{_SHORTEST:.0f} to {_LONGEST:.0f} s: cut out one sentence of about five"
        )
    return encode(np.concatenate([wav, np.zeros(_SILENCE_SAMPLES, np.float32)]))
