"""`ref_enc`: a reference spectrogram to one style embedding.

Source: GPT-SoVITS `module/modules.py` (`MelStyleEncoder`); Min et al. 2021, arXiv:2106.03153.
Axes: B batch, T spectrogram frames, F bins, C channels, H heads, G style channels.

Padded frames become constants after the first layer's bias and reach up to four frames into the
valid region, as upstream's do: the style of a padded batch differs slightly from a lone clip's.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_vits.config import Config
from mlx_vits.nn.dropout import Key, dropout, split_key
from mlx_vits.nn.layers import Conv1d, Linear
from mlx_vits.nn.masking import masked


class _Wrapped(nn.Module):
    """A layer under the extra name that upstream's wrapper class puts into the checkpoint."""

    def __init__(self, name: str, layer: nn.Module):
        super().__init__()
        self._name = name
        self[name] = layer

    def __call__(self, x: mx.array) -> mx.array:
        return self[self._name](x)


def _linear(inputs: int, outputs: int) -> _Wrapped:
    return _Wrapped("fc", Linear(inputs, outputs))


class Conv1dGLU(nn.Module):
    """Gated convolution with dropout and a residual."""

    def __init__(self, channels: int, kernel_size: int):
        super().__init__()
        self.conv1 = _Wrapped(
            "conv", Conv1d(channels, 2 * channels, kernel_size, padding=kernel_size // 2)
        )

    def __call__(self, x: mx.array, p_dropout: float, key: Key) -> mx.array:
        """`(B, T, C)` to `(B, T, C)`."""
        value, gate = mx.split(self.conv1(x), 2, axis=-1)
        return x + dropout(value * mx.sigmoid(gate), p_dropout, key)


class StyleAttention(nn.Module):
    """Self-attention with its residual; the temperature is the root of the full width."""

    def __init__(self, channels: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.w_qs = Linear(channels, channels)
        self.w_ks = Linear(channels, channels)
        self.w_vs = Linear(channels, channels)
        self.fc = Linear(channels, channels)

    def __call__(self, x: mx.array, mask: mx.array, p_dropout: float, key: Key) -> mx.array:
        """`(B, T, C)` and a mask `(B, T, 1)` of the keys to `(B, T, C)`."""
        batch, length, channels = x.shape
        query, k, v = (
            layer(x).reshape(batch, length, self.n_heads, -1).swapaxes(1, 2)
            for layer in (self.w_qs, self.w_ks, self.w_vs)
        )
        scores = (query @ k.swapaxes(-1, -2)) * channels**-0.5
        scores = scores.astype(mx.float32)
        scores = mx.where(mask.swapaxes(1, 2)[:, None] == 0, -mx.inf, scores)
        of_weights, of_output = split_key(key, 2)
        weights = dropout(mx.softmax(scores, axis=-1).astype(v.dtype), p_dropout, of_weights)
        merged = (weights @ v).swapaxes(1, 2).reshape(batch, length, channels)
        return dropout(self.fc(merged), p_dropout, of_output) + x


class MelStyleEncoder(nn.Module):
    """Mean over time of an attentive encoding of the first bins of a linear spectrogram."""

    def __init__(self, config: Config):
        super().__init__()
        dims = config.reduced_dims
        self.bins, self.p_dropout = dims.ref_spec_bins, config.style_dropout
        width = dims.style_hidden
        # Indices 0 and 3 hold the weights, as in upstream's Sequential.
        self.spectral = [
            _linear(self.bins, width),
            nn.Identity(),
            nn.Identity(),
            _linear(width, width),
        ]
        self.temporal = [Conv1dGLU(width, dims.style_kernel) for _ in range(2)]
        self.slf_attn = StyleAttention(width, dims.style_heads)
        self.fc = _linear(width, config.model.gin_channels)

    def embed_frames(self, spec: mx.array, key: Key = None) -> mx.array:
        """`(B, T, F)` to `(B, T, C)`: two layers on each frame alone."""
        layers = (self.spectral[0], self.spectral[3])
        for layer, layer_key in zip(layers, split_key(key, 2), strict=True):
            spec = dropout(nn.mish(layer(spec)), self.p_dropout, layer_key)
        return spec

    def __call__(self, spec: mx.array, mask: mx.array, key: Key = None) -> mx.array:
        """A spectrogram `(B, T, F)` and its mask `(B, T, 1)` to a style `(B, 1, G)`."""
        of_frames, *of_blocks, of_attention = split_key(key, 2 + len(self.temporal))
        x = self.embed_frames(spec[..., : self.bins] * mask, of_frames)
        for block, block_key in zip(self.temporal, of_blocks, strict=True):
            x = block(x, self.p_dropout, block_key)
        x = self.slf_attn(masked(x, mask), mask, self.p_dropout, of_attention)
        x = self.fc(x).astype(mx.float32) * mask
        return mx.sum(x / mx.sum(mask, axis=1, keepdims=True), axis=1, keepdims=True)
