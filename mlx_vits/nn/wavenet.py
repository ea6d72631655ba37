"""WN: the gated convolution stack of the posterior encoder and the coupling layers.

Source: GPT-SoVITS `module/modules.py` (`WN`); WaveNet, arXiv:1609.03499. Every dilation is 1 in
this family of models. Axes: B batch, T spectrogram frames, C channels.
"""

from __future__ import annotations

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
        conditions = mx.split(self.cond_layer(g), len(self.in_layers), axis=-1)
        total, mask = mx.zeros_like(x), mask.astype(x.dtype)
        for layer, (conv, res_skip) in enumerate(
            zip(self.in_layers, self.res_skip_layers, strict=True)
        ):
            gate = conv(x) + conditions[layer]
            tanh_half, sigmoid_half = mx.split(gate, 2, axis=-1)
            y = res_skip(mx.tanh(tanh_half) * mx.sigmoid(sigmoid_half))
            if layer < len(self.in_layers) - 1:
                residual, y = mx.split(y, 2, axis=-1)
                x = (x + residual) * mask
            total = total + y
        return total * mask
