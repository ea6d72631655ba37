"""Losses of training from scratch, beside the product's own (`mlx_vits.training.losses`).

Axes: B waveforms, N samples, T frames, L phonemes, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vits.audio.spectrogram import _hann, mel_filterbank
from mlx_vits.training.losses import FEATURE_WEIGHT, mean, total
from scripts.demo_base.layers import frames_of

STFT_SIZES = (1920, 960, 480, 240)  # samples of a window
_POWER_FLOOR = 1e-7
_STFT_FLOOR = 3e-3  # of a magnitude, times the root of the window
_ENVELOPE_FLOOR = 3e-4
_ENVELOPE_WINDOW, _ENVELOPE_BANDS, _ENVELOPE_TOP = 480, 40, 12000.0  # samples, bands, Hz
_UNSEEN = 1e-3  # attention that costs no more


class ExtraWeights(NamedTuple):
    """Weights of the losses that fine-tuning does not have; a loss of weight 0 is not computed.

    Attributes:
        stft: of `stft_loss`, on what the posterior says.
        envelope: of `envelope_loss`, on what the prior says.
        attention: of `attention_loss`.
        heard, heard_own: of `heard.heard_loss`, on what the prior and what the posterior says.
    """

    stft: float = 0.0
    envelope: float = 0.0
    attention: float = 0.0
    heard: float = 0.0
    heard_own: float = 0.0


def magnitudes(wav: mx.array, window: int, hops: int = 4) -> mx.array:
    """`(B, N)` to `(B, T, window / 2 + 1)`: Hann windows, `hops` of them overlapping."""
    spectrum = mx.fft.rfft(frames_of(wav, window, window // hops) * _hann(window))
    power = mx.square(mx.real(spectrum)) + mx.square(mx.imag(spectrum))
    return mx.sqrt(power + _POWER_FLOOR)


def _apart(log: mx.array) -> mx.array:
    """Mean absolute difference of the second half of the rows to the first."""
    real, fake = mx.split(log, 2)
    return mean(mx.abs(fake - real))


def stft_loss(real: mx.array, fake: mx.array, sizes: Sequence[int] = STFT_SIZES) -> mx.array:
    """Mean difference of log magnitudes, added up over several windows.

    The second term of Parallel WaveGAN's loss (Yamamoto et al. 2020, arXiv:1910.11480).
    """
    both = mx.concatenate([mx.stop_gradient(real), fake])
    return sum(
        (_apart(mx.log(magnitudes(both, n) + _STFT_FLOOR * n**0.5)) for n in sizes),
        start=mx.array(0.0),
    )


def envelope_loss(real: mx.array, fake: mx.array, rate: int = 32000) -> mx.array:
    """Mean difference of coarse log spectra: what is said, whatever the pitch."""
    bank = mel_filterbank(rate, _ENVELOPE_WINDOW, _ENVELOPE_BANDS, 0.0, _ENVELOPE_TOP).T
    both = mx.concatenate([mx.stop_gradient(real), fake])
    return _apart(mx.log(magnitudes(both, _ENVELOPE_WINDOW, 2) @ bank + _ENVELOPE_FLOOR))


def score_loss(
    scores: Sequence[mx.array], targets: np.ndarray | float, weights: np.ndarray
) -> mx.array:
    """The product's `discriminator_loss` and `generator_loss`, for all waveforms together.

    Args:
        scores: `(B, S)` of each sub-discriminator.
        targets: `(B,)`, 1 for what it is to be taken for a recording.
        weights: `(B,)` of the waveforms.
    """
    wanted = mx.array(np.asarray(targets, np.float32).reshape(-1, 1))
    shares = _shares(tuple(score.shape[1] for score in scores))
    errors = mx.square(mx.concatenate(scores, axis=1) - wanted)
    return mx.sum(mx.sum(errors * shares, axis=1) * mx.array(weights.astype(np.float32)))


def matched_feature_loss(features: Sequence[Sequence[mx.array]], count: int) -> mx.array:
    """The product's `feature_loss`, of feature maps that hold all waveforms together.

    All maps are compared side by side: one by one, each would take a dozen kernels.

    Args:
        features: `(B, S, C)` each; the first `count` rows are recordings and constants, the next
            `count` are generated, any others are not compared.
    """
    maps = [map_[: 2 * count].reshape(2 * count, -1) for some in features for map_ in some]
    shares = _shares(tuple(map_.shape[1] for map_ in maps)) * (FEATURE_WEIGHT / count)
    real, own = mx.split(mx.concatenate(maps, axis=1), 2)
    return mx.sum(mx.sum(mx.abs(own - mx.stop_gradient(real)) * shares, axis=1))


@cache
def _shares(sizes: tuple[int, ...]) -> mx.array:
    """Of each element among arrays of these sizes side by side, one by its array's size."""
    return mx.array(np.repeat([1 / size for size in sizes], sizes).astype(np.float32))


class Attention(NamedTuple):
    """Whether the text was found.

    Attributes:
        loss: mean of -log of the attention on the right phoneme, over frames where it is known.
        found: mean of that attention.
    """

    loss: mx.array
    found: mx.array


def attention_loss(attention: mx.array, places: mx.array) -> Attention:
    """Teaches the prior's cross-attention where in the text a frame lies.

    Args:
        attention: `(B, H, T, L)`, each row a distribution over phonemes.
        places: `(B, T)` int32, the right phoneme; -1 where unknown.
    """
    index = mx.maximum(places, 0)[..., None]
    there = mx.take_along_axis(mx.mean(attention, axis=1), index, axis=2)[..., 0]
    known = (places >= 0).astype(mx.float32)
    count = mx.maximum(total(known), 1.0)
    loss = total(-mx.log(there + _UNSEEN) * known) / count
    return Attention(loss, mx.stop_gradient(total(there * known) / count))
