"""Losses of training from scratch, beside the product's own (`mlx_vits.training.losses`).

Axes: B waveforms, N samples, T frames, L phonemes, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from mlx_vits.audio.spectrogram import _hann, mel_filterbank
from mlx_vits.training.losses import mean, total

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
    """

    stft: float = 0.0
    envelope: float = 0.0
    attention: float = 0.0


def magnitudes(wav: mx.array, window: int, hops: int = 4) -> mx.array:
    """`(B, N)` to `(B, T, window / 2 + 1)`: Hann windows, `hops` of them overlapping."""
    hop = window // hops
    blocks = wav[:, : wav.shape[1] // hop * hop].reshape(len(wav), -1, hop)
    frames = blocks.shape[1] - hops + 1
    x = mx.concatenate([blocks[:, i : i + frames] for i in range(hops)], axis=-1)
    spectrum = mx.fft.rfft(x * _hann(window), axis=-1)
    return mx.sqrt(mx.square(mx.real(spectrum)) + mx.square(mx.imag(spectrum)) + _POWER_FLOOR)


def stft_loss(real: mx.array, fake: mx.array, sizes: Sequence[int] = STFT_SIZES) -> mx.array:
    """Mean difference of log magnitudes, added up over several windows.

    The second term of Parallel WaveGAN's loss (Yamamoto et al. 2020, arXiv:1910.11480).
    """
    loss = mx.array(0.0)
    for window in sizes:
        floor = _STFT_FLOOR * window**0.5
        a, b = (mx.log(magnitudes(wav, window) + floor) for wav in (mx.stop_gradient(real), fake))
        loss = loss + mean(mx.abs(a - b))
    return loss


def envelope_loss(real: mx.array, fake: mx.array, rate: int = 32000) -> mx.array:
    """Mean difference of coarse log spectra: what is said, whatever the pitch."""
    bank = mel_filterbank(rate, _ENVELOPE_WINDOW, _ENVELOPE_BANDS, 0.0, _ENVELOPE_TOP).T
    a, b = (
        mx.log(magnitudes(wav, _ENVELOPE_WINDOW, 2) @ bank + _ENVELOPE_FLOOR)
        for wav in (mx.stop_gradient(real), fake)
    )
    return mean(mx.abs(a - b))


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
