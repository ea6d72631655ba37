"""SSL features: what is said in a clip, 50 frames a second.

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
# Of a batch, padding included: chinese-hubert-base needs some 60 MB for each second.
BATCH_SAMPLES = 20 * ENCODER_RATE

Item = TypeVar("Item")


class EncoderClip(NamedTuple):
    """A clip as the content encoder hears it.

    Attributes:
        name: for messages.
        audio: `(N,)` from `encoder_input`.
    """

    name: str
    audio: np.ndarray


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
    (features,) = batch_features(encoder, [EncoderClip(name, encoder_input(wav, rate, name))])
    if isinstance(features, DataError):
        raise features
    return features


def batch_features(
    encoder: HubertModel, clips: Sequence[EncoderClip]
) -> list[np.ndarray | DataError]:
    """Features of clips that are heard together.

    Args:
        clips: of any lengths; the less they differ, the less is padded.

    Returns:
        For each clip its features, `(S, C)` float32, which but for rounding do not depend on the
        other clips; or why it has none: it is too short, or they are not numbers.
    """
    least = _receptive_field(encoder)
    heard = [clip for clip in clips if len(clip.audio) >= least]
    rows = iter(_encode(encoder, [clip.audio for clip in heard]) if heard else [])
    results: list[np.ndarray | DataError] = []
    for clip in clips:
        if len(clip.audio) < least:
            seconds = f"{least / ENCODER_RATE:.2f} s"
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
    """Puts items together, in the order they come, as long as `BATCH_SAMPLES` holds them.

    Args:
        items: in the order of their lengths, or more is padded than need be.
        length: of an item, in samples; one that is too long for a batch is one by itself.
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
