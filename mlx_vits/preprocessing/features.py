"""SSL features: what is said in a clip, 50 frames a second.

Source: GPT-SoVITS `prepare_datasets/2-get-hubert-wav32k.py`. Axes: N samples, S frames, C channels.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_vits.audio.files import resample
from mlx_vits.errors import DataError
from mlx_vits.models.hubert import HubertModel
from mlx_vits.preprocessing.levels import ENCODER_SCALE, mix_level

ENCODER_RATE = 16000


def speech_features(encoder: HubertModel, wav: np.ndarray, rate: int, name: str) -> np.ndarray:
    """Features of one clip.

    Args:
        wav: `(N,)` float32, full scale 1.0.
        rate: Hz.
        name: of the clip, for messages.

    Returns:
        `(S, C)` float32.

    Raises:
        DataError: the clip is silent, too short, or its features are not numbers.
    """
    audio = encoder_input(wav, rate, name)
    least = _receptive_field(encoder)
    if len(audio) < least:
        raise DataError(f"{name}: is too short; {least / ENCODER_RATE:.2f} s are needed at least")
    features = np.array(encoder(mx.array(audio)[None])[0].astype(mx.float32))
    if not np.isfinite(features).all():
        raise DataError(
            f"{name}: the content encoder gives values that are not numbers; check that its files "
            "are whole"
        )
    return features


def align_features(features: np.ndarray, frames: int, name: str) -> np.ndarray:
    """Features `(S, C)` as long as the spectrogram, which may have one frame more.

    Source: GPT-SoVITS `module/data_utils.py`: the last frame is repeated.

    Raises:
        DataError: the lengths do not belong together.
    """
    missing = frames - len(features)
    if missing not in (0, 1):
        raise DataError(
            f"{name}: has {len(features)} frames where the recording has {frames}; prepare the "
            "voice again"
        )
    return np.concatenate([features, features[-1:]]) if missing else features


def encoder_input(wav: np.ndarray, rate: int, name: str) -> np.ndarray:
    """A clip `(N,)` at `rate` Hz as the content encoder hears it: `(N,)` at 16 kHz, levelled.

    Raises:
        DataError: the clip is silent or far too loud.
    """
    return resample(mix_level(wav, name) * ENCODER_SCALE, rate, ENCODER_RATE)


def _receptive_field(encoder: HubertModel) -> int:
    """Samples that the first frame sees."""
    samples = 1
    config = encoder.config
    for kernel, stride in zip(config.conv_kernel[::-1], config.conv_stride[::-1], strict=True):
        samples = (samples - 1) * stride + kernel
    return samples
