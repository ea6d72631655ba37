"""The teacher: the encoder of Whisper-base (Radford et al. 2022, arXiv:2212.04356; MIT licence).

From a safetensors file with CTranslate2's names: `conv1`, `conv2`, `position_encodings.encodings`,
`layer_0` … (pre-norm; query, key and value rows in one `linear_0`), `layer_norm`. Whisper's other
encoders differ in width and depth alone. Axes: B windows of 30 s, N samples, S frames, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_vits.audio.spectrogram import _hann, mel_filterbank
from mlx_vits.checkpoints.tensors import read_tensors
from mlx_vits.errors import CheckpointError
from mlx_vits.nn.ops import conv1d
from mlx_vits.preprocessing.features import ENCODER_RATE
from scripts.demo_base.layers import heads, join

HOP = ENCODER_RATE // 50  # samples of a frame of the features
WINDOW_FRAMES = 1500
WINDOW_SAMPLES = WINDOW_FRAMES * HOP
N_FFT, MELS = 400, 80
_HEAD_WIDTH = 64  # channels, in every Whisper
_CONVS = ("conv1", "conv2")  # of stride 1 and 2
_EPS = 1e-5
_POWER_FLOOR, _RANGE = 1e-10, 8.0  # decades below the loudest that are heard


def mel_power(wav: np.ndarray) -> mx.array:
    """`(B, WINDOW_SAMPLES)` at 16 kHz to mel power `(B, 2 * WINDOW_FRAMES, 80)`.

    Frame j is centred on sample 160 j.
    """
    padded = mx.array(np.pad(wav, [(0, 0), (N_FFT // 2, N_FFT // 2)], mode="reflect"))
    blocks = padded[:, : padded.shape[1] // 80 * 80].reshape(len(wav), -1, 80)
    frames = 2 * WINDOW_FRAMES
    windows = [blocks[:, i : i + 2 * frames : 2][:, :frames] for i in range(N_FFT // 80)]
    spectrum = mx.fft.rfft(mx.concatenate(windows, axis=-1) * _hann(N_FFT))
    power = mx.square(mx.real(spectrum)) + mx.square(mx.imag(spectrum))
    return power @ mel_filterbank(ENCODER_RATE, N_FFT, MELS, 0.0, ENCODER_RATE / 2).T


class _Linear(NamedTuple):
    """Weight `(in, out)` and bias `(out,)`."""

    weight: mx.array
    bias: mx.array

    def __call__(self, x: mx.array) -> mx.array:
        return mx.addmm(self.bias, x, self.weight)


class _Layer(NamedTuple):
    """A layer, each norm's scale and shift folded into what follows it.

    Attributes:
        qkv: query, key and value side by side; the query scaled by the root of a head's width.
        out: of the attention.
        up, down: of the feed-forward part.
    """

    qkv: _Linear
    out: _Linear
    up: _Linear
    down: _Linear


class Teacher:
    """The encoder.

    Args:
        path: the safetensors file.

    Attributes:
        layers: how many it has.

    Raises:
        CheckpointError: the file is missing, damaged, or not Whisper-base's encoder.
    """

    def __init__(self, path: Path):
        tensors = read_tensors(path).tensors
        needed = ("conv1.weight", "conv2.weight", "layer_norm.gamma", "layer_0.ffn.linear_0.weight")
        missing = [name for name in needed if name not in tensors]
        if missing:
            raise CheckpointError(
                f"{path}: lacks {missing[0]}; give the encoder of Whisper-base under CTranslate2's "
                "names"
            )
        self.layers = len({name.split(".")[0] for name in tensors if name.startswith("layer_")}) - 1
        of = {name: tensor.astype(mx.float32) for name, tensor in tensors.items()}
        self._convs = [
            (mx.contiguous(of[f"{n}.weight"].transpose(0, 2, 1)), of[f"{n}.bias"]) for n in _CONVS
        ]
        self._positions = of["position_encodings.encodings"]
        self._layers = [_fold(of, f"layer_{number}") for number in range(self.layers)]
        self._last = of["layer_norm.gamma"], of["layer_norm.beta"]
        # Computed now: a step that is compiled finds constants.
        mx.eval(self._convs, self._positions, self._layers, self._last)

    def __call__(self, power: mx.array) -> mx.array:
        """Mel power `(B, 2 S, 80)` to `(B, S, 512)`; frame i is centred on sample 320 i."""
        log = mx.log10(mx.maximum(power, _POWER_FLOOR))
        loudest = mx.max(log, axis=(1, 2), keepdims=True)
        (x,) = self.states(scale_log(mx.maximum(log, loudest - _RANGE)), (self.layers,))
        return mx.fast.layer_norm(x, *self._last, _EPS)

    def states(self, x: mx.array, depths: Sequence[int]) -> list[mx.array]:
        """What it hears, layer by layer, before its last norm; no further than is asked for.

        Args:
            x: `(B, 2 S, 80)` from `scale_log`.
            depths: after how many layers, rising.

        Returns:
            `(B, S, C)` for each depth.
        """
        for stride, (weight, bias) in enumerate(self._convs, 1):
            x = nn.gelu(conv1d(x, weight, bias, stride=stride, padding=1))
        x = x + self._positions[: x.shape[1]]
        found = []
        for number, layer in enumerate(self._layers[: depths[-1]], 1):
            x = x + _attend(layer, mx.fast.layer_norm(x, None, None, _EPS))
            x = x + layer.down(nn.gelu(layer.up(mx.fast.layer_norm(x, None, None, _EPS))))
            if number in depths:
                found.append(x)
        return found


def scale_log(log: mx.array) -> mx.array:
    """log10 of mel power as Whisper takes it."""
    return (log + 4) / 4


def _attend(layer: _Layer, x: mx.array) -> mx.array:
    query, key, value = heads(layer.qkv(x), 3, x.shape[-1] // _HEAD_WIDTH)
    return layer.out(join(mx.fast.scaled_dot_product_attention(query, key, value, scale=1.0)))


def _fold(tensors: dict[str, mx.array], name: str) -> _Layer:
    linears = []
    for part in ("self_attention", "ffn"):
        for number in (0, 1):
            stem = f"{name}.{part}.linear_{number}"
            weight = tensors[f"{stem}.weight"].T
            bias = tensors.get(f"{stem}.bias", mx.zeros(weight.shape[1]))
            if number == 0:
                gamma, beta = (tensors[f"{name}.{part}.layer_norm.{n}"] for n in ("gamma", "beta"))
                weight, bias = gamma[:, None] * weight, beta @ weight + bias
            linears.append(_Linear(mx.contiguous(weight), bias))
    width = linears[0].weight.shape[0]
    # A power of two: nothing is lost.
    scale = mx.where(mx.arange(3 * width) < width, _HEAD_WIDTH**-0.5, 1.0)
    linears[0] = _Linear(linears[0].weight * scale, linears[0].bias * scale)
    return _Layer(*linears)
