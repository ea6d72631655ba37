"""WN: the gated convolution stack of the posterior encoder and the coupling layers.

Source: GPT-SoVITS `module/modules.py` (`WN`); WaveNet, arXiv:1609.03499. Every dilation is 1 in
this family of models. Axes: B batch, T spectrogram frames, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_vits.nn import cuda, cuda_conv
from mlx_vits.nn.checkpointing import recomputed
from mlx_vits.nn.gradients import sum_to, with_gradient
from mlx_vits.nn.joining import end_to_end
from mlx_vits.nn.layers import Convolution
from mlx_vits.nn.masking import masked
from mlx_vits.nn.viewing import views
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
        return recomputed([self], self._stack, x, mask, g)

    def _stack(self, x: mx.array, mask: mx.array | None, g: mx.array) -> mx.array:
        conditions = _split_evenly(self.cond_layer(g), len(self.in_layers))
        total, last = None, len(self.in_layers) - 1
        mask = None if mask is None else mask.astype(x.dtype)
        for layer, (conv, res_skip) in enumerate(
            zip(self.in_layers, self.res_skip_layers, strict=True)
        ):
            y = _gated_product(conv, res_skip, x, conditions[layer])
            if layer < last:
                x, total = _passed_on(x, y, mask, total)
            else:
                y = y.reshape(x.shape)
                total = y if total is None else total + y
        assert total is not None
        return masked(total, mask)


def _split_evenly(x: mx.array, count: int) -> list[mx.array]:
    """`(B, 1, count C)` to as many `(B, 1, C)`, each in one piece."""
    batch, _, channels = x.shape

    def forward(x: mx.array) -> list[mx.array]:
        rows = mx.contiguous(x.reshape(batch, count, -1).swapaxes(0, 1))
        return views(rows.flatten(), [(batch, 1, channels // count)] * count)

    def gradient(
        primal: mx.array, cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
    ) -> mx.array:
        # MLX's own gradient fills and adds up the whole array for some of the parts.
        rows = end_to_end(cotangents, (count, batch, channels // count))
        return rows.swapaxes(0, 1).reshape(batch, 1, channels)

    function = with_gradient(forward, gradient)
    return list(function(x))


def _passed_on(
    x: mx.array, y: mx.array, mask: mx.array | None, total: mx.array | None
) -> tuple[mx.array, mx.array]:
    """Adds the halves of a layer's output to its input and to the sum of what all layers say.

    Args:
        x: `(B, T, C)`.
        y: `(B, T, 2 C)`; on CUDA it may be `(B T, 2 C)`.
        mask: `(B, T, 1)` or None.
        total: as `x`, or None.
    """
    if cuda.is_used(x, y):
        ones, zeros = cuda.one(x.dtype), cuda.zero(x.dtype)
        passed, total = _passed_on_cuda(
            x, y, ones if mask is None else mask, zeros if total is None else total
        )
        return passed, total
    residual, y = mx.split(y, 2, axis=-1)
    return masked(x + residual, mask), y if total is None else total + y


def _passed_on_cuda_gradient(
    primals: Sequence[mx.array], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
) -> list[mx.array]:
    (_, y, mask, _), (passed, total) = primals, cotangents
    return [*cuda.residual_gradient(passed, total, mask, y.shape), mx.zeros_like(mask), total]


_passed_on_cuda = with_gradient(lambda *arrays: cuda.residual(*arrays), _passed_on_cuda_gradient)


def _gated_product(
    conv: Convolution, product: Convolution, x: mx.array, condition: mx.array
) -> mx.array:
    """A layer of one tap on what `gated` makes of another one's output.

    Args:
        conv: C to 2 D channels.
        product: D to P channels.
        x: `(B, T, C)`.
        condition: `(B, 1, 2 D)`.

    Returns:
        `(B, T, P)`, on CUDA `(B T, P)`.
    """
    weight, bias = product.effective_weight(), product["bias"]
    if at := conv.on_cuda(x, condition, weight, bias):
        weight = weight.squeeze(1) if weight.ndim == 3 else weight
        own = conv.effective_weight(), conv["bias"]
        found: mx.array = cuda_conv.gated_product(at)(x, *own, condition, weight, bias)[0]
        return found
    return product(gated(conv.unbiased(x), conv["bias"], condition))


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


_gate_function = with_gradient(_gate, _gate_gradient)


def gated(x: mx.array, bias: mx.array | None = None, condition: mx.array | None = None) -> mx.array:
    """`tanh(a) * sigmoid(b)` of the halves of the channels of the sum.

    Args:
        x: `(B, T, 2 C)`.
        bias: `(2 C,)` or None.
        condition: `(B, 1, 2 C)` or None.

    Returns:
        `(B, T, C)`.
    """
    if bias is not None and condition is not None and cuda.is_used(x, bias, condition):
        return _gate_on_cuda(x, bias, condition)
    for part in (bias, condition):
        x = x if part is None else x + part
    return _gate_function(x)[0]


def _forward_on_cuda(x: mx.array, bias: mx.array, condition: mx.array) -> mx.array:
    return cuda.gate(x, bias, condition)


def _gradient_on_cuda(
    primals: tuple[mx.array, mx.array, mx.array], cotangent: mx.array, output: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    of_sum = cuda.gate_gradient(*primals, cotangent)
    of_condition = mx.sum(of_sum, axis=1, keepdims=True)
    return of_sum, sum_to(primals[1], of_condition), of_condition


_gate_on_cuda = with_gradient(_forward_on_cuda, _gradient_on_cuda)
