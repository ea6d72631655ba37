"""WN: the gated convolution stack of the posterior encoder and the coupling layers.

Source: GPT-SoVITS `module/modules.py` (`WN`); WaveNet, arXiv:1609.03499. Every dilation is 1 in
this family of models. Axes: B batch, T spectrogram frames, C channels, G conditioning.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_vits.nn.layers import Convolution
from mlx_vits.nn.masking import masked
from mlx_vits.nn.weight_norm import NormScheme, build_conv1d


class WN(nn.Module):
    """Gated residual convolutions, conditioned on a global embedding.

    Args:
        channels: width C.
        kernel_size: odd.
        n_layers: depth.
        gin_channels: width of the conditioning vector.
        scheme: which layers hold their weight as magnitude and direction.
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

        def conv(*shape: int, padding: int = 0) -> Convolution:
            return build_conv1d("wavenet", scheme, *shape, padding=padding)

        self.in_layers = [
            conv(channels, 2 * channels, kernel_size, padding=kernel_size // 2)
            for _ in range(n_layers)
        ]
        # The last layer only adds to the skip sum.
        widths = [2 * channels] * (n_layers - 1) + [channels]
        self.res_skip_layers = [conv(channels, width, 1) for width in widths]
        self.cond_layer = conv(gin_channels, 2 * channels * n_layers, 1)

    def __call__(self, x: mx.array, mask: mx.array | None, g: mx.array) -> mx.array:
        """`(B, T, C)`, mask `(B, T, 1)` and conditioning `(B, 1, G)` to `(B, T, C)`."""
        conditions = mx.split(self.cond_layer(g), len(self.in_layers), axis=-1)
        total: mx.array | None = None
        layers = zip(self.in_layers, self.res_skip_layers, conditions, strict=True)
        for conv, res_skip, condition in layers:
            y = res_skip(_gate(conv(x) + condition))
            if res_skip is not self.res_skip_layers[-1]:
                residual, y = mx.split(y, 2, axis=-1)
                x = masked(x + residual, mask)
            total = y if total is None else total + y
        assert total is not None
        return masked(total, mask)


def _gate(x: mx.array) -> mx.array:
    """`(B, T, 2 C)` to `(B, T, C)`: tanh of one half of the channels, gated by the other."""
    half, gate = mx.split(x, 2, axis=-1)
    return mx.tanh(half) * mx.sigmoid(gate)
