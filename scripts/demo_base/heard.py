"""What the teacher hears in generated speech and in a recording: a loss of words, not of samples.

Segments are shorter than what Whisper is used to: they are heard one after another in a window, as
in `teach.py`. Heard alone, a change of voice, a room or noise weighs more beside other words.
Recorded and generated segments lie in windows of their own, in the same places. Axes: B segments,
N samples, T mel frames of 10 ms, S frames of 20 ms, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_vits.audio.spectrogram import mel_filterbank
from mlx_vits.errors import UserError
from mlx_vits.nn.ops import conv1d
from mlx_vits.preprocessing.features import ENCODER_RATE
from scripts.demo_base.whisper import MELS, N_FFT, WINDOW_FRAMES, Teacher, scale_log

_MEL_HOP = ENCODER_RATE // 100
_HEARD = 1e-6  # of the loudest mel power, and is added everywhere
_QUIETEST = 1e-10  # mel power, added as well
_EPS = 1e-5


class Listener:
    """The teacher's first layers, for short segments at the product's rate.

    Nothing is resampled: windows of as many milliseconds as Whisper's have the same bins up to
    8 kHz at any rate, and the others are left out. A convolution whose kernel is the windowed sines
    and cosines does in one operation what windows, a transform and their gradients do in a dozen.

    Args:
        teacher: frozen.
        rate: of the segments, Hz; a multiple of 16 kHz.
        layers: after how many layers features are compared, rising.

    Raises:
        UserError: the teacher has fewer layers.
    """

    def __init__(self, teacher: Teacher, rate: int, layers: Sequence[int]):
        if max(layers) > teacher.layers:
            raise UserError(
                f"heard_layers is {list(layers)}, but the teacher has {teacher.layers} layers; "
                "name only those"
            )
        self._teacher, self._depths = teacher, tuple(layers)
        self._hop = _MEL_HOP * rate // ENCODER_RATE
        self._waves = mx.array(_windowed_waves(rate // ENCODER_RATE, self._hop))
        bank = mel_filterbank(ENCODER_RATE, N_FFT, MELS, 0.0, ENCODER_RATE / 2).T
        self._bank = mx.concatenate([bank, bank])  # squares of both parts add up in it
        mx.eval(self._bank)

    def mel_power(self, wav: mx.array) -> mx.array:
        """`(B, N)` to `(B, T, 80)`: frames that lie within the segment, each hop one."""
        blocks = wav.reshape(len(wav), -1, self._hop)
        return mx.square(conv1d(blocks, self._waves)) @ self._bank

    def __call__(self, real: mx.array, fake: mx.array) -> list[tuple[mx.array, mx.array]]:
        """What is heard in recorded and generated segments `(B, N)`.

        Both have a floor 60 dB below the loudest recorded. Whisper's own, 20 dB further down,
        leaves most of the gradient to what is almost silent.

        Returns:
            For each of the layers the features of both, `(B / K, K S, C)`, K segments a window.
        """
        power = self.mel_power(mx.concatenate([real, fake]))
        floor = mx.stop_gradient(mx.max(power[: len(real)])) * _HEARD + _QUIETEST
        x = scale_log(mx.log10(power + floor))
        together = _most_together(len(real), x.shape[1] // 2)
        x = x.reshape(-1, together * x.shape[1], MELS)
        # In one pass: half the kernels, for twice the arithmetic on the way back.
        pairs = (mx.split(states, 2) for states in self._teacher.states(x, self._depths))
        return [(mx.stop_gradient(recorded), generated) for recorded, generated in pairs]


def _most_together(segments: int, frames: int) -> int:
    """The largest divisor of the number of segments that a window has room for."""
    fits = [n for n in range(1, segments + 1) if segments % n == 0 and n * frames <= WINDOW_FRAMES]
    return max(fits)


def _windowed_waves(factor: int, hop: int) -> np.ndarray:
    """Cosines and sines under a Hann window as kernels `(2 bins, blocks, hop)`."""
    size, bins = N_FFT * factor, N_FFT // 2 + 1
    at = np.arange(size)
    phase = 2 * np.pi * np.outer(np.arange(bins), at) / size
    window = (0.5 - 0.5 * np.cos(2 * np.pi * at / size)) / factor
    waves = np.concatenate([np.cos(phase), np.sin(phase)]) * window
    blocks = -(-size // hop)
    waves = np.pad(waves, [(0, 0), (0, blocks * hop - size)])
    return waves.reshape(2 * bins, blocks, hop).astype(np.float32)


def heard_loss(listener: Listener, real: mx.array, fake: mx.array) -> mx.array:
    """How differently segments are heard: `(B,)`, about 0.8 where the words are others.

    Mean difference of features, averaged over the layers. A few of Whisper's channels outgrow all
    others in a few frames: each channel counts by its mean deviation in the recordings, and every
    frame of what is left has variance 1, or those frames would be all that is learnt from.

    Args:
        real, fake: `(B, N)`; there is no gradient to the recordings.
    """
    loss, pairs = mx.array(0.0), listener(mx.stop_gradient(real), fake)
    for a, b in pairs:
        scale = 1 / (mx.mean(mx.abs(a - mx.mean(a, axis=(0, 1))), axis=(0, 1)) + _EPS)
        a, b = (mx.fast.layer_norm(x * scale, None, None, _EPS) for x in (a, b))
        loss = loss + mx.mean(mx.abs(a - b), axis=2)
    return mx.mean(loss.reshape(len(real), -1), axis=1) / len(pairs)
