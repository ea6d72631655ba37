"""The teacher: the encoder of Whisper-base (Radford et al. 2022, arXiv:2212.04356; MIT licence).

From a safetensors file with CTranslate2's names: `conv1`, `conv2`, `position_encodings.encodings`,
`layer_0` … (pre-norm; query, key and value rows in one `linear_0`), `layer_norm`. Whisper's other
encoders differ in width and depth alone. Axes: B windows of 30 s, N samples, S frames, C channels.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_vits.audio.spectrogram import _hann, mel_filterbank
from mlx_vits.checkpoints.tensors import read_tensors
from mlx_vits.errors import CheckpointError
from mlx_vits.preprocessing.features import ENCODER_RATE

HOP = ENCODER_RATE // 50  # samples of a frame of the features
WINDOW_FRAMES = 1500
WINDOW_SAMPLES = WINDOW_FRAMES * HOP
_N_FFT, _MELS = 400, 80
_HEAD_WIDTH = 64  # channels, in every Whisper
_POWER_FLOOR, _RANGE = 1e-10, 8.0  # decades below the loudest that are heard


def mel_power(wav: np.ndarray) -> mx.array:
    """`(B, WINDOW_SAMPLES)` at 16 kHz to mel power `(B, 2 * WINDOW_FRAMES, 80)`.

    Frame j is centred on sample 160 j.
    """
    padded = mx.array(np.pad(wav, [(0, 0), (_N_FFT // 2, _N_FFT // 2)], mode="reflect"))
    blocks = padded[:, : padded.shape[1] // 80 * 80].reshape(len(wav), -1, 80)
    frames = 2 * WINDOW_FRAMES
    windows = [blocks[:, i : i + 2 * frames : 2][:, :frames] for i in range(_N_FFT // 80)]
    spectrum = mx.fft.rfft(mx.concatenate(windows, axis=-1) * _hann(_N_FFT))
    power = mx.square(mx.real(spectrum)) + mx.square(mx.imag(spectrum))
    return power @ mel_filterbank(ENCODER_RATE, _N_FFT, _MELS, 0.0, ENCODER_RATE / 2).T


class Teacher:
    """The encoder.

    Args:
        path: the safetensors file.

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
        self._tensors = {name: tensor.astype(mx.float32) for name, tensor in tensors.items()}

    def __call__(self, power: mx.array) -> mx.array:
        """Mel power `(B, 2 S, 80)` to `(B, S, 512)`; frame i is centred on sample 320 i."""
        log = mx.log10(mx.maximum(power, _POWER_FLOOR))
        loudest = mx.max(log, axis=(1, 2), keepdims=True)
        x = (mx.maximum(log, loudest - _RANGE) + 4) / 4
        for name, stride in (("conv1", 1), ("conv2", 2)):
            weight = self._tensors[f"{name}.weight"].transpose(0, 2, 1)
            x = mx.conv1d(x, weight, stride, 1) + self._tensors[f"{name}.bias"]
            x = nn.gelu(x)
        x = x + self._tensors["position_encodings.encodings"][: x.shape[1]]
        for layer in range(self.layers):
            x = x + self._attend(x, f"layer_{layer}.self_attention")
            name = f"layer_{layer}.ffn"
            y = self._linear(self._norm(x, f"{name}.layer_norm"), f"{name}.linear_0")
            x = x + self._linear(nn.gelu(y), f"{name}.linear_1")
        return self._norm(x, "layer_norm")

    def _attend(self, x: mx.array, name: str) -> mx.array:
        batch, length, width = x.shape
        joined = self._linear(self._norm(x, f"{name}.layer_norm"), f"{name}.linear_0")
        query, key, value = (
            part.reshape(batch, length, width // _HEAD_WIDTH, -1).swapaxes(1, 2)
            for part in mx.split(joined, 3, axis=-1)
        )
        scale = query.shape[-1] ** -0.5
        y = mx.fast.scaled_dot_product_attention(query, key, value, scale=scale)
        return self._linear(y.swapaxes(1, 2).reshape(batch, length, width), f"{name}.linear_1")

    def _linear(self, x: mx.array, name: str) -> mx.array:
        y = x @ self._tensors[f"{name}.weight"].T
        bias = self._tensors.get(f"{name}.bias")
        return y if bias is None else y + bias

    def _norm(self, x: mx.array, name: str) -> mx.array:
        gamma, beta = (self._tensors[f"{name}.{part}"] for part in ("gamma", "beta"))
        return mx.fast.layer_norm(x, gamma, beta, 1e-5)
