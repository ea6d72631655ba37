"""Other rooms, microphones and backgrounds, so that what is learnt is the speech.

Axes: B excerpts, N samples, K cosines of an equaliser.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_vits.preprocessing.features import ENCODER_RATE
from mlx_vits.preprocessing.levels import ENCODER_SCALE

_COSINES = 4
_CORNER = 200.0  # Hz, below which the equaliser's scale is linear
_SLOPE = 40.0  # of the low pass, as a power of frequency
NO_LOW_PASS = 1e6  # Hz
_SPOILT_PEAK = 0.7
_LARGEST_REVERBERATION = 14000  # samples that a room adds


class Equaliser(NamedTuple):
    """A smooth random response for each excerpt.

    Attributes:
        gains: `(B, 2 K)`, dB, of the cosines and of as many sines.
        low_pass: `(B,)`, Hz.
    """

    gains: np.ndarray
    low_pass: np.ndarray


class Surroundings(NamedTuple):
    """What an excerpt is heard through; each `(B,)` but the equalisers.

    Attributes:
        equaliser: of the microphone.
        hiss_equaliser: of the noise.
        hiss, babble: amplitudes relative to the speech; babble is another excerpt's speech.
        reverberation: share of the room's tail.
        decay: its time constant, seconds.
    """

    equaliser: Equaliser
    hiss_equaliser: Equaliser
    hiss: np.ndarray
    babble: np.ndarray
    reverberation: np.ndarray
    decay: np.ndarray


def draw_equaliser(
    random: np.random.Generator,
    count: int,
    decibels: float,
    share: float,
    low_pass: tuple[float, float] | None = None,
    low_pass_share: float = 0.0,
) -> Equaliser:
    """Equalisers for a share of `count` excerpts, low passes of some Hz for another."""
    on = random.random((count, 1)) < share
    gains = random.normal(0, decibels, (count, _COSINES)) * on
    phases = random.uniform(0, 2 * np.pi, (count, _COSINES))
    cut = np.full(count, NO_LOW_PASS)
    if low_pass:
        drawn = np.exp(random.uniform(*np.log(low_pass), count))
        cut = np.where(random.random(count) < low_pass_share, drawn, NO_LOW_PASS)
    gains = np.concatenate([gains * np.cos(phases), -gains * np.sin(phases)], axis=1)
    return Equaliser(gains.astype(np.float32), cut.astype(np.float32))


def draw_surroundings(random: np.random.Generator, count: int) -> Surroundings:
    """Draws them for `count` excerpts; much of it is left as it is."""

    def decibels(share: float, low: float, high: float) -> np.ndarray:
        return (random.random(count) < share) * 10 ** (-random.uniform(low, high, count) / 20)

    parts = {
        "hiss": decibels(0.5, 6, 35),
        "babble": decibels(0.2, 8, 25),
        "reverberation": (random.random(count) < 0.3) * random.uniform(0.1, 0.7, count),
        "decay": np.exp(random.uniform(np.log(0.015), np.log(0.12), count)),
    }
    return Surroundings(
        equaliser=draw_equaliser(random, count, 4.0, 0.7, (2800.0, 7900.0), 0.35),
        hiss_equaliser=draw_equaliser(random, count, 8.0, 1.0),
        **{name: part.astype(np.float32) for name, part in parts.items()},
    )


def equalise(wav: mx.array, rate: int, equaliser: Equaliser) -> mx.array:
    """`(B, N)` through an equaliser; circular, so silence should follow the sound."""
    samples = wav.shape[1]
    gains, low_pass = (mx.array(part) for part in equaliser)
    curves, slope = _curves(samples, rate)
    steep = mx.logaddexp(slope - _SLOPE * mx.log(low_pass)[:, None], 0.0)
    response = mx.exp(gains @ curves - steep)
    return mx.fft.irfft(mx.fft.rfft(wav, axis=1) * response, n=samples, axis=1)


@cache
def _curves(samples: int, rate: int) -> tuple[mx.array, mx.array]:
    """Over the bins: the logarithm of 1 dB of each cosine and sine, and the low pass of 1 Hz."""
    frequency = np.arange(samples // 2 + 1) * (rate / samples)
    scale = np.log(1 + frequency / _CORNER) / np.log(1 + rate / 2 / _CORNER)
    turns = np.pi * np.arange(1, _COSINES + 1)[:, None] * scale
    curves = np.concatenate([np.cos(turns), np.sin(turns)]) * (np.log(10) / 20)
    slope = _SLOPE * np.log(np.maximum(frequency, 1.0))
    return mx.array(curves.astype(np.float32)), mx.array(slope.astype(np.float32))


def surround(wav: mx.array, around: Surroundings, key: mx.array) -> mx.array:
    """`(B, N)` at 16 kHz as it would be heard elsewhere, at the content encoder's amplitude."""
    samples = wav.shape[1]
    length = 1 << (samples + _LARGEST_REVERBERATION - 1).bit_length()
    hiss_key, room_key = mx.random.split(key)
    wav = mx.pad(wav, [(0, 0), (0, length - samples)])
    level = _level(wav[:, :samples])
    babble = mx.roll(wav / level, 1, axis=0)
    wav = wav + mx.array(around.babble)[:, None] * babble * level
    hiss = mx.random.normal(wav.shape, key=hiss_key)
    hiss = equalise(hiss, ENCODER_RATE, around.hiss_equaliser)
    hiss = hiss / _level(hiss)
    seconds, share = mx.arange(length) / ENCODER_RATE, mx.array(around.reverberation)[:, None]
    room = mx.random.normal(wav.shape, key=room_key)
    room = room * mx.exp(-seconds / mx.array(around.decay)[:, None])
    room = share * room / mx.sqrt(mx.sum(mx.square(room), axis=1, keepdims=True))
    room = room + (mx.arange(length) == 0) * (1 - share)
    spectrum = mx.fft.rfft(wav, axis=1) * mx.fft.rfft(room, axis=1)
    wav = mx.fft.irfft(spectrum, n=length, axis=1)
    wav = wav + mx.array(around.hiss)[:, None] * level * hiss
    wav = equalise(wav, ENCODER_RATE, around.equaliser)[:, :samples]
    peak = mx.max(mx.abs(wav), axis=1, keepdims=True)
    return wav / mx.maximum(peak, 1e-3) * (_SPOILT_PEAK * ENCODER_SCALE)


def _level(wav: mx.array) -> mx.array:
    """Root mean square of each row, `(B, 1)`."""
    return mx.sqrt(mx.mean(mx.square(wav), axis=1, keepdims=True) + 1e-8)
