"""Relative-position attention and the encoders built on it.

Source: GPT-SoVITS `module/attentions.py` (`MultiHeadAttention`, `FFN`, `Encoder`); Shaw et al.
2018, arXiv:1803.02155. Axes: B batch, T time of the queries, S time of the keys, C channels,
H heads, D channels a head, W reach of the relative positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import mlx.core as mx
import mlx.nn as nn

from mlx_vits.nn import cuda
from mlx_vits.nn.checkpointing import recomputed
from mlx_vits.nn.conv import conv1d
from mlx_vits.nn.dropout import Dropout, dropped, no_dropout, replayed
from mlx_vits.nn.gradients import sum_to, with_gradient
from mlx_vits.nn.joining import joined
from mlx_vits.nn.layers import Conv1d, LayerNorm
from mlx_vits.nn.masking import masked, pairs_of

_MASKED_SCORE = -1e4  # finite, as upstream: a row without any key stays a number


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
        self, x: mx.array, c: mx.array, mask: mx.array | None, dropout: Dropout
    ) -> mx.array:
        """Queries from `x`, keys and values from `c`.

        Args:
            x: `(B, T, C)`.
            c: `(B, S, C)`; the same length as `x` where there are relative positions.
            mask: `(B, 1, T, S)`, of numbers or booleans, 0 where a query must not see a key; None
                where all see all.
            dropout: see `nn/dropout.py`.

        Returns:
            `(B, T, C)`.
        """
        query, key, value = self._queries_keys_values(x, c)
        scale, band = query.shape[-1] ** -0.5, None
        if self.window_size is None or not cuda.is_used(query, self.emb_rel_k):
            query, scale = query * scale, 1.0  # else the kernel scales what comes of it
        scores = query @ key.swapaxes(-1, -2)
        if self.window_size is not None:
            band = query @ self.emb_rel_k.swapaxes(-1, -2)
        weights = _attend(scores, band, mask, scale).astype(value.dtype)
        weights = dropout(weights, self.p_dropout)
        output = weights @ value
        if self.window_size is not None:
            near = _square_to_band(weights, self.window_size)
            output = mx.addmm(output, near, self.emb_rel_v)
        return self.conv_o(output.swapaxes(1, 2).reshape(x.shape))

    def _queries_keys_values(self, x: mx.array, c: mx.array) -> list[mx.array]:
        """Each `(B, H, T, D)`; of what attends to itself by one product, on CUDA."""
        convs = self.conv_q, self.conv_k, self.conv_v
        if x is c and cuda.is_used(x, *(conv["weight"] for conv in convs)):
            held: tuple[mx.array, mx.array] | None = self.__dict__.get("_held")
            weight, bias = self._joined() if held is None else held
            found: list[mx.array] = _heads_on_cuda(self.n_heads)(conv1d(x, weight), bias)
            return found
        return [self._heads(conv(y)) for conv, y in zip(convs, (x, c, c), strict=True)]

    def _joined(self) -> tuple[mx.array, mx.array]:
        convs = self.conv_q, self.conv_k, self.conv_v
        channels = self.conv_q["weight"].shape[-1]
        weight = joined(*(conv["weight"] for conv in convs)).reshape(-1, channels)
        return weight, joined(*(conv["bias"] for conv in convs))

    def hold(self) -> None:
        """Keeps the projections together on CUDA, of a model whose weights stay as they are."""
        if cuda.is_used(self.conv_q["weight"]):
            self.__dict__["_held"] = self._joined()
            mx.eval(self.__dict__["_held"])

    def _heads(self, x: mx.array) -> mx.array:
        """`(B, T, C)` to `(B, H, T, D)`."""
        batch, length, channels = x.shape
        return x.reshape(batch, length, self.n_heads, channels // self.n_heads).swapaxes(1, 2)


def _attend(
    scores: mx.array, band: mx.array | None, mask: mx.array | None, scale: float = 1.0
) -> mx.array:
    """Softmax of scores `(B, H, T, S)` and a band around the diagonal where the mask is not 0."""
    if band is not None and cuda.is_used(scores, band):
        seen = cuda.one(band.dtype) if mask is None else mask.astype(band.dtype)
        return _attend_on_cuda(scale)(scores, band, seen)
    if band is not None:
        scores = scores + _band_to_square(band)
    scores = scores.astype(mx.float32) if scale == 1 else scores.astype(mx.float32) * scale
    if mask is not None:
        scores = mx.where(mask.astype(mx.bool_), scores, _MASKED_SCORE)
    return mx.softmax(scores, axis=-1)


@cache
def _heads_on_cuda(count: int) -> Callable[[mx.array, mx.array], list[mx.array]]:
    def forward(x: mx.array, bias: mx.array) -> list[mx.array]:
        return cuda.heads(x, bias, count)

    def gradient(
        primals: Sequence[mx.array], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
    ) -> list[mx.array]:
        queries, keys, values = cotangents
        of_x = cuda.merge_heads(queries, keys, values)
        return [of_x, sum_to(primals[1], of_x)]

    return with_gradient(forward, gradient)


@cache
def _attend_on_cuda(scale: float) -> Callable[..., mx.array]:
    def forward(scores: mx.array, band: mx.array, mask: mx.array) -> mx.array:
        return cuda.attention(scores, band, mask, _MASKED_SCORE, scale)

    def gradient(
        primals: Sequence[mx.array], cotangent: mx.array, output: mx.array
    ) -> list[mx.array]:
        _, band, mask = primals
        found = cuda.attention_gradient(cotangent, output, mask, band, scale)
        return [*found, mx.zeros_like(mask)]

    return with_gradient(forward, gradient)


def _band_to_square(band: mx.array) -> mx.array:
    """`(B, H, T, 2 W + 1)`, one column a relative position j - i + W, to `(B, H, T, T)`."""
    return _to_square(band)


def _square_to_band(square: mx.array, reach: int) -> mx.array:
    """`(B, H, T, T)` to `(B, H, T, 2 W + 1)`: the inverse, zero beyond the ends."""
    return _to_band(reach)(square)


def _widen(band: mx.array) -> mx.array:
    """Rows of length T + 2 W + 1 laid end to end, and read at steps of T + 2 W, shift row i by i.

    What is beyond a row's ends is zero.
    """
    if cuda.is_used(band):
        return cuda.widen(band)
    batch, heads, length, width = band.shape
    rows = mx.pad(band, [(0, 0), (0, 0), (0, 0), (0, length)])
    size, shape = length * (length + width), (batch, heads, length, length)
    return mx.as_strided(rows, shape, (heads * size, size, length + width - 1, 1), width // 2)


def _narrow(square: mx.array, width: int) -> mx.array:
    """Rows of length T + 2 W, read at steps of T + 2 W + 1: shifted back, 2 W + 1 of each."""
    reach = width // 2
    if cuda.is_used(square):
        return cuda.narrow(square, reach)
    batch, heads, length, _ = square.shape
    rows = mx.pad(square, [(0, 0), (0, 0), (0, 0), (reach, reach)])
    size, shape = length * (length + 2 * reach), (batch, heads, length, width)
    return mx.as_strided(rows, shape, (heads * size, size, length + width, 1), 0)


def _widen_gradient(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    return _narrow(cotangent, primal.shape[-1])


_to_square = with_gradient(_widen, _widen_gradient)


@cache
def _to_band(reach: int) -> Callable[[mx.array], mx.array]:
    def forward(square: mx.array) -> mx.array:
        return _narrow(square, 2 * reach + 1)

    def gradient(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        return _widen(cotangent)

    return with_gradient(forward, gradient)


class FFN(nn.Module):
    """Two convolutions over time with a ReLU between, masked before each and after."""

    def __init__(self, channels: int, filter_channels: int, kernel_size: int, p_dropout: float):
        super().__init__()
        self.p_dropout = p_dropout
        # Upstream pads (k - 1) // 2 on the left and k // 2 on the right: the same for odd kernels.
        padding = kernel_size // 2
        self.conv_1 = Conv1d(channels, filter_channels, kernel_size, padding=padding)
        self.conv_2 = Conv1d(filter_channels, channels, kernel_size, padding=padding)

    def unbiased(self, x: mx.array, mask: mx.array | None, dropout: Dropout) -> mx.array:
        """`(B, T, C)` and a mask `(B, T, 1)` to `(B, T, C)`, without the last bias and mask."""
        x = self.conv_1.leaky(masked(x, mask), 0.0)
        return self.conv_2.unbiased(dropped(dropout, x, self.p_dropout, mask=mask))


class Encoder(nn.Module):
    """Layers of self-attention and FFN, each followed by addition and LayerNorm (post-norm)."""

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

    def __call__(self, x: mx.array, mask: mx.array | None, dropout: Dropout) -> mx.array:
        """`(B, T, C)` and a mask `(B, T, 1)` to `(B, T, C)`."""
        pairs = pairs_of(mask, mask)
        if pairs is not None:
            pairs = pairs.astype(x.dtype if cuda.is_used(x) else mx.bool_)
        mask = None if mask is None else mask.astype(x.dtype)
        x = masked(x, mask)
        layers = zip(
            self.attn_layers, self.norm_layers_1, self.ffn_layers, self.norm_layers_2, strict=True
        )
        for layer in layers:
            x = recomputed(layer, replayed(dropout, self._layer(*layer)), x, pairs, mask)
        return masked(x, mask)

    def _layer(
        self, attention: MultiHeadAttention, norm_1: LayerNorm, ffn: FFN, norm_2: LayerNorm
    ) -> Callable[..., mx.array]:
        def run(
            x: mx.array, pairs: mx.array | None, mask: mx.array | None, dropout: Dropout
        ) -> mx.array:
            x = norm_1.of_sum(x, dropout(attention(x, x, pairs, dropout), self.p_dropout))
            y, bias = ffn.unbiased(x, mask, dropout), ffn.conv_2["bias"]
            if mask is None and dropout is no_dropout:
                return norm_2.of_sum(x, y, bias)
            return norm_2.of_sum(x, dropped(dropout, y, self.p_dropout, bias, mask))

        return run
