"""SSL features: the content of a clip, 50 frames a second.

Source: GPT-SoVITS `prepare_datasets/2-get-hubert-wav32k.py`. Axes: N samples, S frames, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import mlx.core as mx
import numpy as np

from mlx_vits.audio.files import resample
from mlx_vits.errors import DataError
from mlx_vits.models.hubert import HubertModel
from mlx_vits.preprocessing.levels import ENCODER_SCALE, mix_level

ENCODER_RATE = 16000
# Per batch, padding included: chinese-hubert-base takes about 60 MB per second of audio.
BATCH_SAMPLES = 20 * ENCODER_RATE

Item = TypeVar("Item")


class EncoderClip(NamedTuple):
    """Input of the content encoder.

    Attributes:
        name: for messages.
        audio: `(N,)` from `encoder_input`.
    """

    name: str
    audio: np.ndarray


def speech_features(encoder: HubertModel, wav: np.ndarray, rate: int, name: str) -> np.ndarray:
    """Compute the features of one clip.

    Args:
        wav: `(N,)` float32, full scale 1.0.
        rate: Hz.
        name: of the clip, for messages.

    Returns:
        `(S, C)` float32.

    Raises:
        DataError: the clip is silent or too short, or its features are not finite.
    """
    (features,) = batch_features(encoder, [EncoderClip(name, encoder_input(wav, rate, name))])
    if isinstance(features, DataError):
        raise features
    return features


def batch_features(
    encoder: HubertModel, clips: Sequence[EncoderClip]
) -> list[np.ndarray | DataError]:
    """Compute the features of several clips in one forward pass.

    Args:
        clips: of any lengths; similar lengths need less padding.

    Returns:
        For each clip its features `(S, C)` float32, independent of the other clips up to rounding;
        or the error if the clip is too short or its features are not finite.
    """
    min_samples = _receptive_field(encoder)
    usable = [clip for clip in clips if len(clip.audio) >= min_samples]
    rows = iter(_encode(encoder, [clip.audio for clip in usable]) if usable else [])
    results: list[np.ndarray | DataError] = []
    for clip in clips:
        if len(clip.audio) < min_samples:
            seconds = f"{min_samples / ENCODER_RATE:.2f} s"
            results.append(DataError(f"{clip.name}: is too short; {seconds} are needed at least"))
        elif np.isfinite(features := next(rows)).all():
            results.append(features)
        else:
            results.append(
                DataError(
                    f"{clip.name}: the content encoder gives values that are not numbers; check "
                    "that its files are whole"
                )
            )
    return results


def _encode(encoder: HubertModel, audios: list[np.ndarray]) -> list[np.ndarray]:
    lengths = [len(audio) for audio in audios]
    wav = np.zeros((len(audios), max(lengths)), np.float32)
    for row, audio in zip(wav, audios, strict=True):
        row[: len(audio)] = audio
    features = np.array(encoder(mx.array(wav), lengths).astype(mx.float32))
    counts = [encoder.config.frames(length) for length in lengths]
    return [row[:count] for row, count in zip(features, counts, strict=True)]


def batch_by_length(items: Iterable[Item], length: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Group consecutive items into batches of at most `BATCH_SAMPLES`, padding included.

    Args:
        items: sorted by length, which minimises padding.
        length: returns an item's samples; an item longer than a batch gets its own.
    """
    batch: list[Item] = []
    longest = 0
    for item in items:
        longest = max(longest, length(item))
        if batch and (len(batch) + 1) * longest > BATCH_SAMPLES:
            yield batch
            batch, longest = [], length(item)
        batch.append(item)
    if batch:
        yield batch


def align_features(features: np.ndarray, frames: int, name: str) -> np.ndarray:
    """Align features `(S, C)` with a spectrogram that may have one frame more.

    Source: GPT-SoVITS `module/data_utils.py`: the last frame is repeated.

    Raises:
        DataError: the lengths differ by more than that.
    """
    missing = frames - len(features)
    if missing not in (0, 1):
        raise DataError(
            f"{name}: has {len(features)} frames where the recording has {frames}; prepare the "
            "voice again"
        )
    return np.concatenate([features, features[-1:]]) if missing else features


def encoder_input(wav: np.ndarray, rate: int, name: str) -> np.ndarray:
    """Turn a clip `(N,)` at `rate` Hz into the encoder's input: `(N,)` at 16 kHz, levelled.

    Raises:
        DataError: the clip is silent or far too loud.
    """
    return resample(mix_level(wav, name) * ENCODER_SCALE, rate, ENCODER_RATE)


def _receptive_field(encoder: HubertModel) -> int:
    """Return the receptive field of one frame, in samples."""
    samples = 1
    config = encoder.config
    for kernel, stride in zip(config.conv_kernel[::-1], config.conv_stride[::-1], strict=True):
        samples = (samples - 1) * stride + kernel
    return samples
