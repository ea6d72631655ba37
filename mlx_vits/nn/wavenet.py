"""WN: the gated convolution stack of the posterior encoder and the coupling layers.

Source: GPT-SoVITS `module/modules.py` (`WN`); WaveNet, arXiv:1609.03499. Every dilation is 1 in
this family of models. Axes: B batch, T spectrogram frames, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_vits.nn.checkpointing import recomputed
from mlx_vits.nn.weight_norm import NormScheme, build_conv1d


class WN(nn.Module):
    """Gated residual convolutions, conditioned on a global embedding.

    Args:
        channels: width C.
        kernel_size: odd.
        n_layers: depth.
        gin_channels: width of the conditioning vector.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        n_layers: int,
        gin_channels: int,
        scheme: NormScheme,
    ):
        super().__init__()
        self.channels = channels

        def conv(*shape: int, padding: int = 0) -> nn.Module:
            return build_conv1d("wavenet", scheme, *shape, padding=padding)

        self.in_layers = [
            conv(channels, 2 * channels, kernel_size, padding=kernel_size // 2)
            for _ in range(n_layers)
        ]
        # The last layer only adds to the skip sum.
        widths = [2 * channels] * (n_layers - 1) + [channels]
        self.res_skip_layers = [conv(channels, width, 1) for width in widths]
        self.cond_layer = conv(gin_channels, 2 * channels * n_layers, 1)

    def __call__(self, x: mx.array, mask: mx.array, g: mx.array) -> mx.array:
        """`(B, T, C)`, mask `(B, T, 1)` and conditioning `(B, 1, G)` to `(B, T, C)`."""
        return recomputed([self], self._stack, x, mask, g)

    def _stack(self, x: mx.array, mask: mx.array, g: mx.array) -> mx.array:
        conditions = _split_evenly(self.cond_layer(g), len(self.in_layers))
        total, mask = None, mask.astype(x.dtype)
        for layer, (conv, res_skip) in enumerate(
            zip(self.in_layers, self.res_skip_layers, strict=True)
        ):
            y = res_skip(gated(conv(x) + conditions[layer]))
            if layer < len(self.in_layers) - 1:
                residual, y = mx.split(y, 2, axis=-1)
                x = (x + residual) * mask
            total = y if total is None else total + y
        assert total is not None
        return total * mask


def _split_evenly(x: mx.array, count: int) -> list[mx.array]:
    """Equal parts of the channels; ten at most at a time: MLX fills and adds up more, backward."""
    if count <= 10:
        return list(mx.split(x, count, axis=-1))
    few = count // 2
    first, second = mx.split(x, [x.shape[-1] // count * few], axis=-1)
    return [*_split_evenly(first, few), *_split_evenly(second, count - few)]


def _gate(x: mx.array) -> list[mx.array]:
    half, other = mx.split(x, 2, axis=-1)
    tanh, sigmoid = mx.tanh(half), mx.sigmoid(other)
    return [tanh * sigmoid, tanh, sigmoid]


def _gate_gradient(
    primal: mx.array, cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
) -> mx.array:
    # MLX's own goes by way of cosh, and computes more.
    y, tanh, sigmoid = outputs
    parts = [sigmoid - y * tanh, y - y * sigmoid]
    return mx.concatenate([cotangents[0] * part for part in parts], axis=-1)


_gate_function: Any = mx.custom_function(_gate)
_gate_function.vjp(_gate_gradient)


def gated(x: mx.array) -> mx.array:
    """`tanh(a) * sigmoid(b)` of the halves of the channels: `(B, T, 2 C)` to `(B, T, C)`."""
    return _gate_function(x)[0]
