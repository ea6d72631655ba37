"""Relative-position attention and the encoders built on it.

Source: GPT-SoVITS `module/attentions.py` (`MultiHeadAttention`, `FFN`, `Encoder`); Shaw et al.
2018, arXiv:1803.02155. Axes: B batch, T time of the queries, S time of the keys, C channels,
H heads, D channels a head, W reach of the relative positions.
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from mlx_vits.nn.dropout import Key, dropout, split_key
from mlx_vits.nn.layers import Conv1d, LayerNorm
from mlx_vits.nn.masking import masked, pairs_of

MASKED_SCORE = -1e4  # finite, as upstream: a row without any key stays a number


class MultiHeadAttention(nn.Module):
    """Attention whose four projections are convolutions of one tap.

    Args:
        channels: width of queries, keys and output.
        n_heads: divides `channels`; head h owns channels h D to (h + 1) D.
        window_size: reach W of the learnt relative positions, or None for plain attention.
        p_dropout: on the attention weights.
    """

    def __init__(
        self, channels: int, n_heads: int, window_size: int | None = None, p_dropout: float = 0.0
    ):
        super().__init__()
        self.n_heads, self.window_size, self.p_dropout = n_heads, window_size, p_dropout
        head_channels = channels // n_heads
        if window_size is not None:
            shape = (1, 2 * window_size + 1, head_channels)
            self.emb_rel_k = mx.random.normal(shape) * head_channels**-0.5
            self.emb_rel_v = mx.random.normal(shape) * head_channels**-0.5
        self.conv_q = Conv1d(channels, channels, 1)
        self.conv_k = Conv1d(channels, channels, 1)
        self.conv_v = Conv1d(channels, channels, 1)
        self.conv_o = Conv1d(channels, channels, 1)
        for projection in (self.conv_q, self.conv_k, self.conv_v):
            bound = math.sqrt(6.0 / (2 * channels))  # Xavier
            projection["weight"] = mx.random.uniform(-bound, bound, (channels, 1, channels))

    def __call__(
        self, x: mx.array, c: mx.array, mask: mx.array | None, key: Key = None
    ) -> mx.array:
        """Attend from `x` to `c`.

        Args:
            x: `(B, T, C)`.
            c: `(B, S, C)`; the same length as `x` where there are relative positions.
            mask: `(B, 1, T, S)` booleans, False where a query must not see a key; None where all
                see all.
            key: of the dropout.

        Returns:
            `(B, T, C)`.
        """
        query = self._heads(self.conv_q(x))
        k, v = self._heads(self.conv_k(c)), self._heads(self.conv_v(c))
        query = query * query.shape[-1] ** -0.5
        if self.window_size is None:
            output = self._attend_to_all(query, k, v, mask)
        else:
            output = self._attend_with_positions(query, k, v, mask, key)
        return self.conv_o(output.swapaxes(1, 2).reshape(x.shape))

    def _attend_to_all(
        self, query: mx.array, k: mx.array, v: mx.array, mask: mx.array | None
    ) -> mx.array:
        if mask is not None:
            mask = mx.where(mask, 0.0, MASKED_SCORE).astype(query.dtype)
        return mx.fast.scaled_dot_product_attention(query, k, v, scale=1.0, mask=mask)

    def _attend_with_positions(
        self, query: mx.array, k: mx.array, v: mx.array, mask: mx.array | None, key: Key
    ) -> mx.array:
        """Attend with learnt vectors for the 2 W + 1 positions around each query."""
        emb_k, emb_v = (emb.astype(query.dtype) for emb in (self.emb_rel_k, self.emb_rel_v))
        scores = query @ k.swapaxes(-1, -2) + band_to_square(query @ emb_k.swapaxes(-1, -2))
        scores = scores.astype(mx.float32)
        if mask is not None:
            scores = mx.where(mask, scores, MASKED_SCORE)
        weights = dropout(mx.softmax(scores, axis=-1).astype(v.dtype), self.p_dropout, key)
        return weights @ v + square_to_band(weights, self.window_size or 0) @ emb_v

    def _heads(self, x: mx.array) -> mx.array:
        """`(B, T, C)` to `(B, H, T, D)`."""
        batch, length, channels = x.shape
        return x.reshape(batch, length, self.n_heads, channels // self.n_heads).swapaxes(1, 2)


def band_to_square(band: mx.array) -> mx.array:
    """`(B, H, T, 2 W + 1)`, one column a relative position j - i + W, to `(B, H, T, T)`.

    Rows that are padded to T + 2 W + 1, read at steps of T + 2 W, are shifted by i in row i.
    """
    batch, heads, length, width = band.shape
    step, reach = length + width - 1, width // 2
    rows = mx.pad(band, [(0, 0), (0, 0), (0, 0), (0, length)]).reshape(batch, heads, -1)
    shifted = rows[..., : length * step].reshape(batch, heads, length, step)
    return shifted[..., reach : reach + length]


def square_to_band(square: mx.array, reach: int) -> mx.array:
    """`(B, H, T, T)` to `(B, H, T, 2 W + 1)`: the adjoint of `band_to_square`."""
    batch, heads, length, _ = square.shape
    step = length + 2 * reach
    rows = mx.pad(square, [(0, 0), (0, 0), (0, 0), (reach, reach)]).reshape(batch, heads, -1)
    shifted = mx.pad(rows, [(0, 0), (0, 0), (0, length)]).reshape(batch, heads, length, step + 1)
    return shifted[..., : 2 * reach + 1]


class FFN(nn.Module):
    """Two convolutions over time with a ReLU between, masked before each and after."""

    def __init__(self, channels: int, filter_channels: int, kernel_size: int, p_dropout: float):
        super().__init__()
        self.p_dropout = p_dropout
        # Upstream pads (k - 1) // 2 on the left and k // 2 on the right: the same for odd kernels.
        padding = kernel_size // 2
        self.conv_1 = Conv1d(channels, filter_channels, kernel_size, padding=padding)
        self.conv_2 = Conv1d(filter_channels, channels, kernel_size, padding=padding)

    def __call__(self, x: mx.array, mask: mx.array | None, key: Key = None) -> mx.array:
        """`(B, T, C)` and a mask `(B, T, 1)` to `(B, T, C)`."""
        x = dropout(nn.relu(self.conv_1(masked(x, mask))), self.p_dropout, key)
        return masked(self.conv_2(masked(x, mask)), mask)


class Encoder(nn.Module):
    """Layers of self-attention and FFN, each followed by addition and layer norm (post-norm)."""

    def __init__(
        self,
        channels: int,
        filter_channels: int,
        n_heads: int,
        n_layers: int,
        kernel_size: int,
        p_dropout: float,
        window_size: int = 4,
    ):
        super().__init__()
        self.p_dropout = p_dropout
        layers = range(n_layers)
        self.attn_layers = [
            MultiHeadAttention(channels, n_heads, window_size, p_dropout) for _ in layers
        ]
        self.norm_layers_1 = [LayerNorm(channels) for _ in layers]
        self.ffn_layers = [FFN(channels, filter_channels, kernel_size, p_dropout) for _ in layers]
        self.norm_layers_2 = [LayerNorm(channels) for _ in layers]

    def __call__(self, x: mx.array, mask: mx.array | None, key: Key = None) -> mx.array:
        """`(B, T, C)` and a mask `(B, T, 1)` to `(B, T, C)`."""
        pairs = pairs_of(mask, mask)
        x = masked(x, mask)
        layers = zip(
            self.attn_layers, self.norm_layers_1, self.ffn_layers, self.norm_layers_2, strict=True
        )
        keys = split_key(key, len(self.attn_layers))
        for (attention, norm_1, ffn, norm_2), layer_key in zip(layers, keys, strict=True):
            first, second, third, fourth = split_key(layer_key, 4)
            x = norm_1(self._add(x, attention(x, x, pairs, first), second))
            x = norm_2(self._add_ffn(x, ffn, mask, third, fourth))
        return masked(x, mask)

    def _add(self, x: mx.array, y: mx.array, key: Key) -> mx.array:
        return x + dropout(y, self.p_dropout, key)

    def _add_ffn(
        self, x: mx.array, ffn: FFN, mask: mx.array | None, within: Key, after: Key
    ) -> mx.array:
        return self._add(x, ffn(x, mask, within), after)
