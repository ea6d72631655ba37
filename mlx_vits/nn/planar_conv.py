"""Convolutions of height 1 with gradients of their own: each is one convolution of cuDNN.

MLX's own gradient of a weight copies every window of the input, unless the convolution is dilated.
As in `matmul_conv.py`, three linear maps serve a convolution, a transposed one and all gradients.

Axes: N batch, T time of x, Y time of y, C channels of x, O of y, K taps. Here x is `(N, 1, T, C)`,
y is `(N, 1, Y, O)`, w is `(O, 1, K, C)`; one group.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import mlx.core as mx

from mlx_vits.nn.gradients import with_gradient


def conv1d(x: mx.array, weight: mx.array, stride: int, padding: int, dilation: int) -> mx.array:
    """`(N, T, C)` with `(O, K, C)` to `(N, Y, O)`; see `conv.conv1d`."""
    return _convolution(stride, padding, dilation)(x[:, None], weight[:, None]).squeeze(1)


def conv_transpose1d(
    x: mx.array, weight: mx.array, stride: int, padding: int, dilation: int
) -> mx.array:
    """`(N, Y, O)` with `(C, K, O)` to `(N, T, C)`; see `conv.conv_transpose1d`.

    In the names of `_spread`, as whose input this x is a y.
    """
    weight = weight[:, None].swapaxes(0, -1)
    return _transposed(stride, padding, dilation)(x[:, None], weight).squeeze(1)


@cache
def _convolution(stride: int, padding: int, dilation: int) -> Callable[..., mx.array]:
    def forward(x: mx.array, w: mx.array) -> mx.array:
        return _gather(x, w, stride, padding, dilation)

    def gradient(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
        x, w = primals
        return (
            _spread(cotangent, w, stride, padding, dilation, x.shape[2]),
            _correlate(x, cotangent, w.shape[2], stride, padding, dilation),
        )

    return with_gradient(forward, gradient)


@cache
def _transposed(stride: int, padding: int, dilation: int) -> Callable[..., mx.array]:
    def forward(y: mx.array, w: mx.array) -> mx.array:
        length = (y.shape[2] - 1) * stride + dilation * (w.shape[2] - 1) + 1 - 2 * padding
        return _spread(y, w, stride, padding, dilation, length)

    def gradient(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
        y, w = primals
        return (
            _gather(cotangent, w, stride, padding, dilation),
            _correlate(cotangent, y, w.shape[2], stride, padding, dilation),
        )

    return with_gradient(forward, gradient)


def _gather(x: mx.array, w: mx.array, stride: int, padding: int, dilation: int) -> mx.array:
    """The convolution: x and w to y."""
    return mx.conv2d(x, w, (1, stride), (0, padding), (1, dilation))


def _spread(
    y: mx.array, w: mx.array, stride: int, padding: int, dilation: int, length: int
) -> mx.array:
    """The adjoint of `_gather` in x, of T = `length`: y and w to x."""
    reach = dilation * (w.shape[2] - 1)
    unread = length - 1 - stride * (y.shape[2] - 1)
    return mx.conv_general(
        y,
        w.swapaxes(0, -1),
        padding=([0, reach - padding], [0, unread + padding]),
        kernel_dilation=(1, dilation),
        input_dilation=(1, stride),
        flip=True,
    )


def _correlate(
    x: mx.array, y: mx.array, kernel: int, stride: int, padding: int, dilation: int
) -> mx.array:
    """The adjoint of `_gather` in w, of K = `kernel`: x and y to w."""
    unread = x.shape[2] - 1 - stride * (y.shape[2] - 1)
    w = mx.conv_general(
        x.swapaxes(0, -1),
        y.swapaxes(0, -1),
        stride=(1, dilation),
        padding=([0, padding], [0, dilation * (kernel - 1) - unread - padding]),
        kernel_dilation=(1, stride),
    )
    return w.swapaxes(0, -1)
