"""Speaker vectors: the identity of the speaker in a clip, for v2Pro and v2ProPlus.

Source: GPT-SoVITS `prepare_datasets/2-get-sv.py`, in full precision. Axes: N samples, V values of
the vector.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_vits.audio.fbank import FBANK_RATE, FRAME_SAMPLES, kaldi_fbank
from mlx_vits.audio.sinc import resample_sinc
from mlx_vits.checkpoints.torch_archive import write_torch_archive
from mlx_vits.errors import DataError
from mlx_vits.models.speaker_encoder import ERes2NetV2
from mlx_vits.preprocessing.prepared import speaker_file

_FULL_SCALE = 32768  # of int16
_SILENT = 1e-4


def speaker_vector(
    encoder: ERes2NetV2, wav: np.ndarray, rate: int, source: str | Path
) -> np.ndarray:
    """Compute the speaker vector of one clip.

    Args:
        encoder: from `load_speaker_encoder`.
        wav: `(N,)`, upstream's input: the levelled training audio of `5-wav32k`, or a reference
            recording at 32 kHz. int16, or float with full scale 1.0.
        rate: Hz.
        source: the clip, for messages.

    Returns:
        `(1, V)` float32, as stored in the file.

    Raises:
        DataError: the clip is too short, silent or not finite, or the vector is not finite.
    """
    audio = wav / _FULL_SCALE if wav.dtype == np.int16 else wav
    if not np.isfinite(audio).all():
        raise DataError(f"{source}: holds samples that are not numbers; record or export it again")
    if len(audio) * FBANK_RATE < FRAME_SAMPLES * rate:
        raise DataError(
            f"{source}: is too short for a speaker vector; {FRAME_SAMPLES / FBANK_RATE:.3f} s are "
            "needed at least"
        )
    if np.abs(audio).max() < _SILENT:
        raise DataError(f"{source}: is silent; take it out or record it again")
    fbank = kaldi_fbank(resample_sinc(audio, rate, FBANK_RATE))
    vector = np.array(encoder.forward3(mx.array(fbank)[None]).astype(mx.float32))
    if not np.isfinite(vector).all():
        raise DataError(
            f"{source}: the speaker encoder gives values that are not numbers; check that its file "
            "is whole"
        )
    return vector


def write_speaker_vector(folder: Path, name: str, vector: np.ndarray) -> None:
    """Write a clip's vector `(1, V)` as upstream's `7-sv_cn/NAME.pt`, fp32.

    Args:
        folder: the prepared folder, with `7-sv_cn` in it.
        name: of the clip, suffix included.

    Raises:
        CheckpointError: the file cannot be written.
    """
    write_torch_archive(speaker_file(folder, name), np.asarray(vector, np.float32, order="C"))
